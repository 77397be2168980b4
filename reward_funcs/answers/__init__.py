"""Whether two final answers are equal in value: one room, and this is its door. The rest of `reward_funcs` uses
nothing else of it.

equal(gold, answer)              True or False; None where only computer algebra can tell
is_comparable(gold)              whether rewritten answers can be told equal to a gold; None as above
load_algebra()                   computer algebra, for worker processes; with it as last argument there is no None
spelling(text)                   one string for the many spellings of the same LaTeX
undress(text)                    an answer without colours, Markdown and "The answer is"
MAX_CHARACTERS                   longest answer that is looked at
"""

from functools import lru_cache
from importlib import import_module
from types import ModuleType

from . import comparison
from .comparison import MAX_CHARACTERS
from .dress import undress
from .normal_form import key, normal_form


class _Undecided(Exception):
    """Computer algebra is needed."""


def load_algebra() -> ModuleType:
    """
    Computer algebra, [`symbolic`]: slow to import, and what it is asked may take for ever. For processes that can be
    killed.

    Raises:
        ImportError: math-verify is not installed.
    """
    return import_module(".symbolic", __name__)


def equal(gold: str, answer: str, algebra: ModuleType | None = None) -> bool | None:
    """
    Whether an answer is equal in value to the gold answer. The two are not exchangeable: the gold sets the form.

    Args:
        gold (`str`): Gold answer, LaTeX or plain.
        answer (`str`): Answer, LaTeX or plain.
        algebra (*optional*): What [`load_algebra`] returns. Without it a call takes microseconds and cannot hang.

    Returns:
        `bool`, or `None` if that cannot be told without `algebra`.
    """
    if algebra is None:
        return _equal_without_algebra(gold, answer)
    return comparison.equal_answers(gold, answer, algebra.equal_expressions)


def is_comparable(gold: str, algebra: ModuleType | None = None) -> bool | None:
    """
    Whether rewritten answers can be told equal to a gold answer. If not, only the very same answer is right.

    Args and returns: as [`equal`].
    """
    parses = _undecided if algebra is None else lambda part: algebra.parse_expression(part) is not None
    try:
        return comparison.is_comparable(gold, parses)
    except _Undecided:
        return None


@lru_cache(maxsize=16384)
def spelling(text: str) -> str:
    r"""One string for the many spellings of the same LaTeX (`\dfrac12`, `\frac{1}{2}`), without blanks."""
    return key(normal_form(text))


@lru_cache(maxsize=16384)
def _equal_without_algebra(gold: str, answer: str) -> bool | None:
    try:
        return comparison.equal_answers(gold, answer, _undecided)
    except _Undecided:
        return None


def _undecided(*normal_forms: str) -> bool:
    raise _Undecided


__all__ = ["MAX_CHARACTERS", "equal", "is_comparable", "load_algebra", "spelling", "undress"]
