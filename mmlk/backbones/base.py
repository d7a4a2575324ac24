"""The base class of all backbones: checks of arguments, freezing, activation checkpointing, stage and layer ids."""
import math
from contextlib import nullcontext
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Set, Tuple, Union

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
    """Returns the settings of an arch as a new dict with all keys.

    Args:
        arch: A name in ``known``, or a dict.
        known: The settings of the named archs.
        required: Keys that a dict must have.
        defaults: Default values of the other keys.
        family: Name of the family, for messages.

    Raises:
        ValueError: The name is unknown, or the dict has an unknown key or lacks a required one.
        TypeError: ``arch`` is neither a name nor a dict.
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
    """Returns whether the value is an integer. True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Returns whether the value is a finite integer or float."""
    return is_integer(value) or isinstance(value, float) and math.isfinite(value)


def check_sequences(arch: Dict[str, Any], *keys: str) -> None:
    """Raises a ValueError if one of ``keys`` of a resolved arch is not a list or tuple."""
    for key in keys:
        if not isinstance(arch[key], (list, tuple)):
            raise ValueError(f'{key} must be a list or a tuple, got {arch[key]!r}')


def check_per_stage(arch: Dict[str, Any], *keys: str) -> None:
    """Raises a ValueError if ``keys`` of a resolved arch are not sequences with one entry per stage.

    There must be at least one stage.
    """
    check_sequences(arch, *keys)
    lengths = [len(arch[key]) for key in keys]
    if len(set(lengths)) > 1 or not lengths[0]:
        *names, last_name = keys
        *counts, last_count = map(str, lengths)
        raise ValueError(f"{', '.join(names)} and {last_name} must have one entry per stage, "
                         f"got {', '.join(counts)} and {last_count}")


def check_positive(arch: Dict[str, Any], *keys: str) -> None:
    """Raises a ValueError if one of ``keys`` of a resolved arch is not a sequence of positive integers."""
    check_sequences(arch, *keys)
    for key in keys:
        if not all(is_integer(v) and v > 0 for v in arch[key]):
            raise ValueError(f'{key} must be positive integers, got {tuple(arch[key])}')


def check_not_negative(arch: Dict[str, Any], *keys: str) -> None:
    """Raises a ValueError if one of ``keys`` of a resolved arch is not a finite number of at least 0."""
    for key in keys:
        if not is_number(arch[key]) or arch[key] < 0:
            raise ValueError(f'{key} must be a number of at least 0, got {arch[key]!r}')


def check_flags(arch: Dict[str, Any], *keys: str) -> None:
    """Raises a ValueError if one of ``keys`` of a resolved arch is not a bool: the text 'False' would count as True."""
    for key in keys:
        if not isinstance(arch[key], bool):
            raise ValueError(f'{key} must be True or False, got {arch[key]!r}')


def per_block(family: str, name: str, values: Sequence[Union[int, Sequence[int]]],
              blocks: Sequence[int]) -> List[Tuple[int, ...]]:
    """Expands numbers given per stage to numbers per block.

    Args:
        family: Name of the family, for messages.
        name: Name of the argument, for messages.
        values: For each stage one number, or a sequence with one number for each of its blocks.
        blocks: Number of blocks of each stage.

    Returns:
        One tuple per stage, with one number per block.

    Raises:
        ValueError: There are too few or too many numbers, or one is not a positive integer.
    """
    full: List[Tuple[Any, ...]] = [tuple(v) if isinstance(v, (list, tuple)) else (v, ) * n
                                   for v, n in zip(values, blocks)]
    fits = len(values) == len(blocks) and all(len(numbers) == n for numbers, n in zip(full, blocks))
    if not fits or not all(is_integer(v) and v > 0 for numbers in full for v in numbers):
        raise ValueError(f'{family}: {name} must be {len(blocks)} positive integers, or as many as its blocks for a '
                         f'stage, got {tuple(values)}')
    return full


def check_kernels(arch: Dict[str, Any], key: str, small_kernel: Optional[int] = None) -> None:
    """Raises a ValueError if kernel sizes of a resolved arch are not odd and positive.

    Args:
        arch: The resolved arch.
        key: Key of the kernel sizes.
        small_kernel: Size of the parallel small kernel, if any. It must be odd and not larger than any of the others.
    """
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
    """A context manager in which BatchNorm does not update its running statistics.

    With activation checkpointing the forward pass is computed a second time in the backward pass, and a batch must not
    be counted twice. With ``retain_graph=True`` the same context is entered several times, which a context manager made
    of a generator does not support.
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
    """Base class of the backbones. It documents the arguments that all of them share.

    ``forward`` takes an image (N, in_channels, H, W) and returns a tuple with one map for each of ``out_indices``. A
    subclass calls ``super().__init__`` first, creates its modules, and calls ``self.finish()`` at the end. It
    implements ``forward``, ``parts``, ``layer_of`` and ``num_layers``.

    Args:
        stage_channels: Number of channels of each stage of the arch.
        in_channels: Number of channels of the image.
        out_indices: Indices of the stages whose maps are returned, in this order. Stages after the last one of them are
            not created.
        drop_path_rate: Drop rate (stochastic depth) of the last block, in [0, 1). It increases linearly from 0.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages with the norms on their maps.
            Frozen modules have no gradients and stay in eval mode.
        norm_cfg: Norm layer config for mmcv's ``build_norm_layer``.
        norm_eval: If True, BatchNorm's running statistics are not changed in training.
        with_cp: If True, recomputes blocks in the backward pass to save memory (activation checkpointing).
        merged: If True, builds the form that :func:`mmlk.reparam.merge` returns. It has no effect on a backbone without
            parallel branches.
        init_cfg: Initialization config of mmengine. ``dict(type='mmlk.Pretrained', checkpoint='replknet-31b_in1k')``
            loads weights, and raises an error if they do not match. ``checkpoint`` is a file, a URL or a name that
            ``mmlk weights list`` prints.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    #: fnmatch patterns of keys that a file of pretrained weights may lack: norms that only dense prediction adds
    optional_weights: Tuple[str, ...] = ()

    def __init__(self, stage_channels: Sequence[int], *, in_channels: int = 3,
                 out_indices: Sequence[int] = (0, 1, 2, 3), drop_path_rate: float = 0.0, frozen_stages: int = -1,
                 norm_cfg: dict = dict(type='BN'), norm_eval: bool = False, with_cp: bool = False,
                 merged: bool = False, init_cfg: Optional[dict] = None):
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
        check_flags(dict(norm_eval=norm_eval, with_cp=with_cp, merged=merged), 'norm_eval', 'with_cp', 'merged')
        self.in_channels = in_channels
        self.out_indices = indices
        self.out_channels = tuple(stage_channels[i] for i in indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self._norm_cfg = dict(norm_cfg)

    def norm_layer(self, channels: int) -> nn.Module:
        """Returns a new norm layer of the type in ``norm_cfg``.

        Raises:
            ValueError: ``norm_cfg`` has no known type, or arguments that the type does not accept.
        """
        try:
            return build_norm_layer(self._norm_cfg, channels)[1]
        except (AssertionError, KeyError, TypeError, ValueError) as error:  # mmcv and torch raise all of these
            reason = error.args[0] if error.args else type(error).__name__  # str() of a KeyError would add quotes
            raise ValueError(f'{type(self).__name__}: norm_cfg {self._norm_cfg} gives no norm of {channels} channels: '
                             f'{reason}') from error

    def finish(self) -> None:
        """Freezes stages and sets the fastest memory format. Must be the last call of a constructor."""
        for module in self._frozen_modules():
            module.requires_grad_(False)
        set_memory_format(self)

    @property
    def merged(self) -> bool:
        """Whether all blocks with parallel branches have been merged."""
        return all(m.merged for m in self.modules() if isinstance(m, MergeableBranches))

    def parts(self, stage_id: int) -> List[nn.Module]:
        """Returns the modules of the stem (0), or of stage ``stage_id - 1`` with the downsampling before it."""
        raise NotImplementedError

    def _opened_parts(self, stage_id: int, openings: nn.ModuleList, stages: nn.ModuleList) -> List[nn.Module]:
        """Returns :meth:`parts` of a backbone with a module before each stage, and norms ``norm<i>`` of its maps."""
        if stage_id == 0:
            return [openings[0]]
        stage = stage_id - 1
        before = [openings[stage]] if stage else []
        after = [self._modules[f'norm{stage}']] if stage in self.out_indices else []
        return [*before, stages[stage], *after]

    @property
    def num_layers(self) -> int:
        """Returns the largest layer id of a parameter that pretrained weights contain."""
        raise NotImplementedError

    def resized_weight(self, name: str, value: Tensor) -> Tensor:
        """Converts the value of a parameter that has another shape in a file of weights.

        Args:
            name: Name of the parameter, as in ``self.named_parameters()``.
            value: The value in the file.

        Returns:
            The value in the parameter's shape; ``value`` itself if it cannot be converted.
        """
        return value

    def input_weights(self) -> List[str]:
        """Returns the names, as in ``self.state_dict()``, of the stem's kernels with ``in_channels`` input channels.

        These are the ones that can be applied to the image.
        """
        stem = {parameter for part in self.parts(0) for parameter in part.parameters()}
        return [name for name, parameter in self.named_parameters()
                if parameter in stem and parameter.dim() == 4 and parameter.shape[1] == self.in_channels]

    def leaves_out(self, name: str) -> bool:
        """Returns whether a tensor in a file of weights belongs to a part that this backbone does not have by design.

        These parts are classifiers, stages after the last one that is created, and norms of maps that are not returned.
        Any other tensor that the backbone does not have means that it would compute something else than intended.

        Args:
            name: Name of the tensor, as in ``self.state_dict()``.
        """
        parts = {part for stage in range(self.num_stages + 1) for part in self.parts(stage)}
        return not any(module in parts and name.startswith(f'{path}.') for path, module in self.named_modules())

    def layer_of(self, name: str) -> int:
        """Returns what :meth:`layer_id` returns, for a parameter that exists."""
        raise NotImplementedError

    def layer_id(self, name: str) -> int:
        """Returns the layer id of a parameter, for layer-wise learning rate decay.

        The id is 0 for the stem and at most ``num_layers``. Norms that only dense prediction adds, and that are
        therefore not pretrained, may have the id of a head, ``num_layers + 1``.

        Args:
            name: Name of the parameter, as in ``self.named_parameters()``.

        Raises:
            KeyError: The backbone has no such parameter.
        """
        self._check_parameter(name)
        return self.layer_of(name)

    def stage_id(self, name: str) -> int:
        """Returns the stage id of a parameter, for stage-wise learning rate decay.

        The id is 0 for the stem, and i + 1 for stage i and the downsampling before it.

        Args:
            name: Name of the parameter, as in ``self.named_parameters()``.

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
            self.get_parameter(name)  # faster than a search in named_parameters()
        except AttributeError as error:
            raise KeyError(f"{type(self).__name__} has no parameter '{name}'") from error

    def no_weight_decay(self) -> Set[str]:
        """Returns the names of parameters without weight decay, as in timm: embeddings, and scales of several
        dimensions.

        Norms, biases and vectors need not be included, because optimizers recognize them by type and shape.
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

    def run_stages(self, x: Tensor, stages: Iterable[Iterable[nn.Module]]) -> Tuple[Tensor, ...]:
        """Runs the blocks of all stages, and returns the maps of ``out_indices``."""
        maps = []
        for blocks in stages:
            for block in blocks:
                x = self.run(block, x)
            maps.append(x)
        return tuple(maps[i] for i in self.out_indices)

    def run(self, block: Callable[..., Any], *inputs: Tensor) -> Any:
        """Returns ``block(*inputs)``, with activation checkpointing if ``with_cp``, except under ``torch.compile``."""
        if self.with_cp and self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return checkpoint(block, *inputs, use_reentrant=False,
                              context_fn=lambda: (nullcontext(), StatisticsKept(block)))
        return block(*inputs)


class _PatchEmbedBackbone(BaseBackbone):
    """Base class of backbones whose stage i, counted from 1, is ``patch_embed<i>``, a list of blocks, and ``norm<i>``.

    The norm after a stage is also part of the input of the next stage.
    """

    #: name of the lists of blocks, without the number of the stage
    blocks_name: str

    def blocks_of(self, stage: int) -> nn.ModuleList:
        """Returns the blocks of a stage. Stages are counted from 1, as in the names of the modules."""
        return self._modules[f'{self.blocks_name}{stage}']

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        maps = []
        for stage in range(1, self.num_stages + 1):
            x = self.run(self._modules[f'patch_embed{stage}'], x)
            for block in self.blocks_of(stage):
                x = self.run(block, x)
            x = self._modules[f'norm{stage}'](x)
            maps.append(x)
        return tuple(maps[i] for i in self.out_indices)

    def parts(self, stage_id: int) -> List[nn.Module]:
        if stage_id == 0:
            return [self.patch_embed1]
        before = [self._modules[f'patch_embed{stage_id}']] if stage_id > 1 else []
        return [*before, self.blocks_of(stage_id), self._modules[f'norm{stage_id}']]
