"""What every backbone of the registry answers for. A new family has these tests for a small arch in its test file."""
import copy
import importlib
import inspect
import re
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from mmengine.registry import MODELS as ROOT
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.backbones import BaseBackbone
from mmlk.ops import set_memory_format
from mmlk.registry import MODELS
from mmlk.reparam import MergeableBranches, merge
from mmlk.weights import WeightsError, load
from tests.utils import fill, image, relative_error

# A family's small arch is in its own test file, which is all that a new family adds.
TINY = {}
for _path in sorted(Path(__file__).parent.glob('test_*.py')):
    if _path.stem != 'test_contract':
        TINY.update(getattr(importlib.import_module(f'tests.backbones.{_path.stem}'), 'TINY', {}))
GAPS = {'MogaNet'}  # whose official layer ids leave some out
SHARED = ['arch', 'in_channels', 'out_indices', 'drop_path_rate', 'frozen_stages', 'norm_cfg', 'norm_eval', 'with_cp',
          'merged', 'init_cfg']
STRIDES = dict.fromkeys(TINY, (4, 8, 16, 32)) | {'ConvNeXtIsotropic': (16, ) * 4}


@pytest.fixture(params=sorted(TINY))
def family(request):
    return request.param


def build(family, **kwargs):
    return MODELS.build(dict(type=f'mmlk.{family}', **{'arch': copy.deepcopy(TINY[family]), **kwargs}))


@lru_cache(maxsize=None)
def cuts(family):
    """Whether it cuts the image or a map into patches, and so cuts off what does not fill one."""
    with torch.device('meta'):
        convs = [m for m in build(family).modules() if isinstance(m, nn.Conv2d)]
    return any(conv.kernel_size == conv.stride != (1, 1) for conv in convs)


@lru_cache(maxsize=None)
def unbranched(family):
    """Whether it has no branches, so that merging changes nothing."""
    with torch.device('meta'):
        return not any(isinstance(m, MergeableBranches) for m in build(family).modules())


def grads(net):
    return {name: p.grad for name, p in net.named_parameters()}


def test_every_registered_backbone_is_tested():
    MODELS.import_from_location()
    backbones = {name for name, model in MODELS.module_dict.items() if model.__module__.startswith('mmlk.backbones.')}
    # TimmBackbone's own test file holds it to this contract
    assert backbones == {*TINY, 'TimmBackbone'}, 'a family needs an arch TINY in tests/backbones/test_<family>.py'


@pytest.mark.parametrize('scope', ['mmengine', 'mmlk'])
def test_builds_from_any_registry_by_scoped_name(family, scope):
    registry = ROOT if scope == 'mmengine' else MODELS
    assert type(registry.build(dict(type=f'mmlk.{family}', arch=TINY[family]))).__name__ == family


def test_takes_the_shared_arguments(family):
    signature = inspect.signature(MODELS.get(family).__init__)
    assert [name for name in signature.parameters if name in SHARED] == SHARED


def documented(cls):
    """The arguments that the docstring of a class documents, with their texts."""
    part = inspect.getdoc(cls).partition('Args:\n')[2].partition('\n\n')[0]
    pieces = re.split(r'^    (\w+): ', part, flags=re.MULTILINE)
    return {name: ' '.join(text.split()) for name, text in zip(pieces[1::2], pieces[2::2])}


def test_an_argument_is_documented_once():
    """A family documents its own arguments, and a shared one where it differs. It says where the others are."""
    texts = documented(BaseBackbone)
    families = [cls for cls in MODELS.module_dict.values() if inspect.isclass(cls) and issubclass(cls, BaseBackbone)]
    assert {*SHARED} - {'arch'} <= {*texts} and len(families) > len(TINY)
    first = {text: f'BaseBackbone {name}' for name, text in texts.items()}
    for cls in families:
        own, taken = documented(cls), inspect.signature(cls).parameters
        above = {name for parent in cls.__mro__[1:] if issubclass(parent, BaseBackbone) for name in documented(parent)}
        assert {*own} <= {*taken} and {*taken} <= {*own, *above}, cls
        assert 'All other arguments are those of :class:`' in inspect.getdoc(cls), cls
        for name, text in own.items():
            assert first.setdefault(text, f'{cls.__name__} {name}') == f'{cls.__name__} {name}', (cls, name)


@pytest.mark.parametrize('flag', ['norm_eval', 'with_cp', 'merged'])
def test_flags_are_bool(family, flag):
    with pytest.raises(ValueError, match=f"{flag} must be True or False, got 'no'"):
        build(family, **{flag: 'no'})


@pytest.mark.parametrize('size', [(64, 64), (333, 500), (75, 32), (33, 97)])
def test_any_size(family, size):
    net = build(family).eval()
    with torch.no_grad():
        maps = net(image(1, 3, *size))
    assert [tuple(m.shape) for m in maps] == [
        (1, c, *(n // s if cuts(family) else -(-n // s) for n in size))
        for c, s in zip(net.out_channels, STRIDES[family])]


def test_769(family):
    with torch.device('meta'):
        net = build(family).eval()
    assert [m.shape[-1] for m in net(torch.empty(1, 3, 769, 769, device='meta'))] == [
        769 // s if cuts(family) else -(-769 // s) for s in STRIDES[family]]


def test_every_parameter_receives_a_gradient(family):
    for indices in ((0, 1, 2, 3), (1, ), (0, 2)):
        net = fill(build(family, out_indices=indices))
        sum((m**2).sum() for m in net(image(2, 3, 64, 64))).backward()
        lost = [name for name, g in grads(net).items() if g is None or not g.abs().sum() > 0]
        assert not lost, lost


def test_in_channels(family):
    net = build(family, in_channels=5).eval()
    assert net(image(1, 5, 32, 32))[0].shape[1] == net.out_channels[0]
    with pytest.raises(ValueError, match='in_channels must be positive, got 0'):
        build(family, in_channels=0)


def test_out_indices(family):
    full, some = fill(build(family)).eval(), fill(build(family, out_indices=(2, 0))).eval()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        a, b = full(x), some(x)
    assert torch.equal(a[2], b[0]) and torch.equal(a[0], b[1]) and len(b) == 2
    assert some.out_channels == (full.out_channels[2], full.out_channels[0])
    for wrong in ((), (4, ), (-1, ), (0, 0), 3):
        with pytest.raises(ValueError, match='out_indices must be different numbers in 0..3'):
            build(family, out_indices=wrong)


def test_drop_path_rate(family):
    x = image(4, 3, 64, 64)
    still, dropping = (fill(build(family, drop_path_rate=rate)) for rate in (0.0, 0.9))
    rates = [m.drop_prob for m in dropping.modules() if type(m).__name__ == 'DropPath']
    assert rates == sorted(rates) and rates[0] == 0 and rates[-1] == pytest.approx(0.9)
    assert relative_error(dropping(x)[-1], still(x)[-1]) > 0.05
    with torch.no_grad():
        assert torch.equal(fill(dropping).eval()(x)[-1], fill(build(family)).eval()(x)[-1])
    for wrong in (-0.1, 1.0):
        with pytest.raises(ValueError, match='drop_path_rate must be in'):
            build(family, drop_path_rate=wrong)


@pytest.mark.parametrize('frozen', [-1, 0, 1, 3, 4])
def test_frozen_stages(family, frozen):
    net = fill(build(family, frozen_stages=frozen)).train()
    before = copy.deepcopy(net.state_dict())
    out = net(image(2, 3, 64, 64))
    if frozen < 4:
        sum((m**2).sum() for m in out).backward()
    for name, p in net.named_parameters():
        is_frozen = net.stage_id(name) <= frozen
        assert p.requires_grad is not is_frozen
        assert (p.grad is None) is is_frozen
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            moved = not torch.equal(before[f'{name}.running_mean'], module.running_mean)
            assert moved is (net.stage_id(f'{name}.weight') > frozen), name
    for wrong in (-2, 5):
        with pytest.raises(ValueError, match='frozen_stages must be in -1..4'):
            build(family, frozen_stages=wrong)


def test_norm_cfg_reaches_every_norm_and_is_not_written_to(family):
    cfg = dict(type='GN', num_groups=4, requires_grad=False)
    net = build(family, norm_cfg=cfg)
    norms = [m for m in net.modules() if isinstance(m, (_BatchNorm, nn.GroupNorm))]
    assert norms and all(isinstance(m, nn.GroupNorm) and m.num_groups == 4 for m in norms)
    assert not any(p.requires_grad for m in norms for p in m.parameters())
    assert cfg == dict(type='GN', num_groups=4, requires_grad=False)
    sync = build(family, norm_cfg=dict(type='SyncBN', momentum=0.02))
    norms = [m for m in sync.modules() if isinstance(m, _BatchNorm)]
    synchronised = [isinstance(m, nn.SyncBatchNorm) for m in norms]
    assert all(m.momentum == 0.02 for m in norms if isinstance(m, nn.SyncBatchNorm))
    # ParCNet's blocks have plain norms beside them, as officially: test_parc.py says which
    assert any(synchronised) if family == 'ParCNet' else all(synchronised)


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval(family, norm_eval):
    net = fill(build(family, norm_eval=norm_eval)).train()
    before = copy.deepcopy(dict(net.named_buffers()))
    net(image(2, 3, 64, 64))
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, before[name]) is norm_eval, name


def test_with_cp_gives_the_same_gradients_and_statistics(family):
    x = image(2, 3, 64, 48)
    plain, saving = (fill(build(family, with_cp=with_cp)).train() for with_cp in (False, True))
    saved = {True: 0, False: 0}
    for net in (plain, saving):
        def pack(t, net=net):
            saved[net is saving] += t.numel()
            return t
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = net(x)
        sum((m**2).mean() for m in out).backward()
    assert saved[True] < 0.5 * saved[False], 'nothing was saved'
    for (name, a), b in zip(grads(saving).items(), grads(plain).values()):
        torch.testing.assert_close(a, b, msg=name)
    for (name, a), b in zip(saving.named_buffers(), plain.buffers()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6, msg=name)  # a backend may be chosen between


def test_with_cp_takes_a_second_backward_through_the_same_graph(family):
    net = fill(build(family, with_cp=True)).train()
    loss = sum((m**2).mean() for m in net(image(2, 3, 64, 48)))
    buffers, parameters = copy.deepcopy(dict(net.named_buffers())), [p for p in net.parameters() if p.requires_grad]
    first, second = (torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for _ in range(2))
    loss.backward()
    for once, again, p in zip(first, second, parameters):
        torch.testing.assert_close(again, once)
        torch.testing.assert_close(p.grad, once)
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_a_batch_of_no_images(family):
    net, full = fill(build(family)).eval(), fill(build(family)).eval()
    outs = net(torch.zeros(0, 3, 64, 96))
    assert [out.shape for out in outs] == [(0, *out.shape[1:]) for out in full(torch.zeros(1, 3, 64, 96))]
    sum(out.sum() for out in outs).backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters() if p.requires_grad)


def test_merged_form_loads_and_equals(family):
    net = fill(build(family)).train()
    merged = merge(net)
    built = build(family, merged=True).eval()
    built.load_state_dict(merged.state_dict())
    assert built.merged and net.merged is unbranched(family)
    x = image(1, 3, 64, 80)
    with torch.no_grad():
        for a, b in zip(built(x), net.eval()(x)):
            assert relative_error(a, b) < 2e-6


def test_init_cfg(family, tmp_path):
    donor = fill(build(family))
    torch.save(donor.state_dict(), tmp_path / 'donor.pth')
    net = build(family, init_cfg=dict(type='mmlk.Pretrained', checkpoint=str(tmp_path / 'donor.pth')))
    net.init_weights()
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, donor.state_dict()[name]), name


def test_a_file_of_more_stages_is_taken_and_one_of_more_layers_refused(family, tmp_path):
    whole = build(family)
    heads = {name: torch.ones(3) for name in ('head.weight', 'fc.bias', 'norm.weight', 'classifier.1.weight')}
    torch.save({**fill(whole).state_dict(), **heads}, tmp_path / 'whole.pth')
    for indices in ((0, ), (2, 1)):
        cut = build(family, out_indices=indices)
        report = load(cut, tmp_path / 'whole.pth')
        assert report.complete and set(report.unexpected) == {*whole.state_dict(), *heads} - {*cut.state_dict()}
    for stage in range(whole.num_stages + 1):
        for part in whole.parts(stage):
            path = next(path for path, module in whole.named_modules() if module is part)
            for name in (name for name in whole.state_dict() if name.startswith(path)):
                more = f"{name.rpartition('.')[0]}.more.weight"
                assert not whole.leaves_out(more), more
    torch.save({**whole.state_dict(), more: torch.ones(3)}, tmp_path / 'more.pth')
    with pytest.raises(WeightsError, match='1 tensors for which .* has no place'):
        load(whole, tmp_path / 'more.pth')


@pytest.mark.parametrize('channels', [1, 4, 6])
def test_kernels_for_rgb_become_those_for_other_channels(family, channels, tmp_path):
    """A grey image gives what it gave, from one channel or from six; of four, the first stands for two."""
    donor = fill(build(family)).eval()
    torch.save(donor.state_dict(), tmp_path / 'rgb.pth')
    net = build(family, in_channels=channels).eval()
    with pytest.raises(WeightsError, match='adapt_stem=True'):
        load(net, tmp_path / 'rgb.pth')
    report = load(net, tmp_path / 'rgb.pth', adapt_stem=True)
    assert report.complete and report.resized and set(report.resized) <= set(net.input_weights())
    grey = image(1, 1, 64, 64)
    # timm takes red, green, blue, red of four: each at 3/4
    rgb = grey.repeat(1, 3, 1, 1) * torch.tensor([2, 1, 1] if channels == 4 else [1, 1, 1]).view(1, 3, 1, 1)
    with torch.no_grad():
        for a, b in zip(net(grey.repeat(1, channels, 1, 1)), donor(rgb * (3 / 4 if channels == 4 else 1))):
            assert relative_error(a, b) < 1e-5


def test_layer_and_stage_ids_cover_every_parameter(family):
    net = build(family)
    names = [name for name, _ in net.named_parameters()]
    net.named_parameters = None  # to look at all parameters for each of them would take minutes in a deep backbone
    layers, stages = [net.layer_id(n) for n in names], [net.stage_id(n) for n in names]
    # num_layers + 1: what pretraining lacks, and so learns as a head does
    every = {0, net.num_layers} if family in GAPS else set(range(net.num_layers + 1))
    assert every <= set(layers) <= set(range(net.num_layers + 2))
    assert set(stages) == set(range(net.num_stages + 1))
    for ask in (net.layer_id, net.stage_id):
        with pytest.raises(KeyError, match="no parameter 'head.weight'"):
            ask('head.weight')


def test_arguments_are_not_written_to(family):
    arch, cfg = copy.deepcopy(TINY[family]), dict(type='BN')
    build(family, arch=arch, norm_cfg=cfg)
    assert arch == TINY[family] and cfg == dict(type='BN')


def test_takes_the_fastest_memory_format_whatever_comes_in(family):
    net = fill(build(family)).eval()
    x = image(2, 3, 64, 96)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    seen = []

    def note(module, args, out):
        if out.shape[-2:] != (1, 1) and out.shape[1] > 1:  # one pixel or channel lies the same way in both
            seen.append(out.is_contiguous(memory_format=torch.channels_last) and not out.is_contiguous())

    for conv in convs:
        conv.register_forward_hook(note)
    expected = net(x)
    maps = len(seen)
    assert maps and not any(seen)
    seen.clear()
    with torch.no_grad():
        outs = net(x)
    assert len(seen) == maps and all(seen)
    for out, theirs in zip(outs, expected):
        assert out.is_contiguous() and relative_error(out, theirs) < 1e-5
    seen.clear()
    set_memory_format(net, 'contiguous')
    with torch.no_grad():
        copy.deepcopy(net)(x.contiguous(memory_format=torch.channels_last))
    assert not any(seen)
