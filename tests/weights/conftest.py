import pytest
import torch
from torch import nn

from mmlk.backbones import RepLKNet
from tests.utils import fill

TINY = dict(large_kernel_sizes=(7, 7, 5, 5), layers=(1, 1, 2, 1), channels=(4, 8, 12, 16), small_kernel=3)


class Segmentor(nn.Module):
    """A whole model: a backbone under ``backbone.`` a head, and something named ``norm``."""

    def __init__(self, **backbone):
        super().__init__()
        self.backbone = RepLKNet(**{'arch': TINY, **backbone})
        self.decode_head = nn.Sequential(nn.Conv2d(16, 5, 1), nn.BatchNorm2d(5))
        self.norm = nn.BatchNorm2d(16)


def randomise(module, seed):
    fill(module, seed)
    for index, (name, buffer) in enumerate(module.named_buffers()):
        if name.endswith('num_batches_tracked'):
            buffer.fill_(100 * seed + index)
    return module


def snapshot(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def assert_same(got, expected, count=None):
    """Equal keys and, bit for bit, equal tensors."""
    assert got.keys() == expected.keys()
    assert count is None or len(got) == count
    for key, value in expected.items():
        assert torch.equal(got[key], value), key


@pytest.fixture
def trained():
    """A backbone whose every tensor, counters included, differs from that of a fresh one."""
    return randomise(RepLKNet(TINY), seed=1)


@pytest.fixture
def fresh():
    return randomise(RepLKNet(TINY), seed=2)
