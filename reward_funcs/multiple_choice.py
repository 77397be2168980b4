r"""Multiple choice: 1.0 if the last `\boxed{}` names the gold option, by its letter or by its text, else 0.0."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from .answers import MAX_CHARACTERS, spelling, undress
from .completions import completion_text, completion_texts, last_boxed
from .gold import final_answer


OPTION_LINE = re.compile(r"^[ \t]*\(?([A-Z])[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
OPTIONS_HEADING = re.compile(r"^[ \t]*(?:answer )?(?:options|choices)[ \t]*:?[ \t]*$", re.IGNORECASE | re.MULTILINE)

LETTER = r"(?:\(([A-Za-z])\)|\[([A-Za-z])\]|([A-Za-z]))"
BARE_LETTER = re.compile(
    rf"(?:(?:the )?(?:correct )?(?:final )?(?:answer|option|choice)(?: is)?:? ?)?{LETTER}[.):]?", re.IGNORECASE
)
LETTER_AND_TEXT = re.compile(
    r"(?:\(([A-Za-z])\)\s*[.:]?\s*(?:[-–—]\s+)?|([A-Z])(?:[.):]\s*|\s+[-–—]\s*|\s+))(?P<text>\S.*)", re.DOTALL
)
# Beside a letter, where the options are not known: another letter, or words that take the letter back.
SUSPICIOUS = re.compile(
    r"\([A-Za-z]\)|\b[B-HJ-Z]\b|\bA(?:[.):,]|$)|(?i:\b(?:or|and|not|no|wrong|incorrect|false|correct|right|answer|option|choice|"
    r"is|are|isn't|but|rather|instead|actually|either|neither|both|maybe|nor|except|than|plus|vs)\b)"
)
FONTS = "text|textbf|textit|textrm|textsf|mathrm|mathbf|mathit|mathsf|boldsymbol|bm|emph|mbox"
FONT_GROUP = re.compile(rf"\\(?:{FONTS})\s*\{{([^{{}}]*)\}}")
MARKUP = re.compile(rf"\\(?:{FONTS}|boxed|bf|rm|left|right|displaystyle)(?![a-zA-Z])")


def multiple_choice_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    prompts: Sequence[Any] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float | None]:
    r"""
    Reward for the right option: its letter (`B`, `b`, `(B)`, `B.`, `\text{(B)}`, `Option B`), letter and text (`B.
    library`), or, where the prompt lists the options, one a line, its text.

    Refused are other letters, several letters, and a letter with the text of another option.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions, plain or conversational.
        solution (`list`): Gold options: a letter, in any of the forms above, or an option's text.
        prompts (`list[str]` or `list[list[dict]]`, *optional*): From TRL: prompts, of which the last message may list
            the options.
        log_extra (`Callable`, *optional*): From TRL: gets the boxed answers as column `choice_answer` of the
            completions table.
        log_metric (`Callable`, *optional*): From TRL, see [`~completions.completion_texts`].

    Returns:
        `list[float | None]`: 1.0 or 0.0, `None` for a row without a gold solution. No box, an empty or unclosed one:
        0.0.
    """
    answers = [last_boxed(text) for text in completion_texts(completions, log_metric)]
    prompts = prompts or [None] * len(answers)
    if log_extra is not None:
        log_extra("choice_answer", ["" if answer is None else answer[:200] for answer in answers])
    rows = zip((final_answer(one) for one in solution), answers, prompts, strict=True)
    return [grade_choice(gold, answer, options_of(prompt)) for gold, answer, prompt in rows]


def grade_choice(gold: str | None, answer: str | None, options: Mapping[str, str]) -> float | None:
    """Score one answer against the gold option. `options`: letter -> text, empty if unknown."""
    if gold is None:
        return None
    if answer is None or len(answer) > MAX_CHARACTERS:
        return 0.0
    letter = choice_letter(gold, options)
    if letter is None:
        return float(_same_text(gold, answer))
    if letter in options and _same_text(options[letter], answer):
        return 1.0
    return float(choice_letter(answer, options) == letter)


def choice_letter(text: str, options: Mapping[str, str]) -> str | None:
    """Capital letter of the option that a text names, or `None` if it names none, or contradicts itself."""
    plain = _plain(undress(text))
    if match := BARE_LETTER.fullmatch(plain):
        return next(group for group in match.groups() if group).upper()
    if match := LETTER_AND_TEXT.fullmatch(plain):
        letter = (match[1] or match[2]).upper()
        if options:
            return letter if letter in options and _is_told(options[letter], match["text"]) else None
        return letter if not SUSPICIOUS.search(match["text"]) else None
    named = [letter for letter, option in options.items() if _same_text(option, text)]
    return named[0] if len(named) == 1 else None


def options_of(prompt: str | list[dict[str, Any]] | None) -> dict[str, str]:
    """
    Options that a prompt lists, one a line (`A. bank`, `(A) bank`, `A) bank`), from A on without gaps: letter -> text.
        Of several
    such lists the last counts (few-shot examples come before); of a text with the heading `Options:`, what follows it.
    """
    if not prompt:
        return {}
    text = prompt if isinstance(prompt, str) else completion_text([{"content": prompt[-1].get("content")}])
    return dict(_options_of_text(text))


@lru_cache(maxsize=4096)
def _options_of_text(text: str) -> tuple[tuple[str, str], ...]:
    headings = list(OPTIONS_HEADING.finditer(text))
    options: dict[str, str] = {}
    for match in OPTION_LINE.finditer(text, headings[-1].end() if headings else 0):
        letter, option = match.groups()
        if letter == "A":
            options = {}
        if ord(letter) - ord("A") == len(options):
            options[letter] = option
    return tuple(options.items()) if len(options) > 1 else ()


def _plain(text: str) -> str:
    text = re.sub(r"[{}$*]|\\[()\[\]]", "", MARKUP.sub("", text))
    return " ".join(re.sub(r"\\[,;:! ]|~", " ", text).split()).strip(" .,;")


def _is_told(option: str, text: str) -> bool:
    """Whether a text beside a letter is that option's: the same, or the beginning of it (a part of a long option is
    enough)."""
    full, told = _text_key(option), _text_key(text)
    return told == full != "" or (len(told.split()) >= 3 and full.startswith(told + " "))


def _same_text(option: str, answer: str) -> bool:
    """With and without its dress: an option may begin with "It is" itself."""
    return _text_key(option) != "" and _text_key(option) in (_text_key(answer), _text_key(undress(answer)))


@lru_cache(maxsize=16384)
def _text_key(text: str) -> str:
    """Words in small letters without markup and punctuation; a text with formulas in its normal form."""
    bare = FONT_GROUP.sub(r"\1", text).replace("$", "")
    if re.search(r"[\\^_]", bare):
        return spelling(bare)
    words = re.sub(r"[^\w\s%+\-*/=<>.]|\.(?!\d)", " ", _plain(text).lower().replace("’", "'").replace("'", ""))
    return " ".join(words.split())
