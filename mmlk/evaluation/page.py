"""Parts of a report in HTML that needs no network: one file with its style and its pictures inside."""
import base64
import html
import mimetypes
from pathlib import Path
from typing import Iterable, Sequence, Union

# A browser that keeps to this asks nothing of the network, whatever is on the page.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; display: block; overflow-x: auto; }
table { font-variant-numeric: tabular-nums; }
th, td { padding: .25em .7em; border-bottom: 1px solid #ddd; text-align: right; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
figure { margin: 1em 0; } figcaption { color: #555; }
code { background: #f3f3f3; padding: 0 .2em; }
"""


def text(value: object) -> str:
    """Returns a value as text for HTML, with its special characters escaped."""
    return html.escape(str(value))


def heading(title: str) -> str:
    """Returns the heading of a section; the title is escaped."""
    return f'<h2>{text(title)}</h2>'


def paragraph(content: str) -> str:
    """Returns a paragraph of text, which is escaped."""
    return f'<p>{text(content)}</p>'


def table(head: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table; the cells are escaped."""
    def line(cells: Sequence[object], tag: str) -> str:
        return '<tr>' + ''.join(f'<{tag}>{text(cell)}</{tag}>' for cell in cells) + '</tr>'
    body = '\n'.join(line(row, 'td') for row in rows)
    return f'<table><thead>{line(head, "th")}</thead>\n<tbody>{body}</tbody></table>'


def source(picture: Union[str, Path]) -> str:
    """Returns a picture's file as a data URL, for the attribute ``src``."""
    kind = mimetypes.guess_type(str(picture))[0] or 'image/png'
    return f'data:{kind};base64,{base64.b64encode(Path(picture).read_bytes()).decode()}'


def figure(picture: Union[str, Path], caption: str) -> str:
    """Returns a picture with its caption, which also is its alternative text."""
    return (f'<figure><img src="{source(picture)}" alt="{text(caption)}" loading="lazy">'
            f'<figcaption>{text(caption)}</figcaption></figure>')


def document(title: str, *parts: str, style: str = '', script: str = '') -> str:
    """Returns a whole page of parts that are HTML already.

    Args:
        title: Title of the page, escaped here.
        parts: What is on the page, in this order.
        style: CSS beside the common one.
        script: JavaScript at the end of the page.
    """
    body = '\n'.join(parts)
    code = f'<script>{script}</script>' if script else ''
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>{text(title)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{_STYLE}{style}</style></head>\n'
            f'<body><h1>{text(title)}</h1>\n{body}\n{code}</body></html>\n')
