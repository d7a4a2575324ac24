import os
import shutil
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent

# Which tests have which marker: files below tests/, or one test of a file. `slow` stands at the tests themselves.
MARKERS = {
    'fast': [
        'test_checkpoints.py', 'test_project.py', 'test_require.py', 'test_security.py',
        'analysis/test_classifiers.py',
        'backbones/test_pelk.py', 'backbones/test_repvgg.py',
        'datasets/test_layouts.py', 'datasets/test_scenes.py',
        'deploy/test_export.py::test_default_size', 'deploy/test_export.py::test_packages_that_lack_are_named',
        'deploy/test_export.py::test_pooling_as_products_equals_torchs',
        'deploy/test_export.py::test_refuses_arguments',
        'deploy/test_export.py::test_transforms_as_products_equal_torchs',
        'deploy/test_export.py::test_weights_that_do_not_fill_the_model_are_refused',
        'engine/test_hooks.py', 'engine/test_layer_decay.py',
        'evaluation/test_robustness.py::test_corruptions_by_name_category_and_all',
        'evaluation/test_robustness.py::test_mpc_and_rpc_by_hand',
        'evaluation/test_segmentation.py::test_counts_of_two_images_by_hand',
        'ops/test_global_filter.py', 'ops/test_private.py', 'ops/test_strides.py',
        'predict/test_page.py::test_a_legend_names_what_was_found',
        'predict/test_page.py::test_only_the_page_itself_may_ask',
        'predict/test_page.py::test_the_field_is_where_the_pixel_is',
        'predict/test_tiles.py',
        'reparam/test_dilated.py', 'reparam/test_folding.py', 'reparam/test_repvgg_block.py', 'reparam/test_stripes.py',
        'studies/test_compare.py::test_a_budget_keeps_the_shape_of_the_schedule',
        'studies/test_compare.py::test_entries_are_whole',
        'studies/test_compare.py::test_latex_is_escaped_and_its_rows_have_as_many_cells',
        'studies/test_compare.py::test_schedulers_in_every_form_are_cut',
        'weights/test_catalog.py', 'weights/test_read.py',
    ],
    'config': ['test_accuracy.py', 'test_configs.py', 'test_pretraining.py', 'test_zoo.py', 'fuzz/test_configs.py'],
    'distributed': [
        'engine/test_distributed.py', 'engine/test_slurm.py',
        'engine/test_sparsity.py::test_ranks_score_by_the_average_gradient_and_have_the_same_masks',
    ],
    'gpu': [
        'ops/test_triton.py::test_compiled_kernels_equal_the_reference',
        'ops/test_triton.py::test_strides_do_not_show_on_a_gpu',
        'ops/test_triton.py::test_a_cuda_graph_replays_the_operator',
        'ops/test_triton.py::test_tensors_of_another_device_than_the_current_one',
    ],
}


@pytest.fixture
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture
def shared_data() -> Path:
    """Real images that the repository does not hold; tests that need them are skipped where they are missing."""
    path = Path(os.environ.get('MMLK_SHARED_DATA', REPO.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip(f'real images are not at {path}; set MMLK_SHARED_DATA to their folder')
    return path


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium with a window of 1200 x 900 pixels, whose processes have ended after the test."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed: pip install selenium')
    programs = shutil.which('chromium'), shutil.which('chromedriver')
    if None in programs:
        pytest.skip('Chromium is not installed: apt-get install chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    for argument in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
                     '--window-size=1200,900', f'--user-data-dir={tmp_path / "profile"}'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', dict(performance='ALL', browser='ALL'))
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs[1]))
    try:
        yield driver
    finally:
        driver.quit()
    assert not [line for line in _process_command_lines() if str(tmp_path / 'profile') in line]


def _process_command_lines():
    for path in Path('/proc').glob('[0-9]*/cmdline'):
        try:
            yield path.read_bytes().decode(errors='replace')
        except OSError:  # it has ended
            pass


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == 'call':
        item.passed = report.passed
    return report


@pytest.fixture
def tmp_path(tmp_path, request):
    """pytest's folder of one test. Once the test has passed, its files of more than 1 MB are deleted: those of all
    tests would fill 4 GB. The small ones stay, because mmengine goes on writing to the folder of an earlier test."""
    yield tmp_path
    if getattr(request.node, 'passed', False):
        for folder, _, names in os.walk(tmp_path):
            for path in (Path(folder) / name for name in names):
                if not path.is_symlink() and path.stat().st_size > 1e6:
                    path.unlink()


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _not_deterministic():
    """A runner with a seed turns deterministic algorithms on for its process, which other tests share."""
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_ignore_collect(collection_path, config):
    """With ``-m fast`` the other files are not even imported, which takes longer than the fast tests."""
    if config.option.markexpr.strip() != 'fast' or not collection_path.match('test_*.py'):
        return None
    chosen = {REPO / 'tests' / name.split('::')[0] for name in MARKERS['fast']}
    return True if collection_path not in chosen else None


def pytest_collection_modifyitems(items):
    """Markers by the table above; the longest tests first, so that they do not run alone at the end."""
    for item in items:
        if (REPO / 'tests') in item.path.parents:
            file = item.path.relative_to(REPO / 'tests').as_posix()
            for marker, names in MARKERS.items():
                if marker == 'fast' and item.get_closest_marker('slow'):
                    continue
                if file in names or f'{file}::{getattr(item, "originalname", item.name)}' in names:
                    item.add_marker(marker)
    items.sort(key=lambda item: item.path.name != 'test_accuracy.py')
