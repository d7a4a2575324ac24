"""Weights into a module, with a report, and an error where mmengine would only warn."""
import logging
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Dict, List, Mapping, Optional, Tuple, Union

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from .errors import WeightsError
from .fetch import find
from .identify import archs, identify, kinds
from .layouts import find_tensors, fit, is_whole, plain_names
from .read import read


@dataclass
class Report:
    """What became of every tensor of a file and of every parameter and buffer of a module.

    ``wrong_shape`` holds (key, shape in the file, shape in the module). ``left`` are keys that the module
    declares in ``optional_weights`` and the file does not hold; they keep the values they had. ``resized`` are keys of
    ``matched`` whose values had another shape, from which the module knew how to make its own.
    """
    source: str
    path: str
    format: str
    matched: List[str] = field(default_factory=list)
    missing: List[str] = field(default_factory=list)
    unexpected: List[str] = field(default_factory=list)
    wrong_shape: List[Tuple[str, Tuple[int, ...], Tuple[int, ...]]] = field(default_factory=list)
    left: List[str] = field(default_factory=list)
    resized: List[str] = field(default_factory=list)
    hints: List[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every parameter and buffer that has to be filled was filled."""
        return not self.missing and not self.wrong_shape

    def __str__(self) -> str:
        shapes = [f'{key}: {_shape(file)} in the file, {_shape(module)} in the module'
                  for key, file, module in self.wrong_shape]
        rows = [('matched', self.matched, 0), ('of them resized', self.resized, 2), ('missing', self.missing, 6),
                ('wrong shape', shapes, 6), ('left as it was', self.left, 2), ('unexpected', self.unexpected, 2)]
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


def _hints(report: Report, file: Mapping[str, Tensor], module: Mapping[str, Tensor]) -> List[str]:
    hints = []
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
    if is_whole(module) and (not is_whole(file) or len(heads) == len(report.missing) > 0):
        hints.append('the file holds a backbone but not this whole model: load it into the backbone, with '
                     "load(model.backbone, ...) or its init_cfg=dict(type='mmlk.Pretrained', ...)")
    elif not report.matched:
        hints.append(f'no name fits: the file has {", ".join(list(file)[:3])}; the module has '
                     f'{", ".join(list(module)[:3])}')
    return hints


def _other_depth(report: Report, file: Mapping[str, Tensor], module: Mapping[str, Tensor]) -> Optional[str]:
    """Why a file that fills the module is still not its own: it has more blocks, being of a deeper arch."""
    if not kinds(report.unexpected) & kinds(module):
        return None
    theirs, ours = archs(file), archs(module)
    if not theirs or not ours or theirs & ours:
        return None
    return f'the file looks like {identify(file)}, the module is {identify(module)}'


def load(module: nn.Module, source: Union[str, Path], strict: bool = True,
         allow_pickle: bool = False) -> Report:
    """Fill every parameter and buffer of a module from a file, and say what was done.

    The format is recognised: a bare state dict, one under ``state_dict``, ``model`` or ``model_ema``, an
    official training file, mmpretrain's, timm's or torchvision's, a whole mmseg or mmdet checkpoint (into a whole
    model, or its ``backbone.`` part into a backbone), safetensors. Keys that the module does not have are reported and
    else ignored, but for blocks of a deeper arch. Tensors are converted to the module's dtype and device.

    Args:
        module: A backbone, or a whole segmentor or detector.
        source: A path, an http(s) URL, or a name of :mod:`mmlk.weights.catalog`.
        strict: Raise when something was not filled (``num_batches_tracked``, and the module's
            ``optional_weights`` when the file holds none of them, may stay). When False only warn, and load
            what fits.
        allow_pickle: See :func:`mmlk.weights.read.read`.

    Returns:
        The report, also logged.

    Raises:
        WeightsError: The source cannot be found, fetched or read; with ``strict``, something was not filled;
            or the file is of a deeper arch than the module; or a tensor that would be used holds NaN, infinity, a
            negative variance or another kind of number. The module is then unchanged.
    """
    path = find(source)
    targets = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    keys = plain_names(targets)
    module_tensors = {name: targets[key] for name, key in keys.items()}
    layout = fit(find_tensors(read(path, allow_pickle), path), keys)

    report = Report(str(source), str(path), layout.format)
    values: Dict[str, Tensor] = {}
    faults: List[str] = []
    for name, target in module_tensors.items():
        value = layout.tensors.get(name)
        if value is not None and value.shape != target.shape and hasattr(module, 'resized_weight'):
            value = module.resized_weight(name, value)
            if value.shape == target.shape:
                report.resized.append(name)
        if value is None:
            if not name.endswith('num_batches_tracked'):
                report.missing.append(name)
        elif value.shape != target.shape:
            report.wrong_shape.append((name, tuple(value.shape), tuple(target.shape)))
        else:
            fault = _fault(name, value, target)
            if fault:
                faults.append(f'{name} {fault}')
            report.matched.append(name)
            values[keys[name]] = value
    report.unexpected = [name for name in layout.tensors if name not in keys] + layout.aside
    report.left, report.missing = _split_optional(report.missing, list(keys),
                                                  tuple(getattr(module, 'optional_weights', ())))
    deeper = None
    if not report.complete:
        report.hints = _hints(report, layout.tensors, module_tensors)
    else:
        deeper = _other_depth(report, layout.tensors, module_tensors)
        report.hints = [deeper] if deeper else []

    if faults:
        more = f' and {len(faults) - 3} more' if len(faults) > 3 else ''
        raise WeightsError(f'{path} cannot be used: {"; ".join(faults[:3])}{more}')
    if strict and not report.complete:
        empty = len(report.missing) + len(report.wrong_shape)
        raise WeightsError(f'{empty} of the {len(keys)} tensors of {type(module).__name__} were not filled, '
                           f'and nothing was loaded (strict=False loads what fits)\n{report}')
    if strict and deeper:
        raise WeightsError(f'{path} has blocks for which {type(module).__name__} has no place, and nothing was loaded '
                           f'(strict=False loads what fits)\n{report}')
    module.load_state_dict(values, strict=False)
    quiet = report.complete and not deeper
    print_log(str(report), logger='current', level=logging.INFO if quiet else logging.WARNING)
    return report
