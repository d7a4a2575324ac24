"""Pictures of image, ground truth and prediction side by side, for segmentation and detection."""
import colorsys
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEGEND_ENTRIES = 24  # more names than this would crowd the picture out

Palette = Sequence[Tuple[int, int, int]]


@dataclass
class Instances:
    """Objects of one image: ``boxes`` (N, 4) as x1, y1, x2, y2 in pixels and ``labels`` (N,); where there are
    any, ``masks`` (N, H, W) bool and ``scores`` (N,)."""
    boxes: np.ndarray
    labels: np.ndarray
    masks: Optional[np.ndarray] = None
    scores: Optional[np.ndarray] = None


Annotation = Union[np.ndarray, Instances]


@dataclass
class PredictedScene:
    """``image`` (H, W, 3) uint8 RGB; ``truth`` and ``prediction`` each a label map (H, W) or
    :class:`Instances`. ``truth`` is None where a dataset has none."""
    image: np.ndarray
    truth: Optional[Annotation]
    prediction: Annotation
    title: str


def distinct_palette(count: int) -> List[Tuple[int, int, int]]:
    """``count`` RGB colours, neighbours far apart: hues at golden-ratio steps, brightness in three levels."""
    colours = []
    for index in range(count):
        colour = colorsys.hsv_to_rgb(index * 0.618034 % 1, .75, (1, .8, .6)[index % 3])
        colours.append(tuple(round(255 * part) for part in colour))
    return colours


def overlay(image: np.ndarray, annotation: Annotation, palette: Palette, opacity: float = 0.6) -> np.ndarray:
    """Blend label or mask colours into an image, which loses its own colours there.

    Args:
        image: (H, W, 3) uint8.
        annotation: Label map (H, W), or :class:`Instances`, whose later masks lie over earlier ones; without
            masks the image comes back as it is.
        palette: RGB of each label.
        opacity: Weight of the colour, 0 to 1.

    Returns:
        (H, W, 3) uint8. Labels outside the palette (255 among them) leave the image as it is.

    Raises:
        ValueError: The annotation is of another height and width than the image.
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
    colours = np.asarray(palette, np.float64).reshape(-1, 3)[labels[coloured]]
    grey = image[coloured].mean(axis=1, keepdims=True)  # a coloured image would shift the labels' hues
    result = image.copy()
    result[coloured] = np.rint((1 - opacity) * grey + opacity * colours)
    return result


def _same_size(labels: np.ndarray, image: np.ndarray) -> None:
    if labels.shape != image.shape[:2]:
        raise ValueError(f'the annotation is {labels.shape} and its image {image.shape[:2]} (height, width)')


def panels(scenes: Sequence[PredictedScene], classes: Sequence[str], palette: Optional[Palette] = None) -> 'Figure':
    """One row per scene: image, ground truth, prediction; under them the names of the classes that occur.

    Args:
        scenes: At least one.
        classes: Name of each label.
        palette: RGB of each label; distinct colours where it is None or too short.

    Raises:
        ValueError: There is no scene.
    """
    return side_by_side({'prediction': scenes}, classes, palette)


def side_by_side(predictions: Mapping[str, Sequence[PredictedScene]], classes: Sequence[str],
                 palette: Optional[Palette] = None) -> 'Figure':
    """As :func:`panels`, with a column for each of several models.

    Args:
        predictions: By the models' names, the same scenes in the same order.
        classes: Name of each label.
        palette: RGB of each label; distinct colours where it is None or too short.

    Raises:
        ValueError: There is no scene, or the models' scenes differ.
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
    size = 10 / 3 * columns, sum(heights) + 0.3 * len(scenes) + 0.8
    figure = Figure(figsize=size, layout='constrained')
    grid = figure.subplots(len(scenes), columns, squeeze=False, height_ratios=heights)
    for row, *shown in zip(grid, *predictions.values()):
        scene = shown[0]
        named = [(scene.title, None), ('ground truth', scene.truth)]
        named += [(name, theirs.prediction) for name, theirs in zip(predictions, shown)]
        for axes, (title, annotation) in zip(row, named):
            axes.set_axis_off()
            if title == 'ground truth' and annotation is None:
                axes.set_title('no ground truth', fontsize=9)
                continue
            axes.set_title(title, fontsize=9)
            axes.imshow(scene.image if annotation is None else overlay(scene.image, annotation, palette))
            if isinstance(annotation, Instances):
                _draw_boxes(axes, annotation, classes, palette)
    every = [scene for theirs in predictions.values() for scene in theirs]
    handles = [Patch(color=np.asarray(palette[label]) / 255, label=classes[label])
               for label in _labels_in(every, len(classes))[:LEGEND_ENTRIES]]
    if handles:
        figure.legend(handles=handles, loc='outside lower center', ncols=min(2 * columns, len(handles)), fontsize=8)
    return figure


def _draw_boxes(axes, instances: Instances, classes: Sequence[str], palette: Palette) -> None:
    from matplotlib.patches import Rectangle
    for index, ((left, top, right, bottom), label) in enumerate(zip(instances.boxes, instances.labels)):
        colour = np.asarray(palette[label]) / 255
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour))
        text = classes[label]
        if instances.scores is not None:
            text += f' {instances.scores[index]:.2f}'
        axes.text(left, top, text, fontsize=6, color='white', verticalalignment='bottom', clip_on=True,
                  bbox=dict(facecolor=colour, edgecolor='none', pad=0.8))


def _labels_in(scenes: Sequence[PredictedScene], count: int) -> List[int]:
    """The labels that occur, those of most pixels (of most objects) first."""
    totals = np.zeros(count, np.int64)
    for scene in scenes:
        for annotation in (scene.truth, scene.prediction):
            if annotation is not None:
                labels = annotation.labels if isinstance(annotation, Instances) else annotation
                totals += np.bincount(labels[(labels >= 0) & (labels < count)], minlength=count)
    return [int(label) for label in np.argsort(-totals, kind='stable') if totals[label]]


def predict(model, dataset, indices: Sequence[int], score: float = 0.3) -> List[PredictedScene]:
    """Run a segmentor or a detector on some images of its test dataset.

    Args:
        model: mmseg or mmdet model, in eval mode.
        dataset: That of its test dataloader. A segmentation pipeline loads the ground truth, where there is
            any; a detection dataset's is read from its annotations.
        indices: Which images.
        score: Detections below this are left out.
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
            found = found[found.scores.argsort()]  # the surest is drawn last, over the others
            masks = np.asarray(found.masks, bool) if 'masks' in found else None
            prediction = Instances(found.bboxes.numpy(), found.labels.numpy(), masks, found.scores.numpy())
            truth = _instances_of(dataset.get_data_info(int(index)), image.shape[:2], masks is not None)
        scenes.append(PredictedScene(image, truth, prediction, title))
    return scenes


def predict_some(cfg, checkpoint: str, number: int, score: float = 0.3,
                 device: str = 'cpu') -> Tuple[List[PredictedScene], Sequence[str], Optional[Palette]]:
    """Run the model of a config on test images that lie evenly over its dataset.

    Args:
        cfg: A whole config of mmseg or mmdet.
        checkpoint: A file.
        number: How many images, if there are as many.
        score: Detections below this are left out.
        device: Where to run.

    Returns:
        The scenes, and the classes and the palette of the dataset.

    Raises:
        WeightsError: The checkpoint does not fit the model.
    """
    from mmengine.registry import DATASETS, init_default_scope

    from mmlk.engine.heads import names_by_label
    from mmlk.engine.network import build_network
    from mmlk.weights import load
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model = build_network(cfg)
    load(model, checkpoint)
    model = model.to(device).eval()
    indices = np.unique(np.linspace(0, len(dataset) - 1, number).round().astype(int))
    return (predict(model, dataset, indices, score), names_by_label(dataset.metainfo['classes'], model),
            dataset.metainfo.get('palette'))


def _label_map(pixels) -> np.ndarray:
    return pixels.data.squeeze(0).cpu().numpy().astype(np.int64)  # those of a head of one channel are floats


def _instances_of(info: dict, size: Tuple[int, int], with_masks: bool) -> Optional[Instances]:
    """The ground truth of an mmdet dataset's entry, crowds and ignored regions left out."""
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
