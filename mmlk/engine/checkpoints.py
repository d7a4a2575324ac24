"""Safe loading of the checkpoints that mmengine's runners and initializers load.

Files are read by :mod:`mmlk.weights.read`, which builds only types of an allow-list. mmengine alone unpickles a file
without any restriction, and can thereby execute code, if the file contains a type that is not in its own list. When it
resumes, it also executes the text of a config that is stored in the checkpoint.
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
    """Loads a checkpoint onto the CPU. Replaces mmengine's loaders, and has their arguments.

    Args:
        filename: A path, an http(s) URL, a name of the catalogue, ``hf-hub:owner/name/file``, or a name of mmengine
            such as ``torchvision://resnet50``, with the prefixes ``torchvision``, ``modelzoo``, ``open-mmlab``,
            ``openmmlab`` or ``mmcls``.
        map_location: Has no effect. The runner moves the tensors that it uses.

    Returns:
        The contents of the file.

    Raises:
        WeightsError: The file cannot be found, downloaded or read, or contains a type that is not allowed; or its
            address needs a client of its own, such as ``s3://``.
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
    """Returns the URL or the path of weights that mmengine knows by a name.

    Raises:
        WeightsError: mmengine has no such name, or the scheme is not supported.
    """
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
                           'lists, hf-hub:owner/name/file, or a name after torchvision://, open-mmlab:// or mmcls://')
    source = known.get(name)
    if not source:
        near = ', '.join(difflib.get_close_matches(name, known, n=3)) or 'none'
        raise WeightsError(f'{scheme}://{name}: mmengine knows no weights of that name. Near names: {near}')
    # names that users define in open_mmlab.json may be paths relative to mmengine's folder
    return source if '://' in source else str(Path(names._get_mmengine_home()) / source)


def forget_program(checkpoint: Any) -> None:
    """Removes the text of a config, which mmcv writes, from a checkpoint, in-place.

    mmengine's ``resume`` would execute it, to find out the number of GPUs of the run.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)


def guard() -> None:
    """Makes mmengine load checkpoints of every URL scheme with :func:`load_checkpoint`, in this process."""
    for prefix in list(CheckpointLoader._schemes):
        CheckpointLoader.register_scheme(prefix, load_checkpoint, force=True)
