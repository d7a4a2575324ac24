"""The main job, measured: the demos train, test, and test merged, to figures that a broken feature path cannot reach.

They run as a person runs them, by the tools, in a folder that has nothing but the demo scenes.
"""
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.utils import run_script

REPO = Path(__file__).resolve().parent.parent
DEMO = REPO / 'configs' / 'demo'
pytestmark = pytest.mark.timeout(2400)  # seconds; each demo trains for minutes


def python(folder, *args):
    """By a new interpreter, which has imported nothing of ours before it reads a config."""
    done = subprocess.run([sys.executable, *map(str, args)], cwd=folder, capture_output=True, text=True,
                          stdin=subprocess.DEVNULL, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, f'exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}'
    return done.stdout + done.stderr


def tool(folder, name, *args):
    """By a process that has imported what the tools import."""
    code, out = run_script(REPO / 'tools' / f'{name}.py', *args, cwd=folder)
    assert code == 0, f'exit {code}\n{out[-6000:]}'


def metrics(folder, work_dir):
    """What the last test in a work dir has written."""
    reports = sorted((folder / work_dir).glob('*/*.json'), key=os.path.getmtime)
    return json.loads(reports[-1].read_text().splitlines()[-1])


def stock_tool(toolbox, name):
    """A tool of mmseg's or mmdet's own."""
    return Path(importlib.util.find_spec(toolbox).origin).parent / '.mim' / 'tools' / f'{name}.py'


def measure(folder, config, layout, toolbox):
    """Train the demo, with a fixed seed because the figures of a run of minutes vary with it. Returns its metrics by
    our test tool, by it merged, in inference form and in bfloat16, and by the toolbox's own tool."""
    tool(folder, 'make_demo_data', '--layout', layout, '--out', f'data/demo/{layout}')
    python(folder, REPO / 'tools' / 'train.py', DEMO / config, '--work-dir', 'work', '--cfg-options',
           'randomness.seed=0')
    checkpoint = (folder / 'work' / 'last_checkpoint').read_text()
    results = {}
    for way, options in dict(mmlk=[], merged=['--merge'], optimized=['--optimize'],
                             bfloat16=['--cfg-options', 'test_cfg.fp16=True']).items():
        tool(folder, 'test', DEMO / config, checkpoint, '--work-dir', way, *options)
        results[way] = metrics(folder, way)
    python(folder, stock_tool(toolbox, 'test'), DEMO / config, checkpoint, '--work-dir', 'stock')
    return {**results, 'stock': metrics(folder, 'stock')}


def test_segmentation_demo(tmp_path):
    results = measure(tmp_path, 'upernet_replknet-tiny_ade20k.py', 'ade20k', 'mmseg')
    assert results['mmlk']['mIoU'] >= 60
    for way, tolerance in dict(merged=0.05, optimized=0.05, stock=0.01, bfloat16=1.0).items():
        assert results[way]['mIoU'] == pytest.approx(results['mmlk']['mIoU'], abs=tolerance), way


def test_mask_rcnn_demo(tmp_path):
    results = measure(tmp_path, 'mask_rcnn_replknet-tiny_coco.py', 'coco', 'mmdet')
    assert results['mmlk']['coco/bbox_mAP_50'] >= 0.45 and results['mmlk']['coco/segm_mAP_50'] >= 0.40
    for way, tolerance in dict(merged=0.003, optimized=0.003, stock=0.001, bfloat16=0.03).items():
        for key in ('coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/segm_mAP', 'coco/segm_mAP_50'):
            assert results[way][key] == pytest.approx(results['mmlk'][key], abs=tolerance), (way, key)
