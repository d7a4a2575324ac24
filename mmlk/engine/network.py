"""Building the network of a config outside of a runner, and finding it inside a runner's model."""
import copy
from typing import Optional

from mmengine.config import Config, ConfigDict
from mmengine.model import BaseTTAModel, is_model_wrapper, revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmlk._types import scoped_name

_WEIGHTS = ('init_cfg', 'pretrained', 'checkpoint')  # arguments of models and backbones that name a file of weights


def network_of(model: nn.Module) -> nn.Module:
    """The segmentor or detector in a runner's model, which data parallelism and test-time augmentation may wrap."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def check_backbone(cfg: Config) -> None:
    """Check that a config has a model with a backbone.

    Raises:
        ValueError: It has no ``model``, or that has no ``backbone`` with a ``type``.
    """
    model = cfg.get('model')
    if not isinstance(model, dict) or not isinstance(model.get('backbone'), dict) or 'type' not in model['backbone']:
        raise ValueError('the config has no backbone: it needs model = dict(type=..., backbone=dict(type=...), ...), '
                         'as a segmentor or detector of mmseg or mmdet')


def check_dense(cfg: Config) -> None:
    """Check, before anything is built, that a config is not that of a classifier.

    Raises:
        ValueError: It is one of mmpretrain.
    """
    if cfg.get('default_scope') == 'mmpretrain':
        raise ValueError(f'{cfg.filename} is the config of a classifier, and this works with segmentors of mmseg and '
                         'detectors of mmdet only. Train one that starts from the backbone of the classifier: '
                         'docs/pretraining.md')


def in_channels(cfg: Config) -> int:
    """The number of channels of the images that a config's backbone takes; 3 if its settings do not say."""
    return cfg.model.backbone.get('in_channels', 3)


def is_ours(backbone: dict) -> bool:
    """Whether a backbone's settings, whose ``type`` is a name or a class, are of mmlk, and so take ``merged``."""
    return scoped_name(backbone).startswith('mmlk.')


def weights_of(backbone: dict) -> Optional[str]:
    """The source of the weights that a backbone's settings name: a file, a URL or a name; None if there are none.

    Args:
        backbone: The settings. ``pretrained=True`` of timm's models gives the name of the model.
    """
    inits = backbone.get('init_cfg') or []
    named = [init.get('checkpoint') for init in (inits if isinstance(inits, (list, tuple)) else [inits])]
    named += [backbone.get('checkpoint'), backbone.get('pretrained')]
    source = next((source for source in named if source), None)
    return backbone.get('model_name', 'pretrained') if source is True else source


def network_settings(cfg: Config, part: str = 'model', merged: Optional[bool] = None) -> ConfigDict:
    """A copy of the settings from which to build a config's network, without the weights that they name.

    Args:
        cfg: A whole config. Not changed.
        part: 'model' or 'backbone'.
        merged: Whether a backbone of mmlk is built with its parallel branches merged; None leaves it as the config
            says. Other backbones have no such branches.

    Raises:
        ValueError: The config has no backbone.
    """
    check_backbone(cfg)
    model = copy.deepcopy(cfg.model)
    for settings in (model, model.backbone):
        for key in _WEIGHTS:
            if key in settings:  # set, not removed: the default of ``pretrained`` may be True
                settings[key] = False if isinstance(settings[key], bool) else None
    if merged is not None and is_ours(model.backbone):
        model.backbone.merged = merged
    return model if part == 'model' else model.backbone


def build_network(cfg: Config, part: str = 'model', merged: Optional[bool] = None) -> nn.Module:
    """Build the model of a config, or its backbone, without the weights that the config names.

    SyncBatchNorm becomes BatchNorm, for the network runs in one process.

    Args:
        cfg: A whole config, with ``default_scope``. Not changed.
        part: 'model' or 'backbone'.
        merged: As in :func:`network_settings`.

    Returns:
        The module on the CPU, in training mode, with the values that its constructors give to its weights;
        ``init_weights`` has not been called.

    Raises:
        ValueError: The config has no backbone, or the network cannot be built.
    """
    settings = network_settings(cfg, part, merged)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        try:
            return revert_sync_batchnorm(MODELS.build(settings))
        except (AssertionError, ImportError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'the {part} cannot be built: {error}') from error
