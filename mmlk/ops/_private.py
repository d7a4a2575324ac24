"""The only module of ``mmlk.ops`` that uses private names of PyTorch.

Each function looks up its private name when it is called. If the installed version of PyTorch does not have the name,
the function warns once and returns the answer that is always correct, although slower.
"""
import warnings
from functools import lru_cache
from typing import Callable, Optional

import torch
from torch import Tensor


@lru_cache(maxsize=None)
def _warn(name: str, instead: str) -> None:
    """Warns that PyTorch has no such name; the cache makes this happen once per name."""
    warnings.warn(f'torch {torch.__version__} has no {name}: {instead}', stacklevel=4)


def _private(owner: object, name: str, instead: str) -> Optional[Callable[..., object]]:
    """Returns the attribute ``name`` of ``owner``. If there is none, warns with ``instead`` and returns None."""
    found = getattr(owner, name, None)
    if found is None:
        _warn(name, instead)
    return found


def packs_saved_tensors() -> bool:
    """Returns whether ``torch.autograd.graph.saved_tensors_hooks`` are active, as in activation checkpointing.

    The fallback is True: then only the input and the weight are saved for the backward pass.
    """
    top = _private(torch._C._autograd, '_top_saved_tensors_default_hooks',
                   'spectra of a training are computed again in the backward pass')
    return top is None or top(False) is not None


def transforms_active() -> bool:
    """Returns whether a transform of ``torch.func`` (``vmap``, ``grad``, ``jvp``) is being applied.

    The fallback is True: then PyTorch's own convolution is used.
    """
    active = _private(torch._C, '_are_functorch_transforms_active', "PyTorch's own convolution is used throughout")
    return active is None or bool(active())


def is_legacy_batched(grad: Tensor) -> bool:
    """Returns whether ``grad`` is a batch of gradients, as with ``torch.autograd.grad(..., is_grads_batched=True)``.

    The fallback is True: then PyTorch's own gradients are used.
    """
    batched = _private(getattr(torch._C, '_functorch', None), 'is_legacy_batchedtensor',
                       "PyTorch's own gradients are used")
    return batched is None or bool(batched(grad))


def in_export() -> bool:
    """Returns whether ``torch.export`` runs.

    The fallback is ``torch.compiler.is_exporting()``, which the compiler of torch 2.11 takes for True in whatever it
    traces, also under ``torch.compile``: then PyTorch's own convolution is used.
    """
    flag = getattr(torch.compiler, '_is_exporting_flag', None)  # no warning, which the compiler could not trace
    return torch.compiler.is_exporting() if flag is None else bool(flag)


def modes_active() -> bool:
    """Returns whether the calling thread is in a ``TorchDispatchMode``, which only sees operators of its own thread.

    The fallback is True: then everything runs in the calling thread.
    """
    count = _private(torch._C, '_len_torch_dispatch_stack', 'chunks of channels are computed one after the other')
    return count is None or bool(count())
