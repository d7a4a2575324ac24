"""Writing a file so that it is whole or not there."""
import os
import os.path as osp
import secrets
from contextlib import contextmanager
from typing import Iterator


@contextmanager
def whole(path: str) -> Iterator[str]:
    """A context manager that yields the name of a temporary file, which becomes ``path`` at the end.

    The temporary file is in the folder of ``path`` and has its suffix. Its name is new in each call, so that writers of
    one path do not write to one file: the last of them wins. If the body raises an error, also ``KeyboardInterrupt``,
    the temporary file is removed, and ``path`` stays as it is.

    Args:
        path: The file to write. Missing folders are created.
    """
    stem, suffix = osp.splitext(path)
    temporary = f'{stem}.{secrets.token_hex(8)}.part{suffix}'
    os.makedirs(osp.dirname(path) or '.', exist_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        if osp.exists(temporary):
            os.remove(temporary)
