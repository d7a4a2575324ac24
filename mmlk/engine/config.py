"""Reading a config, which is a Python program."""
import os.path as osp
import traceback

from mmengine.config import Config

from mmlk._types import with_paths

DATA_FORMATS = ('.json', '.yaml', '.yml')


class ConfigError(ValueError):
    """A config cannot be read; the message names the file and, where there is one, the line."""


def read_config_file(path: str) -> Config:
    """The config in a Python file.

    mmengine also takes JSON and YAML. They look like data, but a config chooses which functions of the toolboxes are
    called with which arguments, so it can run any code whatever its format is; hence only what is known as a program is
    read.

    Raises:
        ConfigError: It is no Python file, or cannot be read.
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
    except (Exception, SystemExit) as error:  # a program may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if osp.abspath(frame.filename) == osp.abspath(path)]
        place = f'line {lines[-1]}: ' if lines else ''
        raise ConfigError(f'{path} cannot be read: {place}{type(error).__name__}: {error}') from error


def _check_bases(path: str) -> None:
    """Refuse a ``_base_``, or one of its own, that is no Python file."""
    for base in Config._get_base_files(path):
        file, _ = Config._get_cfg_path(base, path)
        if osp.splitext(file)[1].lower() in DATA_FORMATS:
            raise ConfigError(f'{path}: _base_ {base} is not a Python file, and configs in other formats are not read')
        if osp.isfile(file):  # else mmengine says what is wrong
            _check_bases(file)


def guard() -> None:
    """Let mmengine write any config of this process as text, though its Python holds classes and functions: these by
    their paths. Alone, mmengine 0.10 ends the run on a class, and newer versions on a function."""
    stock = Config.pretty_text.fget
    if stock.__module__ != __name__:
        def pretty_text(cfg: Config) -> str:
            plain = with_paths(cfg.to_dict())
            return stock(Config(plain, format_python_code=cfg._format_python_code))

        Config.pretty_text = property(pretty_text, doc=Config.pretty_text.__doc__)
