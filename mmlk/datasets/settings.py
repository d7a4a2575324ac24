"""Checks that the settings of a config are consistent, before a model is built or a file is read."""
import inspect
import os
import os.path as osp
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mmlk._types import type_name
from mmlk.datasets.check import SPLITS, DataProblem, build_dataset, datasets, evaluators

_HEADS = ('decode_head', 'auxiliary_head', 'bbox_head', 'mask_head', 'panoptic_head', 'panoptic_fusion_head')
_NO_HEADS = ('backbone', 'data_preprocessor', 'rpn_head', 'semantic_head', 'teacher', 'test_cfg', 'train_cfg')
_ENDLESS = ('InfiniteSampler', 'InfiniteBatchSampler', 'InfiniteGroupBatchSampler', 'MultiSourceSampler',
            'GroupMultiSourceSampler')


class HeadSettings(NamedTuple):
    """A head of a model.

    Args:
        where: Dotted place in the config.
        classes: Number of classes.
        ids: Number of label ids that it can learn.
        key: What the config calls the number of classes.
        weights: Number of its class weights, among them that of "no object", if it has these as a list.
    """
    where: str
    classes: int
    ids: int
    key: str = 'num_classes'
    weights: Optional[int] = None


def conflicts(cfg: dict, splits: Sequence[str] = SPLITS) -> List[DataProblem]:
    """Finds inconsistent settings, with which a run would fail late, learn nothing or never end.

    Args:
        cfg: A whole config of mmseg, mmdet or mmpretrain. Call :func:`mmlk.datasets.check.missing` on it first.
        splits: The splits whose ``<split>_dataloader`` is checked.

    Returns:
        One problem for each setting to change. Empty if the settings are consistent.
    """
    found = [*_loops(cfg, splits)]
    classes: Dict[str, Tuple[str, List[str]]] = {}  # by split: where, and the names
    for split in splits:
        for where, dataset in datasets(cfg, split):
            built = build_dataset(dataset, cfg.get('default_scope'))
            found += _pipeline(cfg, split, where, dataset, built)
            folders = class_folders(built)
            names = (built.metainfo.get('classes') or folders) if built is not None else None
            if isinstance(names, str):
                found.append(DataProblem(f'{where}.metainfo.classes', (
                    f'{where}.metainfo.classes is the text {names!r}, of which each letter would be a class; write '
                    f'({names!r}, ) for one class')))
            elif names and _counts_classes(cfg, split, built):
                found += _heads(cfg, where, built, list(names))
                found += _folders(where, built, list(names), folders)
                classes.setdefault(split, (where, list(names)))
    found += _classes(classes)
    first: Dict[str, DataProblem] = {}
    for problem in found:
        first.setdefault(problem.where, problem)
    return list(first.values())


def heads(cfg: dict) -> List[HeadSettings]:
    """Returns the heads of a config's ``model`` that classify pixels, boxes, masks or images, also inside of wrappers.

    The data preprocessor of a classifier is one of them: it makes a vector of each label, in which images are mixed.
    """
    model, scope = cfg.get('model') or {}, cfg.get('default_scope')
    if scope != 'mmpretrain':
        return list(_walk(model, 'model', scope))
    parts = {f'model.{key}': model.get(key) for key in ('head', 'data_preprocessor')}
    return [HeadSettings(where, part['num_classes'], part['num_classes']) for where, part in parts.items()
            if isinstance(part, dict) and isinstance(part.get('num_classes'), int)]


def _walk(part: dict, where: str, scope: Optional[str]) -> Iterator[HeadSettings]:
    for key, value in part.items():
        listed = value if isinstance(value, (list, tuple)) else [value]
        for number, head in enumerate(listed):
            place = f'{where}.{key}' if listed is not value else f'{where}.{key}.{number}'
            if not isinstance(head, dict) or key in _NO_HEADS:
                continue
            if key in _HEADS:
                if head.get('class_agnostic') or 'boundary_threshold' in head:  # one mask for all; edges for labels
                    continue
                name = 'num_things_classes' if key.startswith('panoptic_') else 'num_classes'
                classes = head.get(name, _default_classes(head, scope, name))
                if isinstance(classes, int):
                    # one channel tells two classes apart
                    yield HeadSettings(place, classes, 2 if head.get('out_channels', classes) == 1 else classes, name,
                                       _weights(head))
            else:
                yield from _walk(head, place, scope)


def _weights(head: dict) -> Optional[int]:
    """Returns the number of class weights of a head that predicts masks of queries."""
    weights = (head.get('loss_cls') or {}).get('class_weight') if 'num_queries' in head else None
    stuff = head.get('num_stuff_classes', 0 if 'num_classes' in head else 53)  # mmseg's head has none, mmdet's 53
    return len(weights) - stuff if isinstance(weights, (list, tuple)) else None


def _default_classes(head: dict, scope: Optional[str], name: str) -> Any:
    """Returns the default value of the number of classes, called ``name``, of a head's class."""
    from mmengine.registry import MODELS
    with MODELS.switch_scope_and_registry(scope) as registry:
        kind = registry.get(head['type']) if isinstance(head.get('type'), str) else head.get('type')
    for base in inspect.getmro(kind) if inspect.isclass(kind) else ():
        parameter = inspect.signature(base.__init__).parameters.get(name)
        if parameter is not None:
            return parameter.default
    return None


def _counts_classes(cfg: dict, split: str, dataset: Any) -> bool:
    """Returns whether the heads must have as many classes as the dataset.

    They need not if the class names are inputs of the model (open vocabulary), or if other things than classes are
    evaluated, such as tracks.
    """
    known = {type_name(evaluator) for _, evaluator in evaluators(cfg, split)} & {'Accuracy', 'CocoMetric', 'IoUMetric'}
    return not getattr(dataset, 'return_classes', False) and (split == 'train' or bool(known))


def _heads(cfg: dict, where: str, dataset: Any, names: List[str]) -> Iterator[DataProblem]:
    """Yields a problem for each head whose number of classes does not fit the dataset."""
    boxes = cfg.get('default_scope') == 'mmdet'
    names = list(dataset.metainfo.get('thing_classes') or names) if boxes else names  # of panoptic sets
    for head in heads(cfg):
        if boxes and head.classes != len(names) or not boxes and head.ids < len(names):
            yield DataProblem(f'{head.where}.{head.key}', (
                f'{head.where}.{head.key} is {head.classes}, but {where} has {len(names)} classes '
                f'({_some(names)}). Set {head.key}={len(names)} in the head, or metainfo.classes in the dataset'))
        elif head.weights not in (None, head.classes + 1):
            yield DataProblem(f'{head.where}.loss_cls.class_weight', (
                f'{head.where}.loss_cls.class_weight does not have one value for each of the {head.classes} classes, '
                f'and last one for "no object". Set class_weight=[1.0] * {head.classes} + [0.1] in it'))


def class_folders(dataset: Any) -> Optional[List[str]]:
    """Returns the names of the class folders of a classification dataset of mmpretrain, in the order of the labels.

    None if its labels come from elsewhere: a list of files, or another format.
    """
    folder = getattr(dataset, 'img_prefix', None)
    if not getattr(dataset, 'with_label', False) or dataset.ann_file or not osp.isdir(str(folder)):
        return None
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _folders(where: str, dataset: Any, names: List[str], folders: Optional[List[str]]) -> Iterator[DataProblem]:
    """Yields a problem if the class folders are not as many as the classes, or have the same names in another order."""
    if folders is None:
        return
    if len(folders) != len(names):
        yield DataProblem(f'{where}.metainfo.classes', (
            f'{where} has {len(names)} classes ({_some(names)}), but {dataset.img_prefix} has {len(folders)} folders '
            f'({_some(folders)}), each of which is a class. Set metainfo.classes to the names of the folders'))
    elif folders != names and set(folders) == set(names):
        yield DataProblem(f'{where}.metainfo.classes', (
            f'{where}.metainfo.classes is {_some(names)}, but mmpretrain numbers the folders in {dataset.img_prefix} '
            f'in alphabetical order: {_some(folders)}. Write metainfo.classes in that order'))


def _classes(found: Dict[str, Tuple[str, List[str]]]) -> Iterator[DataProblem]:
    """Yields a problem for each split whose classes differ from those of the training set."""
    if 'train' not in found:
        return
    first, names = found['train']
    for where, others in (value for split, value in found.items() if split != 'train'):
        if len(others) != len(names) or (others != names and set(others) == set(names)):
            yield DataProblem(f'{where}.metainfo.classes', (
                f'{first} has {len(names)} classes ({_some(names)}), but {where} has {len(others)} ({_some(others)}). '
                'Both must list the same ones in the same order; one of them may be inherited from a base config: set '
                'metainfo in each'))


def _some(names: Sequence[str]) -> str:
    return ', '.join(map(str, names[:4])) + (', ...' if len(names) > 4 else '')


def _pipeline(cfg: dict, split: str, where: str, dataset: dict, built: Any) -> Iterator[DataProblem]:
    """Yields a problem for each loading step that is inconsistent with the dataset or the model."""
    loading = [(place, step) for place, step in steps(dataset.get('pipeline') or (), f'{where}.pipeline')
               if type_name(step) == 'LoadAnnotations']
    for place, step in loading:
        reduce = step.get('reduce_zero_label')
        if cfg.get('default_scope') == 'mmseg' and reduce is not None and hasattr(built, 'reduce_zero_label') and (
                reduce != built.reduce_zero_label):
            yield DataProblem(f'{where}.reduce_zero_label', (
                f'{place}.reduce_zero_label is {reduce}, but that of {where}, a {type_name(dataset)}, is '
                f'{built.reduce_zero_label}. Set it in the dataset, and delete it from LoadAnnotations: True if the '
                'label 0 is no class'))
    masks = [head.where for head in heads(cfg)
             if '.roi_head.mask_head' in head.where or head.where.endswith('.panoptic_head')]
    if split == 'train' and cfg.get('default_scope') == 'mmdet' and masks and loading and not any(
            step.get('with_mask') for _, step in loading):
        place = loading[0][0]
        yield DataProblem(f'{place}.with_mask', f'{masks[0]} learns masks, but {place} (LoadAnnotations) does not load '
                          'them; set with_mask=True in it')


def steps(pipeline: Sequence, where: str) -> Iterator[Tuple[str, dict]]:
    """Yields (dotted place, config) for each step of a pipeline, and for steps inside of steps."""
    for number, step in enumerate(pipeline):
        place = f'{where}.{number}'
        if isinstance(step, (list, tuple)):
            yield from steps(step, place)
        elif isinstance(step, dict):
            yield place, step
            yield from steps(step.get('transforms') or (), f'{place}.transforms')


def _loops(cfg: dict, splits: Sequence[str]) -> Iterator[DataProblem]:
    """Yields a problem for each epoch-based loop whose sampler never ends."""
    for split in splits:
        loop, loader = cfg.get(f'{split}_cfg') or {}, cfg.get(f'{split}_dataloader') or {}
        name = type_name(loop) or ('EpochBasedTrainLoop' if loop.get('by_epoch', True) else 'IterBasedTrainLoop')
        if split == 'train' and name != 'EpochBasedTrainLoop':
            continue
        for key in ('sampler', 'batch_sampler'):
            sampler = loader.get(key)
            if isinstance(sampler, dict) and type_name(sampler) in _ENDLESS:
                cure = "or a loop by iterations: train_cfg=dict(type='IterBasedTrainLoop', max_iters=...)"
                yield DataProblem(f'{split}_dataloader.{key}', (
                    f'{split}_dataloader.{key} is {type_name(sampler)}, which never ends, and {split}_cfg waits for '
                    f"its end. Take sampler=dict(type='DefaultSampler', shuffle={split == 'train'})"
                    f"{', ' + cure if split == 'train' else ''}"))


def use_of(cfg: dict, split: str) -> str:
    """Returns how a split is used: ``'train'``, ``'evaluate'`` (its metric reads label maps) or ``'predict'``."""
    if split == 'train':
        return split
    compared = any(type_name(evaluator) == 'IoUMetric' and not evaluator.get('format_only')
                   for _, evaluator in evaluators(cfg, split))
    return 'evaluate' if compared else 'predict'
