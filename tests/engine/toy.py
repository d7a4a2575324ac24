"""A run of a second that draws random numbers wherever a real one does, for forked processes that may be killed."""
import os
import random
import signal
import traceback
from pathlib import Path
from uuid import uuid4

import matplotlib.pyplot  # noqa: F401  (a runner imports it and the next; here, once for all forked processes)
import numpy as np
import torch
import torch._dynamo
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch import nn
from torch.utils.data import Dataset

from mmlk.engine import ResumableRunner
from mmlk.ops import DepthwiseConv2d

# Once a fake tensor was made, the first backward pass of a process starts threads for devices that are not there, and
# no forked child can take one any more. Here it comes before.
torch.ones((), requires_grad=True).backward()

LENGTH, BATCH = 10, 3  # the last batch of an epoch has one sample


@DATASETS.register_module()
class ToyScenes(Dataset):
    """Noise, augmented with random numbers of Python, numpy and torch."""

    metainfo = dict(classes=('left', 'right'))

    def __init__(self, augment=True):
        self.augment = augment

    def __len__(self):
        return LENGTH

    def __getitem__(self, index):
        image = torch.from_numpy(np.random.RandomState(index).standard_normal((4, 12, 12))).float()
        if self.augment:
            image = image * random.uniform(0.5, 2) + float(np.random.normal()) + torch.randn(()) * 0.1
        return dict(inputs=image, label=index % 2)


@MODELS.register_module()
class ToyModel(BaseModel):
    """A large kernel, BatchNorm and dropout."""

    def __init__(self, channels=4, classes=2):
        super().__init__()
        self.stem = nn.Conv2d(4, channels, 3, padding=1)
        self.large = DepthwiseConv2d(channels, 13)
        self.norm = nn.BatchNorm2d(channels)
        self.drop = nn.Dropout2d(0.3)
        self.head = nn.Linear(channels, classes)
        self.head.num_classes = classes

    def forward(self, inputs, label, mode='tensor'):
        x = torch.stack(list(inputs))
        x = self.drop(self.norm(self.large(self.stem(x)))).relu().mean((2, 3))
        logits = self.head(x)
        if mode == 'loss':
            noise = 0.1 * random.random() + 0.1 * float(np.random.rand())
            return dict(loss=nn.functional.cross_entropy(logits, torch.as_tensor(label)) * (1 + noise))
        return [dict(logits=row, label=int(kind)) for row, kind in zip(logits, label)]


@METRICS.register_module()
class ToyMetric(BaseMetric):
    """Goes up and down from one validation to the next."""

    def process(self, data_batch, data_samples):
        self.results += [float(sample['logits'][sample['label']]) for sample in data_samples]

    def compute_metrics(self, results):
        return dict(score=float(np.sin(1e4 * np.sum(results))), other=float(np.cos(2e4 * np.sum(results))))


def config(work_dir, by_epoch=False, workers=0, steps=12, channels=4, checkpoint=None, accumulated=1, **changes):
    """A run of ``steps`` iterations, or of three epochs of four."""
    unit = dict(by_epoch=by_epoch)
    loader = dict(batch_size=BATCH, num_workers=workers, persistent_workers=workers > 0,
                  sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True))
    cfg = dict(
        model=dict(type='ToyModel', channels=channels),
        work_dir=str(work_dir),
        train_dataloader=dict(loader, dataset=dict(type='ToyScenes')),
        val_dataloader=dict(batch_size=5, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
                            dataset=dict(type='ToyScenes', augment=False)),
        train_cfg=dict(max_epochs=3, val_interval=1, **unit) if by_epoch
        else dict(max_iters=steps, val_interval=4, **unit),
        val_cfg=dict(),
        val_evaluator=dict(type='ToyMetric'),
        optim_wrapper=dict(optimizer=dict(type='AdamW', lr=0.01), accumulative_counts=accumulated),
        param_scheduler=[dict(type='LinearLR', start_factor=0.1, begin=0, end=4, by_epoch=False),
                         dict(type='PolyLR', eta_min=0, power=1.0, begin=4, end=12, by_epoch=False)],
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=2, log_metric_by_epoch=by_epoch),
            sampler_seed=dict(type='DistSamplerSeedHook'),
            checkpoint=dict(dict(type='CheckpointHook', interval=1 if by_epoch else 3, max_keep_ckpts=2,
                                 save_best='score', rule='greater', **unit), **(checkpoint or {}))),
        log_processor=dict(window_size=3, **unit),
        randomness=dict(seed=5),
        experiment_name=uuid4().hex,  # mmengine's is of seconds, and two runs of one process would share their logs
        default_scope='mmengine')
    cfg.update(changes)
    return Config(cfg)


def forked(work, *args):
    """Do ``work`` in a child of this process; the signal that ended it, or minus its exit status."""
    child = os.fork()
    if not child:
        try:
            torch.set_num_threads(1)  # threads of the parent's pool are not here
            work(*args)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def die():
    """End this process as ``kill -9`` does."""
    os.kill(os.getpid(), signal.SIGKILL)


def train(cfg, resume=False, prepare=lambda runner: None):
    """Train in this process."""
    cfg.resume = resume
    runner = ResumableRunner.from_cfg(cfg)
    prepare(runner)
    return runner.train()


def whole(folder):
    """Every checkpoint of a folder, read by torch itself."""
    return {path.name: torch.load(path, weights_only=False) for path in sorted(Path(folder).glob('*.pth'))}
