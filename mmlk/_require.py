"""One clear message when a package that mmlk builds on is missing or broken."""
import importlib


def require(*modules: str) -> None:
    """Import each of ``modules``, whichever distribution provides it.

    Raises:
        ImportError: the first module that cannot be imported, why, and the command that mends it.
    """
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken binary package may raise OSError, AssertionError, ...
            raise ImportError(
                f'mmlk needs {", ".join(modules)}, but importing {name!r} failed with '
                f'{type(error).__name__}: {error}\n'
                'Install the versions proved together with `bash tools/install.sh` (it uses the active virtual '
                'environment), or ask `python tools/doctor.py` what is wrong with yours.') from error
