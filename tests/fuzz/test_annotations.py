"""Annotations of any content: check_data counts what is wrong with them, and a run refuses what it could not stand."""
import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image

from mmlk.datasets.audit import AuditReport, Loaders, _audit_coco, _audit_segmentation, _run_lengths, runs_fault
from mmlk.engine.hooks import CheckLabelsHook
from mmlk.engine.loading import DataError, LoadImageFromFile
from tests.fuzz.cases import cases

HEIGHT, WIDTH = 30, 40
CLASSES = ['cat', 'dog']
SOUND = dict(
    categories=[dict(id=1, name='cat'), dict(id=5, name='dog')],
    images=[dict(id=n, file_name=f'{n}.png', height=HEIGHT, width=WIDTH) for n in range(2)],
    annotations=[dict(id=n, image_id=n % 2, category_id=(1, 5)[n % 2], bbox=[2, 3, 10, 12], area=100.0, iscrowd=0,
                      segmentation=[[2, 3, 12, 3, 12, 15, 2, 15]]) for n in range(4)])

junk = st.one_of(st.none(), st.booleans(), st.integers(-10**12, 10**12), st.just(10**400), st.text(max_size=3),
                 st.sampled_from([float('nan'), float('inf'), -1e300, 0.5]), st.lists(st.integers(-2, 2), max_size=3),
                 st.dictionaries(st.text(max_size=2), st.none(), max_size=2))


def untracked(items, total):
    return items


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('coco')
    for n in range(2):
        Image.new('RGB', (WIDTH, HEIGHT)).save(path / f'{n}.png')
    return path


def problems_of(folder, text: str) -> dict:
    """What check_data finds in a COCO file, without building mmdet's dataset."""
    (folder / 'a.json').write_text(text)
    report = AuditReport(['here'])
    dataset = SimpleNamespace(ann_file=str(folder / 'a.json'), data_prefix=dict(img=str(folder)))
    _audit_coco(dataset, CLASSES, True, report, untracked, Loaders.of({}, None))
    return {kind: lines for kind, lines in report.problems.items() if lines}


def test_sound_ones_have_no_problem(folder):
    assert problems_of(folder, json.dumps(SOUND)) == {}


@cases(60, place=st.floats(0, 0.999), length=st.integers(0, 30),
       put=st.text(st.sampled_from('{}[],:"-0e9N'), max_size=6))
def test_damaged_json(folder, place, length, put):
    text = json.dumps(SOUND)
    at = int(place * len(text))
    damaged = text[:at] + put + text[at + length:]
    problems = problems_of(folder, damaged)
    try:
        json.loads(damaged)
    except ValueError:
        assert list(problems) == ['unreadable annotations']
        assert str(folder / 'a.json') in problems['unreadable annotations'][0]


@cases(100, data=st.data(), value=junk)
def test_a_wrong_value_anywhere(folder, data, value):
    """No value ends the check; and where one of those that training needs is of another type, it is told."""
    content = copy.deepcopy(SOUND)
    name = data.draw(st.sampled_from(sorted(content)))
    entry = data.draw(st.sampled_from(content[name]))
    key = data.draw(st.sampled_from(sorted(entry)))
    same = type(value) is type(entry[key])
    entry[key] = value
    problems = problems_of(folder, json.dumps(content))
    assert problems or same or isinstance(value, (bool, int, float)) or key in ('iscrowd', 'id')


def faults() -> dict:
    """By name: the change to the first annotation, and the kind of problem that it is."""
    return {
        'class id': (dict(category_id=99), 'category out of range'),
        'image id': (dict(image_id=99), 'image not listed'),
        'box right': (dict(bbox=[35, 3, 20, 5]), 'box outside the image'),
        'box left': (dict(bbox=[-9, 3, 20, 5]), 'box outside the image'),
        'box short': (dict(bbox=[1, 2, 3]), 'malformed box'),
        'box nan': (dict(bbox=[1, 2, float('nan'), 4]), 'malformed box'),
        'box huge': (dict(bbox=[1, 2, 10**400, 4]), 'malformed box'),
        'area': (dict(area=float('nan')), 'malformed entry'),
        'no mask': (dict(segmentation=[]), 'no usable mask'), 'none': (dict(segmentation=None), 'no usable mask'),
        'point': (dict(segmentation=[[5, 5, 5, 5, 5, 5]]), 'no usable mask'),
        'two points': (dict(segmentation=[[5, 5, 9, 9]]), 'no usable mask'),
        'far': (dict(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), 'no usable mask'),
        'outside': (dict(segmentation=[[0, 0, 60, 0, 60, 20]]), 'no usable mask'),
        'infinite': (dict(segmentation=[[0, 0, float('inf'), 0, 9, 9]]), 'no usable mask'),
        'words': (dict(segmentation=[['a', 'b', 'c', 'd', 'e', 'f']]), 'no usable mask'),
        'runs': (dict(segmentation=dict(size=[HEIGHT, WIDTH], counts=[0, 5])), 'no usable mask'),
        'letters': (dict(segmentation=dict(size=[HEIGHT, WIDTH], counts='zzzz')), 'no usable mask'),
        'size': (dict(segmentation=dict(size=[3, 3], counts=[9])), 'no usable mask'),
    }


@cases(60, names=st.lists(st.sampled_from(sorted(faults())), min_size=1, max_size=4))
def test_known_faults_are_counted_by_kind(folder, names):
    """As many of each kind as there are of annotations with such a fault."""
    content, expected = copy.deepcopy(SOUND), {}
    for annotation, name in zip(content['annotations'], names):
        change, kind = faults()[name]
        annotation.update(change)
        expected[kind] = expected.get(kind, 0) + 1
    found = problems_of(folder, json.dumps(content))
    assert {kind: len(lines) for kind, lines in found.items()} == expected
    assert all(f'annotation {n}: ' in ' '.join(sum(found.values(), [])) or 'area' in faults()[name][0]
               for n, name in enumerate(names))


DANGEROUS = ['far', 'infinite', 'words', 'runs', 'letters', 'size', 'box nan']


@cases(40, name=st.sampled_from(sorted(faults())), crowd=st.integers(0, 3))
def test_training_refuses_what_would_crash_in_c(folder, name, crowd):
    """pycocotools ends the process on a polygon that reaches far out; the loader says which image it is."""
    sound = dict(bbox=[2.0, 3.0, 12.0, 15.0], mask=SOUND['annotations'][0]['segmentation'])
    change = faults()[name][0]
    bad = {**sound, **({'bbox': change['bbox']} if 'bbox' in change else {}),
           **({'mask': change['segmentation']} if 'segmentation' in change else {})}
    sample = dict(img_path=str(folder / '0.png'), instances=[sound] * crowd + [bad])
    if name in DANGEROUS or name == 'box huge':
        with pytest.raises(DataError, match='0.png hold'):
            LoadImageFromFile().transform(sample)
    else:
        assert LoadImageFromFile().transform(sample)['img_shape'] == (HEIGHT, WIDTH)


@cases(60, runs=st.lists(st.integers(0, 10**5), max_size=30))
def test_run_lengths_are_read_as_pycocotools_writes_them(runs):
    coco = pytest.importorskip('pycocotools.mask')
    total = max(1, sum(runs))
    runs = runs if sum(runs) else [1]
    text = coco.frPyObjects(dict(size=[total, 1], counts=runs), total, 1)['counts'].decode()
    assert _run_lengths(text) == runs
    assert not runs_fault(dict(size=[total, 1], counts=text), total, 1)
    assert runs_fault(dict(size=[total + 1, 1], counts=text), total + 1, 1)


@cases(40, classes=st.integers(1, 8), reduce_zero_label=st.booleans(), values=st.lists(st.integers(0, 300), min_size=1),
       bits=st.sampled_from([np.uint8, np.uint16]))
def test_label_maps_are_checked_as_mmseg_reads_them(tmp_path, classes, reduce_zero_label, values, bits):
    values = [value for value in values if value <= np.iinfo(bits).max] or [0]
    Image.fromarray(np.array([values], bits)).save(tmp_path / 'a.png')
    Image.new('RGB', (len(values), 1)).save(tmp_path / 'a.jpg')
    samples = [dict(img_path=str(tmp_path / 'a.jpg'), seg_map_path=str(tmp_path / 'a.png'))]
    dataset = SimpleNamespace(load_data_list=lambda: samples, reduce_zero_label=reduce_zero_label, label_map=None,
                              ignore_index=255, ann_file='a', img_suffix='.jpg', data_prefix={}, seg_map_suffix='.png')
    report = AuditReport(['here'])
    _audit_segmentation(dataset, list(range(classes)), report, untracked, Loaders.of({}, 'mmseg'))
    first = 1 if reduce_zero_label else 0
    legal = {255, *range(first, first + classes), *([0] if reduce_zero_label else [])}
    wrong = sorted({value for value in values if value not in legal})
    lines = report.problems.get('label out of range', [])
    assert len(lines) == bool(wrong)
    assert not wrong or lines[0].startswith(f'{tmp_path / "a.png"} holds {wrong[0]}')


class Head(torch.nn.Module):
    num_classes, ignore_index = 5, 255


@cases(40, labels=st.lists(st.one_of(st.integers(0, 4), st.just(255), st.integers(-1, 260)), min_size=1, max_size=9),
       mode=st.sampled_from(['train', 'val', 'test']), named=st.booleans())
def test_a_run_refuses_labels_that_the_heads_lack(labels, mode, named):
    hook = CheckLabelsHook()
    hook.before_run(SimpleNamespace(model=SimpleNamespace(decode_head=Head())))
    sample = BaseDataElement(metainfo=dict(img_path='x.jpg', **(dict(seg_map_path='x.png') if named else {})))
    sample.gt_sem_seg = PixelData(data=torch.tensor([[labels]]))
    call = getattr(hook, f'before_{mode}_iter')
    batch = dict(inputs=[], data_samples=[sample])
    if set(labels) <= {0, 1, 2, 3, 4, 255}:
        call(None, 0, batch)
    else:
        with pytest.raises(DataError, match='x.png holds label' if named else 'x.jpg holds label'):
            call(None, 0, batch)
    sample.gt_sem_seg = PixelData(data=torch.zeros(4, 4, 3))
    with pytest.raises(DataError, match='expected one channel'):
        call(None, 0, batch)
