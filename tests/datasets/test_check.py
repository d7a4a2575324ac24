import re
import shutil
from importlib.util import find_spec

import pytest
from mmengine.config import Config
from PIL import Image

from mmlk.datasets.check import LAYOUTS, datasets, layout_of, missing
from mmlk.datasets.layouts import DemoPlan, write_demo

SEG_FOLDERS = {
    'ade20k': {'train': ('images/training', 'annotations/training'),
               'val': ('images/validation', 'annotations/validation')},
    'cityscapes': {'train': ('leftImg8bit/train', 'gtFine/train'), 'val': ('leftImg8bit/val', 'gtFine/val')},
    'voc': {'train': ('JPEGImages', 'SegmentationClass'), 'val': ('JPEGImages', 'SegmentationClass')},
}

each_layout = pytest.mark.parametrize('layout', [
    pytest.param(layout, marks=pytest.mark.skipif(layout == 'imagenet' and find_spec('mmpretrain') is None, reason=(
        'mmpretrain is not installed: bash tools/install.sh --with pretrain'))) for layout in LAYOUTS])


def config(layout, root):
    """A config of the stock dataset class of a layout, as mmengine would hand it over."""
    def dataset(split):
        if layout == 'coco':
            ann_file = f'annotations/instances_{split}2017.json'
            return dict(type='CocoDataset', data_root=root, ann_file=ann_file,
                        data_prefix=dict(img=f'{split}2017/'))
        if layout == 'imagenet':
            return dict(type='ImageNet', data_root=root, split=split)
        images, labels = SEG_FOLDERS[layout][split]
        kind = {'ade20k': 'ADE20KDataset', 'cityscapes': 'mmseg.CityscapesDataset', 'voc': 'PascalVOCDataset'}[layout]
        names = dict(ann_file=f'ImageSets/Segmentation/{split}.txt') if layout == 'voc' else {}
        return dict(type=kind, data_root=root, data_prefix=dict(img_path=images, seg_map_path=labels), **names)
    evaluator = dict(type='IoUMetric')
    if layout == 'coco':
        evaluator = dict(type='CocoMetric', ann_file=f'{root}/annotations/instances_val2017.json')
    val = dict(dataset=dataset('val'))
    scope = {'coco': 'mmdet', 'imagenet': 'mmpretrain'}.get(layout, 'mmseg')
    return Config(dict(default_scope=scope,
                       train_dataloader=dict(dataset=dataset('train')), val_dataloader=val, test_dataloader=val,
                       val_evaluator=evaluator, test_evaluator=evaluator))


@pytest.fixture(scope='module')
def written(tmp_path_factory):
    """One small dataset per layout, not to be changed."""
    folder = tmp_path_factory.mktemp('written')
    for layout in LAYOUTS:
        write_demo(DemoPlan(layout, seed=0, train=2, val=1, size=(32, 32)), folder / layout)
    return folder


@each_layout
def test_nothing_is_missing_from_a_whole_dataset(layout, written):
    assert missing(config(layout, str(written / layout))) == []


@each_layout
def test_one_message_for_a_root_that_is_not_there(layout, tmp_path):
    root = str(tmp_path / 'no' / 'where')
    problems = missing(config(layout, root))
    assert len(problems) == 1
    message = str(problems[0])
    assert message.count(f'no folder {root} ') == 1
    for part in ('train_dataloader, val_dataloader, test_dataloader', LAYOUTS[layout].title,
                 LAYOUTS[layout].source, *LAYOUTS[layout].tree.splitlines(),
                 'train_dataloader.dataset.data_root=...'):
        assert part in message
    assert ('val_evaluator.ann_file=...' in message) == (layout == 'coco')


def test_demo_data_is_made_not_fetched():
    message = str(missing(config('cityscapes', 'no/data/demo/cityscapes'))[0])
    assert 'python tools/make_demo_data.py --layout cityscapes --out no/data/demo/cityscapes' in message
    assert 'cityscapes-dataset.com' not in message


@pytest.mark.parametrize('layout, gone, told', [
    ('ade20k', 'annotations/training', 'no folder {root}/annotations/training   (train_dataloader)'),
    ('ade20k', 'images/validation/*.jpg',
     'no file *.jpg in folder {root}/images/validation   (val_dataloader, test_dataloader)'),
    # Cityscapes as downloaded: gtFine is there, the train ids are still to be made.
    ('cityscapes', 'gtFine/train/*/*_labelTrainIds.png',
     'no file *_gtFine_labelTrainIds.png in folder {root}/gtFine/train   (train_dataloader)'),
    ('voc', 'ImageSets/Segmentation/val.txt',
     'no file {root}/ImageSets/Segmentation/val.txt   (val_dataloader, test_dataloader)'),
    ('coco', 'annotations/instances_train2017.json',
     'no file {root}/annotations/instances_train2017.json   (train_dataloader)'),
    ('coco', 'val2017', 'no folder {root}/val2017/   (val_dataloader, test_dataloader)'),
])
def test_the_missing_part_is_named(layout, gone, told, written, tmp_path):
    root = tmp_path / layout
    shutil.copytree(written / layout, root)
    for path in root.glob(gone):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    problems = missing(config(layout, str(root)))
    assert len(problems) == 1
    assert told.format(root=root) in str(problems[0])


def test_no_image_is_opened(written, tmp_path):
    shutil.copytree(written / 'ade20k', tmp_path / 'ade20k')
    for path in (tmp_path / 'ade20k').rglob('*.*g'):
        path.write_bytes(b'')
    assert missing(config('ade20k', str(tmp_path / 'ade20k'))) == []


def test_only_the_splits_asked_for(written, tmp_path):
    cfg = config('coco', str(written / 'coco'))
    cfg.train_dataloader.dataset.data_root = str(tmp_path / 'nowhere')
    cfg.test_evaluator = [dict(type='CocoMetric', ann_file='not/there.json')]
    assert missing(cfg, ['val']) == []
    assert [problem.where for problem in missing(cfg, ['train'])] == ['train_dataloader.dataset.data_root']
    (problem,) = missing(cfg, ['test'])
    assert problem.where == 'test_evaluator.0.ann_file' and 'no file not/there.json' in str(problem)
    assert missing(Config(dict(val_dataloader=None, model=dict()))) == []


def test_datasets_are_found_in_their_wrappers():
    plain = [dict(type='CocoDataset', data_root=name) for name in 'abc']
    dataset = dict(type='MultiImageMixDataset', dataset=dict(
        type='RepeatDataset', times=3, dataset=dict(type='ConcatDataset', datasets=[
            plain[0], dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=plain[1]), plain[2]])))
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    inside = 'train_dataloader.dataset.dataset.dataset.datasets'
    places = [f'{inside}.0', f'{inside}.1.dataset', f'{inside}.2']
    assert list(datasets(cfg, 'train')) == list(zip(places, plain))
    # The places named can be given to --cfg-options as they are.
    cfg.merge_from_dict({problem.where: 'elsewhere' for problem in missing(cfg)})
    assert [found['data_root'] for _, found in datasets(cfg, 'train')] == ['elsewhere'] * 3


def test_paths_without_a_root_and_remote_ones(tmp_path):
    folders = dict(img_path=str(tmp_path / 'images'), seg_map_path='s3://bucket/labels')
    cfg = dict(train_dataloader=dict(dataset=dict(type='BaseSegDataset', data_prefix=folders)))
    (problem,) = missing(cfg)
    assert problem.where == 'train_dataloader.dataset.data_prefix.img_path'
    cfg['train_dataloader']['dataset']['backend_args'] = dict(backend='petrel')
    assert missing(cfg) == []


def test_layouts_are_recognised():
    """By the class; folders of a common name say what they hold in the demo data only."""
    for kind, layout in (('mmseg.ADE20KDataset', 'ade20k'), ('CityscapesDataset', 'cityscapes'),
                         ('PascalVOCDataset', 'voc'), ('mmdet.CocoDataset', 'coco'), ('DRIVEDataset', None),
                         ('mmdet.CocoPanopticDataset', None)):
        assert layout_of(dict(type=kind)) == layout
    for images, layout in (('leftImg8bit/train', 'cityscapes'), ('images/training/', 'ade20k'), ('JPEGImages', 'voc')):
        dataset = dict(type='mmseg.BaseSegDataset', data_prefix=dict(img_path=images))
        assert layout_of(dict(dataset, data_root='data/demo/x')) == layout
        assert layout_of(dict(dataset, data_root='data/camvid')) is None


@pytest.mark.parametrize('layout, own', [('ade20k', dict(type='BaseSegDataset')), ('coco', {})])
def test_no_download_is_named_for_other_classes(layout, own, tmp_path):
    """CamVid and many others lie in the folders of ADE20K, and any set of boxes in COCO's."""
    cfg = config(layout, str(tmp_path / 'camvid'))
    cfg.train_dataloader.dataset.update(own, metainfo=dict(classes=('sky', 'road')))
    (problem,) = missing(cfg, ['train'])
    assert 'no folder' in str(problem)
    assert 'Get it' not in str(problem) and LAYOUTS[layout].title not in str(problem)


def drive(root, suffix='_manual1.png'):
    """DRIVE, in folders that are called as no layout's are, and the config of its stock class."""
    for folder, name in (('images', '21.png'), ('annotations', f'21{suffix}')):
        (root / folder).mkdir()
        Image.new('L', (8, 8)).save(root / folder / name)
    dataset = dict(type='DRIVEDataset', data_root=str(root),
                   data_prefix=dict(img_path='images', seg_map_path='annotations'))
    return Config(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset)))


def test_the_class_says_what_its_files_are_called(tmp_path):
    assert missing(drive(tmp_path)) == []


def test_a_label_of_another_suffix_is_missed(tmp_path):
    (problem,) = missing(drive(tmp_path, suffix='.png'))
    assert f'no file *_manual1.png in folder {tmp_path}/annotations' in str(problem)


@pytest.mark.parametrize('change, told', [
    (dict(type='ADE20KDataset', metainfo=dict(classes=('sky', 'unicorn'))),
     r"knows only its own classes.*take type='BaseSegDataset'.*delete metainfo"),
    (dict(type='BaseSegDataset', metainfo=dict(classes=('sky', 'road'), palette=[[0, 0, 0]] * 150)),
     r'classes has 2 names, but metainfo.palette has 150 colours.*metainfo=dict\(_delete_=True, classes=...\)'),
    (dict(type='NoSuchDataset'), 'NoSuchDataset is not in the'),
])
def test_a_dataset_that_cannot_be_built_is_one_problem(change, told, written):
    cfg = config('ade20k', str(written / 'ade20k'))
    for split in ('train', 'val', 'test'):
        cfg[f'{split}_dataloader'].dataset.update(change)
    (problem,) = missing(cfg)
    assert problem.where == 'train_dataloader.dataset, val_dataloader.dataset, test_dataloader.dataset'
    assert re.search(told, str(problem)), problem


def test_the_palette_of_a_class_that_stays_is_told(written):
    from mmseg.datasets import BaseSegDataset

    class Painted(BaseSegDataset):
        METAINFO = dict(palette=[[0, 0, 0]] * 4)

    cfg = config('ade20k', str(written / 'ade20k'))
    cfg.train_dataloader.dataset.update(type=Painted, metainfo=dict(classes=('sky', 'road')))
    (problem,) = missing(cfg, ['train'])
    assert 'classes has 2 names, but the palette of Painted stays.' in str(problem)


def test_a_class_of_another_kind_is_left_to_the_run(written):
    """No BaseDataset, or one that cannot be built without its samples."""
    from mmengine.dataset import BaseDataset

    class Closed(BaseDataset):

        def __init__(self, data_root, data_prefix, pipeline):
            raise AssertionError('it was built')

    for kind in (list, Closed):
        cfg = config('ade20k', str(written / 'ade20k'))
        cfg.train_dataloader.dataset.type = kind
        assert missing(cfg, ['train']) == []
