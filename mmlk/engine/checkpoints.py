"""Checkpoints that mmengine's runner and initializers load, through the allow-list of :mod:`mmlk.weights.read`.

mmengine by itself unpickles a file freely, code and all, as soon as the file holds a type that its list lacks.
"""
from typing import Any

from mmengine.runner import CheckpointLoader

from mmlk._checkpoints import mmengine_types
from mmlk.weights.fetch import find
from mmlk.weights.read import read


def load(filename: str, map_location: Any = None) -> dict:
    """A checkpoint as mmengine's loaders give it, on the CPU; the runner moves what it takes.

    Raises:
        WeightsError: It cannot be had or read, or holds a type that is not allowed.
    """
    return read(find(filename), built=mmengine_types())


def guard() -> None:
    """Have mmengine load files and URLs with :func:`load`, in this process."""
    for prefix in ('', 'http://', 'https://'):
        CheckpointLoader.register_scheme(prefix, load, force=True)
