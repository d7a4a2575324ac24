"""For the manual's build: docstrings of mmlk as Markdown, where they have Sphinx's roles and literal blocks."""
import re

import griffe


class SphinxRoles(griffe.Extension):
    """``:func:`mmlk.ops.merge``` becomes code that links to what it names, and ``::`` before a literal block one colon.

    What the manual does not describe, and so gives no address, stays code without a link.
    """

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        def link(role: re.Match) -> str:
            try:
                address = obj.resolve(role[1])
            except griffe.NameResolutionError:
                address = role[1]
            return f'<autoref identifier="{address}" optional><code>{role[1]}</code></autoref>'

        if obj.docstring:
            text = re.sub(r':\w+:`[~.]*([^`]+)`', link, obj.docstring.value)
            obj.docstring.value = re.sub(r'::$', ':', text, flags=re.MULTILINE)
