"""Docstrings as the code has them, Hugging Face's form of Google's, turned into Markdown for the page of the API.

mkdocstrings' own parsers do not know types in backticks, shapes and `*optional*`; as Markdown all of it is shown as it
is written.
"""

import inspect
import re

import griffe


SECTION = re.compile(r"^(Args|Parameters|Attributes|Returns|Yields|Raises|Example|Examples|Notation|Symbols):$")
ENTRY = re.compile(r"^ {4}(?P<names>[\w*][\w*, .]*?)(?P<type> \(.*?\))?:(?= |$)")
REFERENCE = re.compile(r"(?<!\])\[`~?(?:\w+\.)*(\w+)`\](?![(\[])")
LISTS = ("Args", "Parameters", "Attributes", "Notation", "Symbols")


class MarkdownDocstrings(griffe.Extension):
    """Rewrites each docstring before it is rendered."""

    def on_object(self, *, obj, loader, **kwargs):
        """Called by griffe for every object that it has loaded."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    """
    Turn a docstring's sections into bold words, and their entries into lists.

    >>> to_markdown("One line.\\n\\nArgs:\\n    x (`int`):\\n        A number.")
    'One line.\\n\\n**Arguments**\\n\\n- **`x`** (`int`): A number.'
    """
    lines, section = [], None
    for line in inspect.cleandoc(docstring).splitlines():
        found = SECTION.match(line)
        if found:
            section = found[1]
            lines += ["", f"**{'Arguments' if section == 'Args' else section}**", ""]
        elif section and line and not line.startswith(" "):
            section = None
            lines += ["", line]
        else:
            lines += _in_section(line, section) if section else [line]
    return REFERENCE.sub(r"`\1`", re.sub(r"\n{3,}", "\n\n", "\n".join(lines)))


def _in_section(line: str, section: str) -> list[str]:
    """One line of a section: an entry of a list begins, goes on, or it is text."""
    if section not in LISTS:
        return [line[4:]]
    entry = ENTRY.match(line)
    if entry:
        names = ", ".join(f"**`{name}`**" for name in entry["names"].split(", "))
        return [f"- {names}{entry['type'] or ''}:{line[entry.end() :]}"]
    return [f"    {line.strip()}" if line.strip() else ""]
