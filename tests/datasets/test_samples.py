"""One sample through its pipeline: what fails there, or only at the first validation, is told with the step."""
import json
import random
import re

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.datasets.samples import fault, leaves
from mmlk.datasets.scenes import CLASSES

LOAD, LABELS, PACK = (dict(type=name) for name in ('LoadImageFromFile', 'LoadAnnotations', 'PackSegInputs'))
RESIZE = dict(type='Resize', scale=(24, 20), keep_ratio=False)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    for layout in ('ade20k', 'coco'):
        write_demo(DemoPlan(layout, seed=0, train=3, val=1, size=(32, 40)), folder / layout)
    return folder


def build(config, scope):
    from mmengine.registry import DATASETS
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.build(config)


def segmentation(data, pipeline, **changes):
    settings = dict(type='BaseSegDataset', data_root=str(data / 'ade20k'), reduce_zero_label=True, pipeline=pipeline,
                    metainfo=dict(classes=CLASSES),
                    data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'))
    return dict(settings, **changes)


def detection(root, **loading):
    return dict(type='CocoDataset', data_root=str(root), ann_file='annotations/instances_train2017.json',
                data_prefix=dict(img='train2017/'), metainfo=dict(classes=CLASSES[1:]),
                pipeline=[LOAD, dict(LABELS, **loading), dict(type='PackDetInputs')])


@pytest.mark.parametrize('pipeline, use, told', [
    ([LOAD, LABELS, RESIZE, dict(type='RandomFlip', prob=0.5), PACK], 'train', None),
    ([LOAD, RESIZE, LABELS, PACK], 'evaluate', None),
    ([LOAD, RESIZE, PACK], 'predict', None),
    ([LOAD, LABELS, RESIZE, PACK], 'evaluate',
     r'label map is 20x24 at the end of the pipeline, and predictions are made 32x40 .*must come after Resize'),
    ([LOAD, RESIZE, PACK], 'evaluate', 'loads no label map, and IoUMetric compares with it'),
    ([LABELS, RESIZE, LOAD, PACK], 'train', 'the image is 32x40 .* label map 20x24 .*LoadImageFromFile and LoadAnnot'),
    ([dict(type='PhotoMetricDistortion'), LOAD, PACK], 'predict',
     r'^pipeline\.1 \(PhotoMetricDistortion\): .*LoadImageFromFile comes first'),
    ([LOAD, LABELS, PACK, RESIZE], 'train', 'Resize comes after the step that packs'),
    ([LOAD, LABELS], 'train', 'the last step of the pipeline must be PackSegInputs'),
])
def test_segmentation(pipeline, use, told, data):
    (dataset, ) = leaves(build(segmentation(data, pipeline), 'mmseg'))
    dataset.pipeline.transforms.insert(  # a step that draws from all of them
        0, lambda results: (random.random(), np.random.rand(), torch.rand(1)) and results)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    why = fault(dataset, use)
    assert (why is None) if told is None else re.search(told, why or ''), why
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


def test_samples_that_the_pipeline_leaves_out(data):
    """The next one is taken; of a dataset of such alone, nothing is said."""
    dataset = build(segmentation(data, [LOAD, LABELS, RESIZE, PACK]), 'mmseg')
    dataset.pipeline.transforms.insert(0, lambda results: results if results['sample_idx'] == 2 else None)
    assert 'must come after Resize' in fault(dataset, 'evaluate')
    dataset.pipeline.transforms[0] = lambda results: None
    assert fault(dataset, 'evaluate') is None


def test_a_test_set_without_labels(data):
    images = dict(img_path='images/training')
    why = fault(build(segmentation(data, [LOAD, LABELS, PACK], data_prefix=images), 'mmseg'), 'evaluate')
    assert re.search(r'^pipeline\.1 \(LoadAnnotations\): the dataset has no label maps .*format_only=True', why)
    assert fault(build(segmentation(data, [LOAD, PACK], data_prefix=images), 'mmseg')) is None


def test_masks_that_the_annotations_lack(data, tmp_path):
    assert fault(build(detection(data / 'coco', with_mask=True), 'mmdet')) is None
    write_demo(DemoPlan('coco', seed=0, train=3, val=1, size=(32, 40)), tmp_path)
    path = tmp_path / 'annotations' / 'instances_train2017.json'
    content = json.loads(path.read_text())
    for annotation in content['annotations']:
        del annotation['segmentation']
    path.write_text(json.dumps(content))
    why = fault(build(detection(tmp_path, with_mask=True), 'mmdet'))
    assert why.startswith('pipeline.1 (LoadAnnotations): an annotation has no "segmentation"')
    assert fault(build(detection(tmp_path), 'mmdet')) is None


def test_each_dataset_in_a_wrapper(data):
    parts = [segmentation(data, [LOAD, LABELS, PACK]), segmentation(data, [LOAD, LABELS])]
    whole = build(dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=parts)), 'mmseg')
    assert [fault(part) is None for part in leaves(whole)] == [True, False]


def test_test_time_augmentation(data):
    flips = [[dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]]
    for steps, sound in (([[RESIZE], *flips, [LABELS], [PACK]], True), ([[LABELS], [RESIZE], *flips, [PACK]], False)):
        pipeline = [LOAD, dict(type='TestTimeAug', transforms=steps)]
        assert (fault(build(segmentation(data, pipeline), 'mmseg'), 'evaluate') is None) is sound


@pytest.mark.parametrize('split, pipeline, told', [
    ('train', [LABELS, RESIZE, LOAD, PACK], 'the image is 32x40 at the end of the pipeline, and its label map 20x24'),
    ('val', [LOAD, LABELS, RESIZE, PACK], 'the label map is 20x24'),
    ('test', [LOAD, LABELS, RESIZE, PACK], 'the label map is 20x24')])
def test_a_run_checks_its_datasets_before_it_begins(split, pipeline, told, data, tmp_path):
    """What it validates on as well; by the hook that the tools put into each run."""
    from mmlk.cli.prepare import build_runner
    from mmlk.engine.loading import DataError
    loader = dict(batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False))
    cfg = Config(dict(
        default_scope='mmseg', work_dir=str(tmp_path), train_cfg=dict(type='IterBasedTrainLoop', max_iters=1),
        val_cfg=dict(type='ValLoop'), val_evaluator=dict(type='IoUMetric'), test_cfg=dict(type='TestLoop'),
        test_evaluator=dict(type='IoUMetric'), optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        model=dict(type='mmseg.EncoderDecoder', backbone=dict(type='ResNet', depth=18), decode_head=dict(
            type='FCNHead', in_channels=512, channels=4, in_index=3, num_classes=6, norm_cfg=dict(type='BN')))))
    for name in ('train', 'val', 'test'):
        sound = [LOAD, LABELS, PACK]
        cfg[f'{name}_dataloader'] = dict(loader, dataset=segmentation(data, pipeline if name == split else sound))
    runner = build_runner(cfg)
    with pytest.raises(DataError, match=f'{split}_dataloader.dataset: {told}'):
        runner.test() if split == 'test' else runner.train()
    assert runner.iter == 0
