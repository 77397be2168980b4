"""The comparison of arms: report.md, report.json with the same numbers, and a picture."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("agg")  # pictures go to files: no display is needed
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from ..faithfulness.jobs import write_json  # noqa: E402
from ..faithfulness.statistics import mean_and_band, nan_mean, paired_differences  # noqa: E402
from .grid import BASE  # noqa: E402


BLUE, GREY, LIGHT = "#0072B2", "#7A7A7A", "#B8B8B8"
REPORT, NUMBERS, PICTURE = "report.md", "report.json", "comparison.png"

Results = Mapping[str, Mapping[int, Mapping[str, float]]]  # by arm, seed and metric


def final_value(logged: list[dict[str, Any]], metric: str, last_steps: int) -> float:
    """Mean of a metric over the last steps of training that logged it, or the last value of an `eval_...`; NaN if it
    was never logged."""
    rows = [row for row in logged if row.get(metric) is not None]
    if metric.startswith("eval_"):
        return rows[-1][metric] if rows else math.nan
    n_steps = max((row["step"] for row in logged), default=0)
    return nan_mean([row[metric] for row in rows if row["step"] > n_steps - last_steps])


def numbers_of(results: Results, metrics: list[str]) -> dict[str, Any]:
    """For each metric and arm: mean over seeds (`level`) and paired difference to the base (`difference`)."""
    return {
        metric: {
            arm: {
                "level": describe({seed: values[metric] for seed, values in seeds.items()}),
                "difference": describe(paired_differences(results, arm, BASE, metric)) if arm != BASE else None,
            }
            for arm, seeds in results.items()
        }
        for metric in metrics
    }


def describe(by_seed: Mapping[int, float]) -> dict[str, Any]:
    """
    Number, mean and 95 % interval of those values that are numbers: `n`, `mean`, `low`, `high`, `by_seed`.

    The interval is Student's: a grid has few seeds, of which a bootstrap would make too narrow a one (of three values,
    from the least to the greatest at most).
    """
    by_seed = {seed: value for seed, value in by_seed.items() if not math.isnan(value)}
    mean, low, high = (float(values[0]) for values in mean_and_band(np.array([*by_seed.values()], float)[:, None]))
    return {"n": len(by_seed), "mean": mean, "low": low, "high": high, "by_seed": by_seed}


def write_report(results: Results, metrics: list[str], about: dict[str, Any], output_dir: Path) -> Path:
    """
    Write report.md, report.json and comparison.png into `output_dir`. Returns the path of report.md.

    Args:
        results (`Results`): the base first.
        metrics (`list[str]`): what is compared.
        about (`dict`): settings of the grid and `same`, the arms that are the base.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    numbers = numbers_of(results, metrics)
    write_json(output_dir / NUMBERS, {"settings": about, "metrics": numbers}, indent=1)
    if len(results) > 1:
        figure = draw(numbers)
        figure.savefig(output_dir / PICTURE, dpi=150)
        plt.close(figure)
    path = output_dir / REPORT
    path.write_text("\n".join(report_lines(numbers, about)) + "\n")
    return path


def report_lines(numbers: dict[str, Any], about: dict[str, Any]) -> Iterable[str]:
    yield "# Ablations\n"
    yield (
        f"Base: {', '.join(f'`{path}`' for path in about['base'])}. Each number is a mean over seeds, of the last "
        f"{about['last_steps']} training steps (of `eval_...`: of the last evaluation). Differences are to the base, paired by "
        f"seed; [ ] is Student's 95 % interval over seeds. Of many intervals some leave out 0 by chance: about one in twenty where "
        "nothing differs. And all differences share the base's runs: where those did well by chance, every arm looks worse."
    )
    if about["same"]:
        yield f"\nThe base itself: {', '.join(about['same'])}."
    for metric, arms in numbers.items():
        yield f"\n## `{metric}`\n"
        yield "| arm | seeds | mean | difference to the base |"
        yield "|---|---:|---:|---:|"
        for arm, found in arms.items():
            level, difference = found["level"], found["difference"]
            told = "" if difference is None else f"{_number(difference['mean'], '+')} {_interval(difference)}"
            yield f"| {arm} | {level['n']} | {_number(level['mean'])} | {told} |"
    if any(len(arms) > 1 for arms in numbers.values()):
        yield f"\n![Paired differences to the base, by seed and with intervals]({PICTURE})"


def _number(value: float, sign: str = "") -> str:
    return "–" if math.isnan(value) else f"{value:{sign}.3f}".replace("-", "−")


def _interval(difference: dict[str, Any]) -> str:
    if math.isnan(difference["low"]):
        return ""
    return f"[{_number(difference['low'], '+')}, {_number(difference['high'], '+')}]"


def draw(numbers: dict[str, Any]) -> plt.Figure:
    """A panel a metric, a row an arm: differences to the base by seed, their mean and its interval."""
    arms = [arm for arm in next(iter(numbers.values())) if arm != BASE]
    size = (2 + 3 * len(numbers), 1.2 + 0.32 * len(arms))
    figure, axes = plt.subplots(1, len(numbers), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, (metric, found) in zip(axes[0], numbers.items(), strict=True):
        axis.axvline(0, color=GREY, linewidth=1)
        for place, arm in enumerate(arms):
            difference = found[arm]["difference"]
            by_seed = list(difference["by_seed"].values())
            clear = difference["low"] > 0 or difference["high"] < 0
            colour = BLUE if clear else GREY
            axis.plot(by_seed, np.full(len(by_seed), place + 0.22), "o", color=LIGHT, markersize=3)
            axis.plot([difference["low"], difference["high"]], [place, place], color=colour, linewidth=3)
            axis.plot(difference["mean"], place, "o", color=colour, markersize=6, markeredgecolor="white")
        axis.set_title(metric, fontsize=9, loc="left")
        axis.grid(axis="x", alpha=0.25)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(axis="y", length=0)
    axes[0, 0].set_yticks(range(len(arms)), arms)
    axes[0, 0].set_ylim(len(arms) - 0.4, -0.6)
    figure.supxlabel(
        f"difference to the {BASE}, paired by seed; blue where the 95 % interval leaves out 0", fontsize=9
    )
    return figure
