"""What was logged, as curves: which panels there are, and how one is drawn."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .pictures import LIGHT
from .record import Logs, TrainingRecord


if TYPE_CHECKING:
    from matplotlib.figure import Figure


MAX_POINTS = 400  # of a curve; more are drawn as means of as many bins
SMOOTHED_FROM = 60  # points: from here on, a running mean over a twentieth of them stands before the values
STROKES = {"blue": "", "orange": "6 2", "green": "2 2", "purple": "8 2 2 2", "ochre": "4 4", "grey": "1 3"}


@dataclass(frozen=True)
class Line:
    """A metric's curve; `colour` and `dash` are given by its place in the panel."""

    metric: str
    label: str
    colour: str
    dash: str


@dataclass(frozen=True)
class Panel:
    """Curves that share their axes; `percent`: they are shares, drawn from 0 to 1."""

    title: str
    lines: tuple[Line, ...]
    percent: bool = False


# Title, metrics with their labels, and whether they are shares; rewards and test sets come before, by their names.
_OWN_PANELS: tuple[tuple[str, dict[str, str], bool], ...] = (
    (
        "Cosine of embeddings in a group",
        {
            "contrastive/embedding_cosine_correct_correct": "right to right",
            "contrastive/embedding_cosine_correct_wrong": "right to wrong",
        },
        False,
    ),
    (
        "Rollouts and groups",
        {
            "contrastive/correct_rollouts": "right rollouts",
            "contrastive/anchors": "anchors",
            "contrastive/trivial_groups": "groups without anchor",
            "contrastive/lucky_share": "lucky among right",
            "contrastive/left_out_rollouts": "left out",
        },
        True,
    ),
    (
        "Contrastive reward of right rollouts",
        {
            "contrastive/reward/mean": "mean",
            "contrastive/reward/min": "lowest",
            "contrastive/reward/max": "highest",
        },
        False,
    ),
    ("Contrastive rewards on the floor", {"contrastive/floor_rewards": "share"}, True),
    ("Loss of the head", {"contrastive/head_loss": "mean over anchors"}, False),
    ("Gradient of the head", {"contrastive/head_grad_norm": "norm"}, False),
    ("Gradient of the policy", {"grad_norm": "norm"}, False),
    (
        "Sound before lucky (AUROC in a group)",
        {
            "contrastive/sound_auroc_reward": "reward",
            "contrastive/sound_auroc_embedding": "embedding",
            "contrastive/sound_auroc_hidden": "hidden state",
            "contrastive/sound_auroc_likelihood": "likelihood",
            "contrastive/sound_auroc_negative_entropy": "minus entropy",
        },
        True,
    ),
    ("Groups without a spread of rewards", {"frac_reward_zero_std": "share"}, True),
    ("Length of completions", {"completions/mean_length": "mean, tokens"}, False),
    ("Completions cut off", {"completions/clipped_ratio": "share"}, True),
    ("Entropy", {"entropy": "mean, nats a token"}, False),
    ("KL divergence to the reference", {"kl": "mean"}, False),
    ("Seconds", {"step_time": "a step", "contrastive/seconds": "of which CLIPO's"}, False),
)


def panels(record: TrainingRecord) -> list[Panel]:
    """Those that have a value to show, in the page's order."""
    logs = record.logs
    parts = _means(logs, "rewards/")
    candidates = [
        _panel("Reward", {"reward": "mean"}),
        _panel("Parts of the reward", parts),
        *_of_test_sets(record),
        *(_panel(title, metrics, percent) for title, metrics, percent in _OWN_PANELS),
    ]
    seen = (_with_values(panel, logs) for panel in candidates)
    return [panel for panel in seen if panel.lines]


def _panel(title: str, metrics: dict[str, str], percent: bool = False) -> Panel:
    styles = list(STROKES.items())
    lines = (
        Line(metric, label, *styles[place % len(styles)]) for place, (metric, label) in enumerate(metrics.items())
    )
    return Panel(title, tuple(lines), percent)


def _with_values(panel: Panel, logs: Logs) -> Panel:
    shown = {line.metric: line.label for line in panel.lines if len(series(logs, line.metric)[0])}
    return _panel(panel.title, shown, panel.percent)


def _means(logs: Logs, prefix: str) -> dict[str, str]:
    """Metrics `PREFIX NAME/mean` by their names, in the order of the logs."""
    keys: dict[str, None] = dict.fromkeys(key for row in logs for key in row)
    return {key: key[len(prefix) : -5] for key in keys if key.startswith(prefix) and key.endswith("/mean")}


def _of_test_sets(record: TrainingRecord) -> Iterator[Panel]:
    """A panel for each reward that decides success, or else for each reward, with a curve for each test set."""
    found: dict[str, dict[str, str]] = {}
    for metric, rest in _means(record.logs, "eval_").items():
        name, separator, reward = rest.rpartition("rewards/")
        if separator:
            found.setdefault(reward, {})[metric] = name.rstrip("_") or "test set"
    deciding = (record.facts.get("success") or {}).get("rewards", [])
    for reward, metrics in found.items():
        if reward in deciding or not set(deciding) & set(found):
            yield _panel(f"Test sets: {reward}", metrics)


def series(logs: Logs, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """
    Steps and values of a metric, NaN where it was logged without a finite value; both empty if it never had one. Of
    logs of the same step, the last counts.
    """
    values = {row["step"]: number(row[metric]) for row in logs if metric in row and "step" in row}
    steps_N, values_N = np.array(sorted(values)), np.array([values[step] for step in sorted(values)], dtype=float)
    return (steps_N, values_N) if np.isfinite(values_N).any() else (steps_N[:0], values_N[:0])


def number(value: Any) -> float:
    """A finite number, or NaN: transformers logs `None` for NaN, and text for what is no number."""
    is_number = isinstance(value, int | float) and np.isfinite(value)
    return float(value) if is_number else float("nan")


# ---------------------------------------------------------------------- drawing


def draw_panel(panel: Panel, logs: Logs, frozen_steps: int = 0, frozen_from: int = 0) -> "Figure":
    """`frozen_from` to `frozen_steps`: a frozen warm-up, shaded."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    figure = Figure(figsize=(4.3, 2.5), layout="constrained")
    axes = figure.subplots()
    for line in panel.lines:
        _draw_line(axes, line, *series(logs, line.metric))
    if panel.percent:
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.set_xlabel("training step")
    if frozen_steps:
        low, high = axes.get_xlim()
        axes.axvspan(
            max(frozen_from, low) if frozen_from else low,
            min(frozen_steps, high),
            color=LIGHT["rule"],
            alpha=0.45,
            linewidth=0,
            zorder=0,
        )
        axes.set_xlim(low, high)
    return figure


def _draw_line(axes: Any, line: Line, steps: np.ndarray, values: np.ndarray) -> None:
    steps, values = binned(steps, values)
    style: dict[str, Any] = {"color": LIGHT[line.colour], "linewidth": 1.7}
    pattern = [float(part) / 2 for part in line.dash.split()]
    style["linestyle"] = (0, pattern) if pattern else "-"
    if len(values) < SMOOTHED_FROM:
        axes.plot(steps, values, marker="o", markersize=3 if len(values) <= 30 else 1.5, **style)
        return
    axes.plot(steps, values, color=LIGHT[line.colour], linewidth=0.7, alpha=0.35)
    axes.plot(steps, running_mean(values, len(values) // 20), **style)


def binned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: means over neighbours, of the values that there are."""
    if len(steps) <= MAX_POINTS:
        return steps, values
    edges = np.linspace(0, len(steps), MAX_POINTS + 1).astype(int)
    pairs = list(zip(edges[:-1], edges[1:], strict=True))
    return np.array([steps[a:b].mean() for a, b in pairs]), np.array([mean_of(values[a:b]) for a, b in pairs])


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Means of the values within `width / 2` of each place; NaN where there is none there itself."""
    half = max(1, width // 2)
    means = [mean_of(values[max(0, place - half) : place + half + 1]) for place in range(len(values))]
    return np.where(np.isfinite(values), means, np.nan)


def mean_of(values: Sequence[float] | np.ndarray) -> float:
    """Mean of the finite ones; NaN if there are none."""
    finite = np.asarray(values, dtype=float)[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


# ---------------------------------------------------------------------- in numbers


def first_and_last(logs: Logs, metric: str, share: float = 0.1) -> tuple[float, float] | None:
    """Means of a metric over the first and the last tenth of its values; `None` if it has none."""
    _, values = series(logs, metric)
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    n = max(1, round(share * len(values)))
    return float(values[:n].mean()), float(values[-n:].mean())


def table_of(shown: Iterable[Panel], logs: Logs) -> list[tuple[str, str, str, str]]:
    """Rows of title, label, first and last: the curves in numbers, for who cannot see them."""
    rows = []
    for panel in shown:
        for line in panel.lines:
            ends = first_and_last(logs, line.metric)
            if ends is not None:
                first, last = (f"{value:.1%}" if panel.percent else f"{value:.4g}" for value in ends)
                rows.append((panel.title, line.label, first, last))
    return rows
