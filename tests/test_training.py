"""Shrunk copies of the configs train two steps, write a checkpoint, and test from it; every family trains."""
import copy
import math
import shutil
from pathlib import Path
from uuid import uuid4

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.datasets.scenes import CLASSES
from mmlk.engine import ResumableRunner
from mmlk.registry import MODELS
from tests.backbones.test_contract import TINY
from tests.backbones.test_timm_families import SMALL

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
SIDE = 64
SIZES = {  # what a step of a pipeline is given instead of the real sizes
    'Resize': dict(scale=(SIDE, SIDE)),
    'RandomResize': dict(scale=(SIDE, SIDE)),
    'RandomChoiceResize': dict(scales=[(48, SIDE), (SIDE, SIDE)]),
    'RandomCrop': dict(crop_size=(SIDE, SIDE)),
}
SEGMENTS, DETECTS = ['mIoU', 'aAcc'], ['coco/bbox_mAP', 'coco/segm_mAP']
# Each method, and each way of training: plain, layer decay, a frozen mask, averaged weights, clipped gradients.
RUNS = {
    'upernet_replknet31b-22k_ade20k': ('ade20k', SEGMENTS),
    'upernet_replknet31b_cityscapes': ('cityscapes', SEGMENTS),
    'upernet_convnext-t_ade20k': ('ade20k', SEGMENTS),
    'upernet_slak-t_ade20k': ('ade20k', SEGMENTS),
    'upernet_hornet-t-gf_ade20k': ('ade20k', SEGMENTS),
    'upernet_moganet-s_ade20k': ('ade20k', SEGMENTS),
    'fpn_gfnet-h-ti_ade20k': ('ade20k', SEGMENTS),
    'fpn_repvit-m1-1_ade20k': ('ade20k', SEGMENTS),
    'upernet_focalnet-t-lrf_ade20k': ('ade20k', SEGMENTS),
    'upernet_convnextisotropic-s_ade20k': ('ade20k', SEGMENTS),
    'pspnet_repvgg-b1g2_cityscapes': ('cityscapes', SEGMENTS),
    'segnext_mscan-t_cityscapes': ('cityscapes', SEGMENTS),
    'deeplabv3plus_mobilenetv2-13-reparam_cityscapes': ('cityscapes', SEGMENTS),
    'mask_rcnn_replknet31b_coco': ('coco', DETECTS),
    'cascade_mask_rcnn_unireplknet-b-22k_coco': ('coco', DETECTS),
    'mask_rcnn_rdnet-t_coco': ('coco', DETECTS),
    'fcos_replknet31b_coco': ('coco', DETECTS[:1]),
    'mask2former_unireplknet-b-22k_ade20k': ('ade20k', SEGMENTS),
    'mask2former_convnext-b_coco': ('coco', DETECTS),
    'segformer_convnext-t_ade20k': ('ade20k', SEGMENTS),
}
METHODS = {'upernet_replknet31b_ade20k': 'ade20k', 'mask_rcnn_replknet31b_coco': 'coco'}


def shrink_steps(pipeline):
    for step in pipeline:
        step.update(SIZES.get(step['type'], {}))
        if step.get('resize_type') == 'ResizeShortestEdge':
            step.update(scales=[48, SIDE], max_size=SIDE)
        for branch in step.get('transforms', []):
            shrink_steps(branch)


def shrink_mask2former(model, channels):
    small = Config.fromfile(str(CONFIGS / '_base_/models/mask2former_small.py')).model.decode_head
    head = model.panoptic_head if 'panoptic_head' in model else model.decode_head
    for key in ('feat_channels', 'out_channels', 'num_queries', 'pixel_decoder', 'positional_encoding',
                'transformer_decoder'):
        head[key] = copy.deepcopy(small[key])
    head.in_channels = channels
    if 'decode_head' in model:
        model.data_preprocessor.size = (SIDE, SIDE)
        head.train_cfg.num_points = 64
        return
    model.data_preprocessor.batch_augments[0].size = (SIDE, SIDE)
    model.train_cfg.num_points = 64
    things = len(CLASSES) - 1
    head.update(num_things_classes=things)
    head.loss_cls.class_weight = [1.0] * things + [0.1]
    model.panoptic_fusion_head.num_things_classes = things
    model.test_cfg.max_per_image = 20


def shrink_model(model):
    family = model.backbone.type[len('mmlk.'):]
    model.backbone.update(init_cfg=None)
    if family == 'TimmBackbone':
        small = next(args for name, args in SMALL.items() if model.backbone.model_name.startswith(name))
        model.backbone.update({key: value for key, value in small.items() if key != 'dense'})
        args = {key: model.backbone[key] for key in ('model_name', 'model_args') if key in model.backbone}
    else:
        model.backbone.update(drop_path_rate=0.1, arch=copy.deepcopy(TINY[family]))
        args = dict(arch=model.backbone.arch)
    if family == 'MobileNetV2':
        model.backbone.dilations = (1, 1, (2, 1, 2), (4, 1))  # the arch has fewer blocks than the config's
    channels = list(MODELS.build(dict(type=f'mmlk.{family}', **args)).out_channels)
    if 'panoptic_head' in model or model.get('decode_head', {}).get('type') == 'Mask2FormerHead':
        shrink_mask2former(model, channels)
        return
    if 'neck' in model and model.neck.type == 'Feature2Pyramid':
        model.neck.embed_dim = channels[0]
    elif 'neck' in model:
        model.neck.update(in_channels=channels, out_channels=16)
    if 'decode_head' in model:
        model.data_preprocessor.size = (SIDE, SIDE)
        head = model.decode_head
        inputs = {'UPerHead': channels, 'SegformerHead': channels, 'FPNHead': [16] * 4,
                  'mmlk.LightHamHead': channels[1:]}.get(head.type, channels[3])
        head.update(in_channels=inputs, channels=16)
        if 'ham_channels' in head:
            head.update(ham_channels=16, ham_kwargs=dict(MD_R=4))
            head.norm_cfg.num_groups = 4
        if 'c1_in_channels' in head:
            head.update(c1_in_channels=channels[0], c1_channels=4)
        if 'auxiliary_head' in model:
            model.auxiliary_head.update(in_channels=channels[2], channels=16)
        if model.test_cfg.mode == 'slide':
            model.test_cfg.update(crop_size=(48, 48), stride=(32, 32))
        return
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


def shrunk(name, layout, data, work_dir, family=None):
    """The config, with a backbone of another family if asked, for two steps of two tiny images; norms, losses,
    optimiser and so on as they are."""
    cfg = Config.fromfile(str(CONFIGS / f'{name}.py'))
    if family:
        cfg.model.backbone = dict(type=f'mmlk.{family}')
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


def train(name, layout, folder, family=None):
    """Train two steps; the config and what its validation gave."""
    write_demo(DemoPlan(layout, seed=0, train=4, val=2, size=(SIDE, SIDE)), folder / 'data')
    cfg = shrunk(name, layout, folder / 'data', folder / 'work', family)
    runner = Runner.from_cfg(cfg)
    runner.model.init_weights()
    for value in runner.model.parameters():
        if 0 < value.abs().max() <= 1e-3:  # a layer scale, too small for two steps to reach what it scales
            value.data.fill_(1.0)
    before = {key: value.clone() for key, value in runner.model.named_parameters()}
    runner.train()
    assert runner.iter == 2
    scalars = runner.message_hub.log_scalars
    assert math.isfinite(scalars['train/loss'].current())
    after = dict(runner.model.named_parameters())
    still = [key for key in before if before[key].ndim > 1 and torch.equal(before[key], after[key])]
    assert not still, 'weights that training left as they were'
    return cfg, {key[len('val/'):]: scalars[key].current() for key in scalars if key.startswith('val/')}


@pytest.mark.parametrize('name', RUNS)
def test_two_steps_and_a_test(name, tmp_path):
    layout, metrics = RUNS[name]
    cfg, validated = train(name, layout, tmp_path)
    cfg.load_from = (tmp_path / 'work' / 'last_checkpoint').read_text()
    tested = Runner.from_cfg(cfg).test()
    assert {key: tested[key] for key in metrics} == pytest.approx({key: validated[key] for key in metrics})


# Mask R-CNN takes the same four maps as UperNet does: in every run by families of which something else is special.
DETECTORS = 'ConvNeXt', 'InternImage', 'MSCAN', 'OverLoCK', 'ParCNet'


@pytest.mark.parametrize('family, name', [
    pytest.param(family, name, marks=[pytest.mark.slow] * (METHODS[name] == 'coco' and family not in DETECTORS))
    for name in METHODS for family in sorted(set(TINY) - {'RepLKNet'})])
def test_every_family_trains_under_upernet_and_mask_rcnn(name, family, tmp_path):
    _, validated = train(name, METHODS[name], tmp_path, family)
    assert validated


@pytest.mark.parametrize('name', ['mask2former_replknet31b_ade20k', 'mask2former_replknet31b_coco'])
def test_a_mask2former_goes_on_where_it_stopped_and_is_tested_merged(name, tmp_path):
    """Its matching and its losses draw random points, which a resumed run draws again."""
    layout = 'coco' if 'coco' in name else 'ade20k'
    write_demo(DemoPlan(layout, seed=0, train=4, val=2, size=(SIDE, SIDE)), tmp_path / 'data')

    def runner(folder, **changes):
        cfg = shrunk(name, layout, tmp_path / 'data', tmp_path / folder)
        cfg.default_hooks.checkpoint.interval = 1
        cfg.update(experiment_name=uuid4().hex, **changes)
        return ResumableRunner.from_cfg(cfg)

    def state(folder):
        return torch.load(tmp_path / folder / 'iter_2.pth', weights_only=False)

    runner('whole').train()
    shutil.copytree(tmp_path / 'whole', tmp_path / 'stopped')
    (tmp_path / 'stopped' / 'iter_2.pth').unlink()
    (tmp_path / 'stopped' / 'last_checkpoint').write_text(str(tmp_path / 'stopped' / 'iter_1.pth'))
    runner('stopped', resume=True).train()
    ours, theirs = state('stopped'), state('whole')
    assert all(torch.equal(value, theirs['state_dict'][key]) for key, value in ours['state_dict'].items())
    for found, expected in zip(ours['optimizer']['state'].values(), theirs['optimizer']['state'].values(), strict=True):
        assert all(torch.equal(found[key], expected[key]) for key in ('exp_avg', 'exp_avg_sq'))

    checkpoint = str(tmp_path / 'whole' / 'iter_2.pth')
    plain, merged = (runner(folder, load_from=checkpoint, custom_hooks=hooks).test() for folder, hooks in (
        ('plain', []), ('merged', [dict(type='mmlk.MergeBranchesHook')])))
    assert plain and merged == pytest.approx(plain, abs=0.05)
