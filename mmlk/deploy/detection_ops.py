"""Four operators of detectors that PyTorch's exporter records as one node each, and what they are in ONNX.

How many boxes are left depends on the image. As whole operators they have sizes that ``torch.export`` can follow, and
each becomes standard operators of ONNX: TopK, NonMaxSuppression and RoiAlign.
"""
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch import Tensor

PADDED = -1.0  # score of places that hold no box


@torch.library.custom_op('mmlk::top_scores', mutates_args=())
def top_scores(scores: Tensor, count: int) -> Tuple[Tensor, Tensor]:
    """Returns the highest scores and their indices, both (count,), the highest first.

    Args:
        scores: (N,).
        count: How many. If N is smaller, the last scores are ``PADDED`` and their indices 0.
    """
    values, indices = scores.sort(descending=True)
    lacking = (0, max(0, count - len(scores)))
    return (torch.nn.functional.pad(values[:count], lacking, value=PADDED),
            torch.nn.functional.pad(indices[:count], lacking))


@top_scores.register_fake
def _(scores: Tensor, count: int) -> Tuple[Tensor, Tensor]:
    return scores.new_empty(count), scores.new_empty(count, dtype=torch.long)


@torch.library.custom_op('mmlk::pad_to_multiples', mutates_args=())
def pad_to_multiples(images: Tensor, divisor: int, value: float) -> Tensor:
    """Pads images, (N, C, H, W), at the right and at the bottom until their sides are multiples of ``divisor``.

    For an exporter the sides are new unknowns times the divisor: that they are multiples is then known to all layers
    that divide them.
    """
    return torch.nn.functional.pad(images, (0, -images.shape[3] % divisor, 0, -images.shape[2] % divisor), value=value)\
        .clone()


@pad_to_multiples.register_fake
def _(images: Tensor, divisor: int, value: float) -> Tensor:
    context = torch.library.get_ctx()
    sides = [context.new_dynamic_size(min=2) for _ in range(2)]
    return images.new_empty(*images.shape[:2], *(divisor * side for side in sides))


@torch.library.custom_op('mmlk::suppress', mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Returns the indices of boxes that no box of a higher score overlaps, by decreasing score, (kept,).

    Args:
        boxes: (N, 4): left, top, right, bottom.
        scores: (N,). Boxes whose score is ``PADDED`` are left out.
        iou_threshold: Intersection over union above which the box of the lower score is left out.
        most: Maximum number of indices; 0 for no maximum.
    """
    import torchvision
    there, = (scores > PADDED / 2).nonzero(as_tuple=True)
    kept = there[torchvision.ops.nms(boxes[there], scores[there], iou_threshold)]
    return kept[:most].clone() if most else kept


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    return scores.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.long)


@torch.library.custom_op('mmlk::regions', mutates_args=())
def regions(maps: List[Tensor], boxes: Tensor, levels: Tensor, scales: List[float], height: int, width: int,
            samples: int, aligned: bool) -> Tensor:
    """Returns the features in boxes, each from one of several maps, (N, C, height, width).

    Args:
        maps: The maps of one image, each (1, C, h, w).
        boxes: (N, 4), in pixels of the image: left, top, right, bottom.
        levels: (N,), int64, the index of each box's map.
        scales: Size of each map, relative to the image.
        height, width: How many cells a box is divided into.
        samples: Points of a cell along each axis that are averaged; 0 for as many as the cell has elements of the map.
        aligned: Whether coordinates are shifted by half an element, as is right.
    """
    import torchvision
    found = maps[0].new_zeros(len(boxes), maps[0].shape[1], height, width)
    for level, (features, scale) in enumerate(zip(maps, scales)):
        of_level, = (levels == level).nonzero(as_tuple=True)
        found[of_level] = torchvision.ops.roi_align(features, [boxes[of_level]], (height, width), scale, samples,
                                                    aligned)
    return found


@regions.register_fake
def _(maps: List[Tensor], boxes: Tensor, levels: Tensor, scales: List[float], height: int, width: int, samples: int,
      aligned: bool) -> Tensor:
    return maps[0].new_empty(boxes.shape[0], maps[0].shape[1], height, width)


def onnx_translations() -> Dict[Callable, Callable]:
    """Returns for each operator the function that writes its nodes, as ``torch.onnx.export`` takes them."""
    from onnxscript import opset18 as op

    def top(scores: Any, count: int) -> Tuple[Any, Any]:
        wanted = op.Constant(value_ints=[count])
        there = op.Min(op.Shape(scores), wanted)
        values, indices = op.TopK(scores, there, axis=0, largest=1, sorted=1)
        lacking = op.Concat(op.Constant(value_ints=[0]), op.Sub(wanted, there), axis=0)
        return (op.Pad(values, lacking, op.Constant(value_float=PADDED)),
                op.Pad(indices, lacking, op.Constant(value_int=0)))

    def padded(images: Any, divisor: int, value: float) -> Any:
        shape, divisors = op.Shape(images), op.Constant(value_ints=[1, 1, divisor, divisor])
        zeros = op.Constant(value_ints=[0, 0, 0, 0])
        rest = op.Mod(op.Sub(zeros, shape), divisors)  # with the sign of the divisor, as in Python
        return op.Pad(images, op.Concat(zeros, rest, axis=0), op.Constant(value_float=value))

    def suppressed(boxes: Any, scores: Any, iou_threshold: float, most: int) -> Any:
        batch = op.Constant(value_ints=[0])
        chosen = op.NonMaxSuppression(
            op.Unsqueeze(boxes, batch), op.Unsqueeze(scores, op.Constant(value_ints=[0, 1])),
            op.Constant(value_ints=[most or 2**31 - 1]), op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[PADDED / 2]))
        return op.Squeeze(op.Gather(chosen, op.Constant(value_ints=[2]), axis=1), op.Constant(value_ints=[1]))

    def aligned_regions(maps: List[Any], boxes: Any, levels: Any, scales: List[float], height: int, width: int,
                        samples: int, aligned: bool) -> Any:
        flat = op.Constant(value_ints=[-1])
        places, found = [], []
        for level, (features, scale) in enumerate(zip(maps, scales)):
            place = op.Reshape(op.NonZero(op.Equal(levels, op.Constant(value_int=level))), flat)
            places.append(place)
            found.append(op.RoiAlign(
                features, op.Gather(boxes, place, axis=0), op.Mul(place, op.Constant(value_int=0)),
                coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel', mode='avg',
                output_height=height, output_width=width, sampling_ratio=samples, spatial_scale=scale))
        order = op.Concat(*places, axis=0)
        count = op.Squeeze(op.Shape(order), op.Constant(value_ints=[0]))
        numbers = op.Range(op.Constant(value_int=0), count, op.Constant(value_int=1))
        back = op.ScatterElements(order, order, numbers, axis=0)
        return op.Gather(op.Concat(*found, axis=0), back, axis=0)

    return {torch.ops.mmlk.pad_to_multiples.default: padded, torch.ops.mmlk.top_scores.default: top,
            torch.ops.mmlk.suppress.default: suppressed,
            torch.ops.mmlk.regions.default: aligned_regions}
