"""The two sides of an equation as values: exact fractions, with and without their units, and as people round them.

Nothing is evaluated but by this module's own arithmetic on `Fraction`.
"""

import operator
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

from .equation_text import ABSOLUTE, PERCENT, WORD_CODES, Token, scale_of


MAX_DECIMALS = 9  # beyond them a number is as a computer prints it: 0.47119999999999995
MAX_EXPONENT = 64
MAX_BITS = 4_000  # of a value on the way

OPERATIONS: dict[str, Callable[[Any, Any], Any]] = {
    "+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv, "^": operator.pow,
}  # fmt: skip
PRECEDENCE = {"+": 1, "-": 1, "*": 2, "/": 2, "neg": 3, "^": 4}

# A number may be meant with its percent sign and unit or without: `20% * 50 = 10` and `5 / 20 * 100 = 25%`,
# `2 hours + 30 minutes = 150 minutes` and `2 hours * 60 = 120 minutes`. All numbers of an equation are read alike.
READINGS: tuple[Callable[[str], bool], ...] = (
    lambda unit: False,
    lambda unit: unit in PERCENT,
    lambda unit: unit in ABSOLUTE,
)
ALL_UNITS: Callable[[str], bool] = lambda unit: True  # only where both sides have one  # noqa: E731


class Side(NamedTuple):
    """
    A side of an equation.

    Attributes:
        tokens (`tuple[Token, ...]`): Its numbers, operations, brackets and words.
        clear (`bool`): Whether it reads as arithmetic.
        labelled (`bool`): Whether a word stands in front of it.
        doubtful (`bool`): Whether what stands beside it may belong to it: it may hold, but not be wrong.
    """

    tokens: tuple[Token, ...]
    clear: bool
    labelled: bool = False
    doubtful: bool = False

    @property
    def codes(self) -> str:
        return "".join(token.code for token in self.tokens)

    @property
    def number(self) -> Token | None:
        """Its number, if it is one without an operation. A fraction like `3/4` is one."""
        codes = self.codes
        return self.tokens[codes.index("N")] if codes.count("N") == 1 and not {"O", "K"} & set(codes) else None

    @property
    def operations(self) -> set[str]:
        return {token.text for token in self.tokens if token.code in "OMK"}

    @property
    def has_sized_unit(self) -> bool:
        """Whether it has a unit of a known size, percent, money and dozens aside."""
        return any(token.code == "T" and token.text not in ABSOLUTE for token in self.tokens)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(token.text for token in self.tokens if token.code in WORD_CODES and token.text != "%")


class TooLarge(ArithmeticError):
    """A value beyond the bounds of this module."""


def holds(left: Side, right: Side, readings: Iterable[Callable[[str], bool]], is_about: bool) -> bool:
    """Whether both sides are equal by one of the readings, or one is the other as people round it."""
    return any(_equal(left, right, reading, is_about) for reading in readings)


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
    Without "about" they round to decimals and to whole percents, not to whole numbers: `10 / 3 = 3` does not hold.
    Zeros at the end of a whole number after "about" are rounded ones.
    """
    number = side.number
    if number is None or number.decimals is None or other.number and other.number.text != "fraction":
        return Fraction(0), Fraction(0)
    unit = next(scale for token, scale in _bare(side.tokens, reading) if token is number)
    if number.decimals or is_about:
        zeros = len(number.text) - len(number.text.rstrip("0")) if number.value and not number.decimals else 0
        unit *= Fraction(10) ** (zeros - min(number.decimals, MAX_DECIMALS))
        return unit / 2, Fraction(0) if zeros or number.decimals == 1 else unit
    after = side.tokens[side.tokens.index(number) + 1 :][:1]
    if unit < 1 and after[0].text in PERCENT:  # `2 / 3 = 67%`
        return unit / 2, Fraction(0)
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
