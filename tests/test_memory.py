"""Long training and long inference keep a flat memory curve, and what the operator keeps is bounded.

Each run is in a process of its own, forked from this one. What it holds is asked of the kernel (resident memory), of
Python's allocator (blocks) and of its garbage collector (objects).
"""
import gc
import json
import random
import sys
from pathlib import Path

import torch
from mmengine.hooks import Hook

from mmlk.ops.backends import dft, fft
from mmlk.registry import MODELS
from tests.engine.toy import config, forked, train

STEPS, WARM = 500, 200
BOUNDS = dict(MiB=8, blocks=5000, objects=1000)  # that may come on top after the warm-up
ARCH = dict(large_kernel_sizes=(31, 29, 27, 13), layers=(1, 1, 1, 1), channels=(4, 8, 8, 8), small_kernel=5)
SIZES = [(24, 24), (33, 57), (48, 40)]


class Curve(Hook):
    """What is held, every 20 steps after the warm-up."""

    def __init__(self):
        self.samples, self.steps = [], 0

    def step(self):
        self.steps += 1
        if self.steps >= WARM and self.steps % 20 == 0:
            gc.collect()
            pages = int(Path('/proc/self/statm').read_text().split()[1])
            self.samples.append((pages * 4096 / 2**20, sys.getallocatedblocks(), len(gc.get_objects())))

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.step()


def check(work, path):
    """Run ``work(curve)`` in a child; its curve is flat: the least of its end is hardly above the most of its start."""
    def child():
        gc.freeze()  # else each collection looks at all that was imported
        curve = Curve()
        work(curve)
        assert curve.steps == STEPS
        path.write_text(json.dumps(curve.samples))

    assert forked(child) == 0
    for (name, bound), values in zip(BOUNDS.items(), zip(*json.loads(path.read_text()))):
        growth = min(values[-4:]) - max(values[:4])
        assert growth < bound, f'{growth:,} {name} more: {values}'


def network():
    return MODELS.build(dict(type='mmlk.RepLKNet', arch=ARCH))


def test_500_inferences_hold_nothing(tmp_path):
    def work(curve):
        model, rng = network().eval(), random.Random(0)
        with torch.no_grad():
            for _ in range(STEPS):
                model(torch.randn(1, 3, *rng.choice(SIZES)))
                curve.step()

    check(work, tmp_path / 'curve')


def test_500_training_steps_hold_nothing(tmp_path):
    def work(curve):
        model, rng = network(), random.Random(0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        for _ in range(STEPS):
            sum(out.square().mean() for out in model(torch.randn(2, 3, *rng.choice(SIZES)))).backward()
            optimizer.step()
            optimizer.zero_grad()
            curve.step()

    check(work, tmp_path / 'curve')


def test_500_steps_of_a_runner_hold_nothing(tmp_path):
    cfg = config(tmp_path / 'work', steps=STEPS, checkpoint=dict(interval=100))
    cfg.train_cfg.val_interval = 100
    check(lambda curve: train(cfg, prepare=lambda runner: runner.register_hook(curve)), tmp_path / 'curve')
    assert len(list((tmp_path / 'work').glob('*.pth'))) == 3  # the last two and the best


def test_matrices_and_lengths_that_the_backends_keep_are_bounded():
    largest = dft._MAX_LENGTH
    samples = [dft._Samples(largest, 0, 1, largest)] * 2
    bytes_kept = 0
    for cached, arguments in ((dft._waves, samples[:1]), (dft._analysis, (*samples, torch.float32)),
                              (dft._synthesis, (*samples, torch.float32))):
        made = cached.__wrapped__(*arguments)
        bytes_kept += cached.cache_parameters()['maxsize'] * sum(t.numel() * t.element_size() for t in made)
    assert bytes_kept < 70 << 20
    assert fft.smooth_length.cache_parameters()['maxsize'] is not None
