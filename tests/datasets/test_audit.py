import json

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmlk.datasets.audit import _loaded_as, audit
from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.datasets.scenes import CLASSES
from tests.utils import run_script

SIZE = (40, 48)


def seg_config(root, classes=CLASSES, **changes):
    dataset = dict(type='BaseSegDataset', data_root=str(root), reduce_zero_label=True,
                   metainfo=dict(classes=classes), **changes,
                   data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))
    return Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset)))


def coco_config(root, classes=CLASSES[1:]):
    dataset = dict(type='CocoDataset', data_root=str(root), ann_file='annotations/instances_train2017.json',
                   data_prefix=dict(img='train2017/'), metainfo=dict(classes=classes),
                   pipeline=[dict(type='LoadImageFromFile'),
                             dict(type='LoadAnnotations', with_bbox=True, with_mask=True), dict(type='PackDetInputs')])
    return Config(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))


def problems_of(cfg):
    (report,) = audit(cfg)
    return report.problems


@pytest.fixture
def ade20k(tmp_path):
    write_demo(DemoPlan('ade20k', seed=0, train=8, val=1, size=SIZE), tmp_path)
    return tmp_path


@pytest.fixture
def coco(tmp_path):
    write_demo(DemoPlan('coco', seed=0, train=6, val=1, size=SIZE), tmp_path)
    return tmp_path


def edit(root, change):
    path = root / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_sound_segmentation_data_counts_right(ade20k):
    cfg = seg_config(ade20k)
    cfg.val_dataloader = dict(dataset=dict(cfg.train_dataloader.dataset, test_mode=True))
    seen = []

    def track(items, total, what):
        for item in items:
            seen.append((total, what))
            yield item

    (report,) = audit(cfg, track=track)  # the same files twice are checked once
    assert report.where == ['train_dataloader.dataset', 'val_dataloader.dataset']
    assert report.counts == dict(classes=6, images=8, annotations=8)
    assert not report.problems
    assert seen == [(8, 'train_dataloader.dataset')] * 8


def test_each_fault_of_segmentation_data_is_found(ade20k):
    images, labels = ade20k / 'images' / 'training', ade20k / 'annotations' / 'training'

    def name(number, suffix):
        return f'ADE_train_{number:08d}.{suffix}'

    whole = (images / name(1, 'jpg')).read_bytes()
    (images / name(1, 'jpg')).write_bytes(whole[:len(whole) // 2])
    (images / name(2, 'jpg')).write_bytes(b'')
    (labels / name(3, 'png')).write_bytes(b'\x89PNG\r\n\x1a\n and then nonsense')
    Image.new('RGB', SIZE[::-1]).save(labels / name(4, 'png'))
    Image.new('L', SIZE, 1).save(labels / name(5, 'png'))
    wrong = np.full(SIZE, 6, np.uint8)
    wrong[0, :3] = 0, 255, 7  # unlabelled, ignored, and one more than there are classes
    Image.fromarray(wrong).save(labels / name(6, 'png'))
    (labels / name(7, 'png')).unlink()
    Image.new('L', SIZE[::-1], 1).save(labels / 'extra.png')

    (report,) = audit(seg_config(ade20k))
    assert report.counts == dict(classes=6, images=8, annotations=7)
    expected = {
        'unreadable image': [name(1, 'jpg'), name(2, 'jpg')],
        'unreadable annotation': [name(3, 'png')],
        'colours for labels': [name(4, 'png')],
        'sizes differ': [name(5, 'png')],
        'label out of range': [name(6, 'png')],
        'image without annotation': [name(7, 'jpg')],
        'annotation without image': ['extra.png'],
    }
    assert {kind: len(lines) for kind, lines in report.problems.items()} == {
        kind: len(names) for kind, names in expected.items()}
    for kind, names in expected.items():
        assert all(part in line for part, line in zip(names, report.problems[kind]))
    assert report.problems['label out of range'][0].endswith('holds 7')


def test_labels_wider_than_a_byte_and_palettes(ade20k):
    labels = ade20k / 'annotations' / 'training'
    # mmseg would read these as 1
    Image.fromarray(np.full(SIZE, 257, np.uint16)).save(labels / 'ADE_train_00000001.png')
    indexed = Image.fromarray(np.full(SIZE, 6, np.uint8), mode='P')
    indexed.putpalette([0, 0, 0] * 256)
    indexed.save(labels / 'ADE_train_00000002.png')
    problems = problems_of(seg_config(ade20k))
    assert list(problems) == ['label out of range']
    (line,) = problems['label out of range']
    assert line.endswith('holds 257')


def test_a_list_of_names_is_followed(ade20k):
    (ade20k / 'list.txt').write_text('ADE_train_00000002\nADE_train_00000003\nADE_train_00000099\n')
    (report,) = audit(seg_config(ade20k, ann_file='list.txt'))
    assert report.counts['images'] == 3
    assert set(report.problems) == {'unreadable image', 'image without annotation'}


@pytest.mark.parametrize('reduce_zero_label', [False, True])
@pytest.mark.parametrize('classes', [None, ['wall', 'sky', 'door'], ['floor', 'wall', 'sky', 'ceiling']])
def test_labels_become_what_mmseg_makes_of_them(reduce_zero_label, classes, tmp_path):
    """Against mmseg's own loader, on a picture that holds every value."""
    from mmseg.datasets import BaseSegDataset
    from mmseg.datasets.transforms import LoadAnnotations

    class Rooms(BaseSegDataset):
        METAINFO = dict(classes=('wall', 'floor', 'door', 'ceiling', 'sky'))

    dataset = Rooms(metainfo=classes and dict(classes=classes), reduce_zero_label=reduce_zero_label,
                    lazy_init=True)
    Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)).save(tmp_path / 'all.png')
    loaded = LoadAnnotations()(dict(
        seg_map_path=str(tmp_path / 'all.png'), reduce_zero_label=reduce_zero_label,
        label_map=dataset.label_map, seg_fields=[]))['gt_seg_map'].ravel()
    np.testing.assert_array_equal(_loaded_as(dataset), loaded)


def save_labels(root, values, number=None):
    """Write one array over all label maps of the training set, or over one."""
    for path in sorted((root / 'annotations' / 'training').iterdir())[:number]:
        Image.fromarray(np.resize(values, SIZE)).save(path)


def test_shares_of_pixels(ade20k):
    save_labels(ade20k, np.array([0, 1, 1, 2], np.uint8))  # reduce_zero_label
    (report,) = audit(seg_config(ade20k))
    assert report.shares == {'ground': 0.5, 'disc': 0.25, 'ring': 0, 'square': 0, 'bar': 0, 'cross': 0,
                             'ignored (255)': 0.25}
    assert report.notes == ['4 of 6 classes never occur: ring, square, bar, cross'] and not report.problems


def test_masks_of_0_and_255_are_told(ade20k):
    """255 is ignored: a training would see one class, and end with an IoU of 0 and an accuracy of nan."""
    save_labels(ade20k, np.array([0, 255, 255], np.uint8))
    cfg = seg_config(ade20k, classes=('background', 'vessel'))
    cfg.train_dataloader.dataset.reduce_zero_label = False
    (line,) = problems_of(cfg)['masks of 0 and 255']
    assert 'vessel never occurs' in line and 'labels from 0 to 1' in line
    cfg.train_dataloader.dataset.reduce_zero_label = True
    (line,) = problems_of(cfg)['nothing but the ignored label']
    assert 'hold 0, 255, which after loading is 255 throughout' in line
    save_labels(ade20k, np.array([0, 1, 255], np.uint8), number=1)
    cfg.train_dataloader.dataset.reduce_zero_label = False
    (report,) = audit(cfg)
    assert not report.problems and not report.notes
    save_labels(ade20k, np.array([255], np.uint8), number=3)
    assert audit(cfg)[0].counts['annotations with the ignored label only'] == 3


def test_labels_are_compared_with_the_heads(ade20k):
    cfg = seg_config(ade20k)
    cfg.model = dict(decode_head=dict(num_classes=6), auxiliary_head=[dict(num_classes=6), dict(num_classes=5)])
    save_labels(ade20k, np.array([1, 6], np.uint8), number=1)
    save_labels(ade20k, np.array([1, 5], np.uint8))
    save_labels(ade20k, np.array([1, 6], np.uint8), number=1)
    (line,) = problems_of(cfg)['label that a head lacks']
    assert line.endswith('ADE_train_00000001.png holds 6; model.auxiliary_head.1 has 5 classes')
    save_labels(ade20k, np.array([1, 7], np.uint8), number=1)  # is none of the dataset's either: told once
    assert list(problems_of(cfg)) == ['label out of range']


def test_16_bits_are_read_as_in_training(ade20k):
    """Ids that fit eight bits are the same in sixteen; check and training agree on those that do not."""
    from mmlk.engine.loading import DataError, LoadImageFromFile
    save_labels(ade20k, np.array([1, 6], np.uint16))
    assert not problems_of(seg_config(ade20k))
    path = ade20k / 'annotations' / 'training' / 'ADE_train_00000003.png'
    image = ade20k / 'images' / 'training' / 'ADE_train_00000003.jpg'
    sample = dict(img_path=str(image), seg_map_path=str(path), seg_fields=[])
    assert LoadImageFromFile().transform(dict(sample))['img_shape'] == SIZE
    Image.fromarray(np.full(SIZE, 257, np.uint16)).save(path)
    (line,) = problems_of(seg_config(ade20k))['label out of range']
    assert line == f'{path} holds 257'
    with pytest.raises(DataError, match='ADE_train_00000003.png holds label 257; mmseg reads eight bits'):
        LoadImageFromFile().transform(dict(sample))


def test_files_are_read_by_the_pipeline(ade20k):
    """A TIFF of five bands, which Pillow cannot read and a training with tifffile can."""
    tifffile = pytest.importorskip('tifffile')
    pipeline = [dict(type='LoadImageFromFile', color_type='unchanged', imdecode_backend='tifffile'),
                dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
    for path in sorted((ade20k / 'images' / 'training').iterdir()):
        tifffile.imwrite(path.with_suffix('.tif'), np.zeros((*SIZE, 5), np.uint16), photometric='minisblack',
                         planarconfig='contig')
    cfg = seg_config(ade20k, img_suffix='.tif', pipeline=pipeline)
    (report,) = audit(cfg)
    assert not report.problems and report.counts['images'] == 8
    whole = path.with_suffix('.tif').read_bytes()
    path.with_suffix('.tif').write_bytes(whole[:-400])
    assert list(problems_of(cfg)) == ['unreadable image']


def test_numbers_of_32_bits_are_no_image(ade20k):
    """Of no known range. OpenCV refuses them, Pillow makes eight bits of them."""
    pipeline = [dict(type='LoadImageFromFile', imdecode_backend='pillow'), dict(type='LoadAnnotations'),
                dict(type='PackSegInputs')]
    for path in sorted((ade20k / 'images' / 'training').iterdir()):
        Image.fromarray(np.full(SIZE, 0.5, np.float32)).save(path.with_suffix('.tif'))
    lines = problems_of(seg_config(ade20k, img_suffix='.tif', pipeline=pipeline))['unreadable image']
    assert len(lines) == 8 and all('numbers of 32 bits' in line for line in lines)


def test_a_loader_of_ones_own_is_asked(ade20k):
    from mmseg.datasets.transforms import LoadAnnotations
    from mmseg.registry import TRANSFORMS

    @TRANSFORMS.register_module(force=True)
    class LoadShiftedAnnotations(LoadAnnotations):

        def transform(self, results):
            results['gt_seg_map'] = np.full(SIZE, 5)
            return results

    save_labels(ade20k, np.array([99], np.uint8))
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadShiftedAnnotations'), dict(type='PackSegInputs')]
    (report,) = audit(seg_config(ade20k, pipeline=steps))
    assert report.shares['cross'] == 1 and 'label out of range' not in report.problems


@pytest.mark.parametrize('steps, told', [
    (['LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs'], None),
    (['LoadImageFromFile', 'LoadAnnotations'], 'the last step of the pipeline must be PackSegInputs'),
    (['PhotoMetricDistortion', 'LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs'],
     'LoadImageFromFile comes first'),
])
def test_a_sample_goes_through_the_whole_pipeline(ade20k, steps, told):
    problems = problems_of(seg_config(ade20k, pipeline=[dict(type=name) for name in steps]))
    assert (not problems) if told is None else told in problems['pipeline fails'][0]


def test_a_file_that_cannot_be_read_is_told_once(ade20k, monkeypatch):
    """Though it is the one whose sample goes through the pipeline, which names it as in the tools."""
    from mmcv.transforms import TRANSFORMS

    from mmlk.engine.loading import LoadImageFromFile
    monkeypatch.setitem(TRANSFORMS.module_dict, 'LoadImageFromFile', LoadImageFromFile)
    (ade20k / 'images' / 'training' / 'ADE_train_00000001.jpg').write_bytes(b'')
    names = ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs')
    assert list(problems_of(seg_config(ade20k, pipeline=[dict(type=name) for name in names]))) == ['unreadable image']


def test_a_test_set_without_labels_is_told(ade20k):
    cfg = seg_config(ade20k, pipeline=[dict(type=name) for name in ('LoadImageFromFile', 'PackSegInputs')])
    cfg.train_dataloader.dataset.data_prefix = dict(img_path='images/training')
    cfg = Config(dict(default_scope='mmseg', test_dataloader=cfg.train_dataloader,
                      test_evaluator=dict(type='IoUMetric')))
    assert 'set format_only=True' in problems_of(cfg)['pipeline fails'][0]
    cfg.test_evaluator.format_only = True
    assert not problems_of(cfg)


def test_sound_coco_data_counts_right(coco):
    (report,) = audit(coco_config(coco))
    annotations = json.loads((coco / 'annotations' / 'instances_train2017.json').read_text())['annotations']
    assert not report.problems
    assert report.counts == {
        'classes': 5, 'images': 6, 'annotations': len(annotations), 'images without annotation': 0,
        'annotations of other classes': 0, 'annotations mmdet drops (empty box or area)': 0}


def test_each_fault_of_coco_data_is_found(coco):
    def change(content):
        annotations = content['annotations']
        assert len(annotations) >= 12
        annotations[0]['category_id'] = 77
        annotations[1]['image_id'] = 9999
        annotations[2]['bbox'] = [30, 10, 25, 10]
        annotations[3]['bbox'] = [1, 2, 'x', 4]
        annotations[4]['id'] = annotations[5]['id']
        annotations[6]['segmentation'] = []
        annotations[7]['segmentation']['counts'][0] += 1
        annotations[8]['segmentation'] = [[1, 1, 5, 5]]
        annotations[9].pop('bbox')
        annotations[10].update(area=0, segmentation=[])  # dropped by mmdet in silence: counted, no problem
        annotations[11].update(iscrowd=1, segmentation=[])
        annotations.append('nonsense')
        content['images'][2]['width'] += 1
        for annotation in annotations[:-1]:  # keeps the masks of that image sound
            if annotation['image_id'] == 3 and isinstance(annotation['segmentation'], dict):
                annotation['segmentation'] = [[1, 1, 5, 1, 5, 5]]

    edit(coco, change)
    (coco / 'train2017' / '000000000001.jpg').unlink()
    (coco / 'train2017' / '000000000002.jpg').write_bytes(b'\xff\xd8\xff nonsense')
    (report,) = audit(coco_config(coco))
    assert {kind: len(lines) for kind, lines in report.problems.items()} == {
        'category out of range': 1, 'image not listed': 1, 'box outside the image': 1, 'malformed box': 1,
        'id used twice': 1, 'no usable mask': 3, 'malformed entry': 2, 'sizes differ': 1,
        'image file missing': 1, 'unreadable image': 1}
    assert report.counts['annotations mmdet drops (empty box or area)'] == 1


def test_classes_are_compared_with_the_file(coco):
    assert list(problems_of(coco_config(coco, ('ring', 'disc')))) == ['classes in another order']
    unknown = problems_of(coco_config(coco, ('disc', 'ring', 'hexagon')))
    assert list(unknown) == ['class unknown to the file']
    assert 'hexagon' in unknown['class unknown to the file'][0]
    (subset,) = audit(coco_config(coco, ('disc', 'bar')))
    assert not subset.problems and subset.counts['annotations of other classes'] > 0


def test_mmdet_does_number_classes_by_the_file(coco):
    """The reason for the problem 'classes in another order'."""
    from mmdet.datasets import CocoDataset
    dataset = CocoDataset(data_root=str(coco), ann_file='annotations/instances_train2017.json',
                          data_prefix=dict(img='train2017/'), metainfo=dict(classes=('ring', 'disc')))
    assert dataset.cat2label == {1: 0, 2: 1}  # disc, then ring


@pytest.mark.parametrize('content', [
    b'', b'{"images": [', b'[1, 2]', b'{"images": 3}', b'\xff\xfe\x00', b'[' * 99999])
def test_a_broken_annotation_file_is_told_not_raised(content, coco):
    (coco / 'annotations' / 'instances_train2017.json').write_bytes(content)
    assert any(problems_of(coco_config(coco)).values())


def test_a_dataset_that_cannot_be_built_is_told(ade20k):
    cfg = seg_config(ade20k)
    cfg.train_dataloader.dataset.type = 'NoSuchDataset'
    assert 'NoSuchDataset' in problems_of(cfg)['dataset cannot be loaded'][0]


def test_a_dataset_of_another_kind_is_left_alone(tmp_path):
    cfg = Config(dict(default_scope='mmdet', test_dataloader=dict(dataset=dict(
        type='CocoPanopticDataset', data_root=str(tmp_path), ann_file='a.json',
        data_prefix=dict(img='', seg='')))))
    (report,) = audit(cfg)
    assert not report.problems and 'CocoPanopticDataset' in report.unchecked


def test_a_dataset_that_is_none_of_mmengines_is_left_alone():
    from mmengine.registry import DATASETS

    @DATASETS.register_module(force=True)
    class Numbers(list):

        def __init__(self, pipeline):
            super().__init__([1, 2])
            self.pipeline = pipeline

    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='Numbers', pipeline=[dict(type='PackSegInputs')]))))
    (report,) = audit(cfg)
    assert not report.problems and 'Numbers' in report.unchecked


def test_real_segmentation_data(shared_data):
    """100 photos of each split with 133 classes, and three of ADE20K with its 150."""
    folders = dict(img_path='images/validation', seg_map_path='annotations/validation')
    names = [f'class {number}' for number in range(133)]
    cfg = seg_config(shared_data / 'coco_panoptic200', names)
    cfg.test_dataloader = dict(dataset=dict(
        type='ADE20KDataset', data_root=str(shared_data / 'ade20k_sample'), data_prefix=folders))
    coco, ade = audit(cfg)
    assert coco.counts == dict(classes=133, images=100, annotations=100) and not coco.problems
    assert ade.counts == dict(classes=150, images=3, annotations=3) and not ade.problems
    # With one class less than the labels have, the last one is out of range.
    cfg = seg_config(shared_data / 'coco_panoptic200', names[:-1])
    lines = problems_of(cfg)['label out of range']
    assert lines and all(line.endswith('holds 133') for line in lines)


def test_real_coco_data(shared_data):
    cfg = coco_config(shared_data / 'coco_tiny160')
    del cfg.train_dataloader.dataset['metainfo']
    (report,) = audit(cfg)
    assert not report.problems
    assert (report.counts['classes'], report.counts['images'], report.counts['annotations']) == (80, 80, 705)


def test_command_line(repo, ade20k):
    path = ade20k / 'config.py'
    seg_config(ade20k).dump(path)

    def run(*options):
        return run_script(repo / 'tools' / 'check_data.py', path, *options, cwd=ade20k)

    code, said = run()
    assert code == 0 and 'No problem found' in said
    assert 'Shares of pixels: ground ' in said and ', ignored (255) 0.00 %' in said
    code, said = run('--cfg-options', 'train_dataloader.sampler.type=InfiniteSampler')
    assert code == 1 and 'PROBLEM: train_dataloader.sampler is InfiniteSampler' in said
    assert 'Problems found: 1.' in said
    save_labels(ade20k, np.ones(1, np.uint8))
    code, said = run()
    assert code == 0 and 'Note: 5 of 6 classes never occur: disc, ' in said
    Image.new('L', SIZE[::-1], 99).save(ade20k / 'annotations' / 'training' / 'ADE_train_00000001.png')
    code, said = run()
    assert code == 1 and 'ADE_train_00000001.png holds 99' in said
    code, said = run('--cfg-options', 'train_dataloader.dataset.data_root=not/here')
    assert code == 1 and 'no folder not/here' in said and 'Traceback' not in said
