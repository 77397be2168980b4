r"""Mathematics: 1.0 if the content of the last `\boxed{}` is equal in value to the gold answer, else 0.0."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from .answers import equal
from .completions import completion_texts, last_boxed
from .gold import final_answer
from .pool import DIED, TIMED_OUT, ask_pool


def math_accuracy_reward(
    completions: Sequence[Any],
    solution: Sequence[Any],
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float | None]:
    r"""
    Reward by value: numbers exactly (`0.5`, `\frac12`, `50\%`), expressions, equations and sets by computer algebra,
    sequences element by element, words by their letters. `docs/rewards.md` says what is accepted.

    Computer algebra runs in worker processes with a deadline ([`configure_pool`]); an answer that takes longer, or
    kills its worker, scores 0.0 and is counted.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions, plain or conversational.
        solution (`list`): Gold solutions; a worked one is reduced to the content of its last `\boxed{}`.
        log_extra (`Callable`, *optional*): From TRL: gets the boxed answers as column `math_answer` of the completions
            table.
        log_metric (`Callable`, *optional*): From TRL: gets `reward_checks/timed_out` and `reward_checks/worker_died`,
            the numbers of such answers in this call, and what [`~completions.completion_texts`] counts.

    Returns:
        `list[float | None]`: 1.0 or 0.0, `None` for a row without a gold solution. No box, an empty or unclosed one:
        0.0.
    """
    answers = [last_boxed(text) for text in completion_texts(completions, log_metric)]
    scores, failures = grade_answers([final_answer(one) for one in solution], answers)
    log_checks("math_answer", answers, failures, log_extra, log_metric)
    return scores


def grade_answers(golds: Sequence[str | None], answers: Sequence[str | None]) -> tuple[list[float | None], Counter]:
    """
    Score answers against golds (as [`final_answer`] gives them), row by row. Equal rows are checked once.

    Returns:
        The scores, `None` where there is no gold; and how many rows failed, by reason.
    """
    pairs = list(zip(golds, answers, strict=True))
    verdicts: dict[tuple, bool | None] = {
        (gold, answer): equal(gold, answer) for gold, answer in dict.fromkeys(pairs) if gold and answer
    }
    by_pool, failures = ask_pool("equal", [pair for pair in pairs if verdicts.get(pair, False) is None])
    verdicts |= by_pool
    scores = [None if gold is None else float(bool(verdicts.get((gold, answer)))) for gold, answer in pairs]
    return scores, failures


def log_checks(
    column: str,
    answers: Sequence[str | None],
    failures: Counter,
    log_extra: Callable[[str, list], None] | None,
    log_metric: Callable[[str, float], None] | None,
) -> None:
    """Hand answers and counts to TRL, at every call, so that means over steps and processes count the calls
    without."""
    if log_extra is not None:
        log_extra(column, ["" if answer is None else answer[:200] for answer in answers])
    if log_metric is not None:
        for reason in (TIMED_OUT, DIED):
            log_metric(f"reward_checks/{reason}", float(failures[reason]))
