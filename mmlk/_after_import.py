"""Runs functions after a module of another package has been imported, without importing it."""
import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Callable, Dict, Optional, Sequence

_actions: Dict[str, Callable[[ModuleType], None]] = {}


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as all other finders do, but their loaders run the registered function after the import."""

    def find_spec(self, name: str, path: Optional[Sequence[str]],
                  target: Optional[ModuleType] = None) -> Optional[importlib.machinery.ModuleSpec]:
        if name not in _actions:
            return None
        finders = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, 'find_spec')]
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in finders)), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                _actions[name](module)

            spec.loader.exec_module = exec_module
        return spec


def after_import(name: str, action: Callable[[ModuleType], None]) -> None:
    """Calls a function with a module: now if it has been imported already, otherwise right after its import.

    Args:
        name: Full name of the module.
        action: A function that takes the module.
    """
    _actions[name] = action
    if sys.modules.get(name) is not None:  # None means that the module must not be imported
        action(sys.modules[name])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
