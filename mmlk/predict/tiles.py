"""Predictions on overlapping tiles of an image, merged so that the memory does not grow with its height."""
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from .prediction import MaskCrop

Span = Tuple[int, int]


class Found(NamedTuple):
    """The detections in an image or a tile.

    Args:
        boxes: (N, 4), float32, x1, y1, x2, y2 in pixels.
        scores: (N,), float32.
        class_ids: (N,), int64.
        crops: A mask for each detection, or None.
    """
    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    crops: Optional[List[MaskCrop]]

    def take(self, indices: np.ndarray) -> 'Found':
        """Returns the detections at these indices, in their order."""
        crops = None if self.crops is None else [self.crops[index] for index in indices]
        return Found(self.boxes[indices], self.scores[indices], self.class_ids[indices], crops)

    def best(self, score_threshold: float) -> 'Found':
        """Returns the detections with at least this score, the highest score first."""
        order = np.argsort(-self.scores, kind='stable')
        return self.take(order[self.scores[order] >= score_threshold])

    def moved(self, top: int, left: int) -> 'Found':
        """Returns the detections in pixels of an image in which the first pixel of this one has this place."""
        crops = None if self.crops is None else [
            crop._replace(top=crop.top + top, left=crop.left + left) for crop in self.crops]
        return self._replace(boxes=self.boxes + np.array([left, top, left, top], np.float32), crops=crops)


def spans(length: int, tile: int, stride: int) -> List[Span]:
    """Returns the first pixel of each tile along an axis and the one after its last. The last tile ends at the border,
    and may overlap the one before it by more than the others do."""
    if length <= tile:
        return [(0, length)]
    starts = [*range(0, length - tile, stride), length - tile]
    return [(start, start + tile) for start in starts]


def ramps(tiles: Sequence[Span], overlap: int) -> List[np.ndarray]:
    """Returns the weight of each pixel of each tile along an axis, float32. The weights of a pixel add up to 1.

    Args:
        tiles: As :func:`spans` returns them.
        overlap: Number of pixels over which a weight grows from the edge of its tile; 0 for the mean of the tiles.
    """
    total = np.zeros(tiles[-1][1])
    weights = []
    for start, end in tiles:
        inside = np.arange(end - start) + 0.5
        weight = np.minimum(np.minimum(inside, inside[::-1]) / overlap, 1) if overlap else np.ones(end - start)
        total[start:end] += weight
        weights.append(weight)
    return [(weight / total[start:end]).astype(np.float32) for (start, end), weight in zip(tiles, weights)]


def blend(rows: Sequence[Span], columns: Sequence[Span], overlap: int, scores_of: Callable[[slice, slice], np.ndarray],
          put: Callable[[slice, slice, np.ndarray], None]) -> None:
    """Computes the weighted mean of the scores of overlapping tiles, part by part.

    Only the tile at hand, what it shares with the next tile, and what its row of tiles shares with the next row are
    kept: C * (overlap * width + tile * tile) numbers.

    Args:
        rows: First row of each row of tiles and the one after its last, as :func:`spans` returns them.
        columns: The same of the columns.
        overlap: As for :func:`ramps`.
        scores_of: Returns the scores of the tile at these rows and columns, (C, h, w), float32.
        put: Called once with rows, columns and scores, (C, h, w), of each part of the image.
    """
    down, across = ramps(rows, overlap), ramps(columns, overlap)
    below = None  # weighted scores that the row of tiles above has for rows of this one
    for index, (top, bottom) in enumerate(rows):
        next_top = rows[index + 1][0] if index + 1 < len(rows) else bottom
        left_over, kept = None, None
        for place, (left, right) in enumerate(columns):
            next_left = columns[place + 1][0] if place + 1 < len(columns) else right
            part = scores_of(slice(top, bottom), slice(left, right))
            part = part * (down[index][:, None] * across[place])
            if left_over is not None:
                part[:, :, :left_over.shape[2]] += left_over
            done = next_left - left
            left_over = part[:, :, done:].copy()
            part = part[:, :, :done]
            if below is not None:
                part[:, :below.shape[1]] += below[:, :, left:next_left]
            put(slice(top, next_top), slice(left, next_left), part[:, :next_top - top])
            if next_top < bottom:
                if kept is None:
                    kept = np.empty((len(part), bottom - next_top, columns[-1][1]), np.float32)
                kept[:, :, left:next_left] = part[:, next_top - top:]
        below = kept


def merge(parts: Sequence[Tuple[Found, Span, Span]], size: Tuple[int, int], threshold: float) -> Found:
    """Merges the detections of tiles, by non-maximum suppression between detections of one class in different tiles.

    A box that ends at an edge of its tile, inside the image, may be a part of an object. It gives way to a whole box of
    another tile in which it lies by more than ``threshold`` of its area, whatever the scores are.

    Args:
        parts: The detections of each tile, in pixels of the image, with the rows and the columns of the tile.
        size: Height and width of the image.
        threshold: Intersection over union from which two boxes are of one object.

    Returns:
        The detections, the highest score first.
    """
    boxes = np.concatenate([found.boxes for found, _, _ in parts])
    scores = np.concatenate([found.scores for found, _, _ in parts])
    class_ids = np.concatenate([found.class_ids for found, _, _ in parts])
    crops = None if parts[0][0].crops is None else [crop for found, _, _ in parts for crop in found.crops]
    tile = np.repeat(np.arange(len(parts)), [len(found.boxes) for found, _, _ in parts])
    cut = np.concatenate([_cut(found.boxes, rows, columns, size) for found, rows, columns in parts])
    area = np.prod(boxes[:, 2:] - boxes[:, :2], 1)
    alive = np.ones(len(boxes), bool)
    kept = []
    for index in np.lexsort((-scores, cut)):  # whole boxes before parts
        if not alive[index]:
            continue
        kept.append(index)
        others = np.flatnonzero(alive & (tile != tile[index]) & (class_ids == class_ids[index]))
        sides = np.minimum(boxes[others, 2:], boxes[index, 2:]) - np.maximum(boxes[others, :2], boxes[index, :2])
        shared = np.prod(np.maximum(sides, 0), 1)
        same = shared > threshold * (area[others] + area[index] - shared)
        if not cut[index]:
            same |= cut[others] & (shared > threshold * area[others])
        alive[others[same]] = False
        alive[index] = True
    kept = np.array(kept, int)
    return Found(boxes, scores, class_ids, crops).take(kept[np.argsort(-scores[kept], kind='stable')])


def _cut(boxes: np.ndarray, rows: Span, columns: Span, size: Tuple[int, int]) -> np.ndarray:
    """Returns whether each box, in pixels of the image, ends within a pixel of an edge of its tile in the image."""
    cut = np.zeros(len(boxes), bool)
    for axis, (start, end), length in ((1, rows, size[0]), (0, columns, size[1])):
        if start > 0:
            cut |= boxes[:, axis] < start + 1
        if end < length:
            cut |= boxes[:, axis + 2] > end - 1
    return cut
