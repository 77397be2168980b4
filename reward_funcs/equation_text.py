r"""Free text as tokens of arithmetic: numbers, operations, brackets, `=`, words. Plain text, LaTeX, Markdown.

Each token has a code of one letter, so that what an equation looks like is a regular expression over the codes:

    N number          O operation       M minus           K power           P, Q brackets     E `=`, `≈`
    W word            H word without meaning              C word that changes what follows    A "about"
    # number word     & "and"           D word that changes what stands before it (`squared`, `thirds`, `remainder`)
    T unit with a known size, `%`       S end of a phrase, or what cannot be in an equation   U anything unclear

In time linear in the text: every pattern is bounded or can match in one way only.
"""

import re
from fractions import Fraction
from typing import NamedTuple


WORD_CODES = "WHCDAT&#"

# Sizes within a dimension; only their ratios count.
SCALES = {
    "%": Fraction(1, 100), "percent": Fraction(1, 100), "dozen": Fraction(12), "dozens": Fraction(12),
    "hundred": Fraction(100), "thousand": Fraction(10**3), "million": Fraction(10**6), "billion": Fraction(10**9),
    "¢": Fraction(1, 100), "cent": Fraction(1, 100), "dollar": Fraction(1),
    "second": Fraction(1), "sec": Fraction(1), "minute": Fraction(60), "min": Fraction(60),
    "hour": Fraction(3600), "hr": Fraction(3600), "day": Fraction(86400), "week": Fraction(7 * 86400),
    "month": Fraction(1), "year": Fraction(12), "decade": Fraction(120),
    "inch": Fraction(1), "inches": Fraction(1), "foot": Fraction(12), "feet": Fraction(12), "ft": Fraction(12), "yard": Fraction(36),
    "mm": Fraction(1), "cm": Fraction(10), "meter": Fraction(1000), "km": Fraction(10**6), "kilometer": Fraction(10**6),
    "mg": Fraction(1, 1000), "gram": Fraction(1), "kg": Fraction(1000), "kilogram": Fraction(1000),
    "ounce": Fraction(1), "oz": Fraction(1), "pound": Fraction(16), "lb": Fraction(16),
    "ml": Fraction(1), "liter": Fraction(1000), "cup": Fraction(1), "pint": Fraction(2), "quart": Fraction(4), "gallon": Fraction(16),
}  # fmt: skip
PERCENT = ("%", "percent")
ABSOLUTE = frozenset("% percent dozen dozens hundred thousand million billion ¢ cent cents dollar dollars".split())
GLUED = frozenset("mph kph cal kcal pts".split())  # units that may touch their number, besides those with a size
HARMLESS = frozenset("a an another the his her their its all those these this that other additional extra".split())
ABOUT = frozenset("about approximately around roughly nearly almost approx ~".split())
CHANGING = frozenset(
    "half twice thrice double triple quadruple times plus minus negative sqrt root log square cube sin cos tan ln".split()
)
CHANGING_BEFORE = frozenset(
    "halves squared cubed choose factorial mod modulo remainder rem r divided multiplied am pm".split()
)
NUMBER_WORDS = frozenset(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety".split()
)
PARTS = frozenset("third quarter fourth fifth sixth seventh eighth ninth tenth".split())  # before "of"
SPOKEN = {"times": "*", "multiplied by": "*", "plus": "+", "minus": "-", "divided by": "/", "of": "*"}
SIGNS = {"−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "∕": "/", "＋": "+"}
LATEX = {r"\times": "*", r"\cdot": "*", r"\ast": "*", r"\div": "/"}
VULGAR = {"½": Fraction(1, 2), "¼": Fraction(1, 4), "¾": Fraction(3, 4), "⅓": Fraction(1, 3), "⅔": Fraction(2, 3)}

GLUED_WORD = re.compile(r"(?!_{1,2}(?!\w))[A-Za-z_]\w{0,30}")  # not what ends `__15__`
OPERATION_X = re.compile(r"[xX](?=[^\S\n]{0,3}[$£€₹\\({\[]{0,4}\.?[0-9])")
REPEATING = r"(?!\.[0-9(]|\.\\(?:overline|bar|dot)(?![A-Za-z]))"  # `3.(3)`, `3.\overline{3}`; too many decimals
WITHOUT_MEANING = r"\\(?:textstyle|therefore|because|checkmark)(?![A-Za-z])"
MONEY = r"[$£€₹\\({\[]{0,4}"
TOKEN = re.compile(
    rf"""
    (?P<space>\s+)
  | (?P<mixed>(?P<whole>[0-9]{{1,6}})(?:[ ]and)?[ ](?P<n>[0-9]{{1,6}})/(?P<d>[0-9]{{1,6}})(?![0-9/.^])
           |(?P<whole3>[0-9]{{1,6}})\s?\\[dtc]?frac\s?\{{(?P<n4>[0-9]{{1,6}})\}}\s?\{{(?P<d4>[0-9]{{1,6}})\}}
           |(?P<whole2>[0-9]{{1,6}})[ ]?(?P<vulgar>[{"".join(VULGAR)}]))
  | (?P<fraction>(?<![/^*.,0-9])(?P<n2>[0-9]{{1,12}})/(?P<d2>[0-9]{{1,12}})(?![0-9²³]|[ ]?(?:\^|\*\*)|/(?![A-Za-z])|[.,][0-9]|[ ]?\\?%)
              |\\[dtc]?frac\s?(?P<n3>[0-9])\s?(?P<d3>[0-9])|[{"".join(VULGAR)}])
  | (?P<clock>[0-9]{{1,12}}:[0-9]{{1,12}}|0[0-9]{{1,12}}(?![0-9.]))
  | (?P<number>(?:[0-9]{{1,3}}(?:(?:,|\{{,\}}|,\\!)[0-9]{{3}}){{1,6}}|[0-9]{{1,30}})(?![0-9])(?:\.[0-9]{{1,30}}(?![0-9]))?{REPEATING}
             |(?<![0-9.])\.[0-9]{{1,30}}(?![0-9]))
  | (?P<aside>\([^()0-9=\\$+*/^]{{1,60}}\)|\\(?:text|mathrm|textbf|mathbf|mbox)\s?\{{[^{{}}0-9=]{{0,60}}\}})
  | (?P<linebreak>\\\\)
  | (?P<degree>°|\^\s?(?:\{{\s?\\circ\s?\}}|\\circ(?![A-Za-z])))
  | (?P<stop>\\(?:begin|end)\s?\{{[a-z]{{1,12}}\*?\}}|[<>!+\-*/:=]=+|=>|->|[<>→⇒⟹∴;:?!|]|\\[\[\]]|(?<!=\ )\$\$|\\(?:implies|Rightarrow|rightarrow|to|quad|qquad|newline|le|ge|leq|geq|ne|neq|lt|gt)(?![A-Za-z]))
  | (?P<dash>—)
  | (?P<about>≈|≅|\\approx(?![A-Za-z])|~=)
  | (?P<equals>[=＝])
  | (?P<power>\^|\*\*(?=[0-9({{])|(?<=\ )\*\*(?=\ [0-9(])|[²³])
  | (?P<sign>(?<!\*)\*(?!\*)(?=\s{{0,3}}\*{{0,2}}{MONEY}[\w.+-])|[+/−–×·⋅∗÷∕＋-]|\\(?:times|cdot|ast|div)(?![A-Za-z]))
  | (?P<open>[(\[{{]|\\\{{(?=\s?[0-9$(.]))
  | (?P<close>[)\]}}])
  | (?P<percent>\\?%|¢|~)
  | (?P<quotient>\\[dtc]?frac(?=\s?\{{))
  | (?P<skip>\\(?:(?:left|right|displaystyle|boxed|[bB]igg?[lr]?)(?![A-Za-z])|[,;:! ()$])|\\(?:mathbf|textbf|boldsymbol|underline)(?=\{{[\\$0-9])|{WITHOUT_MEANING}|[$£€₹&`"“”'’_#*✓✔✅]|\\(?![A-Za-z]))
  | (?P<dot>[.,])
  | (?P<spoken>(?:is\ |are\ )?equal\ to(?!\w)|(?:multiplied|divided)\ by(?!\w))
  | (?P<word>[^\W\d_]\w{{0,40}}(?:['’][a-z]{{1,3}})?)
  | (?P<command>\\[A-Za-z]+(?:_(?:[0-9A-Za-z]|\{{[^{{}}]{{0,20}}\}}))?)
  | (?P<other>[0-9]+|.)
    """,
    re.VERBOSE | re.DOTALL,
)
LEFT = re.compile(r"\s?\\(?:left|[bB]igg?l?)\s?$")  # between a factor and its bracket
OPENED = re.compile(r"(?:^|\s)\*[^\s*][^*\n]{0,60}$")  # by one `*`
BULLET = re.compile(r"[ \t]*(?:[-*+•–][ \t]+|\(?[0-9]{1,3}[.)][ \t]+|#{1,6}[ \t]|>[ \t])")
CONTINUED = re.compile(r"\s*&?\s?=(?![=>])")  # the next line goes on with `=`
OPERAND = re.compile(r"\s{0,3}(?P<determiner>(?:the|his|her|their|its|all|those|these)\s)?[$£€₹\\({\[]{0,4}[-.]?[0-9]")


class Token(NamedTuple):
    """
    A token of a text.

    Attributes:
        code (`str`): What it is, see the module's docstring.
        text (`str`): Its letters in lower case; of an operation one of `+ - * / ^`.
        start, end (`int`): Where it stands in the text.
        value (`Fraction`): Of a number; 0 of anything else.
        decimals (`int`, *optional*): Digits after its point, `None` if it is a fraction or no number.
    """

    code: str
    text: str
    start: int
    end: int
    value: Fraction = Fraction(0)
    decimals: int | None = None


def tokens_of(text: str) -> list[Token]:
    """Tokens of a text, in order, without what has no meaning."""
    scanner = _Scanner(text)
    position = 0
    while position < len(text):
        if not scanner.tokens or scanner.tokens[-1].text == "\n":
            bullet = BULLET.match(text, position)
            position = bullet.end() if bullet else position
        match = TOKEN.match(text, position)
        if match is None:
            break
        kind = match.lastgroup or "other"
        read = getattr(scanner, kind, None)
        position = read(match) if read else scanner.add(CODES[kind], match.group().lower(), match)
    return scanner.tokens


CODES_OF_WORDS = {
    "C": CHANGING, "D": CHANGING_BEFORE, "H": HARMLESS, "A": ABOUT, "&": frozenset(["and"]), "#": NUMBER_WORDS,
}  # fmt: skip
UNIT_LETTERS = "mglhs"
# A part of a number that is not read as one: `2,5`, `12,34,567`, `1\;234`
CUT_BEFORE = re.compile(r"[0-9](?:,|\\[,;:! ])$")
CUT_AFTER = re.compile(r",[0-9]+(?!\s?[-+*/×÷=^0-9])|\\[,;:! ][0-9]")
OPERATES = re.compile(r"\s?[-+*/×÷^]")
REMAINDER = re.compile("r[0-9]{1,3}")  # `17 / 5 = 3 R2`
ARTICLE_OF = re.compile(r"\s+[\w\\$.(]")
HYPHENATED = re.compile("-[a-z]")
CODES = {
    "stop": "S", "dot": "S", "about": "E", "equals": "E", "open": "P", "close": "Q", "command": "U", "other": "U", "clock": "U",
    "degree": "", "skip": "",
}  # fmt: skip


class _Scanner:
    """Tokens so far. A method for each kind of token that needs a look around: it returns where to go on."""

    def __init__(self, text: str):
        self.text = text
        self.tokens: list[Token] = []

    def add(self, code: str, text: str, match: re.Match, end: int | None = None, **number) -> int:
        end = match.end() if end is None else end
        left = LEFT.search(self.text, max(match.start() - 8, 0), match.start()) if code == "P" else None
        if code == "P" and self.touches(left.start() if left else match.start(), "NQ"):
            implied = "/" if match.group() == "{" and self.text[match.start() - 1] == "}" else "*"
            self.tokens.append(Token("O", implied, match.start(), match.start()))
        elif code == "P" and self.touches(left.start() if left else match.start(), WORD_CODES):
            self.doubt(match)  # a function
        if code:
            self.tokens.append(Token(code, text, match.start(), end, **number))
        return end

    def doubt(self, match: re.Match) -> None:
        """Something unclear in front of a token: no side goes over it."""
        self.tokens.append(Token("U", "", match.start(), match.start()))

    def touches(self, position: int, codes: str) -> bool:
        """Whether the last token is one of `codes` and ends here."""
        return bool(self.tokens) and self.tokens[-1].code in codes and self.tokens[-1].end == position

    def follows(self, codes: str) -> bool:
        """Whether the last token is one of `codes`."""
        return bool(self.tokens) and self.tokens[-1].code in codes

    def space(self, match: re.Match) -> int:
        goes_on = self.follows("E") or CONTINUED.match(self.text, match.end())
        return self.add("S" if "\n" in match.group() and not goes_on else "", "\n", match)

    def linebreak(self, match: re.Match) -> int:
        return self.add("" if CONTINUED.match(self.text, match.end()) else "S", "\n", match)

    def mixed(self, match: re.Match) -> int:
        whole = match["whole"] or match["whole2"] or match["whole3"]
        numerator, denominator = match["n"] or match["n4"], match["d"] or match["d4"]
        part = VULGAR[match["vulgar"]] if match["vulgar"] else None
        if part is None and int(numerator) < int(denominator):
            part = Fraction(int(numerator), int(denominator))
        if part is None:  # two numbers beside each other
            return self.add("N", whole, match, match.start() + len(whole), value=Fraction(int(whole)), decimals=0)
        return self.add("N", "mixed", match, value=int(whole) + part)

    def fraction(self, match: re.Match) -> int:
        if match.group() in VULGAR:
            return self.add("N", "fraction", match, value=VULGAR[match.group()])
        numerator, denominator = (match["n2"] or match["n3"]), (match["d2"] or match["d3"])
        if int(denominator) == 0 and match["n2"]:
            whole = Fraction(int(numerator))
            return self.add("N", numerator, match, match.start() + len(numerator), value=whole, decimals=0)
        if int(denominator) == 0 or (match["n3"] and self.follows("N")):
            return self.add("U", "", match)
        return self.add("N", "fraction", match, value=Fraction(int(numerator), int(denominator)))

    def quotient(self, match: re.Match) -> int:
        unclear = self.follows("NK") or self.follows("O") and self.tokens[-1].text == "/"
        return self.add("U" if unclear else "", "", match)

    def number(self, match: re.Match) -> int:
        digits = re.sub(r"[^0-9.]", "", match.group())
        decimals = len(digits.partition(".")[2])
        if self.touches(match.start(), "Q") or self._is_rest(match):
            self.doubt(match)
        self.add("N", digits, match, value=Fraction(digits), decimals=decimals)
        if CUT_AFTER.match(self.text, match.end()):
            return self.add("U", "", match)
        glued = GLUED_WORD.match(self.text, match.end())
        if glued is None or OPERATION_X.match(self.text, match.end()):
            return match.end()
        word = glued.group().lower()
        if word in ("st", "nd", "rd", "th"):  # an ordinal is a word
            self.tokens[-1] = Token("W", digits + word, match.start(), glued.end())
            return glued.end()
        return match.end() if scale_of(word) or word in GLUED else self.add("U", word, glued)

    def _is_rest(self, match: re.Match) -> bool:
        """Whether a number is what a comma or a space in LaTeX cuts off another; not in `3+4=7,5+2=8`."""
        if CUT_BEFORE.search(self.text, max(match.start() - 3, 0), match.start()) is None:
            return False
        after_result = "".join(token.code for token in self.tokens[-3:]) == "ENS"
        return not (after_result and OPERATES.match(self.text, match.end()))

    def dash(self, match: re.Match) -> int:
        """Between two operands it may be a minus."""
        may_be_minus = self.follows("NQ" + WORD_CODES) and OPERAND.match(self.text, match.end())
        return self.add("U" if may_be_minus else "S", "—", match)

    def aside(self, match: re.Match) -> int:
        if self.touches(match.start(), "NQ") and not match.group().startswith("\\"):
            return self.add("U", "", match)  # a product with words
        return self.add_word(match.group().partition("{")[2].strip("{}() ") or "()", match)

    def power(self, match: re.Match) -> int:
        if match.group() == "**":  # with spaces on both sides, or with none; else it is bold
            is_spaced = self.text.startswith(" ", match.end())
            is_power = self.follows("NQ") if is_spaced else self.touches(match.start(), "NQ")
            return self.add("K" if is_power else "", "^", match)
        if match.group() == "^":
            return self.add("K", "^", match)
        self.tokens.append(Token("K", "^", match.start(), match.start()))
        exponent = "²³".index(match.group()) + 2
        return self.add("N", str(exponent), match, value=Fraction(exponent), decimals=0)

    def sign(self, match: re.Match) -> int:
        sign = LATEX.get(match.group()) or SIGNS.get(match.group(), match.group())
        before = self.text[match.start() - 1 : match.start()]
        after = self.text[match.end() : match.end() + 2]
        is_emphasis = match.group() == "*" and not self._multiplies(match.start(), before, after)
        is_hyphen = sign == "-" and before.isalnum() and len(after) == 2 and after.islower() and after.isalpha()
        if is_emphasis or is_hyphen or sign == "/" and after[:1].isalpha():
            return self.add("", "", match)  # `three-day`, `5 miles/hour`
        if sign == "-" and self.follows("WHT&") and (before.isspace() or before == "$") and not after[:1].isspace():
            self.doubt(match)  # `x is 5 and -2 + 5 = 3`
        return self.add("M" if sign == "-" else "O", sign, match)

    def _multiplies(self, position: int, before: str, after: str) -> bool:
        """Whether a single `*` multiplies; not in `= *15*` and `*Total* 3 + 4 = 7`."""
        may_end = not before.isspace() and after[:1].isspace() and self.follows(WORD_CODES)
        ends_emphasis = may_end and OPENED.search(self.text, max(position - 64, 0), position) is not None
        return self.follows("NQ" + WORD_CODES) and not ends_emphasis

    def percent(self, match: re.Match) -> int:
        return self.add("A" if match.group() == "~" else "T", match.group().strip("\\"), match)

    def spoken(self, match: re.Match) -> int:
        if match.group().endswith("equal to"):
            return self.equal_sign(match)
        return self.add_word(match.group(), match)

    def word(self, match: re.Match) -> int:
        if OPERATION_X.match(self.text, match.start()) and self.follows("NQ" + WORD_CODES):
            return self.add("O", "*", match, match.start() + 1)
        return self.add_word(match.group(), match)

    def add_word(self, text: str, match: re.Match) -> int:
        word = text.lower()
        if word in SPOKEN and self._is_operation(word, match.end()):
            return self.add("M" if SPOKEN[word] == "-" else "O", SPOKEN[word], match)
        if word in ("equals", "equal"):
            return self.equal_sign(match)
        is_article = word == "a" and ARTICLE_OF.match(self.text, match.end())
        is_factor = self.touches(match.start(), "NQ") and match.group().isalpha() and word not in GLUED
        if word == "a" and not is_article or is_factor and not scale_of(word):  # `2 a + 3`, `(6)(DM)`
            return self.add("U", word, match)
        if word.removesuffix("s") in PARTS and self.text.startswith(" of", match.end()):
            return self.add("D", word, match)
        if REMAINDER.fullmatch(word):
            return self.add("D", word, match)
        for code, words in CODES_OF_WORDS.items():
            if word in words:
                return self.add(code, word, match)
        if scale_of(word):
            return self.add("T", word, match)
        is_unit = word in UNIT_LETTERS and self.follows("N") and not self.touches(match.start(), "N")
        is_name = len(word) == 1 and not is_unit and not HYPHENATED.match(self.text, match.end())
        return self.add("U" if is_name else "W", word, match)

    def equal_sign(self, match: re.Match) -> int:
        """In words, of which the one before may deny it: `does not equal`."""
        is_denied = bool(self.tokens) and self.tokens[-1].text.endswith(("not", "n't", "n’t"))
        return self.add("S" if is_denied else "E", "=", match)

    def _is_operation(self, word: str, end: int) -> bool:
        """Whether `of`, `times` and the like stand between two operands: `15% of $80`, but not `2 of the 5`."""
        operand = OPERAND.match(self.text, end)
        if operand is None or not self.follows("NQ" + WORD_CODES):
            return False
        if word == "of":
            last = self.tokens[-1]
            return last.text in PERCENT or last.code == "N" and 0 < last.value < 1
        return word != "times" or operand["determiner"] is None


def scale_of(unit: str) -> Fraction | None:
    """Size of a unit, singular or plural, in the smallest of its dimension; `None` if it has none that is known."""
    return SCALES.get(unit) or SCALES.get(unit.removesuffix("s"))
