r"""Plain numbers, read exactly: integers, decimals, fractions, mixed numbers, scientific notation, repeating
decimals."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache


MIN_ROUNDED_DIGITS = 6  # a decimal stands for 1/3 or the like if it has so many decimals and significant digits
MAX_EXPONENT = 999

DIGITS = r"(?:\d{1,3}(?: \d{3})+|\d+)"
DECIMAL = rf"(?:{DIGITS}(?:\.\d*)?|\.\d+)"
NUMBER = re.compile(
    rf"(?P<sign>-*)(?:"
    rf"(?P<mantissa>{DECIMAL})(?:[eE](?P<e>[+-]?\d{{1,3}})|\s*(?:\\times|\\cdot|\*)\s*10\^\{{?(?P<ten>[+-]?\d{{1,3}})\}}?)"
    rf"|10\^\{{(?P<power>-?\d{{1,3}})\}}"
    rf"|(?P<head>\d*)\.(?P<fixed>\d*)\\(?:overline|bar)\{{(?P<cycle>\d+)\}}"
    rf"|(?P<whole>\d+)?\s*(?:\\frac\{{(?P<n>-?{DECIMAL})\}}\{{(?P<d>-?{DECIMAL})\}}|(?<!\d)(?P<n2>{DECIMAL})/(?P<d2>{DECIMAL}))"
    rf"|(?P<decimal>{DECIMAL})"
    rf")"
)
WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
    "nineteen twenty"
).split()
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALED = re.compile(rf"(?P<core>.*?\S)\s*(?:\\text\{{)?(?P<scale>{'|'.join(SCALES)})\}}?")


@dataclass(frozen=True)
class Number:
    """An exact value. `half_ulp`: half a unit of the last decimal, if it is a decimal that may be a rounded value,
    else None."""

    value: Fraction
    half_ulp: Fraction | None = None


@lru_cache(maxsize=16384)
def parse_number(normal: str) -> Number | None:
    r"""
    Read a normal form as a number: `12`, `1234.5`, `1 234.5`, `-.5`, `3/4`, `\frac{3}{4}`, `1\frac{1}{2}`, `1 1/2`,
    `1.6\times 10^{-19}`, `1.6e-19`, `0.\overline{3}`, `twelve`, `3 million`. Anything else: `None`.
    """
    word = normal.lower()
    if word in WORDS:
        return Number(Fraction(WORDS.index(word)))
    if (negated := re.fullmatch(r"(?:negative|minus) (\S.*)", word)) and (number := parse_number(negated[1])):
        return Number(-number.value, number.half_ulp)
    if (scaled := SCALED.fullmatch(word)) and (number := parse_number(scaled["core"])):
        return Number(number.value * SCALES[scaled["scale"]])
    match = NUMBER.fullmatch(normal.replace(" ", "") if re.fullmatch(r"-\s[^ ]+", normal) else normal)
    if match is None:
        return None
    part = match.groupdict()
    sign = (-1) ** len(part["sign"])
    if part["mantissa"]:
        return _scaled(sign, part["mantissa"], int(part["e"] or part["ten"]))
    if part["power"]:
        return Number(sign * Fraction(10) ** int(part["power"]))
    if part["cycle"]:
        shift, nines = 10 ** len(part["fixed"]), 10 ** len(part["cycle"]) - 1
        start = Fraction(int(part["head"] + part["fixed"] or "0"), shift)
        return Number(sign * (start + Fraction(int(part["cycle"]), nines * shift)))
    if part["decimal"]:
        return _scaled(sign, part["decimal"], 0)
    numerator, denominator = _exact(part["n"] or part["n2"]), _exact(part["d"] or part["d2"])
    if denominator == 0 or (part["whole"] and (numerator < 0 or denominator < 0)):
        return None
    return Number(sign * (int(part["whole"] or 0) + numerator / denominator))


def same_number(a: Number, b: Number) -> bool:
    """
    Exact equality, but that a decimal of at least six decimals and digits also stands for the value without finite
    decimals
    which it is rounded from (`0.333333` for 1/3).
    """
    return a.value == b.value or is_rounding_of(a, b.value) or is_rounding_of(b, a.value)


def is_rounding_of(decimal: Number, value: Fraction) -> bool:
    """Whether `decimal` has enough digits and is the rounded `value`, which must have no finite decimal expansion
    itself."""
    if decimal.half_ulp is None:
        return False
    denominator = value.denominator
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator != 1 and abs(decimal.value - value) <= decimal.half_ulp


def _exact(digits: str) -> Fraction:
    return Fraction(digits.replace(" ", ""))


def _scaled(sign: int, digits: str, exponent: int) -> Number:
    value = sign * _exact(digits) * Fraction(10) ** exponent
    bare = digits.replace(" ", "")
    whole, _, decimals = bare.partition(".")
    rounded = min(len(decimals), len((whole + decimals).lstrip("0"))) >= MIN_ROUNDED_DIGITS
    return Number(value, Fraction(10) ** (exponent - len(decimals)) / 2 if rounded else None)
