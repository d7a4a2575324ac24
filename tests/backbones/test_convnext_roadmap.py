import re

import pytest
import torch
import torchvision
from torch import nn

from mmlk.analysis.complexity import count
from mmlk.backbones import ConvNeXt, ConvNeXtRoadmap
from mmlk.backbones.convnext_roadmap import ARCHS, STEPS, RoadmapBlock
from mmlk.layers import ChannelNorm
from tests.utils import fill, image, relative_error

# A small arch for the tests of every family, test_contract.py and others.
TINY = {
    'ConvNeXtRoadmap': dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), step='resnet'),
}

SMALL = dict(depths=(2, 1, 3, 1), dims=(8, 12, 16, 24))


def small(step, **kwargs):
    return ConvNeXtRoadmap(dict(SMALL, step=step, kernel_size=5), **kwargs)


def torchvisions(name):
    """Returns torchvision's name of a tensor of ours."""
    name = re.sub(r'^downsample_layers\.0\.(\d)', lambda found: ('conv1', 'bn1')[int(found[1])], name)
    name = re.sub(r'^stages\.(\d)\.', lambda found: f'layer{int(found[1]) + 1}.', name)
    return re.sub(r'\.norm(\d)\.', r'.bn\1.', name)


def test_the_road_begins_at_torchvisions_resnet50():
    theirs = fill(torchvision.models.resnet50()).eval()
    ours = ConvNeXtRoadmap('resnet50').eval()
    tensors = theirs.state_dict()
    ours.load_state_dict({name: tensors.pop(torchvisions(name)) for name in ours.state_dict()})
    assert set(tensors) == {'fc.weight', 'fc.bias'}
    for shape in (1, 3, 64, 96), (1, 3, 75, 107):
        x = image(*shape)
        with torch.no_grad():
            maps, out = ours(x), theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(x))))
            for i, feature in enumerate(maps):
                out = theirs.get_submodule(f'layer{i + 1}')(out)
                assert relative_error(feature, out) < 1e-5


def test_the_road_ends_at_convnext():
    ours, theirs = fill(ConvNeXtRoadmap('separate-downsampling')).eval(), fill(ConvNeXt('T')).eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for shape in (1, 3, 64, 32), (1, 3, 75, 107):
        with torch.no_grad():
            for feature, expected in zip(ours(image(*shape)), theirs(image(*shape))):
                assert torch.equal(feature, expected)
    assert ConvNeXtRoadmap('separate-downsampling').stages[0][0].gamma.eq(1e-6).all()


def multiply_adds(arch):
    """Of the classifier at 224 pixels, in G."""
    with torch.device('meta'):
        net = ConvNeXtRoadmap(arch)
        return (count(net, (224, 224)).macs + 1000 * net.out_channels[-1]) / 1e9


# Table 10, in the order of its rows, to the last digit, but for two: it has 4.46 for layer-norm and 4.49 for
# separate-downsampling. A norm has no multiply-adds, and table 11, of the larger road, has one number before and after
# layer-norm. ConvNeXt-T, whose official code is tested against, has 4.46.
@pytest.mark.parametrize('arch, published', list(zip(ARCHS, (
    4.09, 4.53, 4.42, 2.35, 5.27, 4.64, 4.07, 4.10, 4.15, 4.21, 4.29, 4.15, 4.15, 4.15, 4.15, 4.46), strict=True)))
def test_multiply_adds_are_the_published_ones(arch, published):
    assert round(multiply_adds(arch), 2) == published


# Table 11, the same road from ResNet-200 to ConvNeXt-B
@pytest.mark.parametrize('step, kernel, width, published', [
    ('resnet', 3, 84, 14.52), ('patchify', 3, 84, 14.38), ('depthwise', 3, 84, 7.23), ('depthwise', 3, 128, 16.76),
    ('inverted', 3, 128, 15.68), ('moved-up', 3, 128, 14.63), ('moved-up', 5, 128, 14.70), ('gelu', 7, 128, 14.81),
    ('moved-up', 9, 128, 14.95), ('moved-up', 11, 128, 15.13), ('layer-norm', 7, 128, 14.81),
    ('separate-downsampling', 7, 128, 15.35)])
def test_multiply_adds_of_the_larger_road(step, kernel, width, published):
    arch = dict(depths=(3, 3, 27, 3), dims=tuple(width * 2**i for i in range(4)), step=step, kernel_size=kernel)
    assert round(multiply_adds(arch), 2) == published


def first_blocks(step):
    with torch.device('meta'):
        stages = ConvNeXtRoadmap(step).stages
    return stages[0][0], stages[1][0]


def layers(block):
    """What a block has, by the names of its layers."""
    return {name: (m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.groups, m.bias is not None)
            if isinstance(m, nn.Conv2d) else type(m).__name__ for name, m in block.named_children()
            if name.startswith(('conv', 'norm'))}


def test_what_a_block_is_at_each_step():
    """Figure 3 of the paper, and sections 2.3 to 2.6."""
    norms = {f'norm{i}': 'BatchNorm2d' for i in (1, 2, 3)}
    same, strided = first_blocks('depthwise')
    assert layers(same) == dict(conv1=(64, 64, 1, 1, 1, False), conv2=(64, 64, 3, 1, 64, False),
                                conv3=(64, 256, 1, 1, 1, False), **norms)
    same, strided = first_blocks('inverted')  # (b)
    assert layers(same) == dict(conv1=(96, 384, 1, 1, 1, False), conv2=(384, 384, 3, 1, 384, False),
                                conv3=(384, 96, 1, 1, 1, False), **norms) and same.downsample is None
    assert layers(strided) == dict(conv1=(96, 768, 1, 1, 1, False), conv2=(768, 768, 3, 2, 768, False),
                                   conv3=(768, 192, 1, 1, 1, False), **norms)
    assert [type(m).__name__ for m in strided.downsample] == ['Conv2d', 'BatchNorm2d']
    same, strided = first_blocks('kernel-11')  # (c)
    assert layers(same) == dict(conv1=(96, 96, 11, 1, 96, False), conv2=(96, 384, 1, 1, 1, False),
                                conv3=(384, 96, 1, 1, 1, False), **norms)
    assert layers(strided)['conv1'] == (96, 96, 11, 2, 96, False)
    assert layers(strided)['conv2'] == (96, 768, 1, 1, 1, False)
    assert isinstance(first_blocks('kernel-7')[0].act, nn.ReLU) and isinstance(first_blocks('gelu')[0].act, nn.GELU)
    same, _ = first_blocks('fewer-norms')
    assert layers(same) == dict(conv1=(96, 96, 7, 1, 96, False), norm1='BatchNorm2d', conv2=(96, 384, 1, 1, 1, True),
                                conv3=(384, 96, 1, 1, 1, True))
    same, strided = first_blocks('layer-norm')
    assert isinstance(same.norm1, ChannelNorm) and isinstance(strided.downsample[1], ChannelNorm)


@pytest.mark.parametrize('step, activations', [('resnet', 3), ('gelu', 3), ('fewer-activations', 1), ('layer-norm', 1)])
def test_activations_of_a_block(step, activations):
    block = small(step).stages[0][1].eval()
    applied = []
    block.act.register_forward_hook(lambda module, args, out: applied.append(out.shape[1]))
    channels = block.conv1.in_channels
    with torch.no_grad():
        out = block(image(1, channels, 8, 8))
    assert len(applied) == activations
    if activations == 1:  # between the two pointwise layers, so that a sum may be negative
        assert applied == [block.conv2.out_channels] and out.min() < 0


def test_a_late_block_is_a_hand_written_one():
    block = fill(small('layer-norm').stages[1][0]).eval()
    x = image(1, block.conv1.in_channels, 9, 8)
    with torch.no_grad():
        out = block.norm1(nn.functional.conv2d(x, block.conv1.weight, None, 2, 2, 1, x.shape[1]))
        out = block.conv3(nn.functional.gelu(block.conv2(out))) + block.downsample(x)
        assert relative_error(block(x), out) < 1e-6


@pytest.mark.parametrize('step', STEPS)
def test_every_step_learns_everywhere_at_any_size(step):
    net = fill(small(step, out_indices=(0, 1, 2, 3)))
    maps = net(image(2, 3, 77, 99))
    sum((m**2).sum() for m in maps).backward()
    assert not [name for name, p in net.named_parameters() if not p.grad.abs().sum() > 0]
    assert [m.shape[1] for m in maps] == list(net.out_channels)
    sides = {'resnet': [20, 10, 5, 3], 'separate-downsampling': [19, 9, 4, 2]}.get(step, [19, 10, 5, 3])
    assert [m.shape[2] for m in maps] == sides
    assert net.layer_id('stages.2.2.conv1.weight' if step != STEPS[-1] else 'stages.2.2.dwconv.weight') == 3


def test_layer_scale_of_a_step():
    plain, scaled = (ConvNeXtRoadmap(dict(SMALL, step='gelu', layer_scale_init_value=v)) for v in (0, 1))
    scaled.load_state_dict({**scaled.state_dict(), **plain.state_dict()})
    x = image(1, 3, 64, 64)
    for a, b in zip(scaled(x), plain(x)):
        assert torch.equal(a, b)
    assert all(torch.equal(m.gamma, torch.ones(m.conv3.out_channels))
               for m in scaled.modules() if isinstance(m, RoadmapBlock))


@pytest.mark.parametrize('arch, problem', [
    ('resnet', "unknown arch 'resnet' of ConvNeXtRoadmap; there are resnet50, stage-ratio"),
    (dict(SMALL, step='mixup'), "step must be one of resnet, patchify, .* got 'mixup'"),
    (dict(SMALL, step=3), 'step must be one of'),
    (dict(SMALL, step='gelu', kernel_size=4), 'odd and positive, got 4'),
    (SMALL, 'lacks step'),
])
def test_wrong_archs_are_refused(arch, problem):
    with pytest.raises(ValueError, match=problem):
        ConvNeXtRoadmap(arch)
