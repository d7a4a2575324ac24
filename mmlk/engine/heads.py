"""The classes of heads of one channel, whose logit tells one class from the background, and of all others."""
from typing import Any, List, Sequence

import torch
from torch import Tensor, nn


def classes_of(head: Any) -> int:
    """How many labels a head tells apart: 2 where it has one channel, whether its ``num_classes`` is 2 or, of a loss
    with ``use_sigmoid``, 1."""
    return 2 if getattr(head, 'out_channels', None) == 1 else head.num_classes


def _decode_head(segmentor: nn.Module) -> Any:
    head = getattr(segmentor, 'decode_head', None)
    return head[-1] if isinstance(head, nn.ModuleList) else head


def labels_of(segmentor: nn.Module, logits: Tensor) -> Tensor:
    """The label of each pixel, (H, W) int64, by logits (C, H, W), as mmseg decides."""
    if len(logits) > 1:
        return logits.argmax(0)
    return (logits[0].sigmoid() > _decode_head(segmentor).threshold).to(torch.int64)


def names_by_label(classes: Sequence[str], model: nn.Module) -> List[str]:
    """Class names for the labels that a model gives. Where a segmentor's head has one channel and a dataset names one
    class, label 0 is the background."""
    one = getattr(_decode_head(model), 'out_channels', None) == 1
    return ['background', *classes] if one and len(classes) == 1 else list(classes)
