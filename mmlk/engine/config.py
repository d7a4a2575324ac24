"""Reads config files. A config is a Python program."""
import os.path as osp
import traceback

from mmengine.config import Config

from mmlk._types import with_paths

DATA_FORMATS = ('.json', '.yaml', '.yml')


class ConfigError(ValueError):
    """A config cannot be read. The message names the file and, if known, the line."""


def read_config_file(path: str) -> Config:
    """Reads a config from a Python file.

    mmengine also reads JSON and YAML. Files in these formats look like harmless data, but a config in any format
    decides which functions of the toolboxes are called with which arguments, so it can execute any code. Therefore only
    Python files, which are known to be programs, are accepted.

    Returns:
        The config.

    Raises:
        ConfigError: The file is not a Python file, or cannot be read.
    """
    suffix = osp.splitext(path)[1].lower()
    if suffix in DATA_FORMATS:
        raise ConfigError(
            f'{path}: a config must be a Python file. One in {suffix[1:].upper()} is not read, because it looks like '
            'data and yet can run any code, as every config can. If you trust whoever made it, write it in Python: '
            f"mmengine.Config.fromfile({path!r}).dump('{osp.splitext(osp.basename(path))[0]}.py')")
    if suffix != '.py':
        raise ConfigError(f'{path} is no config: its name must end in .py')
    try:
        _check_bases(path)
        return Config.fromfile(path)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a program may raise any exception
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if osp.abspath(frame.filename) == osp.abspath(path)]
        place = f'line {lines[-1]}: ' if lines else ''
        raise ConfigError(f'{path} cannot be read: {place}{type(error).__name__}: {error}') from error


def _check_bases(path: str) -> None:
    """Raises ConfigError if a ``_base_`` of the config, or of a base itself, is not a Python file."""
    for base in Config._get_base_files(path):
        file, _ = Config._get_cfg_path(base, path)
        if osp.splitext(file)[1].lower() in DATA_FORMATS:
            raise ConfigError(f'{path}: _base_ {base} is not a Python file, and configs in other formats are not read')
        if osp.isfile(file):  # otherwise mmengine raises an error
            _check_bases(file)


def guard() -> None:
    """Makes mmengine write classes and functions in a config as their import paths, in this process.

    Otherwise ``Config.pretty_text`` raises an error: for classes in mmengine 0.10, for functions in newer versions.
    """
    stock = Config.pretty_text.fget
    if stock.__module__ != __name__:
        def pretty_text(cfg: Config) -> str:
            plain = with_paths(cfg.to_dict())
            return stock(Config(plain, format_python_code=cfg._format_python_code))

        Config.pretty_text = property(pretty_text, doc=Config.pretty_text.__doc__)
