"""Configs of every format. One in Python is a program and runs; one in JSON or YAML is data, and runs nothing.

mmengine reads YAML with a loader that calls what a tag names, follows ``_base_`` from JSON into Python, and builds
``type='subprocess.Popen'``. Here none of it happens.
"""
import json
import os.path as osp
import re
import traceback
from typing import Any, Dict, Iterator, List, Tuple

import yaml
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

DATA_FORMATS = ('.json', '.yaml', '.yml')
SCOPES = ('mmcv', 'mmdet', 'mmengine', 'mmlk', 'mmpretrain', 'mmseg')

_LISTS = ('prob', 'scale_factor')  # of transforms that insist on a list
_MOST = 100_000  # settings in one file: YAML's references make many out of few


class ConfigError(ValueError):
    """A config cannot be read; the message names the file and, where there is one, the key."""


class _Loader(yaml.SafeLoader):
    """YAML to plain data, and tuples, as mmengine writes them."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        _refuse_repeated(keys)
        return super().construct_mapping(node, deep)


_Loader.add_constructor('tag:yaml.org,2002:python/tuple',
                        lambda loader, node: tuple(loader.construct_sequence(node, deep=True)))


def _refuse_repeated(keys: List[Any]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            raise ValueError(f'the key {key!r} stands twice')
        seen.add(key)


def _json_object(pairs: List[Tuple[str, Any]]) -> dict:
    _refuse_repeated([key for key, _ in pairs])
    return dict(pairs)


def read(path: str) -> Config:
    """The config in a file, ``.py``, ``.json``, ``.yaml`` or ``.yml``.

    JSON and YAML have no tuples, which many transforms insist on: lists of numbers in pipelines become tuples. They
    know ``_base_`` of their own kind, but no ``{{ }}`` variables; a ``type`` is a registered name, by itself or with
    the toolbox before it.

    Raises:
        ConfigError: It cannot be read, or would run code without being Python.
    """
    suffix = osp.splitext(path)[1].lower()
    if suffix not in ('.py', *DATA_FORMATS):
        raise ConfigError(f"{path} is no config: its name must end in .py, {', '.join(DATA_FORMATS)}")
    try:
        return Config.fromfile(path) if suffix == '.py' else _from_data(path)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:  # a program may raise anything
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__)
                 if osp.abspath(frame.filename) == osp.abspath(path)]
        place = f'line {lines[-1]}: ' if lines else ''
        raise ConfigError(f'{path} cannot be read: {place}{type(error).__name__}: {error}') from error


def _from_data(path: str) -> Config:
    settings = _merged(path, ())
    imports = settings.get('custom_imports') or {}
    _check(path, settings, imports)
    if imports:
        import_modules_from_strings(**imports)
    return Config(_with_tuples(settings, False), filename=path)


def _merged(path: str, above: Tuple[str, ...]) -> Dict[str, Any]:
    """The settings of a file over those of its bases."""
    path = osp.abspath(path)
    if path in above:
        raise ConfigError(f'{path} is its own _base_')
    if osp.splitext(path)[1].lower() not in DATA_FORMATS:
        raise ConfigError(f'{above[-1]}: _base_ {path} is Python, which runs; a config that has it must be Python too')
    settings = _parse(path)
    bases = settings.pop('_base_', [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f'{path}: _base_ must be a path or a list of paths, got {bases!r:.80}')
    below: Dict[str, Any] = {}
    for base in bases:
        found = _merged(osp.join(osp.dirname(path), base), (*above, path))
        twice = sorted(below.keys() & found.keys())
        if twice:
            raise ConfigError(f'{path}: two of its _base_ have {twice[0]}')
        below.update(found)
    return Config._merge_a_into_b(settings, below)


def _parse(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read()
        settings = json.loads(text, object_pairs_hook=_json_object) if path.lower().endswith('.json') else yaml.load(
            text, _Loader)
    except (OSError, RecursionError, ValueError, TypeError, yaml.YAMLError) as error:
        raise ConfigError(f'{path} cannot be read: {error}') from error
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f'{path} must hold settings by name, got {type(settings).__name__}')
    for place, value in _settings(path, settings):
        if isinstance(value, str) and '{{' in value:
            raise ConfigError(f'{path}: {place} is {value!r:.80}; variables are for configs in Python')
    return settings


def _settings(path: str, settings: Dict[str, Any]) -> Iterator[Tuple[str, Any]]:
    """(dotted place, value) of every setting."""
    left = [('', settings)]
    for count in range(_MOST):
        if not left:
            return
        place, value = left.pop()
        yield place, value
        if isinstance(value, (list, tuple)):
            value = dict(enumerate(value))
        if isinstance(value, dict):
            left += [(f'{place}.{key}'.lstrip('.'), part) for key, part in value.items()]
    raise ConfigError(f'{path} holds more than {_MOST:,} settings')


def _check(path: str, settings: Dict[str, Any], imports: Any) -> None:
    """Refuse what would import or call anything but parts of the toolboxes."""
    for place, value in _settings(path, settings):
        key = place.rpartition('.')[2]
        if key in ('type', 'runner_type') and isinstance(value, str):
            if not re.fullmatch(rf"\w+|({'|'.join(SCOPES)})\.[A-Z]\w*", value):
                raise ConfigError(f"{path}: {place} is '{value:.80}'; outside of Python it is a registered name, "
                                  f"such as ResNet or mmlk.RepLKNet, of {', '.join(SCOPES)}")
        elif key == 'allow_pickle' and value:
            raise ConfigError(f'{path}: {place} would run code of a weights file, which only a config in Python may')
        elif key in ('_scope_', 'default_scope') and value not in (None, *SCOPES):
            raise ConfigError(f"{path}: {place} is {value!r:.80}; it must be one of {', '.join(SCOPES)}")
    names = imports.get('imports', []) if isinstance(imports, dict) else None
    names = [names] if isinstance(names, str) else names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{path}: custom_imports must be like {{'imports': ['mmlk.registry']}}, got {imports!r:.80}")
    others = [name for name in names if name.split('.')[0] not in SCOPES]
    if others:
        raise ConfigError(f'{path}: custom_imports would run {others[0]}, which only a config in Python may; here the '
                          f"modules must be of {', '.join(SCOPES)}")


def _with_tuples(value: Any, in_pipeline: bool) -> Any:
    if isinstance(value, dict):
        return {key: part if key in _LISTS else _with_tuples(part, in_pipeline or str(key).endswith('pipeline'))
                for key, part in value.items()}
    if not isinstance(value, (list, tuple)):
        return value
    numbers = in_pipeline and all(isinstance(part, (int, float)) for part in value)
    parts = [_with_tuples(part, in_pipeline) for part in value]
    return tuple(parts) if numbers or isinstance(value, tuple) else parts
