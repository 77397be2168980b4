"""Answers per second: our math reward against TRL's serial `accuracy_reward`, on the same rows in the same run.

    python -m benchmarks.reward_throughput --data FOLDER

Each file gives `--rows` rows. A third of the answers is the gold itself, a third the gold rewritten, a third another
row's gold. Both rewards start cold: the time of ours includes starting its workers. Then a run of 10,000 answers of
which 1 % hang.
"""

import argparse
import json
import os
import platform
import random
import re
import time
from pathlib import Path

import pyarrow.parquet
from rich.console import Console
from rich.table import Table

from reward_funcs import configure_pool, final_answer, verifiable_reward


OUTPUT = Path("runs/benchmarks/reward_throughput.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of parquet files in the layout of the paper's data"
    )
    parser.add_argument("--rows", type=int, default=500, help="rows of each file (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=None, help="worker processes (default: by the cores)")
    parser.add_argument(
        "--deadline", type=float, default=5.0, help="seconds an answer may take (default: %(default)s)"
    )
    parser.add_argument(
        "--hanging_run", type=int, default=10_000, help="answers of the last run, 1 %% of them hang; 0: no such run"
    )
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file for the results (default: %(default)s)")
    arguments = parser.parse_args()
    console = Console()

    files = sorted(arguments.data.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"No parquet files in '{arguments.data}'. Give the folder of the data with --data.")
    results = {"machine": machine(), "workers": arguments.workers, "rows": [], "hanging": None}
    table = Table("file", "rows", "TRL rows/s", "ours rows/s", "ratio", "TRL accepts", "ours accepts")
    for file in files:
        row = compare(file, arguments)
        results["rows"].append(row)
        table.add_row(
            row["file"], str(row["rows"]), f"{row['trl']:.0f}", f"{row['ours']:.0f}", f"{row['ours'] / row['trl']:.1f}",
            f"{row['trl_accepts']:.1%}", f"{row['ours_accepts']:.1%}",
        )  # fmt: skip
    console.print(table)
    if arguments.hanging_run:
        results["hanging"] = run_with_hanging_answers(arguments)
        console.print(results["hanging"])
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=2) + "\n")
    console.print(f"Written to {arguments.output}")


def compare(file: Path, arguments: argparse.Namespace) -> dict:
    """Rows per second of both rewards on rows of one file, and the share of answers that they accept."""
    from trl.rewards import accuracy_reward

    golds, answers = rows_of(file, arguments.rows)
    completions = [
        [{"role": "assistant", "content": rf"So the answer is $\boxed{{{answer}}}$."}] for answer in answers
    ]
    configure_pool(arguments.workers, arguments.deadline)
    start = time.perf_counter()
    ours = verifiable_reward(completions, golds)
    ours_seconds = time.perf_counter() - start
    start = time.perf_counter()
    trl = accuracy_reward(completions, [rf"$\boxed{{{final_answer(gold)}}}$" for gold in golds])  # it wants LaTeX
    trl_seconds = time.perf_counter() - start
    return {
        "file": str(file.relative_to(arguments.data)),
        "rows": len(golds),
        "ours": len(golds) / ours_seconds,
        "trl": len(golds) / trl_seconds,
        "ours_accepts": sum(score or 0.0 for score in ours) / len(ours),
        "trl_accepts": sum(score or 0.0 for score in trl) / len(trl),
    }


def rows_of(file: Path, count: int) -> tuple[list[str], list[str]]:
    """Golds, and an answer to each: its own, rewritten, or another row's."""
    draw = random.Random(0)
    column = pyarrow.parquet.read_table(file, columns=["reward_model"]).to_pydict()["reward_model"]
    golds = [row["ground_truth"] for row in column]
    golds = draw.sample(golds, min(count, len(golds)))
    answers = [final_answer(gold) for gold in golds]
    others = answers[1:] + answers[:1]
    chosen = [
        (own, rewritten(own), other)[row % 3] for row, (own, other) in enumerate(zip(answers, others, strict=True))
    ]
    return golds, chosen


def rewritten(answer: str) -> str:
    """The same value in another form, which costs a comparison by value: fractions turned, summands added, `x =`."""
    if re.fullmatch(r"[A-Z]", answer):
        return rf"\text{{({answer})}}"
    if re.fullmatch(r"-?\d+", answer):
        return f"{answer}.0"
    turned = re.sub(r"\\d?frac\{([^{}]+)\}\{([^{}]+)\}", r"\\frac{2(\1)}{2(\2)}", answer)
    return turned if turned != answer else f"x = {answer}"


def run_with_hanging_answers(arguments: argparse.Namespace) -> dict:
    """Different surds, each equal to its gold in another form, and a power tower that no one can compute in every
    hundredth row."""
    count = arguments.hanging_run
    golds = [rf"\sqrt{{{n}}}" for n in range(2, count + 2)]
    completions = [rf"\boxed{{{n}^{{1/2}}}}" for n in range(2, count + 2)]
    hanging = range(50, count, 100)
    for row in hanging:
        completions[row] = rf"\boxed{{9^{{9^{{9^{{{row}}}}}}}}}"
    metrics: dict[str, float] = {}
    configure_pool(arguments.workers, arguments.deadline)
    start = time.perf_counter()
    scores = verifiable_reward(completions, golds, log_metric=metrics.__setitem__)
    return {
        "answers": count,
        "hanging": len(hanging),
        "deadline_seconds": arguments.deadline,
        "seconds": time.perf_counter() - start,
        "right": scores.count(1.0),
        "scored_zero": scores.count(0.0),
        **metrics,
    }


def machine() -> dict:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cores": cores, "load_before": os.getloadavg()[0], "python": platform.python_version()}


if __name__ == "__main__":
    main()
