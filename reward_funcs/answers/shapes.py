r"""The shape of an answer: number, list, tuple or interval, matrix, equation, words, ... read from its normal form.

Shapes are what keeps answers apart that computer algebra confuses: a pair and a set, `(a,b)` and `[a,b]`, `9:24` and
3/8, `52_8` and 52, CAKE and the product of C, A, K and E.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..completions import closing_brace
from .exact_numbers import parse_number
from .units import split_unit


RELATIONS = re.compile(r"<|>|=|\\(?:leq|geq|neq|in|approx|equiv)(?![a-zA-Z])")
SEPARATORS = re.compile(
    r"[,;]?\s*\\text\{\s*,?\s*(?:and|or)\s*\}\s*|[,;]?(?<![a-zA-Z])\s*\b(?:and|or)\b\s*(?![a-zA-Z])|[,;]\s*"
)
UNION = re.compile(r"\s*\\cup(?![a-zA-Z])\s*")
MATRIX = re.compile(
    r"\\begin\{(?:[pbB]?matrix|smallmatrix|array)\}(?:\{[^{}]*\})?(?P<body>(?:(?!\\begin).)*)\\end\{\w+\}", re.DOTALL
)
PLACE_VALUE = re.compile(r"(?:\\text\{)?(?P<digits>-?[0-9A-Z]+)\}?_\{(?:\\text\{)?(?P<base>[0-9a-z]+|\([0-9]+\))\}?\}")
RATIO = re.compile(r"-?\d+(?:\.\d+)?(?::-?\d+(?:\.\d+)?)+")
SET_BUILDER = re.compile(r"(?P<name>[a-zA-Z])(?:\\in\s*\\mathbb\{R\})?\s*[:|]\s*(?P<condition>.+)")
BOOLEANS = {"true": True, "false": False, "yes": True, "no": False}
SYNONYMS = {
    spelling: words
    for words, spellings in {
        "not exist": ("dne", "does not exist", "doesn't exist", "none exist"),
        "no solution": (
            "no solutions",
            "no real solution",
            "no real solutions",
            "empty set",
            "the empty set",
            "no such values",
        ),
    }.items()
    for spelling in spellings
}
MATH_WORDS = re.compile(
    r"\b(?:pi|sqrt|infty|infinity|inf|sin|cos|tan|cot|sec|csc|log|ln|exp|frac|arcsin|arccos|arctan)\b"
)
WORDS = re.compile(r"[A-Za-z0-9 .,'!?:;()/&-]*(?:[A-Za-z]{3}|[A-Z]{2})[A-Za-z0-9 .,'!?:;()/&-]*")


@dataclass(frozen=True)
class Shape:
    r"""
    Attributes:
        kind (`str`): `number`, `boolean`, `words`, `letter`, `place_value`, `ratio`, `list` (order is free), `tuple`
            (order counts; also intervals), `union`, `matrix`, `equation` (`=` and `\approx`), `relation` (`<`, `\neq`,
            ...), `member` (`x \in ...`), `empty`, or `expression` for everything else.
        text (`str`): Normal form of the answer, without its unit.
        parts (`tuple`): Elements of a list, tuple or union; rows (tuples) of a matrix; sides of an equation or
            relation.
        value: Number, truth value, words, delimiters of a tuple, the one word (`and`, `or`) that joins a list; `None`
        for other kinds.
        unit (`frozenset[str]` or `None`): Unit, if one is written.
    """

    kind: str
    text: str
    parts: tuple = ()
    value: Any = None
    unit: frozenset[str] | None = None


@lru_cache(maxsize=16384)
def shape_of(normal: str) -> Shape:
    """Shape of an answer in normal form."""
    text = normal.strip()
    if not text:
        return Shape("empty", text)
    if (inner := _inside_text(text)) is not None:
        return _shape_of_words(inner, text) or shape_of(inner)
    if text == r"\emptyset":
        return Shape("words", text, value="no solution")
    if text.lower() in BOOLEANS:
        return Shape("boolean", text, value=BOOLEANS[text.lower()])
    core, unit = split_unit(text)
    if number := parse_number(core):
        return Shape("number", core, value=number, unit=unit)
    for reader in (_list, _relation, _delimited, _union, _matrix):
        if shape := reader(text):
            return shape
    if unit is not None:
        bare = shape_of(core)
        return Shape(bare.kind, bare.text, bare.parts, bare.value, unit)
    if match := PLACE_VALUE.fullmatch(text):
        base = parse_number(match["base"].strip("()"))
        return Shape("place_value", text, value=(match["digits"], base or match["base"]))
    if RATIO.fullmatch(text):
        return Shape("ratio", text, value=tuple(parse_number(part) for part in text.split(":")))
    if re.fullmatch(r"[A-Za-z]", text):
        return Shape("letter", text)
    if WORDS.fullmatch(text) and not MATH_WORDS.search(text.lower()):
        return _words(text)
    return Shape("expression", text)


def split_top_level(text: str, pattern: re.Pattern) -> tuple[list[str], list[str]]:
    """Split where `pattern` matches outside all brackets and environments. Returns the pieces and the separators."""
    pieces, separators, depth, start, position = [], [], 0, 0, 0
    token = re.compile(r"\\(?:begin|end)\b|\\[{}]|[()\[\]{}]")
    while position < len(text):
        if depth == 0 and (match := pattern.match(text, position)) and match.end() > position:
            pieces.append(text[start:position])
            separators.append(match.group())
            start = position = match.end()
            continue
        bracket = token.match(text, position)
        if bracket is None:
            command = re.compile(r"\\[a-zA-Z]+|\\.").match(text, position)
            position = command.end() if command else position + 1
            continue
        depth += 1 if bracket.group() in ("\\begin", "\\{", "(", "[", "{") else -1
        position = bracket.end()
    return [*pieces, text[start:]], separators


def _inside_text(text: str) -> str | None:
    r"""Content of an answer that is one `\text{...}`, one pair of braces, or one pair of redundant parentheses."""
    opening = re.match(r"(?:\\text)?\{", text)
    if opening and closing_brace(text, opening.end() - 1) == len(text) - 1:
        return text[opening.end() : -1].strip(" .,;:" if opening.group().startswith("\\text") else None)
    if text[0] == "(" and _closes_at_end(text) and len(split_top_level(text[1:-1], SEPARATORS)[0]) == 1:
        return text[1:-1].strip()
    return None


def _shape_of_words(inner: str, text: str) -> Shape | None:
    r"""Words, if they were marked as text: `\text{Row 3}` is words, while `\text{5}`, `\text{A, B}` and `(x+1)` are
    not."""
    if not text.startswith("\\text") or "\\" in inner or re.search(r"[=<>_^{}]", inner):
        return None
    plain = shape_of(inner)
    return _words(inner) if plain.kind == "expression" and re.search(r"[A-Za-z]{2}", inner) else plain


def _words(text: str) -> Shape:
    words = " ".join(re.sub(r"[.,!?;:'\"]", " ", text.lower().replace("n't", " not")).split())
    return Shape("words", text, value=SYNONYMS.get(words, words))


def _closes_at_end(text: str) -> bool:
    """Whether the bracket that opens the text is closed by the last one, of whatever form (`[0,1)`)."""
    depth = 0
    for match in re.finditer(r"\\[{}]|[()\[\]]", text):
        depth += 1 if match.group() in ("\\{", "(", "[") else -1
        if depth == 0:
            return match.end() == len(text)
    return False


def _relation(text: str) -> Shape | None:
    sides, signs = split_top_level(text, RELATIONS)
    if not signs:
        return None
    parts = tuple(side.strip() for side in sides)
    if all(sign in ("=", r"\approx") for sign in signs):
        return Shape("equation", text, parts=parts, value=tuple(signs))
    return Shape("member" if signs == [r"\in"] else "relation", text, parts=parts)


def _list(text: str) -> Shape | None:
    elements, separators = split_top_level(text, SEPARATORS)
    elements = [value for element in elements if element.strip() for value in _both_signs(element.strip())]
    joints = set(re.findall(r"and|or", " ".join(separators)))
    joint = joints.pop() if len(joints) == 1 else None
    return Shape("list", text, parts=tuple(elements), value=joint) if len(elements) > 1 else None


def _both_signs(element: str) -> list[str]:
    r"""The two values of an element with `\pm` outside all brackets but braces."""
    signs = re.findall(r"\\(?:pm|mp)(?![a-zA-Z])", element)
    if not signs or element.startswith(("(", "[", "\\{")):
        return [element]
    plus, minus = (
        re.sub(r"\\pm(?![a-zA-Z])\s*", up, re.sub(r"\\mp(?![a-zA-Z])\s*", down, element)) for up, down in ("+-", "-+")
    )
    return [plus.removeprefix("+"), minus.removeprefix("+")]


def _delimited(text: str) -> Shape | None:
    match = re.match(r"\\\{|[(\[]", text)
    if not match or not re.search(r"(?:\\\}|[)\]])$", text) or not _closes_at_end(text):
        return None
    opening, closing = match.group(), "\\}" if text.endswith("\\}") else text[-1]
    inner = text[len(opening) : -len(closing)].strip()
    elements = [element.strip() for element in split_top_level(inner, SEPARATORS)[0]]
    if opening == "\\{":
        if closing != "\\}":
            return None
        if (builder := SET_BUILDER.fullmatch(inner)) is not None:
            return _set_builder(builder, text)
        elements = [value for element in elements if element for value in _both_signs(element)]
        return Shape("list", text, parts=tuple(elements)) if elements else shape_of(r"\emptyset")
    if "" in elements:
        return None
    if len(elements) == 1:  # round ones were taken off before
        return shape_of(inner) if MATRIX.fullmatch(inner) else Shape("tuple", text, tuple(elements), opening + closing)
    return Shape("tuple", text, tuple(elements), opening + closing)


def _set_builder(builder: re.Match, text: str) -> Shape:
    r"""`\{t : t > 1\}` is the relation `x>1`, whatever the bound name; with a condition on something else it is left
    as it is."""
    name, condition = builder["name"], builder["condition"].strip()
    letter = re.compile(rf"(?<![\\a-zA-Z]){name}(?![a-zA-Z])")
    relation = shape_of(condition)
    if relation.kind not in ("relation", "list") or not letter.search(condition) or (name != "x" and "x" in condition):
        return Shape("expression", text)
    return shape_of(letter.sub("x", condition))


def _union(text: str) -> Shape | None:
    pieces, signs = split_top_level(text, UNION)
    return Shape("union", text, parts=tuple(piece.strip() for piece in pieces)) if signs else None


def _matrix(text: str) -> Shape | None:
    match = MATRIX.fullmatch(text)
    if match is None:
        return None
    rows = [
        row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr\b", match["body"].replace(r"\hline", "")) if row.strip()
    ]
    return Shape("matrix", text, parts=tuple(tuple(cell.strip() for cell in row.split("&")) for row in rows))
