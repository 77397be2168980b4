"""From runs to numbers: the metrics of a run, paired differences between arms, intervals. Pure functions.

A run is what [`arms.run`] returns, read back from JSON (null stands for NaN). Arms are compared in pairs: run with
the same starting policy and seed, they see the same problems in the same order.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats


LAST_STEPS = 20  # of training at most, for the primary metric; see `last_steps`
N_RESAMPLES = 10_000
CONFIDENCE = 0.95
PRIMARY = "train/lucky_share"
EVAL_METRICS = ("accuracy", "strict_accuracy", "lucky_share")
AUROCS = {
    "auroc/reward": "contrastive/sound_auroc_reward",
    "auroc/embedding": "contrastive/sound_auroc_embedding",
    "auroc/hidden": "contrastive/sound_auroc_hidden",
}
# Why a reward acts, or does not: what it makes of a sound and a lucky rollout, and where it is the same for all.
REWARD = {
    "reward/gap": "contrastive/sound_gap_reward",
    "reward/floor": "contrastive/floor_rewards",
    "reward/trivial_groups": "contrastive/trivial_groups",
}

Run = Mapping[str, Any]
Metrics = dict[str, float]


def number(value: float | None) -> float:
    """Return what JSON has as a number: null is NaN."""
    return math.nan if value is None else float(value)


def nan_mean(values: Sequence[float]) -> float:
    """Mean of those that are numbers; NaN if none is."""
    values = [value for value in values if not math.isnan(value)]
    return sum(values) / len(values) if values else math.nan


# ---------------------------------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------------------------------


def training_rows(run: Run) -> list[dict[str, Any]]:
    """Rows of the steps that trained the policy; steps of 0 and less warmed up the head alone."""
    return [row for row in run["train"] if row["step"] > 0]


def lucky_share(rows: Sequence[Mapping[str, Any]]) -> float:
    """Lucky rollouts among the right ones, all rows together; NaN if none is right."""
    right, sound = (sum(row[key] for row in rows) for key in ("right", "sound"))
    return (right - sound) / right if right else math.nan


def accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    """Right rollouts among all, all rows together."""
    return sum(row["right"] for row in rows) / sum(row["rollouts"] for row in rows)


def last_steps(steps: int) -> int:
    """How many of the last training steps the primary metric is of: 20, or half of a run of fewer than 40."""
    return min(LAST_STEPS, (steps + 1) // 2)


def run_metrics(run: Run) -> Metrics:
    """
    Return the metrics of one run.

    `train/lucky_share` (the primary one) and `train/accuracy` are those of the last training steps, see
    [`last_steps`]; `SET/accuracy`, `SET/strict_accuracy` and `SET/lucky_share` those of the last evaluation on each
    test set; `auroc/reward`, `auroc/embedding` and `auroc/hidden`, and those of `REWARD`, are means over the training
    steps where they are defined.
    """
    rows = training_rows(run)
    last = [row for row in rows if row["step"] > run["steps"] - last_steps(run["steps"])]
    metrics = {"train/lucky_share": lucky_share(last), "train/accuracy": accuracy(last)}
    for name, measured in final_evaluation(run).items():
        metrics |= {f"{name}/{metric}": number(measured[metric]) for metric in EVAL_METRICS}
    for name, logged in (AUROCS | REWARD).items():
        metrics[name] = nan_mean([number(row.get(logged)) for row in rows])
    return metrics


def final_evaluation(run: Run) -> dict[str, dict[str, float]]:
    """Return the last evaluation: metrics by test set."""
    return {name: measured for name, measured in run["eval"][-1].items() if name != "step"} if run["eval"] else {}


def training_curve(run: Run, metric: str, window: int = 11) -> tuple[np.ndarray, np.ndarray]:
    """
    Return steps and values of `"train/lucky_share"`, `"train/accuracy"` or an AUROC over training, each over a centred
    window of `window` steps that narrows at the ends. Shares are those of the window's rollouts together.
    """
    rows, half = training_rows(run), window // 2
    of_window = {"train/lucky_share": lucky_share, "train/accuracy": accuracy}.get(
        metric, lambda near: nan_mean([number(row.get(AUROCS[metric])) for row in near])
    )
    values = [of_window(rows[max(0, i - half) : i + half + 1]) for i in range(len(rows))]
    return np.array([row["step"] for row in rows]), np.array(values, dtype=float)


# ---------------------------------------------------------------------------------------------------------------------
# Many seeds
# ---------------------------------------------------------------------------------------------------------------------


def paired_values(
    results: Mapping[str, Mapping[int, Metrics]], arm: str, reference: str, metric: str
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the seeds that both arms have a number for, and the numbers of the arm and of the reference."""
    ours, theirs = results.get(arm, {}), results.get(reference, {})
    values = {
        seed: (ours[seed].get(metric, math.nan), theirs[seed].get(metric, math.nan)) for seed in ours.keys() & theirs
    }
    seeds = sorted(seed for seed, pair in values.items() if not any(map(math.isnan, pair)))
    pairs = np.array([values[seed] for seed in seeds], dtype=float).reshape(-1, 2)
    return seeds, pairs[:, 0], pairs[:, 1]


def paired_differences(
    results: Mapping[str, Mapping[int, Metrics]], arm: str, reference: str, metric: str
) -> dict[int, float]:
    """
    Return the difference arm minus reference for each seed that has both.

    Args:
        results (`Mapping[str, Mapping[int, Metrics]]`): Metrics by arm and seed, of one starting policy.
        arm (`str`): Arm.
        reference (`str`): Arm to compare with.
        metric (`str`): See [`run_metrics`].
    """
    seeds, ours, theirs = paired_values(results, arm, reference, metric)
    return dict(zip(seeds, (ours - theirs).tolist(), strict=True))


def bootstrap_interval(
    *samples: Sequence[float], statistic=np.mean, n_resamples: int = N_RESAMPLES
) -> tuple[float, float]:
    """
    Return the 95 % percentile bootstrap interval of `statistic` over seeds; NaN with fewer than two of them. Several
    samples are resampled together, as pairs. Seeded: the same numbers give the same interval.
    """
    if len(samples[0]) < 2:
        return math.nan, math.nan
    with np.errstate(invalid="ignore"):  # scipy also takes the deviation of a ratio that may be infinite
        found = stats.bootstrap(
            samples,
            statistic,
            n_resamples=n_resamples,
            paired=len(samples) > 1,
            vectorized=True,
            confidence_level=CONFIDENCE,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    return tuple(map(float, found.confidence_interval))


def compare(results: Mapping[str, Mapping[int, Metrics]], arm: str, reference: str, metric: str) -> dict[str, Any]:
    """
    Compare two arms in pairs. Returns `n` (pairs), `mean`, `low`, `high` (difference and its 95 % interval), `n_lower`
    (pairs in which the arm is lower), `ratio`, `ratio_low`, `ratio_high` (mean of the arm over mean of the reference)
    and `by_seed`.
    """
    seeds, ours, theirs = paired_values(results, arm, reference, metric)
    differences = ours - theirs
    low, high = bootstrap_interval(differences)
    has_ratio = len(seeds) > 0 and theirs.mean() > 0
    ratio = ours.mean() / theirs.mean() if has_ratio else math.nan
    ratio_low, ratio_high = bootstrap_interval(ours, theirs, statistic=_ratio) if has_ratio else (math.nan, math.nan)
    return {
        "n": len(seeds),
        "mean": float(differences.mean()) if len(seeds) else math.nan,
        "low": low,
        "high": high,
        "n_lower": int((differences < 0).sum()),
        "ratio": float(ratio),
        "ratio_low": ratio_low,
        "ratio_high": ratio_high,
        "by_seed": dict(zip(seeds, differences.tolist(), strict=True)),
    }


def _ratio(ours: np.ndarray, theirs: np.ndarray, axis: int = -1) -> np.ndarray:
    mean = theirs.mean(axis)
    return np.divide(ours.mean(axis), mean, out=np.full_like(mean, np.inf), where=mean > 0)


def describe(values: Sequence[float]) -> dict[str, float]:
    """Return `n`, `mean` and the mean's 95 % interval, `low` and `high`, of those values that are numbers."""
    values = np.array([value for value in values if not math.isnan(value)])
    low, high = bootstrap_interval(values)
    return {"n": len(values), "mean": float(values.mean()) if len(values) else math.nan, "low": low, "high": high}


def mean_and_band(curves: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean over seeds of curves (seeds, steps), and its 95 % interval after Student's t; NaN are left
    out."""
    n = (~np.isnan(curves)).sum(0)
    total = np.nansum(curves, 0)
    mean = np.divide(total, n, out=np.full(len(n), np.nan), where=n > 0)
    squares = np.nansum((curves - mean) ** 2, 0)
    variance = np.divide(squares, n - 1, out=np.full(len(n), np.nan), where=n > 1)
    half = stats.t.ppf(0.5 + CONFIDENCE / 2, np.maximum(n - 1, 1)) * np.sqrt(variance / np.maximum(n, 1))
    return mean, mean - half, mean + half
