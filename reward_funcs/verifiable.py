"""One reward for all of the paper's data: each row is checked as what it is, mathematics or multiple choice."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .completions import completion_texts, last_boxed
from .gold import final_answer
from .math_accuracy import grade_answers, log_checks
from .multiple_choice import grade_choice, options_of


# Parts of the names of multiple choice datasets, as `data_source` has them.
MULTIPLE_CHOICE_SOURCES = (
    "commonsense",
    "truthful",
    "mmlu",
    "arc_",
    "arc-",
    "openbook",
    "hellaswag",
    "gpqa",
    "multiple_choice",
)
OPTION_GOLD = re.compile(r"[A-Z]|\([A-Za-z]\)|\\text(?:bf)?\{\s*\(?[A-Z]\)?\s*\}")


def verifiable_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    data_source: Sequence[str] | str | None = None,
    prompts: Sequence[Any] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float | None]:
    r"""
    Reward for the right answer in the last `\boxed{}`: multiple choice by [`multiple_choice_reward`], where the row's
    `data_source` names such a dataset or the gold is an option's letter; everything else by [`math_accuracy_reward`].

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions, plain or conversational.
        solution (`list`): Gold solutions.
        data_source (`list[str]` or `str`, *optional*): Dataset that each row, or all of them, comes from.
        prompts (`list[str]` or `list[list[dict]]`, *optional*): From TRL: prompts, which may list the options.
        log_extra (`Callable`, *optional*): From TRL: gets the boxed answers as column `verifiable_answer` of the
            completions table.
        log_metric (`Callable`, *optional*): From TRL, see [`math_accuracy_reward`].

    Returns:
        `list[float | None]`: 1.0 or 0.0, `None` for a row without a gold solution. No box, an empty or unclosed one:
        0.0.
    """
    answers = [last_boxed(text) for text in completion_texts(completions, log_metric)]
    golds = [final_answer(one) for one in solution]
    sources = [data_source] * len(answers) if data_source is None or isinstance(data_source, str) else data_source
    prompts = prompts or [None] * len(answers)
    scores: list[float | None] = [None] * len(answers)
    math_rows = []
    for row, (gold, answer, source, prompt) in enumerate(zip(golds, answers, sources, prompts, strict=True)):
        if is_multiple_choice(gold, source):
            scores[row] = grade_choice(gold, answer, options_of(prompt))
        else:
            math_rows.append(row)
    failures: Counter = Counter()
    if math_rows:
        math_scores, failures = grade_answers([golds[row] for row in math_rows], [answers[row] for row in math_rows])
        for row, score in zip(math_rows, math_scores, strict=True):
            scores[row] = score
    log_checks("verifiable_answer", answers, failures, log_extra, log_metric)
    return scores


def is_multiple_choice(gold: str | None, data_source: str | None) -> bool:
    """Whether a row is multiple choice, by its source if that is known, else by the shape of its gold."""
    source = str(data_source or "").lower()
    return any(name in source for name in MULTIPLE_CHOICE_SOURCES) or bool(gold and OPTION_GOLD.fullmatch(gold))
