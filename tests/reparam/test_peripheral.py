import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

from mmlk.reparam import ReparamLargeKernel, merge
from mmlk.reparam.peripheral import PeripheralLargeKernel, expand_shared, share_embedding, sharing_grid
from tests.utils import fill, image, relative_error


def block(kernel_size=13, central_kernel=3, small_kernel=5, merged=False, seed=0):
    return fill(PeripheralLargeKernel(4, kernel_size, central_kernel, small_kernel, nn.BatchNorm2d, merged),
                seed).double().eval()


def blocks(count=3, **kwargs):
    stage = nn.ModuleList(block(seed=seed, **kwargs) for seed in range(count))
    share_embedding(stage)
    return stage


def expanded_slowly(weight, grid):
    """Equation 1, tap by tap."""
    side = sum(grid)
    out = np.full((len(weight), side, side), np.nan)
    for a in range(len(grid)):
        for b in range(len(grid)):
            for x in range(side):
                for y in range(side):
                    if sum(grid[:a]) <= x < sum(grid[:a + 1]) and sum(grid[:b]) <= y < sum(grid[:b + 1]):
                        assert np.isnan(out[0, x, y]), 'a tap of two blocks'
                        out[:, x, y] = weight[:, 0, a, b]
    assert not np.isnan(out).any(), 'a tap of no block'
    return out


def convolved_slowly(x, kernel, embedding):
    """Equation 3, output by output and tap by tap."""
    radius = kernel.shape[-1] // 2
    images, _, height, width = x.shape
    out = np.zeros(x.shape)
    for n in range(images):
        for row in range(height):
            for column in range(width):
                for i in range(-radius, radius + 1):
                    for j in range(-radius, radius + 1):
                        inside = 0 <= row + i < height and 0 <= column + j < width
                        seen = x[n, :, row + i, column + j] if inside else 0
                        out[n, :, row, column] += (kernel[:, i + radius, j + radius]
                                                   * (seen + embedding[0, i + radius, j + radius]))
    return out


@pytest.mark.parametrize('half, central', [
    ((2, 1), 1),  # figure 1a
    ((7, 4, 2, 1, 1, 1), 5),  # figure 1b
    ((8, 4, 2, 1, 1, 1), 5),  # table 5
    ((11, 8, 4, 2, 1), 1), ((10, 8, 4, 2, 1, 1), 3), ((9, 8, 4, 2, 1, 1, 1), 5),  # table 6
    ((8, 8, 4, 2, 1, 1, 1, 1), 7),
])
def test_grids_that_the_paper_prints(half, central):
    grid = (*half, *half[-2::-1])
    assert sharing_grid(sum(grid), central) == grid


@pytest.mark.parametrize('kernel, central, half', [
    (49, 5, (8, 8, 4, 2, 1, 1, 1)), (47, 5, (15, 4, 2, 1, 1, 1)), (13, 5, (2, 2, 1, 1, 1)),
    (101, 7, (17, 16, 8, 4, 2, 1, 1, 1, 1)), (69, 7, (17, 8, 4, 2, 1, 1, 1, 1)), (67, 7, (16, 8, 4, 2, 1, 1, 1, 1)),
    (13, 7, (3, 1, 1, 1, 1)), (3, 5, (1, 1))])
def test_grids_that_it_does_not(kernel, central, half):
    assert sharing_grid(kernel, central) == (*half, *half[-2::-1])


@pytest.mark.parametrize('central', [1, 3, 5, 7, 9])
def test_grids_partition_symmetrically_and_never_shrink_outwards(central):
    for kernel in range(1, 152, 2):
        grid = sharing_grid(kernel, central)
        assert sum(grid) == kernel and len(grid) % 2 == 1 and grid == grid[::-1]
        outwards = grid[len(grid) // 2:]
        assert list(outwards) == sorted(outwards)
        own, shares = outwards[:min(kernel, central) // 2 + 1], outwards[min(kernel, central) // 2 + 1:]
        assert set(own) == {1}
        assert list(shares[:-1]) == [2**i for i in range(1, len(shares))]
        assert not shares or shares[-1] < 2**(len(shares) + 1), 'room for one share more'


@pytest.mark.parametrize('sizes', [(6, 3), (7, 4), (0, 1), (7, -1)])
def test_sizes_are_odd(sizes):
    with pytest.raises(ValueError, match='kernels must be odd and positive, got'):
        sharing_grid(*sizes)


@pytest.mark.parametrize('grid', [(2, 1, 2), (1, 1, 1), (1, ), (3, 2, 1, 1, 1, 2, 3), sharing_grid(31, 5)])
def test_expansion_equals_the_loop(grid):
    weight = image(3, 1, len(grid), len(grid)).double()
    assert np.array_equal(expand_shared(weight, grid).squeeze(1).numpy(), expanded_slowly(weight.numpy(), grid))


def test_gradient_of_a_weight_is_the_sum_over_its_block():
    grid = (4, 2, 1, 1, 1, 2, 4)
    weight = image(2, 1, 7, 7).double().requires_grad_()
    upstream = torch.arange(2 * 15 * 15).reshape(2, 1, 15, 15).double()
    expand_shared(weight, grid).backward(upstream)
    areas = np.add.reduceat(np.add.reduceat(upstream.numpy(), np.cumsum((0, *grid[:-1])), 2),
                            np.cumsum((0, *grid[:-1])), 3)
    assert np.array_equal(weight.grad.numpy(), areas)
    assert torch.autograd.gradcheck(lambda w: expand_shared(w, grid), weight)
    assert torch.autograd.gradgradcheck(lambda w: expand_shared(w, grid), weight)


@pytest.mark.parametrize('size', [(7, 10), (3, 1)])
@pytest.mark.parametrize('form', ['branches', 'merged'])
def test_equals_equation_3(form, size):
    ours = block(kernel_size=11, small_kernel=None)
    kernel = expanded_slowly(ours.weight.detach().numpy(), ours.grid)
    x = image(2, 4, *size).double()
    expected = convolved_slowly(x.numpy(), kernel, ours.position_embedding.detach().numpy())
    net = merge(ours) if form == 'merged' else ours
    assert relative_error(net(x), torch.from_numpy(expected)) < 1e-12


def test_the_embedding_is_a_bias_at_borders_too():
    with_it = block()
    without = copy.deepcopy(with_it)
    without.position_embedding.data.zero_()
    x = image(1, 4, 6, 9).double()
    added = (with_it(x) - without(x)).detach()
    assert added.abs().min() > 1e-4
    assert relative_error(added, added[:, :, :1, :1].expand_as(added)) < 1e-10


@pytest.mark.parametrize('small_kernel', [None, 3])
def test_gradients(small_kernel):
    net = block(kernel_size=9, central_kernel=3, small_kernel=small_kernel)
    names = [name for name, _ in net.named_parameters()]

    def forward(x, *parameters):
        return functional_call(net, dict(zip(names, parameters)), (x, ))

    inputs = (image(1, 4, 5, 6).double().requires_grad_(), *net.parameters())
    assert torch.autograd.gradcheck(forward, inputs)


def test_the_embedding_learns_in_training():
    net = block().train()
    net(image(2, 4, 9, 9).double()).pow(2).sum().backward()
    assert net.position_embedding.grad.norm() > 0.01 * net.weight.grad.norm()


@pytest.mark.parametrize('small_kernel', [None, 1, 5])
@pytest.mark.parametrize('kernel_size', [5, 31])
@pytest.mark.parametrize('size', [(15, 18), (4, 41)])
def test_merged_form_equals_the_branches(kernel_size, small_kernel, size):
    branches = block(kernel_size=kernel_size, small_kernel=small_kernel)
    merged = merge(branches)
    assert merged.merged and not branches.merged and merged.norms() == []
    assert len(branches.norms()) == (small_kernel is not None)
    assert {name: tuple(p.shape) for name, p in merged.named_parameters()} == {
        'lkb_reparam.weight': (4, 1, kernel_size, kernel_size), 'lkb_reparam.bias': (4, )}
    x = image(2, 4, *size).double()
    assert relative_error(merged(x), branches(x)) < 1e-10
    again = merge(merged).state_dict()
    assert all(torch.equal(again[name], value) for name, value in merged.state_dict().items())


def test_merged_form_loads_where_it_is_built():
    x = image(1, 4, 9, 20).double()
    for built in (block(merged=True), ReparamLargeKernel(4, 13, 5, nn.BatchNorm2d, merged=True).double()):
        built.load_state_dict(merge(block()).state_dict())
        assert relative_error(built(x), block()(x)) < 1e-10


@pytest.mark.parametrize('trained', [False, True])
def test_merging_keeps_dtype_and_what_is_frozen(trained):
    branches = block().to(torch.bfloat16).requires_grad_(trained)
    assert all(p.dtype == torch.bfloat16 and p.requires_grad is trained for p in merge(branches).parameters())


def test_a_group_has_one_embedding_and_all_learn_it():
    stage = blocks()
    assert [name for name, _ in stage.named_parameters() if 'embedding' in name] == ['0.position_embedding']
    assert sum('embedding' in name for name in stage.state_dict()) == 1
    x = image(1, 4, 8, 8).double()
    for net in stage:
        stage.zero_grad()
        net(x).sum().backward()
        assert stage[0].position_embedding.grad.norm() > 0


def test_a_copy_of_a_group_has_its_own_embedding():
    stage, x = blocks(), image(1, 4, 8, 8).double()
    copied = copy.deepcopy(stage)
    before = stage[2](x)
    copied[0].position_embedding.data.add_(1)
    assert torch.equal(stage[2](x), before) and relative_error(copied[2](x), before) > 1e-3


@pytest.mark.parametrize('part', ['all', 'first', 'last'])
def test_a_group_merges_as_a_whole(part):
    stage, x = blocks(), image(1, 4, 8, 8).double()
    expected = [net(x) for net in stage]
    merge({'all': stage, 'first': stage[0], 'last': stage[2]}[part], inplace=True)
    assert all(net.merged for net in stage)
    assert not any('embedding' in name for name, _ in stage.named_parameters())
    for net, out in zip(stage, expected):
        assert relative_error(net(x), out) < 1e-10


def test_merging_a_copy_of_one_leaves_the_group_alone():
    stage, x = blocks(), image(1, 4, 8, 8).double()
    assert relative_error(merge(stage[1])(x), stage[1](x)) < 1e-10
    assert not any(net.merged for net in stage)
