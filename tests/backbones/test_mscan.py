"""MSCAN, against the official code and mmseg's.

``tests/data/mscan.npz``: ``mmseg/models/backbones/mscan.py`` of github.com/Visual-Attention-Network/SegNeXt
(Apache-2.0) at c87bcae, made as ``van.npz`` (``test_van.py``).
"""
import numpy as np
import pytest
import torch

from mmlk.analysis.complexity import count
from mmlk.backbones.mscan import ARCHS, MSCAN
from mmlk.deploy import fused, optimize
from mmlk.ops import DepthwiseConv2d
from mmlk.weights import load
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'MSCAN': dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), mlp_ratios=(4, 4, 2, 2)),
}

SMALL = dict(embed_dims=(16, 24, 32, 48), depths=(1, 2, 3, 1), mlp_ratios=(8, 8, 4, 4))
FORMS = {'T': ('T', (1, 3, 64, 96)), 'odd': (SMALL, (2, 3, 75, 107))}


@pytest.mark.parametrize('form', FORMS)
def test_equals_the_official_implementation(form, repo):
    fixture = np.load(repo / 'tests/data/mscan.npz')
    arch, shape = FORMS[form]
    net = fill(MSCAN(arch)).eval()
    assert sum(p.numel() for p in net.parameters()) == fixture[f'{form}.parameters']
    with torch.no_grad():
        maps = net(image(*shape))
    for i, feature in enumerate(maps):
        assert relative_error(feature, torch.from_numpy(fixture[f'{form}.{i}'])) < 1e-5


@pytest.mark.parametrize('arch', ['T', SMALL])
def test_equals_mmsegs_from_a_file_of_it(arch, tmp_path):
    from mmseg.models import MSCAN as Theirs
    theirs = fill(Theirs(norm_cfg=dict(type='BN'), **(ARCHS[arch] if arch == 'T' else arch)), 1).double().eval()
    torch.save(theirs.state_dict(), tmp_path / 'mmseg.pth')
    ours = MSCAN(arch).double().eval()
    report = load(ours, tmp_path / 'mmseg.pth')
    assert "mmseg's VAN or MSCAN" in report.format and not report.left and not report.unexpected
    x = image(1, 3, 75, 64).double()
    with torch.no_grad():
        for got, expected in zip(ours(x), theirs(x)):
            assert relative_error(got, expected) < 1e-10


# parameters of the official encoder without a head; in the paper's table 3, with one decimal and a head of 1000 classes
@pytest.mark.parametrize('arch, encoder, classifier', [
    ('T', 3_903_584, 4.2), ('S', 13_450_176, 14.0), ('B', 26_277_824, 26.8), ('L', 44_636_864, 45.2)])
def test_published_counts(arch, encoder, classifier):
    with torch.device('meta'):
        counted = count(MSCAN(arch), (224, 224))
    assert counted.parameters == encoder
    assert (encoder + 1000 * (ARCHS[arch]['embed_dims'][-1] + 1)) / 1e6 == pytest.approx(classifier, abs=0.06)


def test_the_convolutions_of_the_attention():
    with torch.device('meta'):
        net = MSCAN('B')
    for stage, channels in enumerate(ARCHS['B']['embed_dims'], 1):
        unit = net._modules[f'block{stage}'][0].attn.spatial_gating_unit
        convs = dict(unit.named_children())
        assert convs.pop('conv3').kernel_size == (1, 1)
        assert {name: conv.kernel_size for name, conv in convs.items()} == dict(
            conv0=(5, 5), conv0_1=(1, 7), conv0_2=(7, 1), conv1_1=(1, 11), conv1_2=(11, 1), conv2_1=(1, 21),
            conv2_2=(21, 1))
        assert all(type(conv) is DepthwiseConv2d and conv.groups == channels for conv in convs.values())


@pytest.mark.skipif(not fused.available(torch.float32), reason='no packed convolutions in this PyTorch')
def test_optimized_stripes_are_the_operators():
    fast = optimize(fill(MSCAN(TINY['MSCAN'])).eval(), image(1, 3, 64, 64))
    assert fast.optimization.step == 1 and fast.optimization.fused['depthwise convolutions'] == 6 * 5  # of five blocks


@pytest.mark.parametrize('arch, problem', [
    ('B0', "unknown arch 'B0' of MSCAN; there are T, S, B, L, or pass a dict"),
    (dict(embed_dims=(16, ), depths=(1, )), 'arch of MSCAN lacks mlp_ratios'),
    (dict(SMALL, embed_dims=(1, 24, 32, 48)), r'at least 2, half of which the stem has first, got \(1, 24, 32, 48\)'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        MSCAN(arch)
