"""What a study shows while it runs: lines of text, and progress bars where the output is a terminal."""
import sys
from typing import Iterator, Sequence, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn

Item = TypeVar('Item')
CONSOLE = Console(highlight=False, markup=False, soft_wrap=True)


def progress(*columns: ProgressColumn) -> Progress:
    """Returns a progress bar with these columns. Nothing is drawn if the output is a file or a pipe."""
    return Progress(TextColumn('{task.description}', markup=False), BarColumn(), *columns, TimeElapsedColumn(),
                    console=CONSOLE, disable=not sys.stdout.isatty())


def track(items: Sequence[Item], description: str) -> Iterator[Item]:
    """Yields the items, and shows a progress bar."""
    with progress(MofNCompleteColumn()) as bar:
        yield from bar.track(items, len(items), description=description)
