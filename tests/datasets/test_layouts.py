import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from mmlk.datasets import scenes
from mmlk.datasets.layouts import MANIFEST, TOP_FOLDERS, DemoPlan, NotOurs, run_lengths, write_demo
from mmlk.datasets.scenes import CLASSES, draw

SIZE = (64, 80)


def plan(layout, **changes):
    return DemoPlan(**{**dict(layout=layout, seed=1, train=3, val=2, size=SIZE), **changes})


def bytes_under(folder):
    files = (path for path in folder.rglob('*') if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize('layout', TOP_FOLDERS)
def test_same_plan_same_bytes(layout, tmp_path):
    assert write_demo(plan(layout), tmp_path / 'a')
    assert write_demo(plan(layout), tmp_path / 'b')
    assert bytes_under(tmp_path / 'a') == bytes_under(tmp_path / 'b')
    # More scenes leave the first ones as they are.
    assert write_demo(plan(layout, train=5), tmp_path / 'c')
    few, more = bytes_under(tmp_path / 'a'), bytes_under(tmp_path / 'c')
    pictures = [name for name in few if not name.endswith(('.json', '.txt'))]
    assert len(pictures) >= 5 and all(more[name] == few[name] for name in pictures)
    assert write_demo(plan(layout, seed=2), tmp_path / 'd')
    other = bytes_under(tmp_path / 'd')
    assert not any(other.get(name) == few[name] for name in pictures)


def test_written_once_and_only_over_its_own(tmp_path):
    out = tmp_path / 'data'
    assert write_demo(plan('ade20k'), out)
    assert not write_demo(plan('ade20k'), out)

    # Other parameters replace what is there, another layout's folders included.
    assert write_demo(plan('cityscapes'), out)
    assert sorted(path.name for path in out.iterdir()) == sorted([MANIFEST, 'leftImg8bit', 'gtFine'])

    # An interrupted run is no complete one, and is recognised as ours.
    def interrupted(items, what):
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_demo(plan('coco'), out, track=interrupted)
    assert write_demo(plan('coco'), out)
    assert write_demo(plan('coco'), tmp_path / 'fresh')
    assert bytes_under(out) == bytes_under(tmp_path / 'fresh')

    foreign = tmp_path / 'foreign'
    (foreign / 'images').mkdir(parents=True)
    (foreign / 'images' / 'mine.jpg').write_bytes(b'1')
    (foreign / 'notes.txt').write_bytes(b'2')
    before = bytes_under(foreign)
    with pytest.raises(NotOurs, match='foreign is not empty'):
        write_demo(plan('ade20k'), foreign)
    assert bytes_under(foreign) == before
    assert write_demo(plan('ade20k'), foreign, overwrite=True)
    assert (foreign / 'notes.txt').read_bytes() == b'2' and not (foreign / 'images' / 'mine.jpg').exists()


def test_scenes_tuned_otherwise_are_drawn_again(tmp_path, monkeypatch):
    assert write_demo(plan('ade20k'), tmp_path)
    monkeypatch.setattr(scenes, 'EXTENT', (0.3, 0.4))
    assert write_demo(plan('ade20k'), tmp_path)
    assert not write_demo(plan('ade20k'), tmp_path)


def test_manifest_of_someone_else_is_not_ours(tmp_path):
    for content in ('not json', '[]', '{"layout": "ade20k"}',
                    '{"generator": "mmlk.datasets.scenes", "layout": "x"}'):
        (tmp_path / MANIFEST).write_text(content)
        with pytest.raises(NotOurs):
            write_demo(plan('ade20k'), tmp_path)


def labels_as_mmseg_reads_them(dataset):
    return [dataset[index]['gt_seg_map'] for index in range(len(dataset))]


def test_mmseg_reads_the_ade20k_layout(tmp_path):
    from mmseg.datasets import ADE20KDataset, BaseSegDataset
    write_demo(plan('ade20k'), tmp_path)
    pipeline = [dict(type='LoadImageFromFile', _scope_='mmseg'), dict(type='LoadAnnotations', _scope_='mmseg')]
    folders = dict(img_path='images/training', seg_map_path='annotations/training')
    stock = ADE20KDataset(data_root=str(tmp_path), data_prefix=folders, pipeline=pipeline)
    named = BaseSegDataset(data_root=str(tmp_path), data_prefix=folders, pipeline=pipeline,
                           reduce_zero_label=True, metainfo=dict(classes=CLASSES))
    for dataset in (stock, named):
        assert len(dataset) == 3
        for index, labels in enumerate(labels_as_mmseg_reads_them(dataset)):
            scene = draw(1, 'train', index, SIZE)
            np.testing.assert_array_equal(labels, scene.labels)
            bgr = dataset[index]['img'].astype(int)
            assert np.abs(bgr[..., ::-1] - scene.image).mean() < 4  # JPEG
    assert len(list((tmp_path / 'images' / 'validation').glob('*.jpg'))) == 2


def test_mmseg_reads_the_cityscapes_layout(tmp_path):
    from mmseg.datasets import CityscapesDataset
    write_demo(plan('cityscapes'), tmp_path)
    dataset = CityscapesDataset(
        data_root=str(tmp_path), data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        pipeline=[dict(type='LoadImageFromFile', _scope_='mmseg'), dict(type='LoadAnnotations', _scope_='mmseg')])
    assert len(dataset) == 2
    for index, labels in enumerate(labels_as_mmseg_reads_them(dataset)):
        scene = draw(1, 'val', index, SIZE)
        np.testing.assert_array_equal(labels, scene.labels)
        np.testing.assert_array_equal(dataset[index]['img'][..., ::-1], scene.image)


def test_mmdet_reads_the_coco_layout(tmp_path):
    from mmdet.datasets import CocoDataset
    write_demo(plan('coco', train=6), tmp_path)
    dataset = CocoDataset(
        data_root=str(tmp_path), ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'), metainfo=dict(classes=CLASSES[1:]),
        pipeline=[dict(type='LoadImageFromFile', _scope_='mmdet'),
                  dict(type='LoadAnnotations', _scope_='mmdet', with_bbox=True, with_mask=True)])
    assert len(dataset) == 6
    for index in range(6):
        sample, scene = dataset[index], draw(1, 'train', index, SIZE)
        assert sample['gt_bboxes_labels'].tolist() == [thing.label - 1 for thing in scene.objects]
        assert not sample['gt_ignore_flags'].any()
        boxes = sample['gt_bboxes'].tensor.numpy()
        for mask, box, thing in zip(sample['gt_masks'].masks, boxes, scene.objects):
            np.testing.assert_array_equal(mask.astype(bool), thing.mask)
            rows, columns = np.nonzero(thing.mask)
            assert box.tolist() == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]


def test_coco_boxes_areas_and_run_lengths_are_those_of_pycocotools(tmp_path):
    from pycocotools import mask as reference
    write_demo(plan('coco', train=20), tmp_path)
    content = json.loads((tmp_path / 'annotations' / 'instances_train2017.json').read_text())
    assert len(content['annotations']) >= 40
    for annotation in content['annotations']:
        encoded = reference.frPyObjects(annotation['segmentation'], *annotation['segmentation']['size'])
        assert annotation['area'] == reference.area(encoded)
        assert annotation['bbox'] == reference.toBbox(encoded).tolist()
        assert annotation['iscrowd'] == 0
    for mask in (np.ones((3, 4), bool), np.zeros((3, 4), bool), np.eye(4, dtype=bool)):
        encoded = reference.frPyObjects(dict(size=list(mask.shape), counts=run_lengths(mask)), *mask.shape)
        np.testing.assert_array_equal(reference.decode(encoded).astype(bool), mask)


def test_command_line(repo, tmp_path):
    def run(*options):
        command = [sys.executable, str(repo / 'tools' / 'make_demo_data.py'), '--layout', 'ade20k',
                   '--train', '1', '--val', '1', *options]
        return subprocess.run(command, capture_output=True, text=True)

    first = run('--out', str(tmp_path / 'demo'), '--size', '40', '50')
    assert first.returncode == 0 and 'Wrote 1 train and 1 val scenes of 40x50' in first.stdout
    assert Image.open(tmp_path / 'demo' / 'images' / 'validation' / 'ADE_val_00000001.jpg').size == (50, 40)
    again = run('--out', str(tmp_path / 'demo'), '--size', '40', '50')
    assert again.returncode == 0 and 'Already there' in again.stdout
    refused = run('--out', str(tmp_path))
    assert refused.returncode == 1 and 'is not empty' in refused.stderr and 'Traceback' not in refused.stderr
