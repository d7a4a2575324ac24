"""Annotations drawn as pixels, without matplotlib, which takes ten times as long for a picture."""
from importlib.util import find_spec
from pathlib import Path
from typing import Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mmlk._text import one_line
from mmlk.analysis.panels import Annotation, Instances, Palette, overlay


def font_for(width: int) -> ImageFont.FreeTypeFont:
    """Returns a font of about 1/60 of the width of a picture, and of at least 11 pixels."""
    return font_of_size(min(200, max(11, width // 60)))


def font_of_size(pixels: int) -> ImageFont.FreeTypeFont:
    """Returns matplotlib's font, which has Greek, Cyrillic and more; without matplotlib Pillow's, which has fewer."""
    package = find_spec('matplotlib')
    path = Path(package.origin).parent / 'mpl-data' / 'fonts' / 'ttf' / 'DejaVuSans.ttf' if package else None
    return ImageFont.truetype(str(path), pixels) if path and path.is_file() else ImageFont.load_default(pixels)


def legend(labels: Sequence[int], classes: Sequence[str], palette: Palette, width: int,
           rows: Optional[int] = None) -> np.ndarray:
    """Draws the names of classes, each with its colour.

    Args:
        labels: Those to name, in this order.
        classes: Name of each label.
        palette: Red, green and blue of each label, 0 to 255.
        width: Width of the picture in pixels.
        rows: Number of rows of names, for pictures of the same height; what does not fit is left out. By default as
            many as are needed, and none without labels.

    Returns:
        (height, width, 3), uint8, RGB, white in the background.
    """
    font = font_for(width)
    line, gap = int(1.6 * font.size), font.size // 2
    names = {label: one_line(str(classes[label])) for label in labels}
    places, x, y = [], gap, 0
    for label in labels:
        entry = int(font.getlength(names[label])) + line + 2 * gap
        if x > gap and x + entry > width:
            x, y = gap, y + line
        places.append((x, y, label))
        x += entry
    height = (rows * line if rows is not None else y + line if places else 0)
    picture = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(picture)
    for x, y, label in places:
        if y < height:
            draw.rectangle((x, y + line // 5, x + font.size, y + line // 5 + font.size),
                           tuple(map(int, palette[label])))
            draw.text((x + line, y + line // 2), names[label], 'black', font, 'lm')
    return np.array(picture).reshape(height, width, 3)


def draw_boxes(image: np.ndarray, boxes: np.ndarray, labels: np.ndarray, scores: Optional[np.ndarray],
               classes: Sequence[str], palette: Palette) -> np.ndarray:
    """Draws boxes with the names of their classes over an image, those with the highest scores last.

    Args:
        image: (H, W, 3), uint8, RGB.
        boxes: (N, 4), x1, y1, x2, y2 in pixels.
        labels: (N,), int.
        scores: (N,), written beside the names; None if they have none.
        classes: Name of each label.
        palette: Red, green and blue of each label, 0 to 255.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    picture = Image.fromarray(image)
    draw, font = ImageDraw.Draw(picture), font_for(image.shape[1])
    for index in range(len(boxes)) if scores is None else np.argsort(scores, kind='stable'):
        if labels[index] >= len(classes) or not np.isfinite(boxes[index]).all():
            continue
        colour: Tuple[int, ...] = tuple(map(int, palette[labels[index]]))
        name = one_line(str(classes[labels[index]]))
        left, top, right, bottom = np.rint(boxes[index]).tolist()
        if right < left or bottom < top:
            continue
        draw.rectangle((left, top, right, bottom), outline=colour, width=max(1, int(font.size) // 8))
        text = name if scores is None else f'{name} {scores[index]:.2f}'
        place = left, max(top, 1.2 * font.size)
        draw.rectangle(draw.textbbox(place, text, font, 'lb'), colour)
        draw.text(place, text, 'white' if sum(colour) < 500 else 'black', font, 'lb')
    return np.array(picture)


def draw_annotation(image: np.ndarray, annotation: Annotation, classes: Sequence[str], palette: Palette) -> np.ndarray:
    """Draws labels, or boxes and masks with their names and scores, over an image.

    Returns:
        (H, W, 3), uint8, RGB.
    """
    drawn = overlay(image, annotation, palette)
    if not isinstance(annotation, Instances):
        return drawn
    return draw_boxes(drawn, annotation.boxes, annotation.labels, annotation.scores, classes, palette)
