"""The Hamburger head, against mmseg's own: the same in training, and the same every time afterwards."""
import copy
import pickle

import pytest
import torch

from mmlk.deploy import fused, optimize
from mmlk.engine.network import build_network
from mmlk.registry import MODELS
from tests.deploy.test_export import assert_segments, config, pixels, trained, write
from tests.utils import fill, image, relative_error

SETTINGS = dict(in_channels=[8, 16, 24], in_index=[1, 2, 3], channels=16, ham_channels=16, num_classes=5,
                norm_cfg=dict(type='GN', num_groups=4), align_corners=False, dropout_ratio=0.0)
SEGNEXT = 'segnext_mscan-t_ade20k'


def heads(**ham):
    """Ours and mmseg's, with the same weights."""
    from mmseg.models import LightHamHead
    kwargs = dict(SETTINGS, ham_kwargs=dict(MD_R=4, **ham))
    ours, theirs = MODELS.build(dict(type='mmlk.LightHamHead', **kwargs)), LightHamHead(**kwargs)
    weights = fill(LightHamHead(**kwargs)).state_dict()  # ``fill`` would overwrite the bases of ours too
    for head in (ours, theirs):
        head.load_state_dict(weights, strict=True)
    return ours, theirs


def maps(batch=2):
    return [image(batch, channels, 16 // 2**i, 24 // 2**i, seed=i) for i, channels in enumerate((4, 8, 16, 24))]


@pytest.mark.parametrize('parts', [1, 2])
def test_training_is_mmsegs(parts):
    ours, theirs = heads(MD_S=parts)
    outputs = []
    for head in (ours.train(), theirs.train()):
        torch.manual_seed(3)
        outputs.append([head(maps()), head(maps())])
    assert all(map(torch.equal, *outputs))
    assert relative_error(*outputs[0]) > 1e-3, 'new bases in every step'


@pytest.mark.parametrize('parts', [1, 2])
def test_a_trained_head_gives_the_same_every_time(parts, monkeypatch):
    ours, theirs = (head.eval() for head in heads(MD_S=parts))
    with torch.no_grad():
        assert relative_error(theirs(maps()), theirs(maps())) > 1e-3, 'mmseg draws bases in tests too'
        first = ours(maps())
        ours.train()(maps())
        assert torch.equal(ours.eval()(maps()), first)
        assert relative_error(ours([x[1:] for x in maps()]), first[1:]) < 1e-6, 'whatever else is in the batch'
        for other in (heads(MD_S=parts)[0].eval(), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
            assert torch.equal(other(maps()), first)
        bases = ours.hamburger.ham.bases
        assert bases.shape == (parts, 16 // parts, 4) and bases.min() >= 0
        assert torch.allclose(bases.norm(dim=1), torch.ones(parts, 4))
        monkeypatch.setattr(theirs.hamburger.ham, '_build_bases', lambda batch, *_, **__: bases.repeat(batch, 1, 1))
        assert torch.equal(theirs(maps()), first), "mmseg's from our bases"


def test_bases_that_are_never_drawn_again():
    head, _ = heads(rand_init=False)
    assert torch.equal(head.train()(maps()), head(maps()))


def with_its_bases(model):
    """The model without what ``fill`` wrote over the bases of its head."""
    model.decode_head.hamburger.ham.bases = build_network(config(SEGNEXT)).decode_head.hamburger.ham.bases
    return model


def test_segnext_in_onnx(tmp_path):
    pytest.importorskip('onnxscript')
    model, path, _ = write(config(SEGNEXT), tmp_path, 'onnx', (96, 128), dynamic_size=True)
    model = with_its_bases(model)
    assert_segments(path, model, pixels(2, 101, 134))


@pytest.mark.skipif(not fused.available(torch.float32), reason='no packed convolutions in this PyTorch')
def test_segnext_optimized(tmp_path):
    model = with_its_bases(trained(config(SEGNEXT), tmp_path)[0])
    fast = optimize(model, image(1, 3, 96, 128))
    assert fast.backbone.graph is not None and fast.optimization.step == 1
    x = image(2, 3, 101, 134)
    with torch.no_grad():
        assert relative_error(fast(x, mode='tensor'), model(x, mode='tensor')) < 1e-5


def test_it_is_built_without_memory():
    with torch.device('meta'):
        network = build_network(config(SEGNEXT))
    assert network.decode_head.hamburger.ham.bases.device.type == 'meta'
