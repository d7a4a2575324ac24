import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from mmlk.backbones import RepLKNet
from mmlk.reparam import ReparamLargeKernel, merge
from mmlk.reparam.algebra import fold_bn, pad_kernel
from tests.utils import fill, image, relative_error

TINY = dict(large_kernel_sizes=(31, 29, 27, 13), layers=(1, 1, 2, 1), channels=(8, 16, 32, 64), small_kernel=5)


class Detector(nn.Module):
    """A stand-in for a whole model: a backbone under something else."""

    def __init__(self):
        super().__init__()
        self.backbone = RepLKNet(TINY)
        self.head = nn.Sequential(nn.Conv2d(64, 5, 1), nn.BatchNorm2d(5))

    def forward(self, x):
        return self.head(self.backbone(x)[-1])


def test_fold_bn_equals_conv_then_bn():
    conv = nn.Conv2d(3, 6, 5, padding=2)
    bn = nn.BatchNorm2d(6)
    fill(nn.ModuleList([conv, bn])).eval()
    x = image(2, 3, 9, 11)
    kernel, bias = fold_bn(conv, bn)
    folded = torch.nn.functional.conv2d(x.double(), kernel, bias, padding=2)
    assert relative_error(bn(conv(x)), folded) < 1e-6


def test_pad_kernel_keeps_the_map_and_refuses_what_has_no_centre():
    kernel = torch.randn(4, 1, 3, 5)
    x = image(1, 4, 12, 12)
    small = torch.nn.functional.conv2d(x, kernel, padding=(1, 2), groups=4)
    large = torch.nn.functional.conv2d(x, pad_kernel(kernel, (9, 7)), padding=(4, 3), groups=4)
    torch.testing.assert_close(small, large)
    for size in ((1, 5), (4, 5)):
        with pytest.raises(ValueError, match='cannot centre a 3x5 kernel'):
            pad_kernel(kernel, size)


@pytest.mark.parametrize('small_kernel', [5, None])
@pytest.mark.parametrize('affine', [True, False])
def test_block_equals_its_merged_form(small_kernel, affine):
    block = fill(ReparamLargeKernel(8, 13, small_kernel, lambda c: nn.BatchNorm2d(c, affine=affine)))
    x = image(2, 8, 15, 18)
    expected = block.eval()(x)
    merged = merge(block)
    assert isinstance(merged.lkb_reparam, nn.Conv2d) and not block.merged
    assert relative_error(merged(x), expected) < 2e-6


def test_whole_31b_features_equal_to_1e_4():
    net = fill(RepLKNet('31B')).eval()
    x = image(1, 3, 96, 128)
    with torch.no_grad():
        expected = net(x)
        merged = merge(net)
        actual = merged(x)
    largest = max((a - e).abs().max().item() for a, e in zip(actual, expected))
    assert min(e.abs().max() for e in expected) > 0.5, 'features too small for an absolute bound to mean anything'
    assert largest < 1e-4, largest
    built = RepLKNet('31B', merged=True)
    built.load_state_dict(merged.state_dict())
    built.eval()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(built(x), actual))


def test_whole_model_mode_idempotence_and_inplace():
    model = fill(Detector()).train()
    x = image(1, 3, 64, 48)
    merged = merge(model)
    assert model.training and not model.backbone.merged, 'the original was touched'
    assert not any(m.training for m in merged.modules()) and merged.backbone.merged
    assert relative_error(merged(x), model.eval()(x)) < 2e-6
    again = merge(merged)
    assert list(again.state_dict()) == list(merged.state_dict())
    assert torch.equal(again(x), merged(x))
    assert merge(model, inplace=True) is model and model.backbone.merged


def test_frozen_branches_stay_frozen_and_dtype_stays():
    net = RepLKNet(TINY, frozen_stages=1).double()
    merged = merge(net)
    assert not merged.stages[0].blocks[0].large_kernel.lkb_reparam.weight.requires_grad
    assert merged.stages[1].blocks[0].large_kernel.lkb_reparam.weight.requires_grad
    assert merged.stages[1].blocks[0].large_kernel.lkb_reparam.bias.dtype == torch.float64


def test_a_norm_that_cannot_be_folded_is_refused_before_anything_changes():
    net = RepLKNet(TINY, norm_cfg=dict(type='GN', num_groups=2))
    keys = list(net.state_dict())
    with pytest.raises(ValueError, match="cannot merge 'stages.0.blocks.0.large_kernel': GroupNorm"):
        merge(net, inplace=True)
    assert list(net.state_dict()) == keys


def parametrized(conv, kind):
    """The convolution with a weight that something computes."""
    if kind == 'pruned':
        return prune.random_unstructured(conv, 'weight', 0.5)
    old = dict(weight_norm=nn.utils.weight_norm, spectral_norm=nn.utils.spectral_norm)
    new = dict(parametrized_weight_norm=parametrizations.weight_norm,
               parametrized_spectral_norm=parametrizations.spectral_norm, orthogonal=parametrizations.orthogonal)
    return {**old, **new}[kind](conv)


@pytest.mark.filterwarnings('ignore:.*weight_norm.*is deprecated')
@pytest.mark.parametrize('inplace', [True, False])
@pytest.mark.parametrize('kind', ['weight_norm', 'spectral_norm', 'pruned', 'parametrized_weight_norm',
                                  'parametrized_spectral_norm', 'orthogonal'])
def test_computed_weights_are_folded_as_they_are_now(kind, inplace):
    """After a step of training and after loading, when the last forward pass was of other weights."""
    block = fill(ReparamLargeKernel(6, 7, 3, nn.BatchNorm2d))
    for branch in (block.lkb_origin, block.small_conv):
        parametrized(branch.conv, kind)
    x = image(2, 6, 11, 12)
    block.train()(x).square().mean().backward()
    for parameter in block.parameters():
        parameter.data += 0.5 * image(*parameter.shape, seed=1)
    state = {name: value.clone() for name, value in block.state_dict().items()}
    merged = merge(block, inplace=inplace)
    expected = fill(ReparamLargeKernel(6, 7, 3, nn.BatchNorm2d))
    for branch in (expected.lkb_origin, expected.small_conv):
        parametrized(branch.conv, kind)
    expected.load_state_dict(state)
    with torch.no_grad():
        assert relative_error(merged(x), expected.eval()(x)) < 2e-6
    assert merged.lkb_reparam.weight.requires_grad and merged.lkb_reparam.weight.is_leaf
    assert not list(merged.lkb_reparam.buffers()) and not merged.lkb_reparam._forward_pre_hooks


@pytest.mark.filterwarnings('ignore:.*weight_norm.*is deprecated')
def test_computed_weights_of_frozen_branches_stay_frozen():
    block = ReparamLargeKernel(6, 7, 3, nn.BatchNorm2d)
    for branch in (block.lkb_origin, block.small_conv):
        nn.utils.weight_norm(branch.conv)
    assert not merge(block.requires_grad_(False)).lkb_reparam.weight.requires_grad
