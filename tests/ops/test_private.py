"""Private names of PyTorch: where they are used, and that results are right where a version of PyTorch lacks them."""
import re
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from mmlk.ops import _private, depthwise_conv2d
from mmlk.ops.backends import workers
from mmlk.ops.reference import depthwise_conv2d_reference
from tests.ops.cases import TOLERANCE
from tests.utils import relative_error

ROOMS = Path(_private.__file__).parent.parent
NAMES = {
    '_top_saved_tensors_default_hooks': torch._C._autograd,
    '_are_functorch_transforms_active': torch._C,
    'is_legacy_batchedtensor': torch._C._functorch,
}

has_hooks = pytest.mark.skipif(not hasattr(torch._C._autograd, '_top_saved_tensors_default_hooks'),
                               reason='PyTorch does not say what packs saved tensors')


def convolved(x, weight):
    return depthwise_conv2d(x, weight, backend='fft').sin().sum()


def expected(x, weight):
    return depthwise_conv2d_reference(x, weight).sin().sum()


def tensors(requires_grad=True):
    return (torch.randn(2, 3, 17, 14, requires_grad=requires_grad),
            torch.randn(3, 1, 9, 9, requires_grad=requires_grad))


def assert_right():
    """Gradients; the same under checkpointing, which packs what is saved; several at once; along a direction."""
    leaves = tensors()
    wanted = torch.autograd.grad(expected(*leaves), leaves)
    results = [torch.autograd.grad(convolved(*leaves), leaves),
               torch.autograd.grad(checkpoint(convolved, *leaves, use_reentrant=False), leaves)]
    out = convolved(*leaves).expand(2)
    several = torch.autograd.grad(out, leaves, torch.eye(2), is_grads_batched=True)
    results += [[grad[0] for grad in several], [grad[1] for grad in several]]
    results.append(torch.func.grad(convolved, (0, 1))(*leaves))
    for found in results:
        for a, b in zip(found, wanted):
            assert relative_error(a, b) < TOLERANCE[torch.float32]
    direction = torch.randn_like(leaves[0])
    along = (wanted[0] * direction).sum()
    _, tangent = torch.func.jvp(lambda x: convolved(x, leaves[1]), (leaves[0], ), (direction, ))
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(convolved(forward_ad.make_dual(leaves[0], direction), leaves[1])).tangent
    for found in (tangent, dual):
        assert relative_error(found, along) < TOLERANCE[torch.float32]


@has_hooks
@pytest.mark.parametrize('name', NAMES)
def test_a_version_without_a_name_gives_the_same_and_warns_once(name, monkeypatch):
    look_up = _private._private
    _private._warn.cache_clear()
    assert hasattr(NAMES[name], name)
    # the name is hidden from mmlk alone, because PyTorch itself uses it
    monkeypatch.setattr(_private, '_private', lambda owner, wanted, instead: look_up(
        None if wanted == name else owner, wanted, instead))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        assert_right()
    _private._warn.cache_clear()
    found = [str(w.message).split(':')[0] for w in caught if name in str(w.message)]
    assert found == [f'torch {torch.__version__} has no {name}']


@has_hooks
def test_only_the_leaves_are_saved_where_it_is_not_known_whether_they_are_packed(monkeypatch):
    assert len(depthwise_conv2d(*tensors(), backend='fft').grad_fn.saved_tensors) > 2
    _private._warn.cache_clear()
    monkeypatch.delattr(torch._C._autograd, '_top_saved_tensors_default_hooks')
    with pytest.warns(UserWarning, match='computed again'):
        assert len(depthwise_conv2d(*tensors(), backend='fft').grad_fn.saved_tensors) == 2


@pytest.mark.parametrize('answer', [False, True])
def test_without_the_flag_of_an_export_the_public_function_answers(answer, monkeypatch):
    torch_without = SimpleNamespace(compiler=SimpleNamespace(is_exporting=lambda: answer))
    monkeypatch.setattr(_private, 'torch', torch_without)
    assert _private.in_export() is answer


def test_a_compiled_function_is_no_export():
    """The compiler of torch 2.11 takes ``is_exporting()`` for True in what it traces."""
    torch.compiler.reset()
    seen = []

    def keep(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == 'call_function')
        return graph

    torch.compile(lambda x, weight: depthwise_conv2d(x, weight), backend=keep, fullgraph=True)(*tensors())
    assert seen == ['mmlk.depthwise_conv2d.default']


@pytest.mark.filterwarnings('ignore:torch .* has no')
def test_gradients_are_right_with_the_names_that_there_are():
    assert_right()


def test_chunks_stay_in_the_calling_thread_where_modes_cannot_be_asked_for(monkeypatch):
    _private._warn.cache_clear()
    monkeypatch.delattr(torch._C, '_len_torch_dispatch_stack')
    monkeypatch.setattr(torch, 'get_num_threads', lambda: 2)
    with pytest.warns(UserWarning, match='one after the other'):
        threads = workers.each(torch.device('cpu'), lambda _: threading.get_ident(), range(8))
    assert set(threads) == {threading.get_ident()}


@has_hooks
def test_with_every_name_there_is_no_warning():
    _private._warn.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert_right()


@has_hooks
def test_questions_are_answered():
    assert not _private.packs_saved_tensors() and not _private.transforms_active() and not _private.modes_active()
    with TorchDispatchMode():
        assert _private.modes_active()
    with torch.autograd.graph.save_on_cpu():
        assert _private.packs_saved_tensors()
    seen = []
    torch.vmap(lambda x: seen.append(_private.transforms_active()) or x)(torch.ones(2))
    assert seen == [True] and not _private.is_legacy_batched(torch.ones(1))


@pytest.mark.parametrize('room', ['ops', 'reparam'])
def test_private_names_are_used_in_one_file(room):
    for path in (ROOMS / room).rglob('*.py'):
        found = re.findall(r'(?:\btorch(?:\.\w+)*|\bnn|\bforward_ad|\bF)\._(?!_)\w+', path.read_text())
        assert not found or path == Path(_private.__file__), f'{path}: {found}'
