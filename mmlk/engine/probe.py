"""Probing frozen features: a segmentor that trains its head alone, a cache of features, and a report."""
import json
import logging
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner
from torch import Tensor, nn

from mmlk import __version__
from mmlk._text import parse_bytes
from mmlk.datasets.check import datasets
from mmlk.registry import HOOKS, MODELS

from .feature_cache import FeatureCache, digest, digest_network
from .network import network_of, weights_of

#: What every report of a probe says.
CAUTION = ('A linear probe of frozen features does not rank backbones as fine-tuning does (arXiv:2404.12172). Compare '
           'it with probes of the same resolution, layers and norm only.')


class CachedFeatures:
    """Computes the maps of a frozen backbone, each view of an image once.

    The key of a view is a digest of the image's values, and of the network: its structure, parameters, buffers and
    settings, the precision, and the versions of mmlk, torch and timm. It is computed in every call, so a change of any
    weight is seen.

    Args:
        cache: Where maps are kept.
        settings: The config of the backbone.
    """

    def __init__(self, cache: FeatureCache, settings: Any):
        self.cache = cache
        self.context = [settings, __version__, torch.__version__, version('timm')]

    def __call__(self, backbone: nn.Module, images: Tensor) -> List[Tensor]:
        """Returns the maps of a batch. What the cache lacks is computed together, and added.

        Args:
            backbone: The network, in eval mode.
            images: (N, C, H, W).
        """
        device = images.device.type
        precision = (torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else images.dtype,
                     torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, device)
        network = digest_network(backbone, *self.context, *precision)
        keys = [digest(network, image) for image in images]
        found: Dict[str, Sequence[Tensor]] = {}
        for key in dict.fromkeys(keys):
            maps = self.cache.find(key)
            if maps is not None:
                found[key] = [value.to(images.device) for value in maps]
        new = {key: index for index, key in enumerate(keys) if key not in found}
        if new:
            computed = backbone(images[list(new.values())])
            for place, key in enumerate(new):
                found[key] = [value[place] for value in computed]
                self.cache.add(key, found[key])
        return [torch.stack(values) for values in zip(*(found[key] for key in keys))]


@lru_cache(maxsize=None)
def _segmentor() -> type:
    """Returns the class of the segmentor. Imports mmseg."""
    from mmseg.models import EncoderDecoder

    class FrozenEncoderDecoder(EncoderDecoder):
        """See :func:`frozen_encoder_decoder`."""

        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.cached_features: Optional[CachedFeatures] = None
            self.backbone.requires_grad_(False)
            self.train()

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.backbone.eval()
            return self

        def extract_feat(self, inputs: Tensor) -> Sequence[Tensor]:
            with torch.set_grad_enabled(torch.is_grad_enabled() and inputs.requires_grad):  # of class activation maps
                maps = self.cached_features(self.backbone, inputs) if self.cached_features else self.backbone(inputs)
            return self.neck(maps) if self.with_neck else maps

    return FrozenEncoderDecoder


@MODELS.register_module(name='FrozenEncoderDecoder')
def frozen_encoder_decoder(**kwargs) -> nn.Module:
    """Builds mmseg's ``EncoderDecoder`` with a backbone, of any kind, that is not trained.

    No parameter of the backbone has a gradient, and it stays in eval mode, so that the statistics of its norms stay as
    they are, too, and nothing is dropped. Neck and heads are trained. The state dict is that of ``EncoderDecoder``.

    Args:
        kwargs: Passed to ``EncoderDecoder``.

    Returns:
        The segmentor.
    """
    return _segmentor()(**kwargs)


def _frozen(runner: Runner) -> nn.Module:
    """Returns the segmentor of a runner.

    Raises:
        ValueError: It is no ``mmlk.FrozenEncoderDecoder``.
    """
    network = network_of(runner.model)
    if not hasattr(network, 'cached_features'):
        raise ValueError(f"a probe needs model = dict(type='mmlk.FrozenEncoderDecoder', ...), and this model is a "
                         f'{type(network).__name__}, which would train its backbone')
    return network


@HOOKS.register_module()
class FeatureCacheHook(Hook):
    """Keeps the maps of a frozen backbone on disk in a run, so that each view of an image is computed once.

    It helps where views come again: images of a test, and training images without random sizes, crops and colours. A
    random crop hardly ever comes twice; its maps would fill the disk and never be read.

    Args:
        folder: Folder of the files. Several runs may share it, also at the same time.
        limit: Maximum size of all files, such as '20GiB'; see :class:`mmlk.engine.feature_cache.FeatureCache`.

    Raises:
        ValueError: ``limit`` is not a size, the folder cannot be written, or the model is no
            ``mmlk.FrozenEncoderDecoder``.
    """

    def __init__(self, folder: str, limit: str = '20GiB'):
        self.folder, self.limit = Path(folder), parse_bytes(limit)

    def before_run(self, runner: Runner) -> None:
        """Opens the cache."""
        network = _frozen(runner)
        self.cache = FeatureCache(self.folder, self.limit)
        network.cached_features = CachedFeatures(self.cache, runner.cfg.model.backbone)

    def after_run(self, runner: Runner) -> None:
        """Logs how often views were found, and closes the cache."""
        _frozen(runner).cached_features = None
        hits, views = self.cache.hits, self.cache.hits + self.cache.misses
        in_vain = views and not hits
        print_log(f'cache of features: {hits} of {views} views were read from {self.folder}'
                  + ('. No view came twice: use it without random sizes, crops and colours' if in_vain else ''),
                  logger='current', level=logging.WARNING if in_vain else logging.INFO)


@HOOKS.register_module()
class ProbeReportHook(Hook):
    """Logs what a probe is, and writes it with the results of each validation and test to ``probe.json``.

    The file is in the folder of the run's log. It states the resolution of training and test, the layers and their
    channels, the norms, how many parameters are trained, and :data:`CAUTION`.

    Raises:
        ValueError: The model is no ``mmlk.FrozenEncoderDecoder``.
    """

    def before_run(self, runner: Runner) -> None:
        """Logs the report without results."""
        self.report = describe(_frozen(runner), runner.cfg)
        facts = [f'{name}: {json.dumps(value, default=str)}' for name, value in self.report.items()]
        print_log('\n  '.join(['frozen probe', *facts]), logger='current')

    def after_val_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Writes the file with the results of a validation."""
        self._write(runner, 'validation', dict(metrics or {}, iterations=runner.iter))

    def after_test_epoch(self, runner: Runner, metrics: Optional[Dict[str, float]] = None) -> None:
        """Writes the file with the results of a test."""
        self._write(runner, 'test', dict(metrics or {}))

    def _write(self, runner: Runner, kind: str, results: Dict[str, float]) -> None:
        self.report[kind] = results
        if runner.rank == 0:
            Path(runner.log_dir, 'probe.json').write_text(json.dumps(self.report, indent=1, default=str) + '\n')


def describe(network: nn.Module, cfg: Any) -> Dict[str, Any]:
    """Returns the settings of a probe, for a report.

    Args:
        network: The segmentor.
        cfg: Its config, from which sizes of images and the name of the weights are taken.
    """
    backbone, head, test = network.backbone, network.decode_head, network.test_cfg or {}
    slides = test.get('mode') == 'slide'
    norms = sorted({type(module).__name__ for module in head.modules() if 'Norm' in type(module).__name__})
    return dict(
        backbone=cfg.model.backbone.get('model_name') or cfg.model.backbone['type'],
        weights=weights_of(cfg.model.backbone),
        layers=head.in_index, channels=cfg.model.decode_head.in_channels,
        norm=f"{', '.join(norms) or 'none'} in the head; the backbone's own as it is loaded",
        resolution=dict(train=sizes(cfg, 'train'), test=sizes(cfg, 'test'),
                        window=list(test['crop_size']) if slides else None,
                        stride=list(test['stride']) if slides else None),
        trained_parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        frozen_parameters=sum(p.numel() for p in backbone.parameters()), caution=CAUTION)


def sizes(cfg: Any, split: str) -> Dict[str, Any]:
    """Returns the sizes to which the pipeline of a split resizes and crops, by the name of the transform."""
    return {step['type']: step.get('crop_size') or step.get('scale') or step.get('scales')
            for _, dataset in datasets(cfg, split) for step in dataset.get('pipeline') or ()
            if isinstance(step.get('type'), str) and any(word in step['type'] for word in ('Resize', 'Crop'))}
