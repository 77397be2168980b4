r"""Computer algebra, in the worker processes only: single expressions, equations and sets, parsed by math-verify.

Expressions are equal if they agree to forty digits at fixed random points. The values are cached, most wrong answers
are refused without any simplification, and it holds where math-verify's own numeric comparison does not: that rounds
to six
decimals (`.0000672` equals `.000067`) and chops below 1e-15 (`\frac{1}{2^{98}}` equals `\frac{1}{2^{97}}`). Equations
    are
equal if they are multiples of each other. Sets and inequalities go to `math_verify.verify`.
"""

import random
import re
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, parse, verify
from sympy.core.function import AppliedUndef

from .exact_numbers import parse_number
from .formulas import with_named_primes


EXTRACTION = [
    LatexExtractionConfig(
        try_extract_without_anchor=False,
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="last", equations=False
        ),
    )
]
DIGITS = 50  # that values are computed to
TOLERANCE = sympy.Float("1e-40", DIGITS)
NOISE = sympy.Float("1e-100", DIGITS)  # below this it is what is left of zero
DEGREES = re.compile(r"(\d+(?:\.\d+)?)°")  # dropped otherwise
PRODUCT = re.compile(r"(?<=[\d)])\s*\(")  # 2(3) would be read as 2 + 3
CAPITAL = re.compile(  # read as small ones otherwise
    r"(\\end\{\w+\}\^\{T\}|\\(?:mathbb|text|begin|end|operatorname)\{[^{}]*\}|\\[a-zA-Z]+)|([A-Z])(?!_)"
)
POINTS = ("positive 1", "positive 2", "mixed 1", "mixed 2")  # where variables are positive, and of either sign


def equal_expressions(gold: str, answer: str) -> bool:
    """Whether two normal forms, each one expression, equation, inequality or set, are equal in value. May take for
    ever."""
    g, a = parse_expression(gold), parse_expression(answer)
    if g is None or a is None:
        return False
    if _is_matrix(g) and _is_matrix(a):
        return _equal_matrices(g, a)
    if isinstance(g, sympy.Eq) and isinstance(a, sympy.Eq):
        return _equal_equations(gold, answer)
    if isinstance(g, sympy.Expr) and isinstance(a, sympy.Expr):
        same = _same_values(values(gold), values(answer))
        if same is not None:
            return same or _is_rounded(gold, answer) or _is_rounded(answer, gold)
    if isinstance(g, sympy.Expr) != isinstance(a, sympy.Expr):
        return False
    return verify(g, a, timeout_seconds=None, allow_set_relation_comp=True)


@lru_cache(maxsize=4096)
def parse_expression(normal: str) -> Any:  # sympy has no types
    """What math-verify makes of a normal form, a `sympy.Basic` or a `sympy.MatrixBase`; or `None`."""
    latex = DEGREES.sub(r"(\\frac{\1\\pi}{180})", with_named_primes(normal)).replace("%", r"\%")
    latex = PRODUCT.sub(r"\\cdot(", latex)
    latex = CAPITAL.sub(lambda match: match[1] or f"{match[2]}_{{capital}}", latex)
    parsed = parse(
        rf"\boxed{{{latex}}}",
        EXTRACTION,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return parsed[0] if parsed else None


def _is_matrix(parsed: Any) -> bool:
    """A matrix, or sums, products, powers and transposes of some."""
    if isinstance(parsed, sympy.MatrixBase):
        return True
    nodes = sympy.preorder_traversal(parsed) if isinstance(parsed, sympy.Basic) else ()
    return any(isinstance(node, sympy.MatrixBase) for node in nodes)


def _equal_matrices(gold: Any, answer: Any) -> bool:
    """Whether two matrices, worked out, have equal entries."""
    g, a = (side if isinstance(side, sympy.MatrixBase) else side.doit() for side in (gold, answer))
    if not isinstance(g, sympy.MatrixBase) or not isinstance(a, sympy.MatrixBase) or g.shape != a.shape:
        return False
    return all(_same_values(_values(x), _values(y)) or False for x, y in zip(g, a, strict=True))


@lru_cache(maxsize=4096)
def values(normal: str) -> tuple[sympy.Expr | None, ...] | None:
    """
    Values of an expression, `None` where there is none: one if it has no variables (exact if that is rational), else
    one at each of the points. `None` altogether if it is no formula that can be evaluated (an unknown function, a
    set).
    """
    return _values(parse_expression(normal))


def _values(expression: sympy.Expr) -> tuple[sympy.Expr | None, ...] | None:
    expression = expression.xreplace({number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)})
    expression = expression.xreplace({symbol: sympy.I for symbol in expression.free_symbols if symbol.name == "i"})
    if expression.atoms(AppliedUndef):
        return None
    symbols = expression.free_symbols
    if not symbols:
        number = expression.doit()
        return (number if number.is_Rational or number.is_infinite else _number(number),)
    coordinates = ({symbol: _coordinate(symbol.name, point) for symbol in symbols} for point in POINTS)
    return tuple(_number(expression.xreplace(at)) for at in coordinates)


def _coordinate(name: str, point: str) -> sympy.Rational:
    """Fixed value of a variable at a point: between 1/2 and 3, of random sign at the mixed points, never the same
    twice."""
    draw = random.Random(f"{name} {point}")
    size = sympy.Rational(draw.randrange(5 * 10**11, 3 * 10**12), 10**12)
    return size if point.startswith("positive") else size * draw.choice((-1, 1))


def _number(expression: sympy.Expr) -> sympy.Expr | None:
    number = expression.evalf(DIGITS)
    parts = number.as_real_imag()
    return number if all(part.is_Number and part.is_finite for part in parts) else None


def _same_values(gold: tuple | None, answer: tuple | None) -> bool | None:
    r"""
    Whether values agree wherever the gold has one; `None` if that cannot be told. At the mixed points only real values
    of the
    gold count, so that formulas for positive variables (`x\sqrt{x}`) need to agree for those alone.
    """
    if gold is None or answer is None:
        return None
    if len(gold) != len(answer):  # one has variables; the other may be its constant value
        gold, answer = (side * len(POINTS) if len(side) == 1 else side for side in (gold, answer))
    compared = 0
    for index, (g, a) in enumerate(zip(gold, answer, strict=True)):
        if g is None or (index >= 2 and not g.is_real):
            continue
        if a is None or not _same_number(g, a):
            return False
        compared += 1
    return True if compared >= min(2, len(gold)) else None


def _same_number(a: sympy.Expr, b: sympy.Expr) -> bool:
    if a == b:
        return True
    if (a.is_Rational and b.is_Rational) or a.is_infinite or b.is_infinite:
        return False
    scale = max(abs(a), abs(b))
    return bool(abs(sympy.N(a - b, DIGITS)) <= TOLERANCE * scale) or bool(scale < NOISE)


def _is_rounded(decimal: str, exact: str) -> bool:
    """Whether one side is a decimal of enough digits, and the other the irrational number that it is rounded from."""
    number, value = parse_number(decimal), values(exact)
    if (
        number is None
        or number.half_ulp is None
        or value is None
        or len(value) != 1
        or value[0] is None
        or not value[0].is_real
    ):
        return False
    if value[0].is_Rational:  # decided by exact arithmetic
        return False
    return bool(abs(value[0] - _rational(number.value)) <= _rational(number.half_ulp))


def _rational(fraction: Fraction) -> sympy.Rational:
    return sympy.Rational(fraction.numerator, fraction.denominator)


def _equal_equations(gold: str, answer: str) -> bool:
    """Whether the differences of the sides are multiples of each other, by a factor other than zero."""
    g, a = (values(f"{left}-({right})") for left, right in (gold.split("=", 1), answer.split("=", 1)))
    if g is None or a is None or len(g) != len(a):
        return False
    pairs = [(x, y) for x, y in zip(g, a, strict=True) if x is not None and y is not None]
    if len(pairs) < 2 or any(x.is_zero or y.is_zero for x, y in pairs):
        return False
    return all(_same_number(pairs[0][0] * y, pairs[0][1] * x) for x, y in pairs[1:])
