r"""From a completion to its final answer: the text of the last assistant message, and the content of its last
`\boxed{}`."""

import re
from collections.abc import Callable, Sequence
from typing import Any


MAX_BOX = 20_000  # characters; a box that is not closed by then is not closed
BOX = re.compile(r"\\(?:boxed|fbox)(?![a-zA-Z])\s*")
BARE_BOX = re.compile(r"(?:[^\s\\{}$]+|\\[a-zA-Z]+)")  # `\boxed 2`: TeX lets a single token stand without braces


def completion_text(completion: str | list[dict[str, Any]]) -> str:
    """
    Text of a completion, plain or conversational. Never an error.

    Args:
        completion (`str` or `list[dict]`): Plain text, or messages as TRL passes them. Of several messages (tool calls
            in between) the last one of the assistant counts. Its `content` may be a string, `None`, or a list of
            parts, of which those with a `text` are joined.

    Returns:
        `str`, empty if there is no text, or if the completion is something else.
    """
    return _text_or_none(completion) or ""


def completion_texts(completions: Sequence[Any], log_metric: Callable[[str, float], None] | None = None) -> list[str]:
    """
    Texts of completions, see [`completion_text`].

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions.
        log_metric (`Callable`, *optional*): From TRL: gets `reward_checks/odd_completions`, how many of them are
            neither text nor messages (numbers, bytes, `None`, nested lists), at every call. Their text is empty.
    """
    texts = [_text_or_none(completion) for completion in completions]
    if log_metric is not None:
        log_metric("reward_checks/odd_completions", float(texts.count(None)))
    return [text or "" for text in texts]


def _text_or_none(completion: Any) -> str | None:
    """`None` if a completion is neither text nor messages."""
    if isinstance(completion, str):
        return completion
    if not isinstance(completion, (list, tuple)) or not all(isinstance(message, dict) for message in completion):
        return None
    spoken = [message for message in completion if message.get("role", "assistant") == "assistant"]
    content = spoken[-1].get("content") if spoken else None
    parts = content if isinstance(content, list) else [content]
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    if not all(text is None or isinstance(text, str) for text in texts):
        return None
    return "".join(text or "" for text in texts)


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
    r"""Index of the `}` that closes the `{` at `begin`, or -1 (also if too far). `\{` and `\}` are characters, not
    braces."""
    depth = 0
    for brace in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, begin, begin + MAX_BOX):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0 and brace.group() == "}":
            return brace.start()
    return -1
