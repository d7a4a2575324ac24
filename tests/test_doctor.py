"""The doctor's rules on made-up environments, and the doctor itself with everything missing."""
import importlib.util
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOL = ROOT / 'tools' / 'doctor.py'


@pytest.fixture(scope='module')
def doctor():
    spec = importlib.util.spec_from_file_location('doctor', ROOT / 'mmlk' / 'cli' / 'doctor.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PINNED = {
    'torch': '2.12.1', 'torchvision': '0.27.1', 'numpy': '2.2.6', 'opencv-python': '4.12.0.88',
    'timm': '1.0.31', 'onedl-mmengine': '0.10.12', 'onedl-mmcv': '2.3.6', 'onedl-mmdetection': '3.5.1',
    'onedl-mmsegmentation': '1.4.2', 'mmlk': '0.2.0', 'onedl-mmpretrain': '1.3.6', 'setuptools': '80.10.2'}
CLASSIC = {
    'torch': '2.4.1', 'torchvision': '0.19.1', 'numpy': '1.26.4', 'opencv-python': '4.11.0.86',
    'timm': '1.0.31', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0', 'mmsegmentation': '1.2.2',
    'mmlk': '0.2.0', 'mmpretrain': '1.2.0', 'setuptools': '80.10.2'}
MODULES = ('torch', 'torchvision', 'numpy', 'cv2', 'timm', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmlk', 'mmpretrain')


def facts(versions=PINNED, failing=(), absent=(), ops=None, **others):
    """A healthy environment but for what is said; a version of None is not installed."""
    failing = dict(failing, **{name: f"ModuleNotFoundError: No module named '{name}'" for name in absent})
    return dict(dict(python='3.11.7', cuda=[], backends=[], nvidia_driver=False, torch_cuda='13.0'),
                versions={name: version for name, version in versions.items() if version},
                imports={name: failing.get(name) for name in MODULES},
                present=[name for name in MODULES if name not in absent], ops=ops or {'cpu': None}, **others)


def only(problems):
    assert len(problems) == 1, problems
    return problems[0]


@pytest.mark.parametrize('versions', [PINNED, CLASSIC], ids=['onedl', 'classic'])
def test_a_healthy_environment_has_no_problem(doctor, versions):
    assert doctor.diagnose(facts(versions)) == []


INSTALL = 'bash tools/install.sh'
NO_LIBGL = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
NO_PKG = "ModuleNotFoundError: No module named 'pkg_resources'"
REFUSED = 'AssertionError: MMCV==2.2.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.2.0.'
SYMBOL = 'ImportError: mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZNK3c1010TensorImpl'
NO_EXT = "ModuleNotFoundError: No module named 'mmcv._ext'"
WEIGHTS_ONLY = 'UnpicklingError: Weights only load failed'
CASES = {
    'old python': (
        facts(python='3.8.10'), 'problem', 'Python 3.8.10 is too old', INSTALL),
    'both distributions': (
        facts({**PINNED, 'mmcv': '2.1.0'}), 'problem', 'onedl-mmcv and mmcv are installed together',
        'pip uninstall -y onedl-mmcv mmcv && bash tools/install.sh'),
    'torch without CUDA': (
        facts({**PINNED, 'torch': '2.13.0+cpu'},
              {'torchvision': 'RuntimeError: operator torchvision::nms does not exist',
               'timm': 'RuntimeError: operator torchvision::nms does not exist'}),
        'problem', 'torch 2.13.0+cpu is a build without CUDA',
        'pip install --force-reinstall torch==2.12.1 torchvision==0.27.1'),
    'no libGL': (
        facts(failing={'cv2': NO_LIBGL, 'mmcv': NO_LIBGL, 'mmdet': NO_LIBGL, 'mmseg': NO_LIBGL}),
        'problem', 'libGL.so.1', 'opencv-python-headless==4.12.0.88'),
    'new setuptools': (
        facts({**CLASSIC, 'setuptools': '82.0.0'}, {'mmengine': NO_PKG, 'mmcv': NO_PKG}),
        'problem', 'setuptools < 81 and finds 82.0.0', 'pip install "setuptools<81"'),
    'no setuptools': (
        facts({**CLASSIC, 'setuptools': None}, {'mmengine': NO_PKG}),
        'problem', 'finds none', 'setuptools<81'),
    'mmcv 2.2 under mmdet 3.3': (
        facts({**CLASSIC, 'mmcv': '2.2.0', 'mmsegmentation': None}, {'mmdet': REFUSED}),
        'problem', 'mmdet 3.3.0 refuses mmcv >= 2.2.0, and 2.2.0 is here', 'mmcv==2.1.0'),
    'checkpoints': (
        facts({**CLASSIC, 'torch': '2.12.1', 'numpy': '2.2.6'}, checkpoint_error=WEIGHTS_ONLY),
        'problem', 'mmengine 0.10.7 cannot load its own checkpoints with torch 2.12.1',
        'pip uninstall -y mmengine && pip install onedl-mmengine==0.10.12'),
    'numpy 2 under old torch': (
        facts({**CLASSIC, 'torch': '2.1.2', 'numpy': '2.2.6'}),
        'problem', 'torch 2.1.2 was built for numpy 1', 'numpy<2'),
    'numpy 1 under onedl': (
        facts({**PINNED, 'numpy': '1.26.4'}), 'problem', 'needs numpy 2', 'pip install numpy==2.2.6'),
    'stale mmcv wheel': (
        facts(ops={'cpu': SYMBOL}), 'problem', 'compiled for another torch than 2.12.1', INSTALL),
    'stale classic mmcv': (
        facts(CLASSIC, ops={'cpu': SYMBOL}), 'problem', 'compiled for another torch', 'mmcv==2.1.0'),
    'mmcv without operators': (
        facts(ops={'cpu': NO_EXT, 'cuda': NO_EXT}, which_ops='none'), 'problem', "torchvision's in their place",
        'python -m mmlk._mmcv_file'),
    'mmcv without operators nor mmlk': (
        facts(ops={'cpu': NO_EXT}, which_ops='none', failing={'mmlk': NO_EXT}), 'problem', 'without compiled operators',
        INSTALL),
    'mmcv without CUDA operators': (
        facts(ops={'cpu': None, 'cuda': 'RuntimeError: nms is not compiled with GPU support'}, cuda=['H200']),
        'note', "torchvision's, which take their place", 'pip uninstall -y onedl-mmcv && bash tools/install.sh'),
    'driver too old': (
        facts(nvidia_driver=True, cuda_error='RuntimeError: The NVIDIA driver on your system is too old'),
        'note', 'driver on your system is too old', 'nvidia-smi'),
    'no mmseg': (facts(absent=['mmseg']), 'note', 'mmseg is not installed: no segmentation', INSTALL),
    'a broken mmpretrain': (
        facts(failing={'mmpretrain': 'AssertionError: MMCV==2.3.6 is used'}), 'note',
        'mmpretrain cannot be imported (AssertionError: MMCV==2.3.6 is used)', f'{INSTALL} --with pretrain'),
    'both mmpretrains': (
        facts({**PINNED, 'mmpretrain': '1.2.0'}), 'problem', 'onedl-mmpretrain and mmpretrain are installed together',
        f'pip uninstall -y onedl-mmpretrain mmpretrain && {INSTALL} --with pretrain'),
    'no mmlk': (facts(absent=['mmlk']), 'problem', 'mmlk cannot be imported', 'pip install --no-deps'),
    'neither toolbox': (
        facts(absent=['mmdet', 'mmseg']), 'problem', 'not installed: mmdet, mmseg', INSTALL),
    'no torch': (
        facts(absent=['torch'], failing={'timm': "ModuleNotFoundError: No module named 'torch'"}),
        'problem', 'not installed: torch', INSTALL),
    'a broken package': (
        facts(failing={'timm': 'ValueError: boo'}), 'problem', 'timm cannot be imported (ValueError: boo)',
        INSTALL),
}


@pytest.mark.parametrize('case', CASES)
def test_each_bad_environment_is_told_once_and_with_its_cure(doctor, case):
    environment, level, text, mend = CASES[case]
    problem = only(doctor.diagnose(environment))
    assert problem.level == level and text in problem.text and mend in problem.mend


def test_a_shared_cause_is_told_once_and_two_causes_twice(doctor):
    shared = 'OSError: libfoo.so: bad'
    problems = doctor.diagnose(facts(failing={'mmcv': shared, 'mmdet': shared, 'timm': 'ValueError: boo'}))
    assert [problem.text.split()[0] for problem in problems] == ['timm', 'mmcv']


@pytest.mark.parametrize('version, expected', [
    ('2.12.1+cu130', (2, 12, 1)), ('0.10.8rc1', (0, 10, 8)), ('82.0', (82, 0)), (None, ()), ('', ())])
def test_release(doctor, version, expected):
    assert doctor.release(version) == expected


def test_pins_are_those_of_the_requirements(doctor):
    assert doctor.pinned('torch') == 'torch==2.12.1'
    assert doctor.pinned('not-there') == 'not-there'


def test_nothing_is_pinned_outside_a_checkout(doctor, monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, 'ROOT', tmp_path)
    assert doctor.pinned('torch') == 'torch'


def test_it_runs_where_nothing_is_installed(tmp_path):
    # -S leaves site-packages out, -E the environment's paths
    done = subprocess.run([sys.executable, '-S', '-E', TOOL], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr
    missing = ', '.join(name for name in MODULES if name not in ('mmlk', 'mmpretrain'))
    assert f'problem: not installed: {missing}\n  mend it with:  bash tools/install.sh' in done.stdout
    assert 'mmpretrain    not installed, which is optional: bash tools/install.sh --with pretrain\n' in done.stdout


def test_an_optional_package_is_listed_and_may_lack(doctor, capsys):
    environment = facts({**PINNED, 'onedl-mmpretrain': None}, absent=['mmpretrain'])
    assert doctor.diagnose(environment) == []
    doctor.show(environment)
    assert 'mmpretrain    not installed, which is optional' in capsys.readouterr().out
    doctor.show(facts())
    assert 'mmpretrain    onedl-mmpretrain 1.3.6\n' in capsys.readouterr().out


def test_the_operators_here_give_the_right_answers(doctor):
    assert doctor.attempt(lambda: doctor.try_ops('cpu')) is None


@pytest.mark.parametrize('kind, text', [
    ('compiled', "mmcv's own, compiled"), ('torchvision', "torchvision's, through mmlk")])
def test_it_says_which_operators_are_in_use(doctor, capsys, kind, text):
    doctor.show(facts(which_ops=kind))
    assert text in capsys.readouterr().out


@pytest.mark.parametrize('files, kind', [
    ([], 'none'), (['_ext.py'], 'torchvision'), (['_ext.py', f'_ext{EXTENSION_SUFFIXES[0]}'], 'compiled')])
def test_which_operators_are_there(tmp_path, files, kind):
    (tmp_path / 'mmcv').mkdir()
    for name in ['__init__.py', *files]:
        (tmp_path / 'mmcv' / name).touch()
    done = subprocess.run([sys.executable, '-S', TOOL, '--which-ops'], capture_output=True, text=True,
                          env={'PYTHONPATH': str(tmp_path)})
    assert done.stdout == f'{kind}\n', done.stderr


def test_there_are_no_operators_without_mmcv():
    done = subprocess.run([sys.executable, '-S', '-E', TOOL, '--which-ops'], capture_output=True, text=True)
    assert done.stdout == 'none\n', done.stderr


def test_a_wrong_operator_is_found(doctor, monkeypatch):
    import mmcv.ops
    monkeypatch.setattr(mmcv.ops, 'nms', lambda boxes, scores, threshold: (None, scores.argsort()))
    assert 'nms kept' in doctor.attempt(lambda: doctor.try_ops('cpu'))


def test_every_backend_is_listed_with_its_reason(doctor):
    from mmlk.ops import list_backends
    rows = doctor.operator_rows()
    assert {row[0] for row in rows} == {backend.name for backend in list_backends()}
    assert any(reason is None for _, place, reason in rows if place == 'cpu float32')


def test_exit_code_follows_the_problems(doctor, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['doctor.py'])
    monkeypatch.setattr(doctor, 'collect', lambda: facts())
    assert doctor.main() == 0 and 'no problem found' in capsys.readouterr().out
    monkeypatch.setattr(doctor, 'collect', lambda: facts(absent=['mmseg']))
    assert doctor.main() == 0 and 'note: mmseg' in capsys.readouterr().out
    monkeypatch.setattr(doctor, 'collect', lambda: facts(absent=['timm']))
    assert doctor.main() == 1 and '1 problem found' in capsys.readouterr().out
