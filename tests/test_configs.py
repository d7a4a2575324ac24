from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmlk.analysis.complexity import build
from mmlk.datasets.scenes import CLASSES, PALETTE
from mmlk.weights.catalog import CATALOG

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
LEAVES = sorted(str(p.relative_to(CONFIGS)) for p in [*CONFIGS.glob('*.py'), *CONFIGS.glob('demo/*.py')])
DEMOS = [name for name in LEAVES if name.startswith('demo')]
REPLKNET = [name for name in LEAVES if 'replknet' in name and name not in DEMOS]

EXPECTED = {
    'upernet_replknet31b_ade20k.py', 'upernet_replknet31b-22k_ade20k.py', 'upernet_replknet31l-22k_ade20k.py',
    'upernet_replknetxl_ade20k.py', 'upernet_replknet31b_cityscapes.py', 'mask_rcnn_replknet31b_coco.py',
    'fcos_replknet31b_coco.py', 'cascade_mask_rcnn_replknet31b_coco.py',
    'cascade_mask_rcnn_replknet31b-22k_coco.py', 'cascade_mask_rcnn_replknet31l-22k_coco.py',
    'cascade_mask_rcnn_replknetxl_coco.py',
    'upernet_swin-b_ade20k.py', 'upernet_resnet101_ade20k.py', 'upernet_resnet101_cityscapes.py',
    'upernet_swin-b_cityscapes.py', 'mask_rcnn_swin-t_coco.py', 'mask_rcnn_resnet50_coco.py',
    'cascade_mask_rcnn_swin-b_coco.py', 'cascade_mask_rcnn_resnet101_coco.py',
    'cascade_mask_rcnn_resnext101-64x4d_coco.py', 'demo/upernet_replknet-tiny_ade20k.py',
    'demo/upernet_replknet-tiny_cityscapes.py', 'demo/mask_rcnn_replknet-tiny_coco.py',
    'demo/cascade_mask_rcnn_replknet-tiny_coco.py',
}

# lr, weight decay, drop path, images per step, iterations or epochs: of the official configs, and for
# baselines of mmseg's, mmdet's and Swin's. The images per step of RepLKNet's detectors were not published.
RECIPES = {
    'upernet_replknet31b_ade20k.py': (2e-4, 0.05, 0.5, 32, 160000),
    'upernet_replknet31b-22k_ade20k.py': (2e-4, 0.05, 0.3, 32, 160000),
    'upernet_replknet31l-22k_ade20k.py': (2e-4, 0.05, 0.3, 32, 160000),
    'upernet_replknetxl_ade20k.py': (2e-4, 0.05, 0.5, 32, 160000),
    'upernet_replknet31b_cityscapes.py': (2e-4, 0.05, 0.5, 16, 80000),
    'mask_rcnn_replknet31b_coco.py': (4e-4, 0.05, 0.6, 64, 36),
    'cascade_mask_rcnn_replknet31b_coco.py': (4e-4, 0.05, 0.6, 64, 36),
    'cascade_mask_rcnn_replknet31b-22k_coco.py': (4e-4, 0.05, 0.4, 64, 36),
    'cascade_mask_rcnn_replknet31l-22k_coco.py': (4e-4, 0.05, 0.7, 64, 36),
    'cascade_mask_rcnn_replknetxl_coco.py': (4e-4, 0.05, 0.5, 64, 36),
    'fcos_replknet31b_coco.py': (2e-4, 0.05, 0.5, 16, 24),
    'upernet_swin-b_ade20k.py': (6e-5, 0.01, 0.3, 16, 160000),
    'upernet_swin-b_cityscapes.py': (6e-5, 0.01, 0.3, 16, 80000),
    'upernet_resnet101_ade20k.py': (0.01, 0.0005, None, 16, 160000),
    'upernet_resnet101_cityscapes.py': (0.01, 0.0005, None, 8, 80000),
    'mask_rcnn_swin-t_coco.py': (1e-4, 0.05, 0.2, 16, 36),
    'mask_rcnn_resnet50_coco.py': (0.02, 0.0001, None, 16, 36),
    'cascade_mask_rcnn_swin-b_coco.py': (1e-4, 0.05, 0.3, 16, 36),
    'cascade_mask_rcnn_resnet101_coco.py': (0.02, 0.0001, None, 16, 36),
    'cascade_mask_rcnn_resnext101-64x4d_coco.py': (0.02, 0.0001, None, 16, 36),
}

PRETRAINED = {'31b': 'replknet-31b_in1k', '31b-22k': 'replknet-31b_in22k', '31l-22k': 'replknet-31l_in22k',
              'xl': 'replknet-xl_meg73m'}


def load(name):
    return Config.fromfile(str(CONFIGS / name))


def steps(pipeline):
    """Every step of a pipeline by type, those inside RandomChoice too."""
    found = {}
    for step in pipeline:
        found[step['type']] = step
        for branch in step.get('transforms', []):
            found.update(steps(branch))
    return found


def test_the_promised_configs_are_there():
    assert set(LEAVES) == EXPECTED


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_builds_and_its_heads_fit_its_backbone(name):
    cfg = load(name)
    model = build(cfg, merged=False)
    channels = list(cfg.channels)
    if 'replknet' in name:
        assert list(model.backbone.out_channels) == channels
    if 'decode_head' in cfg.model:
        assert list(model.decode_head.in_channels) == channels
        assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]
        assert model.decode_head.num_classes == model.auxiliary_head.num_classes
    else:
        assert list(model.neck.in_channels) == channels
    # what the backbone really gives, not what it says
    model.eval()
    with torch.no_grad():
        shapes = [tuple(x.shape) for x in model.backbone(torch.empty(1, 3, 64, 96, device='meta'))]
    assert shapes == [(1, c, 64 >> i, 96 >> i) for i, c in zip((2, 3, 4, 5), channels)]


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_survives_being_written_and_read(name, tmp_path):
    cfg = load(name)
    cfg.dump(str(tmp_path / 'dumped.py'))
    again = Config.fromfile(str(tmp_path / 'dumped.py'))
    assert again.to_dict() == cfg.to_dict()


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_is_a_whole_run(name):
    cfg = load(name)
    assert cfg.custom_imports.imports == ['mmlk.registry']
    assert cfg.default_scope == ('mmseg' if 'upernet' in name else 'mmdet')
    assert cfg.auto_scale_lr.enable is False
    hooks = {'timer', 'logger', 'param_scheduler', 'checkpoint', 'sampler_seed', 'visualization'}
    assert hooks <= set(cfg.default_hooks)
    for split in ('train', 'val', 'test'):
        assert {f'{split}_dataloader', f'{split}_cfg'} <= set(cfg)
        loader = cfg[f'{split}_dataloader']
        assert loader.persistent_workers == (loader.num_workers > 0)
    for split in ('val', 'test'):
        evaluator = cfg[f'{split}_evaluator']
        if 'coco' in name:
            assert evaluator.ann_file == cfg[f'{split}_dataloader'].dataset.data_root + \
                cfg[f'{split}_dataloader'].dataset.ann_file
            assert evaluator.metric == ('bbox' if 'fcos' in name else ['bbox', 'segm'])
        else:
            assert evaluator.iou_metrics == ['mIoU']
    # mmdet merges the boxes of several scales, not their masks
    assert ('tta_pipeline' in cfg) == ('tta_model' in cfg) == ('rcnn' not in name)
    last = cfg.param_scheduler[-1]
    assert last.end == cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs'))


@pytest.mark.parametrize('name', LEAVES)
def test_pipelines_build_and_agree_with_the_preprocessor(name):
    from mmengine.dataset import Compose
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    pipelines = [cfg[f'{split}_dataloader'].dataset.pipeline for split in ('train', 'val', 'test')]
    pipelines.append(cfg.get('tta_pipeline', []))
    for pipeline in pipelines:
        Compose(pipeline)
    if 'upernet' in name:
        train = steps(pipelines[0])
        crop = train['RandomCrop']['crop_size'] if 'RandomCrop' in train else train['Resize']['scale'][::-1]
        assert tuple(crop) == tuple(cfg.model.data_preprocessor['size']) == tuple(cfg.crop_size)


@pytest.mark.parametrize('name', REPLKNET)
def test_pixels_are_scaled_as_the_pretraining_did(name):
    cfg = load(name)
    entry = CATALOG[cfg.model.backbone.init_cfg.checkpoint]
    assert entry.arch == cfg.model.backbone.arch
    assert cfg.model.data_preprocessor.bgr_to_rgb
    assert tuple(cfg.model.data_preprocessor['mean']) == entry.mean
    assert tuple(cfg.model.data_preprocessor['std']) == entry.std


@pytest.mark.parametrize('name', RECIPES)
def test_recipes(name):
    cfg = load(name)
    lr, decay, drop_path, batch, length = RECIPES[name]
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (lr, decay)
    assert optimizer.type == ('AdamW' if drop_path is not None else 'SGD')
    if optimizer.type == 'AdamW':
        assert tuple(optimizer.betas) == (0.9, 0.999)
        assert cfg.optim_wrapper.paramwise_cfg.norm_decay_mult == 0
    assert cfg.model.backbone.get('drop_path_rate') == drop_path
    assert cfg.auto_scale_lr.base_batch_size == batch
    assert cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs')) == length
    assert batch % cfg.train_dataloader.batch_size == 0  # that many GPUs
    if 'coco' in name:
        milestones = {36: [27, 33], 24: [16, 22]}[length]
        assert cfg.param_scheduler[-1].milestones == milestones
    elif optimizer.type == 'AdamW':
        assert [(s.type, s.end) for s in cfg.param_scheduler] == [('LinearLR', 1500), ('PolyLR', length)]
        assert cfg.param_scheduler[-1].power == 1.0


@pytest.mark.parametrize('name', REPLKNET)
def test_what_the_paper_did(name):
    cfg = load(name)
    method, backbone, dataset = name[:-3].rsplit('_', 2)
    assert cfg.model.backbone.init_cfg == dict(type='mmlk.Pretrained', checkpoint=PRETRAINED[backbone[8:]])
    assert cfg.model.backbone.norm_cfg.type == 'SyncBN'
    assert cfg.model.backbone.with_cp
    train, test = (steps(cfg[f'{split}_dataloader'].dataset.pipeline) for split in ('train', 'test'))
    if dataset == 'ade20k':
        crop = 512 if backbone == 'replknet31b' else 640
        assert (*train['RandomResize']['scale'], *train['RandomCrop']['crop_size']) == (2048, 512, crop, crop)
        slide = dict(mode='slide', crop_size=(640, 640), stride=(426, 426))
        assert cfg.model.test_cfg == (dict(mode='whole') if crop == 512 else slide)
    elif dataset == 'cityscapes':
        assert tuple(train['RandomCrop']['crop_size']) == (769, 769)
        assert cfg.model.test_cfg == dict(mode='whole')
        assert cfg.model.decode_head.align_corners and cfg.model.auxiliary_head.align_corners
    elif method == 'fcos':
        assert train['RandomChoiceResize']['scales'] == [(1333, 640), (1333, 800)]
        assert cfg.optim_wrapper.clip_grad == dict(max_norm=35, norm_type=2)
        assert tuple(test['Resize']['scale']) == (1333, 800)
    else:
        shorts = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
        assert train['RandomChoiceResize']['scales'] == [(short, 1333) for short in shorts]
        assert tuple(train['RandomCrop']['crop_size']) == (384, 600)
    if method == 'cascade_mask_rcnn':
        for head, std in zip(cfg.model.roi_head.bbox_head, (0.1, 0.05, 0.033)):
            assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
            assert head.norm_cfg.type == 'SyncBN'
            assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
            assert head.bbox_coder.target_stds[0] == std and head.reg_decoded_bbox


@pytest.mark.parametrize('name', DEMOS)
def test_the_demos_know_the_scenes(name):
    cfg = load(name)
    first = 1 if 'coco' in name else 0  # ground is no object
    for split in ('train', 'val', 'test'):
        metainfo = cfg[f'{split}_dataloader'].dataset.metainfo
        assert tuple(metainfo['classes']) == CLASSES[first:]
        assert tuple(map(tuple, metainfo['palette'])) == PALETTE[first:]
    heads = cfg.model.roi_head if first else cfg.model
    for head in ('bbox_head', 'mask_head') if first else ('decode_head', 'auxiliary_head'):
        found = heads[head] if isinstance(heads[head], list) else [heads[head]]
        assert [h.num_classes for h in found] == [len(CLASSES) - first] * len(found)


def test_a_leaf_stays_short():
    for name in LEAVES:
        lines = (CONFIGS / name).read_text().splitlines()
        assert len(lines) <= 40, name
        assert max(map(len, lines)) <= 110, name
