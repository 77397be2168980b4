r"""From a completion to its final answer: the text of the last assistant message, and the content of its last `\boxed{}`."""

import re
from typing import Any


MAX_BOX = 20_000  # characters; a box that is not closed by then is not closed
BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
BARE_BOX = re.compile(r"(?:[^\s\\{}$]+|\\[a-zA-Z]+)")  # `\boxed 2`: TeX lets a single token stand without braces


def completion_text(completion: str | list[dict[str, Any]] | None) -> str:
    """
    Text of a completion, plain or conversational.

    Args:
        completion (`str` or `list[dict]`): Plain text, or messages as TRL passes them. Of several messages (tool calls in
            between) the last one of the assistant counts. Its `content` may be a string, `None`, or a list of parts, of which
            those with a `text` are joined.

    Returns:
        `str`, empty if there is no text.
    """
    if completion is None or isinstance(completion, str):
        return completion or ""
    spoken = [message for message in completion if message.get("role", "assistant") == "assistant"]
    content = spoken[-1].get("content") if spoken else None
    if isinstance(content, list):
        content = "".join(part if isinstance(part, str) else part.get("text") or "" for part in content)
    return content or ""


def last_boxed(text: str) -> str | None:
    r"""
    Content of the last `\boxed{}` (or `\fbox{}`) of a text, in time linear in its length.

    Earlier boxes never count, even if the last one is unclosed or empty: then there is no answer.

    Returns:
        `str`, stripped, or `None` if there is no box, or the last one is unclosed or empty.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    match = BOX.match(text, start) if start >= 0 else None
    if match is None:
        return None
    begin = match.end()
    if not text.startswith("{", begin):
        bare = BARE_BOX.match(text, begin)
        return bare.group().rstrip(".,;:") or None if bare else None
    end = closing_brace(text, begin)
    return text[begin + 1 : end].strip() or None if end >= 0 else None


def closing_brace(text: str, begin: int) -> int:
    r"""Index of the `}` that closes the `{` at `begin`, or -1 (also if too far). `\{` and `\}` are characters, not braces."""
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, begin, begin + MAX_BOX):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0 and brace.group() == "}":
            return brace.start()
    return -1
