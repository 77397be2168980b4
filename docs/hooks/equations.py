"""Equations as MathML, which browsers draw by themselves: nothing is fetched, and no script runs.

Written as GitHub reads them too: a block of the language `math`; in a line dollar, backtick, TeX, backtick, dollar.
"""

from latex2mathml.converter import convert
from markdown import Extension
from markdown.inlinepatterns import InlineProcessor


INLINE = r"\$`([^`]+)`\$"
ABOVE_CODE = 195  # Markdown's own code in backticks has 190


def on_config(config):
    """Teach Markdown equations."""
    config.markdown_extensions.append(Equations())
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": display})
    return config


class Equations(Extension):
    """Equations in a line."""

    def extendMarkdown(self, md):  # noqa: N802  # Markdown's name
        md.inlinePatterns.register(_Inline(INLINE, md), "equations", ABOVE_CODE)


class _Inline(InlineProcessor):
    def handleMatch(self, m, data):  # noqa: N802  # Markdown's name
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


def display(source: str, language: str, css_class: str, options: dict, md, **kwargs) -> str:
    """A block of TeX as a centred equation; blank lines part several of them."""
    equations = (convert(tex, display="block") for tex in source.split("\n\n") if tex.strip())
    return f'<div class="{css_class}">{"".join(equations)}</div>'
