import pytest
import torch
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule
from mmengine.registry import MODELS, WEIGHT_INITIALIZERS, DefaultScope

from mmlk.backbones import RepLKNet
from mmlk.weights import WeightsError
from tests.weights.conftest import TINY, assert_same, randomise, snapshot


@pytest.fixture
def file(tmp_path, trained):
    torch.save({'model': trained.state_dict()}, tmp_path / 'w.pth')
    return str(tmp_path / 'w.pth')


@pytest.mark.parametrize('scope', ['mmengine', 'mmseg', 'mmdet'])
def test_init_weights_loads(file, trained, scope):
    pytest.importorskip(scope)
    init_cfg = dict(type='mmlk.Pretrained', checkpoint=file)
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(dict(type='mmlk.RepLKNet', arch=TINY, init_cfg=init_cfg))
        assert not torch.equal(model.stem[0].conv.weight, trained.stem[0].conv.weight)
        model.init_weights()
    assert_same(model.state_dict(), trained.state_dict())


def test_a_file_that_does_not_fit_stops_the_run(file):
    model = RepLKNet(dict(TINY, layers=(1, 1, 3, 1)), init_cfg=dict(type='mmlk.Pretrained', checkpoint=file))
    with pytest.raises(WeightsError, match=r'stages\.2\.blocks\.4'):
        model.init_weights()


def test_not_strict(file, trained):
    arch = dict(TINY, layers=(1, 1, 3, 1))
    model = RepLKNet(arch, init_cfg=dict(type='mmlk.Pretrained', checkpoint=file, strict=False))
    model.init_weights()
    for key, value in trained.state_dict().items():
        assert torch.equal(model.state_dict()[key], value)


def test_allow_pickle_is_passed_on(tmp_path, trained):
    torch.save({'model': trained.state_dict(), 'who': torch.nn.Identity()}, tmp_path / 'w.pth')
    for word in (False, True):
        model = RepLKNet(TINY)
        pretrained = WEIGHT_INITIALIZERS.build(
            dict(type='mmlk.Pretrained', checkpoint=str(tmp_path / 'w.pth'), allow_pickle=word))
        if word:
            pretrained(model)
            assert_same(model.state_dict(), trained.state_dict())
        else:
            with pytest.raises(WeightsError, match='Identity'):
                pretrained(model)


class Parent(BaseModule):
    """Children that initialise themselves, one of mmengine's kind and one that is not."""

    def __init__(self, init_cfg=None):
        super().__init__(init_cfg)
        self.conv = ConvModule(3, 4, 3, norm_cfg=dict(type='BN'))
        self.backbone = RepLKNet(TINY, init_cfg=dict(type='Constant', layer='Conv2d', val=0.5))
        self.plain = torch.nn.Conv2d(3, 3, 1)


def test_children_do_not_overwrite_what_was_loaded(tmp_path):
    source = randomise(Parent(), 1)
    torch.save(source.state_dict(), tmp_path / 'w.pth')
    target = Parent(dict(type='mmlk.Pretrained', checkpoint=str(tmp_path / 'w.pth')))
    target.init_weights()
    assert_same(target.state_dict(), source.state_dict())


def test_what_is_not_loaded_is_initialised_as_ever(tmp_path):
    state = snapshot(randomise(Parent(), 1))
    state = {key: value for key, value in state.items() if key.startswith('plain')}
    torch.save(state, tmp_path / 'w.pth')
    target = Parent(dict(type='mmlk.Pretrained', checkpoint=str(tmp_path / 'w.pth'), strict=False))
    target.init_weights()
    assert torch.equal(target.plain.weight, state['plain.weight'])
    assert (target.backbone.stem[0].conv.weight == 0.5).all()


@pytest.mark.parametrize('last', [True, False])
def test_it_is_the_last_word_of_a_list(file, trained, last):
    ours, other = dict(type='mmlk.Pretrained', checkpoint=file), dict(type='Kaiming', layer='Conv2d')
    model = RepLKNet(TINY, init_cfg=[other, ours] if last else [ours, other])
    if last:
        model.init_weights()
        assert_same(model.state_dict(), trained.state_dict())
    else:
        with pytest.raises(WeightsError, match='put mmlk.Pretrained last, or Kaiming overwrites'):
            model.init_weights()
