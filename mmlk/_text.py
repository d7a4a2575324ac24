"""Text from files, for people to read."""


def printable(text: str) -> str:
    """The text with every character that is neither seen nor a space, a tab or a new line as its escape: codes that
    move a terminal's cursor or colour it, marks that turn the order of letters round, halves of pairs."""
    return ''.join(letter if letter.isprintable() or letter in '\n\t' else ascii(letter)[1:-1] for letter in text)


def one_line(text: str) -> str:
    """As :func:`printable`, with new lines as escapes too, for names among other text."""
    return printable(text).replace('\n', r'\n')
