"""What the ``type`` of a config's dict stands for: a name, with a scope before it or not, a path of Python, or a class.
"""
from types import FunctionType
from typing import Any, Optional


def type_name(settings: Any) -> str:
    """The name of a dict's class or function, without scope or module; ``''`` where it has no ``type``."""
    kind = settings.get('type') if hasattr(settings, 'get') else None
    if kind is None:
        return ''
    return kind.rpartition('.')[2] if isinstance(kind, str) else getattr(kind, '__name__', str(kind))


def scoped_name(settings: Any) -> str:
    """As a config may spell it with its scope, ``'mmlk.RepLKNet'``; of a class, the package that it is of stands for
    the scope. A name without a scope stays without one; ``''`` where there is no ``type``."""
    kind = settings.get('type') if hasattr(settings, 'get') else None
    if kind is None:
        return ''
    path = kind if isinstance(kind, str) else f'{kind.__module__}.{type_name(settings)}'
    scope, dot, _ = path.partition('.')
    return scope + dot + type_name(settings) if dot else path


def type_of(settings: Any, registry: str, scope: Optional[str] = None) -> Any:
    """The class or function itself.

    Args:
        settings: A dict with a ``type``.
        registry: The name that a registry has in ``mmengine.registry``, as ``'HOOKS'``.
        scope: The ``default_scope`` of the config, in which names without a scope are looked up first.

    Returns:
        None where there is no ``type``, or the registries do not know it.
    """
    kind = settings.get('type') if hasattr(settings, 'get') else None
    if not isinstance(kind, str):
        return kind
    import mmengine.registry
    with getattr(mmengine.registry, registry).switch_scope_and_registry(scope) as found:
        try:
            return found.get(kind)
        except RuntimeError:  # mmengine's, where it finds nothing
            return None


def is_a(settings: Any, name: str, registry: str, scope: Optional[str] = None) -> bool:
    """Whether a dict's class is called ``name``, or is a subclass of one that is. The arguments are those of
    :func:`type_of`. A class that the registries do not know, whose package is not installed say, goes by its name."""
    kind = type_of(settings, registry, scope)
    if isinstance(kind, type):
        return any(base.__name__ == name for base in kind.__mro__)
    return type_name(settings) == name


def with_paths(settings: Any) -> Any:
    """A copy of nested settings with classes and functions as the paths that mmengine finds them by, to be written."""
    if isinstance(settings, dict):
        return {key: with_paths(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return type(settings)(map(with_paths, settings))
    if isinstance(settings, (type, FunctionType)):
        return f'{settings.__module__}.{settings.__qualname__}'
    return settings
