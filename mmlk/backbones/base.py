"""What every backbone shares: argument checks, freezing, checkpointing, stage and layer ids."""
import math
from contextlib import nullcontext
from typing import Any, Callable, Dict, List, Optional, Sequence, Set, Tuple, Union

import torch
from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlk._torch_private import BatchNorm
from mmlk.ops import set_memory_format
from mmlk.reparam import MergeableBranches

Arch = Union[str, Dict[str, Any]]


def resolve_arch(arch: Arch, known: Dict[str, Dict[str, Any]], required: Sequence[str], defaults: Dict[str, Any],
                 family: str) -> Dict[str, Any]:
    """The arch's dict, a copy filled up with ``defaults``, whether given by name or as a dict.

    Raises:
        ValueError: An unknown name, or a dict with an unknown key or without a required one.
        TypeError: Neither a name nor a dict.
    """
    if isinstance(arch, str) and arch not in known:
        raise ValueError(f"unknown arch '{arch}' of {family}; there are {', '.join(known)}, or pass a dict")
    given = known[arch] if isinstance(arch, str) else arch
    if not isinstance(given, dict):
        raise TypeError(f'arch of {family} is a name or a dict, got {type(arch).__name__}')
    fields = (*required, *defaults)
    unknown = sorted(map(str, set(given) - set(fields)))
    if unknown:
        raise ValueError(f"unknown keys in arch of {family}: {', '.join(unknown)}; it takes {', '.join(fields)}")
    lacking = [key for key in required if key not in given]
    if lacking:
        raise ValueError(f"arch of {family} lacks {', '.join(lacking)}")
    return {**defaults, **given}


def is_integer(value: Any) -> bool:
    """Whether it is an integer; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a finite integer or float."""
    return is_integer(value) or isinstance(value, float) and math.isfinite(value)


def check_sequences(arch: Dict[str, Any], *keys: str) -> None:
    """Refuse a resolved arch with anything but lists and tuples in ``keys``."""
    for key in keys:
        if not isinstance(arch[key], (list, tuple)):
            raise ValueError(f'{key} must be a list or a tuple, got {arch[key]!r}')


def check_per_stage(arch: Dict[str, Any], *keys: str) -> None:
    """Refuse a resolved arch whose ``keys`` are not sequences with one entry per stage, of which there is at least one.
    """
    check_sequences(arch, *keys)
    lengths = [len(arch[key]) for key in keys]
    if len(set(lengths)) > 1 or not lengths[0]:
        *names, last_name = keys
        *counts, last_count = map(str, lengths)
        raise ValueError(f"{', '.join(names)} and {last_name} must have one entry per stage, "
                         f"got {', '.join(counts)} and {last_count}")


def check_positive(arch: Dict[str, Any], *keys: str) -> None:
    """Refuse a resolved arch with anything but sequences of positive integers in ``keys``."""
    check_sequences(arch, *keys)
    for key in keys:
        if not all(is_integer(v) and v > 0 for v in arch[key]):
            raise ValueError(f'{key} must be positive integers, got {tuple(arch[key])}')


def check_not_negative(arch: Dict[str, Any], *keys: str) -> None:
    """Refuse a resolved arch with anything but a finite number of at least 0 in each of ``keys``."""
    for key in keys:
        if not is_number(arch[key]) or arch[key] < 0:
            raise ValueError(f'{key} must be a number of at least 0, got {arch[key]!r}')


def check_flags(arch: Dict[str, Any], *keys: str) -> None:
    """Refuse a resolved arch with anything but True or False in ``keys``: the text 'False' would pass for True."""
    for key in keys:
        if not isinstance(arch[key], bool):
            raise ValueError(f'{key} must be True or False, got {arch[key]!r}')


def per_block(family: str, name: str, values: Sequence[Union[int, Sequence[int]]],
              blocks: Sequence[int]) -> List[Tuple[int, ...]]:
    """One number per block, stage by stage, of ``values`` that hold one for each stage or one for each of its blocks.

    Raises:
        ValueError: There are too few or too many of them, or one is not a positive integer.
    """
    full = [tuple(v) if isinstance(v, (list, tuple)) else (v, ) * n for v, n in zip(values, blocks)]
    fits = len(values) == len(blocks) and all(len(numbers) == n for numbers, n in zip(full, blocks))
    if not fits or not all(is_integer(v) and v > 0 for numbers in full for v in numbers):
        raise ValueError(f'{family}: {name} must be {len(blocks)} positive integers, or as many as its blocks for a '
                         f'stage, got {tuple(values)}')
    return full


def check_kernels(arch: Dict[str, Any], key: str, small_kernel: Optional[int] = None) -> None:
    """Refuse a resolved arch whose kernels in ``key`` are not odd and positive, and a parallel small one that is not
    either, or is larger than any of them."""
    check_sequences(arch, key)
    kernels = arch[key]
    for name, values in (key, kernels), ('small_kernel', () if small_kernel is None else (small_kernel, )):
        for kernel in values:
            if not is_integer(kernel) or kernel < 1 or kernel % 2 == 0:
                raise ValueError(f'{name}: kernels must be odd and positive, got {kernel!r}')
    if small_kernel is not None and small_kernel > min(kernels):
        raise ValueError(f'small_kernel {small_kernel} is larger than the large kernel {min(kernels)} beside it, '
                         f'of {key} {tuple(kernels)}')


class StatisticsKept:
    """Run without touching BatchNorm's running statistics: a recomputed forward must not count its batch twice.

    A graph that is kept is recomputed in every backward pass through it, in this one context: it can be entered again
    and again, which a generator cannot.
    """

    def __init__(self, module: nn.Module):
        self.norms = [m for m in module.modules() if isinstance(m, BatchNorm) and m.track_running_stats]

    def __enter__(self) -> None:
        self.before = [(m.momentum, None if m.num_batches_tracked is None else m.num_batches_tracked.clone())
                       for m in self.norms]
        for m in self.norms:
            m.momentum = 0.0

    def __exit__(self, *_) -> None:
        for m, (momentum, count) in zip(self.norms, self.before):
            m.momentum = momentum
            if count is not None:
                m.num_batches_tracked.copy_(count)


class BaseBackbone(BaseModule):
    """Base of the backbones: ``forward`` of (N, in_channels, H, W) gives one map per out index.

    A subclass calls ``super().__init__`` first, builds itself, and calls ``self.finish()`` last. It answers
    ``parts``, ``layer_of`` and ``num_layers``.

    Args:
        stage_channels: Channels of every stage of the arch.
        in_channels: Number of channels of the image.
        out_indices: Stages whose maps are returned, in the given order. Stages past the last of them are not built.
        drop_path_rate: Drop rate (stochastic depth) of the last block, rising linearly from 0; in [0, 1).
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages (no gradient, eval mode).
        norm_cfg: Norm layer, as mmcv's ``build_norm_layer`` takes it.
        norm_eval: If True, BatchNorm's running statistics are not changed in training.
        with_cp: Recompute blocks in backward to save memory, at the price of a second forward.
        init_cfg: As mmengine's; ``dict(type='mmlk.Pretrained', checkpoint=...)`` loads weights, loudly.

    Raises:
        ValueError: An argument is out of range; the message says which and what it may be.
    """

    #: fnmatch patterns of keys that a pretraining file need not hold (norms that only dense prediction adds)
    optional_weights: Tuple[str, ...] = ()

    def __init__(self, stage_channels: Sequence[int], *, in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3), drop_path_rate: float = 0.0, frozen_stages: int = -1,
                 norm_cfg: dict = dict(type='BN'), norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: Optional[dict] = None):
        super().__init__(init_cfg=init_cfg)
        name, stages = type(self).__name__, len(stage_channels)
        indices = tuple(out_indices) if isinstance(out_indices, (list, tuple)) else ()
        in_range = all(is_integer(index) and 0 <= index < stages for index in indices)
        if not indices or not in_range or len(set(indices)) != len(indices):
            raise ValueError(f'{name}: out_indices must be different numbers in 0..{stages - 1}, got {out_indices!r}')
        if not is_number(drop_path_rate) or not 0 <= drop_path_rate < 1:
            raise ValueError(f'{name}: drop_path_rate must be in [0, 1), got {drop_path_rate!r}')
        self.num_stages = max(indices) + 1
        if not is_integer(frozen_stages) or not -1 <= frozen_stages <= self.num_stages:
            raise ValueError(f'{name}: frozen_stages must be in -1..{self.num_stages}, got {frozen_stages!r}')
        if not is_integer(in_channels) or in_channels < 1:
            raise ValueError(f'{name}: in_channels must be positive, got {in_channels!r}')
        if not isinstance(norm_cfg, dict):
            raise ValueError(f'{name}: norm_cfg must be a dict, got {norm_cfg!r}')
        check_flags(dict(norm_eval=norm_eval, with_cp=with_cp), 'norm_eval', 'with_cp')
        self.in_channels = in_channels
        self.out_indices = indices
        self.out_channels = tuple(stage_channels[i] for i in indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self._norm_cfg = dict(norm_cfg)

    def norm_layer(self, channels: int) -> nn.Module:
        """A norm of the configured type.

        Raises:
            ValueError: ``norm_cfg`` names none, or does not fit it.
        """
        try:
            return build_norm_layer(self._norm_cfg, channels)[1]
        except (AssertionError, KeyError, TypeError, ValueError) as error:  # mmcv and torch raise all of these
            reason = error.args[0] if error.args else type(error).__name__  # str() of a KeyError has quotes around it
            raise ValueError(f'{type(self).__name__}: norm_cfg {self._norm_cfg} gives no norm of {channels} channels: '
                             f'{reason}') from error

    def finish(self) -> None:
        """Freeze what is to be frozen, take inputs in the fastest memory format; the last call of a constructor."""
        for module in self._frozen_modules():
            module.requires_grad_(False)
        set_memory_format(self)

    @property
    def merged(self) -> bool:
        """Whether no block holds parallel branches any more."""
        return all(m.merged for m in self.modules() if isinstance(m, MergeableBranches))

    def parts(self, stage_id: int) -> List[nn.Module]:
        """Modules of the stem (0), or of stage ``stage_id - 1`` with the downsampling before it."""
        raise NotImplementedError

    @property
    def num_layers(self) -> int:
        """Largest layer id of a parameter that pretraining fills."""
        raise NotImplementedError

    def resized_weight(self, name: str, value: Tensor) -> Tensor:
        """A parameter's value out of a file in which it has another shape; ``value`` itself where there is no way.

        Args:
            name: As in ``self.named_parameters()``.
            value: What the file holds.
        """
        return value

    def input_weights(self) -> List[str]:
        """Names, as in ``self.state_dict()``, of the stem's kernels that may see the image: of ``in_channels`` inputs.
        """
        stem = {parameter for part in self.parts(0) for parameter in part.parameters()}
        return [name for name, parameter in self.named_parameters()
                if parameter in stem and parameter.dim() == 4 and parameter.shape[1] == self.in_channels]

    def leaves_out(self, name: str) -> bool:
        """Whether a tensor of this name, which a file holds and the backbone lacks, is of a part that it leaves out.

        Such are classifiers, stages past the last that is built, and norms of maps that are not returned. Any other
        belongs to what the backbone has, which computes something else without it.

        Args:
            name: As in ``self.state_dict()``.
        """
        parts = {part for stage in range(self.num_stages + 1) for part in self.parts(stage)}
        return not any(module in parts and name.startswith(f'{path}.') for path, module in self.named_modules())

    def layer_of(self, name: str) -> int:
        """What :meth:`layer_id` returns, for a name that the backbone has."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning-rate decay: 0 for the stem, up to ``num_layers``.

        A norm that only dense prediction adds, and that no pretraining fills, may have the depth of a head,
        ``num_layers + 1``.

        Args:
            name: As in ``self.named_parameters()``.

        Raises:
            KeyError: The backbone has no such parameter.
        """
        self._check_parameter(name)
        return self.layer_of(name)

    def stage_id(self, name: str) -> int:
        """Depth of a parameter for stage-wise decay: 0 for the stem, i + 1 for stage i and the downsampling before it.

        Args:
            name: As in ``self.named_parameters()``.

        Raises:
            KeyError: The backbone has no such parameter.
        """
        self._check_parameter(name)
        stages = {part: stage for stage in range(self.num_stages + 1) for part in self.parts(stage)}
        path = name.rpartition('.')[0]
        while path:
            module = self.get_submodule(path)
            if module in stages:
                return stages[module]
            path = path.rpartition('.')[0]
        raise KeyError(f"parameter '{name}' of {type(self).__name__} is in no stage")

    def _check_parameter(self, name: str) -> None:
        try:
            self.get_parameter(name)  # unlike a search in named_parameters(), it takes no longer for more parameters
        except AttributeError as error:
            raise KeyError(f"{type(self).__name__} has no parameter '{name}'") from error

    def no_weight_decay(self) -> Set[str]:
        """Names of the parameters that weight decay would harm, as in timm: embeddings, and scales of several
        dimensions.

        Norms, biases and vectors need not be named: a rule of weight decay knows them by their type and shape.
        """
        return set()

    def _frozen_modules(self) -> List[nn.Module]:
        return [part for stage in range(self.frozen_stages + 1) for part in self.parts(stage)]

    def train(self, mode: bool = True) -> 'BaseBackbone':
        super().train(mode)
        if mode:
            for module in self._frozen_modules():
                module.eval()
            if self.norm_eval:
                for module in self.modules():
                    if isinstance(module, BatchNorm):
                        module.eval()
        return self

    def run(self, block: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """``block(x)``, recomputed in backward when ``with_cp``; a compiler decides by itself what it recomputes."""
        if self.with_cp and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return checkpoint(block, x, use_reentrant=False,
                              context_fn=lambda: (nullcontext(), StatisticsKept(block)))
        return block(x)
