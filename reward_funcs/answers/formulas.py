r"""What computer algebra may be asked: formulas it understands, and which letters in them are free.

math-verify reads what it does not know as something it knows: words are dropped or multiplied, primes, accents and
struck out numbers are ignored. So whatever is not listed here is no formula, and equal only to the very same spelling.
"""

import re
from functools import lru_cache


GREEK = (
    "alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu|xi|rho|sigma|tau|phi|varphi|chi|psi|omega|"
    "Gamma|Delta|Theta|Lambda|Xi|Sigma|Phi|Psi|Omega|ell"
)
COMMANDS = set(
    (
        "frac sqrt binom sin cos tan cot sec csc sinh cosh tanh arcsin arccos arctan arccot arcsec arccsc log ln exp det gcd lcm max min pi infty cdot "
        "times div pm mp leq geq neq approx in cup cap setminus mathbb emptyset sum prod int lim to begin end lfloor rfloor lceil rceil "
        "pmatrix bmatrix vmatrix "
    ).split()
    + GREEK.split("|")
)
NOT_FORMULAS = re.compile(
    r"(?<![a-zA-Z'])'|[:;?\"@#$~`]|!!|\\frac\{d\b[^{}]*\}\{d|\\frac\{d\s*[a-z]\}\{d|\.\.|\\(?![a-zA-Z{}\\%&_])"
)
SUBSCRIPT_TEXT = re.compile(r"_\{\\text\{\w*\}\}")
PRIMED = re.compile(r"(\\[a-zA-Z]+|[a-zA-Z])('*)")
# What may stand on one side of `=` to name the value on the other: x, S_1, f(2), \text{Area}, |AB|, m\angle ABC, P(A).
NAME = re.compile(
    r"(?:\|\s*(?:\\(?:overline|vec)\{)?[A-Z]{1,3}\}?\s*\||m?\\(?:angle|triangle)\s?[A-Z]{1,4}|\\(?:overline|vec|hat|bar)\{[a-zA-Z]{1,3}\}|"
    r"\\text\{[^{}]*\}|\\(?!frac|sqrt|binom|sin|cos|tan|cot|sec|csc|log|ln|pi|infty|sum|prod|int|lim)[a-zA-Z]+(?:\s?[A-Z]{1,4})?|[A-Za-z]+)"
    r"(?:'|_\{[^{}]*\}|\^\{-1\})*(?:\([^()=]*\))?"
)
BOUND = {  # the letters that sums, limits and integrals bind, and how to find one of them
    re.compile(r"\\(?:sum|prod)_\{\s*([a-zA-Z])\s*="): "{}",
    re.compile(r"\\lim_\{\s*([a-zA-Z])\s*\\to"): "{}",
    re.compile(rf"\\int(?![a-zA-Z]).*?(?<!\\)d\s*([a-zA-Z]|\\(?:{GREEK}))(?![a-zA-Z])"): r"(?:d\s*)?{}",
}


@lru_cache(maxsize=16384)
def is_formula(normal: str) -> bool:
    """Whether a normal form holds nothing but what computer algebra reads as it is meant."""
    bare = SUBSCRIPT_TEXT.sub("", normal).replace("\\\\", " ")  # of which rows end
    return NOT_FORMULAS.search(bare) is None and COMMANDS.issuperset(re.findall(r"\\([a-zA-Z]+)", bare))


def with_named_primes(normal: str) -> str:
    """Derivatives as names of their own, `y''` as `y_{prime2}`: computer algebra drops the primes."""
    if "'" not in normal:
        return normal
    return PRIMED.sub(lambda match: match[1] + (f"_{{prime{len(match[2])}}}" if match[2] else ""), normal)


@lru_cache(maxsize=16384)
def has_variables(normal: str) -> bool:
    r"""
    Whether free letters, Greek ones too, remain beside commands, text, the constants e and i, and the letters that
    sums, limits and integrals bind.
    """
    bare = re.sub(r"\\text\{[^{}]*\}|\\(?:mathbb|begin|end)\{[^{}]*\}", " ", normal)
    for binder, occurrence in BOUND.items() if re.search(r"\\(?:sum|prod|lim|int)", bare) else ():
        for letter in set(binder.findall(bare)):
            pattern = rf"{occurrence.format(re.escape(letter))}(?![a-zA-Z])|(\\[a-zA-Z]+)"
            bare = re.sub(pattern, lambda match: match[1] or " ", bare)
    bare = re.sub(rf"\\(?!(?:{GREEK})(?![a-zA-Z]))[a-zA-Z]+", " ", bare)
    return re.search(r"[a-df-hj-zA-Z]", bare) is not None
