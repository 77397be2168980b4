r"""Equations in free text, checked: `a op b = c` wherever a solution writes it, exactly and
without a label.

    text --equation_text.tokens_of--> tokens --> sides of each `=` --equation_values.holds--> Equation

A *side* is the longest run of numbers, operations and brackets next to an `=`; words after a number are its unit, and
a number without an operation between ends the run. What the reader cannot be sure of (a letter for a variable, a
function, a remainder, a label in front of a lone number) leaves the equation out: it is not guessed at.
`a = b = c` is two equations. One that does not hold, but may be meant so that it does, is left out as well. The time
is linear in the text.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from .completions import completion_texts
from .equation_text import ABSOLUTE, LATEX, PERCENT, SPOKEN, UNIT_LETTERS, WORD_CODES, Token, scale_of, tokens_of
from .equation_values import ALL_UNITS, READINGS, Side, TooLarge, evaluate, holds


MAX_CHARACTERS = 100_000  # that are read of a text
MAX_TOKENS = 200  # of a side

WORDS = f"(?:[{WORD_CODES}]KN|[{WORD_CODES}])*"  # `square feet`, `cm^2`
SIDE = re.compile(
    rf"[MP]{{0,8}}[NU]{WORDS}(?:Q{WORDS})*(?:[OMK](?:H*[MP]{{0,8}}[NU]|[{WORD_CODES}]){WORDS}(?:Q{WORDS})*)*"
)
# Something unclear, words as an operand, `3 squared`, `10 with remainder 1`, `two parrots * 14`
NOT_ARITHMETIC = re.compile(rf"U|[OMK]H*(?:[WCDAT&#]|H(?![HNMPU]))|[NQ][WHT]{{0,2}}D|#[{WORD_CODES}]{{0,6}}[OMK]")
# Behind a right side: a question, `3, remainder 2`, `3 R2`, `3 (mod 12)`
NOT_MEANT_AFTER = re.compile(
    r"[\s$*_`)}\\\]]{0,6}\?|[ ,($]{0,4}(?:with\s|and\s)?(?:an?\s|the\s)?(?:remainder|rem\b|r\s?[0-9]|\\?[pb]?mod\b)",
    re.IGNORECASE,
)
# Behind a left side's last number: words that begin another sentence, `$a = 3/2$ and $ab = 1/2$`
CONJUNCTION = re.compile(
    r"\b(?:and|or|but|so|then|hence|thus|because|since|where|which|from|as|if|when|we|have|gives?)\b", re.IGNORECASE
)
# Behind a right side's number: what says that it is no exact one
INEXACT_AFTER = re.compile(
    r"[^\n=;]{0,40}?\b(?:remainder|left\s?overs?|round(?:ed|ing|s)?|approximately|about|nearest|roughly|leaving"
    r"|(?:with|and)\s(?:\w{1,12}\s){1,3}(?:left|remaining))\b",
    re.IGNORECASE,
)
DOTS_AFTER = re.compile(r"\s?(?:\.{2,3}|…|\\[lc]?dots)")
UNSIZED = frozenset([*UNIT_LETTERS, "mile", "miles", "ton", "tons", "nickel", "nickels", "dime", "dimes"])
OPERATION_SIGNS = {**SPOKEN, **LATEX}
OPERATION_WORDS = re.compile("|".join(rf"\b{word}\b" for word in SPOKEN) + "|" + "|".join(map(re.escape, LATEX)))
COMPOUND_AFTER, COMPOUND_BEFORE = re.compile("&?NT"), re.compile("NT&?$")  # `5 hours and 30 minutes`


class Equation(NamedTuple):
    """
    An equation of a text.

    Attributes:
        holds (`bool`): Whether both sides are equal, or one is the other as people round it.
        start, equals, end (`int`): Where its left side begins, where its `=` stands, where its right side ends.
    """

    holds: bool
    start: int
    equals: int
    end: int


# ---------------------------------------------------------------------------------------------------------------------
# Reward functions
# ---------------------------------------------------------------------------------------------------------------------


def equation_steps_reward(
    completions: Sequence[Any], log_metric: Callable[[str, float], None] | None = None, **kwargs
) -> list[float | None]:
    """
    Share of a completion's equations that hold, 0 to 1; `None` where it has none that can be checked.

    Needs no gold. An equation that stands several times counts once, and one without an operation (`5 = 5`) not at
    all. A right equation may be the wrong one for the problem: this checks arithmetic, not reasoning.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions; of messages the last one of the assistant.
        log_metric (`Callable`, *optional*): From TRL. Gets `reward_checks/odd_completions`, see
            [`~completions.completion_texts`], and `reward_checks/equations`, the mean number of different equations
            that were checked in a completion.
    """
    found = [_different(text) for text in completion_texts(completions, log_metric)]
    if log_metric is not None and found:
        log_metric("reward_checks/equations", sum(map(len, found)) / len(found))
    return [sum(verdicts.values()) / len(verdicts) if verdicts else None for verdicts in found]


def sound_equations_reward(
    completions: Sequence[Any], log_metric: Callable[[str, float], None] | None = None, **kwargs
) -> list[float | None]:
    """
    1.0 if all equations of a completion hold, 0.0 if one does not; `None` where it has none that can be checked.

    The form that `contrastive_step_reward` needs, which takes any reward above 0 for a sound rollout. See
    [`equation_steps_reward`].
    """
    shares = equation_steps_reward(completions, log_metric)
    return [None if share is None else float(share == 1.0) for share in shares]


def _different(text: str) -> dict[str, bool]:
    """Verdicts on the different equations of a text, by their numbers and operations; the worst one of each."""
    verdicts: dict[str, bool] = {}
    for found in find_equations(text):
        signs = OPERATION_WORDS.sub(
            lambda words: OPERATION_SIGNS[words.group()], text[found.start : found.end].lower()
        )
        key = re.sub(r"[a-z\s$]", "", signs)
        verdicts[key] = verdicts.get(key, True) and found.holds
    return verdicts


# ---------------------------------------------------------------------------------------------------------------------
# From text to sides
# ---------------------------------------------------------------------------------------------------------------------


def find_equations(text: str) -> list[Equation]:
    """
    The equations of a text that can be checked, in order.

    Args:
        text (`str`): Free text, LaTeX or Markdown among it; its first 100,000 characters are read. docs/rewards.md
            says what is read, and how reliably.
    """
    tokens = tokens_of(text[:MAX_CHARACTERS])
    codes = "".join(token.code for token in tokens)
    spans = [match.span() for match in SIDE.finditer(codes)]
    starts, ends = dict(spans), {end: start for start, end in spans}
    found = []
    for index, code in enumerate(codes):
        if code != "E" or index not in ends:
            continue
        begin, is_about = index + 1, tokens[index].text != "="
        while codes.startswith("A", begin):
            begin, is_about = begin + 1, True
        if begin not in starts:
            continue
        left, right = (
            _left_side(tokens, codes, ends[index], index),
            _right_side(tokens, codes, begin, starts[begin]),
        )
        if right.tokens and right.tokens[-1].end >= MAX_CHARACTERS:
            break  # its last number may be a part of one
        is_meant = right.tokens and NOT_MEANT_AFTER.match(text, right.tokens[-1].end) is None
        verdict = _verdict(left, right, is_about) if is_meant else None
        if verdict is False and _may_be_meant_otherwise(text, left, right, tokens[index].start, is_about):
            continue
        if verdict is not None:
            found.append(Equation(verdict, left.tokens[0].start, tokens[index].start, right.tokens[-1].end))
    return found


def _left_side(tokens: Sequence[Token], codes: str, start: int, end: int) -> Side:
    """From behind its last open bracket, if one stays open: `(3 + 4` in `7 apples (3 + 4 = 7)`."""
    depth = 0
    for index in reversed(range(start, end)):
        depth += {"Q": 1, "P": -1}.get(codes[index], 0)
        if depth < 0:
            start = index + 1
            break
    before = codes[max(start - 3, 0) : start]
    closed = codes.count("P", start, end) == codes.count("Q", start, end)
    starts_oddly = (
        before.endswith(("O", "M", "K", "U"))
        or before.endswith(("N", "Q")) and codes[start] == "P"
        or before.endswith((*WORD_CODES, "Q")) and codes[start] == "M"
        or re.search("[CD]H?$", before) and tokens[start - 1].text != "am"
        or re.search("[CD].$", before) and tokens[start - 1].text == "of"
        or re.fullmatch("[OMK]S", before[-2:]) and tokens[start - 1].text == "\n"  # a formula over two lines
        or COMPOUND_BEFORE.search(before) and codes[start : start + 2] == "NT"
    )  # fmt: skip
    labelled = before.endswith(tuple(WORD_CODES))
    doubtful = (
        before.endswith(("N", "Q")) and codes[start] == "N"  # `5 $10 bills * 3`
        or re.search("[OM][WHT]{1,2}$", before) is not None  # `7 adults + Shonda (1) + 2`
    )  # fmt: skip
    clear = closed and not starts_oddly and _is_arithmetic(codes[start:end])
    return Side(tuple(tokens[start:end]), clear, labelled, doubtful)


def _right_side(tokens: Sequence[Token], codes: str, start: int, end: int) -> Side:
    """Up to a bracket that it closes without having opened it: `7` in `(3 + 4 = 7) * 2`."""
    depth = 0
    for index in range(start, end):
        depth += {"P": 1, "Q": -1}.get(codes[index], 0)
        if depth < 0:
            return Side(tuple(tokens[start:index]), _is_arithmetic(codes[start:index]))
    ends_oddly = (
        codes.startswith(("O", "M", "K"), end)
        or codes[end - 1 : end + 1] in ("NU", "QU")
        or codes.startswith("S", end) and tokens[end].text == "!" and {"O", "M"} & set(codes[start:end])  # `5 * 4!`
        or (codes[end - 1] in "T&" and "T" in codes[end - 2 : end] and COMPOUND_AFTER.match(codes, end))
    )  # fmt: skip
    is_cut = (  # `10 + 6 = 2 (5 + 3)`, `= 2 500 kg`
        re.compile("[NQ](?:N|P[NUP])").match(codes, end - 1) is not None
        and tokens[end].start - tokens[end - 1].end <= 1
    )
    goes_on = re.compile("S{1,3}[OM]").match(codes, end) is not None and tokens[end].text == "\n"
    clear = depth == 0 and not ends_oddly and _is_arithmetic(codes[start:end])
    return Side(tuple(tokens[start:end]), clear, doubtful=is_cut or goes_on)


def _is_arithmetic(codes: str) -> bool:
    """Whether a side has numbers for operands, all of them, and no word that changes their value."""
    return 0 < len(codes) <= MAX_TOKENS and NOT_ARITHMETIC.search(codes) is None


# ---------------------------------------------------------------------------------------------------------------------
# From sides to a verdict
# ---------------------------------------------------------------------------------------------------------------------


def _verdict(left: Side, right: Side, is_about: bool) -> bool | None:
    """Whether an equation holds; `None` if it is none to check."""
    if not (left.clear and right.clear) or _is_a_name(left):
        return None
    if left.number and right.number and not (_is_division(left, right) or _is_division(right, left)):
        return None
    have_units = left.has_sized_unit and right.has_sized_unit
    readings = (*READINGS, ALL_UNITS) if have_units else READINGS
    counting = readings
    if have_units and _adds_units(left):
        counting = (ALL_UNITS,)
    elif _takes_percent(left) and "%" not in [token.text for token in right.tokens]:
        counting = READINGS[1:]
    try:
        is_equal = holds(left, right, counting, is_about)
        if not is_equal and counting is not readings and holds(left, right, readings, is_about):
            return None  # but for the units: `1 hour + 30 minutes = 31 minutes`
    except TooLarge:
        return None
    is_estimate = is_about and left.number is None and right.number is None  # `49 * 21 ≈ 50 * 20`
    unclear = is_estimate or _mixes_units(left, right) or _adds_percent(left) or _adds_percent(right)
    return None if unclear and not is_equal else is_equal


def _may_be_meant_otherwise(text: str, left: Side, right: Side, equals: int, is_about: bool) -> bool:
    """Whether an equation that does not hold may be meant so that it does. It is left alone then."""
    is_range = left.labelled and left.codes == "NMN" and right.number is None
    if is_range and all(one.end == two.start for one, two in pairwise(left.tokens)):  # `Days 1-3 = 5 + 5 + 5`
        return True
    last = [max(token.end for token in side.tokens if token.code in "NQ") for side in (left, right)]
    if left.doubtful or right.doubtful or CONJUNCTION.search(text, last[0], equals):
        return True
    number = right.number
    if number is not None and DOTS_AFTER.match(text, last[1]):
        return True
    if number is not None and number.decimals == 0 and INEXACT_AFTER.match(text, last[1]):  # `17 / 5 = 3 with 2 left`
        if _is_next_to(number, left):
            return True
    return any(holds(*sides, READINGS, is_about) for sides in _other_sides(text, left, right))


def _is_next_to(number: Token, left: Side) -> bool:
    """Whether a whole number is one of the two next to a side that need not be whole: 3 and 4 to `17 / 5`."""
    may_be_broken = any(token.text in ("/", "fraction") or token.decimals for token in left.tokens)
    try:
        return may_be_broken and abs(evaluate(left.tokens) - number.value) < 1
    except ZeroDivisionError:
        return False


def _other_sides(text: str, left: Side, right: Side) -> Iterator[tuple[Side, Side]]:
    """What else the sides may be: `3 + 4 = 7` in `Step 2 - 3 + 4 = 7` and in `3 + 4 = 7 times 2 is 14`."""
    dash = re.match(f"N[{WORD_CODES}]*M", left.codes)
    if dash is not None and text[left.tokens[dash.end() - 1].end].isspace():
        behind = left.codes[dash.end() :]
        if {"O", "M", "K"} & set(behind) and _is_arithmetic(behind):
            yield Side(left.tokens[dash.end() :], True), right
    for place, token in enumerate(right.tokens):
        if token.code in "OM" and re.fullmatch("[a-z ]{2,}", text[token.start : token.end], re.IGNORECASE):
            yield left, Side(right.tokens[:place], True)
            break


def _adds_units(side: Side) -> bool:
    """Whether amounts in units of different sizes are added: `1 hour + 30 minutes`."""
    if side.operations - {"+", "-"}:
        return False
    units = [side.tokens[place.end() - 1].text for place in re.finditer("NT", side.codes)]
    return len({scale_of(unit) for unit in units if unit not in ABSOLUTE}) > 1


def _takes_percent(side: Side) -> bool:
    """Whether a percentage, but 100, is a factor: `20% of 50`."""
    tokens = side.tokens
    return any(
        tokens[place.end() - 1].text in PERCENT and tokens[place.start()].value != 100
        and "*" in [token.text for token in (*tokens[place.start() - 1 : place.start()], *tokens[place.end() : place.end() + 1])]
        for place in re.finditer("NT", side.codes)
    )  # fmt: skip


def _mixes_units(left: Side, right: Side) -> bool:
    """Whether units without a size of their own are added to others, or turned into them: `1 kg - 250 g = 750 g`,
    `500 g * 3 = 1.5 kg`."""
    unsized = [{token.text for token in side.tokens if token.code == "W"} & UNSIZED for side in (left, right)]
    if (left.operations | right.operations) - {"+", "-"}:
        return bool(unsized[0] - unsized[1]) and right.has_sized_unit and not left.has_sized_unit
    return (left.has_sized_unit or right.has_sized_unit) and any(unsized)


def _adds_percent(side: Side) -> bool:
    """Whether a percentage is added to an amount, which may mean a share of it: `$50 - 20%`."""
    return any(
        side.tokens[place.start()].text in "+-" and side.tokens[place.end() - 1].text == "%"
        and side.tokens[place.start() - 1].text != "%"
        for place in re.finditer("(?<=.)[OM]NT", side.codes)
    )  # fmt: skip


def _is_a_name(left: Side) -> bool:
    """Whether a left side is a lone number that stands for something: `Day 2 = 5 + 3`, `3 dozen = 3 * 12`."""
    if left.number is None:
        return False
    if left.number.text == "fraction":
        return "of" in left.words
    return left.labelled or any(token.code in WORD_CODES for token in left.tokens)


def _is_division(side: Side, other: Side) -> bool:
    """Whether a lone fraction is to be worked out: `20/4 = 5`, `1/4 hour = 0.25`, but not `1/4 tank = 10 gallons`."""
    assert side.number is not None and other.number is not None  # both are lone numbers
    if side.number.text != "fraction":
        return False
    if side.number.value >= 1:
        return other.number.text != "fraction" or other.number.value >= 1
    return other.number.value < 1 or other.tokens[-1].text in PERCENT
