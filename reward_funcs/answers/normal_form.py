r"""One spelling for the many spellings of the same LaTeX: `\dfrac12`, `\frac{1}{2}` and `\tfrac 12` are one string.

Only spelling is touched, never value: equal normal forms mean equal answers. Nothing is parsed here and nothing is
imported, so that the trainer's process can compare most answers without any computer algebra. Spellings that
math-verify reads as well
as we do are left to it, but for those of plain numbers (`\dfrac`, `−`, `×`), which then need no computer algebra.
"""

import re
from functools import lru_cache
from typing import Any

from ..completions import closing_brace
from .dress import undress


CHARACTERS = str.maketrans(
    {
        "−": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⁄": "/",
        "π": r"\pi ", "θ": r"\theta ", "∞": r"\infty ", "±": r"\pm ", "∓": r"\mp ", "≤": r"\leq ",
        "≥": r"\geq ", "≠": r"\neq ", "≈": r"\approx ", "∈": r"\in ", "∪": r"\cup ", "∩": r"\cap ",
        "ℝ": r"\mathbb{R}", "∅": r"\emptyset ", "²": "^2", "³": "^3", "º": "°", "′": "'", "’": "'", "“": '"', "”": '"', "，": ",", "（": "(",
        "）": ")", "\u200b": "",
    }
)  # fmt: skip

SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "tbinom": "binom", "dbinom": "binom", "vert": "|", "le": "leq", "leqslant": "leq",
    "ge": "geq", "geqslant": "geq", "ne": "neq", "lt": "<", "gt": ">", "lbrace": "{", "rbrace": "}", "lbrack": "[",
    "rbrack": "]", "lparen": "(", "rparen": ")", "langle": "(", "rangle": ")", "lvert": "|", "rvert": "|",
    "varnothing": "emptyset", "infin": "infty", "ast": "*", "colon": ":", "simeq": "approx", "thickapprox": "approx",
    "degree": "°", "degrees": "°", "land": "text{ and }", "lor": "text{ or }", "mbox": "text", "hbox": "text", "textnormal": "text",
    "textrm": "text", "textbf": "text", "textit": "text", "textsf": "text", "texttt": "text", "textup": "text", "emph": "text",
    "mathrm": "text", "mathbf": "text", "mathit": "text", "mathsf": "text", "mathtt": "text", "boldsymbol": "text", "bm": "text",
    "bold": "text", "operatorname": "text", "mathop": "text", "tg": "tan", "ctg": "cot", "arctg": "arctan", "wedge": "text{ and }",
    "vee": "text{ or }", "implies": "to", "rightarrow": "to", "Rightarrow": "to", "longrightarrow": "to", "lnot": "neg",
}  # fmt: skip
FUNCTIONS = (
    "sin|cos|tan|cot|sec|csc|sinh|cosh|tanh|arcsin|arccos|arctan|arccot|arcsec|arccsc|log|ln|lg|exp|sqrt|det|gcd|lcm"
)
SIZES = "left|right|middle|bigl|bigr|biggl|biggr|Bigl|Bigr|Biggl|Biggr|big|Big|bigg|Bigg|mleft|mright"
NOTHING = "displaystyle|textstyle|scriptstyle|limits|nolimits|mathstrut|strut|rm|bf|it"

# Applied in this order; each pattern with its replacement.
REWRITES: list[tuple[re.Pattern[str], Any]] = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"√\s*(\d+(?:\.\d+)?|[a-zA-Z])", r"\\sqrt{\1}"),
        (r"√", r"\\sqrt "),
        (r"\*\*", "^"),
        (r"(?<![\\a-zA-Z])(?:infinity|infty)(?![a-zA-Z])", r"\\infty "),
        (r"(?<![\\a-zA-Z])(sqrt|pi)(?![a-zA-Z])", r"\\\1 "),
        (r"(?<=:\d\d)\s*(?:\\text\s*\{\s*)?([aApP])\.?\s?[mM]\.?\s*\}?\s*$", r"\\text{\1m}"),  # 8:34 p.m.
        (r"(?<=\d)(?:,\\!|\{,\})\s*(?=\d{3}(?!\d))", ""),  # 10,\!080 and 10{,}080
        (rf"\\(?:{SIZES}|{NOTHING})(?![a-zA-Z])", ""),
        (r"\\[hv]?phantom\s*(?:\{[^{}]*\}|.)|\\[hv]space\*?\s*\{[^{}]*\}", ""),
        (r"(?<!\\)\\!", ""),
        (r"(?<=\d)(?<!\\)\\[,; ](?=\d{3}(?!\d))", ""),  # 10\,080
        (r"(?<!\\)\\(?:[,;:> ~]|quad(?![a-zA-Z])|qquad(?![a-zA-Z])|thinspace(?![a-zA-Z]))|~", " "),
        (r"\\mathrm\s*\{\s*([eid]|\d+)\s*\}", r" \1"),  # \mathrm{m} is a unit
        (r"\\(?:math(?:bf|it|sf)|boldsymbol|bm)\s*\{\s*(\w|\d+)\s*\}", r" \1"),
        (r"\\(?:operatorname|mathop|mathrm|text|textrm)\*?\s*\{\s*(" + FUNCTIONS + r")\s*\}", r"\\\1 "),
        (r"\\lg(?![a-zA-Z])", r"\\log_{10}"),
        (r"\\mid(?![a-zA-Z])", "|"),
        (r"(?<=matrix\})\s*\^\s*\{?\s*\\(?:top|intercal)(?![a-zA-Z])\s*\}?", "^{T}"),
        (r"\^\s*\{?\s*((?:\\prime(?![a-zA-Z])\s*)+)\}?", lambda match: "'" * match[1].count("prime")),
        (r"\\([$%#&_])", r"\1"),
        (r"\^\s*\{?\s*\\circ(?![a-zA-Z])\s*\}?|\\circ\b\s*$", "°"),
    ]
]
THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
COMMAND = re.compile(r"\\([a-zA-Z]+)\*?")
ARGUMENTS = re.compile(r"\\(frac|sqrt|binom)(?![a-zA-Z])\s*")
ARGUMENT = re.compile(r"\s*(\{|\\[a-zA-Z]+|\w)")
TIGHT = re.compile(r"\s*([=+\-*/^_(){}\[\],;:<>|&'°%])\s*")  # no blank beside these
SCRIPT = re.compile(r"([_^])(-?\d+(?:\.\d+)?|[a-zA-Z]|\\(?!frac|sqrt|binom|text)[a-zA-Z]+)")


@lru_cache(maxsize=16384)
def normal_form(text: str) -> str:
    r"""
    Normal form of one answer: commands in one spelling, all arguments in braces, no thousands marks of LaTeX, no
    sizes, no outer `$`, single blanks only between words. Degree signs are `°`, percent `%`, dollars `$`, fonts and
    boxes `\text{}`.
    """
    text = undress(text.translate(CHARACTERS))
    if "\\begin" not in text:
        text = re.sub(r"\\\\(?=[a-zA-Z])", r"\\", text)  # commands written with two backslashes
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    text = COMMAND.sub(_one_spelling, text)
    if not re.search(r"[(\[]|\\\{", text):  # (1,234) is a pair, and so is `1, 234`, but 1,234 is a number
        text = THOUSANDS.sub(lambda match: match.group().replace(",", ""), text)
    for infix, command in (("over", "frac"), ("choose", "binom")):
        text = re.sub(rf"\{{([^{{}}]*)\\{infix}(?![a-zA-Z])([^{{}}]*)\}}", rf"\\{command}{{\1}}{{\2}}", text)
        text = re.sub(rf"^([^{{}}\\]*)\\{infix}(?![a-zA-Z])([^{{}}\\]*)$", rf"\\{command}{{\1}}{{\2}}", text)
    text = _brace_arguments(text)
    text = TIGHT.sub(r"\1", " ".join(text.split()))
    text = SCRIPT.sub(r"\1{\2}", text)
    text = text.rstrip(" .,;:") if not text.endswith("...") else text
    return text.removeprefix("+").strip()


@lru_cache(maxsize=16384)
def key(normal: str) -> str:
    """Normal form without blanks, but for one between two digits: `1 4/5` is not `14/5`."""
    return re.sub(r"(?<!\d)\s+|\s+(?!\d)", "", normal)


def _one_spelling(match: re.Match) -> str:
    name = SYNONYMS.get(match.group(1))
    if name is None:
        return match.group()
    return rf"\{name}" if name[0].isalpha() or name in "{}" else name


def _brace_arguments(text: str) -> str:
    r"""`\frac12`, `\frac 5{19}` and `\sqrt2` with all their arguments in braces. Unbalanced text is returned as it
    is."""
    pieces, position = [], 0
    while match := ARGUMENTS.search(text, position):
        pieces += [text[position : match.start()], "\\", match.group(1)]
        position = match.end()
        if match.group(1) == "sqrt":
            if text.startswith("[", position) and (end := text.find("]", position)) > 0:
                pieces.append(text[position : end + 1])
                position = end + 1
            elif text.startswith("(", position) and (end := _closing_parenthesis(text, position)) > 0:
                pieces += ["{", _brace_arguments(text[position + 1 : end]), "}"]  # \sqrt(5), from a square root sign
                position = end + 1
                continue
        for _ in range(1 if match.group(1) == "sqrt" else 2):
            argument = ARGUMENT.match(text, position)
            if argument is None:
                break
            position = argument.end()
            token = argument.group(1)
            if token == "{":
                end = closing_brace(text, argument.start(1))
                if end < 0:
                    return text
                token, position = _brace_arguments(text[position:end]), end + 1
            pieces += ["{", token, "}"]
    return "".join([*pieces, text[position:]])


def _closing_parenthesis(text: str, begin: int) -> int:
    depth = 0
    for index in range(begin, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return index
    return -1
