import os
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture
def repo() -> Path:
    """The root of the checkout."""
    return REPO


@pytest.fixture
def shared_data() -> Path:
    """Real images that the repository does not hold; tests that need them are skipped where they are missing."""
    path = Path(os.environ.get('MMLK_SHARED_DATA', REPO.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip(f'real images are not at {path}; set MMLK_SHARED_DATA to their folder')
    return path


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _not_deterministic():
    """A runner with a seed turns deterministic algorithms on for its process, which other tests share."""
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True


def pytest_collection_modifyitems(items):
    """The longest tests first, so that they do not run alone at the end."""
    items.sort(key=lambda item: item.path.name != 'test_accuracy.py')
