"""The one error of this package."""


class WeightsError(ValueError):
    """Weights could not be found, fetched, read or fitted; the message says which and what to do."""
