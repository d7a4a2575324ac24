"""Reads the ``type`` of dicts in configs: a name with or without a scope, a Python path, or a class.
"""
from types import FunctionType
from typing import Any, Optional


def type_name(settings: Any) -> str:
    """Returns the name of the class or function without scope or module; ``''`` if there is no ``type``."""
    kind = settings.get('type') if hasattr(settings, 'get') else None
    if kind is None:
        return ''
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def scoped_name(settings: Any) -> str:
    """Returns the name with its scope, for example ``'mmlk.RepLKNet'``.

    The scope of a class is its package. A name without a scope is returned as it is. Returns ``''`` if there is no
    ``type``.
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
        registry: Name of a registry in ``mmengine.registry``, for example ``'HOOKS'``.
        scope: The ``default_scope`` of the config, in which names without a scope are looked up first.

    Returns:
        The class or function; None if there is no ``type`` or it is not registered.
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
    """Returns whether the class of a dict, or one of its base classes, has the given name.

    If the class is not registered, for example because its package is not installed, only its own name is compared.

    Args:
        settings, registry, scope: See :func:`type_of`.
        name: Name of the class, without scope.
    """
    kind = type_of(settings, registry, scope)
    if isinstance(kind, type):
        return any(base.__name__ == name for base in kind.__mro__)
    return type_name(settings) == name


def with_paths(settings: Any) -> Any:
    """Returns a copy of nested settings in which classes and functions are replaced by their Python paths."""
    if isinstance(settings, dict):
        return {key: with_paths(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(with_paths, settings))
    if isinstance(settings, (type, FunctionType)):
        return f'{settings.__module__}.{settings.__qualname__}'
    return settings
