"""Open every image and annotation that a config's datasets name, and count what is wrong with them.

The files are taken for untrusted: whatever cannot be read becomes a finding, never an exception.
"""
import copy
import json
import os
import os.path as osp
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import ExifTags, Image

from mmlk._types import type_name
from mmlk.datasets.check import SPLITS, datasets

Track = Callable[[Iterable, int, str], Iterable]


@dataclass
class Report:
    """What was found in one dataset.

    ``where`` lists the places of the config that use it. ``counts`` are facts by name, ``problems`` one line
    per case by kind of problem. ``unchecked`` says why nothing was checked, where that is so.
    """
    where: List[str]
    unchecked: str = ''
    counts: Dict[str, int] = field(default_factory=dict)
    problems: Dict[str, List[str]] = field(default_factory=lambda: defaultdict(list))


def audit(cfg: dict, splits: Sequence[str] = SPLITS,
          track: Track = lambda items, total, what: items) -> List[Report]:
    """Check the datasets of a config whole; for those of mmseg, and for COCO instances of mmdet.

    Args:
        cfg: A whole config, with ``default_scope``. Call :func:`mmlk.datasets.check.missing` on it first.
        splits: Which of the ``<split>_dataloader`` to look at. A dataset used by several is checked once.
        track: Wraps the loop over a dataset's images, given their number and a name; for a progress bar.

    Returns:
        One report per dataset, in the order of the config.
    """
    reports: List[Tuple[Any, Report]] = []
    for split in splits:
        for where, dataset in datasets(cfg, split):
            same = [report for known, report in reports if _files_of(known) == _files_of(dataset)]
            if same:
                same[0].where.append(where)
                continue
            report = Report([where])
            reports.append((dataset, report))
            try:
                _audit(_build(dataset, cfg.get('default_scope')), dataset, report,
                       lambda items, total: track(items, total, where))
            except Exception as error:  # the dataset's own code, fed with files that may be anything
                report.problems['dataset cannot be loaded'].append(_say(error))
    return [report for _, report in reports]


def _files_of(dataset: dict) -> dict:
    beside = ('pipeline', 'test_mode', 'filter_cfg')
    return {key: value for key, value in dataset.items() if key not in beside}


def _build(dataset: dict, scope: Optional[str]):
    """The stock dataset itself, its files unread: it knows its suffixes, classes and label rules best."""
    from mmengine.registry import DATASETS
    with DATASETS.switch_scope_and_registry(scope) as registry:
        return registry.build(dict(copy.deepcopy(dataset), pipeline=[], lazy_init=True))


def _audit(dataset, config: dict, report: Report, track: Callable[[Iterable, int], Iterable]) -> None:
    """Fill a report, by the class whose way of reading the files the dataset has kept."""
    readers = {next(kind.__name__ for kind in type(dataset).__mro__ if method in vars(kind))
               for method in ('load_data_list', 'parse_data_info')}
    classes = list(dataset.metainfo.get('classes') or ())
    if hasattr(dataset, 'reduce_zero_label') and hasattr(dataset, 'seg_map_suffix'):
        _audit_segmentation(dataset, classes, report, track)
    elif readers == {'CocoDataset'}:
        with_mask = any(step.get('with_mask') for step in config.get('pipeline', []))
        _audit_coco(dataset, classes, with_mask, report, track)
    else:
        report.unchecked = (f'{type_name(config)} reads its files in its own way; only segmentation datasets '
                            'of mmseg and COCO instances of mmdet can be checked')


def _say(error: Exception) -> str:
    return f'{type(error).__name__}: {error}'


def _in_threads(function: Callable, items: Sequence, track: Callable[[Iterable, int], Iterable]) -> Iterator:
    """The function's results in the items' order. Threads do: decoding runs outside the interpreter lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from track(pool.map(function, items), len(items))


def _image_size(path: str) -> Tuple[int, int]:
    """Height and width of an image that decodes to its end, turned as its EXIF data says, like mmcv does."""
    with Image.open(path) as image:
        image.load()
        if image.mode in ('I', 'F'):
            raise ValueError('its pixels are numbers of 32 bits, of no known range')
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
        return image.size if turned else image.size[::-1]


def _audit_segmentation(dataset, classes: List[str], report: Report, track) -> None:
    samples = dataset.load_data_list()
    problems = report.problems
    if not samples:
        problems['no images'].append(f'no *{dataset.img_suffix} under {dataset.data_prefix.get("img_path")}')
    if not classes:
        problems['no classes'].append('neither the dataset class nor metainfo=dict(classes=...) names them')
    legal = _legal_labels(dataset, len(classes)) if classes else np.ones(256, bool)

    def check(sample: dict) -> List[Tuple[str, str]]:
        return list(_check_sample(sample['img_path'], sample.get('seg_map_path'), legal))

    for found in _in_threads(check, samples, track):
        for kind, line in found:
            problems[kind].append(line)

    named = {osp.normpath(sample['seg_map_path']) for sample in samples if sample.get('seg_map_path')}
    report.counts['classes'] = len(classes)
    report.counts['images'] = len(samples)
    report.counts['annotations'] = len(named) - len(problems.get('image without annotation', ()))
    if named and not dataset.ann_file:  # a list of names may leave files out on purpose
        for folder, _, names in os.walk(dataset.data_prefix['seg_map_path'], followlinks=True):
            for name in sorted(names):
                path = osp.normpath(osp.join(folder, name))
                if name.endswith(dataset.seg_map_suffix) and path not in named:
                    problems['annotation without image'].append(path)


def _legal_labels(dataset, num_classes: int) -> np.ndarray:
    """Which of the 256 values a label file may hold, (256,) bool, by the steps of mmseg's LoadAnnotations."""
    label = np.arange(256)
    if dataset.reduce_zero_label:
        label = np.where((label == 0) | (label == 255), 255, label - 1)
    mapping = dataset.label_map or {}
    label = np.array([mapping.get(value, value) for value in label.tolist()])
    return (label < num_classes) | (label == dataset.ignore_index)


def _check_sample(img_path: str, ann_path: Optional[str], legal: np.ndarray) -> Iterator[Tuple[str, str]]:
    """(kind of problem, line) for an image and its label file."""
    size = None
    try:
        size = _image_size(img_path)
    except Exception as error:  # Pillow's decoders raise about anything on a broken file
        yield 'unreadable image', f'{img_path} ({_say(error)})'
    if ann_path is None:
        return
    if not osp.exists(ann_path):
        yield 'image without annotation', f'{img_path} (no {ann_path})'
        return
    try:
        with Image.open(ann_path) as picture:
            labels = np.asarray(picture)
    except Exception as error:
        yield 'unreadable annotation', f'{ann_path} ({_say(error)})'
        return
    if labels.ndim != 2:
        yield 'colours for labels', f'{ann_path} has {labels.shape[2]} channels; expected one, of label ids'
        return
    if size not in (None, labels.shape):
        yield 'sizes differ', f'{ann_path} is {_by(labels.shape)}, its image {_by(size)} (HxW)'
    wrong = [value for value in np.unique(labels).tolist()
             if not (0 <= value < 256 and value == int(value) and legal[int(value)])]
    if wrong:
        shown = ', '.join(map(str, wrong[:8])) + (', ...' if len(wrong) > 8 else '')
        yield 'label out of range', f'{ann_path} holds {shown}'


def _by(size: Sequence[int]) -> str:
    return 'x'.join(map(str, size))


def _audit_coco(dataset, classes: List[str], with_mask: bool, report: Report, track) -> None:
    problems = report.problems
    try:
        with open(dataset.ann_file, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, RecursionError, ValueError) as error:
        problems['unreadable annotations'].append(f'{dataset.ann_file} ({_say(error)})')
        return
    categories = _by_id(content, 'categories', dict(name=str), problems)
    images = _by_id(content, 'images', dict(file_name=str, height=int, width=int), problems)
    annotations = _by_id(content, 'annotations', dict(image_id=(int, str), category_id=(int, str), bbox=list,
                                                      area=(int, float)), problems)
    _check_categories([category['name'] for category in categories.values()], classes, problems)
    wanted = {key for key, category in categories.items() if category['name'] in classes}
    dropped = other = 0
    for key, annotation in annotations.items():
        image = images.get(annotation['image_id'])
        for kind, line in _check_annotation(annotation, image, categories):
            problems[kind].append(f'annotation {key}: {line}')
        if annotation['category_id'] not in wanted:
            other += 1
        elif not is_number(annotation['area']):
            problems['malformed entry'].append(f'annotation {key}: "area" is {annotation["area"]!r:.60}')
        elif annotation['area'] <= 0 or _is_box(annotation['bbox']) and min(annotation['bbox'][2:]) < 1:
            dropped += 1
        elif with_mask and image is not None and not annotation.get('iscrowd'):
            fault = _mask_fault(annotation.get('segmentation'), image)
            if fault:
                problems['no usable mask'].append(f'annotation {key}: {fault}')

    folder = dataset.data_prefix['img']

    def check(image: dict) -> Optional[Tuple[str, str]]:
        path, size = osp.join(folder, image['file_name']), (image['height'], image['width'])
        try:
            found = _image_size(path)
        except FileNotFoundError:
            return 'image file missing', path
        except Exception as error:
            return 'unreadable image', f'{path} ({_say(error)})'
        if found != size:
            return 'sizes differ', f'{path} is {_by(found)}, listed as {_by(size)} (HxW)'
        return None

    for found in _in_threads(check, list(images.values()), track):
        if found:
            problems[found[0]].append(found[1])
    annotated = {annotation['image_id'] for annotation in annotations.values()}
    report.counts.update({
        'classes': len(classes), 'images': len(images), 'annotations': len(annotations),
        'images without annotation': len(images.keys() - annotated), 'annotations of other classes': other,
        'annotations mmdet drops (empty box or area)': dropped})


def _by_id(content: Any, name: str, types: Dict[str, Any], problems: Dict[str, List[str]]) -> Dict[Any, dict]:
    """The sound entries of one list of a COCO file, by their id."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        problems['malformed file'].append(f'no list "{name}" in it')
        return {}
    sound: Dict[Any, dict] = {}
    for place, entry in enumerate(entries):
        faults = ['it is no object'] if not isinstance(entry, dict) else [
            f'"{key}" is {entry.get(key)!r:.60}' for key, kind in dict(types, id=(int, str)).items()
            if not isinstance(entry.get(key), kind)]
        if faults:
            problems['malformed entry'].append(f'{name}[{place}]: {", ".join(faults)}')
        elif entry['id'] in sound:
            problems['id used twice'].append(f'{name}[{place}]: id {entry["id"]}')
        else:
            sound[entry['id']] = entry
    return sound


def _check_categories(names: List[str], classes: List[str], problems: Dict[str, List[str]]) -> None:
    """mmdet numbers the classes by their order in the file, whatever the order in the config."""
    known = [name for name in names if name in classes]
    absent = [name for name in classes if name not in known]
    for name in absent:
        problems['class unknown to the file'].append(f'{name} (mmdet mislabels every class after it)')
    if not absent and known != classes:
        problems['classes in another order'].append(
            f'the file has {", ".join(known)}; the config {", ".join(classes)}; mmdet goes by the file')


def _check_annotation(annotation: dict, image: Optional[dict], categories: dict) -> Iterator[Tuple[str, str]]:
    """(kind of problem, line) for one annotation; ``image`` is None if it is not listed."""
    if annotation['category_id'] not in categories:
        yield 'category out of range', f'category_id {annotation["category_id"]} is not in "categories"'
    if image is None:
        yield 'image not listed', f'image_id {annotation["image_id"]} is not in "images"'
    box = annotation['bbox']
    if not _is_box(box):
        yield 'malformed box', f'bbox is {box!r:.60}; expected four numbers'
    elif image is not None:
        left, top, width, height = box
        # Annotation tools round; a pixel over the edge does no harm.
        if min(left, top) < -1 or left + width > image['width'] + 1 or top + height > image['height'] + 1:
            yield 'box outside the image', f'{box} in {image["width"]}x{image["height"]} (WxH)'


def is_number(value: Any) -> bool:
    """Whether it is an integer or float that fits a float32; JSON has numbers of any size, NaN and infinity."""
    return isinstance(value, (int, float)) and -1e38 < value < 1e38


def _is_box(box: list) -> bool:
    return len(box) == 4 and all(map(is_number, box))


def _mask_fault(mask: Any, image: dict) -> str:
    """Why a segmentation is no mask of the image; empty if it is one."""
    if not mask:
        return 'no segmentation'
    height, width = image['height'], image['width']
    if not isinstance(mask, list):
        return runs_fault(mask, height, width)
    usable = [points for points in mask if isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0]
    faults = [points_fault(points, height, width) for points in usable]
    if not usable or any(faults):
        return next(filter(None, faults), 'no polygon of three or more points')
    if all(len(set(zip(points[::2], points[1::2]))) < 3 for points in usable):
        return 'polygons that enclose nothing'
    beyond = [value for points in usable for start, size in ((0, width), (1, height)) for value in points[start::2]
              if not -1 <= value <= size + 1]  # annotation tools round
    return f'a polygon outside the image, at {beyond[0]}' if beyond else ''


def points_fault(points: Any, height: int, width: int) -> str:
    """Why pycocotools must not see a polygon, of which it draws every pixel of the outline; empty if it may."""
    if not isinstance(points, list):
        return f'{points!r:.40} for a polygon'
    strange = [value for value in points if not is_number(value) or abs(value) > 10 * max(height, width)]
    return f'a polygon with {strange[0]!r:.40} in it, image is {height}x{width} (HxW)' if strange else ''


def runs_fault(mask: Any, height: int, width: int) -> str:
    """Why pycocotools must not see run lengths, which it does not check; empty if it may."""
    size, counts = (mask.get('size'), mask.get('counts')) if isinstance(mask, dict) else (None, None)
    if size != [height, width]:
        return f'run lengths for size {size!r:.40}, image is {height}x{width} (HxW)'
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    sound = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    return '' if sound and sum(runs) == height * width else 'run lengths that do not add up to the image'


def _run_lengths(text: str) -> Optional[List[int]]:
    """COCO's compressed run lengths: five bits a letter, least first, and from the fourth run on the difference to the
    last but one. None where the text is none."""
    runs: List[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) and 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return None if shift else runs
