r"""Equations in free text, checked: `a op b = c` wherever a solution writes it, exactly and
without a label.

    text --equation_text.tokens_of--> tokens --sides_of--> sides of each `=` --holds--> Equation

A *side* is the longest run of numbers, operations and brackets next to an `=`; words after a number are its unit, and
a number without an operation between ends the run. What the reader cannot be sure of (a letter for a variable, a
function, a remainder, a label in front of a lone number) leaves the equation out: it is not guessed at.
`a = b = c` is two equations.

Nothing is evaluated but by this module's own arithmetic on `Fraction`; the time is linear in the text.
"""

import operator
import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from .completions import completion_texts
from .equation_text import ABSOLUTE, LATEX, SPOKEN, UNIT_LETTERS, WORD_CODES, Token, scale_of, tokens_of


MAX_CHARACTERS = 100_000  # that are read of a text
MAX_TOKENS = 200  # of a side
MAX_DECIMALS = 9  # beyond them a number is as a computer prints it: 0.47119999999999995
MAX_EXPONENT = 64
MAX_BITS = 4_000  # of a value on the way

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
UNSIZED = frozenset([*UNIT_LETTERS, "mile", "miles", "ton", "tons", "nickel", "nickels", "dime", "dimes"])
OPERATION_SIGNS = {**SPOKEN, **LATEX}
OPERATION_WORDS = re.compile("|".join(rf"\b{word}\b" for word in SPOKEN) + "|" + "|".join(map(re.escape, LATEX)))
COMPOUND_AFTER, COMPOUND_BEFORE = re.compile("&?NT"), re.compile("NT&?$")  # `5 hours and 30 minutes`
OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "^": operator.pow,
}  # fmt: skip
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "^": 4}

# A number may be meant with its percent sign and unit or without: `20% * 50 = 10` and `5 / 20 * 100 = 25%`,
# `2 hours + 30 minutes = 150 minutes` and `2 hours * 60 = 120 minutes`. All numbers of an equation are read alike.
READINGS: tuple[Callable[[str], bool], ...] = (
    lambda unit: False,
    lambda unit: unit in ("%", "percent"),
    lambda unit: unit in ABSOLUTE,
)
ALL_UNITS: Callable[[str], bool] = lambda unit: True  # only where both sides have one  # noqa: E731


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


class Side(NamedTuple):
    """
    A side of an equation.

    Attributes:
        tokens (`tuple[Token, ...]`): Its numbers, operations, brackets and words.
        clear (`bool`): Whether it reads as arithmetic.
        labelled (`bool`): Whether a word stands in front of it.
    """

    tokens: tuple[Token, ...]
    clear: bool
    labelled: bool

    @property
    def number(self) -> Token | None:
        """Its number, if it is one without an operation. A fraction like `3/4` is one."""
        codes = [token.code for token in self.tokens]
        return self.tokens[codes.index("N")] if codes.count("N") == 1 and not {"O", "K"} & set(codes) else None

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.tokens if token.code in WORD_CODES and token.text != "%")


class TooLarge(ArithmeticError):
    """A value beyond the bounds of this module."""


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
        or re.search(f"[CD][{WORD_CODES}]?$", before)
        or COMPOUND_BEFORE.search(before) and codes[start : start + 2] == "NT"
    )  # fmt: skip
    labelled = before.endswith(tuple(WORD_CODES))
    return Side(tuple(tokens[start:end]), closed and not starts_oddly and _is_arithmetic(codes[start:end]), labelled)


def _right_side(tokens: Sequence[Token], codes: str, start: int, end: int) -> Side:
    """Up to a bracket that it closes without having opened it: `7` in `(3 + 4 = 7) * 2`."""
    depth = 0
    for index in range(start, end):
        depth += {"P": 1, "Q": -1}.get(codes[index], 0)
        if depth < 0:
            return Side(tuple(tokens[start:index]), _is_arithmetic(codes[start:index]), False)
    ends_oddly = (
        codes.startswith(("O", "M", "K"), end)
        or codes[end - 1 : end + 1] in ("NU", "QU")
        or codes.startswith("S", end) and tokens[end].text == "!" and {"O", "M"} & set(codes[start:end])  # `5 * 4!`
        or (codes[end - 1] in "T&" and "T" in codes[end - 2 : end] and COMPOUND_AFTER.match(codes, end))
    )  # fmt: skip
    return Side(tuple(tokens[start:end]), depth == 0 and not ends_oddly and _is_arithmetic(codes[start:end]), False)


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
    try:
        have_units = all(any(t.code == "T" and t.text not in ABSOLUTE for t in side.tokens) for side in (left, right))
        readings = (*READINGS, ALL_UNITS) if have_units else READINGS
        holds = any(_equal(left, right, reading, is_about) for reading in readings)
    except TooLarge:
        return None
    is_estimate = is_about and left.number is None and right.number is None  # `49 * 21 ≈ 50 * 20`
    unclear = is_estimate or _mixes_units(left, right) or _adds_percent(left) or _adds_percent(right)
    return None if unclear and not holds else holds


def _mixes_units(left: Side, right: Side) -> bool:
    """Whether units without a size of their own are added to others: `1 kg - 250 g = 750 g`."""
    tokens = (*left.tokens, *right.tokens)
    units = [token for token in tokens if token.code in "WT"]
    if {token.text for token in tokens if token.code in "OMK"} - {"+", "-"}:
        return False
    has_size = any(token.code == "T" and token.text not in ABSOLUTE for token in units)
    return has_size and any(token.code == "W" and token.text in UNSIZED for token in units)


def _adds_percent(side: Side) -> bool:
    """Whether a percentage is added to an amount, which may mean a share of it: `$50 - 20%`."""
    codes = "".join(token.code for token in side.tokens)
    return any(
        side.tokens[place.start()].text in "+-" and side.tokens[place.end() - 1].text == "%"
        and side.tokens[place.start() - 1].text != "%"
        for place in re.finditer("(?<=.)[OM]NT", codes)
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
    return other.number.value < 1 or other.tokens[-1].text in ("%", "percent")


def _equal(left: Side, right: Side, reading: Callable[[str], bool], is_about: bool) -> bool:
    try:
        values = [evaluate(side.tokens, reading) for side in (left, right)]
    except ZeroDivisionError:
        return False
    difference = abs(values[0] - values[1])
    if any((token.decimals or 0) > MAX_DECIMALS for token in (*left.tokens, *right.tokens)):  # a computer's noise
        difference -= max(1, abs(values[0])) / 10**MAX_DECIMALS
    if difference <= 0:
        return True
    for side, other, number, value in ((left, right, values[0], values[1]), (right, left, values[1], values[0])):
        nearest, cut = _rounding(side, other, reading, is_about)
        if difference <= nearest or difference < cut and abs(number) < abs(value):
            return True
    return False


def _rounding(side: Side, other: Side, reading: Callable[[str], bool], is_about: bool) -> tuple[Fraction, Fraction]:
    """
    How far a lone number may be from what it rounds: at all, and if it is nearer to zero.

    People round to the nearest, or cut from two decimals on: `20 / 3 = 6.67` and `6.66`, but not `0.19 * 1 = 0.1`.
    Without "about" they round to decimals, not to whole numbers: `10 / 3 = 3` does not hold. Zeros at the end of a
    whole number after "about" are rounded ones.
    """
    number = side.number
    if number is None or number.decimals is None or other.number and other.number.text != "fraction":
        return Fraction(0), Fraction(0)
    unit = next(scale for token, scale in _bare(side.tokens, reading) if token is number)
    if number.decimals or is_about:
        zeros = len(number.text) - len(number.text.rstrip("0")) if number.value and not number.decimals else 0
        unit *= Fraction(10) ** (zeros - min(number.decimals, MAX_DECIMALS))
        return unit / 2, Fraction(0) if zeros or number.decimals == 1 else unit
    return Fraction(0), Fraction(0)


def _bare(tokens: Sequence[Token], reading: Callable[[str], bool]) -> Iterator[tuple[Token, Fraction]]:
    """Tokens without words, each with the size of the unit behind it, if this reading counts that; else 1."""
    codes = "".join(token.code for token in tokens)
    for match in re.finditer(f"[{WORD_CODES}]KN|.", codes):
        token, after = tokens[match.start()], tokens[match.end() : match.end() + 1]
        if token.code not in WORD_CODES:
            counts = after and after[0].code == "T" and reading(after[0].text)
            scale = scale_of(after[0].text) if counts else None
            yield token, Fraction(1) if scale is None else scale


def evaluate(tokens: Sequence[Token], reading: Callable[[str], bool] = READINGS[0]) -> Fraction:
    """
    Value of a side, exactly, by the usual precedence.

    Args:
        tokens (`Sequence[Token]`): Numbers, operations and brackets in balance; words are passed over.
        reading (`Callable`, *optional*): Whether a unit counts, by its name. By default none does.

    Raises:
        ZeroDivisionError: A division by 0. TooLarge: A value, or an exponent, beyond the bounds of this module.
    """
    values: list[Fraction] = []
    pending: list[str] = []

    def work_off(precedence: int) -> None:
        while pending and pending[-1] != "(" and PRECEDENCE[pending[-1]] >= precedence:
            _apply(pending.pop(), values)

    expects_operand = True
    for token, scale in _bare(tokens, reading):
        if token.code == "N":
            values.append(token.value * scale)
        elif token.code == "P":
            pending.append("(")
        elif token.code == "Q":
            work_off(0)
            pending.pop()
            values[-1] *= scale
        elif expects_operand:
            pending.append("neg")
        else:
            work_off(PRECEDENCE[token.text] + (token.text == "^"))  # powers work from the right
            pending.append(token.text)
        expects_operand = token.code not in "NQ"
    work_off(0)
    return values[0]


def _apply(operation: str, values: list[Fraction]) -> None:
    """Replace the last two values, or for "neg" the last one, by the result."""
    right = values.pop()
    if operation == "neg":
        values.append(-right)
        return
    left = values.pop()
    if operation == "^" and (right.denominator != 1 or abs(right) > MAX_EXPONENT):
        raise TooLarge
    result = OPERATIONS[operation](left, right)
    if result.numerator.bit_length() + result.denominator.bit_length() > MAX_BITS:
        raise TooLarge
    values.append(result)
