r"""Grading as verl does, so that numbers can be held against published ones. It pays for more than
[`verifiable_reward`] does.

Behaviour of `verl/utils/reward_score/math_verify.py` and `math_reward.py` of verl 0.9.1 (`math.py` in older ones; its
normalisation of strings is that of Hendrycks et al. 2021, by way of EleutherAI's lm-evaluation-harness), written anew
and held against the original case by case. Which of them the paper used is not published; its worked golds can be read
by the first alone.
"""

from collections.abc import Callable, Sequence
from typing import Any

from .completions import completion_texts
from .math_accuracy import log_checks
from .pool import ask_pool


# Replaced in this order, before and after what looks like a unit is cut off.
BEFORE_UNITS = [
    ("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", ""), ("\\right", ""), ("^{\\circ}", ""),
    ("^\\circ", ""), ("\\$", ""),
]  # fmt: skip
AFTER_UNITS = [("\\\\%", ""), ("\\%", ""), (" .", " 0."), ("{.", "{0.")]
UNIT = "\\text{ "


class _NotNormal(Exception):
    """Text on which verl's normalisation stops: the strings are compared as they are."""


def verl_compatible_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float | None]:
    r"""
    As verl's scorer with math-verify: 1.0 if anything that math-verify finds in the whole completion equals anything
    that it finds in `\boxed{solution}`. Any box counts, numbers outside boxes too.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions, plain or conversational.
        solution (`list`): Gold solutions, as the data have them: worked ones are not reduced to their last box.
        log_extra, log_metric (`Callable`, *optional*): From TRL, see [`math_accuracy_reward`].

    Returns:
        `list[float | None]`: 1.0 or 0.0, `None` for a row without a gold solution. Later than the pool's deadline: 0.0
        (verl waits 30 seconds).
    """
    texts = completion_texts(completions, log_metric)
    rows = [None if gold is None else (str(gold), text) for gold, text in zip(solution, texts, strict=True)]
    verdicts, failures = ask_pool("verl", [row for row in rows if row])
    log_checks("verl_completion", [text[-200:] for text in texts], failures, log_extra, log_metric)
    return [None if row is None else float(bool(verdicts[row])) for row in rows]


def verl_boxed_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float | None]:
    r"""
    As verl's scorer for MATH without math-verify: 1.0 if the last `\boxed{}` and the gold are the same string once
    `\dfrac`, `\left`, degrees, percent signs, units in `\text{ }` and blanks are normalised.

    Args and returns: as [`verl_compatible_reward`]; a worked gold is reduced to its last box. No box: 0.0.
    """
    scores: list[float | None] = []
    for gold, text in zip(solution, completion_texts(completions, log_metric), strict=True):
        answer = boxed_as_verl(text)
        wanted = boxed_as_verl(str(gold)) if "\\boxed" in str(gold) else str(gold)
        scores.append(
            None if gold is None else float(answer is not None and same_string_as_verl(answer, wanted or ""))
        )
    return scores


def same_as_verl(gold: str, text: str) -> bool:
    """Whether verl's scorer with math-verify accepts a completion. In worker processes only: it may take for ever."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    golds = parse(rf"\boxed{{{gold}}}", (LatexExtractionConfig(),), parsing_timeout=None)
    found = parse(text, (ExprExtractionConfig(), LatexExtractionConfig()), parsing_timeout=None)
    return any(verify(one, other, timeout_seconds=None) for other in found for one in golds)


def boxed_as_verl(text: str) -> str | None:
    r"""What verl takes for the last box: after `\boxed ` up to a dollar sign, or in the braces after the last
    `\boxed`. `None`: none."""
    if "\\boxed " in text:
        return text.rpartition("\\boxed ")[2].partition("$")[0]
    start = text.rfind("\\boxed{")
    if start < 0 or text.rfind("\\boxed") != start:
        return None
    depth = 0
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if text[index] == "}" and depth == 0:
            return text[start + len("\\boxed{") : index]
    return None


def same_string_as_verl(one: str, other: str) -> bool:
    try:
        return _normalised(one) == _normalised(other)
    except _NotNormal:
        return one == other


def _normalised(text: str) -> str:
    for old, new in BEFORE_UNITS:
        text = text.replace(old, new)
    if text.count(UNIT) > 1:
        raise _NotNormal
    text = text.partition(UNIT)[0]
    for old, new in AFTER_UNITS:
        text = text.replace(old, new)
    if text.startswith("."):
        text = "0" + text
    name, sign, value = text.partition("=")
    if sign and "=" not in value and len(name) <= 2:
        text = value
    text = _with_braces(_sqrt_with_braces(text).replace(" ", ""))
    return _as_fraction("\\frac{1}{2}" if text == "0.5" else text)


def _sqrt_with_braces(text: str) -> str:
    r"""`\sqrt3` as `\sqrt{3}`."""
    first, *pieces = text.split("\\sqrt")
    if "" in pieces:
        raise _NotNormal
    return first + "".join("\\sqrt" + (piece if piece[0] == "{" else f"{{{piece[0]}}}{piece[1:]}") for piece in pieces)


def _with_braces(text: str) -> str:
    r"""`\frac12` as `\frac{1}{2}`; left as it is from where an argument is missing."""
    first, *pieces = text.split("\\frac")
    done = first
    for piece in pieces:
        if not piece:
            raise _NotNormal
        if piece[0] == "{":
            done += "\\frac" + piece
        elif len(piece) < 2:
            return text
        else:
            second = piece[1:] if piece[1] == "{" else f"{{{piece[1]}}}{piece[2:]}"
            done += f"\\frac{{{piece[0]}}}{second}"
    return done


def _as_fraction(text: str) -> str:
    r"""`3/4` as `\frac{3}{4}`, of whole numbers as Python writes them."""
    try:
        numerator, denominator = map(int, text.split("/"))
    except ValueError:
        return text
    return rf"\frac{{{numerator}}}{{{denominator}}}" if text == f"{numerator}/{denominator}" else text
