"""Data files that mmengine reads for others (class weights, annotations, proposals): YAML runs nothing, and a pickle is
refused.

mmengine reads YAML with a loader that calls what a tag names, and a pickle is a program.
"""
from typing import Any, NoReturn

import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler as _PickleHandler
from mmengine.fileio.handlers import YamlHandler as _YamlHandler

from mmlk.engine.loading import DataError


class _Loader(yaml.SafeLoader):
    """Plain data, and tuples, which mmengine writes."""


_Loader.add_constructor('tag:yaml.org,2002:python/tuple',
                        lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))


class YamlHandler(_YamlHandler):
    """mmengine's, for plain data."""

    def load_from_fileobj(self, file: Any, **kwargs) -> Any:
        """The content, of dicts, lists, tuples, text, numbers and dates.

        Raises:
            DataError: It is no YAML, or holds another type.
        """
        try:
            return _Loader(file).get_single_data()
        except yaml.YAMLError as error:
            raise DataError(f'a YAML file cannot be read as plain data: {" ".join(str(error).split())}') from error


class PickleHandler(_PickleHandler):
    """mmengine's, which writes pickles but reads none."""

    def load_from_fileobj(self, file: Any, **kwargs) -> NoReturn:
        """Refuse it.

        Raises:
            DataError: Always.
        """
        raise DataError('a pickle (.pkl, .pickle) is not read, because it runs the code that it holds; make it a JSON '
                        'file')


def guard() -> None:
    """Have ``mmengine.load`` read by these, in this process."""
    register_handler(['yaml', 'yml'])(YamlHandler)
    register_handler(['pickle', 'pkl'])(PickleHandler)
