"""Weights as a safetensors file that says what they are: tensors, and facts of the network in the file's metadata.

The metadata of a safetensors file are text by name. ``SavedWeights.metadata`` describes the names that are used here.
"""
import ast
import json
import os
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, Optional, Union
from uuid import uuid4

import torch
from torch import Tensor

from mmlk import __version__
from mmlk._text import one_line, printable

from . import catalog
from .catalog import Entry
from .errors import WeightsError
from .fetch import cache_path, find
from .identify import identify
from .layouts import find_tensors, fit, is_whole, official_classifier
from .read import read_metadata, read_weights

SUFFIX = '.safetensors'
_TEXT_LIMIT = 1_000_000  # longest config that is parsed


@dataclass(frozen=True)
class SavedWeights:
    """A file that :func:`save` has written.

    Attributes:
        path: The file.
        tensors: Number of tensors.
        format: In words, which format the source had and what was done.
        metadata: The file's metadata. ``mmlk`` is the version that wrote it, ``arch`` the architecture in words,
            ``holds`` 'whole model' or 'backbone', ``licence`` and ``source`` text, ``record`` the name of the catalogue
            from which the weights come, and ``channels`` 'RGB' or 'BGR'. These are JSON: ``backbone``, the settings of
            the backbone in the config of the run; ``classes``, the names of the classes; ``mean`` and ``std`` of the
            pixels of each channel, in the range 0 to 255, in the order of ``channels``. What is not known is left out.
        averaged: Whether the checkpoint had weights averaged by a hook, which were saved.
    """
    path: str
    tensors: int
    format: str
    metadata: Dict[str, str] = field(default_factory=dict)
    averaged: bool = False

    def __str__(self) -> str:
        lines = ['saved are the averaged weights, which an EMAHook left in the checkpoint'] * self.averaged
        lines += [f'{name:<9} {shortened(value)}' for name, value in self.metadata.items()]
        lacking = [name for name in ('licence', 'source') if name not in self.metadata]
        if lacking:
            lines.append(f'not known: {" and ".join(lacking)}; --licence and --source write them down')
        return '\n'.join([*map(one_line, lines), f'wrote {self.path}: {self.tensors} tensors, from {self.format}'])


def shortened(text: str, most: int = 200) -> str:
    """Returns the beginning of a long text."""
    return text if len(text) <= most else f'{text[:most]}... ({len(text):,} characters)'


def save(checkpoint: Union[str, Path], out: Union[str, Path], backbone_only: bool = False, licence: str = '',
         source: str = '', official: bool = False) -> SavedWeights:
    """Writes weights as a safetensors file with metadata. :func:`mmlk.weights.load` reads it as it reads the source.

    If the checkpoint has averaged weights, those are saved that :func:`mmlk.weights.load` would load. The file is
    complete or not there: it is written beside its place and renamed. An existing file is replaced.

    Args:
        checkpoint: A source as :func:`mmlk.weights.load` takes it: of a training, a backbone, a published file.
        out: The file to write; its name ends in ``.safetensors``.
        backbone_only: Whether only the backbone of a whole model is saved, with the names of mmlk. A file without other
            parts of a model is saved as it is.
        licence: Licence of the weights, if no record has it.
        source: Where the weights come from, in words, if no record has it.
        official: Whether a whole classifier is saved with the names of the official files, which the official code
            and, for ConvNeXt, timm read: no ``backbone.``, and a norm ``norm`` and a linear layer ``head`` (``linear``
            in RepVGG) after the backbone.

    Returns:
        What was written.

    Raises:
        WeightsError: The checkpoint cannot be found or read; a tensor cannot be stored; ``licence`` or ``source``
            contradicts the record or the file; ``official`` is asked of a file that is not a classifier of
            :mod:`mmlk.classification`; or ``out`` cannot be written, or is the checkpoint itself.
    """
    target = Path(out).expanduser()
    if target.suffix != SUFFIX:
        raise WeightsError(f'the name of {target} must end in {SUFFIX}')
    if target.is_dir():
        raise WeightsError(f'{target} is a folder')
    path = find(checkpoint)
    if target.exists() and target.samefile(path):
        raise WeightsError(f'{target} is the checkpoint itself; write to another name')
    payload = read_weights(path)
    layout = find_tensors(payload, path)
    if backbone_only:
        layout = fit(layout)
    whole, native = is_whole(layout.tensors), fit(layout).tensors
    if official:
        layout = official_classifier(layout, path)
    facts = {'mmlk': __version__, 'format': 'pt', **_facts(path, payload, native, whole)}
    for name, given in (('licence', licence), ('source', source)):
        known = facts.get(name, '')
        if given and is_stated(known) and one_line(given) != known:
            raise WeightsError(f'the {name} of {path} is known: {known!r}, not {given!r}; it is not changed')
        if given:
            facts[name] = given
    metadata = {name: one_line(value) if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}
    _write(target, {name: _plain(name, value, path) for name, value in layout.tensors.items()}, metadata)
    return SavedWeights(str(target), len(layout.tensors), layout.format, metadata,
                        'ema_state_dict' in payload and 'state_dict' in payload)


def is_stated(licence: str) -> bool:
    """Returns whether the licence or the source in a record is one: not empty, nor 'not stated' or 'none ...'."""
    return bool(licence) and not licence.lower().startswith(('not stated', 'none'))


def _plain(name: str, value: Tensor, path: Path) -> Tensor:
    """Returns a copy with memory of its own, which no other tensor shares, in the usual order."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise WeightsError(f'{path}: {name} is sparse, quantized or without data, which safetensors does not store')
    return value.detach().clone(memory_format=torch.contiguous_format)


def _write(target: Path, tensors: Dict[str, Tensor], metadata: Dict[str, str]) -> None:
    from safetensors.torch import save_file
    if '__metadata__' in tensors:
        raise WeightsError('a tensor is named __metadata__, which safetensors keeps for itself')
    with replacing(target) as temporary:
        save_file(tensors, str(temporary), metadata)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A context manager that writes a file atomically.

    It yields a temporary file in the same folder, which no other process uses, for the caller to write to. On exit that
    file is flushed to the disk and renamed to ``target``.

    Raises:
        WeightsError: The file could not be written. The temporary file is removed, an older ``target`` is unchanged.
    """
    temporary = target.parent / f'.{uuid4().hex}.part'
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask has it; safetensors writes files that only their owner can read
        yield temporary
        temporary.chmod(mode)
        with temporary.open('r+b') as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except WeightsError:
        raise
    except Exception as error:  # of the disk, and of safetensors
        raise WeightsError(f'{target} cannot be written ({type(error).__name__}: {error})') from error
    finally:
        if temporary.exists():
            temporary.unlink()


def _facts(path: Path, payload: Mapping[str, Any], tensors: Mapping[str, Tensor], whole: bool) -> Dict[str, Any]:
    """Returns what is known of the weights, by the file's metadata, the run, the tensors and the catalogue."""
    earlier = read_metadata(path) or {}
    facts: Dict[str, Any] = {}
    if 'mmlk' in earlier:  # saved here before
        facts.update((name, value) for name, value in earlier.items() if name not in ('mmlk', 'format'))
    meta = payload.get('meta')
    if isinstance(meta, Mapping):
        facts.update(_of_run(meta))
    arch = identify(tensors)
    if arch:
        facts['arch'] = arch
    entry = _entry(path)
    if entry:
        facts.update(arch=facts.get('arch') or entry.arch, record=entry.name, mean=list(entry.mean),
                     std=list(entry.std), channels=entry.channels, licence=entry.licence, source=entry.source)
    facts['holds'] = 'whole model' if whole else 'backbone'
    if not whole:
        facts.pop('classes', None)  # of a head that is not in the file
    order = ('arch', 'backbone', 'holds', 'classes', 'mean', 'std', 'channels', 'licence', 'source', 'record')
    return {name: facts[name] for name in order if facts.get(name)}


def _entry(path: Path) -> Optional[Entry]:
    """Returns the entry of the catalogue whose file in the cache this is."""
    entry = catalog.CATALOG.get(path.stem)
    there = entry is not None and cache_path(entry).exists() and cache_path(entry).samefile(path)
    return entry if there else None


def _of_run(meta: Mapping[str, Any]) -> Dict[str, Any]:
    """Returns what the ``meta`` of a checkpoint of mmengine or mmcv says of the network and its data."""
    facts: Dict[str, Any] = {}
    dataset = meta.get('dataset_meta')
    classes = dataset.get('classes') if isinstance(dataset, Mapping) else meta.get('CLASSES')
    if isinstance(classes, (list, tuple)) and classes and all(isinstance(name, str) for name in classes):
        facts['classes'] = [printable(name) for name in classes]
    config = meta.get('cfg') or meta.get('config')
    model = settings(config, 'model') if isinstance(config, str) else None
    if not isinstance(model, dict):
        return facts
    backbone, preprocessor = model.get('backbone'), model.get('data_preprocessor')
    if isinstance(backbone, dict) and 'type' in backbone:
        own = {key: value for key, value in backbone.items() if key not in ('init_cfg', 'pretrained')}
        arch = backbone.get('arch')
        try:
            json.dumps(own)
            facts['backbone'] = own
        except (RecursionError, TypeError, ValueError):  # it holds what JSON does not
            pass
        facts['arch'] = f"{backbone['type']}" + (f' {arch}' if isinstance(arch, str) else '')
    if isinstance(preprocessor, dict) and _numbers(preprocessor.get('mean')) and _numbers(preprocessor.get('std')):
        facts.update(mean=list(preprocessor['mean']), std=list(preprocessor['std']))
        if len(preprocessor['mean']) == 3:  # mmcv reads images as BGR
            converted = preprocessor.get('bgr_to_rgb') or preprocessor.get('to_rgb')
            facts['channels'] = 'RGB' if converted else 'BGR'
    return facts


def _numbers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(x, (int, float)) for x in value)


def settings(text: str, name: str) -> Any:
    """Returns the value that a config's text gives to a name, without executing the text.

    Only literals and ``dict(...)`` are understood, which is what mmengine and mmcv write into checkpoints.

    Returns:
        The value, with tuples as lists; None if the text has no such name, or another form.
    """
    if len(text) > _TEXT_LIMIT:
        return None
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and [getattr(t, 'id', None) for t in statement.targets] == [name]:
                return _literal(statement.value)
    except (MemoryError, RecursionError, SyntaxError, TypeError, ValueError):
        return None
    return None


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args:
        if not all(keyword.arg for keyword in node.keywords):  # **settings
            raise ValueError('not a literal')
        return {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg}
    if isinstance(node, ast.Dict):
        return {str(ast.literal_eval(key)): _literal(value) for key, value in zip(node.keys, node.values) if key}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_literal(element) for element in node.elts]
    return ast.literal_eval(node)
