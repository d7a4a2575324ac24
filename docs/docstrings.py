"""For the manual's build: docstrings of mmlk as Markdown, where they have Sphinx's roles and literal blocks."""
import re

import griffe


class SphinxRoles(griffe.Extension):
    """``:func:`mmlk.ops.merge``` becomes code, and ``::`` before a literal block one colon."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring:
            text = re.sub(r':\w+:`[~.]*([^`]+)`', r'`\1`', obj.docstring.value)
            obj.docstring.value = re.sub(r'::$', ':', text, flags=re.MULTILINE)
