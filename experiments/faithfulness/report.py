"""The report of the faithfulness experiment: report.md for people, report.json with the same numbers, runs.csv with
those of each run, and pictures."""

import csv
import math
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import pictures
from .jobs import write_json
from .statistics import AUROCS, EVAL_METRICS, N_RESAMPLES, PRIMARY, Run, compare, describe, last_steps, number
from .study import Study


TEST_SETS = {
    "test": "same kind",
    "other_operands": "other numbers",
    "p1": "one more operation",
    "p2": "two more operations",
}


def write_report(study: Study, output_dir: Path) -> Path:
    """Write report.md, report.json, runs.csv and the pictures into `output_dir`. Returns the path of report.md."""
    output_dir.mkdir(parents=True, exist_ok=True)
    numbers = {"settings": study.settings, "software": software(), "primary_metric": PRIMARY}
    numbers["policies"] = {policy: policy_numbers(study, policy) for policy in study.policies}
    write_json(output_dir / "report.json", numbers, indent=1)
    write_runs(study, output_dir / "runs.csv")
    drawn = pictures.draw_all(study, numbers, output_dir) if study.n_runs else {}
    path = output_dir / "report.md"
    path.write_text("\n".join(report_lines(study, numbers, drawn)) + "\n")
    return path


def write_runs(study: Study, path: Path) -> None:
    """Write the metrics of each run, a line a run; what is not a number is left empty."""
    rows = [
        {"seed": seed, "policy": policy, "arm": arm} | {name: f"{x:.6g}" for name, x in metrics.items() if x == x}
        for policy in study.policies
        for arm, seeds in study.metrics(policy).items()
        for seed, metrics in seeds.items()
    ]
    columns = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row["seed"]))


def software() -> dict[str, str]:
    packages = {name: version(name) for name in ("torch", "transformers", "trl")}
    return {"python": platform.python_version(), **packages}


def policy_numbers(study: Study, policy: str) -> dict[str, Any]:
    """All numbers of one starting policy."""
    results = study.metrics(policy)
    names = list(dict.fromkeys(name for seeds in results.values() for metrics in seeds.values() for name in metrics))

    def differences(reference: str) -> dict[str, Any]:
        return {
            arm: {name: compare(results, arm, reference, name) for name in names}
            for arm in results
            if reference in results and arm != reference
        }

    return {
        "start": study.policies[policy],
        "seeds": {arm: list(seeds) for arm, seeds in results.items()},
        "arms": {
            arm: {name: describe([metrics.get(name, math.nan) for metrics in seeds.values()]) for name in names}
            for arm, seeds in results.items()
        },
        "evaluations": {arm: evaluations(study.runs[policy][arm].values()) for arm in results},
        "differences": {reference: differences(reference) for reference in (study.reference, *study.compared)},
    }


def evaluations(runs: Iterable[Run]) -> list[dict[str, Any]]:
    """Means over seeds of each evaluation during training."""
    measured: dict[int, dict[str, list]] = {}
    for run in runs:
        for row in run["eval"]:
            for name in row.keys() - {"step"}:
                measured.setdefault(row["step"], {}).setdefault(name, []).append(row[name])
    return [
        {"step": step}
        | {
            name: {metric: describe([number(row[metric]) for row in rows])["mean"] for metric in EVAL_METRICS}
            for name, rows in sorted(sets.items())
        }
        for step, sets in sorted(measured.items())
    ]


# ---------------------------------------------------------------------------------------------------------------------
# report.md
# ---------------------------------------------------------------------------------------------------------------------


def report_lines(study: Study, numbers: dict[str, Any], drawn: Mapping[str, str]) -> Iterable[str]:
    settings = study.settings
    n_last = last_steps(settings["steps"])
    last_seed = settings["first_seed"] + settings["seeds"] - 1
    yield "# Lucky rollouts with GRPO and CLIPO\n"
    yield (
        "A rollout is *right* if its answer is, *sound* if every step is right as well, and *lucky* if it is right with a wrong step. "
        f"The primary metric, fixed beforehand, is the share of lucky rollouts among the right ones over the last {n_last} "
        "training steps. Strict accuracy is the share of sound rollouts. AUROC: how well a score tells the sound from the lucky "
        "rollouts of a group (0.5: not at all, 1: perfectly), mean over all training steps. Sound less lucky: difference of the "
        "contrastive reward paid, in units of the answer's reward of 1, mean over the same pairs. An anchor is a correct rollout of a "
        "group that has another correct one and a wrong one."
    )
    yield (
        f"\nSeeds {settings['first_seed']} to {last_seed} were asked for, {settings['steps']} training steps a run; "
        f"{study.n_runs} runs are reported. Shares are in percent, differences in percentage points; [ ] is the 95 % bootstrap "
        f"interval over seeds (percentile, {N_RESAMPLES:,} resamples). Differences are paired: same starting policy, same seed."
    )
    yield (
        "\n"
        + ", ".join(f"{name} {number}" for name, number in numbers["software"].items())
        + f"; {settings['device']}."
    )
    for policy, measured in numbers["policies"].items():
        yield f"\n## From `{policy}`\n"
        yield from policy_lines(study, measured)
    if drawn:
        yield "\n## Pictures"
        for name, caption in drawn.items():
            yield f"\n![{caption}]({name})\n\n{caption}"


def policy_lines(study: Study, measured: dict[str, Any]) -> Iterable[str]:
    if not measured["arms"]:
        yield "No run is finished."
        return
    sets = [name for name in TEST_SETS if name in measured["start"]]
    yield from training_lines(study, measured)
    yield from evaluation_lines(study, measured, sets)
    for reference, differences in measured["differences"].items():
        if differences:
            yield from difference_lines(study, reference, differences, sets)


def training_lines(study: Study, measured: dict[str, Any]) -> Iterable[str]:
    yield f"### Training: the last {last_steps(study.settings['steps'])} steps, and AUROC\n"
    yield from table(
        ["arm", "seeds", "**lucky share**", "accuracy", "AUROC: reward paid", "embeddings", "hidden states"],
        (
            [study.arms[arm], len(measured["seeds"][arm]), f"**{mean(levels[PRIMARY])}** {interval(levels[PRIMARY])}"]
            + [f"{mean(levels['train/accuracy'])} {interval(levels['train/accuracy'])}"]
            + [plain(levels[name]["mean"]) for name in AUROCS]
            for arm, levels in measured["arms"].items()
        ),
    )
    yield "\n### What the reward paid makes of it\n"
    yield from table(
        ["arm", "sound less lucky", "on the floor", "groups without an anchor"],
        (
            [study.arms[arm], f"{levels['reward/gap']['mean']:+.4f}"]
            + [mean(levels[name]) for name in ("reward/floor", "reward/trivial_groups")]
            for arm, levels in measured["arms"].items()
        ),
    )


def evaluation_lines(study: Study, measured: dict[str, Any], sets: list[str]) -> Iterable[str]:
    yield "\n### Test: accuracy / strict accuracy / lucky share at the end\n"
    start = ["start", ""] + [" / ".join(percent(number(measured["start"][s][m])) for m in EVAL_METRICS) for s in sets]
    rows = (
        [study.arms[arm], len(measured["seeds"][arm])]
        + [" / ".join(mean(levels[f"{s}/{m}"]) if f"{s}/{m}" in levels else "" for m in EVAL_METRICS) for s in sets]
        for arm, levels in measured["arms"].items()
    )
    yield from table(["arm", "seeds"] + [TEST_SETS[name] for name in sets], [start, *rows])
    yield "\n### Test, over training: accuracy / strict accuracy / lucky share\n"
    yield from table(
        ["arm", "step"] + [TEST_SETS[name] for name in sets],
        (
            [study.arms[arm], row["step"]] + [" / ".join(percent(row[s][m]) for m in EVAL_METRICS) for s in sets]
            for arm, rows in measured["evaluations"].items()
            for row in rows
        ),
    )


def difference_lines(
    study: Study, reference: str, differences: dict[str, dict[str, Any]], sets: list[str]
) -> Iterable[str]:
    """Paired differences of each arm to `reference`, on test sets to the study's own reference alone."""
    yield f"\n### Paired difference to {study.arms[reference]}\n"
    yield from table(
        ["arm", "pairs", "**lucky share, training**", "lower in", "times the lucky share", "accuracy, training"],
        (training_row(study.arms[arm], compared) for arm, compared in differences.items()),
    )
    if reference != study.reference:
        return
    for metric, title in {"strict_accuracy": "strict accuracy", "lucky_share": "lucky share"}.items():
        yield ""
        yield from table(
            [f"{title}, test", "pairs"] + [TEST_SETS[name] for name in sets],
            (
                [study.arms[arm], compared[PRIMARY]["n"]] + [changed(compared, f"{name}/{metric}") for name in sets]
                for arm, compared in differences.items()
            ),
        )


def training_row(title: str, compared: dict[str, Any]) -> list:
    primary = compared[PRIMARY]
    ratio = plain(primary["ratio"])
    if not math.isnan(primary["ratio_low"]):
        ratio += f" [{plain(primary['ratio_low'])}, {plain(primary['ratio_high'])}]"
    return [
        title,
        primary["n"],
        f"**{mean(primary, sign=True)}** {interval(primary, sign=True)}",
        f"{primary['n_lower']} of {primary['n']}",
        ratio,
        changed(compared, "train/accuracy"),
    ]


def changed(compared: dict[str, Any], metric: str) -> str:
    return (
        f"{mean(compared[metric], sign=True)} {interval(compared[metric], sign=True)}" if metric in compared else "–"
    )


def table(header: list[str], rows: Iterable[list]) -> Iterable[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|---|{'---:|' * (len(header) - 1)}"
    for row in rows:
        yield f"| {' | '.join(map(str, row))} |"


def percent(value: float, sign: bool = False) -> str:
    return "–" if math.isnan(value) else f"{100 * value:{'+' if sign else ''}.1f}".replace("-", "−")


def plain(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def mean(described: dict[str, float], sign: bool = False) -> str:
    return percent(described["mean"], sign)


def interval(described: dict[str, float], sign: bool = False) -> str:
    if math.isnan(described["low"]):
        return ""
    return f"[{percent(described['low'], sign)}, {percent(described['high'], sign)}]"
