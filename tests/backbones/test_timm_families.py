"""Families of timm against their official code: names, maps, branches and depths.

``tests/data/timm_families.npz`` holds maps of the official code, and the names and shapes of its tensors (a JSON text,
compressed by lzma). It was made of the repositories that ``OFFICIAL`` names, on torch 2.12.1 and a CPU, with imports of
mmcv, mmseg and mmdet stubbed: small archs, those of ``SMALL``, in eval mode, filled by ``fill(net)`` in float32, run in
float64 on ``image(*shape)`` of ``SIZES``, saved as float32. ``tests/data/timm_names.json.xz`` holds names and shapes of
all published archs, of the official constructors on the meta device: classifiers, dense backbones where the repository
has one of other names, and FastViT's merged classifiers.
"""
import copy
import json
import lzma
import pickle
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.optim import build_optim_wrapper
from timm.models import focalnet, register_model
from timm.models.fastvit import RepConditionalPosEnc
from timm.optim import param_groups_layer_decay
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.analysis.complexity import count
from mmlk.backbones.timm_backbone import TimmBackbone
from mmlk.deploy import fused, optimize
from mmlk.ops import DepthwiseConv2d
from mmlk.reparam import MergeableBranches, merge
from mmlk.weights import WeightsError, load
from mmlk.weights.layouts import WeightsLayout, fit
from tests.utils import assert_onnx_equals, fill, image, relative_error, values_of

DATA = Path(__file__).resolve().parent.parent / 'data'
SIZES = [(1, 3, 64, 32), (2, 3, 43, 75)]
LARGE = dict(large_kernel={})


@register_model
def focalnet_mmlk_small(pretrained=False, **kwargs):
    """FocalNet's archs in timm do not take other depths."""
    small = dict(depths=(1, 1, 2, 1), embed_dim=8, focal_levels=(3, 3, 3, 3), focal_windows=(9, 9, 9, 9))
    return focalnet._create_focalnet('focalnet_tiny_lrf', pretrained, **{**small, **kwargs})


FASTVIT = dict(layers=(1, 1, 2, 1), embed_dims=(8, 16, 32, 64), mlp_ratios=(2, 2, 2, 2))
SMALL = {
    'convnext': dict(model_name='convnext_tiny.dinov3_lvd1689m',
                     model_args=dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), **LARGE),
    'fastvit': dict(model_name='fastvit_t8', model_args=FASTVIT, dense='segmentation', **LARGE),
    'fastvit_sa': dict(model_name='fastvit_sa12', model_args=dict(
        FASTVIT, pos_embs=(None, None, None, partial(RepConditionalPosEnc, spatial_shape=(7, 7)))), **LARGE),
    'focalnet': dict(model_name='focalnet_mmlk_small', dense='segmentation', **LARGE),
    'inception_next': dict(model_name='inception_next_tiny',
                           model_args=dict(depths=(1, 1, 2, 1), dims=(16, 24, 32, 48)), **LARGE),
    'rdnet': dict(model_name='rdnet_tiny', dense='detection', model_args=dict(
        num_init_features=16, growth_rates=(8, 8, 16, 16, 16, 16, 24), num_blocks_list=(2, 1, 1, 2, 1, 1, 1)), **LARGE),
    'repvit': dict(model_name='repvit_m1_1', dense='segmentation',
                   model_args=dict(embed_dim=(16, 24, 32, 48), depth=(2, 1, 2, 1))),
    'starnet': dict(model_name='starnet_s1', model_args=dict(base_dim=8, depths=(1, 1, 2, 1)), **LARGE),
}
SMALL['rdnet_segmentation'] = {**SMALL['rdnet'], 'dense': None}
SMALL['repvit_detection'] = {**SMALL['repvit'], 'dense': None}
FAMILIES = sorted(set(SMALL) - {'rdnet_segmentation', 'repvit_detection'})
BRANCHED = ['fastvit', 'fastvit_sa', 'repvit']


def build(family, **changes):
    return TimmBackbone(**copy.deepcopy({**SMALL[family], **changes}))


@lru_cache(maxsize=None)
def fixture():
    return np.load(DATA / 'timm_families.npz')


@lru_cache(maxsize=None)
def names():
    return json.loads(lzma.decompress((DATA / 'timm_names.json.xz').read_bytes()))


def official(family):
    """The state dict of the official code, filled as its maps in the fixture were."""
    shapes = json.loads(lzma.decompress(fixture()[f'{family}.names'].tobytes()))
    return {name: torch.zeros(shape, dtype=torch.long) if name.endswith('num_batches_tracked')
            else values_of(name, tuple(shape)).float() for name, shape in shapes.items()}


def assert_maps(net, family, sizes, tolerance=1e-5):
    with torch.no_grad():
        for number, size in enumerate(sizes):
            maps = net.eval()(image(*size))
            assert len(maps) == 4
            for i, x in enumerate(maps):
                assert relative_error(x, torch.from_numpy(fixture()[f'{family}.{number}.{i}'])) < tolerance, (size, i)


@pytest.mark.parametrize('family', sorted(SMALL))
def test_official_files_load_completely_and_give_the_official_maps(family, tmp_path):
    net, state = build(family), official(family)
    torch.save(dict(state_dict={f'backbone.{name}': value for name, value in state.items()}), tmp_path / 'model.pth')
    report = load(net, tmp_path / 'model.pth')
    assert report.complete and not report.left
    # the classifier, its norm, and DINOv3's
    assert all(name.startswith(('norm.', 'head.', 'final_conv.')) for name in report.unexpected)
    sizes = SIZES[1:] if family in ('fastvit_sa', 'repvit_detection') else SIZES[:1] if '_seg' in family else SIZES
    assert_maps(net, family, sizes)


@pytest.mark.parametrize('arch', sorted(json.loads(lzma.decompress((DATA / 'timm_names.json.xz').read_bytes()))))
def test_official_names_are_those_of_the_network_one_to_one(arch):
    model, _, form = arch.partition(' ')
    focal = dict(model_args=dict(focal_windows=(9, 9, 9, 9)), dense='segmentation') if 'focalnet' in arch else {}
    with torch.device('meta'):
        net = TimmBackbone(model, merged=form == 'merged', **{
            **focal, **({'dense': form} if form in ('segmentation', 'detection') else {})})
        file = {name: torch.empty(shape) for name, shape in names()[arch].items()}
    own = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape)
             for name, value in fit(WeightsLayout(file), list(own), net.translated).tensors.items()}
    assert {name: shape for name, shape in found.items() if name in own} == own
    assert all(net.leaves_out(name) for name in set(found) - set(own))
    assert len(found) == len([name for name in file if not name.startswith('norms.')])
    buffers = ('running_mean', 'running_var', 'num_batches_tracked')
    parameters = sum(np.prod(found[name]) for name in own if not name.endswith(buffers))
    assert parameters == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize('family', ['focalnet', 'rdnet', 'fastvit'])
def test_norms_of_the_official_maps_are_not_lost(family, tmp_path):
    """A file with norms on its maps into a backbone without them, and one that lacks some of them."""
    torch.save(official(family), tmp_path / 'model.pth')
    count = 16 if family == 'fastvit' else 8
    with pytest.raises(WeightsError, match=f'has {count} tensors for which TimmBackbone has no place'):
        load(build(family, dense=None), tmp_path / 'model.pth')
    first = ('norm0.', 'norm_modules.0.')
    torch.save({name: value for name, value in official(family).items() if not name.startswith(first)},
               tmp_path / 'less.pth')
    with pytest.raises(WeightsError, match='were not filled'):
        load(build(family), tmp_path / 'less.pth')
    some = build(family, out_indices=(3, 1))
    report = load(some, tmp_path / 'model.pth')
    assert report.complete and list(some.out_norms) == ['1', '3']
    with torch.no_grad():
        maps = some.eval()(image(*SIZES[0]))
    for i, x in zip((3, 1), maps):
        assert relative_error(x, torch.from_numpy(fixture()[f'{family}.0.{i}'])) < 1e-5


def test_a_classifier_fills_all_but_the_norms_of_maps(tmp_path):
    donor = fill(build('focalnet', dense=None))
    torch.save(donor.state_dict(), tmp_path / 'classifier.pth')
    net = build('focalnet')
    report = load(net, tmp_path / 'classifier.pth')
    assert report.complete and report.left == [name for name in net.state_dict() if name.startswith('out_norms.')]


def test_smaller_focal_kernels_are_padded_with_zeros(tmp_path):
    small = build('focalnet', model_args=dict(focal_windows=(3, 3, 3, 3)), dense=None)
    torch.save(fill(small).state_dict(), tmp_path / 'small.pth')
    net = build('focalnet')
    report = load(net, tmp_path / 'small.pth')
    assert report.complete and len(report.resized) == 3 * 5
    name = 'layers.2.blocks.1.modulation.focal_layers.1.0.weight'
    kernel, theirs = net.state_dict()[name], small.state_dict()[name]
    assert kernel.shape[2:] == (11, 11) and theirs.shape[2:] == (5, 5)
    assert torch.equal(kernel[..., 3:8, 3:8], theirs) and kernel.count_nonzero() == theirs.count_nonzero()
    with pytest.raises(WeightsError, match='were not filled'):
        load(build('focalnet', model_args=dict(focal_windows=(4, 4, 4, 4)), large_kernel=None), tmp_path / 'small.pth')


@pytest.mark.parametrize('family', BRANCHED)
@pytest.mark.parametrize('large_kernel', [None, dict(min_kernel=3)])
def test_branches_merge(family, large_kernel, tmp_path):
    net = fill(build(family, large_kernel=large_kernel)).eval()
    branches = [m for m in net.modules() if isinstance(m, MergeableBranches)]
    merged = merge(net)
    assert branches and not net.merged and merged.merged
    built = build(family, large_kernel=large_kernel, merged=True).eval()
    torch.save(merged.state_dict(), tmp_path / 'merged.pth')
    assert load(built, tmp_path / 'merged.pth').complete
    x = image(*SIZES[1])
    with torch.no_grad():
        expected = net(x)
        for other in (merged, built, pickle.loads(pickle.dumps(merged))):
            for a, b in zip(other(x), expected):
                assert relative_error(a, b) < 2e-6
    assert sum(isinstance(m, _BatchNorm) for m in merged.modules()) < sum(
        isinstance(m, _BatchNorm) for m in net.modules()) - len(branches)
    assert (sum(isinstance(m, DepthwiseConv2d) for m in merged.modules()) > 0) == (
        large_kernel is not None)
    with pytest.raises(WeightsError, match='were not filled'):
        load(build(family), tmp_path / 'merged.pth')


@pytest.mark.parametrize('family', BRANCHED)
def test_merged_branches_are_what_timm_makes_of_them(family):
    net = fill(build(family, large_kernel=None, dense=None)).eval()
    donor = timm.create_model(SMALL[family]['model_name'], num_classes=0, **SMALL[family]['model_args']).eval()
    donor.load_state_dict(net.state_dict(), strict=False)
    theirs = timm.utils.reparameterize_model(donor)
    merged = merge(net)
    x = image(*SIZES[0])
    with torch.no_grad():
        for a, b in zip(merged(x), theirs.forward_intermediates(x, intermediates_only=True)):
            assert relative_error(a, b) < 1e-5
    kernels = dict(theirs.named_modules())
    for name, module in merged.model.named_modules():
        if isinstance(module, MergeableBranches):
            conv = kernels[name] if family == 'repvit' else kernels[f'{name}.reparam_conv']
            assert relative_error(module.reparam_conv.weight, conv.weight) < 1e-5
            assert relative_error(module.reparam_conv.bias, conv.bias) < 1e-5


def test_a_merged_official_file_fills_the_merged_form(tmp_path):
    merged = fill(build('fastvit_sa', merged=True))
    back = {'stem.': 'patch_embed.', 'stages.3.pos_emb.': 'network.6.', 'stages.3.blocks.': 'network.7.'}
    for i in range(3):
        back.update({f'stages.{i}.blocks.': f'network.{2 * i}.',
                     f'stages.{i + 1}.downsample.proj.0.reparam_conv.': f'network.{2 * i + 1}.proj.0.lkb_reparam.',
                     f'stages.{i + 1}.downsample.proj.1.': f'network.{2 * i + 1}.proj.1.'})

    def renamed(name):
        start = next(start for start in back if name.startswith(start))
        return (back[start] + name[len(start):]).replace('.mlp.', '.convffn.').removesuffix('.gamma')

    torch.save({renamed(name): value for name, value in merged.state_dict().items()}, tmp_path / 'merged.pth')
    net = build('fastvit_sa', merged=True)
    assert load(net, tmp_path / 'merged.pth').complete
    assert all(torch.equal(value, merged.state_dict()[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('merged', [False, True])
def test_depths_and_decay_are_those_of_timm(family, merged):
    if merged and family not in BRANCHED:
        pytest.skip('nothing to merge')
    net = build(family, merged=merged)
    rate, decay = 0.5, 0.05
    wrapper = build_optim_wrapper(net, dict(
        type='OptimWrapper', constructor='mmlk.LayerDecayOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=1.0, weight_decay=decay), paramwise_cfg=dict(decay_rate=rate)))
    ours = {id(p): (group['lr'], group['weight_decay'])
            for group in wrapper.optimizer.param_groups for p in group['params']}
    assert len(ours) == len(list(net.parameters()))
    assert {net.stage_id(name) for name, _ in net.named_parameters()} == set(range(5))
    for name, parameter in net.out_norms.named_parameters(prefix='out_norms'):
        assert ours.pop(id(parameter)) == (1.0, 0)
        assert net.stage_id(name) == int(name.split('.')[1]) + 1 and net.layer_id(name) == net.num_layers + 1
    if merged:  # as deep as the branches were
        training = build(family)
        for name, _ in net.model.named_parameters():
            block = name.partition('.reparam_conv.')[0] if '.reparam_conv.' in name else name
            assert {net.layer_id(f'model.{name}')} == {
                training.layer_id(f'model.{key}') for key, _ in training.model.named_parameters()
                if key == block or key.startswith(f'{block}.')}, name
        return
    groups = param_groups_layer_decay(net.model, decay, layer_decay=rate)
    assert ours == {id(p): (pytest.approx(rate * group['lr_scale']), group['weight_decay'])
                    for group in groups for p in group['params']}


@pytest.mark.parametrize('family', FAMILIES)
def test_frozen_stages_and_one_step_back(family):
    """Everything learns, and what is frozen does not, norms of maps included."""
    net = fill(build(family, frozen_stages=2, norm_eval=False)).train()
    sum((x**2).sum() for x in net(image(2, 3, 64, 64))).backward()
    for name, p in net.named_parameters():
        assert p.requires_grad is (net.stage_id(name) > 2), name
        assert (p.grad is not None and bool(p.grad.abs().sum() > 0)) is p.requires_grad, name
    frozen = {name for name, m in net.named_modules() if isinstance(m, (_BatchNorm, nn.LayerNorm, nn.GroupNorm))
              and net.stage_id(f'{name}.weight') <= 2}
    assert frozen and not any(m.training for name, m in net.named_modules() if name in frozen)


def test_checkpointing_of_late_maps_counts_a_batch_once():
    x = image(2, 3, 64, 64)
    plain, saving = (fill(build('repvit', with_cp=with_cp)).train() for with_cp in (False, True))
    for net in (plain, saving):
        sum((m**2).mean() for m in net(x)).backward()
    for (name, a), b in zip(saving.named_parameters(), plain.parameters()):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(saving.named_buffers(), plain.named_buffers()):
        torch.testing.assert_close(a, b[1], rtol=0, atol=0, msg=name)


@pytest.mark.parametrize('args, problem', [
    (dict(model_name='resnet18', dense='segmentation'), "dense='segmentation' is for these models of timm: .*ResNet"),
    (dict(model_name='rdnet_tiny', dense='segmentation'), 'all others return the maps of timm, got RDNet'),
    (dict(model_name='focalnet_tiny_lrf', dense='panoptic'), "dense='panoptic' is for these"),
    (dict(model_name='repvit_m0_9', dense='segmentation', out_indices=(0, 2)), 'out_indices must have the last stage'),
])
def test_dense_forms_that_there_are_not(args, problem):
    with torch.device('meta'), pytest.raises(ValueError, match=f'TimmBackbone: .*{problem}'):
        TimmBackbone(**args)


@pytest.mark.parametrize('name, licence, end', [
    ('convnextv2_atto.fcmae_ft_in1k', 'cc-by-nc-4.0', 'does not allow commercial use'),
    ('fastvit_t8.apple_in1k', 'fastvit-license', "is the publisher's own: read its terms before you use them"),
    ('repvit_m0_9.dist_300e_in1k', None, None)])
def test_the_licence_of_timms_weights_is_said_once(name, licence, end, monkeypatch):
    said, real = [], timm.create_model
    monkeypatch.setattr('mmengine.logging.print_log', lambda message, **_: said.append(message))
    monkeypatch.setattr(timm, 'create_model', lambda *args, pretrained=False, **kwargs: real(*args, **kwargs))
    from mmlk._licences import tell_licence
    tell_licence.cache_clear()
    for _ in range(2):
        TimmBackbone(name, pretrained=True).init_weights()
    told = [line for line in said if 'licence' in line]
    assert told == ([f'{name}: the licence of these weights, {licence}, {end}'] if licence else [])


# multiply-adds (G) at 224x224 with the classifier that the repositories' READMEs give, merged. Of StarNet-S4, 1.075 is
# given; the official constructor's own layers, those of the test above, come to 1.050.
PUBLISHED = {'rdnet_tiny': 5.0, 'rdnet_small': 8.7, 'rdnet_base': 15.4, 'rdnet_large': 34.7,
             'focalnet_tiny_srf': 4.4, 'focalnet_tiny_lrf': 4.5, 'focalnet_base_lrf': 15.4,
             'repvit_m0_9': 0.8, 'repvit_m1_1': 1.3, 'repvit_m1_5': 2.3, 'repvit_m2_3': 4.5,
             'inception_next_tiny': 4.2, 'inception_next_base': 14.9,
             'starnet_s1': 0.425, 'starnet_s2': 0.547, 'starnet_s3': 0.757, 'starnet_s4': 1.050}


@pytest.mark.parametrize('model', PUBLISHED)
def test_published_multiply_adds(model):
    with torch.device('meta'):
        net = TimmBackbone(model, merged=True)
    width = net.out_channels[-1]
    head = 3 * width * (width + 1000) if 'inception' in model else 1000 * width
    ours, figure = (count(net, (224, 224)).macs + head) / 1e9, PUBLISHED[model]
    assert abs(ours - figure) <= max(0.01 * figure, 0.05 if figure > 0.7 and 'star' not in model else 0), ours


@pytest.mark.skipif(not fused.available(torch.float32), reason='no packed convolutions in this PyTorch')
@pytest.mark.parametrize('family', FAMILIES)
def test_the_optimized_network_computes_the_same(family):
    net = fill(build(family)).eval()
    fast = optimize(net, image(1, 3, 128, 128))
    assert fast.graph is not None and fast.optimization.fused['convolutions'] > 4, fast.optimization
    for size in ((1, 3, 128, 128), (2, 3, 160, 128), (1, 3, 131, 155)):
        with torch.no_grad():
            for a, b in zip(fast(image(*size)), net(image(*size))):
                assert relative_error(a, b) < 2e-5


@pytest.mark.parametrize('family', [
    name if name in ('focalnet', 'repvit') else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES])
def test_onnx_of_any_size(family, tmp_path):
    net = fill(build(family, merged=True)).eval()
    assert_onnx_equals(net, str(tmp_path / 'net.onnx'), image(2, 3, 96, 128), image(1, 3, 96, 160),
                       image(2, 3, 131, 100))
