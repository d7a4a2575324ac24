"""A config's network, built outside of a runner."""
import pytest
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import nn

from mmlk.engine.network import build_network, network_settings, weights_of

TINY = dict(type='mmlk.RepLKNet', arch=dict(large_kernel_sizes=[7], layers=[2], channels=[8], small_kernel=3),
            out_indices=[0], norm_cfg=dict(type='SyncBN'))


@pytest.fixture
def model():
    """A registered model whose backbone's weights, and its own, are named in every way that a config can."""
    class NamedWeights(BaseModel):
        def __init__(self, backbone, pretrained='not given', **kwargs):
            super().__init__(**kwargs)
            self.backbone, self.pretrained = MODELS.build(backbone), pretrained

        def forward(self, x):
            return self.backbone(x)

    class OtherBackbone(nn.Module):
        def __init__(self, pretrained=True, checkpoint=None, init_cfg=None):
            super().__init__()
            self.given = pretrained, checkpoint, init_cfg

    for kind in (NamedWeights, OtherBackbone):
        MODELS.register_module(module=kind, force=True)
    yield
    for kind in ('NamedWeights', 'OtherBackbone'):
        MODELS.module_dict.pop(kind)


def test_no_weights_that_a_config_names(model):
    named = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    backbone = dict(type='OtherBackbone', pretrained=True, checkpoint='a.pth', init_cfg=named)
    cfg = Config(dict(model=dict(type='NamedWeights', pretrained='b.pth', init_cfg=named, backbone=backbone)))
    before = cfg.to_dict()
    net = build_network(cfg)
    assert net.pretrained is None and net.init_cfg is None and net.backbone.given == (False, None, None)
    assert build_network(cfg, 'backbone').given == (False, None, None)
    assert cfg.to_dict() == before


def test_merged_is_for_our_backbones_and_sync_batch_norm_for_several_processes(model):
    cfg = Config(dict(model=dict(type='NamedWeights', backbone=TINY)))
    assert [build_network(cfg, merged=merged).backbone.merged for merged in (None, False, True)] == [False, False, True]
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in build_network(cfg).modules())
    other = Config(dict(model=dict(backbone=dict(type='ResNet'))))
    assert 'merged' not in network_settings(other, merged=True).backbone
    assert 'merged' not in cfg.model.backbone


@pytest.mark.parametrize('settings, problem', [
    (dict(), 'the config has no backbone'),
    (dict(model=dict(type='NamedWeights', backbone=dict(depth=1))), 'the config has no backbone'),
    (dict(model=dict(type='NamedWeights', backbone=dict(type='Nothing'))), 'the model cannot be built: .*Nothing'),
    (dict(model=dict(type='NamedWeights', backbone=dict(TINY, out_indices=[7]))), 'cannot be built: .*out_indices'),
])
def test_one_error_for_what_cannot_be_built(model, settings, problem):
    with pytest.raises(ValueError, match=problem):
        build_network(Config(settings))


@pytest.mark.parametrize('settings, source', [
    ({}, None), (dict(init_cfg=None), None), (dict(init_cfg=dict(type='Normal')), None),
    (dict(init_cfg=dict(type='Pretrained', checkpoint='a.pth')), 'a.pth'),
    (dict(init_cfg=[dict(type='Normal'), dict(type='mmlk.Pretrained', checkpoint='b')]), 'b'),
    (dict(checkpoint='package:c'), 'package:c'), (dict(pretrained='torchvision://d'), 'torchvision://d'),
    (dict(model_name='convnext_tiny', pretrained=True), 'convnext_tiny'), (dict(pretrained=False), None)])
def test_weights_are_found_wherever_settings_name_them(settings, source):
    assert weights_of(settings) == source
