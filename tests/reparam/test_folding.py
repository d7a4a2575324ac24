"""BatchNorm folded by what the graph shows, against the network with its norms."""
import pytest
import torch
from torch import nn

from mmlk.reparam import ConvNorm
from mmlk.reparam.folding import fold_norms
from tests.utils import fill, image, relative_error


def norms(module):
    return sum(isinstance(m, nn.BatchNorm2d) for m in module.modules())


class Branching(nn.Module):
    """Convolutions and norms of which something else sees the map between."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.norm, self.last = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        between = self.conv(x)
        x = self.bn(between) + between
        after = self.norm(x)
        return self.last(after) + after


class Repeated(nn.Module):
    """A convolution that two norms follow, as heads shared between levels have it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bns = nn.Conv2d(4, 4, 1), nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(4)])

    def forward(self, x):
        return sum(bn(self.conv(x)) for bn in self.bns)


@pytest.mark.parametrize('make, folded', [
    (lambda: ConvNorm(nn.Conv2d(4, 6, 3, stride=2, bias=False), nn.BatchNorm2d(6), nn.ReLU()), 1),
    (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6)), 2),
    (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 2, stride=2, groups=2)), 1),
    (lambda: nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Conv2d(4, 4, 3, groups=4)), 1),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 3, padding='same', groups=4), nn.BatchNorm2d(4, affine=False)), 1),
    (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)), 0),
    (lambda: nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding='same')), 0),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4)), 0),
    (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), 0),
    (Branching, 0),
    (Repeated, 0),
])
def test_folds_what_meets_nowhere_else(make, folded):
    net, x = fill(make()).eval(), image(2, 4, 9, 10)
    with torch.no_grad():
        expected, before = net(x), norms(net)
        assert fold_norms(net.train(), x) == folded and norms(net) == before - folded and not net.training
        assert relative_error(net(x), expected) < 1e-6
    assert fold_norms(net, x) == 0


def test_frozen_weights_stay_frozen():
    net = fill(nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))).requires_grad_(False)
    fold_norms(net, image(1, 3, 4, 4))
    assert not any(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.filterwarnings('ignore:.*weight_norm.*is deprecated')
@pytest.mark.filterwarnings('ignore:The tensor attribute')
@pytest.mark.parametrize('compute, layer', [
    (nn.utils.weight_norm, 0), (nn.utils.weight_norm, 1), (nn.utils.spectral_norm, 0),
    (nn.utils.parametrizations.weight_norm, 0), (nn.utils.parametrizations.weight_norm, 1),
    (nn.utils.parametrizations.spectral_norm, 0)])
def test_computed_weights_are_folded_as_they_are_now_or_left(compute, layer):
    net, x = nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), image(2, 4, 9, 10)
    compute(net[layer])
    fill(net).eval()
    with torch.no_grad():
        net(x)
        for parameter in net.parameters():
            parameter += 0.5 * image(*parameter.shape, seed=1)
        expected = net(x)
        for parameter in net.parameters():
            parameter -= 0.1
        net(x)
        for parameter in net.parameters():
            parameter += 0.1
        fold_norms(net, x)
        assert relative_error(net(x), expected) < 1e-5
