"""Labels and class names of heads with one output channel per class, and of binary heads with a single channel.

The logit of a single channel separates one class from the background.
"""
from typing import Any, List, Sequence

import torch
from torch import Tensor, nn


def classes_of(head: Any) -> int:
    """Returns the number of labels that a head predicts.

    It is 2 for a head with one channel, whose ``num_classes`` may be 2 or, for a loss with ``use_sigmoid``, 1.
    """
    return 2 if getattr(head, 'out_channels', None) == 1 else head.num_classes


def _decode_head(segmentor: nn.Module) -> Any:
    head = getattr(segmentor, 'decode_head', None)
    return head[-1] if isinstance(head, nn.ModuleList) else head


def labels_of(segmentor: nn.Module, logits: Tensor) -> Tensor:
    """Returns the label of each pixel, (H, W), int64, from logits, (C, H, W), by the same rule as mmseg."""
    if len(logits) > 1:
        return logits.argmax(0)
    return (logits[0].sigmoid() > _decode_head(segmentor).threshold).to(torch.int64)


def names_by_label(classes: Sequence[str], model: nn.Module) -> List[str]:
    """Returns a class name for each label that a model predicts.

    If the head of a segmentor has one channel and the dataset has one class, label 0 is named ``'background'``.
    """
    one = getattr(_decode_head(model), 'out_channels', None) == 1
    return ['background', *classes] if one and len(classes) == 1 else list(classes)
