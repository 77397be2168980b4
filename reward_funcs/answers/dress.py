r"""What models put around an answer that is no part of it: colours, sizes, Markdown, `The answer is`, `**Answer:**`,
`142nd`.

Only what is listed here is taken off. Everything else that stands beside an answer counts: `not 5` is not 5.
"""

import re
from functools import lru_cache


SIZES = "tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE|huge|Huge|bfseries|itshape|mdseries|sffamily|rmfamily|ttfamily"
OPENING = r"(?:(?:so|thus|hence|therefore|then|finally|in conclusion|we get|we have|this gives)\b[,:]?\s*)"
ADJECTIVE = r"(?:final|correct|right|exact|required|desired|requested|numerical|simplified|overall|possible|resulting)"
SUBJECT = (
    rf"(?:(?:(?:the|my|our|your|its)\s+)?(?:{ADJECTIVE}\s+)*(?:answer|ans|result|solution(?: set)?|value|number|statement|claim|"
    r"proposition|assertion|sum|total|product|expression)(?:\s+to (?:the|this) (?:problem|question))?|it|this|that|we get|we have)"
)
COPULA = r"\s*(?:(?:is|are|equals?|becomes?|must be|would be)\b\s*(?:given by\b|equal to\b)?\s*[:=]?|[:=])"
LEAD = rf"(?:{OPENING}?{SUBJECT}{COPULA}|(?:so|thus|hence|therefore)\b[,:]|(?:so|thus|hence|therefore|exactly|the (?:number|value|answer|point|set|interval|pair))\b)"
MARK = r"(?:\*\*|__|\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|emph)\s*\{)"
CLOSE = r"(?:\}|\*\*|__)"

# Applied in this order; each pattern with its replacement.
REWRITES = [
    (re.compile(pattern), replacement)
    for pattern, replacement in [
        (r"~~", r"\\sout "),  # struck out in Markdown: not the answer, as \cancel
        (r"\\(?:textcolor|colorbox)\s*(?:\[\w+\])?\s*\{[^{}]*\}\s*(?=\{)", ""),
        (r"\\color\s*(?:\[\w+\])?\s*\{[^{}]*\}", ""),
        (r"\\(?:underline|uline|fbox|boxed|framebox|ensuremath)\s*(?=\{)", ""),
        (rf"\\(?:{SIZES})(?![a-zA-Z])", ""),
        (rf"(?i)^\s*{MARK}\s*(?:{LEAD}\s*{CLOSE}\s*[:=]?|{SUBJECT}\s*{CLOSE}\s*[:=])\s*(?=\S)", ""),  # **Answer:** 5
        (rf"(?i)^\s*({MARK}?)\s*{LEAD}\s*(?=\S)", r"\1"),  # The answer is 5, \text{The answer is 5}
        (r"^\s*(?:\\(?:therefore|implies|Rightarrow)(?![a-zA-Z])|∴|⇒|=>)\s*|\s*(?:\\checkmark|✓|✔)\s*$", ""),
        (r"(?i)(?<=\S)\s*(?:\\text\s*\{)?\s*\bis (?:the|my|our) (?:final |correct )?answer\s*\.?\s*\}?$", ""),
        (r"(?<=\d)\s*\^?\s*\{?\s*(?:\\(?:text|mathrm|textrm)\s*\{\s*)?(?:st|nd|rd|th)\s*\}{0,2}\s*$", ""),  # 142nd
        (r"(?:(?<=[^\\])|^)\\+\s*$", ""),
    ]
]
# Opening and closing of what may stand around all of an answer.
AROUND = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("```", "```"), ("`", "`"), ("**", "**"), ("__", "__"), ("*", "*"),
          ('"', '"'), ("'", "'"), ("“", "”"), ("``", "''")]  # fmt: skip
NAKED = re.compile(r"-?\d+(?:\.\d+)?")  # most answers: spared all this
LOOSE_END = re.compile(r"(?:\$|\\\)|\\\]|`|\*\*|__|\"|”)\s*[.,;]$")


@lru_cache(maxsize=16384)
def undress(text: str) -> str:
    """An answer without its dress: marks around it, colours, sizes, and the words that announce it."""
    if NAKED.fullmatch(text):
        return text
    text = strip_delimiters(
        " ".join(text.split())
    )  # single blanks: the patterns would take the square of a run's length
    for pattern, replacement in REWRITES:
        text = pattern.sub(replacement, text)
    return strip_delimiters(text)


def strip_delimiters(text: str) -> str:
    """Without the delimiters around all of it (mathematics, Markdown, quotes), however often nested."""
    text = text.strip()
    while True:
        stripped = text.rstrip(".,;").rstrip() if LOOSE_END.search(text) else text
        for opening, closing in AROUND:
            inner = stripped[len(opening) : -len(closing)]
            if stripped.startswith(opening) and stripped.endswith(closing) and len(stripped) > len(opening + closing):
                # `$5$` is math; in `\$5 and \$6` the dollars are money, and in `$x$ and $y$` they close in between.
                if closing not in inner.replace("\\$", "") and not inner.endswith("\\"):
                    stripped = inner.strip()
                    break
        if stripped == text:
            return text
        text = stripped
