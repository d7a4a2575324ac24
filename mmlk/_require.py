"""One clear message if a package that mmlk needs is missing or broken."""
import importlib


def require(*modules: str) -> None:
    """Imports each of ``modules``, independent of the distribution that provides it.

    Raises:
        ImportError: A module cannot be imported. The message gives the reason and the command that installs it.
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
