"""Put torchvision's kernels in the place of mmcv's compiled operators in this environment.

    python -m mmlk._mmcv_file

writes ``mmcv/_ext.py``, a file of a few lines that imports :mod:`mmlk._mmcv_ext`. Python prefers a compiled ``_ext`` in
the same folder, so the file gives way to one. Needs the standard library alone.
"""
import base64
import hashlib
import importlib.util
from pathlib import Path
from typing import Optional

FILE = '''\
"""Stands for mmcv's compiled operators, with torchvision's kernels: see mmlk/_mmcv_ext.py.

Written by mmlk (python -m mmlk._mmcv_file), not a part of mmcv. A compiled _ext in this folder is preferred to it.
"""
try:
    from mmlk._mmcv_ext import *  # noqa: F401,F403
    from mmlk._mmcv_ext import __getattr__  # noqa: F401
except ModuleNotFoundError as error:
    if not str(error.name).startswith('mmlk'):
        raise
    raise ModuleNotFoundError(
        "No module named 'mmcv._ext': mmcv has no compiled operators here, and mmlk, which had put torchvision's in "
        'their place, is not installed any more', name='mmcv._ext') from None
'''


def write(package: Optional[Path] = None) -> Path:
    """Write ``_ext.py`` into mmcv's package and list it as a file of the mmcv that is installed there.

    So ``pip uninstall`` of mmcv removes the file too. mmcv is not imported.

    Args:
        package: mmcv's folder; by default that of the mmcv that this Python imports.

    Returns:
        The file's path.

    Raises:
        ModuleNotFoundError: there is no mmcv.
    """
    if package is None:
        spec = importlib.util.find_spec('mmcv')
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("No module named 'mmcv'", name='mmcv')
        package = Path(spec.origin).parent
    path = package / '_ext.py'
    data = FILE.encode()
    path.write_bytes(data)
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()
    for record in package.parent.glob('*.dist-info/RECORD'):
        rows = record.read_text(encoding='utf-8').splitlines()
        if any(row.startswith('mmcv/__init__.py,') for row in rows):
            rows = [row for row in rows if not row.startswith('mmcv/_ext.py,')]
            rows.append(f'mmcv/_ext.py,sha256={digest},{len(data)}')
            record.write_text('\n'.join(rows) + '\n', encoding='utf-8')
    return path


if __name__ == '__main__':
    print(write())
