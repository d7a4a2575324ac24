import pytest
import torch
from torch import nn

from mmlk.reparam import ReparamLargeKernel, merge
from mmlk.reparam.stripes import StripedLargeKernel
from tests.utils import fill, image, relative_error


def block(kernel_size=13, small_kernel=5, merged=False):
    return fill(StripedLargeKernel(8, kernel_size, small_kernel, nn.BatchNorm2d, merged)).double().eval()


@pytest.mark.parametrize('small_kernel, norms', [(5, 3), (1, 3), (13, 2)])
@pytest.mark.parametrize('size', [(15, 18), (4, 31)])
def test_stripes_and_dense_kernel_equal_the_branches(small_kernel, norms, size):
    branches = block(small_kernel=small_kernel)
    assert len(branches.norms()) == norms
    stripes, dense = merge(branches), merge(branches, dense=True)
    assert stripes.norms() == dense.norms() == [] and stripes.merged and dense.merged and not branches.merged
    assert {name: tuple(p.shape[2:]) for name, p in stripes.named_parameters() if p.dim() == 4} == {
        'LoRA1_reparam.weight': (13, small_kernel), 'LoRA2_reparam.weight': (small_kernel, 13)}
    assert {name: tuple(p.shape) for name, p in dense.named_parameters()} == {
        'lkb_reparam.weight': (8, 1, 13, 13), 'lkb_reparam.bias': (8, )}
    x = image(2, 8, *size).double()
    for form in (stripes, dense):
        assert relative_error(form(x), branches(x)) < 1e-10


def test_each_form_is_an_end_of_merging():
    stripes = merge(block())
    dense = merge(stripes, dense=True)
    for again, form in ((merge(stripes), stripes), (merge(dense), dense), (merge(dense, dense=True), dense),
                        (merge(block(), dense=True), dense)):
        again, form = again.state_dict(), form.state_dict()
        assert list(again) == list(form) and all(torch.equal(again[name], form[name]) for name in form)


def test_each_form_loads_where_it_is_built():
    x = image(1, 8, 9, 20).double()
    dense_built = ReparamLargeKernel(8, 13, 5, nn.BatchNorm2d, merged=True).double()
    for form, built in ((merge(block()), block(merged=True)), (merge(block(), dense=True), dense_built)):
        built.load_state_dict(form.state_dict())
        assert relative_error(built(x), block()(x)) < 1e-10


def test_dense_says_nothing_to_other_blocks():
    other = fill(ReparamLargeKernel(8, 13, 5, nn.BatchNorm2d))
    for (name, a), b in zip(merge(other, dense=True).state_dict().items(), merge(other).state_dict().values()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize('dense', [False, True])
@pytest.mark.parametrize('trained', [False, True])
def test_merging_keeps_dtype_and_what_is_frozen(dense, trained):
    branches = fill(StripedLargeKernel(4, 7, 3, nn.BatchNorm2d)).to(torch.bfloat16).requires_grad_(trained)
    assert all(p.dtype == torch.bfloat16 and p.requires_grad is trained
               for p in merge(branches, dense=dense).parameters())
