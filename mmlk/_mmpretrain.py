"""Imports mmpretrain, an optional package, beside today's packages, and says how to install it where that fails.

mmpretrain imports its models of images and text if transformers 4.28 or newer is installed. They use tokenizers that
transformers 5 no longer has, so that no part of mmpretrain could be imported beside it. With mmlk, these models are
left out then, as they are without transformers, and the classifiers work.
"""
import contextlib
import importlib
import importlib.metadata
import io
from typing import Any

from mmlk._after_import import after_import


def _leave_out_multimodal(dependency: Any) -> None:
    if dependency.WITH_MULTIMODAL and int(importlib.metadata.version('transformers').partition('.')[0]) >= 5:
        dependency.WITH_MULTIMODAL = False


def repair() -> None:
    """Lets mmpretrain be imported beside transformers 5 in this process. Nothing is imported here."""
    after_import('mmpretrain.utils.dependency', _leave_out_multimodal)


def require_mmpretrain() -> None:
    """Imports mmpretrain, of either distribution, without what it prints of packages that are not there.

    Raises:
        ImportError: It cannot be imported. The message gives the reason and the command that installs it.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            importlib.import_module('mmpretrain.datasets')
    except Exception as error:  # it asserts versions of mmcv and mmengine, and imports much else
        raise ImportError(
            f'a classifier needs mmpretrain, but importing it failed with {type(error).__name__}: {error}\n'
            'Install it with `bash tools/install.sh --with pretrain`, or `pip install onedl-mmpretrain==1.3.6`; beside '
            'the classic packages, `pip install mmpretrain==1.2.0`.') from error
