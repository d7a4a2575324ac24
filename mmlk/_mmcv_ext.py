"""The operators of ``mmcv._ext`` without compiling mmcv: by torchvision's kernels, or in PyTorch if it has none.

mmcv's Python code calls one compiled module, ``mmcv._ext``, which pip compiles on the user's machine in many minutes.
torchvision comes compiled for the same torch, for the CPU and for CUDA, and has the operators that detectors need.
The functions here have the names, arguments and results of those of ``mmcv._ext``, and accept tensors with any strides.
Results are written to the tensors that mmcv passes for them. Buffers that only the compiled code needs (``columns``,
``ones``, ``im2col_step``) are not used. Every other name of ``mmcv._ext`` is a function that raises an error which
says how to get the operator.

``python -m mmlk._mmcv_file`` makes this module ``mmcv._ext`` in an environment.
"""
from typing import Any, Callable, List, Tuple

import torch
import torchvision
from torch import Tensor

from mmlk._mmcv_ops import guarded

__all__ = [
    'bbox_overlaps', 'deform_conv_backward_input', 'deform_conv_backward_parameters', 'deform_conv_forward',
    'get_compiler_version', 'get_compiling_cuda_version', 'modulated_deform_conv_backward',
    'modulated_deform_conv_forward', 'ms_deform_attn_backward', 'ms_deform_attn_forward', 'nms', 'nms_match',
    'roi_align_backward', 'roi_align_forward', 'roi_pool_backward', 'roi_pool_forward', 'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward', 'softmax_focal_loss_backward', 'softmax_focal_loss_forward', 'softnms',
]

_kernels = torch.ops.torchvision  # registered by the import of torchvision


def _gradients(kernel: Callable, *arguments: Any) -> Any:
    """Calls one of torchvision's kernels for gradients and returns its result.

    On CUDA, the order of their sums changes from run to run, which torch.use_deterministic_algorithms does not allow.
    In that mode the kernel for the CPU is used.
    """
    device = arguments[0].device
    if device.type == 'cpu' or not torch.are_deterministic_algorithms_enabled():
        return kernel(*arguments)
    result = kernel(*(part.cpu() if isinstance(part, Tensor) else part for part in arguments))
    return result.to(device) if isinstance(result, Tensor) else [part.to(device) for part in result]


def __getattr__(name: str) -> Callable:
    """Returns, for every operator that is not in this module, a function that raises NotImplementedError."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"mmcv's operator {name!r} is not available: this mmcv has no compiled operators, and torchvision has none "
            'that could stand for it. To compile all of them, in a checkout of mmlk: '
            'bash tools/install.sh --compiled-ops')

    missing.__name__ = name
    return missing


def get_compiler_version() -> str:
    return f'none (torchvision {torchvision.__version__} through mmlk)'


def get_compiling_cuda_version() -> str:
    return torch.version.cuda or 'not available'


# Boxes. With offset 1, a box from 3 to 5 is 3 pixels wide, not 2: its far corner is moved by 1 for this.


def _far(boxes: Tensor, offset: int) -> Tensor:
    """Returns the boxes with the far corner moved by ``offset``."""
    return torch.cat([boxes[:, :2], boxes[:, 2:4] + offset], dim=1) if offset else boxes


def _overlaps(one: Tensor, others: Tensor, offset: int = 0) -> Tensor:
    """Returns the intersection over union of one box, (4,), and others, (N, 4), as (N,)."""
    size = (torch.minimum(one[2:], others[:, 2:]) - torch.maximum(one[:2], others[:, :2]) + offset).clamp(min=0)
    inside = size.prod(1)
    area = (others[:, 2:] - others[:, :2] + offset).prod(1)
    return inside / ((one[2:] - one[:2] + offset).prod() + area - inside)


@guarded
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    # torchvision compares in double precision, mmcv with the threshold in single precision
    threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    return torchvision.ops.nms(_far(boxes, offset), scores, threshold)


@guarded
def nms_match(dets: Tensor, iou_threshold: float) -> List[List[int]]:
    groups = []
    order = dets[:, 4].sort(descending=True)[1]
    while len(order):
        first, order = order[0], order[1:]
        matched = _overlaps(dets[first, :4], dets[order, :4]) >= iou_threshold
        groups.append([int(first), *order[matched].tolist()])
        order = order[~matched]
    return groups


@guarded
def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float,
            method: int, offset: int) -> Tensor:
    scores, order = scores.clone(), torch.arange(len(boxes))
    kept: List[Tensor] = []
    while len(order):
        best = int(scores[order].argmax())
        first = order[best]
        dets[len(kept), :4], dets[len(kept), 4] = boxes[first], scores[first]
        kept.append(first)
        order = torch.cat([order[:best], order[best + 1:]])
        overlaps = _overlaps(boxes[first], boxes[order], offset)
        if method == 2:
            scores[order] *= torch.exp(-overlaps.square() / sigma)
        else:
            scores[order] *= torch.where(overlaps >= iou_threshold, (1 - overlaps) if method == 1 else 0., 1.)
        order = order[scores[order] >= min_score]
    return torch.stack(kept) if kept else order


@guarded
def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """``mode`` is 0 for intersection over union, 1 for intersection over the area of the first box."""
    first = bboxes1 if aligned else bboxes1[:, None]
    size = (torch.minimum(first[..., 2:], bboxes2[:, 2:]) - torch.maximum(first[..., :2], bboxes2[:, :2]) + offset)
    inside = size.clamp(min=0).prod(-1)
    area = (first[..., 2:] - first[..., :2] + offset).prod(-1)
    if mode == 0:
        area = area + (bboxes2[:, 2:] - bboxes2[:, :2] + offset).prod(-1) - inside
    ious.copy_(inside / area)


# Pooling of regions. rois are (N, 5): index of the image, x1, y1, x2, y2.


def _corners(y: Tensor, x: Tensor, height: int, width: int) -> Tuple[Tensor, Tensor]:
    """Returns the four pixels around each point, as indices into a flattened map, and their bilinear weights.

    Both are (..., 4). The weights of points that are more than one pixel outside the map are 0.
    """
    outside = (y < -1) | (y > height) | (x < -1) | (x > width)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.floor(), x.floor()
    low, right = y - top, x - left
    bottom, end = (top + 1).clamp(max=height - 1), (left + 1).clamp(max=width - 1)
    places = torch.stack([top * width + left, top * width + end, bottom * width + left, bottom * width + end], dim=-1)
    weights = torch.stack([(1 - low) * (1 - right), (1 - low) * right, low * (1 - right), low * right], dim=-1)
    return places.long(), weights.masked_fill(outside[..., None], 0)


def _roi_align_maximum(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor, scale: float,
                       sampling_ratio: int, aligned: bool) -> None:
    """Computes the maximum of the samples of each bin, and its position."""
    (channels, height, width), (rows, columns) = input.shape[1:], output.shape[2:]
    for number, roi in enumerate(rois):
        start_x, start_y, end_x, end_y = (roi[1:] * scale - 0.5 * aligned).unbind()
        roi_height, roi_width = end_y - start_y, end_x - start_x
        if not aligned:
            roi_height, roi_width = roi_height.clamp(min=1), roi_width.clamp(min=1)
        steps_y = sampling_ratio if sampling_ratio > 0 else max(1, int((roi_height / rows).ceil()))
        steps_x = sampling_ratio if sampling_ratio > 0 else max(1, int((roi_width / columns).ceil()))
        y = start_y + (torch.arange(rows * steps_y).to(rois) + 0.5) * (roi_height / rows / steps_y)
        x = start_x + (torch.arange(columns * steps_x).to(rois) + 0.5) * (roi_width / columns / steps_x)
        y, x = torch.meshgrid(y, x, indexing='ij')
        # (rows, columns, samples of a bin)
        y, x = (place.reshape(rows, steps_y, columns, steps_x).transpose(1, 2).flatten(2) for place in (y, x))
        places, weights = _corners(y, x, height, width)
        values = (input[int(roi[0])].flatten(1)[:, places] * weights).sum(-1)
        best, which = values.max(-1)
        output[number] = best
        argmax_y[number] = y.expand(channels, -1, -1, -1).gather(3, which[..., None])[..., 0]
        argmax_x[number] = x.expand(channels, -1, -1, -1).gather(3, which[..., None])[..., 0]


@guarded
def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor, argmax_x: Tensor,
                      aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                      pool_mode: int, aligned: bool) -> None:
    """``pool_mode`` is 0 for the maximum, 1 for the average."""
    rois = rois.to(input.dtype)
    if pool_mode == 0:
        _roi_align_maximum(input, rois, output, argmax_y, argmax_x, spatial_scale, sampling_ratio, aligned)
    else:
        output.copy_(_kernels.roi_align(input, rois, spatial_scale, aligned_height, aligned_width, sampling_ratio,
                                        aligned))


@guarded
def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor, grad_input: Tensor,
                       aligned_height: int, aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    if pool_mode == 0:
        places, weights = _corners(argmax_y, argmax_x, *grad_input.shape[2:])
        maps = grad_input.new_zeros(grad_input.shape).flatten(2)
        for number, image in enumerate(rois[:, 0].long().tolist()):
            values = grad_output[number, ..., None] * weights[number]
            maps[image].scatter_add_(1, places[number].flatten(1), values.flatten(1))
        grad_input.copy_(maps.view_as(grad_input))
    else:
        grad_input.copy_(_gradients(
            _kernels._roi_align_backward, grad_output, rois.to(grad_output.dtype), spatial_scale, aligned_height,
            aligned_width, *grad_input.shape, sampling_ratio, aligned))


@guarded
def roi_pool_forward(input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int,
                     pooled_width: int, spatial_scale: float) -> None:
    largest, where = _kernels.roi_pool(input, rois.to(input.dtype), spatial_scale, pooled_height, pooled_width)
    output.copy_(largest)
    argmax.copy_(where)


@guarded
def roi_pool_backward(grad_output: Tensor, rois: Tensor, argmax: Tensor, grad_input: Tensor, pooled_height: int,
                      pooled_width: int, spatial_scale: float) -> None:
    grad_input.copy_(_gradients(
        _kernels._roi_pool_backward, grad_output, rois.to(grad_output.dtype), argmax, spatial_scale, pooled_height,
        pooled_width, *grad_input.shape))


# Deformable convolution. If there is no mask or bias, torchvision's kernel takes an empty mask and a bias of zeros.


def _deform_conv_gradients(grad_output: Tensor, input: Tensor, weight: Tensor, offset: Tensor,
                           *geometry: int) -> List[Tensor]:
    mask, bias = input.new_zeros(len(input), 1), input.new_zeros(len(weight))
    return _gradients(_kernels._deform_conv2d_backward, grad_output, input, weight, offset, mask, bias, *geometry,
                      False)


@guarded
def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor, columns: Tensor, ones: Tensor,
                        kW: int, kH: int, dW: int, dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
                        group: int, deformable_group: int, im2col_step: int) -> None:
    output.copy_(torchvision.ops.deform_conv2d(input, offset, weight, None, (dH, dW), (padH, padW),
                                               (dilationH, dilationW)))


@guarded
def deform_conv_backward_input(input: Tensor, offset: Tensor, gradOutput: Tensor, gradInput: Tensor,
                               gradOffset: Tensor, weight: Tensor, columns: Tensor, kW: int, kH: int, dW: int,
                               dH: int, padW: int, padH: int, dilationW: int, dilationH: int, group: int,
                               deformable_group: int, im2col_step: int) -> None:
    gradients = _deform_conv_gradients(gradOutput, input, weight, offset, dH, dW, padH, padW, dilationH, dilationW,
                                       group, deformable_group)
    gradInput.copy_(gradients[0])
    gradOffset.copy_(gradients[2])


@guarded
def deform_conv_backward_parameters(input: Tensor, offset: Tensor, gradOutput: Tensor, gradWeight: Tensor,
                                    columns: Tensor, ones: Tensor, kW: int, kH: int, dW: int, dH: int, padW: int,
                                    padH: int, dilationW: int, dilationH: int, group: int, deformable_group: int,
                                    scale: float, im2col_step: int) -> None:
    weight = input.new_zeros(gradWeight.shape)  # the gradient of the weight does not depend on its values
    gradients = _deform_conv_gradients(gradOutput, input, weight, offset, dH, dW, padH, padW, dilationH, dilationW,
                                       group, deformable_group)
    gradWeight.copy_(scale * gradients[1])


@guarded
def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                  mask: Tensor, output: Tensor, columns: Tensor, kernel_h: int, kernel_w: int,
                                  stride_h: int, stride_w: int, pad_h: int, pad_w: int, dilation_h: int,
                                  dilation_w: int, group: int, deformable_group: int, with_bias: bool) -> None:
    output.copy_(torchvision.ops.deform_conv2d(input, offset, weight, bias if with_bias else None,
                                               (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), mask))


@guarded
def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor, ones: Tensor, offset: Tensor,
                                   mask: Tensor, columns: Tensor, grad_input: Tensor, grad_weight: Tensor,
                                   grad_bias: Tensor, grad_offset: Tensor, grad_mask: Tensor, grad_output: Tensor,
                                   kernel_h: int, kernel_w: int, stride_h: int, stride_w: int, pad_h: int, pad_w: int,
                                   dilation_h: int, dilation_w: int, group: int, deformable_group: int,
                                   with_bias: bool) -> None:
    gradients = _gradients(
        _kernels._deform_conv2d_backward, grad_output, input, weight, offset, mask,
        bias if with_bias else input.new_zeros(len(weight)), stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w,
        group, deformable_group, True)
    for gradient, target in zip(gradients, (grad_input, grad_weight, grad_offset, grad_mask)):
        target.copy_(gradient)
    if with_bias:
        grad_bias.copy_(gradients[4])


# Focal losses. input is (N, classes), target (N,). A target that is not a class is background. They are computed in at
# least single precision, because half precision cannot represent probabilities that are close enough to 0.


def _wide(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _class_weight(weight: Tensor, target: Tensor, classes: int) -> Tensor:
    """Returns a factor per row, (N,): the weight of its class; 1 for background or if there are no weights."""
    if weight.numel() == 0:
        return target.new_ones(len(target), dtype=weight.dtype)
    foreground = (target >= 0) & (target < classes)
    return torch.where(foreground, weight[target.clamp(0, classes - 1)], 1.)


def _log(probability: Tensor) -> Tensor:
    return probability.clamp(min=torch.finfo(torch.float32).tiny).log()


@guarded
def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    p = _wide(input).sigmoid()
    is_class = target[:, None] == torch.arange(input.shape[1], device=input.device)
    loss = torch.where(is_class, -alpha * (1 - p)**gamma * _log(p), -(1 - alpha) * p**gamma * _log(1 - p))
    output.copy_(loss * _class_weight(weight, target, input.shape[1])[:, None])


@guarded
def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    p = _wide(input).sigmoid()
    is_class = target[:, None] == torch.arange(input.shape[1], device=input.device)
    gradient = torch.where(is_class, -alpha * (1 - p)**gamma * (1 - p - gamma * p * _log(p)),
                           -(1 - alpha) * p**gamma * (gamma * (1 - p) * _log(1 - p) - p))
    grad_input.copy_(gradient * _class_weight(weight, target, input.shape[1])[:, None])


def _of_target(input: Tensor, target: Tensor) -> Tuple[Tensor, Tensor]:
    """Returns the softmax of the target class of each row, (N,), and whether the target is a class."""
    foreground = (target >= 0) & (target < input.shape[1])
    return _wide(input.gather(1, target.clamp(0, input.shape[1] - 1)[:, None])[:, 0]), foreground


@guarded
def softmax_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float,
                               alpha: float) -> None:
    """``input`` is the output of a softmax. The loss of a row whose target is not a class is 0."""
    p, foreground = _of_target(input, target)
    loss = -alpha * (1 - p)**gamma * _log(p) * _class_weight(weight, target, input.shape[1])
    output.copy_(loss * foreground)


@guarded
def softmax_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor,
                                gamma: float, alpha: float) -> None:
    """Computes the gradient of the logits, of which ``input`` is the softmax."""
    p, foreground = _of_target(input, target)
    # the gradient for a probability of 1 is 0, even if gamma - 1 < 0
    steep = torch.where(p < 1, gamma * (1 - p).clamp(min=torch.finfo(p.dtype).tiny)**(gamma - 1), 0.)
    slope = alpha * (steep * p * _log(p) - (1 - p)**gamma) * _class_weight(weight, target, input.shape[1])
    is_class = target[:, None] == torch.arange(input.shape[1], device=input.device)
    grad_input.copy_((slope * foreground)[:, None] * (is_class.to(slope.dtype) - input))


# Multi-scale deformable attention: mmcv's own PyTorch implementation, which uses torch.nn.functional.grid_sample.


def _attention(value: Tensor, value_spatial_shapes: Tensor, sampling_locations: Tensor,
               attention_weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch
    return multi_scale_deformable_attn_pytorch(value, value_spatial_shapes, sampling_locations, attention_weights)


@guarded
def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                           sampling_locations: Tensor, attention_weights: Tensor, im2col_step: int) -> Tensor:
    return _attention(value, value_spatial_shapes, sampling_locations, attention_weights)


@guarded
def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor, value_level_start_index: Tensor,
                            sampling_locations: Tensor, attention_weights: Tensor, grad_output: Tensor,
                            grad_value: Tensor, grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    leaves = [tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = _attention(leaves[0], value_spatial_shapes, *leaves[1:])
    gradients = torch.autograd.grad(output, leaves, grad_output)
    for gradient, target in zip(gradients, (grad_value, grad_sampling_loc, grad_attn_weight)):
        target.copy_(gradient)
