"""Shrunk copies of the configs train two steps, write a checkpoint, and test from it."""
import math
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmlk.datasets.layouts import Plan, write
from mmlk.datasets.scenes import CLASSES

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
SIDE = 64
CHANNELS = [8, 16, 24, 32]
SIZES = {  # what a step of a pipeline is given instead of the real sizes
    'Resize': dict(scale=(SIDE, SIDE)),
    'RandomResize': dict(scale=(SIDE, SIDE)),
    'RandomChoiceResize': dict(scales=[(48, SIDE), (SIDE, SIDE)]),
    'RandomCrop': dict(crop_size=(SIDE, SIDE)),
}
RUNS = {
    'upernet_replknet31b-22k_ade20k': ('ade20k', ['mIoU', 'aAcc']),
    'upernet_replknet31b_cityscapes': ('cityscapes', ['mIoU', 'aAcc']),
    'mask_rcnn_replknet31b_coco': ('coco', ['coco/bbox_mAP', 'coco/segm_mAP']),
    'cascade_mask_rcnn_replknet31b_coco': ('coco', ['coco/bbox_mAP', 'coco/segm_mAP']),
    'fcos_replknet31b_coco': ('coco', ['coco/bbox_mAP']),
}


def shrink_steps(pipeline):
    for step in pipeline:
        step.update(SIZES.get(step['type'], {}))
        for branch in step.get('transforms', []):
            shrink_steps(branch)


def shrink_model(model):
    model.backbone.update(init_cfg=None, drop_path_rate=0.1, arch=dict(
        large_kernel_sizes=[31, 29, 27, 13], layers=[1, 1, 1, 1], channels=CHANNELS, small_kernel=5))
    if 'decode_head' in model:
        model.data_preprocessor.size = (SIDE, SIDE)
        model.decode_head.update(in_channels=CHANNELS, channels=16)
        model.auxiliary_head.update(in_channels=CHANNELS[2], channels=16)
        if model.test_cfg.mode == 'slide':
            model.test_cfg.update(crop_size=(48, 48), stride=(32, 32))
        return
    model.neck.update(in_channels=CHANNELS, out_channels=16)
    if 'roi_head' not in model:
        model.bbox_head.update(in_channels=16, feat_channels=64, num_classes=len(CLASSES) - 1)
        model.test_cfg.score_thr = 0.0  # an untrained FCOS scores everything below the threshold
        return
    model.rpn_head.update(in_channels=16, feat_channels=16)
    model.rpn_head.anchor_generator.scales = [1]  # so that on each level some lie inside the image
    model.test_cfg.rpn.max_per_img = 20
    model.test_cfg.rcnn.score_thr = 0.0
    heads = model.roi_head
    for extractor in (heads.bbox_roi_extractor, heads.mask_roi_extractor):
        extractor.out_channels = 16
    for head in heads.bbox_head if isinstance(heads.bbox_head, list) else [heads.bbox_head]:
        head.update(in_channels=16, fc_out_channels=32, num_classes=len(CLASSES) - 1)
        if 'conv_out_channels' in head:
            head.conv_out_channels = 16
    heads.mask_head.update(in_channels=16, conv_out_channels=16, num_classes=len(CLASSES) - 1)


def shrunk(name, layout, data, work_dir):
    """The config for two steps of two tiny images; norms, losses, optimiser and so on as they are."""
    cfg = Config.fromfile(str(CONFIGS / f'{name}.py'))
    shrink_model(cfg.model)
    for split in ('train', 'val', 'test'):
        loader = cfg[f'{split}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.data_root = str(data)
        shrink_steps(loader.dataset.pipeline)
        if layout == 'coco':
            loader.dataset.metainfo = dict(classes=CLASSES[1:])
            if split != 'train':
                cfg[f'{split}_evaluator'].ann_file = str(data / loader.dataset.ann_file)
    cfg.train_dataloader.batch_size = 2
    if 'max_iters' in cfg.train_cfg:
        cfg.train_cfg.update(max_iters=2, val_interval=2)
        cfg.default_hooks.checkpoint.interval = 2
    else:
        cfg.train_cfg.max_epochs = 1
    cfg.param_scheduler = None  # its warm-up would leave the first steps without effect
    cfg.optim_wrapper.optimizer.weight_decay = 0.0  # it would change weights that no gradient reaches
    cfg.work_dir = str(work_dir)
    cfg.randomness = dict(seed=0)
    return cfg


@pytest.mark.parametrize('name', RUNS)
def test_two_steps_and_a_test(name, tmp_path):
    layout, metrics = RUNS[name]
    write(Plan(layout, seed=0, train=4, val=2, size=(SIDE, SIDE)), tmp_path / 'data')
    cfg = shrunk(name, layout, tmp_path / 'data', tmp_path / 'work')

    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    before = {key: value.clone() for key, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    assert math.isfinite(scalars['train/loss'].current())
    after = dict(runner.model.named_parameters())
    still = [key for key in before if before[key].ndim > 1 and torch.equal(before[key], after[key])]
    assert not still, 'weights that training left as they were'
    validated = {key: scalars[f'val/{key}'].current() for key in metrics}

    cfg.load_from = (tmp_path / 'work' / 'last_checkpoint').read_text()
    tested = Runner.from_cfg(cfg).test()
    assert {key: tested[key] for key in metrics} == pytest.approx(validated)
