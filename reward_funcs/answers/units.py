r"""Units, currencies and counted nouns beside a value: `15\text{ cm}^2`, `\$18.90`, `90°`, `5\%`, `12 eggs`."""

import re
from functools import lru_cache

from .counted_nouns import is_counted_noun


SPELLINGS = {
    "%": "% percent pct percentage", "°": "° degree deg celsius fahrenheit", "dollar": "$ usd buck", "cent": "¢", "euro": "€ eur",
    "pound sterling": "£ gbp", "rupee": "₹ rs inr", "foot": "ft feet", "inch": "in inche", "yard": "yd", "mile": "mi",
    "millimeter": "mm millimetre", "centimeter": "cm centimetre", "meter": "m metre", "kilometer": "km kilometre",
    "decimeter": "dm decimetre", "micrometer": "μm µm", "nanometer": "nm",
    "second": "s sec", "millisecond": "ms", "minute": "min", "hour": "h hr", "day": "d", "week": "wk", "month": "mo", "year": "yr",
    "milligram": "mg", "gram": "g gm", "kilogram": "kg", "pound": "lb", "ounce": "oz", "ton": "tonne", "liter": "l litre",
    "milliliter": "ml millilitre", "gallon": "gal", "quart": "qt", "pint": "pt", "cup": "", "teaspoon": "tsp", "tablespoon": "tbsp",
    "acre": "", "hectare": "ha", "newton": "n", "joule": "j", "kilojoule": "kj", "electronvolt": "ev", "watt": "w", "kilowatt": "kw",
    "volt": "v", "ampere": "amp", "ohm": "Ω omega", "hertz": "hz", "kelvin": "", "pascal": "pa", "kilopascal": "kpa", "atmosphere": "atm",
    "coulomb": "", "tesla": "", "mole": "mol", "radian": "rad", "byte": "", "calorie": "cal kcal",
    "square": "sq", "cubic": "cu cube", "mph": "", "kmh": "kph", "am": "", "pm": "",
}  # fmt: skip
CANONICAL = {spelling: unit for unit, spellings in SPELLINGS.items() for spelling in (unit, *spellings.split())}
COMPOUNDS = {"mph": ("mile", "hour"), "kmh": ("kilometer", "hour")}
DIMENSIONS = {"square", "cubic"}
PLURALS = {"squares", "cubes"}  # are counted, other than `square` and `cube`
# Words beside a unit or a noun that leave the value as it is.
EMPTY_WORDS = set(
    "unit per of the a an total about approximately each every altogether long tall wide deep high old distinct different "
    "possible whole ordered consecutive positive real away time"
    .split()
)  # fmt: skip
IN_COMPOUNDS = {"K": "kelvin", "C": "coulomb", "T": "tesla"}  # J/K, but 5 K may be 5000
LETTERS = set("msghdlLNJWVAaΩΩ") | {
    "¢",
    "$",
    "€",
    "£",
    "₹",
    "%",
    "°",
}  # that are a unit by themselves, and not k, M, B: thousands

NAMES = sorted((name for name in CANONICAL if name.isascii() and name.isalpha()), key=len, reverse=True)
UNIT = rf"(?:(?:{'|'.join(NAMES)})s?|kJ|kW|Pa|kPa|Hz|eV|[NJWVAKCTL])(?:\^\{{-?\d\}})?"
JOINT = r"(?:\s*/\s*|\s*\\cdot\s*|\s*\*\s*|\s*\\text\{\s*/\s*\}\s*|\s+per\s+|\s+)"
QUOTIENT = re.compile(rf"(?<=[\d}})])(?:\s+|(?=[a-zA-Z]{{2}}))(?P<text>{UNIT}(?:{JOINT}\(?{UNIT}\)?)+)$")  # 5 km/h
OVER = re.compile(
    r"\s*\\frac\{\\text\{(?P<text>[^{}]*)\}\}\{\\text\{(?P<per>[^{}]*)\}(?:\^\{-?\d\})?\}$"
)  # \frac{\text{m}}{\text{s}}
GREEK = re.compile(r"\s*\\(?P<text>Omega|mu\s*\\text\{m\}|mu\s*m)$")
CURRENCY = re.compile(r"(-?)(?:US\s?\$|\$|€|£|₹|(?:\\text\{)(?:US\s?\$|\$|€|£|₹|Rs\.?)\}|Rs\.?\s)\s*(?=[-\d.\\(])")
SYMBOL = re.compile(r"\s*(%|°(?:\\text\{\s*[CF]\s*\}|[CF])?|€|¢|\$)$")
EXPONENT = r"(?:\^\{(?P<exponent>-?\d)\})?"
TEXT = re.compile(rf"\s*[/*]?\s*(?:\\cdot\s*)?\\text\{{(?P<text>(?:[^{{}}]|\^\{{-?\d\}})*)\}}{EXPONENT}$")
SCALE = r"(?P<scale>\s+(?:hundred|thousand|million|billion|trillion))?"  # stays with the value
PLAIN = re.compile(
    rf"(?<=[\d}})]){SCALE}(?:(?P<nouns>\s+(?:in\s+)?[a-zA-Z]{{3,}}(?:\s+[a-zA-Z'-]+)*)|\s*(?P<unit>[a-zA-Z]+){EXPONENT})$"
)
NOT_NOUNS = re.compile(
    r"\b(?:and|or|to|not|more|less|least|most|than|mod|pi|sqrt|infinity|inf|sin|cos|tan|cot|sec|csc|log|ln|exp|choose|factorial|"
    r"hundred|thousand|million|billion|trillion|times|plus|minus|over|divided|by|if|for|when|where|is|are|equals?|only)\b"
)
PATTERNS = (SYMBOL, GREEK, TEXT, OVER, QUOTIENT, PLAIN)
SQUARED = re.compile(
    rf"\b((?:{'|'.join(spelling for spelling in CANONICAL if spelling.isalpha())}|unit)s?) (squared|cubed)\b"
)
NOT_TEXT_UNITS = re.compile(r"^[\s,]*$|\b(?:and|or|hundred|thousand|million|billion|trillion)\b")


@lru_cache(maxsize=16384)
def split_unit(normal: str) -> tuple[str, frozenset[str] | None]:
    r"""
    Take unit, currency or counted noun off a normal form whose rest holds a digit or `\pi`.

    Returns:
        The rest, and the words of the unit in one spelling (`{"square", "centimeter"}`), or `None` if there is no
            unit.
    """
    rest, words = normal, []
    if match := CURRENCY.match(rest):
        symbol = re.sub(r"US|\\text|[{}.\s-]", "", match.group()).lower()
        rest, words = match.group(1) + rest[match.end() :], [symbol]
    while True:
        match = next(filter(None, (pattern.search(rest) for pattern in PATTERNS)), None)
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


def same_unit(gold: frozenset[str] | None, answer: frozenset[str] | None) -> bool:
    """
    Whether an answer's unit does not contradict the gold's: one is missing, or they name the same (`feet` and `ft`,
    but not `feet` and `square feet`), or neither is a unit of measure (`dogs` and `pets`). Words of the answer that
    are no unit, no counted noun
    and not in the gold may mean anything (`dozen`, `wrong`) and are a contradiction.
    """
    if gold == answer:
        return True
    if answer and not all(_is_harmless(word) for word in answer - (gold or frozenset())):
        return False
    if not gold or not answer:
        return True
    if (gold & DIMENSIONS) != (answer & DIMENSIONS):
        return not (gold - DIMENSIONS and answer - DIMENSIONS)
    g, a = (side - DIMENSIONS for side in (gold, answer))
    return not g or not a or bool(g & a) or not ((g | a) & SPELLINGS.keys())


def _is_harmless(word: str) -> bool:
    return word in SPELLINGS or is_counted_noun(word)


def _words_of(match: re.Match) -> list[str] | None:
    groups = match.groupdict()
    if "exponent" not in groups and "text" not in groups:  # a symbol
        return [match.group(1)[0]]
    exponent = {"2": ["square"], "3": ["cubic"]}.get((groups.get("exponent") or "").lstrip("-"), [])
    if groups.get("text") is not None:
        text = re.sub(r"\^\{-?1\}", " ", f"{groups['text']} {groups.get('per') or ''}")
        text = SQUARED.sub(lambda power: f"{power[2].rstrip('d')} {power[1]}", text)
        text = re.sub(
            r"([A-Za-z]+)\^(?:\{-?)?([23])\}?", lambda power: f"{ {'2': 'sq', '3': 'cu'}[power[2]] } {power[1]}", text
        )
        if NOT_TEXT_UNITS.search(text) or re.search(r"\d", text):
            return None
        text = re.sub(r"mu\s*(?:\\text\{m\}|m)", "micrometer", text.replace(".", ""))
        words = re.findall(r"[^\W\d_]+|[$%°€£¢]", text)
        return [*exponent, *words] if words else None
    if groups["unit"] is not None:
        unit = groups["unit"]
        known = _singular(unit) in CANONICAL and len(unit) > 1
        return [*exponent, unit] if known and not NOT_NOUNS.fullmatch(unit) else None
    nouns = SQUARED.sub(lambda power: f"{power[2].rstrip('d')} {power[1]}", groups["nouns"])
    return None if NOT_NOUNS.search(nouns.lower()) else nouns.split()


def _canonical(words: list[str]) -> frozenset[str]:
    """
    Words of a unit in one spelling. A single letter is kept as it is if it is no unit by itself: `5 k` is 5000, but
    `J/K` is one.
    """
    if len(words) == 1:
        singular = [
            words[0]
            if words[0] in PLURALS or (len(words[0]) == 1 and words[0] not in LETTERS)
            else _singular(words[0])
        ]
    else:
        singular = [_singular(IN_COMPOUNDS.get(word, word)) for word in words]
    empty = EMPTY_WORDS | (
        {"in"} if len([word for word in singular if CANONICAL.get(word) not in DIMENSIONS]) > 1 else set()
    )
    canonical = [CANONICAL.get(word, word) for word in singular if word not in empty]
    if DIMENSIONS.issuperset(canonical) and "unit" not in singular and canonical:
        return frozenset({"squared"})  # `5 square` is no unit
    return frozenset(part for word in canonical for part in COMPOUNDS.get(word, (word,)))


def _singular(word: str) -> str:
    word = word.lower()
    return (
        word[:-1]
        if len(word) > 2 and word.endswith("s") and not word.endswith("ss") and word not in CANONICAL
        else word
    )
