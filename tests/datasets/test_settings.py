"""Settings that contradict each other are told before anything is built; those of the configs here do not."""
import copy
import re
from functools import partial

import pytest
from mmengine.config import Config

from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.datasets.scenes import CLASSES
from mmlk.datasets.settings import conflicts, heads

SPLITS = {'train': 'training', 'val': 'validation', 'test': 'validation'}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    for layout in ('ade20k', 'coco'):
        write_demo(DemoPlan(layout, seed=0, train=2, val=1, size=(32, 32)), folder / layout)
    return folder


def segmentor(data):
    cfg = Config(dict(
        default_scope='mmseg', val_evaluator=dict(type='IoUMetric'), test_evaluator=dict(type='IoUMetric'),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=2),
        model=dict(type='EncoderDecoder', backbone=dict(type='ResNet', num_classes=9),
                   decode_head=dict(type='UPerHead', num_classes=6),
                   auxiliary_head=[dict(type='FCNHead', num_classes=6)])))
    for split, folder in SPLITS.items():
        cfg[f'{split}_dataloader'] = dict(sampler=dict(type='DefaultSampler'), dataset=dict(
            type='BaseSegDataset', data_root=str(data / 'ade20k'), reduce_zero_label=True,
            metainfo=dict(classes=CLASSES), data_prefix=dict(img_path=f'images/{folder}',
                                                             seg_map_path=f'annotations/{folder}'),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
    return cfg


def detector(data):
    evaluator = dict(type='CocoMetric', ann_file=str(data / 'coco' / 'annotations/instances_val2017.json'))
    cfg = Config(dict(
        default_scope='mmdet', val_evaluator=evaluator, test_evaluator=evaluator, train_cfg=dict(max_epochs=1),
        model=dict(type='CascadeRCNN', rpn_head=dict(type='RPNHead', num_classes=1), roi_head=dict(
            bbox_head=[dict(type='Shared2FCBBoxHead', num_classes=5),
                       dict(type='mmdet.Shared2FCBBoxHead', num_classes=5)],
            mask_head=dict(type='FCNMaskHead', num_classes=5)))))
    for split in SPLITS:
        name = 'train' if split == 'train' else 'val'
        cfg[f'{split}_dataloader'] = dict(sampler=dict(type='DefaultSampler'), dataset=dict(
            type='CocoDataset', data_root=str(data / 'coco'), ann_file=f'annotations/instances_{name}2017.json',
            data_prefix=dict(img=f'{name}2017/'), metainfo=dict(classes=CLASSES[1:]),
            pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True)]))
    return cfg


def queries(data, stuff=0):
    """Mask2Former of mmdet."""
    cfg = detector(data)
    cfg.model = dict(
        type='Mask2Former', panoptic_fusion_head=dict(type='MaskFormerFusionHead', num_things_classes=5),
        panoptic_head=dict(type='Mask2FormerHead', num_queries=9, num_things_classes=5, num_stuff_classes=stuff,
                           loss_cls=dict(class_weight=[1.0] * (5 + stuff) + [0.1])))
    return cfg


DATASETS = [f'{split}_dataloader.dataset' for split in SPLITS]


def everywhere(key, value):
    return {f'{dataset}.{key}': value for dataset in DATASETS}


@pytest.mark.parametrize('make, change', [
    (segmentor, {}), (detector, {}), (queries, {}), (partial(queries, stuff=3), {}),
    (segmentor, {'model.decode_head.num_classes': 9}),  # wasteful, but it trains
    (segmentor, {'train_dataloader.sampler.type': 'InfiniteSampler'}),  # the loop counts iterations
    (detector, {'train_cfg': dict(_delete_=True, by_epoch=False, max_iters=2),
                'train_dataloader.sampler.type': 'InfiniteSampler'}),
    (segmentor, {'train_dataloader.dataset.pipeline.1.reduce_zero_label': True}),
    # one channel for two classes, in both spellings
    (segmentor, {**everywhere('metainfo.classes', ('no', 'yes')), 'model.decode_head.num_classes': 1,
                 'model.auxiliary_head.0': dict(type='FCNHead', num_classes=2, out_channels=1)}),
    (segmentor, {'model.auxiliary_head.0': dict(type='STDCHead', num_classes=2, boundary_threshold=0.1)}),
    (segmentor, {'val_dataloader.dataset.metainfo.classes': ('earth', *CLASSES[1:])}),  # another name for one of them
    (detector, {'model.roi_head.mask_head': dict(_delete_=True, type='FCNMaskHead', class_agnostic=True)}),
    (detector, {'model.teacher': dict(bbox_head=dict(type='FCOSHead', num_classes=80))}),
    # the heads of a panoptic set learn things alone
    (detector, {**everywhere('metainfo.classes', CLASSES), **everywhere('metainfo.thing_classes', CLASSES[1:])}),
    (segmentor, {'val_evaluator.type': 'DepthMetric', 'val_dataloader.dataset.metainfo.classes': CLASSES[1:]}),
    (detector, {**everywhere('return_classes', True), 'model.roi_head.bbox_head.0.num_classes': 256}),
])
def test_settings_that_fit(make, change, data):
    cfg = make(data)
    cfg.merge_from_dict(change)
    assert conflicts(cfg) == []


@pytest.mark.parametrize('make, change, where, told', [
    (segmentor, {'model.decode_head.num_classes': 5}, 'model.decode_head.num_classes',
     r'is 5, but train_dataloader.dataset has 6 classes \(ground, disc, .*\.\.\.\). Set num_classes=6'),
    (segmentor, {'model.auxiliary_head.0.num_classes': 2}, 'model.auxiliary_head.0.num_classes', 'is 2, but .* has 6'),
    (detector, {'model.roi_head.bbox_head.1.num_classes': 80}, 'model.roi_head.bbox_head.1.num_classes',
     'is 80, but .* has 5'),
    # the class's own 80, which the config does not name
    (detector, {'model.roi_head.mask_head': dict(_delete_=True, type='FCNMaskHead')},
     'model.roi_head.mask_head.num_classes', 'is 80, but .* has 5'),
    (segmentor, {'train_dataloader.dataset.pipeline.1.reduce_zero_label': False},
     'train_dataloader.dataset.reduce_zero_label',
     r'pipeline\.1\.reduce_zero_label is False, but that of .*BaseSegDataset, is True'),
    (segmentor, {'val_dataloader.dataset.pipeline': [dict(type='LoadImageFromFile'), dict(
        type='TestTimeAug', transforms=[[dict(type='LoadAnnotations', reduce_zero_label=False)]])]},
     'val_dataloader.dataset.reduce_zero_label', r'pipeline\.1\.transforms\.0\.0\.reduce_zero_label is False'),
    (segmentor, {'val_dataloader.dataset.metainfo.classes': CLASSES[1:]}, 'val_dataloader.dataset.metainfo.classes',
     'train_dataloader.dataset has 6 classes .* but val_dataloader.dataset has 5 .*inherited'),
    (segmentor, {'val_dataloader.dataset.metainfo.classes': CLASSES[::-1]}, 'val_dataloader.dataset.metainfo.classes',
     'the same ones in the same order'),
    (detector, everywhere('metainfo.classes', 'disc'), 'train_dataloader.dataset.metainfo.classes',
     r"each letter would be a class; write \('disc', \)"),
    (detector, {'train_dataloader.sampler.type': 'InfiniteSampler'}, 'train_dataloader.sampler',
     r"never ends.*type='DefaultSampler', shuffle=True\), or a loop by iterations"),
    (detector, {'train_dataloader.batch_sampler': dict(type='InfiniteBatchSampler')}, 'train_dataloader.batch_sampler',
     'is InfiniteBatchSampler, which never ends'),
    (segmentor, {'train_cfg.type': 'mmengine.EpochBasedTrainLoop', 'train_dataloader.sampler.type': 'InfiniteSampler'},
     'train_dataloader.sampler', 'never ends'),
    (segmentor, {'val_dataloader.sampler.type': 'mmengine.InfiniteSampler'}, 'val_dataloader.sampler',
     r'never ends.*shuffle=False\)$'),
    (detector, {'train_dataloader.dataset.pipeline.1.with_mask': False},
     'train_dataloader.dataset.pipeline.1.with_mask', 'roi_head.mask_head learns masks, but .* set with_mask=True'),
    (queries, {'train_dataloader.dataset.pipeline.1.with_mask': False},
     'train_dataloader.dataset.pipeline.1.with_mask', 'model.panoptic_head learns masks, but .* set with_mask=True'),
    (queries, {'model.panoptic_head.num_things_classes': 80}, 'model.panoptic_head.num_things_classes',
     'is 80, but .* has 5 .* Set num_things_classes=5'),
    (queries, {'model.panoptic_fusion_head': dict(_delete_=True, type='MaskFormerFusionHead')},
     'model.panoptic_fusion_head.num_things_classes', 'is 80, but .* has 5'),
    (queries, {'model.panoptic_head.loss_cls.class_weight': [1.0] * 5}, 'model.panoptic_head.loss_cls.class_weight',
     r'one value for each of the 5 classes, and last one for "no object". Set class_weight=\[1.0\] \* 5 \+ \[0.1\]'),
    (segmentor, {'model.decode_head': dict(_delete_=True, type='Mask2FormerHead', num_queries=9, num_classes=6,
                                           loss_cls=dict(class_weight=[1.0] * 150 + [0.1]))},
     'model.decode_head.loss_cls.class_weight', 'each of the 6 classes'),
])
def test_settings_that_contradict_each_other(make, change, where, told, data):
    cfg = make(data)
    cfg.merge_from_dict(copy.deepcopy(change))
    found = {problem.where: str(problem) for problem in conflicts(cfg)}
    assert where in found and re.search(told, found[where]), found


def test_heads_are_found_in_wrappers_and_the_class_is_asked():
    model = dict(module=dict(decode_head=[dict(num_classes=1), dict(num_classes=2, out_channels=1)]))
    found = heads(Config(dict(default_scope='mmseg', model=model)))
    assert [head[:3] for head in found] == [('model.module.decode_head.0', 1, 2), ('model.module.decode_head.1', 2, 2)]


def test_configs_here_have_no_conflict(repo, monkeypatch):
    """Every config, whose datasets are not there: the class's own metainfo stands for them."""
    from importlib.util import find_spec
    from types import SimpleNamespace

    from mmengine.registry import DATASETS

    from mmlk.datasets import settings

    def build(dataset, scope):
        with DATASETS.switch_scope_and_registry(scope) as registry:
            metainfo = {**registry.get(dataset['type']).METAINFO, **dataset.get('metainfo', {})}
        reduce = dataset.get('reduce_zero_label', dataset['type'] == 'ADE20KDataset')
        return SimpleNamespace(metainfo=metainfo, reduce_zero_label=reduce)

    monkeypatch.setattr(settings, 'build_dataset', build)
    paths = sorted((repo / 'configs').glob('*.py')) + sorted((repo / 'configs' / 'demo').glob('*.py'))
    if find_spec('mmpretrain') is None:  # it has the data set of classifiers
        paths = [path for path in paths if not path.name.endswith('_imagenet.py')]
    found = {path.name: conflicts(Config.fromfile(str(path))) for path in paths[::8] + paths[-4:]}
    assert len(found) > 10 and not any(found.values()), found
