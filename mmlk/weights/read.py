"""Reads files of weights safely: the result contains only dicts, lists, numbers, strings and tensors.

Loading a pickle can execute code. torch's restricted unpickler (``weights_only=True``) calls only types of an
allow-list. Here that list consists of stand-in classes for the types that training scripts save together with their
weights (arguments, logs, numpy numbers). The real types are not called and need not be installed.
"""
import mmap
import pickle
import threading
import zipfile
from collections import OrderedDict
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from torch import serialization

from mmlk._torch_private import refused_types

from .errors import WeightsError

Allowed = Union[Callable[..., Any], Tuple[Callable[..., Any], str]]


class StandIn:
    """Replaces an object in a pickle. Keeps the object's state as plain data and has no behaviour."""

    state: Any = None

    def __new__(cls, *args: Any) -> 'StandIn':
        return super().__new__(cls)

    def __init__(self, *args: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state


class DictStandIn:
    """Replaces a dict subclass in a pickle with an ``OrderedDict``, because the unpickler fills only standard dicts."""

    def __new__(cls, *args: Any) -> 'OrderedDict[Any, Any]':  # type: ignore[misc]  # a dict in its place
        return OrderedDict(args[0]) if args and isinstance(args[0], dict) else OrderedDict()


def _stand_ins(base: type, *names: str) -> List[type]:
    # torch looks a global up by the module and the name that the allowed object reports
    split = (name.rpartition('.') for name in names)
    return [type(name, (base, ), {'__module__': module}) for module, _, name in split]


# Types that published files contain besides tensors. Calling a stand-in only creates an empty object or an ordered
# dict, so none of them can be misused to execute code.
STAND_INS: List[Allowed] = [
    # the command line of a training script: the official RepLKNet, ConvNeXt and DeiT files
    *_stand_ins(StandIn, 'argparse.Namespace'),
    # the message hub of an mmengine checkpoint: logs in numpy arrays, and methods of the log class, which pickle stores
    # as calls of getattr. The real getattr would give a pickle access to any attribute of any allowed object.
    *_stand_ins(StandIn, 'mmengine.logging.history_buffer.HistoryBuffer', 'builtins.getattr',
                'builtins.slice'),
    # numpy numbers and arrays (accuracies, palettes), under their names in numpy 1 and numpy 2. The real dtype would
    # take its memory layout from the file.
    *_stand_ins(StandIn, 'numpy.dtype', 'numpy.ndarray', 'builtins.bytes',
                'numpy.core.multiarray.scalar', 'numpy._core.multiarray.scalar',
                'numpy.core.multiarray._reconstruct', 'numpy._core.multiarray._reconstruct'),
    # whole configs: mmengine, mmcv, addict, and yacs (official Swin files)
    *_stand_ins(DictStandIn, 'mmengine.config.config.ConfigDict', 'mmcv.utils.config.ConfigDict',
                'addict.addict.Dict', 'yacs.config.CfgNode'),
]

# If a pickle contains a bytearray, torch allocates as many bytes as the pickle says: a file of a hundred bytes could
# fill the memory. No file of weights needs one.
_MODULE, _NAME = b'builtin', b'bytearray\n'

_lock = threading.RLock()


@contextmanager
def _allow_only(allowed: List[Allowed]) -> Iterator[None]:
    """A context manager that replaces torch's allow-list, which is global to the process, and restores it on exit."""
    with _lock:
        others = serialization.get_safe_globals()
        serialization.clear_safe_globals()
        serialization.add_safe_globals(allowed)
        try:
            yield
        finally:
            serialization.clear_safe_globals()
            serialization.add_safe_globals(others)


def _import(name: str, path: Path) -> Allowed:
    """Imports the object that a pickle names, for files that are read with ``allow_pickle=True``."""
    parts = name.split('.')
    for cut in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module('.'.join(parts[:cut]))
            for part in parts[cut:]:
                found = getattr(found, part)
        except (ImportError, AttributeError):
            continue
        if isinstance(found, type) and issubclass(found, dict):
            return _stand_ins(DictStandIn, name)[0]
        same = f"{found.__module__}.{getattr(found, '__qualname__', '')}" == name
        return found if same else (found, name)
    raise WeightsError(f'{path} holds a {name}, which cannot be imported; install the package that has it')


@lru_cache(maxsize=8)
def _check_archive(path: Path, size: int, changed: int) -> None:
    """Checks that a zip file is intact and was written by ``torch.save``.

    torch maps the file into memory and uses the bytes of an entry as numbers, even if they are compressed or damaged.
    The result is cached for each path, file size and modification time.

    Raises:
        WeightsError: The file is truncated or damaged, has compressed entries, or is a TorchScript program.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.filename.endswith('/constants.pkl') for entry in entries):
                raise WeightsError(f'{path} is a TorchScript program, not weights; save its state_dict()')
            packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
            if packed:
                raise WeightsError(f'{path} holds compressed entries ({packed[0]}), which torch.save never writes; '
                                   'repack it without compression, or fetch it again')
            told = sum(entry.file_size for entry in entries)
            if told > size:
                raise WeightsError(f'{path} is damaged: its entries are said to have {told:,} bytes, it has {size:,}')
            for entry in entries:
                if entry.CRC:  # 0: the file has no checksums, see torch.serialization.set_crc32_options
                    with archive.open(entry) as file:
                        while file.read(1 << 20):  # zipfile compares the checksum at the end of the entry
                            pass
    except WeightsError:
        raise
    except Exception as error:  # zipfile raises many types of errors for a damaged file
        raise WeightsError(f'{path} cannot be read: truncated or damaged ({error}). Fetch it again') from error


def _check_fill(path: Path) -> None:
    """Raises WeightsError if the file contains a bytearray, for which torch allocates any amount of memory."""
    with path.open('rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(_NAME)
        while place >= 0:
            if _MODULE in content[max(0, place - 20):place]:
                raise WeightsError(f'{path} was refused: it holds a bytearray, which no weights file needs')
            place = content.find(_NAME, place + 1)


def _name(allowed: Allowed) -> str:
    return allowed[1] if isinstance(allowed, tuple) else f'{allowed.__module__}.{allowed.__qualname__}'


def _read_pickle(path: Path, allow_pickle: bool, built: Sequence[Tuple[Callable[..., Any], str]]) -> Any:
    _check_fill(path)
    names_built = {name for _, name in built}
    allowed: List[Allowed] = [stand_in for stand_in in STAND_INS if _name(stand_in) not in names_built]
    allowed += built
    seen: List[str] = []
    while True:
        with _allow_only(allowed):
            try:
                # memory-mapped, so that the optimizer's state in a training checkpoint is not read from the disk
                return torch.load(str(path), map_location='cpu', weights_only=True,
                                  mmap=zipfile.is_zipfile(path))
            except pickle.UnpicklingError as error:
                message = str(error)
                refused = refused_types(path, message)
            except Exception as error:
                raise WeightsError(f'{path} cannot be read: truncated, damaged, or not written by torch.save '
                                   f'({type(error).__name__}: {_last_line(error)})') from error
        names = [name for name in refused if name not in seen]
        if not names:
            raise WeightsError(f'{path} is not a plain weights file, or is damaged ({_last_line(message)})')
        blocked = [name for name in names if name.split('.')[0] in ('os', 'posix', 'nt', 'sys')]
        if blocked:
            raise WeightsError(f'{path} was refused: reading it would call {", ".join(blocked)}, which no '
                               'weights file needs. Do not trust it')
        if not allow_pickle:
            raise WeightsError(
                f'{path} was refused: reading it would run code of {", ".join(names)}, which is not on the '
                'list of types that weights need (mmlk/weights/read.py). If you trust whoever made the file, '
                'say allow_pickle=True; better, save its tensors alone: torch.save(model.state_dict(), ...)')
        seen += names
        allowed += [_import(name, path) for name in names]


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if 'WeightsUnpickler error' in line]
    return (told or lines or [''])[-1][:300]


def _is_safetensors(head: bytes) -> bool:
    """Returns whether a file that begins with these bytes is meant as a safetensors file."""
    return head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 100_000_000


def read_metadata(path: Union[str, Path]) -> Optional[Dict[str, str]]:
    """Returns the metadata in the header of a safetensors file; None for a file of another format.

    Raises:
        WeightsError: The file is missing or damaged.
    """
    try:
        with open(path, 'rb') as file:
            if not _is_safetensors(file.read(9)):
                return None
        from safetensors import safe_open
        with safe_open(str(path), 'pt') as opened:
            return dict(opened.metadata() or {})
    except Exception as error:
        raise WeightsError(f'{path} is a damaged safetensors file, or cannot be read ({error})') from error


def _read_safetensors(path: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(f'{path} is a safetensors file: `pip install safetensors` to read it') from error
    try:
        return load_file(str(path))
    except Exception as error:
        raise WeightsError(f'{path} is a damaged safetensors file ({error})') from error


def read_weights(path: Union[str, Path], allow_pickle: bool = False,
                 built: Sequence[Tuple[Callable[..., Any], str]] = ()) -> Any:
    """Reads a file of ``torch.save`` (zip format or the older one) or a safetensors file.

    Args:
        path: The file.
        allow_pickle: If True, types that are not in ``STAND_INS`` are built too, which executes their code. Use it only
            for files from people whom you trust.
        built: (callable, name in the file) pairs of types to build instead of their stand-ins.

    Returns:
        The contents of the file, with tensors on the CPU. Objects of known types are replaced with a ``StandIn`` or an
        ordered dict.

    Raises:
        WeightsError: The file is missing, empty, truncated or damaged, has another format, or contains a type that is
            not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f'{path} is a folder, not a file' if path.is_dir() else f'there is no file {path}')
    size = path.stat().st_size
    with path.open('rb') as file:
        head = file.read(512)
    if size == 0:
        raise WeightsError(f'{path} is empty (0 bytes); fetch it again')
    if head.startswith(b'version https://git-lfs'):
        raise WeightsError(f'{path} is a git-lfs pointer, not the weights; run `git lfs pull`')
    if head.lstrip().startswith(b'<'):
        raise WeightsError(f'{path} is a web page saved in place of the weights; download the file itself')
    if _is_safetensors(head):
        return _read_safetensors(path)
    if head.startswith(b'PK'):
        if not zipfile.is_zipfile(path):
            raise WeightsError(f'{path} is truncated: {size:,} bytes, and the end of the archive is missing. '
                               'Fetch it again')
        _check_archive(path, size, path.stat().st_mtime_ns)
    elif not head.startswith(b'\x80'):
        raise WeightsError(f'{path} is neither a file of torch.save nor safetensors; it begins with '
                           f'{head[:16]!r}')
    return _read_pickle(path, allow_pickle, built)
