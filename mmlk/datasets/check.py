"""Checks that the files and folders of a config's datasets exist, without opening an image."""
import contextlib
import copy
import importlib
import inspect
import io
import os
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mmlk._types import type_name

SPLITS = ('train', 'val', 'test')


@dataclass(frozen=True)
class DataLayout:
    """The folders and files of a public dataset, and where to download it."""
    title: str
    tree: str
    source: str
    suffixes: Dict[str, str]  # of the dataset class of that name, by key of data_prefix


LAYOUTS = {
    'ade20k': DataLayout(
        title='ADE20K',
        tree='images/training/*.jpg          images/validation/*.jpg\n'
             'annotations/training/*.png     annotations/validation/*.png   (0 unlabelled, classes from 1)',
        source='http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip, unpacked',
        suffixes=dict(img_path='.jpg', seg_map_path='.png')),
    'cityscapes': DataLayout(
        title='Cityscapes',
        tree='leftImg8bit/{train,val}/<city>/*_leftImg8bit.png\n'
             'gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png   (classes from 0, 255 ignored)',
        source='leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip from '
               'https://www.cityscapes-dataset.com (with an account). The *_labelTrainIds.png are not in '
               'them: make them with `pip install cityscapesscripts` and '
               '`CITYSCAPES_DATASET=<data_root> csCreateTrainIdLabelImgs`',
        suffixes=dict(img_path='_leftImg8bit.png', seg_map_path='_gtFine_labelTrainIds.png')),
    'voc': DataLayout(
        title='Pascal VOC 2012 with SBD',
        tree='JPEGImages/*.jpg\n'
             'SegmentationClass/*.png         ImageSets/Segmentation/{train,val}.txt   (classes from 0, 255 ignored)\n'
             'SegmentationClassAug/*.png      ImageSets/Segmentation/aug.txt',
        source='http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar, unpacked, and for '
               'SegmentationClassAug and aug.txt the benchmark.tgz of SBD, converted by '
               "mmsegmentation's tools/dataset_converters/voc_aug.py",
        suffixes=dict(img_path='.jpg', seg_map_path='.png')),
    'coco': DataLayout(
        title='COCO',
        tree='train2017/*.jpg     annotations/instances_train2017.json\n'
             'val2017/*.jpg       annotations/instances_val2017.json',
        source='https://cocodataset.org/#download: 2017 Train images, 2017 Val images, '
               '2017 Train/Val annotations',
        suffixes={}),
    'imagenet': DataLayout(
        title='ImageNet-1K',
        tree='train/<class>/*.JPEG     a folder for each of the 1000 classes, n01440764 to n15075141\n'
             'val/<class>/*.JPEG       the same folders; or all images in val/, and their numbers in meta/val.txt',
        source='ILSVRC2012_img_train.tar, which holds a tar for each class, and ILSVRC2012_img_val.tar from '
               'https://image-net.org/download-images (with an account). The latter has no folders: valprep.sh of '
               'https://github.com/soumith/imagenetloader.torch moves the images into them',
        suffixes={}),
}


@dataclass(frozen=True)
class DataProblem:
    """A reason for which a run would fail.

    Args:
        where: The settings of the config that cause it.
        message: What is wrong and what to do.
    """
    where: str
    message: str

    def __str__(self) -> str:
        return self.message


class _Loss(NamedTuple):
    """A path that does not exist, and the setting of the config from which it comes."""
    what: str
    setting: str
    root: str
    layout: Optional[str]


def missing(cfg: dict, splits: Sequence[str] = SPLITS) -> List[DataProblem]:
    """Finds folders and files of a config's datasets and evaluators that do not exist, and datasets that cannot be
    built.

    Each dataset, also inside of wrappers, is built as in a run, but without its pipeline and its list of samples. Its
    attributes give the folders and suffixes. Paths on remote storage (with ``backend_args`` or ``://``) are not
    checked.

    Args:
        cfg: A whole config of mmseg, mmdet or mmpretrain, with ``default_scope``.
        splits: The splits whose ``<split>_dataloader`` and ``<split>_evaluator`` are checked.

    Returns:
        One problem for each dataset root with missing files, and one for each dataset that cannot be built. Empty if
        nothing is missing.
    """
    losses: List[_Loss] = []
    refused: Dict[str, List[str]] = {}
    for split in splits:
        root, layout = '', None
        for where, dataset in datasets(cfg, split):
            root, layout = dataset.get('data_root') or '', _public_layout(dataset)
            try:
                losses += [_Loss(what, f'{where}.{key}', root, layout)
                           for what, key in _lost_of(dataset, cfg.get('default_scope'))]
            except Exception as error:  # the dataset's own code
                refused.setdefault(explain_refusal(dataset, error), []).append(where)
        for where, evaluator in evaluators(cfg, split):
            ann_file = evaluator.get('ann_file')
            if ann_file and not _is_remote(evaluator, ann_file) and not osp.isfile(ann_file):
                losses.append(_Loss(f'no file {ann_file}', f'{where}.ann_file', root, layout))

    groups: Dict[Tuple[str, Optional[str]], List[_Loss]] = {}
    for loss in losses:
        groups.setdefault((loss.root, loss.layout), []).append(loss)
    return [*(_explain(root, layout, group) for (root, layout), group in groups.items()),
            *(DataProblem(', '.join(places), f'{", ".join(places)} cannot be built: {why}')
              for why, places in refused.items())]


def build_dataset(dataset: dict, scope: Optional[str]) -> Optional[Any]:
    """Builds a dataset without its pipeline, and without reading its files.

    Args:
        dataset: The config of a dataset, not of a wrapper.
        scope: The ``default_scope`` of the whole config.

    Returns:
        The dataset, or None if its class is not a subclass of ``mmengine.dataset.BaseDataset`` or has no argument
        ``lazy_init``.

    Raises:
        Exception: Any error of the registry or of the class.
    """
    from mmengine.dataset import BaseDataset
    from mmengine.registry import DATASETS
    kind = dataset.get('type')
    with without_prints(), DATASETS.switch_scope_and_registry(scope) as registry:
        if scope in ('mmdet', 'mmpretrain', 'mmseg'):
            importlib.import_module(f'{scope}.datasets')
        kind = registry.get(kind) if isinstance(kind, str) else kind
        if inspect.isclass(kind):
            parameters = inspect.signature(kind).parameters.values()
            lazily = any(part.name == 'lazy_init' or part.kind is part.VAR_KEYWORD for part in parameters)
            if not (issubclass(kind, BaseDataset) and lazily):
                return None
        settings = {key: value for key, value in dataset.items() if key != 'pipeline'}
        return registry.build(dict(copy.deepcopy(settings), pipeline=[], lazy_init=True))


@contextlib.contextmanager
def without_prints() -> Iterator[None]:
    """A context manager that suppresses what the toolboxes print when they are imported or read annotations."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def explain_refusal(dataset: dict, error: Exception) -> str:
    """Returns the reason for which a dataset cannot be built, with advice for the known reasons."""
    metainfo = dataset.get('metainfo') or {}
    why = ' '.join(str(error).split()) or type(error).__name__
    if 'is not a subset of classes' in why:
        return (f"{type_name(dataset)} knows only its own classes, and metainfo.classes names others. For these, take "
                "type='BaseSegDataset' with the img_suffix, seg_map_suffix and reduce_zero_label of your files; to "
                "keep the class's own, delete metainfo (where a base config has it: metainfo=dict(_delete_=True))")
    if 'palette does not match classes' in why:
        count, own = len(metainfo.get('palette') or ()), 'palette' in metainfo
        source = f'metainfo.palette has {count} colours' if own else f'the palette of {type_name(dataset)} stays'
        return (f"metainfo.classes has {len(metainfo.get('classes') or ())} names, but {source}. Where a base config "
                'has the palette, delete it: metainfo=dict(_delete_=True, classes=...); or give one colour per class')
    return why


def datasets(cfg: dict, split: str) -> Iterator[Tuple[str, dict]]:
    """Yields (dotted place in the config, config) for each dataset of ``<split>_dataloader``, also in wrappers."""
    dataset = (cfg.get(f'{split}_dataloader') or {}).get('dataset')
    if dataset:
        yield from _unwrap(f'{split}_dataloader.dataset', dataset)


def _unwrap(where: str, dataset: dict) -> Iterator[Tuple[str, dict]]:
    inner = dataset.get('dataset')
    if inner is not None:
        yield from _unwrap(f'{where}.dataset', inner)
    elif dataset.get('datasets') is not None:
        for place, part in enumerate(dataset['datasets']):
            yield from _unwrap(f'{where}.datasets.{place}', part)
    else:
        yield where, dataset


def evaluators(cfg: dict, split: str) -> Iterator[Tuple[str, dict]]:
    """Yields (dotted place in the config, config) for each metric of ``<split>_evaluator``.

    The evaluator may be one metric, a list of metrics or an ``Evaluator``. Metrics that are objects are left out.
    """
    where, evaluator = f'{split}_evaluator', cfg.get(f'{split}_evaluator') or []
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        where, evaluator = f'{where}.metrics', evaluator['metrics']
    if isinstance(evaluator, (list, tuple)):
        yield from ((f'{where}.{place}', part) for place, part in enumerate(evaluator) if isinstance(part, dict))
    elif isinstance(evaluator, dict):
        yield where, evaluator


def layout_of(dataset: dict) -> Optional[str]:
    """Returns the key of ``LAYOUTS`` for a dataset's config, from its class and, for demo scenes, its folders.

    Returns:
        The key, or None if the layout is unknown.
    """
    name = type_name(dataset)
    images = str(_prefixes(dataset).get('img_path', '')) if _is_demo(dataset) else ''
    if name == 'ADE20KDataset' or images.rstrip('/') in ('images/training', 'images/validation'):
        return 'ade20k'
    if name == 'CityscapesDataset' or images.startswith('leftImg8bit'):
        return 'cityscapes'
    if name == 'PascalVOCDataset' or images.rstrip('/') == 'JPEGImages':
        return 'voc'
    if name == 'CocoDataset' and 'ood_coco' in Path(dataset.get('data_root') or '').parts:
        return None  # COCO-O, which is not in COCO's download
    return {'CocoDataset': 'coco', 'ImageNet': 'imagenet'}.get(name)


def _public_layout(dataset: dict) -> Optional[str]:
    """Returns the layout of a public dataset. None if the config sets its own classes: the files differ then."""
    own = 'classes' in (dataset.get('metainfo') or {})
    return None if own and not _is_demo(dataset) else layout_of(dataset)


def _prefixes(dataset: dict) -> dict:
    """Returns the ``data_prefix`` of a dataset's config. mmpretrain also takes the folder of the images alone."""
    prefix = dataset.get('data_prefix') or {}
    return dict(img_path=prefix) if isinstance(prefix, str) else prefix


def _is_demo(dataset: dict) -> bool:
    return 'demo' in Path(dataset.get('data_root') or '').parts


def _lost_of(dataset: dict, scope: Optional[str]) -> Iterator[Tuple[str, str]]:
    """Yields (what is missing, the key of the dataset's config to change) for one dataset."""
    root = dataset.get('data_root') or ''
    if _is_remote(dataset, root):
        return
    if root and not osp.isdir(root):
        yield f'no folder {root}', 'data_root'
        return
    # Paths in the config are checked first: some classes can be built only if their folders exist.
    folders = {key: osp.join(root, prefix) for key, prefix in _prefixes(dataset).items()
               if isinstance(prefix, str)}
    lost = list(_lost_paths(dataset, osp.join(root, dataset.get('ann_file') or ''), folders, None))
    if not lost:
        built = build_dataset(dataset, scope)
        if built is not None:
            suffixes = {key: getattr(built, option, '')
                        for key, option in (('img_path', 'img_suffix'), ('seg_map_path', 'seg_map_suffix'))}
            lost = list(_lost_paths(dataset, built.ann_file, built.data_prefix, suffixes))
    for what, key in lost:
        yield what, 'data_root' if root else key


def _lost_paths(dataset: dict, ann_file: Optional[str], folders: dict,
                suffixes: Optional[Dict[str, str]]) -> Iterator[Tuple[str, str]]:
    """Yields (what is missing, key) for complete paths. Without ``suffixes``, folders may be empty."""
    if ann_file and not _is_remote(dataset, ann_file) and not osp.exists(ann_file):
        yield f'no file {ann_file}', 'ann_file'
    for key, folder in folders.items():
        if not isinstance(folder, str) or _is_remote(dataset, folder):
            continue
        if not osp.isdir(folder):
            yield f'no folder {folder}', f'data_prefix.{key}'
        elif suffixes is not None and not _holds_file(folder, suffixes.get(key) or ''):
            yield f'no file *{suffixes.get(key) or ""} in folder {folder}', f'data_prefix.{key}'


def _holds_file(folder: str, suffix: str) -> bool:
    return any(name.endswith(suffix) for _, _, names in os.walk(folder, followlinks=True) for name in names)


def _is_remote(entry: dict, path: str) -> bool:
    backend = (entry.get('backend_args') or {}).get('backend', 'local')
    return backend != 'local' or '://' in str(path)


def _explain(root: str, layout: Optional[str], losses: List[_Loss]) -> DataProblem:
    """Returns one problem that lists everything that is missing from a dataset."""
    found_by: Dict[str, List[str]] = {}
    for loss in losses:
        found_by.setdefault(loss.what, []).append(loss.setting.split('.')[0])
    settings = list(dict.fromkeys(loss.setting for loss in losses))
    title = LAYOUTS[layout].title if layout else 'dataset'
    lines = [f'Data of this config is missing ({title}, data_root {root or "not set"}; '
             f'looked for from {os.getcwd()}):']
    lines += [f'  {what}   ({", ".join(dict.fromkeys(users))})' for what, users in found_by.items()]
    if layout:
        lines += [f'Expected under {root}:', *(f'  {line}' for line in LAYOUTS[layout].tree.splitlines())]
    if layout and 'demo' in Path(root).parts:
        lines.append(f'Make it: python tools/make_demo_data.py --layout {layout} --out {root}')
    elif layout:
        lines.append(f'Get it: {LAYOUTS[layout].source}.')
    lines.append('If it lies elsewhere: --cfg-options ' + ' '.join(f'{name}=...' for name in settings))
    return DataProblem(', '.join(settings), '\n'.join(lines))
