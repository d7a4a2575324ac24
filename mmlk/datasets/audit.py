"""Open every image and annotation that a config's datasets name, and count what is wrong with them.

Files are read by the loading steps of the dataset's own pipeline. They are taken for untrusted: whatever cannot be read
becomes a finding, never an exception.
"""
import copy
import json
import os
import os.path as osp
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from mmlk._types import type_name
from mmlk.datasets.check import SPLITS, build_dataset, datasets, without_prints
from mmlk.datasets.images import check_end
from mmlk.datasets.samples import fault, leaves
from mmlk.datasets.settings import HeadSettings, heads, steps, use_of

Track = Callable[[Iterable, int, str], Iterable]

@dataclass
class AuditReport:
    """The result of checking one dataset.

    Args:
        where: The places in the config that use the dataset.
        unchecked: The reason for which the dataset was not checked; empty if it was.
        counts: Numbers of classes, images, annotations and the like, by name.
        shares: Fraction of all pixels, 0 to 1, by class, and for the ignored label.
        notes: Observations that may be intended.
        problems: By kind of problem, one line for each case.
    """
    where: List[str]
    unchecked: str = ''
    counts: Dict[str, int] = field(default_factory=dict)
    shares: Dict[str, float] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)
    problems: Dict[str, List[str]] = field(default_factory=lambda: defaultdict(list))


def audit(cfg: dict, splits: Sequence[str] = SPLITS,
          track: Track = lambda items, total, what: items) -> List[AuditReport]:
    """Checks each image and annotation of a config's segmentation datasets (mmseg), COCO datasets (mmdet) and
    classification datasets (mmpretrain).

    Args:
        cfg: A whole config, with ``default_scope``. Call :func:`mmlk.datasets.check.missing` on it first.
        splits: The splits whose ``<split>_dataloader`` is checked. A dataset that several of them use is checked once.
        track: Called as ``track(images, number, name)``; returns the iterable to loop over. For a progress bar.

    Returns:
        One report per dataset, in the order of the config.
    """
    reports: List[Tuple[Any, AuditReport]] = []
    for split in splits:
        for where, dataset in datasets(cfg, split):
            same = [report for known, report in reports if _files_of(known) == _files_of(dataset)]
            report = same[0] if same else AuditReport([])
            report.where.append(where)
            try:
                if not same:
                    reports.append((dataset, report))
                    _audit(cfg, dataset, report, lambda items, total: track(items, total, where))
                if not any(kind in report.problems for kind in _BROKEN):
                    _put_through(cfg, where, split, dataset, report)
            except Exception as error:  # the dataset's own code, fed with files that may be anything
                report.problems['dataset cannot be loaded'].append(_say(error))
    return [report for _, report in reports]


# If a dataset has one of these problems, its own code would fail for a reason that is already in the report.
_BROKEN = ('dataset cannot be loaded', 'no images', 'malformed entry', 'malformed file', 'malformed box',
           'unreadable annotations', 'id used twice', 'image not listed', 'category out of range')


def _files_of(dataset: dict) -> dict:
    beside = ('pipeline', 'test_mode', 'filter_cfg')
    return {key: value for key, value in dataset.items() if key not in beside}


def _audit(cfg: dict, config: dict, report: AuditReport, track: Callable[[Iterable, int], Iterable]) -> None:
    """Runs the checks for the class whose methods read the dataset's files, and adds the results to the report."""
    scope = cfg.get('default_scope')
    dataset = build_dataset(config, scope)
    if dataset is None:
        report.unchecked = f'{type_name(config)} cannot be built without its samples'
        return
    readers = {next(kind.__name__ for kind in type(dataset).__mro__ if method in vars(kind))
               for method in ('load_data_list', 'parse_data_info')}
    classes = list(dataset.metainfo.get('classes') or ())
    loaders = Loaders.of(config, scope)
    if hasattr(dataset, 'reduce_zero_label') and hasattr(dataset, 'seg_map_suffix') and scope != 'mmdet':
        _audit_segmentation(dataset, classes, report, track, loaders, heads(cfg))
    elif readers == {'CocoDataset'}:
        with_mask = any(step.get('with_mask') for _, step in steps(config.get('pipeline') or (), ''))
        _audit_coco(dataset, classes, with_mask, report, track, loaders)
    elif readers <= {'CustomDataset', 'BaseDataset'} and hasattr(dataset, 'with_label'):
        _audit_classification(dataset, report, track, loaders, heads(cfg))
    else:
        report.unchecked = (f'{type_name(config)} reads its files in its own way; only segmentation datasets '
                            'of mmseg, COCO instances of mmdet and class folders of mmpretrain can be checked')


def _put_through(cfg: dict, where: str, split: str, config: dict, report: AuditReport) -> None:
    """Runs one sample through the whole pipeline of a dataset, and adds an error to the report."""
    from mmengine.registry import DATASETS
    if not config.get('pipeline'):
        return
    with without_prints(), DATASETS.switch_scope_and_registry(cfg.get('default_scope')) as registry:
        built = registry.build(copy.deepcopy(dict(config)))
    for dataset in leaves(built):
        why = fault(dataset, use_of(cfg, split))
        if why and not any(path in why for lines in report.problems.values() for path in _first_words(lines)):
            report.problems['pipeline fails'].append(f'{where}: {why}')


def _first_words(lines: Sequence[str]) -> Iterator[str]:
    return (line.partition(' ')[0] for line in lines if '/' in line.partition(' ')[0])


class Loaders(NamedTuple):
    """The loading steps of a pipeline.

    Args:
        image: The step that loads the image.
        labels: The step that loads the label map; None if there is none.
    """
    image: Any
    labels: Any = None

    @classmethod
    def of(cls, dataset: dict, scope: Optional[str]) -> 'Loaders':
        """Builds the loading steps of a dataset's config, or those of mmcv and mmseg if it has no pipeline."""
        from mmengine.registry import TRANSFORMS
        listed = [step for _, step in steps(dataset.get('pipeline') or (), '')]
        images, labels = ([step for step in listed if type_name(step).startswith('Load') and what in type_name(step)]
                          for what in ('Image', 'Annotations'))
        with TRANSFORMS.switch_scope_and_registry(scope) as registry:
            if not listed or not (labels or scope in ('mmdet', 'mmpretrain')):
                labels = [dict(type='LoadAnnotations')]
            return cls(*(registry.build(copy.deepcopy(dict(found[0]))) if found else None
                         for found in (images or [dict(type='LoadImageFromFile')], labels)))

    def image_size(self, sample: dict) -> Tuple[int, int]:
        """Returns the height and width of an image as the pipeline loads it.

        Raises:
            Exception: The image cannot be read completely.
        """
        given = {key: value for key, value in sample.items() if key not in ('instances', 'seg_map_path')}
        loaded = self.image(given)
        check_end(sample['img_path'])
        if loaded['img'].dtype == np.uint8 and _has_numbers_of_32_bits(sample['img_path']):
            raise ValueError('its pixels are numbers of 32 bits, of no known range')
        return tuple(loaded['img'].shape[:2])

    def read_labels(self, sample: dict) -> Tuple[np.ndarray, bool]:
        """Returns a label map, and whether its values are those in the file.

        They are for mmseg's own loader. Any other loader runs as in the pipeline, and may have changed the values.

        Raises:
            Exception: The label map cannot be read.
        """
        import mmcv
        from mmengine import fileio
        if not hasattr(self.labels, 'imdecode_backend') or not _is_stock(self.labels):
            given = dict(copy.deepcopy(sample), seg_fields=[])
            return np.asarray(self.labels(given)['gt_seg_map']), False
        content = fileio.get(sample['seg_map_path'], backend_args=self.labels.backend_args)
        labels = mmcv.imfrombytes(content, flag='unchanged', backend=self.labels.imdecode_backend)
        return (labels[..., 0] if labels.ndim == 3 and labels.shape[2] == 1 else labels), True


def _is_stock(loader: Any) -> bool:
    return type(loader).__module__.partition('.')[0] in ('mmseg', 'mmdet', 'mmcv', 'mmlk') and (
        type(loader).__name__ == 'LoadAnnotations')


def _has_numbers_of_32_bits(path: str) -> bool:
    if not path.lower().endswith(('.tif', '.tiff')):
        return False
    try:
        with Image.open(path) as image:
            return image.mode in ('I', 'F')
    except Exception:  # it has more bands than Pillow supports
        return False


def _say(error: Exception, path: str = '') -> str:
    """Returns the error as one line of text, without the path if that is given."""
    return ' '.join(f'{type(error).__name__}: {error}'.replace(f'{path} ', '').split())


def _in_threads(function: Callable, items: Sequence, track: Callable[[Iterable, int], Iterable]) -> Iterator:
    """Calls a function for each item in threads, and yields the results in order. Decoding releases the GIL."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield from track(pool.map(function, items), len(items))


def _audit_segmentation(dataset, classes: List[str], report: AuditReport, track, loaders: Loaders,
                        model: Sequence[HeadSettings] = ()) -> None:
    samples = dataset.load_data_list()
    problems = report.problems
    if not samples:
        problems['no images'].append(f'no *{dataset.img_suffix} under {dataset.data_prefix.get("img_path")}')
    if not classes:
        problems['no classes'].append('neither the dataset class nor metainfo=dict(classes=...) names them')
    limits = {'': len(classes) or 256, **{head.where: head.ids for head in model if head.ids < len(classes)}}
    loaded_as = _loaded_as(dataset)

    def check(sample: dict) -> Tuple[List[Tuple[str, str]], Optional[np.ndarray], np.ndarray]:
        return _check_sample(sample, loaders, limits, loaded_as, dataset.ignore_index)

    pixels = np.zeros(256, np.int64)  # by label after loading
    values = np.zeros(256, np.int64)  # in the files
    unlabelled = 0
    for found, counts, raw in _in_threads(check, samples, track):
        for kind, line in found:
            problems[kind].append(line)
        if counts is not None:
            pixels += counts
            values += raw
            unlabelled += counts[dataset.ignore_index] == counts.sum()

    named = {osp.normpath(sample['seg_map_path']) for sample in samples if sample.get('seg_map_path')}
    report.counts['classes'] = len(classes)
    report.counts['images'] = len(samples)
    report.counts['annotations'] = len(named) - len(problems.get('image without annotation', ()))
    if unlabelled:
        report.counts['annotations with the ignored label only'] = int(unlabelled)
    _count_pixels(classes, dataset.ignore_index, pixels, values, report)
    if named and not dataset.ann_file:  # a list of names may leave files out on purpose
        for folder, _, names in os.walk(dataset.data_prefix['seg_map_path'], followlinks=True):
            for name in sorted(names):
                path = osp.normpath(osp.join(folder, name))
                if name.endswith(dataset.seg_map_suffix) and path not in named:
                    problems['annotation without image'].append(path)


def _audit_classification(dataset, report: AuditReport, track, loaders: Loaders,
                          model: Sequence[HeadSettings] = ()) -> None:
    samples = dataset.load_data_list()
    classes = list(dataset.metainfo.get('classes') or ())
    problems = report.problems
    if not samples:
        problems['no images'].append(f'none of {", ".join(dataset.extensions)} under {dataset.img_prefix}')

    def check(sample: dict) -> Optional[str]:
        try:
            loaders.image_size(sample)
        except Exception as error:  # decoders raise many types of errors for a damaged file
            return f'{sample["img_path"]} ({_say(error, sample["img_path"])})'
        return None

    problems['unreadable image'] += filter(None, _in_threads(check, samples, track))
    report.counts['classes'] = len(classes)
    report.counts['images'] = len(samples)
    if not dataset.with_label:
        return
    limits = {'': len(classes), **{head.where: head.ids for head in model if head.ids < len(classes)}}
    images: Dict[int, int] = defaultdict(int)
    for sample in samples:
        images[sample['gt_label']] += 1
        for head, limit in limits.items():
            if not 0 <= sample['gt_label'] < limit:
                kind = 'label that a head lacks' if head else 'label out of range'
                problems[kind].append(f'{sample["img_path"]} has label {sample["gt_label"]}; '
                                      f'{head or "the dataset"} has {limit} classes')
    empty = [str(name) for label, name in enumerate(classes) if label not in images]
    if empty and samples:
        report.notes.append(f'{len(empty)} of {len(classes)} classes have no image: {", ".join(empty[:8])}'
                            + (', ...' if len(empty) > 8 else ''))


def _count_pixels(classes: List[str], ignored: int, pixels: np.ndarray, values: np.ndarray,
                  report: AuditReport) -> None:
    """Adds the fraction of each class to the report, and problems that follow from it.

    In masks of 0 and 255, for example, all pixels of the object are ignored in training, without an error.
    """
    total = pixels.sum()
    if not total or not classes:
        return
    report.shares = {str(name): pixels[number] / total for number, name in enumerate(classes)}
    report.shares[f'ignored ({ignored})'] = pixels[ignored] / total
    absent = [name for number, name in enumerate(classes) if not pixels[number]]
    held = np.flatnonzero(values).tolist()
    if pixels[ignored] == total:
        report.problems['nothing but the ignored label'].append(
            f'the files hold {", ".join(map(str, held[:8]))}, which after loading is {ignored} throughout: nothing '
            'would be learnt')
    elif 255 in held and set(held) <= {0, 255} and len(classes) > 1:
        report.problems['masks of 0 and 255'].append(
            f'the files hold 0 and 255 alone, and 255 is the ignored label, so that {absent[-1]} never occurs: it '
            f'would not be learnt, with an accuracy of nan. Save the masks with labels from 0 to {len(classes) - 1}')
    elif absent:
        names = ', '.join(map(str, absent[:8])) + (', ...' if len(absent) > 8 else '')
        report.notes.append(f'{len(absent)} of {len(classes)} classes never occur: {names}')


def _loaded_as(dataset) -> np.ndarray:
    """Returns the label, (256,) int, to which mmseg's LoadAnnotations maps each value of a label file."""
    label = np.arange(256)
    if dataset.reduce_zero_label:
        label = np.where((label == 0) | (label == 255), 255, label - 1)
    mapping = dataset.label_map or {}
    return np.array([mapping.get(value, value) for value in label.tolist()])


def _check_sample(sample: dict, loaders: Loaders, limits: Dict[str, int], loaded_as: np.ndarray, ignored: int
                  ) -> Tuple[List[Tuple[str, str]], Optional[np.ndarray], np.ndarray]:
    """Checks an image and its label file.

    Args:
        sample: The entry of the dataset.
        loaders: The loading steps of the pipeline.
        limits: Number of labels of the dataset, with the key ``''``, and of each head that has fewer.
        loaded_as: The label after loading for each value in a file, (256,).
        ignored: The label that training ignores.

    Returns:
        A (kind of problem, line) pair for each problem; the number of pixels for each label after loading, (256,), or
        None if the file cannot be read; and the number of pixels for each value in the file, (256,).
    """
    found: List[Tuple[str, str]] = []
    img_path, ann_path, size = sample['img_path'], sample.get('seg_map_path'), None
    nothing = np.zeros(256, np.int64)
    try:
        size = loaders.image_size(sample)
    except Exception as error:  # decoders raise many types of errors for a damaged file
        found.append(('unreadable image', f'{img_path} ({_say(error, img_path)})'))
    if ann_path is None:
        return found, None, nothing
    if not osp.exists(ann_path):
        return [*found, ('image without annotation', f'{img_path} (no {ann_path})')], None, nothing
    try:
        labels, raw = loaders.read_labels(sample)
    except Exception as error:
        return [*found, ('unreadable annotation', f'{ann_path} ({_say(error)})')], None, nothing
    if labels.ndim != 2:
        return [*found, ('colours for labels', f'{ann_path} has {labels.shape[-1]} channels; expected one, of label '
                         'ids')], None, nothing
    if size not in (None, labels.shape):
        found.append(('sizes differ', f'{ann_path} is {_by(labels.shape)}, its image {_by(size)} (HxW)'))
    values, counts = np.unique(labels, return_counts=True)
    fits = np.array([0 <= value < 256 and value == int(value) for value in values.tolist()], bool)
    kept, counts = values[fits].astype(int), counts[fits]
    after = loaded_as[kept] if raw else kept
    wrong = {'': values[~fits].tolist()}
    for head, limit in limits.items():
        bad = kept[(after >= limit) & (after != ignored)].tolist()
        wrong[head] = [value for value in wrong.get(head, []) + bad if head == '' or value not in wrong['']]
    for head, bad in wrong.items():
        if bad:
            shown = ', '.join(map(str, sorted(bad)[:8])) + (', ...' if len(bad) > 8 else '')
            found.append(('label that a head lacks', f'{ann_path} holds {shown}; {head} has {limits[head]} classes')
                         if head else ('label out of range', f'{ann_path} holds {shown}'))
    pixels, by_value = nothing.copy(), nothing.copy()
    np.add.at(by_value, kept, counts)
    np.add.at(pixels, after, counts)
    return found, pixels, by_value


def _by(size: Sequence[int]) -> str:
    return 'x'.join(map(str, size))


def _audit_coco(dataset, classes: List[str], with_mask: bool, report: AuditReport, track, loaders: Loaders) -> None:
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
            found = loaders.image_size(dict(img_path=path))
        except Exception as error:
            if not osp.exists(path):
                return 'image file missing', path
            return 'unreadable image', f'{path} ({_say(error, path)})'
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
    """Returns the valid entries of one list of a COCO file by their id. Adds the others to the problems."""
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
    """Compares the names of the classes. mmdet numbers them by their order in the file, not in the config."""
    known = [name for name in names if name in classes]
    absent = [name for name in classes if name not in known]
    for name in absent:
        problems['class unknown to the file'].append(f'{name} (mmdet mislabels every class after it)')
    if not absent and known != classes:
        problems['classes in another order'].append(
            f'the file has {", ".join(known)}; the config {", ".join(classes)}; mmdet goes by the file')


def _check_annotation(annotation: dict, image: Optional[dict], categories: dict) -> Iterator[Tuple[str, str]]:
    """Yields (kind of problem, line) pairs for one annotation. ``image`` is None if the file does not list it."""
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
    """Returns whether the value is a number that fits into float32. JSON can contain larger ones, NaN and infinity."""
    return isinstance(value, (int, float)) and -1e38 < value < 1e38


def _is_box(box: list) -> bool:
    return len(box) == 4 and all(map(is_number, box))


def _mask_fault(mask: Any, image: dict) -> str:
    """Returns the reason for which a segmentation is not a valid mask of the image; empty if it is valid."""
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
    """Returns the reason for which a polygon is not safe for pycocotools; empty if it is safe.

    pycocotools allocates memory for every pixel of the outline, also outside of the image.
    """
    if not isinstance(points, list):
        return f'{points!r:.40} for a polygon'
    strange = [value for value in points if not is_number(value) or abs(value) > 10 * max(height, width)]
    return f'a polygon with {strange[0]!r:.40} in it, image is {height}x{width} (HxW)' if strange else ''


def runs_fault(mask: Any, height: int, width: int) -> str:
    """Returns the reason for which run lengths are invalid, or an empty text. pycocotools does not check them."""
    size, counts = (mask.get('size'), mask.get('counts')) if isinstance(mask, dict) else (None, None)
    if size != [height, width]:
        return f'run lengths for size {size!r:.40}, image is {height}x{width} (HxW)'
    runs = _run_lengths(counts) if isinstance(counts, str) else counts
    sound = isinstance(runs, list) and all(isinstance(run, int) and run >= 0 for run in runs)
    return '' if sound and sum(runs) == height * width else 'run lengths that do not add up to the image'


def _run_lengths(text: str) -> Optional[List[int]]:
    """Decodes COCO's compressed run lengths.

    Each character holds five bits, the least significant first. From the fourth run on, the difference to the run
    before the previous one is stored.

    Returns:
        The run lengths, or None if the text is invalid.
    """
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
