"""What :class:`TimmBackbone` knows of single families of timm: branches that merge, maps and names of official code.

Sources: github.com/THU-MIG/RepViT, apple/ml-fastvit, microsoft/FocalNet, naver-ai/rdnet, facebookresearch/ConvNeXt,
facebookresearch/dinov3 and lukemelas/EfficientNet-PyTorch, whose names the files of EfficientNet-Lite have too.
"""
import re
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, cast

import torch
import torch.nn.functional as F
from timm.models import checkpoint, convnext, efficientnet, fastvit, focalnet, rdnet, repvit
from torch import Size, Tensor, nn

from mmlk.layers import ChannelNorm
from mmlk.ops import DepthwiseConv2d
from mmlk.reparam import MergeableBranches
from mmlk.reparam.algebra import KernelBias, centred_sum, fold_bn, fold_identity
from mmlk.reparam.branches import biased

#: Names of the norms on the maps in the state dict.
OUT_NORMS = 'out_norms'


def _merged(folded: KernelBias, like: nn.Conv2d) -> nn.Conv2d:
    """Returns a convolution with the given kernel and bias, and in all else like ``like``."""
    if isinstance(like, DepthwiseConv2d):
        return biased(folded, like)
    kernel, bias = folded
    conv = nn.Conv2d(like.in_channels, like.out_channels, tuple(kernel.shape[2:]), like.stride,
                     tuple(size // 2 for size in kernel.shape[2:]), like.dilation, like.groups).to(like.weight)
    conv.weight.data.copy_(kernel)
    conv.bias.data.copy_(bias)
    return conv.requires_grad_(like.weight.requires_grad)


def _plain(conv: nn.Conv2d) -> KernelBias:
    return conv.weight.double(), conv.bias.double()


def _identity(like: Tensor) -> KernelBias:
    """Returns the depthwise 1x1 convolution that changes nothing, for as many channels as ``like`` has rows."""
    return like.new_ones(len(like), 1, 1, 1).double(), like.new_zeros(len(like)).double()


def _sum(folded: Sequence[KernelBias]) -> KernelBias:
    height, width = (max(kernel.shape[axis] for kernel, _ in folded) for axis in (2, 3))
    return centred_sum(folded, (height, width))


class _TimmBranches(MergeableBranches):
    """A block of timm with branches that merge into ``reparam_conv``, the name that timm and FastViT's code use."""

    @property
    def merged(self) -> bool:
        return self._modules.get('reparam_conv') is not None

    def _replace(self, folded: KernelBias, like: nn.Conv2d, *branches: str) -> None:
        conv = _merged(folded, like)
        for name in branches:
            if hasattr(self, name):
                delattr(self, name)
        self.reparam_conv = conv


class RepVggDw(_TimmBranches, repvit.RepVggDw):
    """RepViT's token mixer: a depthwise 3x3, a depthwise 1x1 and the input itself, with norms."""

    def norms(self) -> List[nn.Module]:
        if self.merged:
            return []
        return [self.conv.bn, self.conv1.bn] if self.legacy else [self.conv.bn, self.bn]

    def merge_branches(self) -> None:
        conv = self.conv.c
        small = fold_bn(self.conv1.c, self.conv1.bn) if self.legacy else _plain(self.conv1)
        folded = _sum([fold_bn(conv, self.conv.bn), small, _identity(conv.weight)])
        if not self.legacy:
            folded = fold_bn(cast(nn.Conv2d, SimpleNamespace(weight=folded[0], bias=folded[1])), self.bn)
        self._replace(folded, conv, 'conv', 'conv1', 'bn')

    def forward(self, x: Tensor) -> Tensor:
        return self.reparam_conv(x) if self.merged else super().forward(x)


class MobileOneBlock(_TimmBranches, fastvit.MobileOneBlock):
    """FastViT's convolution with a parallel 1x1 and a parallel norm."""

    def norms(self) -> List[nn.Module]:
        if self.merged:
            return []
        convs = [*(self.conv_kxk or ()), *([self.conv_scale] if self.conv_scale is not None else ())]
        return [conv.bn for conv in convs] + ([self.identity] if self.identity is not None else [])

    def folded(self) -> KernelBias:
        """Returns kernel and bias of all branches together."""
        folded = [fold_bn(conv.conv, conv.bn) for conv in self.conv_kxk or ()]
        if self.conv_scale is not None:
            folded.append(fold_bn(self.conv_scale.conv, self.conv_scale.bn))
        if self.identity is not None:
            folded.append(fold_identity(self.identity, self.groups))
        return _sum(folded)

    def merge_branches(self) -> None:
        if self.conv_kxk is not None:
            self._replace(self.folded(), self.conv_kxk[0].conv, 'conv_kxk', 'conv_scale', 'identity')


class ReparamLargeKernelConv(_TimmBranches, fastvit.ReparamLargeKernelConv):
    """FastViT's large kernel between stages, with a parallel small one."""

    def norms(self) -> List[nn.Module]:
        return [] if self.merged else [self.large_conv.bn, self.small_conv.bn]

    def merge_branches(self) -> None:
        folded = [fold_bn(conv.conv, conv.bn) for conv in (self.large_conv, self.small_conv)]
        self._replace(_sum(folded), self.large_conv.conv, 'large_conv', 'small_conv')


class RepMixer(_TimmBranches, fastvit.RepMixer):
    """FastViT's token mixer: the input, and the scaled difference between a block of branches and a norm."""

    def norms(self) -> List[nn.Module]:
        return [] if self.merged else [*self.mixer.norms(), *self.norm.norms()]

    def merge_branches(self) -> None:
        conv = self.mixer.conv_kxk[0].conv
        kernel, bias = self.mixer.folded()
        norm, shift = self.norm.folded()
        gamma = self.layer_scale.gamma.double().flatten() if hasattr(self.layer_scale, 'gamma') else 1
        scale = gamma.reshape(-1, 1, 1, 1) if isinstance(gamma, Tensor) else gamma
        folded = [(scale * kernel, gamma * bias), (-scale * norm, -gamma * shift), _identity(conv.weight)]
        self._replace(_sum(folded), conv, 'mixer', 'norm', 'layer_scale')


class RepConditionalPosEnc(_TimmBranches, fastvit.RepConditionalPosEnc):
    """FastViT's position encoding: a depthwise convolution and the input."""

    def norms(self) -> List[nn.Module]:
        return []

    def merge_branches(self) -> None:
        self._replace(_sum([_plain(self.pos_enc), _identity(self.pos_enc.weight)]), self.pos_enc, 'pos_enc')


class PaddedDownsample(focalnet.Downsample):
    """FocalNet's downsampling, of maps padded to whole patches as its official dense code does; timm cuts them off.

    Large FocalNets, whose patches overlap, are as in timm.
    """

    def forward(self, x: Tensor) -> Tensor:
        more = self.stride - 1 if self.proj.kernel_size[0] == self.stride else 0
        return super().forward(F.pad(x, (0, more, 0, more)))  # of which the convolution leaves out what fills no patch


_OURS = {cls.__bases__[-1]: cls for cls in (
    RepVggDw, MobileOneBlock, ReparamLargeKernelConv, RepMixer, RepConditionalPosEnc, PaddedDownsample)}


def adopt(model: nn.Module) -> None:
    """Gives blocks of a timm model the class above with the same parameters, so that they merge, in-place."""
    for module in model.modules():
        module.__class__ = _OURS.get(type(module), type(module))


class LateRepVit(repvit.RepVit):
    """RepViT whose maps are taken after the block before each downsampling, as in its official segmentation code.

    timm and the official detection code take them before that block.
    """

    def forward_intermediates(self, x: Tensor, indices: Sequence[int], **options: Any) -> List[Tensor]:
        def run(part: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
            return checkpoint(part, value) if self.grad_checkpointing else part(value)

        def after(stage: nn.Module) -> Callable[[Tensor], Tensor]:
            """The rest of a stage behind ``pre_block``."""
            down = stage.downsample

            def forward(value: Tensor) -> Tensor:
                value = down.channel_downsample(down.spatial_downsample(value))
                return stage.blocks(value + down.ffn(value))

            return forward

        first, *stages = self.stages
        x = run(first, self.stem(x))
        maps = []
        for stage in stages:
            x = run(stage.downsample.pre_block, x)
            maps.append(x)
            x = run(after(stage), x)
        return [[*maps, x][i] for i in indices]


_CONVNEXT_NORM, _FOCALNET_NORM = (partial(ChannelNorm, eps=eps) for eps in (1e-6, 1e-5))
#: For each family and task, the norm that the official code puts on each map; None if it takes other maps instead.
_DENSE: Dict[Tuple[type, str], Optional[Callable[[int], nn.Module]]] = {
    (convnext.ConvNeXt, 'segmentation'): _CONVNEXT_NORM, (convnext.ConvNeXt, 'detection'): _CONVNEXT_NORM,
    (focalnet.FocalNet, 'segmentation'): _FOCALNET_NORM, (focalnet.FocalNet, 'detection'): _FOCALNET_NORM,
    (fastvit.FastVit, 'segmentation'): nn.BatchNorm2d, (fastvit.FastVit, 'detection'): nn.BatchNorm2d,
    (rdnet.RDNet, 'detection'): partial(nn.GroupNorm, 1),
    (repvit.RepVit, 'segmentation'): None,
}


def make_dense(model: nn.Module, task: str, channels: Mapping[int, int]) -> nn.ModuleDict:
    """Makes a timm model return the maps of its family's official code for a task.

    Args:
        model: The timm model; the class of a RepViT is changed.
        task: ``'segmentation'`` or ``'detection'``.
        channels: Number of channels of each stage whose map is returned.

    Returns:
        The norms of the maps by stage; empty if there are none.

    Raises:
        ValueError: The official code of the family has no other maps than timm.
    """
    key = type(model), task
    if key not in _DENSE:
        known = ', '.join(f'{family.__name__} for {name}' for family, name in _DENSE)
        raise ValueError(f'dense={task!r} is for these models of timm: {known}; all others return the maps of timm, '
                         f'got {type(model).__name__}')
    norm = _DENSE[key]
    if norm is not None:
        return nn.ModuleDict({str(stage): norm(width) for stage, width in channels.items()})
    if max(channels) < len(model.stages) - 1 or len(model.stages) < 4:
        raise ValueError("dense='segmentation' of RepViT takes the map of a stage inside the next one, so out_indices "
                         'must have the last stage')
    model.__class__ = LateRepVit
    return nn.ModuleDict()


class _Whole:
    """Stands for a timm model before stages were cut off, for functions that ask it for the shapes of parameters."""

    def __init__(self, model: nn.Module, shapes: Mapping[str, Size]):
        self._model, self._shapes = model, shapes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def state_dict(self) -> Dict[str, Tensor]:
        return {name: torch.empty(shape, device='meta') for name, shape in self._shapes.items()}


def _repvit_parts(depths: Sequence[int]) -> Iterator[Tuple[str, str]]:
    """Yields the official and timm's beginning of the names of all layers of a RepViT with these numbers of blocks.

    The official code numbers all blocks in one list. A block with stride 1 is ``token_mixer.0`` (branches) and
    ``token_mixer.1`` (squeeze-and-excitation), one with stride 2 is a depthwise and a pointwise convolution.
    """
    yield 'features.0.0.', 'stem.conv1.'
    yield 'features.0.2.', 'stem.conv2.'
    number = 1

    def block(path: str) -> Iterator[Tuple[str, str]]:
        yield f'features.{number}.token_mixer.0.', f'{path}token_mixer.'
        yield f'features.{number}.token_mixer.1.', f'{path}se.'
        yield from mlp(f'{path}channel_mixer.')

    def mlp(path: str) -> Iterator[Tuple[str, str]]:
        yield f'features.{number}.channel_mixer.m.0.', f'{path}conv1.'
        yield f'features.{number}.channel_mixer.m.2.', f'{path}conv2.'

    for i, depth in enumerate(depths):
        if i:
            yield from block(f'stages.{i}.downsample.pre_block.')
            number += 1
            yield f'features.{number}.token_mixer.0.', f'stages.{i}.downsample.spatial_downsample.'
            yield f'features.{number}.token_mixer.2.', f'stages.{i}.downsample.channel_downsample.'
            yield from mlp(f'stages.{i}.downsample.ffn.')
            number += 1
        for j in range(depth):
            yield from block(f'stages.{i}.blocks.{j}.')
            number += 1


def _depths(names: Mapping[str, Size]) -> List[int]:
    """Returns the number of blocks of each stage, from the names of timm's parameters."""
    found: Dict[int, int] = {}
    for name in names:
        match = re.match(r'stages\.(\d+)\.blocks\.(\d+)\.', name)
        if match:
            found[int(match[1])] = max(found.get(int(match[1]), 0), int(match[2]) + 1)
    return [found[i] for i in sorted(found)]


def _renamed(tensors: Dict[str, Tensor], parts: Iterable[Tuple[str, str]]) -> Dict[str, Tensor]:
    """Returns the tensors with the beginning of each name replaced, from pairs of the official and timm's beginning."""
    parts = list(parts)

    def renamed(name: str) -> str:
        return next((ours + name[len(theirs):] for theirs, ours in parts if name.startswith(theirs)), name)

    return {renamed(name): value for name, value in tensors.items()}


def _of_repvit(tensors: Dict[str, Tensor], model: _Whole) -> Dict[str, Tensor]:
    return _renamed(tensors, _repvit_parts(_depths(model._shapes)))


def _of_rdnet(tensors: Dict[str, Tensor], model: _Whole) -> Dict[str, Tensor]:
    """The dense code puts timm's features, of which lists are flattened, into ``timm_model``."""
    tensors = {re.sub(r'^dense_stages_(\d+)\.', r'dense_stages.\1.', name.removeprefix('timm_model.')): value
               for name, value in tensors.items()}
    return rdnet.checkpoint_filter_fn(tensors, model)


def _of_fastvit(tensors: Dict[str, Tensor], model: _Whole) -> Dict[str, Tensor]:
    tensors = {name.replace('.lkb_reparam.', '.reparam_conv.'): value for name, value in tensors.items()}
    return {re.sub(r'(stages\.\d+)\.blocks\.reparam_conv\.', r'\1.pos_emb.reparam_conv.', name): value
            for name, value in fastvit.checkpoint_filter_fn(tensors, model).items()}


def _efficientnet_parts(names: Mapping[str, Size]) -> Iterator[Tuple[str, str]]:
    """Yields EfficientNet-PyTorch's and timm's beginning of the names of all layers.

    The former numbers all blocks in one list. Its first block, which does not expand, has no ``_expand_conv`` and no
    ``_bn0``, and timm counts the norms of every block from 1.
    """
    yield from (('_conv_stem.', 'conv_stem.'), ('_bn0.', 'bn1.'), ('_conv_head.', 'conv_head.'), ('_bn1.', 'bn2.'),
                ('_fc.', 'classifier.'))
    blocks = dict.fromkeys(match[0] for match in (re.match(r'blocks\.\d+\.\d+\.', name) for name in names) if match)
    for number, path in enumerate(blocks):
        expands = f'{path}conv_pwl.weight' in names
        layers = ['_expand_conv', '_bn0'] * expands + ['_depthwise_conv', '_bn1', '_project_conv', '_bn2']
        ours = ['conv_pw', 'bn1', 'conv_dw', 'bn2', 'conv_pwl', 'bn3'] if expands else [
            'conv_dw', 'bn1', 'conv_pw', 'bn2']
        for layer, own in (*zip(layers, ours), ('_se_reduce', 'se.conv_reduce'), ('_se_expand', 'se.conv_expand')):
            yield f'_blocks.{number}.{layer}.', f'{path}{own}.'


def _of_efficientnet(tensors: Dict[str, Tensor], model: _Whole) -> Dict[str, Tensor]:
    return _renamed(tensors, _efficientnet_parts(model._shapes))


_NORM = r'norm(\d)\.'
#: Names of the norms on the maps in official dense code, from a number that is the stage times a step.
_OFFICIAL: Dict[type, Tuple[Callable, str, int]] = {
    convnext.ConvNeXt: (convnext.checkpoint_filter_fn, _NORM, 1),
    focalnet.FocalNet: (focalnet.checkpoint_filter_fn, _NORM, 1),
    fastvit.FastVit: (_of_fastvit, _NORM, 2),
    rdnet.RDNet: (_of_rdnet, r'norm_modules\.(\d)\.', 1),
    efficientnet.EfficientNet: (_of_efficientnet, '(?!)', 1),
    repvit.RepVit: (_of_repvit, '(?!)', 1),
    LateRepVit: (_of_repvit, '(?!)', 1),
}


def translated(tensors: Dict[str, Tensor], model: nn.Module, shapes: Mapping[str, Size],
               own: Sequence[str]) -> Optional[Dict[str, Tensor]]:
    """Translates tensors of a family's official code to timm's names and shapes.

    Args:
        tensors: The tensors by their names in the file.
        model: The timm model.
        shapes: The shape of each tensor in its state dict before stages were cut off.
        own: Names of the tensors that are to be filled.

    Returns:
        The translated tensors; None if the names are those of timm already, or of no code that is known here.
    """
    wanted = set(own)
    if type(model) not in _OFFICIAL or wanted <= set(tensors):
        return None
    convert, norm, step = _OFFICIAL[type(model)]
    norms = {name: re.match(norm, name) for name in tensors}
    try:
        renamed = convert({name: value for name, value in tensors.items() if not norms[name]}, _Whole(model, shapes))
    except (KeyError, RuntimeError):  # a tensor that this model does not have, or of another number of elements
        return None
    renamed.update((f'{OUT_NORMS}.{int(match[1]) // step}.{name[match.end():]}', tensors[name])
                   for name, match in norms.items() if match)
    return renamed if len(wanted & set(renamed)) > len(wanted & set(tensors)) else None
