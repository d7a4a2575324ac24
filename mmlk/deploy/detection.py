"""Detectors of mmdet from the image to boxes, scores, labels and masks, written so that they can be exported.

mmdet's own code after the networks of its heads is Python that depends on the image, and operators compiled for mmcv.
Here is the same computation for the kinds of heads that :func:`end_to_end` accepts; the settings are read from the
heads. It is for one image at a time.
"""
import math
from dataclasses import dataclass, field
from typing import Any, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mmlk.reparam.algebra import fold_bn, foldable

from .detection_ops import PADDED, regions, suppress, top_scores

ImageShape = Tuple[int, int]  # height and width of the image in pixels, before padding

SAME_BOX, SAME_SCORE, SAME_MASK = 0.99, 1e-3, 0.98  # limits of what DetectionComparison calls the same
LEAST_MATCHED = 0.99  # fraction of the detections that must be the same

_NMS = {'type', 'iou_threshold', 'iou_thr', 'class_agnostic', 'split_thr'}  # split_thr only saves memory


class Thresholds(NamedTuple):
    """What decides which detections a detector returns, as in :class:`mmlk.deploy.metadata.Metadata`."""
    score_threshold: float
    nms_iou_threshold: Optional[float]
    mask_threshold: Optional[float]
    max_detections: Optional[int]


class Candidates(NamedTuple):
    """Boxes with scores, of which those that overlap are still to be removed.

    Args:
        boxes: (N, 4), in pixels: left, top, right, bottom.
        scores: (N,); ``PADDED`` where there is no box.
        groups: (N,), int64. Boxes suppress each other only if they are of one group: a class, or a level.
    """
    boxes: Tensor
    scores: Tensor
    groups: Tensor

    def suppressed(self, nms: Mapping[str, Any], most: int) -> Tensor:
        """Returns the indices of the boxes to keep, by decreasing score, as mmcv's ``batched_nms``."""
        boxes = self.boxes
        if not nms.get('class_agnostic', False):
            there = (self.scores > PADDED / 2)[:, None]
            farthest = torch.where(there, boxes, 0.0).max()
            boxes = boxes + (self.groups.to(boxes) * (farthest + 1))[:, None]
        return suppress(boxes, self.scores, _iou_threshold(nms), max(0, most))


def end_to_end(model: nn.Module) -> Thresholds:
    """Check that :func:`detect` can compute the detections of a model.

    Args:
        model: A detector of mmdet.

    Returns:
        Its thresholds.

    Raises:
        ValueError: A part of it is of a kind that this module does not know.
    """
    from mmdet.models import dense_heads, detectors, roi_heads, seg_heads
    from mmdet.models.task_modules import coders, prior_generators

    def need(holds: object, name: str, part: object) -> None:
        if not holds:
            described = part if isinstance(part, str) else f'a {type(part).__name__}'
            raise ValueError(f'this {type(model).__name__} cannot be exported end to end: its {name} is {described}. '
                             'Use --outputs features for the maps that its heads take or give')

    def inherits(part: object, base: type, *methods: str) -> bool:
        """Returns whether a part is a ``base`` and does not override what is written anew here."""
        return isinstance(part, base) and all(getattr(type(part), name) is getattr(base, name) for name in methods)

    def check_coder(head: nn.Module, name: str, *kinds: type) -> None:
        need(type(head.bbox_coder) in kinds, f'{name}.bbox_coder', head.bbox_coder)

    def check_nms(settings: Mapping[str, Any], name: str) -> None:
        nms = settings.get('nms') or {}
        need(nms.get('type') == 'nms' and set(nms) <= _NMS, f'{name}.nms', str(dict(nms)))

    def check_dense(head: nn.Module, name: str, base: type) -> None:
        need(inherits(head, base, 'predict', '_predict_by_feat_single', '_bbox_post_process')
             and inherits(head, dense_heads.base_dense_head.BaseDenseHead, 'predict_by_feat'), name, head)
        need(not getattr(getattr(head, 'loss_cls', None), 'custom_cls_channels', False), f'{name}.loss_cls',
             getattr(head, 'loss_cls', None))
        need(type(head.prior_generator) in priors, f'{name}.prior_generator', head.prior_generator)
        check_coder(head, name, coders.DeltaXYWHBBoxCoder, coders.DistancePointBBoxCoder)
        check_nms(head.test_cfg, f'{name}.test_cfg')

    if hasattr(model, 'panoptic_head'):
        head, fusion = model.panoptic_head, model.panoptic_fusion_head
        need(inherits(model, detectors.MaskFormer, 'predict')
             and inherits(model, detectors.SingleStageDetector, 'extract_feat'), 'method of prediction', 'its own')
        need(inherits(head, dense_heads.Mask2FormerHead, 'forward', 'predict'), 'panoptic_head', head)
        need(inherits(fusion, seg_heads.MaskFormerFusionHead, 'predict', 'instance_postprocess'),
             'panoptic_fusion_head', fusion)
        test = fusion.test_cfg
        need(test.get('instance_on', False) and not test.get('panoptic_on', True) and not fusion.num_stuff_classes,
             'panoptic_fusion_head', 'one that predicts more than instances')
        return Thresholds(0.0, None, 0.5, test.get('max_per_image', 100))
    priors = (prior_generators.AnchorGenerator, prior_generators.SSDAnchorGenerator,
              prior_generators.MlvlPointGenerator)
    predict = detectors.SingleStageDetector if hasattr(model, 'bbox_head') else detectors.TwoStageDetector
    need(inherits(model, predict, 'predict', 'extract_feat'), 'method of prediction', 'its own')
    if hasattr(model, 'bbox_head'):
        head, test = model.bbox_head, model.bbox_head.test_cfg
        check_dense(head, 'bbox_head', dense_heads.base_dense_head.BaseDenseHead)
        need(test.get('nms_pre', -1) > 0, 'bbox_head.test_cfg.nms_pre', str(test.get('nms_pre', -1)))
        return _thresholds(test, None)
    check_dense(model.rpn_head, 'rpn_head', dense_heads.RPNHead)
    roi_head = model.roi_head
    kinds = (roi_heads.StandardRoIHead, roi_heads.CascadeRoIHead)
    kind = next((kind for kind in kinds if inherits(roi_head, kind, 'predict', 'predict_bbox', 'predict_mask')), None)
    need(kind and (kind is kinds[0] or inherits(roi_head, kind, '_refine_roi')), 'roi_head', roi_head)
    need(not roi_head.with_shared_head, 'roi_head.shared_head', getattr(roi_head, 'shared_head', None))
    need(not getattr(roi_head, 'with_semantic', False), 'roi_head', 'one with a semantic branch')
    check_nms(roi_head.test_cfg, 'roi_head.test_cfg')
    for head in _list(roi_head.bbox_head):
        need(inherits(head, roi_heads.BBoxHead, 'predict_by_feat', '_predict_by_feat_single', 'regress_by_class')
             and head.with_cls and head.with_reg and not head.custom_cls_channels, 'roi_head.bbox_head', head)
        check_coder(head, 'roi_head.bbox_head', coders.DeltaXYWHBBoxCoder)
    extractors = list(_list(roi_head.bbox_roi_extractor))
    if roi_head.with_mask:
        extractors += list(_list(roi_head.mask_roi_extractor))
        for head in _list(roi_head.mask_head):
            need(inherits(head, roi_heads.FCNMaskHead, 'predict_by_feat', '_predict_by_feat_single'),
                 'roi_head.mask_head', head)
        need(roi_head.test_cfg.mask_thr_binary > 0, 'roi_head.test_cfg.mask_thr_binary',
             str(roi_head.test_cfg.mask_thr_binary))
    for extractor in extractors:
        need(inherits(extractor, roi_heads.SingleRoIExtractor, 'forward', 'map_roi_levels'), 'region extractor',
             extractor)
        for layer in extractor.roi_layers:
            need(type(layer).__name__ == 'RoIAlign' and layer.pool_mode == 'avg', 'region extractor', layer)
    return _thresholds(roi_head.test_cfg, roi_head.test_cfg.mask_thr_binary if roi_head.with_mask else None)


def detect(model: nn.Module, inputs: Tensor, shape: ImageShape) -> Tuple[Tensor, ...]:
    """Returns the detections in one image.

    Args:
        model: A detector that :func:`end_to_end` accepts.
        inputs: The image, normalized and padded, (1, C, H, W).
        shape: Height and width without padding, h and w.

    Returns:
        Boxes, (N, 4), in pixels: left, top, right, bottom; scores, (N,), the highest first; labels, (N,), int64; and of
        a model with masks, these, (N, h, w), bool.
    """
    with _PlainOperators():
        maps = model.extract_feat(inputs)
        if hasattr(model, 'panoptic_head'):
            return _instances(model, maps, inputs.shape[2:], shape)
    if hasattr(model, 'bbox_head'):
        return _dense(model.bbox_head, maps, shape)
    boxes = _proposals(model.rpn_head, maps, shape)
    boxes, scores, labels = _classified(model.roi_head, maps, boxes, shape)
    if not model.roi_head.with_mask:
        return boxes, scores, labels
    return boxes, scores, labels, _masks(model.roi_head, maps, boxes, labels, shape)


class _PlainOperators(TorchFunctionMode):
    """Replaces two operators that cannot be exported where an image may have any size.

    Max pooling of single elements, the last level of an FPN, becomes the slices that it stands for: torch.export asks
    of pooling whether sides are odd. ``torch.meshgrid`` without ``indexing`` gets its default, 'ij', which the exporter
    to ONNX asks for.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is nn.functional.max_pool2d and args[1:2] == (1, ) and not kwargs.get('padding'):
            return args[0][..., ::kwargs['stride'], ::kwargs['stride']]
        if function is torch.meshgrid:
            kwargs = dict(kwargs, indexing=kwargs.get('indexing') or 'ij')
        return function(*args, **kwargs)


def fold_head_norms(model: nn.Module) -> int:
    """Fold the BatchNorms of a two-stage detector's heads into the convolutions before them, in-place.

    torch.export cannot record a BatchNorm of an unknown number of boxes, for it asks whether there are any.

    Returns:
        How many were folded.
    """
    from mmcv.cnn import ConvModule
    folded = 0
    for module in getattr(model, 'roi_head', nn.Module()).modules():
        if isinstance(module, ConvModule) and module.with_norm and module.order[:2] == ('conv', 'norm') and (
                foldable(module.norm)):
            kernel, bias = fold_bn(module.conv, module.norm)
            module.conv.weight.data.copy_(kernel)
            module.conv.bias = nn.Parameter(bias.to(module.conv.weight), requires_grad=False)
            setattr(module, module.norm_name, nn.Identity())
            folded += 1
    return folded


@dataclass
class DetectionComparison:
    """The differences between the detections of an exported file and those of the model.

    Two detections match if they have the same label, boxes of an intersection over union of at least ``SAME_BOX``,
    scores that differ by at most ``SAME_SCORE`` and, where the model has them, masks of an intersection over union of
    at least ``SAME_MASK``.

    Args:
        images: How many images were compared.
        sizes: Their heights and widths in pixels.
        detections: How many detections the model found or, for each image where this is larger, the file.
        matched: How many of them match.
        score: Largest difference of the scores of two detections that match.
        masks: Smallest intersection over union of two masks whose detections match; None without masks.
    """
    images: int = 0
    sizes: List[ImageShape] = field(default_factory=list)
    detections: int = 0
    matched: int = 0
    score: float = 0.0
    masks: Optional[float] = None

    def add(self, found: Sequence[Tensor], expected: Sequence[Tensor], size: ImageShape) -> None:
        """Adds the comparison of one image; both are as :func:`detect` returns them.

        Raises:
            ValueError: The numbers, shapes or types of outputs are not those of detections.
        """
        kinds = [[(tuple(value.shape[1:]), value.dtype) for value in values] for values in (found, expected)]
        if kinds[0] != kinds[1] or len({len(value) for value in found}) != 1:
            raise ValueError(f'the outputs of the file have the shapes {[tuple(value.shape) for value in found]}, and '
                             f"PyTorch's {[tuple(value.shape) for value in expected]}")
        self.images += 1
        self.sizes += [] if size in self.sizes else [size]
        self.detections += max(len(found[0]), len(expected[0]))
        differences = (found[1][:, None] - expected[1]).abs()
        boxes = _box_overlaps(found[0], expected[0])
        same = (found[2][:, None] == expected[2]) & (differences <= SAME_SCORE) & (boxes >= SAME_BOX)
        cost, masks = differences + 1 - boxes, None
        if len(found) > 3:
            masks = _mask_overlaps(found[3], expected[3])
            same &= masks >= SAME_MASK
            cost = cost + 1 - masks
        # as many pairs as possible, and of these the closest: detections may be similar to several others
        cost = torch.where(same, cost, len(same) + 1.0)
        for row, column in zip(*linear_sum_assignment(cost.numpy())):
            if same[row, column]:
                self.matched += 1
                self.score = max(self.score, differences[row, column].item())
                if masks is not None:
                    self.masks = min(1.0 if self.masks is None else self.masks, masks[row, column].item())

    def check(self) -> None:
        """Checks that enough detections match.

        Raises:
            ValueError: Fewer than ``LEAST_MATCHED`` of the detections match, or there are none.
        """
        if not self.detections:
            raise ValueError(f'the model finds nothing in the {self.images} images on which the file is compared; give '
                             'images in which there is something to find, by --images. The file was not kept')
        if self.matched < LEAST_MATCHED * self.detections:
            raise ValueError(f'only {self.matched} of {self.detections} detections are the same as those of PyTorch; '
                             'the file was not kept')

    def __str__(self) -> str:
        sizes = ' and '.join(f'{width}x{height}' for height, width in self.sizes)
        masks = '' if self.masks is None else f', smallest intersection over union of their masks {self.masks:.4f}'
        return (f'{self.matched} of {self.detections} detections are the same as those of PyTorch: largest difference '
                f'of their scores {self.score:.3g}{masks} ({self.images} images at {sizes})')


def _box_overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Returns the intersection over union of each box, (N, 4), with each other one, (M, 4): (N, M)."""
    one, other = one.double()[:, None], other.double()
    sides = (torch.minimum(one[..., 2:], other[:, 2:]) - torch.maximum(one[..., :2], other[:, :2])).clamp(min=0)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(-1) for boxes in (one, other)]
    both = sides.prod(-1)
    same = (one == other).all(-1)  # also boxes of no extent
    return torch.where(same, 1.0, both / (areas[0] + areas[1] - both).clamp(min=1e-12))


def _mask_overlaps(one: Tensor, other: Tensor) -> Tensor:
    """Returns the intersection over union of each mask, (N, H, W), with each other one, (M, H, W): (N, M)."""
    one, other = one.flatten(1).float(), other.flatten(1).float()
    both = one @ other.T
    either = one.sum(1)[:, None] + other.sum(1) - both
    return torch.where(either == 0, 1.0, both / either.clamp(min=1))


def _thresholds(test: Mapping[str, Any], mask_threshold: Optional[float]) -> Thresholds:
    most = test.get('max_per_img', -1)
    return Thresholds(float(test.get('score_thr', 0)), _iou_threshold(test['nms']),
                      mask_threshold if mask_threshold is None else float(mask_threshold), most if most > 0 else None)


def _iou_threshold(nms: Mapping[str, Any]) -> float:
    return float(nms['iou_threshold'] if 'iou_threshold' in nms else nms['iou_thr'])


def _list(part: Union[nn.Module, nn.ModuleList]) -> Sequence[nn.Module]:
    """Returns the parts of all stages of a cascade, or the only one."""
    return part if isinstance(part, nn.ModuleList) else [part]


class _Level(NamedTuple):
    """What a dense head predicts at each place of one level: scores, (N, classes), deltas, (N, 4), priors, (N, 4 or 2),
    and a factor of the scores, (N,), or None."""
    scores: Tensor
    deltas: Tensor
    priors: Tensor
    factors: Optional[Tensor]


def _levels(head: nn.Module, maps: Sequence[Tensor]) -> List[_Level]:
    scores, deltas, *factors = head(maps)

    def flat(level: Tensor, columns: int) -> Tensor:
        return level[0].permute(1, 2, 0).reshape(-1, columns)

    def activated(level: Tensor) -> Tensor:
        level = flat(level, head.cls_out_channels)
        return level.sigmoid() if head.use_sigmoid_cls else level.softmax(-1)[:, :-1]

    return [_Level(activated(scores[i]), flat(deltas[i], 4), _priors(head.prior_generator, i, scores[i]),
                   flat(factors[0][i], 1)[:, 0].sigmoid() if factors else None) for i in range(len(scores))]


def _priors(generator: Any, level: int, scores: Tensor) -> Tensor:
    """Returns the points, (N, 2), or anchors, (N, 4), of one level, row by row."""
    height, width = scores.shape[-2:]
    across, down = (torch.arange(length, device=scores.device).to(scores) for length in (width, height))
    points = torch.stack([across.expand(height, -1), down[:, None].expand(-1, width)], -1).reshape(-1, 2)
    stride = points.new_tensor(generator.strides[level])
    if not hasattr(generator, 'base_anchors'):
        return (points + generator.offset) * stride
    return (generator.base_anchors[level].to(points) + (points * stride).repeat(1, 2)[:, None]).reshape(-1, 4)


def _decoded(coder: Any, priors: Tensor, deltas: Tensor, shape: ImageShape) -> Tensor:
    """Returns the boxes, (..., 4), of anchors or points, and what was predicted for them, by a box coder of mmdet."""
    if priors.shape[-1] == 2:  # points, from which a box reaches in four directions
        low, high = priors - deltas[..., :2], priors + deltas[..., 2:]
    else:
        deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
        centre, size = (priors[..., :2] + priors[..., 2:]) * 0.5, priors[..., 2:] - priors[..., :2]
        shift, growth, largest = size * deltas[..., :2], deltas[..., 2:], abs(math.log(16 / 1000))
        if coder.add_ctr_clamp:
            shift, growth = shift.clamp(-coder.ctr_clamp, coder.ctr_clamp), growth.clamp(max=largest)
        else:
            growth = growth.clamp(-largest, largest)
        centre, half = centre + shift, size * growth.exp() * 0.5
        low, high = centre - half, centre + half
    boxes = torch.cat([low, high], -1)
    if not coder.clip_border:
        return boxes
    height, width = shape
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def _large_enough(boxes: Tensor, test: Mapping[str, Any]) -> Tensor:
    least = test.get('min_bbox_size', -1)
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    return (width > least) & (height > least) if least >= 0 else torch.ones_like(width, dtype=torch.bool)


def _dense(head: nn.Module, maps: Sequence[Tensor], shape: ImageShape) -> Tuple[Tensor, Tensor, Tensor]:
    """Returns the boxes, scores and labels of a one-stage detector."""
    test, deltas, priors, scores, labels = head.test_cfg, [], [], [], []
    for level in _levels(head, maps):
        classes = level.scores.shape[1]
        likely = torch.where(level.scores > test.get('score_thr', 0), level.scores, PADDED)
        best, index = top_scores(likely.flatten(), test['nms_pre'])
        place = index // classes
        if level.factors is not None:
            best = torch.where(best > PADDED / 2, best * level.factors[place], PADDED)
        deltas.append(level.deltas[place])
        priors.append(level.priors[place])
        scores.append(best)
        labels.append(index % classes)
    boxes = _decoded(head.bbox_coder, torch.cat(priors), torch.cat(deltas), shape)
    found = Candidates(boxes, torch.where(_large_enough(boxes, test), torch.cat(scores), PADDED), torch.cat(labels))
    kept = found.suppressed(test['nms'], test.get('max_per_img', -1))
    return found.boxes[kept], found.scores[kept], found.groups[kept]


def _instances(model: nn.Module, maps: Sequence[Tensor], padded: Sequence[int],
               shape: ImageShape) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the boxes, scores, labels and masks of a Mask2Former, in which a query has one mask for all classes."""
    logits, masks = (predicted[-1] for predicted in model.panoptic_head(maps, []))
    classes = logits.shape[2] - 1  # behind them comes "no object"
    likely, index = top_scores(logits[0].softmax(-1)[:, :-1].flatten(),
                               model.panoptic_fusion_head.test_cfg.get('max_per_image', 100))
    masks = nn.functional.interpolate(masks, padded, mode='bilinear', align_corners=False)[0]
    masks = masks[:, :shape[0], :shape[1]][index // classes]
    inside = masks > 0
    area = inside.float().flatten(1).sum(1)
    scores, order = top_scores(likely * ((masks.sigmoid() * inside).flatten(1).sum(1) / (area + 1e-6)), len(likely))
    return _around(inside)[order], scores, (index % classes)[order], inside[order]


def _around(masks: Tensor) -> Tensor:
    """Returns the smallest box around each mask, (N, 4), zeros around an empty one; the masks are (N, H, W), bool."""
    def ends(there: Tensor) -> Tuple[Tensor, Tensor]:
        place = torch.arange(there.shape[1], device=there.device).expand_as(there)
        low = torch.where(there, place, there.shape[1]).amin(1)
        high = torch.where(there, place + 1, 0).amax(1)
        return torch.minimum(low, high), high  # an empty mask ends before it begins

    left, right = ends(masks.any(1))
    top, bottom = ends(masks.any(2))
    return torch.stack([left, top, right, bottom], 1).float()


def _proposals(head: nn.Module, maps: Sequence[Tensor], shape: ImageShape) -> Tensor:
    """Returns the boxes, (N, 4), that the first stage of a two-stage detector proposes."""
    test, deltas, priors, scores, groups = head.test_cfg, [], [], [], []
    for index, level in enumerate(_levels(head, maps)):
        best, *predicted = level.scores[:, 0], level.deltas, level.priors
        if test.get('nms_pre', -1) > 0:
            best, place = top_scores(best, test['nms_pre'])
            predicted = [values[place] for values in predicted]
        deltas.append(predicted[0])
        priors.append(predicted[1])
        scores.append(best)
        groups.append(torch.full_like(best, index, dtype=torch.long))
    boxes = _decoded(head.bbox_coder, torch.cat(priors), torch.cat(deltas), shape)
    found = Candidates(boxes, torch.where(_large_enough(boxes, test), torch.cat(scores), PADDED), torch.cat(groups))
    return boxes[found.suppressed(test['nms'], test.get('max_per_img', -1))]


def _regions(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """Returns the features in boxes, (N, C, h, w), each from the level that fits its size."""
    layers = extractor.roi_layers
    scale = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt() / extractor.finest_scale + 1e-6
    levels = torch.zeros_like(scale, dtype=torch.long)
    for level in range(1, len(layers)):  # the logarithm of base 2, rounded down, without rounding errors of a runtime
        levels = levels + (scale >= 2**level).long()
    height, width = layers[0].output_size
    return regions(list(maps[:len(layers)]), boxes, levels, [float(layer.spatial_scale) for layer in layers], height,
                   width, max(0, layers[0].sampling_ratio), layers[0].aligned)


def _classified(roi_head: nn.Module, maps: Sequence[Tensor], boxes: Tensor,
                shape: ImageShape) -> Tuple[Tensor, Tensor, Tensor]:
    """Returns the boxes, scores and labels that the second stage, or a cascade of stages, makes of proposals."""
    heads, extractors = _list(roi_head.bbox_head), _list(roi_head.bbox_roi_extractor)
    logits = []
    for stage, (head, extractor) in enumerate(zip(heads, extractors)):
        scores, deltas = head(_regions(extractor, maps, boxes))
        logits.append(scores)
        deltas = deltas.unflatten(1, (-1, 4))
        if stage + 1 < len(heads):
            of_class = scores[:, :-1].argmax(1)[:, None, None].expand(-1, 1, 4)
            deltas = deltas[:, 0] if head.reg_class_agnostic else deltas.gather(1, of_class)[:, 0]
            boxes = _decoded(head.bbox_coder, boxes, deltas, shape)
    test, head = roi_head.test_cfg, heads[-1]
    scores = (sum(logits) / len(logits)).softmax(-1)[:, :-1]
    boxes = _decoded(head.bbox_coder, boxes[:, None], deltas, shape).expand(-1, head.num_classes, -1)
    labels = torch.arange(head.num_classes, device=boxes.device).expand_as(scores)
    found = Candidates(boxes.reshape(-1, 4), torch.where(scores > test['score_thr'], scores, PADDED).reshape(-1),
                       labels.reshape(-1))
    kept = found.suppressed(test['nms'], test.get('max_per_img', -1))
    return found.boxes[kept], found.scores[kept], found.groups[kept]


def _masks(roi_head: nn.Module, maps: Sequence[Tensor], boxes: Tensor, labels: Tensor, shape: ImageShape) -> Tensor:
    """Returns the masks of detections, (N, height, width), bool."""
    stages = []
    for head, extractor in zip(_list(roi_head.mask_head), _list(roi_head.mask_roi_extractor)):
        masks = head(_regions(extractor, maps, boxes)).sigmoid()
        of_class = labels[:, None, None, None].expand(-1, 1, *masks.shape[2:])
        stages.append(masks[:, 0] if head.class_agnostic else masks.gather(1, of_class)[:, 0])
    return _pasted(sum(stages) / len(stages), boxes, shape) >= roi_head.test_cfg.mask_thr_binary


def _pasted(masks: Tensor, boxes: Tensor, shape: ImageShape) -> Tensor:
    """Resizes masks, (N, h, w), to their boxes, (N, 4), in an image of zeros, bilinearly: (N, height, width)."""
    def weights(low: Tensor, high: Tensor, length: int, cells: int) -> Tensor:
        """Returns the weight of each cell of the masks in each row or column of the image, (N, length, cells)."""
        pixel = torch.arange(length, device=masks.device, dtype=masks.dtype) + 0.5
        position = (pixel - low[:, None]) / (high - low)[:, None] * cells - 0.5
        position = torch.where(position.isinf(), (cells - 1) / 2, position)  # as mmdet does, for boxes of no extent
        cell = torch.arange(cells, device=masks.device, dtype=masks.dtype)
        return (1 - (position[..., None] - cell).abs()).clamp(min=0)

    rows = weights(boxes[:, 1], boxes[:, 3], shape[0], masks.shape[1])
    columns = weights(boxes[:, 0], boxes[:, 2], shape[1], masks.shape[2])
    return rows @ masks @ columns.mT
