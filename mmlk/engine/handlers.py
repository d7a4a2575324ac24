"""Safe handlers for data files that mmengine loads: class weights, annotations, proposals.

mmengine's own YAML handler calls any function that a tag in the file names, and loading a pickle can execute code. Here
YAML files are read as plain data, and pickles are not read.
"""
from typing import Any, NoReturn

import yaml
from mmengine.fileio import register_handler
from mmengine.fileio.handlers import PickleHandler as _PickleHandler
from mmengine.fileio.handlers import YamlHandler as _YamlHandler

from mmlk.engine.loading import DataError


class _Loader(yaml.SafeLoader):
    """A safe loader that also reads tuples, which mmengine writes."""


_Loader.add_constructor('tag:yaml.org,2002:python/tuple',
                        lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))


class YamlHandler(_YamlHandler):
    """mmengine's ``YamlHandler``, restricted to plain data."""

    def load_from_fileobj(self, file: Any, **kwargs) -> Any:
        """Returns the content of the file: dicts, lists, tuples, strings, numbers and dates.

        Raises:
            DataError: The file is not valid YAML, or contains another type.
        """
        try:
            return _Loader(file).get_single_data()
        except yaml.YAMLError as error:
            raise DataError(f'a YAML file cannot be read as plain data: {" ".join(str(error).split())}') from error


class PickleHandler(_PickleHandler):
    """mmengine's ``PickleHandler``, which can write pickles but does not read them."""

    def load_from_fileobj(self, file: Any, **kwargs) -> NoReturn:
        """Does not read the file.

        Raises:
            DataError: Always.
        """
        raise DataError('a pickle (.pkl, .pickle) is not read, because it runs the code that it holds; make it a JSON '
                        'file')


def guard() -> None:
    """Makes ``mmengine.load`` use the handlers of this module, in this process."""
    register_handler(['yaml', 'yml'])(YamlHandler)
    register_handler(['pickle', 'pkl'])(PickleHandler)
