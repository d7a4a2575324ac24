"""The manual and the README: their commands parse, their Python runs, their paths exist, their examples train."""
import json
import math
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / 'docs'
EXAMPLES = ROOT / 'examples'
SIDE = 64


# Examples of your_own_data.md, made small as a person would make them: by editing the file.

SMALL = {
    "'../configs/": f"'{ROOT}/configs/",
    'backbones/replknet31b.py': 'backbones/replknet-tiny.py',
    'models/upernet.py': 'models/upernet_small.py',
    "        init_cfg=dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in1k')": '',
    'scale, crop_size = (1024, 512), (512, 512)': f'scale, crop_size = ({SIDE}, {SIDE}), ({SIDE}, {SIDE})',
    'iterations, images_per_gpu, learning_rate = 20000, 4, 1e-4': (
        'iterations, images_per_gpu, learning_rate = 2, 2, 1e-4'),
    'interval=iterations // 10': 'interval=2',
    'begin=0, end=iterations // 20': 'begin=0, end=1',
    'begin=iterations // 20, end=iterations': 'begin=1, end=iterations',
    'num_workers=4': 'num_workers=0',
    'num_workers=2': 'num_workers=0',
    'persistent_workers=True': 'persistent_workers=False',
    'scale = (1333, 800)': f'scale = ({SIDE}, {SIDE})',
    'epochs, images_per_gpu, learning_rate = 36, 2, 1e-4': 'epochs, images_per_gpu, learning_rate = 1, 2, 1e-4',
    'begin=0, end=500': 'begin=0, end=1',
    'milestones=[epochs * 3 // 4, epochs * 11 // 12]': 'milestones=[1]',
}


def copy(folder, name, changes, small=True):
    """An example as a person edits it: each text is there and is replaced."""
    text = (EXAMPLES / name).read_text()
    for old, new in changes.items():
        assert old in text, f'{name} has no {old!r}'
        text = text.replace(old, new)
    for old, new in SMALL.items() if small else ():
        text = text.replace(old, new)
    (folder / name).write_text(text)
    return folder / name


def read(path, **options):
    from mmlk.cli.prepare import read_config
    cfg = read_config(str(path), options)
    cfg.work_dir, cfg.launcher = str(path.parent / 'work'), 'none'
    cfg.experiment_name = f'{path.stem} {path.parent.name} {len(list(path.parent.iterdir()))}'
    cfg.randomness = dict(seed=0)
    return cfg


def problems(cfg):
    """What tools/check_data.py says."""
    from mmlk.datasets.audit import audit
    from mmlk.datasets.check import missing
    from mmlk.datasets.settings import conflicts
    found = [str(problem) for problem in (*missing(cfg), *conflicts(cfg))]
    return found or [line for report in audit(cfg) for kind in report.problems.values() for line in kind]


def train(path, **options):
    """Check, train two steps, validate: the loss, and what validation gave."""
    from mmlk.cli.prepare import build_runner
    cfg = read(path, **options)
    assert problems(cfg) == []
    runner = build_runner(cfg)
    runner.train()
    scalars = runner.message_hub.log_scalars
    assert runner.iter == 2 and math.isfinite(scalars['train/loss'].current())
    return runner, {key[4:]: scalars[key].current() for key in scalars if key.startswith('val/')}


def draw(folder, labels, channels=3, suffix='.jpg', new=True):
    """Images and label maps: noise, in which the left half has the first of two labels and the right the other."""
    random = np.random.RandomState(0)
    for split, count in (('train', 4), ('val', 2), ('new', 2)):
        for index in range(count):
            for kind in ('images', 'labels'):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            image = random.randint(0, 256, (SIDE, SIDE, channels), np.uint8)
            if channels == 3:
                Image.fromarray(image).save(folder / 'images' / split / f'{index}{suffix}')
            else:
                import tifffile
                tifffile.imwrite(folder / 'images' / split / f'{index}{suffix}', image)
            label = np.full((SIDE, SIDE), labels[0], np.uint8)
            for part, value in enumerate(labels):
                label[:, part * SIDE // len(labels):] = value
            if split != 'new':
                Image.fromarray(label).save(folder / 'labels' / split / f'{index}.png')


@pytest.fixture
def data(tmp_path):
    (tmp_path / 'data').mkdir()
    return tmp_path / 'data'


def own(data):
    return {"data_root = 'data/own'": f"data_root = '{data}'"}


TWO = {"classes = ('road', 'building', 'tree')": "classes = ('background', 'crack')",
       'palette = [[128, 64, 128], [70, 70, 70], [107, 142, 35]]': 'palette = [[0, 0, 0], [255, 0, 0]]'}


@pytest.mark.parametrize('reduce', [False, True])
def test_a_segmentation_set_with_its_own_classes(reduce, data, tmp_path, monkeypatch, capsys):
    """Label 0 is the first class, or none; either way there are three classes, and new images get labels."""
    from mmlk.cli import main
    draw(data, (0, 1, 2, 3) if reduce else (0, 1, 2))
    changes = {'reduce_zero_label = False': 'reduce_zero_label = True'} if reduce else {}
    path = copy(tmp_path, 'own_segmentation.py', {**own(data), **changes})
    runner, metrics = train(path)
    assert runner.model.decode_head.num_classes == 3 and 0 <= metrics['mIoU'] <= 100
    sample = runner.train_dataloader.dataset[0]['data_samples'].gt_sem_seg.data
    assert set(sample.unique().tolist()) <= {0, 1, 2, 255}

    checkpoint = str(next((tmp_path / 'work').glob('best_mIoU*.pth')))
    main(['predict', str(path), checkpoint, str(data / 'images' / 'new'), '--out', str(tmp_path / 'predictions')])
    predicted = [np.array(Image.open(path)) for path in sorted((tmp_path / 'predictions' / 'labels').iterdir())]
    assert len(predicted) == 2 and all(labels.shape == (SIDE, SIDE) for labels in predicted)
    # where 0 is no class, the files that are written number classes from 1, as those of the data
    assert {value for labels in predicted for value in np.unique(labels)} <= ({1, 2, 3} if reduce else {0, 1, 2})

    image = str(data / 'images' / 'new' / '0.jpg')
    monkeypatch.setattr(sys, 'argv', ['predict_segmentation.py', str(path), checkpoint, image])
    runpy.run_path(str(EXAMPLES / 'predict_segmentation.py'), run_name='__main__')
    name, *shares = capsys.readouterr().out.splitlines()[-1].split()
    assert name == image
    expected = np.bincount(predicted[0].ravel(), minlength=4)[int(reduce):][:3] / SIDE**2
    there = [(name, share) for name, share in zip(('road', 'building', 'tree'), expected) if share]
    assert shares == [word for name, share in there for word in (name, f'{share:.1%}')]


def page_blocks(page, language='python'):
    """The blocks of a page: (why it is not run, or None; text)."""
    text = page.read_text(encoding='utf-8')
    found = re.finditer(rf'(?:<!-- not run: ([^>]+) -->\n+)?^( *)```{language}[^\n]*\n(.*?)^ *```$', text,
                        re.MULTILINE | re.DOTALL)
    return [(match[1], re.sub(rf'^{match[2]}', '', match[3], flags=re.MULTILINE)) for match in found]


def test_masks_of_0_and_1_and_of_0_and_255(data, tmp_path, monkeypatch):
    draw(data, (0, 255))
    path = copy(tmp_path, 'own_segmentation.py', {**own(data), **TWO})
    assert any('0 and 255' in problem for problem in problems(read(path)))
    script, = [text for _, text in page_blocks(DOCS / 'your_own_data.md') if 'data/own/labels' in text]
    monkeypatch.chdir(tmp_path)
    Path('data').rename('moved')
    shutil.copytree('moved', 'data/own')
    exec(script, {})
    assert {value for png in Path('data/own/labels').rglob('*.png') for value in np.unique(Image.open(png))} == {0, 1}
    path = copy(tmp_path, 'own_segmentation.py', {**own(tmp_path / 'data' / 'own'), **TWO})
    runner, metrics = train(path)
    assert runner.model.decode_head.num_classes == 2 and math.isfinite(metrics['mIoU'])


def test_four_bands(data, tmp_path):
    draw(data, (0, 1, 2), channels=4, suffix='.tif')
    copy(tmp_path, 'own_segmentation.py', own(data))
    path = copy(tmp_path, 'four_bands.py', {', init_cfg=dict(adapt_stem=True)': ''})  # weights are not at hand
    runner, metrics = train(path)
    stem = next(runner.model.backbone.parameters())
    assert stem.shape[1] == 4 and 0 <= metrics['mIoU'] <= 100
    whole = Config.fromfile(str(EXAMPLES / 'four_bands.py')).model.backbone
    assert whole.in_channels == 4 and whole.init_cfg.adapt_stem and whole.init_cfg.checkpoint


def test_fine_tuning_from_ones_own_checkpoint(data, tmp_path):
    """All but the layers of classes comes from the checkpoint, whatever the number of classes."""
    draw(data, (0, 1, 2))
    first, _ = train(copy(tmp_path, 'own_segmentation.py', own(data)))
    checkpoint = tmp_path / 'work' / 'iter_2.pth'
    assert checkpoint.is_file()
    draw(data, (0, 1))
    other = tmp_path / 'other'
    other.mkdir()
    path = copy(other, 'own_segmentation.py', {**own(data), **TWO})
    path.write_text(path.read_text().replace('2, 2, 1e-4', '2, 2, 0.0'))  # weights stay as they are loaded
    second, _ = train(path, load_from=str(checkpoint))
    before, after = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    assert before.keys() == after.keys()
    fresh = {name for name in before if 'conv_seg' in name}
    assert fresh and all(before[name].shape != after[name].shape for name in fresh)
    assert all(torch.equal(before[name], after[name]) for name in before if name not in fresh)


def test_a_coco_set_of_one_class(data, tmp_path):
    for split in ('train', 'val'):
        (data / split).mkdir()
        images, annotations = [], []
        for index in range(2):
            pixels = np.random.RandomState(index).randint(0, 256, (SIDE, SIDE, 3), np.uint8)
            Image.fromarray(pixels).save(data / split / f'{index}.jpg')
            images.append(dict(id=index, file_name=f'{index}.jpg', width=SIDE, height=SIDE))
            annotations.append(dict(id=index + 1, image_id=index, category_id=7, bbox=[8, 8, 40, 32], area=1280,
                                    iscrowd=0, segmentation=[[8, 8, 48, 8, 48, 40, 8, 40]]))
        (data / 'annotations').mkdir(exist_ok=True)
        (data / 'annotations' / f'{split}.json').write_text(json.dumps(
            dict(images=images, annotations=annotations, categories=[dict(id=7, name='cell')])))
    path = copy(tmp_path, 'own_detection.py', {"data_root = 'data/own_coco/'": f"data_root = '{data}/'"})
    path.write_text(path.read_text().replace('epochs, images_per_gpu, learning_rate = 1, 2',
                                             'epochs, images_per_gpu, learning_rate = 2, 2'))  # of one step each
    runner, metrics = train(path)
    assert runner.model.roi_head.bbox_head.num_classes == runner.model.roi_head.mask_head.num_classes == 1
    assert runner.val_dataloader.dataset.get_data_info(0)['instances'][0]['bbox_label'] == 0
    assert metrics


def test_one_class_without_its_comma_is_explained(tmp_path, data):
    """('cell') is a string, whose letters would be classes."""
    path = copy(tmp_path, 'own_detection.py', {"('cell', )": "('cell')"})
    assert any("is the text 'cell'" in problem for problem in problems(read(path)))


# Pages

PAGES = [ROOT / 'README.md', *sorted(DOCS.glob('*.md'))]
GENERATED = {'claims.md', 'zoo.md'}


def test_the_readme_is_short():
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert len(text.splitlines()) <= 200 and len(text.encode()) <= 12000


def anchors(page):
    """The anchors of a page's headings, as mkdocs makes them."""
    headings = re.findall(r'^#+ (.+)$', re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL),
                          re.MULTILINE)
    return {re.sub(r'[\s-]+', '-', re.sub(r'[^\w\s-]', '', heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page):
    text = re.sub(r'```.*?```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL)
    for target in re.findall(r'\]\(([^)\s]+)\)', text):
        if '://' in target:
            continue
        path, _, anchor = target.partition('#')
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f'{target} is not there'
        assert not anchor or anchor in anchors(found), f'{found.name} has no heading #{anchor}'


def test_the_manual_has_all_its_pages_in_the_menu():
    menu = re.findall(r'^ +- .+: ([\w/]+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.MULTILINE)
    assert sorted(menu) == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob('*.md')
                                  if path.parent.name != 'figures')


def braces(word):
    """'a{b,c}' is 'ab' and 'ac', as in bash."""
    found = re.search(r'\{([^{}]+,[^{}]*)\}', word)
    if not found:
        return [word]
    return [end for part in found[1].split(',') for end in braces(word[:found.start()] + part + word[found.end():])]


TOP = tuple(f'{path.name}/' for path in ROOT.iterdir() if path.is_dir() and path.name[0] != '.')


@pytest.mark.parametrize('page', [page for page in PAGES if page.name not in GENERATED], ids=lambda page: page.name)
def test_paths_of_the_checkout_exist(page):
    text = page.read_text(encoding='utf-8')
    words = [word for code in re.findall(r'`([^`\n]+)`', text) for word in code.split()]
    words += [word for _, block in page_blocks(page, 'bash') for word in block.split()]
    for word in words:
        word = word.strip("'\"(),;:")
        if word.startswith(tuple(top for top in TOP if top not in ('data/', 'work_dirs/', 'build/'))):
            for path in braces(word):
                found = path.partition('::')[0]
                assert list(ROOT.glob(found.rstrip('/'))) or '*' in found, f'{page.name} names {path}'


def commands(page):
    """The commands of a page's bash blocks, as lists of words, without comments and variables before them."""
    for _, block in page_blocks(page, 'bash'):
        for line in block.replace('\\\n', ' ').splitlines():
            words = [end for word in shlex.split(line, comments=True) for end in braces(word)]
            while words and re.fullmatch(r'[A-Z_]+=\S*', words[0]):
                words.pop(0)
            if words:
                yield words


class Parsed(Exception):
    """The arguments were understood."""


TOOLS = sorted({tuple(words) for page in PAGES for words in commands(page)
                if words[0] == 'python' and words[1].startswith('tools/')})


@pytest.mark.parametrize('words', TOOLS, ids=' '.join)
def test_commands_parse(words, monkeypatch):
    """Each tool is there and takes the arguments that a page gives it."""
    parse = ArgumentParser.parse_args

    def parse_and_stop(parser, *args, **kwargs):
        parse(parser, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(ArgumentParser, 'parse_args', parse_and_stop)
    monkeypatch.setattr(sys, 'argv', list(words[1:]))
    monkeypatch.chdir(ROOT)
    if words[1] == 'tools/doctor.py':
        monkeypatch.setattr(sys, 'argv', ['tools/doctor.py', '--ops', 'cpu'])
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / words[1]), run_name='__main__')


OTHERS = {'bash', 'source', 'pip', 'pytest', 'mkdocs', 'python', 'mmlk'}


def test_the_other_commands_are_known():
    """Scripts of the checkout are there, with the options that the pages name, and nothing else is asked for."""
    for page in PAGES:
        for words in commands(page):
            assert words[0] in OTHERS, f'{page.name}: {words}'
            if words[0] == 'bash' and words[1].endswith('.sh'):
                script = (ROOT / words[1]).read_text()
                for word in words[2:]:
                    # options of train.py, test.py and pytest are handed on
                    assert not word.startswith('--') or 'train' in words[1] or 'test' in words[1] or word in script


CODE = [page for page in PAGES if page_blocks(page)]


@pytest.mark.parametrize('page', CODE, ids=lambda page: page.name)
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page, one after the other; those that are not run say why."""
    (tmp_path / 'data' / 'own' / 'labels').mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = {'__name__': page.stem}
    for reason, block in page_blocks(page):
        if reason is None:
            exec(compile(block, page.name, 'exec'), names)


def test_tables_of_figures_are_made_from_the_saved_runs():
    made = runpy.run_path(str(DOCS / 'figures' / 'render.py'))
    assert made['TABLES'] and set(made['PICTURES']) <= {path.stem for path in (DOCS / 'figures').glob('*.svg')}
    for name, table in made['TABLES'].items():
        written = (DOCS / 'figures' / f'{name}.md').read_text(encoding='utf-8')
        assert written == table(), 'python docs/figures/render.py'


def test_the_manual_builds_strictly(tmp_path):
    if find_spec('mkdocs') is None or find_spec('mkdocstrings') is None:
        pytest.skip('mkdocs is needed: pip install -e .[docs]')
    done = subprocess.run([sys.executable, '-m', 'mkdocs', 'build', '--strict', '--site-dir', str(tmp_path / 'site')],
                          cwd=ROOT, capture_output=True, text=True, env={**os.environ, 'NO_MKDOCS_2_WARNING': '1'})
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    site = tmp_path / 'site'
    from mmlk import backbones
    assert 'depthwise_conv2d' in (site / 'api' / 'ops' / 'index.html').read_text(encoding='utf-8')
    # every family has its own arguments, and a link to those that all of them share
    page = (site / 'api' / 'backbones' / 'index.html').read_text(encoding='utf-8')
    families = [getattr(backbones, name) for name in backbones.__all__ if name != 'BaseBackbone']
    assert {f'{cls.__module__}.{cls.__name__}' for cls in families} <= {*re.findall(r'id="([\w.]+)"', page)}
    shared = [text for text in re.findall('All other arguments are those of.*?</p>', page, re.DOTALL)
              if 'href="#mmlk.backbones.BaseBackbone"' in text]
    assert len(shared) == len(families)
    # a snippet that is not found would leave its mark
    assert not [page for page in site.rglob('*.html') if '--8<--' in page.read_text(encoding='utf-8')]
