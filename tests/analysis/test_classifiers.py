import numpy as np
import pytest
import timm
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmlk._licences import tell_licence
from mmlk.analysis import classifiers
from mmlk.analysis.classifiers import build_classifier, classifier_from_config, with_head
from mmlk.backbones import (
    ConvNeXt,
    GFNet,
    HorNet,
    MobileNetV2,
    MogaNet,
    ParCConvNeXt,
    ParCNet,
    RepLKNet,
    RepVGG,
    SLaK,
    UniRepLKNet,
    convnext,
    replknet,
)
from mmlk.datasets.images import open_image
from mmlk.reparam import merge
from mmlk.weights import WeightsError
from mmlk.weights.catalog import CATALOG, FAMILIES, Entry
from mmlk.weights.loading import _split_optional
from tests.utils import fill, image, relative_error

TINY = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
REPLKNET = dict(large_kernel_sizes=(31, 29, 27, 13), layers=(1, 1, 2, 1), channels=(8, 16, 24, 32), small_kernel=5)


def bn(channels):
    return nn.BatchNorm2d(channels)


def linear(channels):
    return nn.Linear(channels, 1000)


# By family: arch, side of the image, and the official head by its official names.
FORMS = {
    'RepLKNet': (RepLKNet, REPLKNET, 64, {'norm': bn(32), 'head': linear(32)}),
    'ConvNeXt': (ConvNeXt, TINY, 64, {'norm': nn.LayerNorm(32), 'head': linear(32)}),
    'SLaK': (SLaK, dict(TINY, kernel_size=(31, 29, 27, 13, 5), Decom=True), 64,
             {'norm': nn.LayerNorm(32), 'head': linear(32)}),
    'UniRepLKNet': (UniRepLKNet, dict(TINY, kernel_sizes=((3, ), (13, ), (17, 0), (7, ))), 64,
                    {'norm': nn.LayerNorm(32), 'head': linear(32)}),
    'HorNet': (HorNet, dict(depths=(1, 1, 2, 1), base_dim=8,
                            gnconv=tuple(dict(order=n, s=1 / 3) for n in (2, 3, 4, 5))), 64,
               {'norm': nn.LayerNorm(64), 'head': linear(64)}),
    'GFNet': (GFNet, dict(embed_dim=(8, 16, 24, 32), depth=(1, 1, 2, 1), img_size=64), 64,
              {'norm': nn.LayerNorm(32), 'head': linear(32)}),
    'MogaNet': (MogaNet, dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 2, 1), ffn_ratios=(8, 8, 4, 4)), 64,
                {'head': linear(32)}),
    'RepVGG': (RepVGG, dict(num_blocks=(2, 2, 2, 2), width_multiplier=(0.25, ) * 4), 64, {'linear': linear(128)}),
    'ParCConvNeXt': (ParCConvNeXt, dict(depths=(1, 1, 3, 3), dims=(8, 16, 24, 32), ParC_insert_locs=(1, 0, 2, 1),
                                        stages_rs=(16, 8, 4, 2), layer_scale_init_value=0), 64,
                     {'norm': nn.LayerNorm(32), 'head': linear(32)}),
    'ParCNet': (ParCNet, 'XS', 64, {'conv_1x1_exp.block.conv': nn.Conv2d(160, 640, 1, bias=False),
                                    'conv_1x1_exp.block.norm': bn(640), 'classifier.fc': linear(640),
                                    'residual.block.exp_1x1.block.conv': nn.Conv2d(128, 512, 1, bias=False)}),
}


def official_file(path, backbone, head):
    """A classifier's file with the values of ``fill``: without what only dense prediction has."""
    state = {**fill(backbone).state_dict(),
             **{f'{name}.{key}': value for name, module in head.items()
                for key, value in fill_named(name, module).state_dict().items()}}
    only_dense, _ = _split_optional(list(state), list(state), backbone.optional_weights)
    torch.save({'model': {name: value for name, value in state.items() if name not in only_dense}}, path)
    return str(path)


def fill_named(name, module):
    """``fill`` as it is under a name with dots."""
    holder = nn.Module()
    for part in reversed(name.split('.')):
        holder = nn.Module()
        holder.add_module(part, module)
        module = holder
    fill(holder)
    for part in name.split('.'):
        holder = holder.get_submodule(part)
    return holder


@pytest.mark.parametrize('family', FORMS)
def test_logits_are_those_of_the_official_classifier(family, tmp_path, repo):
    kind, arch, side, head = FORMS[family]
    path = official_file(tmp_path / 'classifier.pth', kind(arch), head)
    classifier = with_head(kind(arch), path)
    with np.load(repo / 'tests/data/classifiers.npz') as official, torch.no_grad():
        logits = classifier.network(image(2, 3, side, side))
        assert logits.shape == (2, 1000)
        assert relative_error(logits[:, ::8], torch.from_numpy(official[family])) < 1e-5


def test_logits_of_mobilenetv2_are_torchvisions(tmp_path):
    from torchvision.models import mobilenet_v2
    official = fill(mobilenet_v2()).eval()
    torch.save(official.state_dict(), tmp_path / 'classifier.pth')
    with torch.no_grad():
        x = image(2, 3, 64, 64)
        assert relative_error(with_head(MobileNetV2(), str(tmp_path / 'classifier.pth')).network(x), official(x)) < 1e-5


def test_files_of_other_toolboxes_and_norms_of_dense_prediction(tmp_path):
    model = fill(timm.create_model('convnext_atto', depths=TINY['depths'], dims=TINY['dims'], conv_mlp=False)).eval()
    torch.save(model.state_dict(), tmp_path / 'timm.pth')
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert relative_error(with_head(ConvNeXt(TINY), str(tmp_path / 'timm.pth')).network(x), expected) < 1e-5
        # an arch with a norm on each output, which a classifier's file lacks
        kind, arch, _, head = FORMS['RepLKNet']
        path = official_file(tmp_path / 'official.pth', kind(arch), head)
        plain = with_head(kind(arch), path).network(x)
        assert torch.equal(with_head(kind(dict(arch, norm_intermediate_features=True)), path).network(x), plain)


def test_a_config_gives_its_backbone(tmp_path):
    kind, arch, _, head = FORMS['RepLKNet']
    path = official_file(tmp_path / 'official.pth', kind(arch), head)
    backbone = dict(type='mmlk.RepLKNet', arch=arch, init_cfg=dict(type='mmlk.Pretrained', checkpoint='nowhere'))
    classifier = classifier_from_config(Config(dict(model=dict(type='X', backbone=backbone))), path)
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(classifier.network(x), with_head(kind(arch), path).network(x))
    with pytest.raises(ValueError, match='no backbone'):
        classifier_from_config(Config(dict(model=dict(type='X'))), path)
    with pytest.raises(ValueError, match='the backbone cannot be built.*Nothing'):
        classifier_from_config(Config(dict(model=dict(type='X', backbone=dict(type='Nothing')))), path)


def test_names_and_the_merged_form(tmp_path, monkeypatch):
    kind, arch, _, head = FORMS['RepLKNet']
    monkeypatch.setitem(replknet.ARCHS, 'tiny', arch)
    path = official_file(tmp_path / 'official.pth', kind(arch), head)
    state = torch.load(path)['model']
    body = merge(fill(kind(arch))).state_dict()
    torch.save({**body, **{key: value for key, value in state.items() if key.startswith(('norm', 'head'))}},
               tmp_path / 'merged.pth')
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        expected = with_head(kind(arch), path).network(x)
        assert torch.equal(build_classifier('RepLKNet-tiny', path).network(x), expected)
        merged = build_classifier('RepLKNet-tiny', str(tmp_path / 'merged.pth'))
        assert relative_error(merged.network(x), expected) < 1e-5


def test_a_classifier_of_the_catalogue_brings_weights_and_images(tmp_path, monkeypatch):
    kind, arch, _, head = FORMS['ConvNeXt']
    monkeypatch.setenv('MMLK_HOME', str(tmp_path))
    monkeypatch.setitem(convnext.ARCHS, 'tiny', arch)
    entry = Entry('convnext-tiny_in1k', 'tiny', 'http://0.0.0.0/', 'classifier', '', '96x96', (1, 2, 3), (4, 5, 6), '',
                  '', channels='BGR')
    monkeypatch.setitem(CATALOG, entry.name, entry)
    monkeypatch.setitem(FAMILIES, 'ConvNeXt', (entry, ))
    (tmp_path / 'weights').mkdir()
    official_file(tmp_path / 'weights' / f'{entry.name}.pth', kind(arch), head)
    classifier = build_classifier(entry.name)
    assert classifier.images == dict(size=96, mean=(1, 2, 3), std=(4, 5, 6), channels='BGR')
    x = image(1, 3, 96, 96)
    with torch.no_grad():
        pixels = x * torch.tensor([4, 5, 6])[:, None, None] + torch.tensor([1, 2, 3])[:, None, None]
        assert relative_error(classifier(pixels.flip(1)), classifier.network(x)) < 1e-5


def test_models_of_timm(tmp_path):
    model = fill(timm.create_model('test_resnet')).eval()
    torch.save(model.state_dict(), tmp_path / 'named.pth')
    torch.save({f'_{i}': value for i, value in enumerate(model.state_dict().values())}, tmp_path / 'unnamed.pth')
    x = image(1, 3, 64, 64)
    named = build_classifier('timm:test_resnet', str(tmp_path / 'named.pth'))
    unnamed = build_classifier('timm:test_resnet', str(tmp_path / 'unnamed.pth'), by_order=True)
    with torch.no_grad():
        assert torch.equal(named.network(x), model(x)) and torch.equal(unnamed.network(x), model(x))
    assert named.size == 160 and named.normalization.mean == pytest.approx((127.5, ) * 3)
    with pytest.raises(WeightsError, match='were not filled'):
        build_classifier('timm:test_resnet', str(tmp_path / 'unnamed.pth'))
    with pytest.raises(WeightsError, match='in order: _0 is .* has conv1.0.weight'):
        state = {f'_{i}': value for i, value in enumerate(reversed(model.state_dict().values()))}
        torch.save(state, tmp_path / 'other.pth')
        build_classifier('timm:test_resnet', str(tmp_path / 'other.pth'), by_order=True)


def test_a_family_of_timm_in_the_catalogue(tmp_path):
    model = fill(timm.create_model('starnet_s1')).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'starnet_s1.pth')
    built, x = build_classifier('starnet-s1_in1k', str(tmp_path / 'starnet_s1.pth')), image(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(built.network(x), model(x)) and built.size == 224


def test_the_licence_of_timms_weights_is_said(monkeypatch):
    said, real = [], timm.create_model
    monkeypatch.setattr('mmengine.logging.print_log', lambda message, **_: said.append(message))
    monkeypatch.setattr(timm, 'create_model', lambda name, pretrained=False: real(name))
    tell_licence.cache_clear()
    for _ in range(2):
        build_classifier('timm:convnextv2_atto.fcmae_ft_in1k')
    assert said == ['convnextv2_atto.fcmae_ft_in1k: the licence of these weights, cc-by-nc-4.0, does not allow '
                    'commercial use']


@pytest.mark.parametrize('model, checkpoint, problem', [
    ('timm:convnext_tinny', None, 'timm .* cannot make .*near names: convnext_tiny'),
    ('RepLKNet-31C', 'x', 'near names: RepLKNet-31L, RepLKNet-31B'),
    ('nothing at all', 'x', "no classifier 'nothing at all'"),
    ('RepLKNet-31B', None, 'RepLKNet-31B needs a checkpoint'),
    ('timm:convnext_tiny.fb_in22k', 'x', 'has 21841 classes'),
])
def test_models_that_cannot_be_had(model, checkpoint, problem):
    with pytest.raises(ValueError, match=problem):
        build_classifier(model, checkpoint)


@pytest.mark.parametrize('head, problem', [
    ({}, 'beside the backbone it has nothing'),
    ({'norm': nn.LayerNorm(32), 'head': nn.Linear(32, 21841)}, 'a classifier of 21841 classes'),
    ({'norm': nn.LayerNorm(32), 'head': linear(32), 'extra': linear(32)}, 'beside the backbone it has .*extra.weight'),
    ({'norm': nn.LayerNorm(24), 'head': linear(24)}, 'its head does not fit'),
    ({'conv': nn.Conv2d(32, 64, 1), 'norm': bn(64), 'head': linear(64)}, 'holds no classifier that could be put'),
])
def test_files_without_a_classifier_that_fits(head, problem, tmp_path):
    path = official_file(tmp_path / 'classifier.pth', ConvNeXt(TINY), head)
    with pytest.raises(WeightsError, match=problem):
        with_head(ConvNeXt(TINY), path)


def test_images_that_cannot_be_read(tmp_path):
    Image.new('L', (3, 2), 7).save(tmp_path / 'grey.png')
    assert np.array(open_image(tmp_path / 'grey.png')).tolist() == [[[7] * 3] * 3] * 2
    (tmp_path / 'cut.png').write_bytes((tmp_path / 'grey.png').read_bytes()[:50])
    for name in ('cut.png', 'missing.png'):
        with pytest.raises(ValueError, match=f'{name} cannot be read as an image'):
            open_image(tmp_path / name)


def test_class_names():
    names = classifiers.class_names()
    assert len(names) == 1000 and names[0] == 'tench' and names[404] == 'airliner' and names[999] == 'toilet tissue'
