"""ParC, position-aware global circular convolution: ParC-Net, Zhang et al., ECCV 2022, arXiv:2203.03952.

Official code: https://github.com/hkzhang91/ParC-Net (no licence: only its parameter names and shapes are followed).
"""
import math
from typing import Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .circular import circular_conv
from .layout import symbolic

Size = Union[int, Tuple[int, int]]


def resized(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """A kernel or embedding (A, B, h, w) at another size, bilinear with aligned corners, in float32 or float64.

    At its own size it is the tensor itself.
    """
    if not symbolic(*size) and tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return F.interpolate(wide, tuple(size), mode='bilinear', align_corners=True)


def fitted(tensor: Tensor, x: Tensor, axis: str) -> Tensor:
    """A kernel or embedding along H (``'h'``) or W (``'w'``), :func:`resized` to the length that ``x`` has there."""
    size = (x.shape[2], 1) if axis == 'h' else (1, x.shape[3])
    if torch.onnx.is_in_onnx_export() and torch.jit.is_tracing():
        # that exporter wants to know the kernel's shape, and a traced length is no number
        size = int(size[0]), int(size[1])
    return resized(tensor, size)


class GlobalConv(nn.Module):
    """Convolution with a global kernel along one axis, which is interpolated to the map's own length.

    Args:
        channels: Channels in and out.
        size: Length of the kernel: the map's, natively.
        axis: ``'h'`` or ``'w'``.
        groups: Groups of channels; None for depthwise.

    Shape:
        (N, C, H, W) to the same, any H and W.
    """

    def __init__(self, channels: int, size: int, axis: str, groups: Optional[int] = None):
        super().__init__()
        if axis not in ('h', 'w'):
            raise ValueError(f"axis must be 'h' or 'w', got '{axis}'")
        per_group, rest = divmod(channels, groups or channels)
        if rest:
            raise ValueError(f'{channels} channels do not divide into {groups} groups')
        self.axis = axis
        self.weight = nn.Parameter(torch.empty(channels, per_group, *((size, 1) if axis == 'h' else (1, size))))
        self.bias = nn.Parameter(torch.empty(channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # as nn.Conv2d does, bias too
        bound = 1 / math.sqrt(per_group * size)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return circular_conv(x, fitted(self.weight, x, self.axis), self.bias)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.weight.shape))}, axis='{self.axis}'"


class ParCOperator(nn.Module):
    """ParC along one axis: an embedding of the position on that axis is added, then a global convolution.

    Keys, as the official ones: ``gcc_conv.{weight,bias}`` and ``pe``.

    Args:
        channels: Channels in and out.
        size: Native length of the axis; kernel and embedding are interpolated to others.
        axis: ``'h'`` or ``'w'``.
        groups: Groups of channels; None for depthwise.
        use_pe: Whether to add the embedding, without which the operator does not know where it is.

    Shape:
        (N, C, H, W) to the same, any H and W.
    """

    def __init__(self, channels: int, size: int, axis: str, groups: Optional[int] = None, use_pe: bool = True):
        super().__init__()
        self.gcc_conv = GlobalConv(channels, size, axis, groups)
        shape = (1, channels, *self.gcc_conv.weight.shape[2:])
        self.pe = nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02)) if use_pe else None

    def forward(self, x: Tensor) -> Tensor:
        if self.pe is not None:
            x = x + fitted(self.pe, x, self.gcc_conv.axis).to(x.dtype)
        return self.gcc_conv(x)


def parc(x: Tensor, along_h: nn.Module, along_w: nn.Module) -> Tensor:
    """``along_h`` of the first half of the channels beside ``along_w`` of the second."""
    first, second = x.chunk(2, dim=1)
    return torch.cat((along_h(first), along_w(second)), dim=1)


class ParC(nn.Module):
    """ParC on a map: along H on the first half of the channels, along W on the second. Keys ``gcc_H`` and ``gcc_W``.

    Args:
        channels: Channels in and out, even.
        size: Native size of the map, one length or (H, W).
        groups: Groups of channels of each half; None for depthwise, 1 for dense kernels.
        use_pe: Whether to add position embeddings.

    Shape:
        (N, C, H, W) to the same, any H and W.
    """

    def __init__(self, channels: int, size: Size, groups: Optional[int] = None, use_pe: bool = True):
        super().__init__()
        if channels % 2:
            raise ValueError(f'ParC halves the channels, so they must be even; got {channels}')
        height, width = (size, size) if isinstance(size, int) else size
        self.gcc_H = ParCOperator(channels // 2, height, 'h', groups, use_pe)
        self.gcc_W = ParCOperator(channels // 2, width, 'w', groups, use_pe)

    def forward(self, x: Tensor) -> Tensor:
        return parc(x, self.gcc_H, self.gcc_W)


def _replaceable(module: nn.Module) -> bool:
    """Whether it is a spatial convolution that keeps the map's shape, depthwise or with full kernels."""
    if not isinstance(module, nn.Conv2d) or module.stride != (1, 1) or max(module.kernel_size) == 1:
        return False
    same = module.padding == 'same' or all(
        2 * p == d * (k - 1) for p, d, k in zip(module.padding, module.dilation, module.kernel_size))
    return same and module.in_channels == module.out_channels and module.groups in (1, module.in_channels)


def _late_convs(model: nn.Module, stage: str, count: Optional[int]) -> List[Tuple[str, nn.Conv2d]]:
    """Names and modules of the stage's last ``count`` convolutions that can be replaced, a third by default."""
    try:
        root = model.get_submodule(stage)
    except AttributeError:
        names = ', '.join(name for name, child in model.named_modules() if name and any(child.children()))
        raise ValueError(f"{type(model).__name__} has no stage '{stage}'; it has {names}") from None
    if any(hasattr(m, 'merge_branches') and not m.merged for m in root.modules()):
        raise ValueError(f"'{stage}' has parallel branches; merge them first (mmlk.reparam.merge)")
    found = [(f'{stage}.{name}'.strip('.'), m) for name, m in root.named_modules() if _replaceable(m)]
    found = [pair for pair in found if pair[1].groups > 1] or found
    if not found:
        raise ValueError(f"'{stage}' has no convolution to replace: depthwise or dense, with a spatial kernel, that "
                         'keeps the shape of its map')
    count = -(-len(found) // 3) if count is None else count
    if not 1 <= count <= len(found):
        raise ValueError(f"'{stage}' has {len(found)} convolutions to replace, not {count}")
    odd = [name for name, conv in found[-count:] if conv.in_channels % 2]
    if odd:
        raise ValueError(f'ParC halves the channels, and {odd[0]} has an odd number of them')
    return found[-count:]


def _native_sizes(model: nn.Module, convs: Dict[str, nn.Conv2d], image_size: Size) -> Dict[str, Tuple[int, int]]:
    """Size of each convolution's map when the model sees an image of that size."""
    sizes, modes = {}, {module: module.training for module in model.modules()}
    hooks = [conv.register_forward_hook(lambda m, args, out, name=name: sizes.update({name: tuple(out.shape[-2:])}))
             for name, conv in convs.items()]
    stem = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    image = stem.weight.new_zeros(1, stem.in_channels, height, width)
    try:
        model.eval()
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes.items():
            module.training = training
    unseen = [name for name in convs if name not in sizes]
    if unseen:
        raise ValueError(f'{type(model).__name__} does not run {unseen[0]} on an image; give sizes')
    return sizes


def insert_parc(model: nn.Module, stages: Union[Sequence[str], Mapping[str, int]],
                sizes: Optional[Mapping[str, Size]] = None, image_size: Size = 224) -> nn.Module:
    """Put :class:`ParC` into the late blocks of a ConvNet, in place of their spatial convolutions.

    In each stage it takes the depthwise convolutions of stride 1, and where there are none the dense ones (the 3x3 of a
    ResNet's bottlenecks, whose ParC is dense too); the last of them are replaced, by freshly initialised operators. The
    official networks have it at these places::

        insert_parc(convnext, ['stages.2', 'stages.3'])                    # timm's, or mmlk.ConvNeXt
        insert_parc(resnet50, {'layer3': 3, 'layer4': 1})                  # timm's or torchvision's
        insert_parc(mobilenetv2, {'blocks.3': 2, 'blocks.4': 1, 'blocks.5': 1})  # timm's

    Args:
        model: The model, changed in place.
        stages: Names of submodules: whole stages, or single blocks; with the number of convolutions to replace in each,
            counted from its end, or without, for a third of them, rounded up.
        sizes: Native size of the maps of each stage, one length or (H, W): what kernels and embeddings are made for.
            None looks at a forward pass.
        image_size: The image of that pass, one side or (H, W): the resolution of pretraining.

    Returns:
        The model.

    Raises:
        ValueError: There is no such stage, it has nothing to replace, not that many, or sizes lacks it. Nothing has
            been changed then.
    """
    counts = stages if isinstance(stages, Mapping) else dict.fromkeys([stages] if isinstance(stages, str) else stages)
    if not counts:
        raise ValueError('insert_parc needs at least one stage')
    convs = {stage: dict(_late_convs(model, stage, count)) for stage, count in counts.items()}
    native: Mapping[str, Size]
    if sizes is None:
        native = _native_sizes(model, {name: c for found in convs.values() for name, c in found.items()}, image_size)
    else:
        lacking = [stage for stage in counts if stage not in sizes]
        if lacking:
            raise ValueError(f'sizes lacks {", ".join(lacking)}')
        native = {name: sizes[stage] for stage, found in convs.items() for name in found}
    for found in convs.values():
        for name, conv in found.items():
            operator = ParC(conv.in_channels, native[name], None if conv.groups > 1 else 1)
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, operator.to(conv.weight).train(conv.training))
    return model
