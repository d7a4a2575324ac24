"""Boundary IoU (Cheng et al., arXiv:2103.16562): the IoU of the pixels near the contours of objects.

The distance is 2 % of the image's diagonal, as in the paper. A pixel is in the boundary region of its class if the
square around it, of that many pixels in each direction, contains a pixel of another class or reaches over the edge of
the image. So do the paper's masks, from which an erosion by this square is subtracted.
"""
from typing import Sequence

import numpy as np

DIAGONAL = 0.02  #: The distance, as a part of the diagonal of the image.


def distance(size: Sequence[int]) -> int:
    """Returns the width of the boundary region in pixels, at least 1, of an image of this height and width."""
    return max(1, round(DIAGONAL * float(np.hypot(*size[:2]))))


def boundary(labels: np.ndarray, width: int) -> np.ndarray:
    """Finds the boundary regions of all classes of a label map at once.

    Args:
        labels: (H, W), uint8 or uint16. Ignored pixels need a label of their own: they are treated as the outside of
            the image.
        width: Of the region in pixels, see :func:`distance`.

    Returns:
        (H, W), bool.
    """
    import cv2
    square = np.ones((2 * width + 1, 2 * width + 1), np.uint8)
    near = cv2.erode(labels, square) != cv2.dilate(labels, square)  # the least and the greatest label of the square
    near[:width] = near[-width:] = near[:, :width] = near[:, -width:] = True
    return near


def boundary_iou(first: np.ndarray, second: np.ndarray, width: int) -> float:
    """Returns the Boundary IoU of two masks, (H, W), bool; nan if both are empty."""
    both = first | second
    rows, columns = np.flatnonzero(both.any(1)), np.flatnonzero(both.any(0))
    if not rows.size:
        return float('nan')
    part = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # nothing is outside of it
    one, other = (mask[part] & boundary(mask[part].astype(np.uint8), width) for mask in (first, second))
    return float((one & other).sum() / (one | other).sum())
