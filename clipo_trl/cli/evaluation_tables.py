"""Tables of an evaluation, in the layout of the paper's two, and the comparison of two models.

Results are JSON (shares between 0 and 1); tables are made from them in percent, as rows of text that Markdown and a
terminal show alike.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .evaluation_records import Record, question_labels
from .evaluation_scores import estimate, majority_at_k, mean_at_k, paired_difference, pass_at_k


# The paper's tables: name of a test set -> its column.
TRACKS = {
    "Track I": {
        "gsm8k": "GSM8K",
        "gsm_symbolic": "GSM-Symbolic",
        "gsm_p1": "P1",
        "gsm_p2": "P2",
        "theoremqa": "TheoremQA",
        "mmlu": "MMLU",
        "truthfulqa": "TruthfulQA",
        "commonsense_qa": "CommonsenseQA",
    },
    "Track II": {
        "math_500": "MATH-500",
        "aime_2024": "AIME24",
        "aime_2025": "AIME25",
        "amc": "AMC",
        "math_perturb_simple": "MATH-Perturb simple",
        "math_perturb_hard": "MATH-Perturb hard",
    },
}
NO_VALUE = "–"  # a set that was not evaluated, or a score that it does not have


class Table(NamedTuple):
    title: str
    header: list[str]
    rows: list[list[str]]

    def to_markdown(self) -> str:
        rows = [self.header, ["---"] * len(self.header), *self.rows]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
        return f"## {self.title}\n\n" + "\n".join(lines) + "\n"


# ---------------------------------------------------------------------- results


def correct_samples(records: list[Record]) -> np.ndarray:
    """Which samples are right, `(Q, K)`: a reward above 0. A sample without a reward is wrong."""
    return np.array([[reward is not None and reward > 0 for reward in record["rewards"]] for record in records])


def question_scores(records: list[Record]) -> dict[str, np.ndarray | None]:
    """
    Scores of each question, `(Q,)`: mean@K, pass@k for k = 1, 2, 4, ... and K, and maj@K if there are several samples;
    `None` for maj@K if no sample of any question has an answer to vote with (a reward that reads no box, for one).
    """
    correct_QK = correct_samples(records)
    n_samples = correct_QK.shape[1]
    ks = sorted({2**i for i in range(n_samples.bit_length())} | {n_samples})
    scores: dict[str, np.ndarray | None] = {f"mean@{n_samples}": mean_at_k(correct_QK)}
    scores |= {f"pass@{k}": pass_at_k(correct_QK, k) for k in ks}
    if n_samples > 1:
        classes_QK = [record["classes"] for record in records]
        scores[f"maj@{n_samples}"] = majority_at_k(classes_QK, correct_QK) if count_voted(records) else None
    return scores


def count_voted(records: list[Record]) -> int:
    """Questions of which a sample at least has an answer, and so a vote."""
    return sum(any(label is not None for label in record["classes"]) for record in records)


def summarise(model: str, sets: dict[str, list[Record]]) -> dict[str, Any]:
    """
    Results of one model.

    Args:
        model (`str`): Its name in the tables.
        sets (`dict[str, list[Record]]`): Records of all questions of each test set.

    Returns:
        `dict` of JSON values: `model`; `tables`, mean@K in the paper's layout, by track and column (`None` where a set
        was not evaluated); `sets`, by name, with all scores (means over `questions`, its rows; `None` where there is
        none), lengths and counts.
    """
    scores = {name: question_scores(records) for name, records in sets.items()}
    means = {name: mean_at_k(correct_samples(records)) for name, records in sets.items()}
    asked = {name: np.array(question_labels(records)) for name, records in sets.items()}
    details = {}
    for name, records in sets.items():
        details[name] = {
            "questions": len(records),
            "different_questions": len(set(asked[name])),
            "samples": len(records[0]["rewards"]),
            "questions_with_votes": count_voted(records),
            "scores": {
                metric: None if values is None else estimate([values], questions=[asked[name]])._asdict()
                for metric, values in scores[name].items()
            },
            "mean_tokens": float(np.mean([record["tokens"] for record in records])),
            "truncated": float(np.mean([record["truncated"] for record in records])),
            "without_reward": sum(record["rewards"].count(None) for record in records),
        }

    def entry(names: list[str]) -> dict[str, Any]:
        return estimate([means[name] for name in names], questions=[asked[name] for name in names])._asdict()

    tables = _layout(list(sets), entry)
    return {"model": model, "tables": tables, "sets": details}


def compare(models: tuple[str, str], sets: dict[str, tuple[list[Record], list[Record]]]) -> dict[str, Any]:
    """
    Results of two models, A and B, on the same questions.

    Args:
        models (`tuple[str, str]`): Their names in the tables.
        sets (`dict`): Records of all questions of each test set, of A and of B.

    Returns:
        `dict` of JSON values: `models`; `tables`, in the paper's layout: for each column mean@K of A and of B with
        intervals, and `difference` (B minus A) with its interval and p-value.
    """
    means = {name: [mean_at_k(correct_samples(records)) for records in both] for name, both in sets.items()}
    asked = {name: np.array(question_labels(both[0])) for name, both in sets.items()}

    def entry(names: list[str]) -> dict[str, Any]:
        of_a, of_b = zip(*(means[name] for name in names), strict=True)
        questions = [asked[name] for name in names]
        difference = paired_difference(list(zip(of_a, of_b, strict=True)), questions=questions)
        a, b = (estimate(of_one, questions=questions)._asdict() for of_one in (of_a, of_b))
        return {"A": a, "B": b, "difference": difference._asdict()}

    return {"models": list(models), "tables": _layout(list(sets), entry)}


def _layout(names: list[str], entry: Callable[[list[str]], dict[str, Any]]) -> dict[str, Any]:
    """The paper's tables of which a test set was evaluated, and one more with all sets that are in neither."""
    known = {name for track in TRACKS.values() for name in track}
    others = {"Other test sets": {name: name for name in names if name not in known}}
    tables = {}
    for title, columns in (TRACKS | others).items():
        if evaluated := [name for name in columns if name in names]:
            tables[title] = {
                "columns": {label: entry([name]) if name in names else None for name, label in columns.items()},
                "average": entry(evaluated),
                "average_of": f"{len(evaluated)} of {len(columns)}",
            }
    return tables


# ---------------------------------------------------------------------- tables


def result_tables(results: dict[str, Any]) -> list[Table]:
    """Tables of [`summarise`]: the paper's, then one with all scores of each set."""
    tables = [
        Table(f"{title}, {_metrics(results)}, %", *_paper_rows(table, {results["model"]: _with_interval}))
        for title, table in results["tables"].items()
    ]
    metrics = list(dict.fromkeys(metric for details in results["sets"].values() for metric in details["scores"]))
    header = [
        "test set",
        "questions",
        "samples",
        *metrics,
        "questions with votes",
        "tokens",
        "truncated",
        "without reward",
    ]
    rows = [
        [
            name,
            _questions(details),
            str(details["samples"]),
            *(_with_interval(details["scores"][metric]) for metric in metrics),
            f"{details['questions_with_votes']:,}",
            f"{details['mean_tokens']:,.0f}",
            f"{details['truncated']:.1%}",
            str(details["without_reward"]),
        ]
        for name, details in results["sets"].items()
    ]
    return [*tables, Table("All scores, %", header, rows)]


def _questions(details: dict[str, Any]) -> str:
    """`1,634 (817 different)` where questions stand more than once."""
    rows, different = details["questions"], details.get("different_questions", details["questions"])
    return f"{rows:,}" if rows == different else f"{rows:,} ({different:,} different)"


def comparison_tables(results: dict[str, Any]) -> list[Table]:
    """Tables of [`compare`]: the paper's, with a row each for A, B, their difference and its p-value."""
    name_a, name_b = results["models"]
    lines = {
        f"A: {name_a}": lambda entry: _with_interval(entry["A"]),
        f"B: {name_b}": lambda entry: _with_interval(entry["B"]),
        "B - A": lambda entry: _with_interval(entry["difference"], sign="+"),
        "p": lambda entry: f"{entry['difference']['p_value']:.4f}",
    }
    return [Table(f"{title}, %", *_paper_rows(table, lines)) for title, table in results["tables"].items()]


def _paper_rows(table: dict[str, Any], lines: dict[str, Callable]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of one of the paper's tables; `lines` has the text of an entry by the row's name."""
    count, total = table["average_of"].split(" of ")
    average = "Average" if count == total else f"Average ({table['average_of']})"
    rows = [
        [
            name,
            *(NO_VALUE if entry is None else text(entry) for entry in table["columns"].values()),
            text(table["average"]),
        ]
        for name, text in lines.items()
    ]
    return ["model", *table["columns"], average], rows


def _metrics(results: dict[str, Any]) -> str:
    return " / ".join(sorted({f"mean@{details['samples']}" for details in results["sets"].values()}))


def _with_interval(estimate: dict[str, float] | None, sign: str = "") -> str:
    if estimate is None:
        return NO_VALUE
    value, low, high = (f"{100 * estimate[key]:{sign}.1f}" for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
