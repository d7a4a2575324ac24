"""Writes the demo scenes to disk in the folder layouts of ADE20K, Cityscapes, Pascal VOC, COCO and ImageNet.

With the same versions of numpy and Pillow, the same parameters give the same bytes. A manifest in the folder holds the
parameters. It shows that the folder was written by this module, whether it is complete, and with which parameters.
"""
import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Callable, Dict, Iterable, List, Tuple

import numpy as np
from PIL import Image

from mmlk.datasets import scenes
from mmlk.datasets.scenes import CLASSES, SPLITS, Scene, draw

GENERATOR = 'mmlk.datasets.scenes'
GENERATOR_VERSION = 1  # must be increased when the same manifest gives other bytes
MANIFEST = 'demo_data.json'

# The top folders of each layout. Nothing else is deleted when a folder is overwritten.
TOP_FOLDERS = {
    'ade20k': ('images', 'annotations'),
    'cityscapes': ('leftImg8bit', 'gtFine'),
    'voc': ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug', 'ImageSets'),
    'coco': ('train2017', 'val2017', 'annotations'),
    'imagenet': ('train', 'val'),
}


class NotOurs(Exception):
    """The folder to write to contains files that this module did not write."""


@dataclass(frozen=True)
class DemoPlan:
    """The demo data to write.

    Args:
        layout: A key of ``TOP_FOLDERS``.
        seed: Seed of the scenes, not negative.
        train: Number of training scenes.
        val: Number of validation scenes.
        size: Height and width of the images in pixels.
    """
    layout: str
    seed: int
    train: int
    val: int
    size: Tuple[int, int]

    def manifest(self) -> dict:
        """Returns all parameters that determine the files, in types that JSON preserves."""
        tuning = {name.lower(): getattr(scenes, name) for name in
                  ('CLASSES', 'OBJECTS', 'EXTENT', 'MIN_VISIBLE', 'RING_HOLE', 'BAR_WIDTH')}
        content = dict(asdict(self), **tuning, generator=GENERATOR, version=GENERATOR_VERSION)
        return json.loads(json.dumps(content))


def write_demo(plan: DemoPlan, out: Path, overwrite: bool = False,
               track: Callable[[Iterable, str], Iterable] = lambda items, what: items) -> bool:
    """Draws the scenes of a plan and writes them to a folder.

    Args:
        plan: What to write.
        out: The root folder of the dataset. It is created if it does not exist.
        overwrite: If True, writes even if the folder contains other files. The top folders of the layout are deleted
            first; other files are kept.
        track: Called as ``track(scenes, name)``; returns the iterable to loop over. For a progress bar.

    Returns:
        False if the folder already contains the complete data of this plan, so that nothing was written.

    Raises:
        NotOurs: The folder contains files that this module did not write, and ``overwrite`` is False.
    """
    found = _read_manifest(out)
    if found == dict(plan.manifest(), complete=True) and not overwrite:
        return False
    if found is None and not overwrite and out.exists() and any(out.iterdir()):
        raise NotOurs(f'{out} is not empty, and what it holds was not written by this tool '
                      f'(it has no readable {MANIFEST})')
    layouts = {plan.layout} | ({found['layout']} if found else set())
    for folder in sorted({folder for layout in layouts for folder in TOP_FOLDERS[layout]}):
        if (out / folder).exists():
            shutil.rmtree(out / folder)

    # Written before the first scene, so that an interrupted run can simply be started again.
    out.mkdir(parents=True, exist_ok=True)
    _write_json(out / MANIFEST, dict(plan.manifest(), complete=False))
    for split, count in zip(SPLITS, (plan.train, plan.val)):
        indices = track(range(count), f'{plan.layout} {split}')
        objects = (1, 1) if plan.layout == 'imagenet' else scenes.OBJECTS
        drawn = ((index, draw(plan.seed, split, index, plan.size, objects)) for index in indices)
        _WRITERS[plan.layout](out, split, drawn)
    _write_json(out / MANIFEST, dict(plan.manifest(), complete=True))
    return True


def _read_manifest(out: Path):
    """The manifest of one of our own folders, or None."""
    try:
        found = json.loads((out / MANIFEST).read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    ours = isinstance(found, dict) and found.get('generator') == GENERATOR
    return found if ours and found.get('layout') in TOP_FOLDERS else None


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, separators=(',', ':')) + '\n', encoding='utf-8')


def _save_jpg(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=92, subsampling=0)


def _save_png(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def _write_ade20k(out: Path, split: str, drawn: Iterable[Tuple[int, Scene]]) -> None:
    """Writes ADE20K. There label 0 means "not labelled", so the K classes are 1 to K (``reduce_zero_label``)."""
    folder = {'train': 'training', 'val': 'validation'}[split]
    for index, scene in drawn:
        name = f'ADE_{split}_{index + 1:08d}'
        _save_jpg(out / 'images' / folder / f'{name}.jpg', scene.image)
        _save_png(out / 'annotations' / folder / f'{name}.png', scene.labels + np.uint8(1))


def _write_cityscapes(out: Path, split: str, drawn: Iterable[Tuple[int, Scene]]) -> None:
    """Writes Cityscapes, with train ids 0 to K - 1, in a single city named "demo"."""
    for index, scene in drawn:
        name = f'demo_{index:06d}_000019'
        _save_png(out / 'leftImg8bit' / split / 'demo' / f'{name}_leftImg8bit.png', scene.image)
        _save_png(out / 'gtFine' / split / 'demo' / f'{name}_gtFine_labelTrainIds.png', scene.labels)


def _write_voc(out: Path, split: str, drawn: Iterable[Tuple[int, Scene]]) -> None:
    """Writes Pascal VOC, with labels 0 to K - 1. Every second training scene is in the folder and list of SBD."""
    names: Dict[str, List[str]] = {'train': [], 'aug': []} if split == 'train' else {split: []}
    for index, scene in drawn:
        name, part = f'{split}_{index:06d}', 'aug' if split == 'train' and index % 2 else split
        _save_jpg(out / 'JPEGImages' / f'{name}.jpg', scene.image)
        _save_png(out / f"SegmentationClass{'Aug' if part == 'aug' else ''}" / f'{name}.png', scene.labels)
        names[part].append(name)
    lists = out / 'ImageSets' / 'Segmentation'
    lists.mkdir(parents=True, exist_ok=True)
    for part, listed in names.items():
        (lists / f'{part}.txt').write_text(''.join(f'{name}\n' for name in listed))


def _write_coco(out: Path, split: str, drawn: Iterable[Tuple[int, Scene]]) -> None:
    """Writes COCO. Boxes, areas and masks are those of the visible parts; the ground is not a category."""
    images: List[dict] = []
    annotations: List[dict] = []
    for index, scene in drawn:
        height, width = scene.labels.shape
        image = dict(id=index + 1, file_name=f'{index + 1:012d}.jpg', height=height, width=width)
        images.append(image)
        _save_jpg(out / f'{split}2017' / image['file_name'], scene.image)
        for label, mask in scene.objects:
            rows, columns = np.nonzero(mask)
            left, top = int(columns.min()), int(rows.min())
            annotations.append(dict(
                id=len(annotations) + 1, image_id=image['id'], category_id=label, iscrowd=0,
                area=int(mask.sum()),
                bbox=[left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top],
                segmentation=dict(size=[height, width], counts=run_lengths(mask))))
    categories = [dict(id=label, name=name, supercategory='shape')
                  for label, name in enumerate(CLASSES) if label]
    path = out / 'annotations' / f'instances_{split}2017.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_json(path, dict(info=dict(description='mmlk demo scenes'), licenses=[], categories=categories,
                           images=images, annotations=annotations))


def _write_imagenet(out: Path, split: str, drawn: Iterable[Tuple[int, Scene]]) -> None:
    """Writes ImageNet: one object in each image, which lies in the folder of its class."""
    for name in CLASSES[1:]:  # one without images is numbered too
        (out / split / name).mkdir(parents=True)
    for index, scene in drawn:
        [found] = scene.objects
        _save_jpg(out / split / CLASSES[found.label] / f'{split}_{index:08d}.JPEG', scene.image)


def run_lengths(mask: np.ndarray) -> List[int]:
    """Returns COCO's uncompressed run lengths of a mask, (H, W) bool: column by column, beginning with zeros."""
    flat = mask.ravel(order='F')
    ends = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate([[0], ends, [flat.size]])).tolist()
    return [0, *runs] if flat[0] else runs


_WRITERS: Dict[str, Callable[[Path, str, Iterable[Tuple[int, Scene]]], None]] = {
    'ade20k': _write_ade20k, 'cityscapes': _write_cityscapes, 'voc': _write_voc, 'coco': _write_coco,
    'imagenet': _write_imagenet}
