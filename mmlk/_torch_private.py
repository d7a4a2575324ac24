"""Private names of Python and PyTorch that mmlk uses, each with a fallback for versions that do not have them.

``mmlk.ops`` and ``mmlk.reparam`` do not use this module.
"""
import atexit
import logging
import multiprocessing
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Iterator, List, Set

from torch import nn, serialization

#: The base class of all BatchNorm layers of PyTorch, including SyncBatchNorm.
BatchNorm = nn.BatchNorm2d.__base__

#: The base class of all InstanceNorm layers of PyTorch.
InstanceNorm = nn.InstanceNorm2d.__base__

_REFUSAL = re.compile(r'GLOBAL (\S+) (?:was not an allowed|whose module)')  # part of the message of torch.load


def dispatch_mode() -> type:
    """Returns ``TorchDispatchMode``, the base class of modes that intercept every operator of PyTorch.

    PyTorch documents it in a private module. If there is no such module, the class is found as the base class of
    PyTorch's FLOP counter.
    """
    try:
        from torch.utils._python_dispatch import TorchDispatchMode
        return TorchDispatchMode
    except ImportError:
        from torch.utils import flop_counter
        return flop_counter.TorchDispatchMode


def run_exit_handlers() -> None:
    """Calls the functions that are registered with ``atexit``, for a process that will end by ``os._exit``.

    If Python does not have the private function for it, closes the log files and ends the worker processes instead.
    """
    run = getattr(atexit, '_run_exitfuncs', None)
    if run is not None:
        run()
        return
    logging.shutdown()
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join()


def refused_types(path: Path, message: str) -> List[str]:
    """Returns the names of the types because of which ``torch.load(..., weights_only=True)`` has refused a file.

    The list of safe globals must be the same as when the file was loaded.

    Args:
        path: A file of ``torch.save``, in the zip or the older format.
        message: The message of the ``UnpicklingError``.

    Returns:
        The sorted names, for example 'argparse.Namespace'; empty if the file was refused for another reason.
    """
    match = _REFUSAL.search(message)
    if match is None:
        # another error, or a message in other words: return names that PyTorch does not know
        return sorted(_unknown_names(path))
    first = match.group(1) if '.' in match.group(1) else f'builtins.{match.group(1)}'
    try:
        names = serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # torch < 2.6, or a file in the older format: only the first name, which is in the message
        names = []
    return sorted({first, *names})


def _unknown_names(path: Path) -> Set[str]:
    """Returns the names in a file's pickles that are neither PyTorch's own types nor on the list of safe globals."""
    allowed = {entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'
               for entry in serialization.get_safe_globals()}
    names = {re.sub(r'^__builtin__\.', 'builtins.', name) for name in _names_in(path)}
    return {name for name in names - allowed
            if not name.startswith(('torch.', 'collections.OrderedDict', 'builtins.set', 'builtins.bytearray'))}


def _names_in(path: Path) -> Iterator[str]:
    """Yields all names that the pickles of a file refer to, without executing anything."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith('/data.pkl'):
                    with archive.open(entry) as file:
                        yield from _names_of_pickle(file)
        return
    with path.open('rb') as file:
        for _ in range(5):  # the older format has five pickles before the data of the tensors
            yield from _names_of_pickle(file)


def _names_of_pickle(file: IO[bytes]) -> Iterator[str]:
    """Yields the names that one pickle refers to, up to the first error."""
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == 'GLOBAL':
                yield argument.replace(' ', '.')
    except Exception:  # the file is damaged
        return
