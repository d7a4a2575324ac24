"""Generated cases, the same in every run, counted."""
from functools import wraps
from typing import Callable, Dict

from hypothesis import HealthCheck, given, settings

LEAST = 500  # cases in the whole suite

DECLARED: Dict[str, int] = {}  # cases by test
TRIED: Dict[str, int] = {}  # those of this process


def cases(number: int, **strategies) -> Callable:
    """Run a test on ``number`` generated cases; the test's other arguments are fixtures."""

    def wrap(test: Callable) -> Callable:
        name = f'{test.__module__}.{test.__qualname__}'
        DECLARED[name], TRIED[name] = number, 0

        @wraps(test)
        def counted(*args, **kwargs):
            TRIED[name] += 1
            return test(*args, **kwargs)

        limits = settings(max_examples=number, derandomize=True, database=None, deadline=None,
                          suppress_health_check=[*HealthCheck])
        return limits(given(**strategies)(counted))

    return wrap
