"""Pictures of image, ground truth and prediction side by side, for segmentation and detection."""
import colorsys
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, List, Mapping, Optional, Sequence, Sized, Tuple, Union

import numpy as np

from .palette import most_lines, plain, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND_ENTRIES = 24  # maximum number of classes in the legend
_TITLE = 42  # letters in a line of a title above an image

Palette = Sequence[Tuple[int, int, int]]


@dataclass
class Instances:
    """The objects of one image.

    Args:
        boxes: (N, 4), x1, y1, x2, y2 in pixels.
        labels: (N,), integers.
        masks: (N, H, W), bool, or None.
        scores: (N,), or None for ground truth.
    """
    boxes: np.ndarray
    labels: np.ndarray
    masks: Optional[np.ndarray] = None
    scores: Optional[np.ndarray] = None


Annotation = Union[np.ndarray, Instances]


@dataclass
class PredictedScene:
    """An image with its ground truth and a prediction.

    Args:
        image: (H, W, 3), uint8, RGB.
        truth: A label map, (H, W), or :class:`Instances`; None if the dataset has no ground truth.
        prediction: A label map, (H, W), or :class:`Instances`.
        title: Title of the image.
    """
    image: np.ndarray
    truth: Optional[Annotation]
    prediction: Annotation
    title: str


def distinct_palette(count: int) -> List[Tuple[int, int, int]]:
    """Returns ``count`` RGB colours, 0 to 255. Successive colours differ clearly in hue, and have three brightness
    levels.

    The hues advance by the golden ratio.
    """
    colours = []
    for index in range(count):
        red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, .75, (1, .8, .6)[index % 3])
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def overlay(image: np.ndarray, annotation: Annotation, palette: Palette, opacity: float = 0.6) -> np.ndarray:
    """Draws the colours of labels or masks over an image, which is converted to grey there.

    Args:
        image: (H, W, 3), uint8.
        annotation: A label map, (H, W), or :class:`Instances`. Later masks are drawn over earlier ones. Without masks a
            copy of the image is returned.
        palette: RGB colour of each label, 0 to 255.
        opacity: Weight of the colour, 0 to 1.

    Returns:
        (H, W, 3), uint8. Pixels whose label is not in the palette (such as 255) are not changed.

    Raises:
        ValueError: The height and width of the annotation differ from those of the image.
    """
    if isinstance(annotation, Instances):
        labels = np.full(image.shape[:2], -1)
        for mask, label in zip(() if annotation.masks is None else annotation.masks, annotation.labels):
            _same_size(mask, image)
            labels[mask] = label
    else:
        labels = annotation
        _same_size(labels, image)
    coloured = (labels >= 0) & (labels < len(palette))
    colours = (opacity * np.asarray(palette, np.float64).reshape(-1, 3))[labels[coloured]]
    # colours of the image would change the hues of the labels; three planes are added faster than the last axis
    grey = np.add.reduce([image[..., channel] for channel in range(3)], dtype=np.uint16)[coloured] / 3
    colours += (1 - opacity) * grey[:, None]
    result = image.copy()
    result[coloured] = np.rint(colours, out=colours)
    return result


def _same_size(labels: np.ndarray, image: np.ndarray) -> None:
    if labels.shape != image.shape[:2]:
        raise ValueError(f'the annotation is {labels.shape} and its image {image.shape[:2]} (height, width)')


def panels(scenes: Sequence[PredictedScene], classes: Sequence[str], palette: Optional[Palette] = None) -> 'Figure':
    """Draws one row for each scene: image, ground truth, prediction. A legend below names the classes that occur.

    Args:
        scenes: One or more scenes.
        classes: Name of each label.
        palette: RGB colour of each label. If it is None or too short, :func:`distinct_palette` is used.

    Returns:
        The figure.

    Raises:
        ValueError: ``scenes`` is empty.
    """
    return side_by_side({'prediction': scenes}, classes, palette)


def side_by_side(predictions: Mapping[str, Sequence[PredictedScene]], classes: Sequence[str],
                 palette: Optional[Palette] = None) -> 'Figure':
    """Draws the same figure as :func:`panels`, with one prediction column for each of several models.

    Args:
        predictions: The scenes by the name of the model. All models must have the same scenes in the same order.
        classes: Name of each label.
        palette: RGB colour of each label. If it is None or too short, :func:`distinct_palette` is used.

    Returns:
        The figure.

    Raises:
        ValueError: There are no scenes, or the scenes of the models differ.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    scenes = next(iter(predictions.values()), ())
    if not scenes:
        raise ValueError('there is no scene to draw')
    titles = {name: [scene.title for scene in theirs] for name, theirs in predictions.items()}
    if len(set(map(tuple, titles.values()))) > 1:
        raise ValueError(f'the models have predicted different scenes: {titles}')
    if palette is None or len(palette) < len(classes):
        palette = distinct_palette(len(classes))
    columns = 2 + len(predictions)
    heights = [3.2 * scene.image.shape[0] / scene.image.shape[1] for scene in scenes]
    names = [wrapped(name, _TITLE) for name in predictions]
    lines = [1 + most_lines([wrapped(scene.title, _TITLE), *names]) for scene in scenes]
    size = 10 / 3 * columns, sum(heights) + 0.15 * sum(lines) + 0.8
    figure = Figure(figsize=size, layout='constrained')
    grid = figure.subplots(len(scenes), columns, squeeze=False, height_ratios=heights)
    for row, *shown in zip(grid, *predictions.values()):
        scene = shown[0]
        named = [(wrapped(scene.title, _TITLE), None), ('ground truth', scene.truth)]
        named += [(name, theirs.prediction) for name, theirs in zip(names, shown)]
        for axes, (title, annotation) in zip(row, named):
            axes.set_axis_off()
            axes.set(xticks=[], yticks=[])  # ticks that are not shown take most of the time of the layout
            if title == 'ground truth' and annotation is None:
                axes.set_title('no ground truth', fontsize=9)
                continue
            axes.set_title(title, fontsize=9)
            axes.imshow(scene.image if annotation is None else overlay(scene.image, annotation, palette))
            if isinstance(annotation, Instances):
                _draw_boxes(axes, annotation, classes, palette)
    every = [scene for theirs in predictions.values() for scene in theirs]
    handles = [Patch(color=np.asarray(palette[label]) / 255, label=plain(classes[label]))
               for label in labels_in(every, len(classes))[:LEGEND_ENTRIES]]
    if handles:
        figure.legend(handles=handles, loc='outside lower center', ncols=min(2 * columns, len(handles)), fontsize=8)
    return figure


def _draw_boxes(axes, instances: Instances, classes: Sequence[str], palette: Palette) -> None:
    from matplotlib.patches import Rectangle
    for index, ((left, top, right, bottom), label) in enumerate(zip(instances.boxes, instances.labels)):
        colour = np.asarray(palette[label]) / 255
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour))
        text = plain(classes[label])
        if instances.scores is not None:
            text += f' {instances.scores[index]:.2f}'
        axes.text(left, top, text, fontsize=6, color='white', verticalalignment='bottom', clip_on=True,
                  bbox=dict(facecolor=colour, edgecolor='none', pad=0.8))


def labels_in(scenes: Sequence[PredictedScene], count: int) -> List[int]:
    """Returns the labels that occur, sorted by number of pixels (of objects for detection), largest first."""
    totals = np.zeros(count, np.int64)
    for scene in scenes:
        for annotation in (scene.truth, scene.prediction):
            if annotation is not None:
                labels = annotation.labels if isinstance(annotation, Instances) else annotation
                totals += np.bincount(labels[(labels >= 0) & (labels < count)], minlength=count)
    return [int(label) for label in np.argsort(-totals, kind='stable') if totals[label]]


def predict(model, dataset, indices: Sequence[int], score: float = 0.3) -> List[PredictedScene]:
    """Runs a segmentor or a detector on images of its test dataset.

    Args:
        model: A model of mmseg or mmdet, in eval mode.
        dataset: The dataset of its test dataloader. The ground truth of a segmentation dataset is loaded by the
            pipeline, if it has a loading step; that of a detection dataset is read from the annotations.
        indices: Indices of the images in the dataset.
        score: Minimum score of a detection to be drawn, 0 to 1.

    Returns:
        One scene for each index.
    """
    import torch
    from mmengine.dataset import pseudo_collate

    from mmlk.datasets.images import as_loaded
    scenes = []
    for index in indices:
        data = dataset[int(index)]
        with torch.no_grad():
            sample = model.test_step(pseudo_collate([data]))[0]
        image = as_loaded(Path(sample.img_path))
        title = f'{osp.basename(sample.img_path)} ({image.shape[1]} x {image.shape[0]})'
        if 'pred_sem_seg' in sample:
            prediction = _label_map(sample.pred_sem_seg)
            truth = _label_map(sample.gt_sem_seg) if 'gt_sem_seg' in sample else None
        else:
            found = sample.pred_instances.cpu()
            found = found[found.scores >= score]
            found = found[found.scores.argsort()]  # the one with the highest score is drawn last, over the others
            masks = np.asarray(found.masks, bool) if 'masks' in found else None
            prediction = Instances(found.bboxes.numpy(), found.labels.numpy(), masks, found.scores.numpy())
            truth = _instances_of(dataset.get_data_info(int(index)), image.shape[:2], masks is not None)
        scenes.append(PredictedScene(image, truth, prediction, title))
    return scenes


def predict_some(cfg, checkpoint: str, number: int, score: float = 0.3,
                 device: str = 'cpu') -> Tuple[List[PredictedScene], Sequence[str], Optional[Palette]]:
    """Builds the model of a config and runs it on test images, taken at equal steps from its dataset.

    Args:
        cfg: A whole config of mmseg or mmdet.
        checkpoint: A path, a URL or a name of the catalogue.
        number: Maximum number of images.
        score: Minimum score of a detection to be drawn, 0 to 1.
        device: The device to run on.

    Returns:
        The scenes, the name of each label, and the palette of the dataset or None.

    Raises:
        ValueError: The config is that of a classifier.
        WeightsError: The checkpoint cannot be read or does not fit the model.
    """
    from mmengine.registry import DATASETS, init_default_scope

    from mmlk.engine.heads import names_by_label
    from mmlk.engine.network import build_network, check_dense
    from mmlk.weights import load
    check_dense(cfg)
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model = build_network(cfg)
    load(model, checkpoint)
    model = model.to(device).eval()
    scenes = predict(model, dataset, _at_equal_steps(dataset, number), score)
    return scenes, names_by_label(dataset.metainfo['classes'], model), dataset.metainfo.get('palette')


def test_files(cfg, number: int) -> List[Path]:
    """Returns the paths of the images that :func:`predict_some` takes."""
    from mmengine.registry import DATASETS, init_default_scope
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    return [Path(dataset.get_data_info(int(index))['img_path']) for index in _at_equal_steps(dataset, number)]


def _at_equal_steps(dataset: Sized, number: int) -> np.ndarray:
    return np.unique(np.linspace(0, len(dataset) - 1, number).round().astype(int))


def _label_map(pixels) -> np.ndarray:
    return pixels.data.squeeze(0).cpu().numpy().astype(np.int64)  # predictions of a head with one channel are floats


def _instances_of(info: dict, size: Tuple[int, int], with_masks: bool) -> Optional[Instances]:
    """Returns the ground truth of a sample of mmdet, without crowds and ignored regions; None if it has none."""
    from pycocotools import mask as coco
    if 'instances' not in info:
        return None
    kept = [instance for instance in info['instances'] if not instance.get('ignore_flag')]
    masks = None
    if with_masks:
        masks = np.zeros((len(kept), *size), bool)
        for index, instance in enumerate(kept):
            runs = instance['mask']
            if isinstance(runs, list):
                runs = coco.merge(coco.frPyObjects(runs, *size))
            elif isinstance(runs['counts'], list):
                runs = coco.frPyObjects(runs, *size)
            masks[index] = coco.decode(runs)
    return Instances(np.array([instance['bbox'] for instance in kept], float).reshape(-1, 4),
                     np.array([instance['bbox_label'] for instance in kept], int), masks)
