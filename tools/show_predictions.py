"""Draw image, ground truth and prediction side by side for some test images of a config.

    python tools/show_predictions.py CONFIG CHECKPOINT --out predictions.png
"""
import argparse
import os
import os.path as osp

import numpy as np
import torch

from mmlk.analysis.panels import panels, predict
from mmlk.engine.cli import add_config_options, find_checkpoint, one_message, preflight, read_config
from mmlk.weights import load


def parse_args():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--out', required=True, metavar='FILE', help='picture to write, a .png say')
    parser.add_argument('--num', type=int, default=4, help='how many scenes (%(default)s)')
    parser.add_argument('--score', type=float, default=0.3, help='least score of a detection (%(default)s)')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add_config_options(parser)
    return parser.parse_args()


def main():
    args = parse_args()
    cfg = read_config(args.config, args.cfg_options)
    preflight(cfg, ('test', ))
    checkpoint = find_checkpoint(args.checkpoint)
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import DATASETS, MODELS, init_default_scope
    init_default_scope(cfg.get('default_scope', 'mmengine'))
    with one_message():
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
    model = MODELS.build(cfg.model)
    with one_message():
        load(model, checkpoint)
    model = revert_sync_batchnorm(model).to(args.device).eval()
    indices = np.unique(np.linspace(0, len(dataset) - 1, args.num).round().astype(int))
    with one_message():
        scenes = predict(model, dataset, indices, args.score)
    figure = panels(scenes, dataset.metainfo['classes'], dataset.metainfo.get('palette'))
    os.makedirs(osp.dirname(osp.abspath(args.out)), exist_ok=True)
    figure.savefig(args.out, dpi=120)
    print(f'{len(indices)} scenes drawn: {args.out}')


if __name__ == '__main__':
    main()
