"""The one error of this package."""
from mmlk._text import printable


class WeightsError(ValueError):
    """Weights could not be found, fetched, read or fitted; the message says which and what to do.

    What it quotes of a file is printable.
    """

    def __init__(self, message: str):
        super().__init__(printable(message))
