import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from mmlk.backbones.repvgg import RepVGGBlock, SEBlock
from mmlk.reparam import merge
from mmlk.reparam.algebra import fold_bn, fold_identity, pad_kernel
from tests.utils import fill, image, relative_error


@pytest.mark.parametrize('groups', [1, 2, 4, 8])
@pytest.mark.parametrize('affine', [True, False])
def test_fold_identity_equals_the_norm(groups, affine):
    bn = fill(nn.BatchNorm2d(8, affine=affine).double()).eval()
    x = image(2, 8, 9, 11).double()
    kernel, bias = fold_identity(bn, groups)
    assert kernel.shape == (8, 8 // groups, 1, 1)
    assert relative_error(conv2d(x, kernel, bias, groups=groups), bn(x)) < 1e-14
    assert relative_error(conv2d(x, pad_kernel(kernel, (3, 3)), bias, padding=1, groups=groups), bn(x)) < 1e-14


def test_fold_bn_takes_a_convolution_with_bias():
    conv, bn = nn.Conv2d(6, 4, 3, groups=2), nn.BatchNorm2d(4)
    fill(nn.ModuleList([conv, bn]).double()).eval()
    x = image(1, 6, 7, 8).double()
    assert relative_error(conv2d(x, *fold_bn(conv, bn), groups=2), bn(conv(x))) < 1e-14


@pytest.mark.parametrize('size', [(16, 16), (13, 18)])
@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('use_se', [True, False])
@pytest.mark.parametrize('stride, dilation, groups, identity', [
    (1, 1, 1, True), (1, 1, 4, True), (1, 2, 2, True), (2, 1, 1, False), (2, 1, 2, False), (1, 4, 1, False)])
def test_block_equals_its_merged_form(stride, dilation, groups, identity, use_se, affine, size):
    block = fill(RepVGGBlock(32, 32 if identity else 48, lambda c: nn.BatchNorm2d(c, affine=affine), stride, dilation,
                             groups, identity, use_se).double()).eval()
    x = image(2, 32, *size).double()
    merged = merge(block)
    assert len(block.norms()) == 2 + identity and merged.norms() == []
    assert {name for name, _ in merged.named_parameters() if not name.startswith('se.')} == {
        'rbr_reparam.weight', 'rbr_reparam.bias'}
    assert relative_error(merged(x), block(x)) < 1e-13


def test_drop_path_leaves_the_identity():
    block = fill(RepVGGBlock(8, 8, nn.BatchNorm2d, identity=True, drop_path=0.5)).train()
    x = image(64, 8, 5, 5)
    alone = block.rbr_identity(x).relu()
    dropped = [torch.equal(a, b) for a, b in zip(block(x), alone)]
    assert 16 < sum(dropped) < 48
    assert not any(torch.equal(a, b) for a, b in zip(block.eval()(x), block.rbr_identity(x).relu()))


def test_the_gate_is_one_number_per_channel_on_any_map():
    se = fill(SEBlock(32, 2).double())
    x = image(2, 32, 9, 40).double()
    assert torch.count_nonzero(x) == x.numel()
    gate = se(x) / x
    mean = x.sum((2, 3)) / (9 * 40)
    inner = (mean @ se.down.weight.flatten(1).T + se.down.bias).relu()
    expected = 1 / (1 + (-(inner @ se.up.weight.flatten(1).T + se.up.bias)).exp())
    assert relative_error(gate, expected[..., None, None].expand_as(gate)) < 1e-12
