"""Parameters and multiply-adds of backbones, segmentors and detectors, counted on the meta device.

What is counted is what the published tables count.

- One multiply-add is one operation ("FLOPs" in the papers). Convolutions, transposed ones and matrix products
  count, those of attention included; norms, activations, pooling, resizing and RoIAlign do not. A convolution
  with a (kh, kw) kernel and g groups on a (C, H, W) output costs H * W * C * kh * kw * C_in / g.
- A segmentor is counted without its auxiliary head, parameters and multiply-adds, which testing does not run.
- A two-stage detector, as mmdet 2.x counted it: the RPN on every level, 1000 proposals through each box stage
  and 100 through each mask stage.
- Papers that merge branches after training count the merged form: :func:`build` makes it.
"""
import copy
from dataclasses import dataclass
from itertools import chain
from typing import List, Set, Tuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mmlk.ops.global_filter import multiply_adds as transform_multiply_adds

BOX_PROPOSALS = 1000
MASK_PROPOSALS = 100

# Fourier transforms of real maps, of which PyTorch's counter knows nothing; the inverse costs what the transform does
TRANSFORMS = {
    torch.ops.aten._fft_r2c: lambda x, dim, *_, **__: 2 * transform_multiply_adds(x, dim),
    torch.ops.aten._fft_c2r: lambda x, dim, *_, out_shape, **__: 2 * transform_multiply_adds(out_shape, dim),
}


@dataclass(frozen=True)
class Complexity:
    """Counts of one model: ``parameters``, and ``macs``, multiply-adds for one image."""
    parameters: int
    macs: int

    def __str__(self) -> str:
        return f'{self.parameters / 1e6:.1f}M parameters, {self.macs / 1e9:.1f}G multiply-adds'


def build(cfg: Config, merged: bool = True) -> nn.Module:
    """The model of a config on the meta device: shapes without values.

    Args:
        cfg: A whole config, with ``model`` and ``default_scope``.
        merged: Build backbones of mmlk with their parallel branches merged. Others have none.
    """
    model = copy.deepcopy(cfg.model)
    if model.backbone.type.startswith('mmlk.'):
        model.backbone.merged = merged
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')), _EmptyOnMeta():
        return MODELS.build(model).to('meta')


def count(model: nn.Module, size: Tuple[int, int], in_channels: int = 3) -> Complexity:
    """Count a model on one image, by the conventions above. The model itself is neither run nor changed.

    Args:
        model: A segmentor of mmseg, a one- or two-stage detector of mmdet, or a module that takes
            (N, C, H, W). On any device; on the meta device it needs no memory.
        size: Height and width of the image.
        in_channels: Channels of the image.

    Raises:
        NotImplementedError: The model runs an operator whose cost is not known; the message names it.
    """
    model = _meta_copy(model)
    image = torch.empty(1, in_channels, *size, device='meta')
    unknown = _UnknownOperators()
    counter = FlopCounterMode(display=False, custom_mapping=TRANSFORMS)
    with torch.no_grad(), counter, unknown:
        _run(model, image)
    if unknown.names:
        raise NotImplementedError(f"multiply-adds of {', '.join(sorted(unknown.names))} are not known")
    parameters = sum(p.numel() for p in model.parameters())
    if getattr(model, 'with_auxiliary_head', False):
        parameters -= sum(p.numel() for p in model.auxiliary_head.parameters())
    return Complexity(parameters, counter.get_total_flops() // 2)  # PyTorch counts a multiply-add as two


class _EmptyOnMeta(TorchFunctionMode):
    """Puts what ``torch.empty`` makes, large parameters above all, on the meta device.

    ``with torch.device('meta')`` would take ``torch.linspace`` too, whose values Swin's constructor reads.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(dict(kwargs or {}, device='meta') if func is torch.empty else kwargs or {}))


class _UnknownOperators(TorchDispatchMode):
    """Collects operators that do real work and that PyTorch's counter takes for free."""

    def __init__(self):
        super().__init__()
        self.names: Set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = func.namespace in ('aten', 'prim', 'prims') and 'fft' not in func.__name__
        if not known and func.overloadpacket not in TRANSFORMS:
            self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def _meta_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode whose parameters and buffers have shapes and no values."""
    memo = {}
    for tensor in chain(model.parameters(), model.buffers()):
        empty = torch.empty_like(tensor, device='meta')
        if isinstance(tensor, nn.Parameter):
            empty = nn.Parameter(empty, tensor.requires_grad)
        memo[id(tensor)] = empty
    empty_model = copy.deepcopy(model, memo)
    empty_model.eval()  # mmdet's ResNet does not return itself
    return empty_model


def _run(model: nn.Module, image: Tensor) -> None:
    if hasattr(model, 'roi_head'):
        _run_two_stage(model, image)
    elif hasattr(model, 'decode_head') or hasattr(model, 'bbox_head'):
        model(image, mode='tensor')
    else:
        model(image)


def _run_two_stage(model: nn.Module, image: Tensor) -> None:
    features = model.extract_feat(image)
    if model.with_rpn:
        model.rpn_head(features)
    head = model.roi_head
    stages = [(head.bbox_roi_extractor, head.bbox_head, BOX_PROPOSALS)]
    if head.with_mask:
        stages.append((head.mask_roi_extractor, head.mask_head, MASK_PROPOSALS))
    for extractors, heads, proposals in stages:
        for extractor, stage in zip(_as_list(extractors), _as_list(heads)):
            # RoIAlign, which does not run on the meta device and is not counted, would give these shapes
            side = extractor.roi_layers[0].output_size
            stage(image.new_empty(proposals, extractor.out_channels, *side))


def _as_list(modules: nn.Module) -> List[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
