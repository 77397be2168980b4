r"""Worked solutions with several boxes: parts of one answer, alternatives of one value, or a box on the way.

| between two boxes of different values | |
|---|---|
| `and`, `or`, a comma, and a name: `$k=\boxed{5}$ or $k=\boxed{-3}$` | parts |
| "the other two angles are", "another angle", or a case each ("If ... If ...") | parts |
| "is also acceptable", "could also", "either", a time or base of the same digits | alternatives: the last one counts |
| anything else | not decided: the last one counts |

Boxes of equal value are one.
"""

import re
from functools import lru_cache
from typing import NamedTuple

from .answers import equal
from .completions import BOX, closing_brace
from .pool import shared_pool


LISTING = re.compile(r"[.,;]?(?:\\text\{)?,?(?:and|or|[,;])(?:\\text)?\}?(?:[A-Za-z\\][\w\\{}()']*=)?")
NOT_LISTING = re.compile(r"[$\s~]|\\[()\[\],;:! ]|\\q?quad")
ANOTHER = re.compile(
    r"\b(?:another|the (?:other|second|third|fourth|remaining)(?: two| three)?) (?!way|solution|method|approach|proof|possib)",
    re.IGNORECASE,
)
CASE = re.compile(r"\b(?:If|When|For) \$")
ALTERNATIVES = re.compile(
    r"acceptable|\b(?:could|can|may|might) also\b|\beither\b|alternative|(?-i:\bOR\b)", re.IGNORECASE
)
DRAWING = re.compile(r"\[asy\].*?\[/asy\]", re.DOTALL)
BASE = re.compile(r"_\{?\w+\}?$")
TIME = re.compile(r"\d{1,2}(?:\\!)?:(?:\\!)?\d\d")


class Box(NamedTuple):
    """A box of a text: its content, and where it starts and ends."""

    content: str
    start: int
    end: int


class WorkedAnswer(NamedTuple):
    """The gold answer of a worked solution, and whether it is clear that it is."""

    text: str
    decided: bool


@lru_cache(maxsize=65536)
def worked_answer(solution: str) -> WorkedAnswer | None:
    r"""
    What a worked solution with several boxes says is the answer: all the parts, joined by commas, or its last box.
    `None` if it has no box, an unclosed one, or one box only.
    """
    text = DRAWING.sub(" ", solution)
    boxes = [box for box in boxes_of(text) if box.content and "phantom" not in box.content]
    if len(boxes) < 2:
        return None
    parts = [boxes[0].content]
    for before, box in zip(boxes, boxes[1:], strict=False):
        if any(_same_value(part, box.content) for part in parts):
            continue
        between, start = text[before.end : box.start], text[: boxes[0].start]
        if ALTERNATIVES.search(between) or ALTERNATIVES.search(text[box.end : box.end + 80]):
            return WorkedAnswer(boxes[-1].content, True)
        listed = LISTING.fullmatch(NOT_LISTING.sub("", between))
        if not listed and not ANOTHER.search(between) and not (CASE.search(between) and CASE.search(start)):
            return WorkedAnswer(boxes[-1].content, False)
        parts.append(box.content)
    return WorkedAnswer(", ".join(parts) if len(parts) > 1 else boxes[-1].content, True)


def boxes_of(text: str) -> list[Box]:
    r"""All closed boxes of a text in braces, in order; of nested ones the inner."""
    boxes: list[Box] = []
    for match in BOX.finditer(text):
        end = closing_brace(text, match.end()) if text.startswith("{", match.end()) else -1
        if end >= 0:
            if boxes and boxes[-1].end > end:
                boxes.pop()
            boxes.append(Box(text[match.end() + 1 : end].strip(), match.start(), end + 1))
    return boxes


def _same_value(one: str, other: str) -> bool:
    """Whether two boxes say the same. The workers are asked where only computer algebra can tell."""
    if BASE.sub("", one) == BASE.sub("", other) or (TIME.search(one) and TIME.search(other)):
        return True
    verdicts = [equal(one, other), equal(other, one)]
    if None in verdicts and True not in verdicts:
        verdicts = shared_pool().run([("equal", one, other)]).results
    return True in verdicts
