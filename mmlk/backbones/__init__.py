"""The backbones. All modules of this package are imported, so that every backbone can be imported from here."""
import importlib
import pkgutil
from typing import Any

from .base import BaseBackbone

__all__ = ['BaseBackbone']

for _found in pkgutil.iter_modules(__path__):
    _module = importlib.import_module(f'.{_found.name}', __name__)
    for _name, _value in vars(_module).items():
        if isinstance(_value, type) and issubclass(_value, BaseBackbone) and _value.__module__ == _module.__name__ \
                and not _name.startswith('_') and _name not in __all__:
            globals()[_name] = _value
            __all__.append(_name)
__all__.sort()


def __getattr__(name: str) -> Any:  # tells type checkers that there are more names
    raise AttributeError(f'module {__name__} has no attribute {name}')
