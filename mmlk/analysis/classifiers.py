"""Classifiers of ImageNet-1K: a backbone with the head that a file holds beside it, or a model of timm."""
import difflib
import sys
from typing import Any, Dict, List, Optional, Type

import torch
from mmengine.config import Config
from timm import is_model
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from mmlk._licences import tell_licence
from mmlk._types import TIMM
from mmlk.engine.network import build_network
from mmlk.preprocessors import Normalization
from mmlk.weights import LoadReport, WeightsError, load
from mmlk.weights.catalog import CATALOG, FAMILIES
from mmlk.weights.layouts import find_tensors, fit
from mmlk.weights.read import read_weights

CLASSES = 1000

# Of the 1x1 convolution that some families have before their pooling.
_ACTIVATIONS = {'FlashInternImage': nn.GELU, 'InternImage': nn.GELU, 'MobileNetV2': nn.ReLU6, 'OverLoCK': nn.SiLU,
                'ParCMobileNetV2': nn.ReLU6, 'ParCNet': nn.SiLU}
# The others with a LayerNorm in their head have it after the pooling.
_NORM_BEFORE_POOLING = ('GFNet', )
# What files have beside backbone and head: ParC-Net's, a second name of layer_5's first block; OverLoCK's, a second
# head that only its training has.
_NOT_OF_THE_HEAD = {'OverLoCK': 'aux_head.', 'ParCNet': 'residual.'}


class Classifier(nn.Module):
    """A network in eval mode, and the images it takes.

    Args:
        network: Takes (N, 3, H, W), returns (N, 1000).
        last_layer: Name of the module in it that makes the last map; '' where ``network.backbone`` returns it.
        source: Where its weights are from.
        size: Side of the images.
        normalization: Of the images; by default ImageNet's.

    Shape:
        (N, 3, H, W), RGB pixels in 0..255, to logits (N, 1000).

    Raises:
        ValueError: ``size`` is not positive, or the mean or the deviation is not of three channels.
    """

    def __init__(self, network: nn.Module, last_layer: str, source: str, size: int = 224,
                 normalization: Normalization = Normalization()):
        super().__init__()
        self.network = network.eval()
        self.last_layer, self.source = last_layer, source
        self.expect(size, normalization)

    def expect(self, size: int, normalization: Normalization) -> None:
        """Change which images the network takes; the arguments and the error are those of the constructor."""
        mean, std, _ = normalization
        if size < 1 or len(mean) != 3 or len(std) != 3:
            raise ValueError(f'images have a positive side and three channels, got {size}, {mean} and {std}')
        self.size, self.normalization = size, normalization

    @property
    def images(self) -> Dict[str, Any]:
        """How images are prepared, as it is written to a JSON file."""
        mean, std, bgr = self.normalization
        return dict(size=self.size, mean=mean, std=std, channels='BGR' if bgr else 'RGB')

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(self.normalization(pixels))


class WithHead(nn.Module):
    """A backbone and a head that computes logits from its last map."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])


class ClassifierHead(nn.Module):
    """Mean over the map and a linear layer, with what stands before and between."""

    def __init__(self, before: nn.Module, between: nn.Module, linear: nn.Linear):
        super().__init__()
        self.before, self.between, self.linear = before, between, linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.between(self.before(x).mean((2, 3))))


def build_classifier(model: str, checkpoint: Optional[str] = None, by_order: bool = False) -> Classifier:
    """A classifier by name, with its weights in.

    Args:
        model: ``timm:NAME``; a family and one of its archs, as ``RepLKNet-31B``; or a classifier of
            :mod:`mmlk.weights.catalog`, which has a checkpoint.
        checkpoint: A source that :func:`mmlk.weights.load` takes. A model of timm takes timm's own without it.
        by_order: Take the tensors of the file in their order, whatever their names; for models of timm.

    Raises:
        ValueError: There is no such model, or its weights cannot be had.
    """
    if model.startswith(TIMM):
        return classifier_from_timm(model[len(TIMM):], checkpoint, by_order)
    if by_order:
        raise ValueError(f'{model}: tensors are taken in their order for models of timm only')
    if model in CATALOG:
        name = next(family for family, entries in FAMILIES.items() if CATALOG[model] in entries)
        arch, checkpoint = CATALOG[model].arch, checkpoint or model
        if is_model(arch.partition('.')[0]):
            return classifier_from_timm(arch, checkpoint)
    else:
        name, _, arch = model.partition('-')
    family = _families().get(name)
    if family is None or arch not in _archs(family):
        known = [f'{name}-{arch}' for name, family in _families().items() for arch in _archs(family)]
        near = difflib.get_close_matches(model, [*known, *CATALOG], n=4)
        raise ValueError(f"no classifier '{model}': it is neither a config file, nor timm:NAME, nor a backbone of mmlk "
                         f'such as RepLKNet-31B, nor a classifier that tools/weights.py lists{_listed(near)}')
    if checkpoint is None:
        raise ValueError(f'{model} needs a checkpoint: a file with a classifier in it')
    try:
        return with_head(family(arch), checkpoint)
    except WeightsError as error:
        try:
            return with_head(family(arch, merged=True), checkpoint)  # a merged file
        except WeightsError:
            raise error from None


def _listed(near: List[str]) -> str:
    return f"; near names: {', '.join(near)}" if near else ''


def _families() -> Dict[str, Type[nn.Module]]:
    from mmlk import backbones
    return {name: getattr(backbones, name) for name in backbones.__all__
            if hasattr(sys.modules[getattr(backbones, name).__module__], 'ARCHS')}


def _archs(family: type) -> List[str]:
    return list(sys.modules[family.__module__].ARCHS)


def classifier_from_config(cfg: Config, checkpoint: str) -> Classifier:
    """The backbone of a segmentor's or detector's config, with weights and head from a classifier's file.

    Raises:
        ValueError: The config has no backbone, or it cannot be built; the file holds no classifier that fits.
    """
    return with_head(build_network(cfg, 'backbone'), checkpoint)


def with_head(backbone: nn.Module, checkpoint: str) -> Classifier:
    """A backbone, filled from the file of a classifier, under the head that the file holds beside it.

    What the backbone has for dense prediction alone, norms on its outputs, is taken out where the file lacks it.

    Args:
        backbone: Returns a sequence of maps; it is changed.
        checkpoint: A source that :func:`mmlk.weights.load` takes, whose size, mean and deviation of images count.

    Raises:
        WeightsError: The file does not fill the backbone, or holds no head of 1000 classes that fits its last map.
    """
    report = load(backbone, checkpoint)
    for module in sorted({name.rpartition('.')[0] for name in report.left}):
        keys = (f'{module}.{key}' for key in backbone.get_submodule(module).state_dict()
                if key != 'num_batches_tracked')
        if set(keys) <= set(report.left):  # InternImage's T lacks scales of 1, not whole modules
            parent, _, child = module.rpartition('.')
            setattr(backbone.get_submodule(parent), child, nn.Identity())
    head = _head(_beside(report, backbone), type(backbone).__name__, report.path)
    images: Dict[str, Any] = {}
    entry = CATALOG.get(checkpoint)
    if entry:
        images = dict(size=int(entry.image_size.split('x')[0]),
                      normalization=Normalization(entry.mean, entry.std, entry.channels == 'BGR'))
    classifier = Classifier(WithHead(backbone, head), '', str(checkpoint), **images)
    try:
        with torch.no_grad():
            classifier(torch.zeros(1, 3, classifier.size, classifier.size))
    except RuntimeError as error:
        raise WeightsError(f'{report.path}: its head does not fit the last map of {type(backbone).__name__}: '
                           f'{error}') from error
    return classifier


def _beside(report: LoadReport, backbone: nn.Module) -> Dict[str, Tensor]:
    """The tensors of a file that do not belong to the backbone that was filled from it."""
    layout = find_tensors(read_weights(report.path), report.path)
    named = {**layout.tensors, **fit(layout, list(backbone.state_dict())).tensors}
    return {name: named[name] for name in report.unexpected}


def _head(tensors: Dict[str, Tensor], family: str, path: str) -> ClassifierHead:
    """The head whose weights these are: a linear layer, at most one norm, at most one 1x1 convolution under it."""
    modules: Dict[str, Dict[str, Tensor]] = {}
    unused = _NOT_OF_THE_HEAD.get(family)
    for name, value in tensors.items():
        if unused is None or not name.startswith(unused):
            module, _, key = name.rpartition('.')
            if key == 'weight' and value.dim() == 4 and len(value) == CLASSES and f'{module}.bias' in tensors:
                value = value.flatten(1)  # a 1x1 convolution of the mean is a linear layer
            modules.setdefault(module, {})[key] = value
    by_dims: Dict[int, List[str]] = {}
    for module, weights in modules.items():
        by_dims.setdefault(weights['weight'].ndim if 'weight' in weights else 0, []).append(module)
    linears, norms, convs = (by_dims.pop(dims, []) for dims in (2, 1, 4))
    odd = len(linears) != 1 or len(norms) > 1 or len(convs) > len(norms)
    if by_dims or odd or convs and family not in _ACTIVATIONS:
        held = ', '.join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in list(tensors.items())[:8])
        raise WeightsError(f'{path} holds no classifier that could be put on a {family}: beside the backbone it has '
                           f"{held or 'nothing'}")
    weights = modules[linears[0]]
    classes, width = weights['weight'].shape
    if classes != CLASSES:
        raise WeightsError(f"{path} is a classifier of {classes} classes; ImageNet-1K's {CLASSES} are needed")
    linear = _filled(nn.Linear(width, classes, 'bias' in weights), weights)
    before = between = nn.Identity()
    if norms:
        weights = modules[norms[0]]
        norm_width, batch_norm = len(weights['weight']), 'running_mean' in weights
        if batch_norm:
            before = _filled(nn.BatchNorm2d(norm_width), weights)
        elif family in _NORM_BEFORE_POOLING:
            before = _filled(LayerNorm2d(norm_width, eps=1e-6), weights)
        else:
            between = _filled(nn.LayerNorm(norm_width, eps=1e-6), weights)
    if convs:
        weights = modules[convs[0]]
        out_channels, in_channels = weights['weight'].shape[:2]
        before = nn.Sequential(_filled(nn.Conv2d(in_channels, out_channels, 1, bias='bias' in weights), weights),
                               before, _ACTIVATIONS[family]())
    return ClassifierHead(before, between, linear)


def _filled(module: nn.Module, weights: Dict[str, Tensor]) -> nn.Module:
    try:
        module.load_state_dict({key: value for key, value in weights.items() if key != 'num_batches_tracked'},
                               strict=not isinstance(module, nn.BatchNorm2d))
    except RuntimeError as error:
        raise WeightsError(f'the head cannot be filled: {error}') from error
    return module


def classifier_from_timm(name: str, checkpoint: Optional[str] = None, by_order: bool = False) -> Classifier:
    """A model of timm with a file's weights, else with timm's own, which are fetched.

    Raises:
        ValueError: timm has no such model of 1000 classes, or its weights cannot be had.
    """
    import timm
    try:
        model = timm.create_model(name)
    except (RuntimeError, TypeError, ValueError) as error:
        near = difflib.get_close_matches(name.split('.')[0], timm.list_models(), n=4)
        raise ValueError(f"timm {timm.__version__} cannot make '{name}': {error}"
                         f'{_listed(near)}') from error
    if model.num_classes != CLASSES:
        raise ValueError(f"{name} has {model.num_classes} classes; ImageNet-1K's {CLASSES} are needed")
    if checkpoint and by_order:
        _fill_in_order(model, checkpoint)
    elif checkpoint:
        load(model, checkpoint)
    else:
        tell_licence(name, model.pretrained_cfg.get('license') or '')
        tell_licence(name, model.pretrained_cfg.get('license') or '')
        try:
            model = timm.create_model(name, pretrained=True)
        except Exception as error:  # the hub raises errors of several libraries
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f'the weights of {name} cannot be fetched ({reason}); give a checkpoint') from error
    own = model.pretrained_cfg
    features = list(getattr(model.feature_info, 'info', model.feature_info))
    return Classifier(model, features[-1]['module'], checkpoint or f'{TIMM}{name}', own['input_size'][-1],
                      Normalization.of_timm(own))


def _fill_in_order(model: nn.Module, checkpoint: str) -> None:
    from mmlk.weights.fetch import find
    path = find(checkpoint)
    file = find_tensors(read_weights(path), path).tensors
    own = model.state_dict()
    if len(file) != len(own):
        raise WeightsError(f'{path} has {len(file)} tensors, {type(model).__name__} {len(own)}')
    for (name, value), (own_name, own_value) in zip(file.items(), own.items()):
        if value.shape != own_value.shape:
            raise WeightsError(f'{path}, in order: {name} is {tuple(value.shape)} where {type(model).__name__} has '
                               f'{own_name}, {tuple(own_value.shape)}')
    model.load_state_dict(dict(zip(own, file.values())))


def class_names() -> List[str]:
    """The 1000 classes of ImageNet-1K, in the order of their indices; the first of each one's names."""
    from timm.data import ImageNetInfo
    info = ImageNetInfo()
    return [info.index_to_description(index).split(', ')[0] for index in range(CLASSES)]
