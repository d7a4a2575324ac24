"""Resolves the ``type`` of a dict in a config: a name with or without a scope, an import path, or a class.
"""
from types import FunctionType
from typing import Any, Optional

TIMM = 'timm:'  # what a model's name begins with, where it is one of timm


def type_name(settings: Any) -> str:
    """Returns the name of a dict's class or function, without scope or module; ``''`` if it has no ``type``."""
    kind = settings.get('type') if hasattr(settings, 'get') else None
    if kind is None:
        return ''
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def scoped_name(settings: Any) -> str:
    """Returns the name of a dict's class with its scope, such as ``'mmlk.RepLKNet'``.

    For a class or an import path, the top-level package is the scope. A name without a scope is returned as it is. The
    result is ``''`` if the dict has no ``type``.
    """
    kind = settings.get('type') if hasattr(settings, 'get') else None
    if kind is None:
        return ''
    path = kind if isinstance(kind, str) else f'{kind.__module__}.{type_name(settings)}'
    scope, dot, _ = path.partition('.')
    return scope + dot + type_name(settings) if dot else path


def type_of(settings: Any, registry: str, scope: Optional[str] = None) -> Any:
    """Returns the class or function of a dict.

    Args:
        settings: A dict with a ``type``.
        registry: The name of a registry in ``mmengine.registry``, such as ``'HOOKS'``.
        scope: The ``default_scope`` of the config, in which names without a scope are looked up first.

    Returns:
        The class or function, or None if there is no ``type`` or the registries do not know it.
    """
    kind = settings.get('type') if hasattr(settings, 'get') else None
    if not isinstance(kind, str):
        return kind
    import mmengine.registry
    with getattr(mmengine.registry, registry).switch_scope_and_registry(scope) as found:
        try:
            return found.get(kind)
        except RuntimeError:  # raised by mmengine if it finds nothing
            return None


def is_a(settings: Any, name: str, registry: str, scope: Optional[str] = None) -> bool:
    """Returns whether the class of a dict has the name ``name``, or a base class with this name.

    The other arguments are those of :func:`type_of`. If the registries do not know the class, for example because its
    package is not installed, only its own name is compared.
    """
    kind = type_of(settings, registry, scope)
    if isinstance(kind, type):
        return any(base.__name__ == name for base in kind.__mro__)
    return type_name(settings) == name


def with_paths(settings: Any) -> Any:
    """Returns a copy of nested settings with the import paths of classes and functions in their place."""
    if isinstance(settings, dict):
        return {key: with_paths(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(with_paths, settings))
    if isinstance(settings, (type, FunctionType)):
        return f'{settings.__module__}.{settings.__qualname__}'
    return settings
