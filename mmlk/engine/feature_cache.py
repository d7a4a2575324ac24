"""Feature maps of a frozen network on disk, found again by the content of the image and of the network."""
import hashlib
import logging
from pathlib import Path
from typing import Iterable, List, Optional, Sequence, Tuple

import torch
from filelock import FileLock
from mmengine.logging import print_log
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from mmlk._files import whole
from mmlk._text import readable_bytes


def digest(*parts: object) -> str:
    """Returns a hexadecimal digest of tensors, and of the text of everything else, in their order.

    Of a tensor it covers dtype, shape and every value, wherever it lies and in whichever memory format.
    """
    hasher = hashlib.blake2b(digest_size=32)
    for part in parts:
        if isinstance(part, Tensor):
            told = f'tensor {part.dtype} {tuple(part.shape)}'
            content = part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
        else:
            told, content = 'text', str(part).encode()
        hasher.update(f'{told} {len(content)}\n'.encode())  # lengths keep two parts from being taken for two others
        hasher.update(content)
    return hasher.hexdigest()


def digest_network(network: nn.Module, *context: object) -> str:
    """Returns a digest of a network: its structure, all parameters and buffers, and further text.

    Args:
        network: The network.
        context: What else decides on its output, such as its settings and versions of packages.
    """
    tensors: Iterable[Tuple[str, Tensor]] = (*network.named_parameters(), *network.named_buffers())
    return digest(repr(network), *context, *(part for named in tensors for part in named))


class FeatureCache:
    """Files of feature maps in a folder, one for each view of an image.

    Several processes may use a folder at the same time. A file is whole or not there. Together the files are at most
    ``limit`` bytes: once a file would exceed it, a warning is logged and no more are written by this process. Nothing
    is deleted, because a cache from which the oldest view is removed has none of them when a training comes back to it.

    Args:
        folder: Where the files are. It is created.
        limit: Maximum of the bytes of all files in it.

    Raises:
        ValueError: The folder cannot be written.
    """

    def __init__(self, folder: Path, limit: int):
        self.folder, self.limit = folder, limit
        self.hits = self.misses = 0
        self._full = False
        self._total = folder / 'total'
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._count(sum(file.stat().st_size for file in folder.glob('*/*.safetensors')))
        except OSError as error:
            raise ValueError(f'the cache of features cannot be written to {folder}: {error}') from error

    def _lock(self) -> FileLock:
        return FileLock(str(self.folder / 'lock'))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f'{key}.safetensors'

    def find(self, key: str) -> Optional[List[Tensor]]:
        """Returns the maps that were added under a key, on the CPU; None if there are none, or the file is damaged."""
        try:
            with safe_open(str(self._path(key)), 'pt') as file:
                if (file.metadata() or {}).get('key') == key:
                    maps = [file.get_tensor(str(index)) for index in range(len(file.keys()))]
                    self.hits += 1
                    return maps
        except FileNotFoundError:
            pass
        except (OSError, SafetensorError):
            self._path(key).unlink(missing_ok=True)
        self.misses += 1
        return None

    def add(self, key: str, maps: Sequence[Tensor]) -> None:
        """Writes maps under a key, unless the cache is full or has the key."""
        if self._full or self._path(key).exists():
            return
        tensors = {str(index): value.detach().cpu().contiguous() for index, value in enumerate(maps)}
        try:
            fault = self._write(self._path(key), save(tensors, metadata=dict(key=key)))
        except OSError as error:
            fault = str(error)
        if fault:
            self._full = True
            print_log(f'the cache of features in {self.folder} takes no more: {fault}. Views that are not in it are '
                      'computed each time. Raise its limit, or delete the folder, which may hold features of other '
                      'networks', logger='current', level=logging.WARNING)

    def _write(self, path: Path, content: bytes) -> str:
        """Writes a file if there is room, else returns why there is none. Processes write one after the other."""
        with self._lock():
            total = int(self._total.read_text()) + len(content)
            if total > self.limit:
                return f'it may hold {readable_bytes(self.limit)}'
            with whole(str(path)) as temporary:
                Path(temporary).write_bytes(content)
            self._count(total)
        return ''

    def _count(self, total: int) -> None:
        with whole(str(self._total)) as temporary:
            Path(temporary).write_text(str(total))
