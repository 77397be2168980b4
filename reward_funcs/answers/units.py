r"""Units, currencies and counted nouns beside a value: `15\text{ cm}^2`, `\$18.90`, `90°`, `5\%`, `12 eggs`."""

import re
from functools import lru_cache


SPELLINGS = {
    "%": "% percent pct percentage", "°": "° degree deg", "dollar": "$ usd buck", "cent": "¢", "euro": "€ eur",
    "pound sterling": "£ gbp", "rupee": "₹ rs inr", "foot": "ft feet", "inch": "in inche", "yard": "yd", "mile": "mi",
    "millimeter": "mm millimetre", "centimeter": "cm centimetre", "meter": "m metre", "kilometer": "km kilometre",
    "second": "s sec", "minute": "min", "hour": "h hr", "day": "d", "week": "wk", "month": "mo", "year": "yr",
    "milligram": "mg", "gram": "g gm", "kilogram": "kg", "pound": "lb", "ounce": "oz", "ton": "tonne", "liter": "l litre",
    "milliliter": "ml millilitre", "gallon": "gal", "quart": "qt", "pint": "pt", "cup": "", "acre": "", "hectare": "ha",
    "newton": "n", "joule": "j", "watt": "w", "volt": "v", "ampere": "a amp", "ohm": "Ω", "hertz": "hz", "kelvin": "k",
    "pascal": "pa", "mole": "mol", "radian": "rad", "square": "sq", "cubic": "cu cube", "mph": "", "kmh": "kph", "am": "", "pm": "",
}  # fmt: skip
CANONICAL = {spelling: unit for unit, spellings in SPELLINGS.items() for spelling in (unit, *spellings.split())}
COMPOUNDS = {"mph": ("mile", "hour"), "kmh": ("kilometer", "hour")}
DIMENSIONS = {"square", "cubic"}
EMPTY_WORDS = {"unit", "per", "of", "the", "a", "an", "in", "total", "about", "approximately"}

CURRENCY = re.compile(r"(-?)(?:US\s?\$|\$|€|£|₹|(?:\\text\{)(?:US\s?\$|\$|€|£|₹|Rs\.?)\}|Rs\.?\s)\s*(?=[-\d.\\(])")
SYMBOL = re.compile(r"\s*(%|°(?:\\text\{\s*[CF]\s*\}|[CF])?|€|¢|\$)$")
EXPONENT = r"(?:\^\{(?P<exponent>-?\d)\})?"
TEXT = re.compile(rf"\s*[/*]?\s*(?:\\cdot\s*)?\\text\{{(?P<text>[^{{}}]*)\}}{EXPONENT}$")
SCALE = r"(?P<scale>\s+(?:hundred|thousand|million|billion|trillion))?"  # stays with the value
PLAIN = re.compile(
    rf"(?<=[\d}})]){SCALE}(?:(?P<nouns>\s+[a-zA-Z]{{3,}}(?:\s+[a-zA-Z'-]+)*)|\s*(?P<unit>[a-zA-Z]+){EXPONENT})$"
)
NOT_NOUNS = re.compile(
    r"\b(?:and|or|to|not|more|less|least|most|than|mod|pi|sqrt|infinity|inf|sin|cos|tan|cot|sec|csc|log|ln|exp|choose|factorial|"
    r"hundred|thousand|million|billion|trillion|times|plus|minus|over|divided|by|if|for|when|where|is|are|equals?|only)\b"
)
NOT_TEXT_UNITS = re.compile(r"^[\s,]*$|\b(?:and|or|hundred|thousand|million|billion|trillion)\b")


@lru_cache(maxsize=16384)
def split_unit(normal: str) -> tuple[str, frozenset[str] | None]:
    r"""
    Take unit, currency or counted noun off a normal form whose rest holds a digit or `\pi`.

    Returns:
        The rest, and the words of the unit in one spelling (`{"square", "centimeter"}`), or `None` if there is no unit.
    """
    rest, words = normal, []
    if match := CURRENCY.match(rest):
        symbol = re.sub(r"US|\\text|[{}.\s-]", "", match.group()).lower()
        rest, words = match.group(1) + rest[match.end() :], [symbol]
    while True:
        match = SYMBOL.search(rest) or TEXT.search(rest) or PLAIN.search(rest)
        if match is None:
            break
        core = rest[: max(match.start(), match.end("scale") if "scale" in match.groupdict() else 0)].rstrip()
        if not re.search(r"\d|\\pi(?![a-zA-Z])", core) or core[-1] in "+-*/^_=<>,;(":
            break
        if match.group().strip().startswith("°") and re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", core):
            break  # the degrees of an argument
        found = _words_of(match)
        if found is None:
            break
        rest, words = core, found + words
    return (rest, _canonical(words)) if words else (normal, None)


def same_unit(a: frozenset[str] | None, b: frozenset[str] | None) -> bool:
    """
    Whether two units do not contradict each other: one is missing, or they name the same (`feet` and `ft`, but not `feet` and
    `square feet`), or neither is a unit of measure (`dogs` and `pets`).
    """
    if not a or not b or a == b:
        return True
    if (a & DIMENSIONS) != (b & DIMENSIONS):
        return not (a - DIMENSIONS and b - DIMENSIONS)
    a, b = a - DIMENSIONS, b - DIMENSIONS
    return not a or not b or bool(a & b) or not ((a | b) & SPELLINGS.keys())


def _words_of(match: re.Match) -> list[str] | None:
    groups = match.groupdict()
    if "exponent" not in groups:  # a symbol
        return [match.group(1)[0]]
    exponent = {"2": ["square"], "3": ["cubic"]}.get((groups["exponent"] or "").lstrip("-"), [])
    if groups.get("text") is not None:
        text = groups["text"]
        if NOT_TEXT_UNITS.search(text) or re.search(r"\d", re.sub(r"[a-z]\d|\(.*\)", "", text)):
            return None
        return [*exponent, *re.findall(r"[^\W\d_]+|[$%°€£¢]", text.replace(".", ""))]
    if groups["unit"] is not None:
        unit = groups["unit"]
        known = _singular(unit) in CANONICAL and len(unit) > 1
        return [*exponent, unit] if known and not NOT_NOUNS.fullmatch(unit) else None
    return None if NOT_NOUNS.search(groups["nouns"].lower()) else groups["nouns"].split()


def _canonical(words: list[str]) -> frozenset[str]:
    singular = (_singular(word) for word in words)
    canonical = (CANONICAL.get(word, word) for word in singular if word not in EMPTY_WORDS)
    return frozenset(part for word in canonical for part in COMPOUNDS.get(word, (word,)))


def _singular(word: str) -> str:
    word = word.lower()
    return (
        word[:-1]
        if len(word) > 2 and word.endswith("s") and not word.endswith("ss") and word not in CANONICAL
        else word
    )
