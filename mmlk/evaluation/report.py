"""Adds the metric that writes a report to a runner's test."""
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

import numpy as np
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import Runner

from mmlk._types import is_a
from mmlk.datasets.check import evaluators
from mmlk.engine.heads import names_by_label
from mmlk.engine.network import network_of

from .calibration import PixelProbabilities
from .detection import DetectionMetric, DetectionReport, Objects
from .folder import of_detection, of_segmentation, write
from .gathering import SummingMetric
from .segmentation import SegmentationMetric, SegmentationResults

_DETECTION = ('bbox', 'segm')
_NEEDED = {'mmseg': 'IoUMetric', 'mmdet': 'CocoMetric'}  # by default_scope


def why_no_report(cfg: dict) -> str:
    """Returns the reason for which there is no report of a config's test; ``''`` if there is one.

    Args:
        cfg: A whole config, with ``default_scope``.
    """
    scope = cfg.get('default_scope')
    if scope not in _NEEDED:
        return f'there is a report for segmentors and detectors, not for default_scope = {scope!r}'
    needed = _NEEDED[scope]
    metrics = [metric for _, metric in evaluators(cfg, 'test') if is_a(metric, needed, 'METRICS', scope)]
    if not metrics:
        return f'the report needs {needed} in the test_evaluator of the config, which says where the ground truth is'
    if all(metric.get('format_only') for metric in metrics):
        return f'{needed} has format_only=True in the test_evaluator: there is no ground truth to compare with'
    if scope == 'mmdet':
        if any(is_a(metric, 'LVISMetric', 'METRICS', scope) for metric in metrics):
            return 'LVIS annotates a part of the classes of each image only, which the report cannot take into account'
        if not any(kind in _listed(metric.get('metric', 'bbox')) for metric in metrics for kind in _DETECTION):
            return "CocoMetric evaluates neither metric='bbox' nor 'segm' in the test_evaluator"
    return ''


def add_report(runner: Runner, folder: Union[str, Path], about: Dict[str, str]) -> None:
    """Lets a test write a report when it has ended.

    Args:
        runner: Its config has a report, see :func:`why_no_report`.
        folder: Where to write it.
        about: What is tested, by name, such as the config.
    """
    metrics = runner.test_evaluator.metrics
    scope = runner.cfg.get('default_scope')
    known = [metric for metric in metrics if not getattr(metric, 'format_only', False)
             and any(base.__name__ == _NEEDED[scope] for base in type(metric).__mro__)]
    metrics.append((_of_segmentor if scope == 'mmseg' else _of_detector)(runner, known, Path(folder), about))


def _listed(value: Any) -> List[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _done(path: Path) -> None:
    print_log(f'the report is in {path}', logger='current')


def _of_segmentor(runner: Runner, known: List[Any], folder: Path, about: Dict[str, str]) -> SummingMetric:
    dataset, network = runner.test_dataloader.dataset, network_of(runner.model)
    model = runner.model
    while is_model_wrapper(model):
        model = model.module

    def finish(results: SegmentationResults) -> None:
        _done(write(folder, 'segmentation', [of_segmentation(results)], results.worst, results.best, about,
                    dataset.metainfo.get('palette')))

    return SegmentationMetric(names_by_label(dataset.metainfo['classes'], network), len(dataset), finish,
                              PixelProbabilities(network, isinstance(model, BaseTTAModel)), known[0].ignore_index)


def _of_detector(runner: Runner, known: List[Any], folder: Path, about: Dict[str, str]) -> SummingMetric:
    from mmdet.evaluation import CocoMetric
    dataset, coco = runner.test_dataloader.dataset, known[0]._coco_api
    kinds = [kind for kind in _DETECTION if any(kind in metric.metrics for metric in known)]
    names, labels = list(dataset.metainfo['classes']), {}
    if coco is not None:
        categories = coco.get_cat_ids(cat_names=names)  # in this order mmdet numbers the labels
        labels = {category: label for label, category in enumerate(categories)}
        names = [coco.cats[category]['name'] for category in categories]

    def finish(report: DetectionReport) -> None:
        _done(write(folder, 'detection', of_detection(report), report.worst, report.best, about,
                    dataset.metainfo.get('palette')))

    def encoded(index: int) -> Optional[List[dict]]:
        stock = type(known[0]).process is CocoMetric.process  # others may keep other things
        return known[0].results[index][1].get('masks') if stock else None

    return DetectionMetric(names, len(dataset), finish, Objects(coco, labels, 'segm' in kinds), kinds,
                           np.asarray(known[0].iou_thrs), encoded)
