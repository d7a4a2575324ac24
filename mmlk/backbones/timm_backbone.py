"""Models of timm (https://github.com/huggingface/pytorch-image-models) as backbones, with our depthwise operator."""
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import timm
from timm.layers import DropPath, PatchEmbed, convert_sync_batchnorm
from timm.models import group_parameters
from torch import Tensor, nn

from mmlk._licences import tell_licence
from mmlk._torch_private import BatchNorm
from mmlk.ops import DepthwiseConv2d, replace_depthwise
from mmlk.registry import MODELS
from mmlk.reparam import merge
from mmlk.reparam.algebra import pad_kernel

from . import timm_families as families
from .base import BaseBackbone, StatisticsKept, check_kernels

_PREFIX = 'model.'
_LARGE_KERNEL = dict(min_kernel=7, kernel_size=None, stages=None)


def _strip_prefix(module: nn.Module, state: Dict[str, Any], prefix: str, metadata: dict) -> None:
    """A state dict hook that removes the prefix of the wrapped model, so that the keys are those of timm."""
    for key in [key for key in state if key.startswith(prefix + _PREFIX)]:
        state[prefix + key[len(prefix + _PREFIX):]] = state.pop(key)


def _add_prefix(module: nn.Module, state: Dict[str, Any], prefix: str, *args) -> None:
    """The inverse of :func:`_strip_prefix`, before a state dict is loaded."""
    for key in [key for key in state if key.startswith(prefix)]:
        if not key.startswith(f'{prefix}{families.OUT_NORMS}.'):
            state[prefix + _PREFIX + key[len(prefix):]] = state.pop(key)


def _layers_of(model: nn.Module) -> Dict[str, int]:
    """Returns the layer id of every parameter, starting at 0 for the stem, as in timm's layer-wise decay."""
    if hasattr(model, 'group_matcher'):
        matcher = model.group_matcher(coarse=False)
    else:  # MetaFormer and a few others, whose modules have the usual names
        matcher = dict(stem=r'^stem', blocks=[(r'^stages\.(\d+)\.downsample', (0, )),
                                              (r'^stages\.(\d+)\.blocks\.(\d+)', None)])
    return group_parameters(model, matcher, reverse=True)


def _stages_of(layers: Dict[str, int], modules: List[str], first: int) -> Optional[Dict[str, int]]:
    """Returns the stage id of every parameter.

    Args:
        layers: The layer id of every parameter.
        modules: Names of the modules that compute the features, as timm gives them.
        first: Number of features before stage 0.

    Returns:
        A dict from name to id. None if a module does not exist or has no parameters: for a few models, timm names an
        activation or a module that they do not have.
    """
    ends = [max((layer for name, layer in layers.items() if name.startswith(f'{module}.')), default=None)
            for module in modules]
    ends[0] = ends[0] or 0  # the first feature of ResNet is the activation of the stem
    stem, ends = max([0, *filter(None, ends[:first])]), ends[first:]
    if None in ends:
        return None
    return {name: 0 if layer <= stem else min(1 + sum(end < layer for end in ends), len(ends))
            for name, layer in layers.items()}


def _create(model_name: str, drop_path_rate: float = 0.0, **args) -> nn.Module:
    try:  # passed even if it is 0, because the default of Swin is 0.1
        return timm.create_model(model_name, drop_path_rate=drop_path_rate, **args)
    except TypeError as error:
        if 'drop_path_rate' in str(error) and not drop_path_rate:
            return _create(model_name, None, **args)  # timm ignores arguments that are None
        raise ValueError(f'TimmBackbone: {model_name} does not take this: {error}') from error
    except RuntimeError as error:
        if timm.is_model(model_name):
            raise
        raise ValueError(f"TimmBackbone: timm {timm.__version__} has no model '{model_name}'; timm.list_models("
                         "'*convnext*') lists those with convnext in their names") from error


def _choose(model_name: str, strides: List[int], out_indices: Optional[Sequence[int]],
            out_strides: Optional[Sequence[int]]) -> Tuple[int, Sequence[int]]:
    """Returns the index of the feature that is stage 0, and the indices of the stages to return."""
    if out_indices is not None and out_strides is not None:
        raise ValueError('TimmBackbone: give out_indices or out_strides, not both')
    if out_strides is None:
        first = next((i for i, stride in enumerate(strides) if stride >= 4), len(strides) - 1)
        if out_indices is None and len(set(strides[first:])) < len(strides[first:]):
            raise ValueError(f'TimmBackbone: {model_name} is no pyramid, its maps have strides '
                             f'{_listed(strides[first:])}; say which you want with out_indices or out_strides')
        return first, tuple(range(len(strides) - first)) if out_indices is None else out_indices
    lacking = [stride for stride in out_strides if stride not in strides]
    if lacking:
        raise ValueError(f'TimmBackbone: {model_name} has maps at strides {_listed(strides)}, not at '
                         f'{_listed(lacking)}')
    first = next(i for i, stride in enumerate(strides) if stride >= min([4, *out_strides]))
    last = {stride: i - first for i, stride in enumerate(strides)}
    return first, [last[stride] for stride in out_strides]


def _listed(numbers: Sequence[int]) -> str:
    return ', '.join(map(str, numbers))


@MODELS.register_module()
class TimmBackbone(BaseBackbone):
    """A timm model as a feature extractor.

    The state dict keys are those of timm, so that files of timm can be loaded, and so can the backbone in a checkpoint
    of a segmentor or detector. Stage 0 is the one with stride 4, as in all other backbones.

    ``large_kernel`` is a dict with these keys, all of them optional:

    - ``min_kernel``, default 7: depthwise convolutions with stride 1, dilation 1 and zero "same" padding, whose longer
      side is at least this, are computed by :func:`mmlk.ops.depthwise_conv2d`.
    - ``stages``, default all stages and the stem: indices of the stages in which this is done.
    - ``kernel_size``, default None: an odd number, or one for each entry of ``stages``, to which the kernels of these
      convolutions are enlarged. Axes of length 1 and larger kernels are not changed. A kernel is enlarged with zeros,
      so the output is unchanged at first, and training can make use of the larger receptive field.

    Args:
        model_name: Model name for ``timm.create_model``, for example ``'convnext_tiny.fb_in1k'``.
        out_indices: Indices of the stages whose maps are returned; all of them by default.
        out_strides: Strides of the maps to return, in place of ``out_indices``; for each stride the last map that has
            it. If one is below 4, stage 0 is the one with the smallest stride.
        pretrained: If True, ``init_weights`` downloads timm's weights for this model.
        checkpoint: A file, URL or name that ``init_weights`` loads with :func:`mmlk.weights.load`, in place of
            ``pretrained``; short for ``init_cfg=dict(type='mmlk.Pretrained', checkpoint=checkpoint)``.
        large_kernel: See above; None to keep timm's operators.
        dense: ``'segmentation'`` or ``'detection'`` to return the maps of the official code of the model's family for
            this task, in place of timm's: ConvNeXt's, FocalNet's and FastViT's have a norm each (LayerNorm, LayerNorm,
            BatchNorm), those of RDNet's detectors a GroupNorm, and those of RepViT's segmentors are taken after the
            block before each downsampling. The norms are ``out_norms`` in the state dict.
        model_args: Further arguments of the timm model, for example ``dict(dynamic_img_size=True)`` for a Swin that
            accepts images of any size.
        drop_path_rate: Drop rate (stochastic depth), distributed over the blocks by timm.
        sync_bn: If True, replaces every BatchNorm with SyncBN. Do not use ``sync_bn`` at the top level of a config
            with timm models: it would remove the activations that some of them have inside their BatchNorm.
        with_cp: As in :class:`BaseBackbone`, if timm supports it for the model.
        merged: As in :class:`BaseBackbone`; RepViT and FastViT have parallel branches that merge.
        init_cfg: As in :class:`BaseBackbone`. As for ``checkpoint``, the kernels in the file must have the sizes of
            timm. To load a file with enlarged kernels, use ``load_from`` of a config or :func:`mmlk.weights.load`.
            Files of the official code of ConvNeXt, DINOv3's ConvNeXt, FocalNet, FastViT, RDNet and RepViT, and of
            EfficientNet-PyTorch, are translated. If ``focal_windows`` of a FocalNet are larger than in the file, its
            kernels are padded with zeros, as officially.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, channels[i], H', W'), where H' is H over the stride,
        rounded as the model does, and any H and W that the model takes.

    Raises:
        ValueError: An argument is not valid for this model; the message says which one.
    """

    optional_weights = (f'{families.OUT_NORMS}.*', )

    def __init__(self, model_name: str, in_channels: int = 3, out_indices: Optional[Sequence[int]] = None,
                 out_strides: Optional[Sequence[int]] = None, pretrained: bool = False,
                 checkpoint: Optional[str] = None, large_kernel: Optional[dict] = None, dense: Optional[str] = None,
                 model_args: Optional[dict] = None, drop_path_rate: float = 0.0, frozen_stages: int = -1,
                 sync_bn: bool = False, norm_eval: bool = False, with_cp: bool = False, merged: bool = False,
                 init_cfg: Optional[dict] = None):
        if sum(map(bool, (pretrained, checkpoint, init_cfg))) > 1:
            raise ValueError('TimmBackbone: give one of pretrained, checkpoint and init_cfg')
        if checkpoint:
            init_cfg = dict(type='mmlk.Pretrained', checkpoint=checkpoint)
        if in_channels < 1:
            raise ValueError(f'TimmBackbone: in_channels must be positive, got {in_channels}')
        args = dict(model_args or {}, in_chans=in_channels, num_classes=0)
        model = _create(model_name, drop_path_rate, **args)
        features = list(getattr(model.feature_info, 'info', model.feature_info))
        first, indices = _choose(model_name, [f['reduction'] for f in features], out_indices, out_strides)
        super().__init__([f['num_chs'] for f in features[first:]], in_channels=in_channels, out_indices=indices,
                         drop_path_rate=drop_path_rate, frozen_stages=frozen_stages, norm_cfg={}, norm_eval=norm_eval,
                         with_cp=with_cp, merged=merged, init_cfg=init_cfg)
        if drop_path_rate and not any(isinstance(m, DropPath) for m in model.modules()):
            raise ValueError(f'TimmBackbone: {model_name} has no stochastic depth, got drop_path_rate {drop_path_rate}')
        channels = {i: features[first + i]['num_chs'] for i in sorted(indices)}
        whole = {name: value.shape for values in (model.state_dict(), dict(model.named_buffers()))
                 for name, value in values.items()}
        families.adopt(model)
        try:
            norms = nn.ModuleDict() if dense is None else families.make_dense(model, dense, channels)
        except ValueError as error:
            raise ValueError(f'TimmBackbone: {error}') from error
        if sync_bn:
            if not any(isinstance(m, BatchNorm) for m in model.modules()):
                raise ValueError(f'TimmBackbone: {model_name} has no BatchNorm for sync_bn to convert')
            model, norms = convert_sync_batchnorm(model), convert_sync_batchnorm(norms)
        self.model_name, self.pretrained, self._args = model_name, pretrained, args
        self._taken = model.prune_intermediate_layers(sorted(first + i for i in indices), prune_norm=True)
        self._order = [sorted(indices).index(i) for i in indices]
        for module in model.modules():
            if isinstance(module, PatchEmbed):
                module.dynamic_img_pad = True  # otherwise it raises an error for sizes that patches do not divide
        self.model = model
        self.out_norms = norms
        self.model.is_init = True  # timm has initialized it; mmengine would do so again and overwrite loaded weights
        self.register_state_dict_post_hook(_strip_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)
        self._layers = _layers_of(model)
        self._stage_table = _stages_of(self._layers, [f['module'] for f in features[:first + self.num_stages]], first)
        self._whole = whole
        self._own_sizes: Dict[str, Tuple[int, int]] = {}
        if large_kernel is not None:
            self._swap(large_kernel)
        if merged:
            if any(parameter.is_meta for parameter in self.model.parameters()):
                self.model.to('meta')  # with the statistics of norms, which may have been made on another device
            merge(self.model, inplace=True).train()
        self._in_forward = False
        self._held: Dict[nn.Module, Any] = {}
        if with_cp:
            self._checkpoint()
        for name, parameter in self.named_parameters():
            if frozen_stages >= 0 and self.stage_id(name) <= frozen_stages:
                parameter.requires_grad_(False)
        self.finish()

    @property
    def _stages(self) -> Dict[str, int]:
        if self._stage_table is None:
            raise ValueError(f'TimmBackbone: timm does not say where the stages of {self.model_name} end, so '
                             'frozen_stages, large_kernel and stage-wise decay cannot be had')
        return self._stage_table

    def _swap(self, large_kernel: dict) -> None:
        """Replaces depthwise convolutions and enlarges kernels, as ``large_kernel`` says."""
        unknown = sorted(set(large_kernel) - set(_LARGE_KERNEL))
        if unknown:
            raise ValueError(f"TimmBackbone: unknown keys in large_kernel: {', '.join(unknown)}; "
                             f"it takes {', '.join(_LARGE_KERNEL)}")
        cfg = {**_LARGE_KERNEL, **large_kernel}
        stages = tuple(range(self.num_stages) if cfg['stages'] is None else cfg['stages'])
        if not stages or not set(stages) <= set(range(self.num_stages)):
            raise ValueError(f"TimmBackbone: large_kernel's stages must be in 0..{self.num_stages - 1}, got {stages}")
        sizes = cfg['kernel_size']
        sizes = (sizes, ) * len(stages) if isinstance(sizes, (int, type(None))) else tuple(sizes)
        if len(sizes) != len(stages):
            raise ValueError("TimmBackbone: large_kernel's kernel_size must be one number or one for each of "
                             f'{len(stages)} stages, got {sizes}')
        check_kernels(dict(kernel_size=[size for size in sizes if size is not None]), 'kernel_size')
        size_of = dict(zip(stages, sizes))
        if cfg['stages'] is None:
            size_of[-1] = None  # the stem, whose kernels are not enlarged
        convs = {name: m for name, m in self.model.named_modules()
                 if isinstance(m, nn.Conv2d) and self._stages[f'{name}.weight'] - 1 in size_of}
        try:
            replace_depthwise(nn.ModuleList(convs.values()), cfg['min_kernel'])
        except ValueError as error:
            raise ValueError(f'TimmBackbone: large_kernel finds no depthwise convolution in {self.model_name} with '
                             f"stride 1 and a kernel of at least {cfg['min_kernel']} in stages {stages}") from error
        for name, conv in convs.items():
            size = size_of[self._stages[f'{name}.weight'] - 1]
            if isinstance(conv, DepthwiseConv2d) and size is not None:
                grown = tuple(k if k == 1 else max(k, size) for k in conv.kernel_size)
                if grown != conv.kernel_size:
                    self._own_sizes[name] = conv.kernel_size
                    conv.weight.data = pad_kernel(conv.weight.data, grown)
                    conv.kernel_size, conv.padding = grown, tuple(k // 2 for k in grown)
        if any(sizes) and not self._own_sizes:
            raise ValueError(f'TimmBackbone: large_kernel has nothing to grow in {self.model_name}: no kernel in '
                             f'stages {stages} is smaller than kernel_size {cfg["kernel_size"]}')

    @contextmanager
    def _own_kernels(self) -> Iterator[None]:
        """A context manager in which the kernels have the sizes of timm's files; at the end they are enlarged again."""
        modules = dict(self.model.named_modules())  # without those that were merged into others
        convs = [(modules[name], size) for name, size in self._own_sizes.items() if name in modules]
        for conv, size in convs:
            top, left = ((k - s) // 2 for k, s in zip(conv.kernel_size, size))
            conv.weight.data = conv.weight.data[..., top:top + size[0], left:left + size[1]]
        try:
            yield
        finally:
            for conv, _ in convs:
                conv.weight.data = pad_kernel(conv.weight.data, conv.kernel_size)

    def init_weights(self) -> None:
        """Loads the weights of ``pretrained``, ``checkpoint`` or ``init_cfg``; without them, keeps timm's
        initialization. A licence of weights that are downloaded is logged if it restricts their use.

        Raises:
            WeightsError: See :func:`mmlk.weights.load`. A file must have all parameters and buffers.
        """
        if self.is_init or not (self.pretrained or self.init_cfg):
            super().init_weights()
            return
        with self._own_kernels():
            if self.pretrained:
                tell_licence(self.model_name, self.model.pretrained_cfg.get('license') or '')
                donor = _create(self.model_name, **self._args, pretrained=True)
                families.adopt(donor)
                donated = (merge(donor, inplace=True) if self.merged else donor).state_dict()
                own = (name for name in self.state_dict() if not name.startswith(families.OUT_NORMS))
                self.load_state_dict({**self.state_dict(), **{name: donated[name] for name in own}})
            super().init_weights()

    def _told(self, key: str) -> Tuple[str, ...]:
        """Returns the names of modules that timm gives for ``key`` in the model's settings: none, one or several."""
        names = self.model.pretrained_cfg.get(key) or ()
        return (names, ) if isinstance(names, str) else tuple(names)

    def input_weights(self) -> List[str]:
        own, told = self.state_dict(), [f'{name}.weight' for name in self._told('first_conv')]
        part = told[0].partition('.')[0] if told else ''
        # of a merged model, the first convolution has another name
        return [name for name in told if name in own] or [
            name for name, value in own.items() if name.startswith(f'{part}.') and value.ndim == 4][:1]

    def translated(self, tensors: Dict[str, Tensor]) -> Optional[Dict[str, Tensor]]:
        """Returns tensors of the official code of the model's family with the names and shapes of timm.

        None if their names are those of timm already, or of no code that is known.
        """
        return families.translated(tensors, self.model, self._whole, list(self.state_dict()))

    def resized_weight(self, name: str, value: Tensor) -> Tensor:
        target = self.state_dict()[name]
        if '.focal_layers.' in name and value.ndim == 4 and value.shape[:2] == target.shape[:2] and all(
                s <= t and (t - s) % 2 == 0 for s, t in zip(value.shape[2:], target.shape[2:])):
            return pad_kernel(value, tuple(target.shape[2:]))
        return value

    def leaves_out(self, name: str) -> bool:
        part = name.partition('.')[0]
        if part == families.OUT_NORMS:
            return bool(self.out_norms) and name.split('.')[1] not in self.out_norms
        return (name in self._whole or name.startswith(tuple(f'{module}.' for module in self._told('classifier')))
                or not any(own.startswith(f'{part}.') for own in self.state_dict()))

    def _checkpoint(self) -> None:
        try:
            self.model.set_grad_checkpointing(True)
        except AssertionError as error:
            raise ValueError(f'TimmBackbone: timm has no checkpointing for {self.model_name}; with_cp must be '
                             'False') from error
        for norm in self.model.modules():
            if isinstance(norm, BatchNorm):
                norm.register_forward_pre_hook(self._before_norm)
                norm.register_forward_hook(self._after_norm, always_call=True)

    # A call outside of forward is a recomputation in the backward pass, which must not count its batch twice.
    def _before_norm(self, norm: nn.Module, args: tuple) -> None:
        if norm.training and not self._in_forward:
            self._held[norm] = StatisticsKept(norm)
            self._held[norm].__enter__()

    def _after_norm(self, norm: nn.Module, args: tuple, out: Tensor) -> None:
        if norm in self._held:
            self._held.pop(norm).__exit__(None, None, None)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        self._in_forward = True
        try:
            maps = self.model.forward_intermediates(x, indices=self._taken, intermediates_only=True)
        finally:
            self._in_forward = False
        if self.out_norms:
            maps = [norm(x) for norm, x in zip(self.out_norms.values(), maps)]
        return tuple(maps[i] for i in self._order)

    def _frozen_modules(self) -> List[nn.Module]:
        """Returns the largest modules of which all parameters are frozen, so that their dropout can be disabled too."""
        def within(module: nn.Module, prefix: str) -> List[nn.Module]:
            stages = [self._stages[prefix + name] for name, _ in module.named_parameters()]
            if stages and max(stages) <= self.frozen_stages:
                return [module]
            return [found for name, child in module.named_children() for found in within(child, f'{prefix}{name}.')]

        if self.frozen_stages < 0:
            return []
        norms = [norm for stage, norm in self.out_norms.items() if int(stage) < self.frozen_stages]
        return within(self.model, '') + norms

    def _look_up(self, table: Dict[str, int], name: str) -> int:
        own = name[len(_PREFIX):] if name.startswith(_PREFIX) else ''
        if own not in table and own in dict(self.model.named_parameters()):  # it was made by merging
            block = own.rpartition('.')[0].rpartition('.')[0]
            own = next(key for key in table if key.startswith(f'{block}.'))
        if own not in table:
            raise KeyError(f"TimmBackbone has no parameter '{name}'")
        return table[own]

    def _stage_of_norm(self, name: str) -> Optional[int]:
        """Returns the stage of a norm on a map; None for other parameters."""
        if name.startswith(f'{families.OUT_NORMS}.') and name in dict(self.named_parameters()):
            return int(name.split('.')[1])
        return None

    def stage_id(self, name: str) -> int:
        """Returns the stage id of a parameter, for stage-wise decay: 0 for the stem, i + 1 for stage i.

        Raises:
            KeyError: The backbone has no such parameter.
            ValueError: timm does not provide the ends of the stages of this model.
        """
        stage = self._stage_of_norm(name)
        return self._look_up(self._stages, name) if stage is None else stage + 1

    def no_weight_decay(self) -> Set[str]:
        ask = getattr(self.model, 'no_weight_decay', set)
        return {_PREFIX + name for name in ask()}

    @property
    def num_layers(self) -> int:
        return max(self._layers.values())

    def layer_id(self, name: str) -> int:
        """Returns the layer id of a parameter, according to ``group_matcher`` of the timm model."""
        if self._stage_of_norm(name) is not None:
            return self.num_layers + 1
        return self._look_up(self._layers, name)
