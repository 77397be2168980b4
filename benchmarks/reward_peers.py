r"""Our rewards beside peers on the same answers: wrong ones accepted, right ones refused, and rows a second.

    python -m benchmarks.reward_peers [DATA_FOLDER] [--verl FOLDER/verl/utils/reward_score]

The answers are the tests' own (`tests/test_reward_funcs_math.py`, `tests/reward_cases.py`) and, with a folder of
parquet files in the layout of the paper's data, their golds, rewritten and missed by little as in
`tests/test_reward_funcs_data.py`, and golds of other rows. Each stands in a box at the end of a sentence. The tests
hold our own reward to all of them: its errors here say little about it, the peers' say where they differ.

| peer | |
|---|---|
| ours | `verifiable_reward`, one worker |
| Math-Verify | `verify(parse(box of the gold), parse(completion))`, as its own page has it |
| TRL | `trl.rewards.accuracy_reward`; `None` (gold not parsed) counts as refused |
| verl, math-verify | our `verl_compatible_reward`, one worker |
| verl, strings | our `verl_boxed_reward` |
| verl's own | with `--verl`: its files `math_verify.py` and `math_reward.py` themselves |
"""

import argparse
import importlib.util
import json
import logging
import random
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.answer_parts import Case, cases_of_the_tests, golds_of, tests
from reward_funcs import configure_pool, verifiable_reward, verl_boxed_reward, verl_compatible_reward


OUTPUT = Path("runs/benchmarks/reward_peers.json")
COLUMNS = ("answers", "scorer", "right", "refused", "refused %", "wrong", "accepted", "accepted %", "rows/s")
Scorer = Callable[[list[str], list[str]], list[bool]]  # completions, golds -> accepted


def ours(completions: list[str], golds: list[str]) -> list[bool]:
    return [score == 1.0 for score in verifiable_reward(completions, golds)]


def verl_compatible(completions: list[str], golds: list[str]) -> list[bool]:
    return [score == 1.0 for score in verl_compatible_reward(completions, golds)]


def verl_boxed(completions: list[str], golds: list[str]) -> list[bool]:
    return [score == 1.0 for score in verl_boxed_reward(completions, golds)]


def trl(completions: list[str], golds: list[str]) -> list[bool]:
    from trl.rewards import accuracy_reward

    conversations = [[{"role": "assistant", "content": text}] for text in completions]
    return [score == 1.0 for score in accuracy_reward(conversations, [rf"$\boxed{{{gold}}}$" for gold in golds])]


def math_verify(completions: list[str], golds: list[str]) -> list[bool]:
    from math_verify import parse, verify

    return [
        _never_fails(lambda g, c: verify(parse(rf"$\boxed{{{g}}}$"), parse(c)), *row)
        for row in zip(golds, completions, strict=True)
    ]


def _never_fails(verdict: Callable[[str, str], object], gold: str, completion: str) -> bool:
    try:
        return bool(verdict(gold, completion))
    except Exception:
        return False


def verls_own(folder: Path) -> dict[str, Scorer]:
    """Its two scorers, from their files alone: the package needs ray."""
    modules = {name: load(folder / f"{name}.py") for name in ("math_verify", "math_reward")}
    by_name = {
        "verl's own math_verify.py": lambda gold, text: modules["math_verify"]._verify_in_subprocess(
            rf"\boxed{{{gold}}}", text
        ),
        "verl's own math_reward.py": lambda gold, text: modules["math_reward"].compute_score(text, gold),
    }

    def scorer(verdict: Callable[[str, str], object]) -> Scorer:
        def accepted(completions: list[str], golds: list[str]) -> list[bool]:
            with redirect_stdout(StringIO()):
                return [_never_fails(verdict, gold, text) for gold, text in zip(golds, completions, strict=True)]

        return accepted

    return {name: scorer(verdict) for name, verdict in by_name.items()}


def load(file: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"verls_{file.stem}", file)
    if spec is None or spec.loader is None or not file.exists():
        raise FileNotFoundError(f"There is no '{file}'. Give the folder verl/utils/reward_score of verl with --verl.")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases_of_a_file(file: Path, rows: int) -> list[Case]:
    """Golds as they are, rewritten, missed by little, and of other rows: at most `rows` of each."""
    made = tests("test_reward_funcs_data")
    golds, draw = golds_of(file, every_kind=True), random.Random(0)
    kinds = [[Case(gold, gold, True) for gold in golds]]
    for right, changes in ((True, made.REWRITINGS), (False, made.NEAR_MISSES)):
        for change in changes:
            pairs = [(gold, change(gold)) for gold in golds if len(gold) > 1 or not gold.isalpha()]
            kinds.append([Case(*pair, right) for pair in pairs if pair[1] not in (None, pair[0])])
    others = [pair for pair in made.pairs_of(golds, 6) if not made.same_by_another_reader(*pair)]
    kinds.append([Case(*pair, False) for pair in others])
    return [case for kind in kinds for case in draw.sample(kind, min(len(kind), rows))]


def measure(name: str, cases: list[Case], scorers: dict[str, Scorer]) -> list[dict]:
    """Errors of each scorer on the same cases, in the same order."""
    golds, right = [case.gold for case in cases], [case.right for case in cases]
    completions = [rf"So the answer is $\boxed{{{case.answer}}}$." for case in cases]
    results = []
    for scorer, accept in scorers.items():
        configure_pool(num_workers=1)
        start = time.perf_counter()
        accepted = accept(completions, golds)
        seconds = time.perf_counter() - start
        refused = sum(good and not yes for good, yes in zip(right, accepted, strict=True))
        wrong = sum(yes and not good for good, yes in zip(right, accepted, strict=True))
        results.append(
            {
                "answers": name, "scorer": scorer, "right": sum(right), "refused": refused, "refused %": share(refused, sum(right)),
                "wrong": len(right) - sum(right), "accepted": wrong, "accepted %": share(wrong, len(right) - sum(right)),
                "rows/s": round(len(cases) / seconds),
            }
        )  # fmt: skip
    return results


def share(part: int, total: int) -> str:
    return f"{100 * part / total:.1f}" if total else "–"


def summed(results: list[dict]) -> list[dict]:
    """All files together, a row a scorer."""
    rows = []
    for scorer in dict.fromkeys(row["scorer"] for row in results):
        of_one = [row for row in results if row["scorer"] == scorer]
        total = {key: sum(row[key] for row in of_one) for key in ("right", "refused", "wrong", "accepted")}
        seconds = sum((row["right"] + row["wrong"]) / max(row["rows/s"], 1) for row in of_one)
        rows.append(
            {
                "answers": "all files", "scorer": scorer, **total, "refused %": share(total["refused"], total["right"]),
                "accepted %": share(total["accepted"], total["wrong"]), "rows/s": round((total["right"] + total["wrong"]) / seconds),
            }
        )  # fmt: skip
    return rows


def markdown(rows: list[dict]) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---" + "|--:" * (len(COLUMNS) - 2) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(str(row[name]) for name in COLUMNS) + " |" for row in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder of parquet files in the layout of the paper's data")
    parser.add_argument("--verl", type=Path, help="folder verl/utils/reward_score, to run verl's own files too")
    parser.add_argument("--rows", type=int, default=40, help="answers of each kind and file (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file for the results (default: %(default)s)")
    arguments = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    scorers: dict[str, Scorer] = {
        "ours": ours, "Math-Verify": math_verify, "TRL": trl, "verl, math-verify": verl_compatible, "verl, strings": verl_boxed,
    }  # fmt: skip
    scorers |= verls_own(arguments.verl) if arguments.verl else {}
    files = sorted(arguments.data.rglob("*.parquet")) if arguments.data else []
    rows = []
    for file in track(files, "files"):
        rows += measure(
            str(file.relative_to(arguments.data).with_suffix("")), cases_of_a_file(file, arguments.rows), scorers
        )
    rows += summed(rows) if rows else []
    rows += measure("the tests' own", list(dict.fromkeys(cases_of_the_tests())), scorers)
    console = Console()
    table = Table(*COLUMNS)
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    console.print(table)
    console.print(
        "Not run: verl's own files (give them with --verl)." if not arguments.verl else "verl's own files were run."
    )
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
