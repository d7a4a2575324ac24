"""What the operator has to ask PyTorch and PyTorch answers by private names only.

Each function looks its name up when it is called. Where a version of PyTorch lacks the name, it takes the answer that
is right in every case, and slower, and warns once.
"""
import warnings
from functools import lru_cache
from typing import Callable, Optional

import torch
from torch import Tensor


@lru_cache(maxsize=None)
def _warn(name: str, instead: str) -> None:
    warnings.warn(f'torch {torch.__version__} has no {name}: {instead}', stacklevel=4)


def _private(owner: object, name: str, instead: str) -> Optional[Callable[..., object]]:
    found = getattr(owner, name, None)
    if found is None:
        _warn(name, instead)
    return found


def packs_saved_tensors() -> bool:
    """Whether ``torch.autograd.graph.saved_tensors_hooks`` are active, as in activation checkpointing.

    Assumed to be so when PyTorch does not say: then only the input and the weight are saved for the backward pass.
    """
    top = _private(torch._C._autograd, '_top_saved_tensors_default_hooks',
                   'spectra of a training are computed again in the backward pass')
    return top is None or top(False) is not None


def transforms_active() -> bool:
    """Whether a transform of ``torch.func`` (``vmap``, ``grad``, ``jvp``) is being applied.

    Assumed to be so when PyTorch does not say: then PyTorch's own convolution is used.
    """
    active = _private(torch._C, '_are_functorch_transforms_active', "PyTorch's own convolution is used throughout")
    return active is None or bool(active())


def is_legacy_batched(grad: Tensor) -> bool:
    """Whether ``grad`` stands for several gradients, as with ``torch.autograd.grad(..., is_grads_batched=True)``.

    Assumed to be so when PyTorch does not say: then PyTorch's own gradients are used.
    """
    batched = _private(getattr(torch._C, '_functorch', None), 'is_legacy_batchedtensor',
                       "PyTorch's own gradients are used")
    return batched is None or bool(batched(grad))


def modes_active() -> bool:
    """Whether the calling thread is inside a ``TorchDispatchMode``, which sees the operators of its own thread only.

    Assumed to be so when PyTorch does not say: then everything runs in the calling thread.
    """
    count = _private(torch._C, '_len_torch_dispatch_stack', 'chunks of channels are computed one after the other')
    return count is None or bool(count())
