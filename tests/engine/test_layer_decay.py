import pytest
import torch
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from torch import nn

from mmlk.backbones import ConvNeXt, ConvNeXtV2, GFNet, MogaNet, RepLKNet, TimmBackbone, UniRepLKNet

TINY = dict(large_kernel_sizes=(31, 29, 27, 13), layers=(1, 1, 4, 1), channels=(8, 16, 24, 32), small_kernel=5)


class Model(nn.Module):

    def __init__(self, **kwargs):
        super().__init__()
        self.backbone = RepLKNet(TINY, **kwargs)
        self.head = nn.Sequential(nn.Conv2d(32, 4, 1), nn.GroupNorm(2, 4))


def build(model, **paramwise):
    constructor = OPTIM_WRAPPER_CONSTRUCTORS.build(dict(
        type='mmlk.LayerDecayOptimWrapperConstructor',
        optim_wrapper_cfg=dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05)),
        paramwise_cfg=paramwise))
    return constructor(model).optimizer


def setting(optimizer, parameter):
    found = [g for g in optimizer.param_groups if any(p is parameter for p in g['params'])]
    assert len(found) == 1
    return found[0]['lr'], found[0]['weight_decay']


@pytest.mark.parametrize('decay_type', ['layer_wise', 'stage_wise'])
def test_every_trainable_parameter_is_in_exactly_one_group(decay_type):
    model = Model(frozen_stages=1)
    groups = build(model, decay_rate=0.9, decay_type=decay_type).param_groups
    placed = [id(p) for g in groups for p in g['params']]
    assert sorted(placed) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    assert len({(g['lr'], g['weight_decay']) for g in groups}) == len(groups), 'two groups with the same settings'


def test_layer_wise_rates_fall_with_depth():
    model = Model()
    optimizer = build(model, decay_rate=0.8)
    backbone = model.backbone
    assert backbone.num_layers == 5
    depth = {backbone.stem[0].conv.weight: 0, backbone.stages[0].blocks[0].pw1.conv.weight: 1,
             backbone.transitions[0][0].conv.weight: 1, backbone.stages[1].blocks[1].pw2.conv.weight: 2,
             backbone.stages[2].blocks[3].pw1.conv.weight: 3, backbone.stages[2].blocks[4].pw1.conv.weight: 4,
             backbone.stages[3].blocks[0].large_kernel.small_conv.conv.weight: 5, model.head[0].weight: 6}
    for parameter, layer in depth.items():
        assert setting(optimizer, parameter) == (pytest.approx(1e-3 * 0.8**(6 - layer)), 0.05)


def test_stage_wise_rates():
    model = Model()
    optimizer = build(model, decay_rate=0.5, decay_type='stage_wise')
    assert setting(optimizer, model.backbone.stem[0].conv.weight)[0] == pytest.approx(1e-3 * 0.5**5)
    assert setting(optimizer, model.backbone.transitions[0][0].conv.weight)[0] == pytest.approx(1e-3 * 0.5**3)
    assert setting(optimizer, model.backbone.stages[3].blocks[1].pw2.conv.weight)[0] == pytest.approx(1e-3 * 0.5)
    assert setting(optimizer, model.head[0].weight)[0] == pytest.approx(1e-3)


@pytest.mark.parametrize('num_layers', [6, 12])
def test_convnext_stage_wise_as_officially(num_layers):
    # get_num_layer_stage_wise of ConvNeXt's layer_decay_optimizer_constructor.py, worked out by hand: downsampling 0,
    # stage i at i + 1, all else at num_layers + 1; the rate is decay ** (num_layers + 1 - depth)
    model = nn.Module()
    model.backbone = ConvNeXt(dict(depths=(1, 1, 4, 1), dims=(8, 16, 24, 32)))
    model.decode_head = nn.Conv2d(32, 4, 1)
    optimizer = build(model, decay_rate=0.9, decay_type='stage_wise', num_layers=num_layers, custom_keys={
        'backbone.downsample_layers': dict(depth=0), 'backbone.norm': dict(depth='head')})
    for name, parameter in model.named_parameters():
        depth = num_layers + 1
        if name.startswith('backbone.downsample_layers'):
            depth = 0
        elif name.startswith('backbone.stages'):
            depth = int(name.split('.')[2]) + 1
        lr, decay = setting(optimizer, parameter)
        assert lr == pytest.approx(1e-3 * 0.9**(num_layers + 1 - depth)), name
        assert decay == (0.05 if parameter.ndim > 1 else 0), name


def test_more_layers_than_the_backbone_has():
    model = Model()
    model.backbone = ConvNeXt(dict(depths=(1, 1, 4, 1), dims=(8, 16, 24, 32)))
    backbone = model.backbone
    optimizer = build(model, decay_rate=0.8, num_layers=12, custom_keys={
        'backbone.stages.3': dict(depth=12), 'backbone.downsample_layers.3': dict(depth=12, lr_mult=0.5)})
    depth = {backbone.downsample_layers[0][0].weight: 0, backbone.stages[2][3].pwconv1.weight: 4,
             backbone.stages[3][0].pwconv1.weight: 12, backbone.norm0.weight: 13, model.head[0].weight: 13}
    for parameter, layer in depth.items():
        assert setting(optimizer, parameter)[0] == pytest.approx(1e-3 * 0.8**(13 - layer))
    assert setting(optimizer, backbone.downsample_layers[3][1].weight)[0] == pytest.approx(1e-3 * 0.8 * 0.5)


def test_norms_and_biases_have_no_decay_unless_asked():
    model = Model()
    norm, bias, weight = model.backbone.stem[0].bn.weight, model.head[0].bias, model.head[0].weight
    optimizer = build(model, decay_rate=1.0)
    assert [setting(optimizer, p)[1] for p in (norm, bias, weight, model.head[1].bias)] == [0, 0, 0.05, 0]
    optimizer = build(model, decay_rate=1.0, norm_decay_mult=1.0, bias_decay_mult=0.5)
    assert [setting(optimizer, p)[1] for p in (norm, bias, model.head[1].bias)] == [0.05, 0.025, 0.05]


@pytest.mark.parametrize('backbone, exempt', [
    (lambda: MogaNet(dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), ffn_ratios=(2, 2, 2, 2))),
     ('.layer_scale_1', '.layer_scale_2', '.attn.sigma.scale', '.mlp.sigma.scale')),
    (lambda: ConvNeXtV2(dict(depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))), ('.grn.gamma', '.grn.beta')),
    (lambda: GFNet(dict(embed_dim=(8, 16, 24, 32), depth=(1, 1, 1, 1), img_size=64)), ('pos_embed', )),
    # in the official code too its GRN, of four dimensions, decays
    (lambda: UniRepLKNet('A'), ()),
    (lambda: TimmBackbone('swin_tiny_patch4_window7_224', model_args=dict(
        embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1))), ('.relative_position_bias_table', )),
], ids=['MogaNet', 'ConvNeXtV2', 'GFNet', 'UniRepLKNet', 'Swin of timm'])
def test_what_the_backbone_exempts_has_no_decay(backbone, exempt):
    model = nn.Module()
    model.backbone = backbone()
    optimizer = build(model, decay_rate=0.9)
    decays = {name: setting(optimizer, p)[1] for name, p in model.backbone.named_parameters()}
    large = {name for name, p in model.backbone.named_parameters() if p.ndim > 1}
    free = {name for name in large if decays[name] == 0}
    assert free == {name for name in large if exempt and name.endswith(exempt)}
    assert len({ending for ending in exempt if any(name.endswith(ending) for name in free)}) == len(exempt)
    assert {decays[name] for name in set(decays) - large} == {0}
    optimizer = build(model, decay_rate=0.9, norm_decay_mult=1.0, bias_decay_mult=1.0)
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0.05}


def test_custom_keys_longest_first():
    model = Model()
    optimizer = build(model, decay_rate=0.5, custom_keys={
        'head': dict(lr_mult=10), 'head.1': dict(lr_mult=2, decay_mult=1), 'stem': dict(decay_mult=0)})
    assert setting(optimizer, model.head[0].weight) == (pytest.approx(1e-2), 0.05)
    assert setting(optimizer, model.head[1].weight) == (pytest.approx(2e-3), 0.05)
    assert setting(optimizer, model.backbone.stem[0].conv.weight)[1] == 0


def test_table_of_groups_is_logged(capsys):
    from mmengine.logging import MMLogger
    MMLogger.get_instance('layer_decay_test')
    build(Model(), decay_rate=0.9)
    out = capsys.readouterr()
    text = out.out + out.err
    assert 'Parameter groups of layer decay' in text and 'backbone.stem.0.conv.weight' in text


@pytest.mark.parametrize('paramwise, problem', [
    ({}, 'needs decay_rate in'), (dict(decay_rate=1.5), 'needs decay_rate in'),
    (dict(decay_rate=0.9, decay_type='block_wise'), "'layer_wise' or 'stage_wise', got 'block_wise'"),
    (dict(decay_rate=0.9, num_layer=6), 'unknown keys in paramwise_cfg: num_layer'),
    (dict(decay_rate=0.9, num_layers=4), 'num_layers must be at least 5, the depth of this backbone, got 4'),
    (dict(decay_rate=0.9, custom_keys=dict(stem=dict(layer=0))), r"custom_keys\['stem'\] takes .*, got layer"),
    (dict(decay_rate=0.9, custom_keys=dict(stem=dict(depth=7))), "depth must be in 0..5 or 'head', got 7 for back"),
])
def test_wrong_settings_are_refused(paramwise, problem):
    with pytest.raises(ValueError, match=problem):
        build(Model(), **paramwise)


def test_a_backbone_without_depths_is_refused():
    model = nn.Module()
    model.backbone = nn.Conv2d(3, 3, 1)
    with pytest.raises(TypeError, match='Conv2d does not answer layer_id'):
        build(model, decay_rate=0.9)


def test_trains():
    model = Model()
    optimizer = build(model, decay_rate=0.9)
    before = {n: p.clone() for n, p in model.named_parameters()}
    model.head(model.backbone(torch.randn(2, 3, 64, 64))[-1]).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())
