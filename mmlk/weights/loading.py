"""Weights into a module, with a report, and an error where mmengine would only warn."""
import logging
import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Collection, Dict, List, Mapping, Optional, Tuple, Union

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .errors import WeightsError
from .fetch import find
from .identify import identify
from .layouts import BACKBONE, find_tensors, fit, is_whole, plain_names
from .read import read_weights


@dataclass
class LoadReport:
    """What became of every tensor of a file and of every parameter and buffer of a module.

    Args:
        source: What the caller asked for: a path, a URL or a name of the catalogue.
        path: The file on this machine.
        format: In words, which format was recognised.
        matched: Keys that were filled.
        missing: Keys of the module that the file does not hold.
        unexpected: Keys of the file that the module does not have.
        misplaced: Those of ``unexpected`` that belong to a part which the module has. Without them the module does not
            compute what the file's network does.
        wrong_shape: (key, shape in the file, shape in the module).
        left: Keys in the module's ``optional_weights`` that the file does not hold; they keep their values.
        new: Keys of layers for another number of classes than in the file; they keep their values.
        resized: Those of ``matched`` that have another shape in the file and were converted.
        hints: Sentences that say what the reason may be and what to do.
    """
    source: str
    path: str
    format: str
    matched: List[str] = field(default_factory=list)
    missing: List[str] = field(default_factory=list)
    unexpected: List[str] = field(default_factory=list)
    misplaced: List[str] = field(default_factory=list)
    wrong_shape: List[Tuple[str, Tuple[int, ...], Tuple[int, ...]]] = field(default_factory=list)
    left: List[str] = field(default_factory=list)
    new: List[str] = field(default_factory=list)
    resized: List[str] = field(default_factory=list)
    hints: List[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every parameter and buffer that has to be filled was filled, and no part's tensors were left over."""
        return not (self.missing or self.wrong_shape or self.misplaced)

    def __str__(self) -> str:
        shapes = [f'{key}: {_shape(file)} in the file, {_shape(module)} in the module'
                  for key, file, module in self.wrong_shape]
        rows = [('matched', self.matched, 0), ('of them resized', self.resized, 2), ('missing', self.missing, 6),
                ('wrong shape', shapes, 6), ('left as it was', self.left, 2), ('unexpected', self.unexpected, 2)]
        rows += [('of them in parts that the module has', self.misplaced, 6)] if self.misplaced else []
        rows += [('for another number of classes, so left new', self.new, 20)] if self.new else []
        lines = [f'weights from {self.source}', f'  file    {self.path}', f'  format  {self.format}']
        for name, keys, shown in rows:
            lines.append(f'  {len(keys):>5}  {name}')
            lines += [f'         {key}' for key in keys[:shown]]
            if len(keys) > shown > 0:
                lines.append('         ...')
        return '\n'.join(lines + [f'  hint: {hint}' for hint in self.hints])


def _shape(sizes: Tuple[int, ...]) -> str:
    return 'x'.join(map(str, sizes)) or 'scalar'


def _fault(name: str, value: Tensor, target: Tensor) -> Optional[str]:
    """Why a tensor of the right name and shape cannot be used."""
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return 'is not a plain dense tensor'
    if value.is_complex() != target.is_complex() or value.is_floating_point() != target.is_floating_point():
        return f'is {value.dtype}, the module needs {target.dtype}'
    if target.is_floating_point() and not torch.isfinite(value.to(target.dtype)).all():
        finite = torch.isfinite(value.double()).all()
        return f'overflows in {target.dtype}, from {value.dtype}' if finite else 'holds NaN or infinity'
    if name.endswith('running_var') and (value < 0).any():
        return 'holds a negative variance'
    return None


def _split_optional(missing: List[str], names: List[str],
                    patterns: Tuple[str, ...]) -> Tuple[List[str], List[str]]:
    """Missing keys that may stay as they are, and those that may not. A file holds all of the optional or
    none: one that has some of them has lost the others."""
    optional = {name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)}
    needed = {name for name in optional if not name.endswith('num_batches_tracked')}
    if not needed <= set(missing):
        return [], missing
    return [name for name in missing if name in optional], [name for name in missing if name not in optional]


def _hints(report: LoadReport, file: Mapping[str, Tensor], module: Mapping[str, Tensor]) -> List[str]:
    of_misplaced = _hint_of_misplaced(report.misplaced, file, module)
    hints = [of_misplaced] if of_misplaced else []
    known = identify(file), identify(module)
    file_merged, merged = ('merged form' in (kind or '') for kind in known)
    if file_merged and not merged:
        hints.append('the file is the merged form, the module is not: build it with merged=True')
    elif merged and not file_merged:
        hints.append('the file is the training form, the module is merged: build it with merged=False, load, '
                     'and then mmlk.reparam.merge() it')
    if all(known) and known[0] != known[1] and file_merged == merged:
        hints.append(f'the file looks like {known[0]}, the module is {known[1]}')
    heads = [name for name in report.missing if not name.startswith('backbone.')]
    if report.missing and is_whole(module) and (not is_whole(file) or len(heads) == len(report.missing) > 0):
        hints.append('the file holds a backbone but not this whole model: load it into the backbone, with '
                     "load(model.backbone, ...) or its init_cfg=dict(type='mmlk.Pretrained', ...)")
    elif not report.matched:
        hints.append(f'no name fits: the file has {", ".join(list(file)[:3])}; the module has '
                     f'{", ".join(list(module)[:3])}')
    return hints


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module under what :func:`plain_names` leaves out of names."""
    while True:
        children = dict(module.named_children())
        inner = children.get('_orig_mod', children.get('module') if len(children) == 1 else None)
        if inner is None:
            return module
        module = inner


def _backbone(module: nn.Module, own: Collection[str]) -> Tuple[nn.Module, str]:
    """The backbone, which may be the module itself, and what names of its tensors begin with."""
    prefix = BACKBONE if is_whole(own) else ''
    return _unwrapped(module).get_submodule(prefix[:-1]), prefix


def _adapted(value: Tensor, channels: int) -> Tensor:
    """A kernel for images of as many channels, as timm makes it of one for RGB; ``value`` itself where it cannot."""
    from timm.models import adapt_input_conv  # takes long to import
    if value.layout != torch.strided or value.is_meta or not value.is_floating_point():
        return value
    try:
        return adapt_input_conv(channels, value)
    except (AssertionError, NotImplementedError):
        return value


def _of_classes(module: nn.Module, key: str, value: Tensor, target: Tensor) -> bool:
    """Whether a tensor of a head is of a layer that ends in classes, and differs from the file's in their number alone.

    The layer's outputs are as many as its head's classes, or a multiple: with the background, of several anchors, boxes
    of each class. Nothing follows such a layer whose shape could differ too.
    """
    path = key.rpartition('.')[0]
    if BACKBONE in key or not target.ndim or value.ndim != target.ndim or value.shape[1:] != target.shape[1:]:
        return False
    while path:
        head = module.get_submodule(path)
        classes = getattr(head, 'num_classes', None)
        if isinstance(classes, int) and classes > 0 and not hasattr(head, 'backbone'):
            counts = classes, classes + 1, getattr(head, 'out_channels', 0), getattr(head, 'cls_out_channels', 0)
            return any(isinstance(count, int) and count > 0 and len(target) % count == 0 for count in counts)
        path = path.rpartition('.')[0]
    return False


def _misplaced(names: List[str], module: nn.Module, own: Collection[str]) -> List[str]:
    """Of the names in a file that a module lacks, those inside the parts that it has.

    A part is a child of the module, and of its backbone. Which parts one of mmlk's backbones has, it says itself: with
    ``out_indices`` it leaves out stages. Counters of BatchNorm are not used, and buffers that the module does not save
    it computes itself.

    Args:
        names: Of the file's tensors.
        module: What is loaded.
        own: Names of the tensors of the module.
    """
    backbone, prefix = _backbone(module, own)
    buffers = {name for name, _ in _unwrapped(module).named_buffers()}
    parts = {name.partition('.')[0] for name in own if '.' in name}
    inside = {name[len(prefix):].partition('.')[0] for name in own if name.startswith(prefix)}
    leaves_out = getattr(backbone, 'leaves_out', None)

    def belongs(name: str) -> bool:
        if name.endswith('num_batches_tracked') or name in buffers:
            return False
        if not name.startswith(prefix):
            return name.partition('.')[0] in parts
        if leaves_out is not None:
            return not leaves_out(name[len(prefix):])
        return '.' in name[len(prefix):] and name[len(prefix):].partition('.')[0] in inside

    return [name for name in names if belongs(name)]


def _hint_of_misplaced(names: List[str], file: Mapping[str, Tensor], own: Collection[str]) -> Optional[str]:
    """What an argument of the module has to be, where the names tell."""
    for name in names:
        for number in re.finditer(r'(?<=\.)\d+(?=\.)', name):
            before = name[:number.start()]
            ours = [int(found[1]) for found in (re.match(rf'{re.escape(before)}(\d+)\.', key) for key in own) if found]
            if ours and int(number[0]) > max(ours):
                return (f'{before[:-1]} ends at {max(ours)} in the module and holds {number[0]} in the file, which is '
                        'of a deeper network')
    small = next((name for name in names if name.endswith('small_conv.conv.weight')), None)
    if small:
        return ('the file has small kernels beside the large ones and the module has none: build it with '
                f'small_kernel={file[small].shape[-1]}')
    if any(name.endswith(('.running_mean', '.running_var')) for name in names):
        return 'the file has the statistics of BatchNorm where the module has none: see its norm_cfg'
    return None


def load(module: nn.Module, source: Union[str, Path], strict: bool = True, allow_pickle: bool = False,
         adapt_stem: bool = False, other_classes: bool = False) -> LoadReport:
    """Load weights into a module, in-place, and report what became of every tensor.

    The format of the file is recognised: a state dict; one under the key ``state_dict``, ``model`` or ``model_ema``; a
    training file of a family's official code; a file of mmpretrain, timm or torchvision, whose names are translated; a
    whole checkpoint of mmseg or mmdet, of which a backbone takes the ``backbone.`` part; safetensors. Tensors are
    converted to the dtype and the device of the module. The file may hold parts that the module does not have (a head,
    a classifier, stages that are not built); they are reported.

    Args:
        module: A backbone, or a whole segmentor or detector.
        source: A path, an http(s) URL, a name of :mod:`mmlk.weights.catalog`,
            ``hf-hub:owner/name[@revision]/file``, a file of the Hugging Face Hub, or ``package:NAME``, an installed
            Python package with a file of weights.
        strict: Whether to raise an error if a parameter or buffer was not filled, or if the file holds more of a part
            than the module has. Exceptions are ``num_batches_tracked``, and the module's ``optional_weights`` if the
            file holds none of them. If False, warn and load what fits.
        allow_pickle: See :func:`mmlk.weights.read.read_weights`.
        adapt_stem: For a backbone of mmlk that takes images of another number of channels than three, from a file for
            RGB images: make the kernels of the first layers as timm does, by repeating those for red, green and blue in
            turn and multiplying them by 3 / channels, or, for one channel, by summing them. They are reported as
            resized.
        other_classes: Whether a layer of a head may keep its values if the file's is for another number of classes. It
            is reported as new.

    Returns:
        The report, which is also logged.

    Raises:
        WeightsError: The source cannot be found, fetched or read; a tensor holds NaN, infinity or a negative variance,
            or is complex or integer where the module's is not; or, with ``strict``, as said there. The module is then
            unchanged.
    """
    report, values = compare_weights(module, source, strict, allow_pickle, adapt_stem, other_classes)
    module.load_state_dict(values, strict=False)
    whole = report.complete and not report.new
    print_log(str(report), logger='current', level=logging.INFO if whole else logging.WARNING)
    return report


def compare_weights(module: nn.Module, source: Union[str, Path], strict: bool = True, allow_pickle: bool = False,
                    adapt_stem: bool = False, other_classes: bool = False) -> Tuple[LoadReport, Dict[str, Tensor]]:
    """Do what :func:`load` does, without changing the module, which may be on the ``meta`` device.

    The arguments and the errors are those of :func:`load`.

    Returns:
        The report, and the state dict that would be loaded, with the module's keys.
    """
    path = find(source)
    targets = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    keys = plain_names(targets)
    module_tensors = {name: targets[key] for name, key in keys.items()}
    backbone, prefix = _backbone(module, keys)
    layout = fit(find_tensors(read_weights(path, allow_pickle), path), keys, getattr(backbone, 'translated', None))

    if adapt_stem and not hasattr(backbone, 'input_weights'):
        raise WeightsError(f"adapt_stem knows the stems of mmlk's backbones, not that of {type(backbone).__name__}")
    stem = [prefix + name for name in getattr(backbone, 'input_weights', list)()]

    report = LoadReport(str(source), str(path), layout.format)
    values: Dict[str, Tensor] = {}
    faults: List[str] = []
    for name, target in module_tensors.items():
        value = layout.tensors.get(name)
        if value is not None and value.shape != target.shape:
            if adapt_stem and name in stem:
                value = _adapted(value, backbone.in_channels)
            elif not prefix and hasattr(backbone, 'resized_weight'):
                value = backbone.resized_weight(name, value)
            if value.shape == target.shape:
                report.resized.append(name)
        if value is None:
            if not name.endswith('num_batches_tracked'):
                report.missing.append(name)
        elif value.shape != target.shape and other_classes and _of_classes(module, keys[name], value, target):
            report.new.append(name)
        elif value.shape != target.shape:
            report.wrong_shape.append((name, tuple(value.shape), tuple(target.shape)))
        else:
            fault = _fault(name, value, target)
            if fault:
                faults.append(f'{name} {fault}')
            report.matched.append(name)
            values[keys[name]] = value
    unexpected = [name for name in layout.tensors if name not in keys]
    report.unexpected = unexpected + layout.aside
    report.misplaced = _misplaced(unexpected, module, keys)
    report.left, report.missing = _split_optional(report.missing, list(keys),
                                                  tuple(getattr(module, 'optional_weights', ())))
    if not report.complete:
        report.hints = _hints(report, layout.tensors, module_tensors)
        if not adapt_stem and any(name in stem for name, *_ in report.wrong_shape):
            report.hints.append('the stems are for images of other numbers of channels: adapt_stem=True makes kernels '
                                'for this one of those for RGB')

    if faults:
        more = f' and {len(faults) - 3} more' if len(faults) > 3 else ''
        raise WeightsError(f'{path} cannot be used: {"; ".join(faults[:3])}{more}')
    empty = len(report.missing) + len(report.wrong_shape)
    if strict and empty:
        raise WeightsError(f'{empty} of the {len(keys)} tensors of {type(module).__name__} were not filled, '
                           f'and nothing was loaded (strict=False loads what fits)\n{report}')
    if strict and report.misplaced:
        raise WeightsError(f'{path} has {len(report.misplaced)} tensors for which {type(module).__name__} has no '
                           'place, in parts that it has, and nothing was loaded (strict=False loads what fits)\n'
                           f'{report}')
    return report, values
