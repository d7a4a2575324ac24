"""Test a segmentor, a detector or a classifier.

    mmlk test configs/demo/upernet_replknet-tiny_ade20k.py CHECKPOINT
"""
import argparse
import os
import os.path as osp
import tempfile
from typing import TYPE_CHECKING, Any

from mmlk import __version__
from mmlk._types import is_a, type_name
from mmlk.cli import robustness
from mmlk.cli.options import add_common_arguments, command_line, fail

if TYPE_CHECKING:
    from mmengine.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint: a file, an http(s) URL, hf-hub:owner/name/file, or a '
                        'name that mmlk weights lists')
    add_common_arguments(parser)
    parser.add_argument('--out', metavar='PATH',
                        help='save predictions: a folder of label PNGs (segmentation) or a .pkl file (others)')
    parser.add_argument('--show-dir', metavar='DIR', help='draw predictions into this folder')
    parser.add_argument('--report', metavar='DIR', help='write what is known of the classes and images into this '
                        'folder: report.html, tables, pictures and figures of each image (segmentation, detection)')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation by the config's tta_pipeline")
    parser.add_argument('--merge', action='store_true', help='merge parallel branches before testing')
    parser.add_argument('--optimize', nargs='?', const='fp32', choices=('fp32', 'bf16'), metavar='DTYPE',
                        help='merge, and test in the inference form of mmlk.deploy.optimize: fp32 (default) or bf16')
    robustness.add_arguments(parser)


def apply_options(cfg: 'Config', args: argparse.Namespace) -> None:
    """Put the options into the config; end the program with one message if the config cannot honour one."""
    from mmlk.cli.prepare import is_classification, is_detection
    from mmlk.datasets.check import datasets, evaluators
    cfg.load_from = None
    if args.show_dir:
        if 'visualization' not in (cfg.get('default_hooks') or {}):
            fail("--show-dir needs a 'visualization' hook in the config's default_hooks")
        folder = osp.abspath(args.show_dir)  # a relative one would be put below the work dir
        if is_detection(cfg):
            cfg.default_hooks.visualization.update(draw=True, test_out_dir=folder)
        elif is_classification(cfg):
            if args.tta:
                fail('mmpretrain cannot draw the predictions of several images as one: leave out --tta or --show-dir')
            cfg.default_hooks.visualization.update(enable=True, interval=1, out_dir=folder)
        else:
            cfg.default_hooks.visualization.update(draw=True, interval=1)
            others = [backend for backend in cfg.visualizer.get('vis_backends') or []
                      if type_name(backend) != 'LocalVisBackend']
            cfg.visualizer.vis_backends = [*others, dict(type='LocalVisBackend', img_save_dir=folder)]
    if args.out:
        if not (is_detection(cfg) or is_classification(cfg)):
            metrics = [metric for _, metric in evaluators(cfg, 'test') if is_a(metric, 'IoUMetric', 'METRICS', 'mmseg')]
            if not metrics:
                fail('--out of a segmentor is written by IoUMetric, and the test_evaluator of the config has none')
            for metric in metrics:
                metric.update(output_dir=args.out, keep_results=True)
        elif not args.out.endswith(('.pkl', '.pickle')):
            kind = 'detector' if is_detection(cfg) else 'classifier'
            fail(f'--out of a {kind} is a .pkl file, got {args.out}')
    if args.report:
        prepare_report(cfg, args.report)
    if args.tta:
        if is_detection(cfg):
            set_default_tta(cfg)
        lacking = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
        if lacking:
            fail(f"--tta needs {' and '.join(lacking)} in the config")
        for _, dataset in datasets(cfg, 'test'):
            dataset['pipeline'] = cfg.tta_pipeline
        cfg.tta_model.module = cfg.model
        cfg.model = cfg.tta_model
    if args.optimize:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='mmlk.OptimizeHook', dtype=args.optimize)]
    elif args.merge:
        cfg.custom_hooks = [*(cfg.get('custom_hooks') or []), dict(type='mmlk.MergeBranchesHook')]


def prepare_report(cfg: 'Config', folder: str) -> None:
    """Create the folder of a report; end the program with one message if it cannot be written, or there is no report of
    this config."""
    from mmlk.evaluation.report import why_no_report
    reason = why_no_report(cfg)
    if reason:
        fail(f'--report: {reason}')
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fail(f'--report {folder} cannot be written: {error}')


def set_default_tta(cfg: 'Config') -> None:
    """The default test-time augmentation of mmdet's own tool: the image and its mirror image. It merges boxes only, so
    the config of a detector that also predicts masks is not changed."""
    from mmlk.datasets.check import datasets, evaluators
    finds_masks = any('segm' in str(metric.get('metric')) for _, metric in evaluators(cfg, 'test')) or _has_mask_head(
        cfg.model)
    if finds_masks:
        return
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    if 'tta_pipeline' not in cfg:
        _, dataset = next(datasets(cfg, 'test'))
        last = dict(dataset['pipeline'][-1])
        last.update(meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
                               'flip_direction'))
        flips = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        cfg.tta_pipeline = [*dataset['pipeline'][:-1], dict(type='TestTimeAug', transforms=[flips, [last]])]


def _has_mask_head(settings: Any) -> bool:
    """Whether a model's config has a head that predicts masks, at any depth."""
    parts = settings.values() if isinstance(settings, dict) else settings if isinstance(settings, (list, tuple)) else ()
    return any(map(_has_mask_head, parts)) or isinstance(settings, dict) and any(
        settings.get(key) is not None for key in ('mask_head', 'panoptic_head'))


def test(args: argparse.Namespace) -> None:
    """Test in this process, one of those that a launcher started or the only one."""
    from mmlk.cli.prepare import (build_runner, find_checkpoint, is_classification, is_detection, load_config,
                                  one_message, preflight)
    cfg = load_config(args)
    corruptions = robustness.check(args)
    apply_options(cfg, args)
    preflight(cfg, ('test', ))
    checkpoint = find_checkpoint(args.checkpoint)
    results = robustness.prepare(cfg, args, checkpoint) if corruptions else None
    from mmlk import weights
    from mmlk.engine.network import network_of
    runner = build_runner(cfg)
    if args.out and is_detection(cfg):
        from mmdet.evaluation import DumpDetResults
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    elif args.out and is_classification(cfg):
        from mmengine.evaluator import DumpResults
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    with one_message():
        if args.report:
            from mmlk.evaluation.report import add_report
            add_report(runner, args.report, dict(Config=args.config, Checkpoint=args.checkpoint,
                                                 Command=command_line(), mmlk=__version__))
        # mmengine alone would only warn of what does not fit. Averaged weights are under state_dict in its checkpoints,
        # and an EMAHook copies the model before it tests.
        weights.load(network_of(runner.model), checkpoint)
        if corruptions:
            robustness.test(runner, corruptions, results)
        else:
            runner.test()


def run(args: argparse.Namespace) -> None:
    from torch.distributed.elastic.multiprocessing.errors import record

    from mmlk.engine.distributed import leave
    record(test)(args)  # the launcher of several processes then ends with the error of the first that failed
    leave()
