import pytest

from tests.fuzz.cases import DECLARED, TRIED


@pytest.fixture(autouse=True)
def _all_cases_tried(request):
    """A strategy that runs dry, or rejects most of what it draws, would leave a test with few cases."""
    yield
    name = f'{request.module.__name__}.{request.function.__qualname__}'
    assert TRIED.get(name, 0) >= DECLARED.get(name, 0), f'{TRIED[name]} of {DECLARED[name]} cases were generated'
