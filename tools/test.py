"""Test a segmentor or a detector: ``python tools/test.py CONFIG CHECKPOINT``."""
import argparse
import os.path as osp

from torch.distributed.elastic.multiprocessing.errors import record

from mmlk.datasets.check import type_name
from mmlk.engine.cli import (add_common_arguments, build_runner, fail, find_checkpoint, is_detection, load_config,
                             one_message, preflight)
from mmlk.engine.distributed import leave


def parse_args():
    parser = argparse.ArgumentParser(description='Test a segmentor or a detector')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint: a file, an http(s) URL, or a name that tools/weights.py lists')
    add_common_arguments(parser)
    parser.add_argument('--out', metavar='PATH',
                        help='save predictions: a folder of label PNGs (segmentation) or a .pkl file (detection)')
    parser.add_argument('--show-dir', metavar='DIR', help='draw predictions into this folder')
    parser.add_argument('--tta', action='store_true', help="test-time augmentation by the config's tta_pipeline")
    parser.add_argument('--merge', action='store_true', help='merge parallel branches before testing')
    return parser.parse_args()


def apply_options(cfg, args):
    """Put the options into the config, refusing what the config cannot honour."""
    cfg.load_from = None
    if args.show_dir:
        if 'visualization' not in cfg.get('default_hooks', {}):
            fail("--show-dir needs a 'visualization' hook in the config's default_hooks")
        cfg.default_hooks.visualization.draw = True
        folder = osp.abspath(args.show_dir)  # a relative one would be put below the work dir
        if is_detection(cfg):
            cfg.default_hooks.visualization.test_out_dir = folder
        else:
            cfg.default_hooks.visualization.interval = 1
            others = [backend for backend in cfg.visualizer.get('vis_backends') or []
                      if type_name(backend) != 'LocalVisBackend']
            cfg.visualizer.vis_backends = [*others, dict(type='LocalVisBackend', img_save_dir=folder)]
    if args.out:
        if not is_detection(cfg):
            evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
            for evaluator in evaluators:
                if evaluator['type'] == 'IoUMetric':
                    evaluator.update(output_dir=args.out, keep_results=True)
        elif not args.out.endswith(('.pkl', '.pickle')):
            fail(f'--out of a detector is a .pkl file, got {args.out}')
    if args.tta:
        lacking = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
        if lacking:
            fail(f"--tta needs {' and '.join(lacking)} in the config")
        dataset = cfg.test_dataloader.dataset
        while 'dataset' in dataset:
            dataset = dataset.dataset
        dataset.pipeline = cfg.tta_pipeline
        cfg.tta_model.module = cfg.model
        cfg.model = cfg.tta_model
    if args.merge:
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), dict(type='mmlk.MergeBranchesHook')]


@record  # the launcher of several processes then ends with the error of the first that failed
def main():
    args = parse_args()
    cfg = load_config(args)
    apply_options(cfg, args)
    preflight(cfg, ('test', ))
    checkpoint = find_checkpoint(args.checkpoint)
    from mmlk import weights
    if any('EMAHook' in hook['type'] for hook in cfg.get('custom_hooks', [])):
        cfg.load_from = checkpoint  # the hook takes its averaged weights from the runner's own loading
    runner = build_runner(cfg)
    if args.out and is_detection(cfg):
        from mmdet.evaluation import DumpDetResults
        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    with one_message():
        weights.load(runner.model, checkpoint)  # mmengine alone would only warn of what does not fit
        runner.test()


if __name__ == '__main__':
    main()
    leave()
