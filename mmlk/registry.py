"""The registries of mmlk, which are children of mmengine's, with the scope ``mmlk``.

When a config has a type with a scope, mmengine imports ``<scope>.registry``. A registry imports its ``locations`` when
a name is first looked up. So ``type='mmlk.RepLKNet'`` can be built with any default scope, without ``custom_imports``.
"""
from mmlk._require import require

require('mmengine', 'mmcv')

from mmengine import registry as _root  # noqa: E402
from mmengine.registry import Registry, build_runner_from_cfg  # noqa: E402

__all__ = ['HOOKS', 'MODELS', 'MODEL_WRAPPERS', 'OPTIM_WRAPPERS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'RUNNERS',
           'STRATEGIES', 'WEIGHT_INITIALIZERS']

MODELS = Registry('model', parent=_root.MODELS, scope='mmlk',
                  locations=['mmlk.backbones', 'mmlk.classification', 'mmlk.preprocessors', 'mmlk.heads'])
HOOKS = Registry('hook', parent=_root.HOOKS, scope='mmlk', locations=['mmlk.engine', 'mmlk.deploy.hooks'])
MODEL_WRAPPERS = Registry('model wrapper', parent=_root.MODEL_WRAPPERS, scope='mmlk', locations=['mmlk.engine'])
OPTIM_WRAPPERS = Registry('optimizer wrapper', parent=_root.OPTIM_WRAPPERS, scope='mmlk', locations=['mmlk.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor', parent=_root.OPTIM_WRAPPER_CONSTRUCTORS, scope='mmlk',
    locations=['mmlk.engine'])
RUNNERS = Registry(
    'runner', build_func=build_runner_from_cfg, parent=_root.RUNNERS, scope='mmlk', locations=['mmlk.engine'])
STRATEGIES = Registry('strategy', parent=_root.STRATEGIES, scope='mmlk', locations=['mmlk.engine'])
WEIGHT_INITIALIZERS = Registry(
    'weight initializer', parent=_root.WEIGHT_INITIALIZERS, scope='mmlk', locations=['mmlk.weights.pretrained'])
