"""How many cases there are: each test counts its own as it runs (conftest.py), and here is their sum."""
import importlib
from pathlib import Path

from tests.fuzz.cases import DECLARED, LEAST


def test_there_are_enough_cases_of_every_kind():
    kinds = [path.stem for path in Path(__file__).parent.glob('test_*.py') if path.stem != 'test_count']
    for kind in kinds:
        importlib.import_module(f'tests.fuzz.{kind}')
    counts = {kind: sum(number for name, number in DECLARED.items() if name.startswith(f'tests.fuzz.{kind}.'))
              for kind in sorted(kinds)}
    assert sum(counts.values()) >= LEAST and all(counts.values()), counts
