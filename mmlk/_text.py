"""Makes text from files safe to print, writes tables in Markdown, and reads and writes sizes in bytes."""
import re
from typing import Iterable, Optional, Sequence

_UNITS = {'': 1, **{f'{prefix}{kind}': base**power for kind, base in (('B', 1000), ('iB', 1024))
                    for power, prefix in enumerate('KMGT', 1)}}


def printable(text: str) -> str:
    """Returns the text with an escape sequence for every character that is not printable.

    Spaces, tabs and new lines are kept. Escaped are, for example, codes that move a terminal's cursor or set colours,
    marks that change the direction of text, and single surrogates.
    """
    return ''.join(letter if letter.isprintable() or letter in '\n\t' else ascii(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """Returns :func:`printable` text in which new lines are escaped, too, for names within other text."""
    return printable(text).replace('\n', r'\n')


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], rule: Optional[Sequence[str]] = None) -> str:
    """Returns a table in Markdown.

    Args:
        head: Titles of the columns.
        rows: The cells. A vertical bar in a cell is escaped.
        rule: Alignment of each column, as ``'---:'`` for right. By default ``'---'`` for all.
    """
    every = (head, rule or ['---'] * len(head), *rows)
    return '\n'.join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in every)


def parse_bytes(text: str) -> int:
    """Returns the bytes of a text such as '8GiB', '500MB' or '1000000'.

    Raises:
        ValueError: It is not a positive number, alone or with a unit from KB to TiB.
    """
    match = re.fullmatch(r'(\d+(?:\.\d+)?) ?([KMGT]i?B|)', text.strip())
    size = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if size < 1:
        raise ValueError(f"a size in bytes is a number with a unit, such as 8GiB or 500MB, got '{text}'")
    return size


def readable_bytes(size: float) -> str:
    """Returns a number of bytes as text, such as '1.5 GiB' or '20 MiB'."""
    return f'{size / 2**30:.3g} GiB' if size >= 2**30 else f'{size / 2**20:.3g} MiB'
