"""Layer-wise and stage-wise learning rate decay for backbones with the methods ``layer_id`` and ``stage_id``."""
import logging
from contextlib import nullcontext
from io import StringIO
from typing import Dict, List, Optional, Tuple, Union

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel

from mmlk._torch_private import BatchNorm, InstanceNorm
from mmlk.registry import OPTIM_WRAPPER_CONSTRUCTORS

_KEYS = ('decay_rate', 'decay_type', 'num_layers', 'custom_keys', 'norm_decay_mult', 'bias_decay_mult')
_CUSTOM_KEYS = ('lr_mult', 'decay_mult', 'depth')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Creates parameter groups whose learning rate is multiplied by ``decay_rate`` for each layer towards the input.

    The method is that of BEiT (arXiv:2106.08254, appendix) and ConvNeXt (arXiv:2201.03545). A parameter at depth d of a
    backbone of depth D has the learning rate ``lr * decay_rate ** (D + 1 - d)``; a parameter outside of the backbone
    has ``lr``. The backbone's method ``layer_id`` or ``stage_id`` returns the depth of a parameter.

    Keys of ``paramwise_cfg``:

    - ``decay_rate``: in (0, 1].
    - ``decay_type``: ``'layer_wise'`` (default) or ``'stage_wise'``.
    - ``num_layers``: D. The default is the depth of the backbone. A larger value lowers the learning rate
      of the whole backbone relative to the heads, as in ConvNeXt's segmentation configs.
    - ``norm_decay_mult``, ``bias_decay_mult``: factors of the optimizer's weight decay for norms and for biases. The
      default is 0 for both. All parameters with at most one dimension count as norms, such as layer scale, and so do
      the parameters that the backbone's method ``no_weight_decay()``, if it exists, returns: embeddings and scales with
      several dimensions.
    - ``custom_keys``: {substring of a parameter name: dict(lr_mult=..., decay_mult=..., depth=...)}. The longest
      matching key is used, as in mmengine. ``lr_mult`` multiplies the decayed learning rate; ``decay_mult`` replaces
      the factor above; ``depth``, 0 to D or ``'head'``, replaces the depth that the backbone returns.

    ConvNeXt's official ``stage_wise`` decay has all downsampling layers at depth 0, the norms of the outputs together
    with the heads, and the stages at the depths 1 to 4, with D = 6 (T) or 12::

        dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6, custom_keys={
            'backbone.downsample_layers': dict(depth=0), 'backbone.norm': dict(depth='head')})

    Every trainable parameter is in exactly one group; frozen parameters are in none. The groups are logged as a table.

    Raises:
        ValueError: ``paramwise_cfg`` has no ``decay_rate`` or has an unknown key, or a value is out of range.
        TypeError: The backbone does not have the methods ``layer_id`` and ``stage_id``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: Optional[dict] = None):
        super().__init__(optim_wrapper_cfg, paramwise_cfg)
        cfg = dict(paramwise_cfg or {})
        unknown = sorted(set(cfg) - set(_KEYS))
        if unknown:
            raise ValueError(f"unknown keys in paramwise_cfg: {', '.join(unknown)}; it takes {', '.join(_KEYS)}")
        self.decay_rate = cfg.get('decay_rate')
        if self.decay_rate is None or not 0 < self.decay_rate <= 1:
            raise ValueError(f'paramwise_cfg needs decay_rate in (0, 1], got {self.decay_rate}')
        self.decay_type = cfg.get('decay_type', 'layer_wise')
        if self.decay_type not in ('layer_wise', 'stage_wise'):
            raise ValueError(f"decay_type is 'layer_wise' or 'stage_wise', got {self.decay_type!r}")
        for key, custom in cfg.get('custom_keys', {}).items():
            if not set(custom) <= set(_CUSTOM_KEYS):
                raise ValueError(f"custom_keys['{key}'] takes {', '.join(_CUSTOM_KEYS)}, got {', '.join(custom)}")
        if self.base_lr is None:
            raise ValueError('layer decay scales lr: give the optimizer one')

    def __call__(self, model: nn.Module) -> OptimWrapper:
        """Returns the optimizer wrapper of a model, which may be wrapped in FSDP or DistributedDataParallel."""
        # FSDP flattens parameters, so a matrix looks like the vector of a norm. Inside this context it does not.
        sharded = isinstance(model, FullyShardedDataParallel)
        with FullyShardedDataParallel.summon_full_params(model, writeback=False) if sharded else nullcontext():
            return super().__call__(model)

    def add_params(self, params: List[dict], module: nn.Module, **kwargs) -> None:
        """Appends one group to ``params`` for each combination of depth, learning rate and weight decay."""
        backbone = getattr(module, 'backbone', module)
        depth_of, num_layers = self._depths(backbone)
        custom_keys = self.paramwise_cfg.get('custom_keys', {})
        ordered = sorted(sorted(custom_keys), key=len, reverse=True)
        base_wd = self.base_wd or 0.0
        groups: Dict[Tuple, dict] = {}
        norms = {id(p) for m in module.modules() if _is_norm(m) for p in m.parameters(recurse=False)}
        exempt = getattr(backbone, 'no_weight_decay', set)()
        norms |= {id(p) for name, p in backbone.named_parameters() if name in exempt}
        for name, param in module.named_parameters():
            if not param.requires_grad:
                continue
            custom = next((custom_keys[key] for key in ordered if key in name), {})
            depth = custom.get('depth', depth_of.get(id(param), 'head'))
            if depth == 'head':
                depth = num_layers + 1
            elif not 0 <= depth <= num_layers:
                raise ValueError(f"depth must be in 0..{num_layers} or 'head', got {depth} for {name}")
            lr = self.base_lr * self.decay_rate**(num_layers + 1 - depth) * custom.get('lr_mult', 1.0)
            if id(param) in norms or (param.ndim <= 1 and not name.endswith('.bias')):
                decay = self.paramwise_cfg.get('norm_decay_mult', 0.0)
            elif name.endswith('.bias'):
                decay = self.paramwise_cfg.get('bias_decay_mult', 0.0)
            else:
                decay = 1.0
            decay = custom.get('decay_mult', decay)
            group = groups.setdefault((depth, lr, decay), dict(
                params=[], param_names=[], lr=lr, weight_decay=base_wd * decay, depth=depth))
            group['params'].append(param)
            group['param_names'].append(name)
        params.extend(groups[key] for key in sorted(groups))
        print_log(self._table(params), logger='current', level=logging.INFO)

    def _depths(self, backbone: nn.Module) -> Tuple[Dict[int, Union[int, str]], int]:
        """Returns the depth of each parameter of the backbone by ``id(parameter)``, and D."""
        if not (hasattr(backbone, 'layer_id') and hasattr(backbone, 'stage_id')):
            raise TypeError(f'{type(backbone).__name__} does not answer layer_id(parameter_name) and stage_id(...); '
                            'a backbone of mmlk does, and mmlk.backbones.BaseBackbone says what to write')
        if self.decay_type == 'layer_wise':
            ask, deepest = backbone.layer_id, backbone.num_layers
        else:
            ask, deepest = backbone.stage_id, backbone.num_stages
        num_layers = self.paramwise_cfg.get('num_layers', deepest)
        if num_layers < deepest:
            raise ValueError(f'num_layers must be at least {deepest}, the depth of this backbone, got {num_layers}')
        depths = {id(p): ask(name) for name, p in backbone.named_parameters()}
        return {key: depth if depth <= deepest else 'head' for key, depth in depths.items()}, num_layers

    @staticmethod
    def _table(params: List[dict]) -> str:
        table = Table('depth', 'lr', 'weight decay', 'tensors', 'parameters', 'first')
        for group in params:
            table.add_row(str(group['depth']), f"{group['lr']:.3g}", f"{group['weight_decay']:.3g}",
                          str(len(group['params'])), f"{sum(p.numel() for p in group['params']):,}",
                          group['param_names'][0])
        text = StringIO()
        Console(width=120, file=text).print(table)
        return 'Parameter groups of layer decay\n' + text.getvalue()


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, (BatchNorm, InstanceNorm, nn.GroupNorm, nn.LayerNorm))
