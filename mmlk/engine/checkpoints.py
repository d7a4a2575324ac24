"""Checkpoints that mmengine's runners and initializers load, through the allow-list of :mod:`mmlk.weights.read`.

mmengine by itself unpickles a file freely, code and all, as soon as the file holds a type that its list lacks; and when
it resumes, it runs the text of a config that the file holds.
"""
import difflib
import os.path as osp
from pathlib import Path
from typing import Any, Dict

from mmengine.runner import CheckpointLoader
from mmengine.runner import checkpoint as names

from mmlk._checkpoints import mmengine_types
from mmlk.weights import WeightsError
from mmlk.weights.fetch import find
from mmlk.weights.read import read_weights


def load_checkpoint(filename: str, map_location: Any = None) -> dict:
    """A checkpoint as mmengine's loaders give it, on the CPU; the runner moves what it takes.

    Args:
        filename: A path, an http(s) URL, a name of the catalogue, or a name of mmengine's: ``torchvision://resnet50``,
            and so with ``modelzoo``, ``open-mmlab``, ``openmmlab`` and ``mmcls``.
        map_location: Has no effect.

    Raises:
        WeightsError: It cannot be had or read, or holds a type that is not allowed; or it is kept where a client of its
            own is needed, as of ``s3://``.
    """
    scheme, separator, name = str(filename).partition('://')
    if not separator or scheme.lower() in ('http', 'https') or osp.isfile(filename):
        source = filename
    else:
        source = _resolve(scheme, name)
    checkpoint = read_weights(find(source), built=mmengine_types())
    forget_program(checkpoint)
    return names._process_mmcls_checkpoint(checkpoint) if scheme == 'mmcls' else checkpoint


def _resolve(scheme: str, name: str) -> str:
    """The URL or path that one of mmengine's names stands for."""
    known: Dict[str, Any]
    if scheme in ('torchvision', 'modelzoo'):
        known = names.get_torchvision_models()
    elif scheme in ('open-mmlab', 'openmmlab'):
        known = names.get_external_models()
        name = names.get_deprecated_model_names().get(name, name)
    elif scheme == 'mmcls':
        known = names.get_mmcls_models()
    else:
        raise WeightsError(f'{scheme}://{name}: weights are not fetched over {scheme}://. Download the file, and give '
                           'its path. What can be given is a path, an http(s) URL, a name that tools/weights.py '
                           'lists, or a name after torchvision://, open-mmlab:// or mmcls://')
    source = known.get(name)
    if not source:
        near = ', '.join(difflib.get_close_matches(name, known, n=3)) or 'none'
        raise WeightsError(f'{scheme}://{name}: mmengine knows no weights of that name. Near names: {near}')
    # names of the user's own, in open_mmlab.json, may be paths in mmengine's folder
    return source if '://' in source else str(Path(names._get_mmengine_home()) / source)


def forget_program(checkpoint: Any) -> None:
    """Take the text of a config that mmcv wrote out of a checkpoint: mmengine's ``resume`` would run it, to look up how
    many GPUs the run had."""
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)


def guard() -> None:
    """Have mmengine load whatever it knows a way to load with :func:`load_checkpoint`, in this process."""
    for prefix in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(prefix, load_checkpoint, force=True)
