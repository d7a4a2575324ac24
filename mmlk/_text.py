"""Makes text from files safe to print."""


def printable(text: str) -> str:
    """Returns the text with an escape sequence for every character that is not printable.

    Spaces, tabs and new lines are kept. Escaped are, for example, codes that move a terminal's cursor or set colours,
    marks that change the direction of text, and single surrogates.
    """
    return ''.join(letter if letter.isprintable() or letter in '\n\t' else ascii(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """Returns :func:`printable` text in which new lines are escaped, too, for names within other text."""
    return printable(text).replace('\n', r'\n')
