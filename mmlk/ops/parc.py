"""ParC, the position-aware circular convolution of ParC-Net, Zhang et al., ECCV 2022, arXiv:2203.03952.

Every output of ParC depends on the whole map, like that of self-attention, at the cost of a convolution. One half of
the channels is convolved along H, the other half along W, each with a kernel as long as the map that wraps around at
its end (:mod:`.circular`). A circular convolution treats all positions alike, so a learned position embedding is added
to the
map first: with it, the layer can distinguish them ("position-aware").

Kernels and embeddings are learned for one map size, the native size. For other sizes they are interpolated.

Official code: https://github.com/hkzhang91/ParC-Net (no licence: only its parameter names and shapes are used).
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
    """Resizes a kernel or embedding (A, B, h, w); returns (A, B, *size).

    The interpolation is bilinear with aligned corners, in float32 or, for float64, in float64, which is also the dtype
    of the result. If the tensor has the size already, it is returned unchanged.
    """
    if not symbolic(*size) and tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    wide = tensor if tensor.dtype == torch.float64 else tensor.float()
    return F.interpolate(wide, tuple(size), mode='bilinear', align_corners=True)


def fitted(tensor: Tensor, x: Tensor, axis: str) -> Tensor:
    """Resizes a kernel or embedding along one axis to the length of the map (:func:`resized`).

    Args:
        tensor: (A, B, h, 1) or (A, B, 1, w).
        x: Map, (N, C, H, W).
        axis: ``'h'`` or ``'w'``.

    Returns:
        (A, B, H, 1) or (A, B, 1, W).
    """
    size = (x.shape[2], 1) if axis == 'h' else (1, x.shape[3])
    if torch.onnx.is_in_onnx_export() and torch.jit.is_tracing():
        # this exporter needs the shape of the kernel as numbers, and a traced length is not one
        size = int(size[0]), int(size[1])
    return resized(tensor, size)


class GlobalConv(nn.Module):
    """Circular convolution along one axis with a kernel that is interpolated to the length of the map.

    Args:
        channels: Number of input and output channels.
        size: Length of the kernel, which is the native length of the map.
        axis: ``'h'`` or ``'w'``.
        groups: Number of groups of channels; None for a depthwise convolution.

    Shape:
        Input and output: (N, C, H, W), for any H and W.

    Raises:
        ValueError: There is no such axis, or ``groups`` does not divide ``channels``.
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
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))  # the initialization of nn.Conv2d, also for the bias
        bound = 1 / math.sqrt(per_group * size)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return circular_conv(x, fitted(self.weight, x, self.axis), self.bias)

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.weight.shape))}, axis='{self.axis}'"


class ParCOperator(nn.Module):
    """ParC along one axis: adds a position embedding, then applies :class:`GlobalConv`.

    The state dict keys are the official ones: ``gcc_conv.{weight,bias}`` and ``pe``.

    Args:
        channels: Number of input and output channels.
        size: Native length of the axis. For other lengths, kernel and embedding are interpolated.
        axis: ``'h'`` or ``'w'``.
        groups: Number of groups of channels; None for a depthwise convolution.
        use_pe: Whether to add the position embedding. Without it, the operator cannot distinguish positions.

    Shape:
        Input and output: (N, C, H, W), for any H and W.
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
    """Returns ``along_h`` of the first half of the channels of ``x`` and ``along_w`` of the second, concatenated."""
    first, second = x.chunk(2, dim=1)
    return torch.cat((along_h(first), along_w(second)), dim=1)


class ParC(nn.Module):
    """ParC: :class:`ParCOperator` along H on the first half of the channels, along W on the second half.

    The state dict keys are ``gcc_H`` and ``gcc_W``, each followed by those of :class:`ParCOperator`.

    Args:
        channels: Number of input and output channels, even.
        size: Native size of the map, an integer or (H, W).
        groups: Number of groups of channels of each half; None for depthwise kernels, 1 for dense ones.
        use_pe: Whether to add position embeddings.

    Shape:
        Input and output: (N, C, H, W), for any H and W.

    Raises:
        ValueError: ``channels`` is odd.
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
    """Returns whether the module is a spatial convolution, depthwise or dense, that keeps the shape of its input."""
    if not isinstance(module, nn.Conv2d) or module.stride != (1, 1) or max(module.kernel_size) == 1:
        return False
    same = module.padding == 'same' or all(
        2 * p == d * (k - 1) for p, d, k in zip(module.padding, module.dilation, module.kernel_size))
    return same and module.in_channels == module.out_channels and module.groups in (1, module.in_channels)


def _late_convs(model: nn.Module, stage: str, count: Optional[int]) -> List[Tuple[str, nn.Conv2d]]:
    """Finds the last convolutions of a stage that can be replaced.

    Args:
        model: The model.
        stage: Name of the stage in the model.
        count: Number of convolutions; None for a third of those that can be replaced, rounded up.

    Returns:
        Their names in the model, and the modules.

    Raises:
        ValueError: There is no such stage, or it does not have that many suitable convolutions.
    """
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
    """Runs the model on an image of zeros and returns the size (H, W) of each convolution's output, by name.

    Raises:
        ValueError: The model does not run one of the convolutions.
    """
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
    """Replaces the spatial convolutions in the last blocks of a ConvNet's stages with :class:`ParC`, in-place.

    In each stage, the last depthwise convolutions with stride 1 are replaced. If a stage has no depthwise ones, its
    dense ones are, for example the 3x3 convolutions in the bottlenecks of ResNet, by a dense ParC. The new operators
    are newly initialized. The official networks correspond to these calls::

        insert_parc(convnext, ['stages.2', 'stages.3'])                    # timm's, or mmlk.ConvNeXt
        insert_parc(resnet50, {'layer3': 3, 'layer4': 1})                  # timm's or torchvision's
        insert_parc(mobilenetv2, {'blocks.3': 2, 'blocks.4': 1, 'blocks.5': 1})  # timm's

    Args:
        model: The model, which is changed.
        stages: Names of submodules, which may be stages or blocks. A dict also gives the number of convolutions to
            replace in each, counted from its end; the default is a third of them, rounded up.
        sizes: Native size of the maps of each stage, an integer or (H, W), for which kernels and embeddings are made.
            None finds them by a forward pass.
        image_size: Size of the image of this forward pass, an integer or (H, W). It should be the image size of
            pretraining.

    Returns:
        ``model``.

    Raises:
        ValueError: There is no such stage, it does not have that many convolutions to replace, or ``sizes`` lacks it.
            The model has not been changed.
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
