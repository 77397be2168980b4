r"""Gold answers: reduced to the final answer, and checked before training starts."""

import logging
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .answers import is_comparable
from .completions import last_boxed
from .errors import UsageError
from .pool import shared_pool
from .worked_solutions import worked_answer


logger = logging.getLogger(__name__)

MAX_LISTED = 20  # golds in a message


def final_answer(solution: Any) -> str | None:
    r"""
    Final answer of a gold solution: the content of its last `\boxed{}`, else what follows the last `####` (GSM8K),
    else all of it. Where several boxes are parts of one answer (`$k=\boxed{5}$ or $k=\boxed{-3}$`), it is all of them,
    with commas ([`~worked_solutions.worked_answer`]). Numbers, truth values and lists are taken as Python writes them
    (`True`, `[1, 2]`).

    Returns:
        `str`, empty if the solution has a box with nothing in it; `None` if there is no solution (`None`, NaN, blank).
    """
    if solution is None or (isinstance(solution, float) and math.isnan(solution)):
        return None
    text = str(solution).strip()
    if "\\boxed" in text or "\\fbox" in text:
        answer = last_boxed(text)
        worked = worked_answer(text) if answer else None
        return worked.text if worked else answer or ""
    if "####" in text:
        text = text.rpartition("####")[2].strip()
    return text or None


@dataclass
class GoldReport:
    """
    What [`check_golds`] found: row number -> gold solution, of the rows that cannot be checked properly
    (`unparsable`), and of worked
    solutions whose boxes differ without a sign of why (`undecided`): the last one is taken for the answer.
    """

    total: int
    unparsable: dict[int, str] = field(default_factory=dict)
    undecided: dict[int, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        return len(self.unparsable) / self.total if self.total else 0.0


def check_golds(
    dataset: Iterable[Mapping[str, Any]], max_unparsable_share: float = 0.01, column: str = "solution"
) -> GoldReport:
    """
    Check, before training, that the golds of a dataset can be compared with rewritten answers, and list those that
    cannot.

    Such a gold is missing, an empty box, a worked solution without a box, or LaTeX that math-verify cannot parse. An
    answer to it is right only if it is the very same string.

    Args:
        dataset (`datasets.Dataset` or iterable of rows): Rows with a gold solution each.
        max_unparsable_share (`float`, *optional*, defaults to 0.01): Largest share of such golds, from 0 to 1, that is
            no error.
        column (`str`, *optional*, defaults to `"solution"`): Column of the gold solutions.

    Returns:
        [`GoldReport`].

    Raises:
        UsageError: The share is above `max_unparsable_share`, or that is not from 0 to 1, or there is no such column.
    """
    if not 0 <= max_unparsable_share <= 1:
        raise UsageError(f"`max_unparsable_share` is {max_unparsable_share}, but must be a share from 0 to 1.")
    solutions = _column(dataset, column)
    answers = [final_answer(solution) for solution in solutions]
    comparable = _comparable({answer for answer in answers if answer})
    report = GoldReport(len(solutions))
    report.unparsable = {
        row: solution
        for row, (solution, answer) in enumerate(zip(solutions, answers, strict=True))
        if answer not in comparable
    }
    report.undecided = {row: solution for row, solution in enumerate(solutions) if _is_undecided(solution)}
    if report.undecided and os.environ.get("RANK", "0") == "0":
        rows = "\n".join(f"  row {row}: {answers[row]}" for row in list(report.undecided)[:MAX_LISTED])
        logger.warning(
            f"{len(report.undecided)} of {report.total} worked solutions have boxes of different values, and the last one is taken "
            f"for the answer. Leave one box in each if that is wrong:\n{rows}"
        )
    if report.unparsable:
        message = _message(report, answers)
        if report.share > max_unparsable_share:
            raise UsageError(
                f"{message}\nThat is more than `max_unparsable_share` = {max_unparsable_share:.2%}. Correct these golds or leave "
                "the rows out; if they are right as they are, raise the share."
            )
        if os.environ.get("RANK", "0") == "0":
            logger.warning(message)
    return report


def _is_undecided(solution: Any) -> bool:
    worked = worked_answer(solution) if isinstance(solution, str) and solution.count("\\boxed") > 1 else None
    return worked is not None and not worked.decided


def _column(dataset: Iterable[Mapping[str, Any]], column: str) -> list:
    names = getattr(dataset, "column_names", None)
    rows: Any = dataset if names is not None else list(dataset)
    if names is None:
        names = rows[0].keys() if rows else [column]
    if column not in names:
        raise UsageError(f"The dataset has no column '{column}' of gold solutions. Its columns: {', '.join(names)}.")
    return list(rows[column]) if hasattr(rows, "column_names") else [row[column] for row in rows]


def _comparable(answers: set[str]) -> set[str]:
    """The answers that can be compared in value. Most are recognised at once, the rest is parsed by the workers."""
    comparable = {answer for answer in answers if is_comparable(answer)}
    rest = sorted(answers - comparable)
    outcome = shared_pool().run([("comparable", answer) for answer in rest]) if rest else None
    return comparable | {answer for answer, fine in zip(rest, outcome.results if outcome else [], strict=True) if fine}


def _message(report: GoldReport, answers: list[str | None]) -> str:
    lines = [
        f"  row {row}: {answers[row] if answers[row] is not None else solution!r}"[:200].replace("\n", " ")
        if answers[row]
        else f"  row {row}: no final answer in ...{str(solution)[-120:]!r}"
        for row, solution in list(report.unparsable.items())[:MAX_LISTED]
    ]
    more = len(report.unparsable) - len(lines)
    return "\n".join(
        [
            f"{len(report.unparsable)} of {report.total} golds ({report.share:.2%}) cannot be parsed: an answer to them is right "
            "only if it is the very same string.",
            *lines,
            *([f"  and {more} more"] if more else []),
        ]
    )
