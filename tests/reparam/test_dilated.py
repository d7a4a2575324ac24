import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d

from mmlk.ops import DepthwiseConv2d
from mmlk.reparam import merge
from mmlk.reparam.algebra import dilate_kernel, fold_linear
from mmlk.reparam.dilated import DILATED_BRANCHES, DilatedDepthwiseConv2d, DilatedReparamBlock
from tests.utils import fill, image, relative_error


@pytest.mark.parametrize('dilation', [1, 2, 5])
def test_dilated_kernel_is_the_same_map(dilation):
    kernel = image(4, 1, 3, 5).double()
    x = image(2, 4, 17, 24, seed=1).double()
    dense = dilate_kernel(kernel, dilation)
    assert dense.shape == (4, 1, 2 * dilation + 1, 4 * dilation + 1)
    assert relative_error(conv2d(x, dense, groups=4), conv2d(x, kernel, dilation=dilation, groups=4)) < 1e-14


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('affine', [True, False])
def test_fold_linear_equals_linear_then_bn(affine, bias):
    linear, bn = nn.Linear(5, 7, bias=bias), nn.BatchNorm1d(7, affine=affine)
    fill(nn.ModuleList([linear, bn]).double()).eval()
    x = image(3, 5).double()
    weight, offset = fold_linear(linear, bn)
    assert relative_error(x @ weight.T + offset, bn(linear(x))) < 1e-14


@pytest.mark.parametrize('kernel, dilation', [(3, 2), (9, 2), (3, 7)])
def test_dilated_convolution_gives_pytorchs_output_and_gradients(kernel, dilation):
    ours = fill(DilatedDepthwiseConv2d(6, kernel, dilation).double())
    assert isinstance(ours, nn.Conv2d) and ours.dilation == (dilation, dilation)
    x = image(2, 6, 11, 14).double().requires_grad_()
    grads = []
    for run in (ours, lambda x: nn.Conv2d.forward(ours, x)):
        out = run(x)
        grads.append((out, *torch.autograd.grad((out**3).sum(), (x, ours.weight))))
    for actual, expected in zip(*grads):
        assert relative_error(actual, expected) < 1e-12
    with torch.no_grad():
        assert relative_error(ours(x), grads[0][0]) < 1e-12


def test_exported_graphs_hold_one_plain_dilated_convolution():
    program = torch.export.export(DilatedDepthwiseConv2d(4, 3, 5), (image(1, 4, 16, 16), ))
    calls = [node for node in program.graph.nodes if node.op == 'call_function']
    assert len(calls) == 1 and [5, 5] in calls[0].args


def test_branches_are_those_of_the_official_code():
    assert list(DILATED_BRANCHES) == [5, 7, 9, 11, 13, 15, 17]
    block = DilatedReparamBlock(4, 13, nn.BatchNorm2d)
    convs = {name: (conv.kernel_size[0], conv.dilation[0]) for name, conv in block.named_children()
             if isinstance(conv, nn.Conv2d)}
    assert convs == {'lk_origin': (13, 1), 'dil_conv_k5_1': (5, 1), 'dil_conv_k7_2': (7, 2), 'dil_conv_k3_3': (3, 3),
                     'dil_conv_k3_4': (3, 4), 'dil_conv_k3_5': (3, 5)}
    for large, branches in DILATED_BRANCHES.items():
        assert all(dilation * (kernel - 1) + 1 <= large for kernel, dilation in branches)


@pytest.mark.parametrize('affine', [True, False])
@pytest.mark.parametrize('kernel_size', DILATED_BRANCHES)
def test_block_equals_its_merged_form(kernel_size, affine):
    block = fill(DilatedReparamBlock(8, kernel_size, lambda c: nn.BatchNorm2d(c, affine=affine)).double()).eval()
    x = image(2, 8, 15, 22).double()
    merged = merge(block)
    assert len(block.norms()) == 1 + len(DILATED_BRANCHES[kernel_size]) and merged.norms() == []
    assert merged.merged and not block.merged and isinstance(merged.lk_origin, DepthwiseConv2d)
    assert relative_error(merged(x), block(x)) < 1e-13
    built = DilatedReparamBlock(8, kernel_size, nn.BatchNorm2d, merged=True).double()
    built.load_state_dict(merge(merged).state_dict())
    assert relative_error(built(x), merged(x)) < 1e-13


def test_every_branch_matters():
    block = fill(DilatedReparamBlock(8, 13, nn.BatchNorm2d)).eval()
    x = image(1, 8, 20, 20)
    with torch.no_grad():
        before = block(x)
        for conv, bn in block._dilated():
            kept = conv.weight.clone()
            conv.weight.zero_()
            assert relative_error(block(x), before) > 1e-2
            conv.weight.copy_(kept)
            bn.running_mean.add_(1)
            assert relative_error(block(x), before) > 1e-2
            bn.running_mean.sub_(1)


def test_a_kernel_without_branches_is_refused():
    with pytest.raises(ValueError, match=r'has a kernel of \[5, 7, 9, 11, 13, 15, 17\], got 31'):
        DilatedReparamBlock(4, 31, nn.BatchNorm2d)
