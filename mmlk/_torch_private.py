"""What mmlk needs of Python and PyTorch that has no public name, each with a way to do without it.

``mmlk.ops`` and ``mmlk.reparam`` use nothing of this module.
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

#: The class that all BatchNorm layers of PyTorch inherit from, SyncBatchNorm included.
BatchNorm = nn.BatchNorm2d.__base__

_REFUSAL = re.compile(r'GLOBAL (\S+) (?:was not an allowed|whose module)')  # in the error of torch.load


def dispatch_mode() -> type:
    """``TorchDispatchMode``, the base class of what sees every operator that PyTorch runs.

    PyTorch documents it under a private module. If the module is not there, PyTorch's own FLOP counter tells where the
    class is.
    """
    try:
        from torch.utils._python_dispatch import TorchDispatchMode
        return TorchDispatchMode
    except ImportError:
        from torch.utils import flop_counter
        return flop_counter.TorchDispatchMode


def run_exit_handlers() -> None:
    """Do what Python does at the end of a process, for one that ends by ``os._exit``: call the functions given to
    ``atexit``. Without Python's private function, close the log files and end the worker processes."""
    run = getattr(atexit, '_run_exitfuncs', None)
    if run is not None:
        run()
        return
    logging.shutdown()
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join()


def refused_types(path: Path, message: str) -> List[str]:
    """Names of the types for which ``torch.load(..., weights_only=True)`` refused a file.

    To be called under the same list of safe globals as the loading.

    Args:
        path: A file of ``torch.save``, of either format.
        message: That of the ``UnpicklingError``.

    Returns:
        The names, sorted, such as 'argparse.Namespace'; none if something else stopped the loading.
    """
    match = _REFUSAL.search(message)
    if match is None:
        # another fault, or an error in other words: names that no list of PyTorch's own has
        return sorted(_unknown_names(path))
    first = match.group(1) if '.' in match.group(1) else f'builtins.{match.group(1)}'
    try:
        names = serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # torch < 2.6, or a file of the older format: the message names the first
        names = []
    return sorted({first, *names})


def _unknown_names(path: Path) -> Set[str]:
    """Names in a file's pickles, without those of PyTorch's own types and of the current list of safe globals."""
    allowed = {entry[1] if isinstance(entry, tuple) else f'{entry.__module__}.{entry.__qualname__}'
               for entry in serialization.get_safe_globals()}
    names = {re.sub(r'^__builtin__\.', 'builtins.', name) for name in _names_in(path)}
    return {name for name in names - allowed
            if not name.startswith(('torch.', 'collections.OrderedDict', 'builtins.set', 'builtins.bytearray'))}


def _names_in(path: Path) -> Iterator[str]:
    """All names that the pickles of a file ask for. Nothing is run."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                if entry.endswith('/data.pkl'):
                    with archive.open(entry) as file:
                        yield from _names_of_pickle(file)
        return
    with path.open('rb') as file:
        for _ in range(5):  # so many pickles has the older format, before the numbers
            yield from _names_of_pickle(file)


def _names_of_pickle(file: IO[bytes]) -> Iterator[str]:
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == 'GLOBAL':
                yield argument.replace(' ', '.')
    except Exception:  # the file is damaged
        return
