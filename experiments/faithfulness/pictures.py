"""Pictures of the faithfulness experiment. Each one covers the runs that there are."""

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib


matplotlib.use("agg")  # pictures go to files: no display is needed
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.ticker import PercentFormatter  # noqa: E402
from scipy.optimize import isotonic_regression  # noqa: E402
from sklearn.decomposition import PCA  # noqa: E402

from .statistics import PRIMARY, last_steps, mean_and_band, number, training_curve  # noqa: E402
from .study import Study  # noqa: E402


# Readable for the colour-blind (Okabe and Ito).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
BLACK, GREY, LIGHT = "#222222", "#7A7A7A", "#B8B8B8"
SOUND, LUCKY, WRONG = "#0072B2", "#D55E00", "#CFCFCF"
EMBEDDINGS = "embeddings.npz"
MAX_GROUPS = 12  # of the embedding picture
SET_LABELS = {
    "test": "same\nkind",
    "other_operands": "other\nnumbers",
    "p1": "+1 ope-\nration",
    "p2": "+2 ope-\nrations",
}
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.alpha": 0.25,
    "legend.frameon": False,
}


def draw_all(study: Study, numbers: dict[str, Any], output_dir: Path) -> dict[str, str]:
    """Draw all pictures. Returns caption by file name, in the order of the report."""
    drawn = {}
    pictures = {
        "overview.png": (
            overview,
            "Lucky share of right rollouts over training, a moving mean of 11 steps; bands: 95 % intervals over seeds.",
        ),
        "differences.png": (differences, "Difference of the primary metric to the reference, with 95 % intervals."),
        "learning_curves.png": (
            learning_curves,
            "Accuracy and lucky share of the training rollouts, moving means of 11 steps; bands: 95 % intervals.",
        ),
        "auroc.png": (auroc_curves, "How well rewards, embeddings and hidden states tell sound from lucky rollouts."),
        "generalisation.png": (generalisation, "Accuracy and lucky share at the end of training, on four test sets."),
        "embeddings.png": (
            embeddings,
            "Embeddings of some groups by the head before and after training, in two dimensions.",
        ),
    }
    for name, (draw, caption) in pictures.items():
        with plt.rc_context(STYLE):
            figure = draw(study, numbers)
            if figure is not None:
                figure.savefig(output_dir / name, dpi=150)
                plt.close(figure)
                drawn[name] = caption
    return drawn


def from_policy(policy: str) -> str:
    return f"from {policy.replace('_', ' ')}"


def policies_with_runs(study: Study) -> list[str]:
    return [policy for policy in study.policies if study.present(policy)]


def line_styles(study: Study) -> dict[str, dict[str, Any]]:
    """Colour and line of each arm: black for the reference, grey for controls, strong colours for the first four
    others."""
    styles, colours, dashes = {}, iter(COLOURS), cycle([(0, (5, 2)), (0, (1, 1.2)), (0, (5, 1, 1, 1))])
    for arm in study.arms:
        if arm == study.reference:
            styles[arm] = {"color": BLACK, "linewidth": 2.2, "zorder": 4}
        elif arm in study.controls:
            styles[arm] = {"color": GREY, "linestyle": next(dashes), "linewidth": 1.4, "zorder": 3}
        elif (colour := next(colours, None)) is not None:
            styles[arm] = {"color": colour, "linewidth": 2.2, "zorder": 5}
        else:
            styles[arm] = {"color": LIGHT, "linewidth": 1.2, "zorder": 2}
    return styles


# ---------------------------------------------------------------------------------------------------------------------
# Over training
# ---------------------------------------------------------------------------------------------------------------------


def overview(study: Study, numbers: dict[str, Any]) -> plt.Figure:
    """The primary metric alone: a panel a starting policy, the reference and the arms that have a colour of their
    own."""
    policies, styles = policies_with_runs(study), line_styles(study)
    figure, axes = plt.subplots(
        1, len(policies), figsize=(10.5, 3.4), sharex=True, squeeze=False, layout="constrained"
    )
    for axis, policy in zip(axes[0], policies, strict=True):
        highest = 0.05
        for arm in study.present(policy):
            if styles[arm]["color"] in (GREY, LIGHT):
                continue
            steps, mean, low, high = _mean_curve(study, policy, arm, PRIMARY)
            highest = np.nanmax([highest, *mean])
            axis.plot(steps, mean, **styles[arm])
            axis.fill_between(steps, low, high, color=styles[arm]["color"], alpha=0.15, linewidth=0)
        axis.set_title(from_policy(policy))
        axis.set(ylim=(0, min(1.0, 1.15 * highest)), xmargin=0, xlabel="training step")
        axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes[0, 0].set_ylabel("lucky share of right rollouts")
    shown = {arm: style for arm, style in styles.items() if style["color"] not in (GREY, LIGHT)}
    shown = {arm: style for arm, style in shown.items() if any(arm in study.present(policy) for policy in policies)}
    handles = [Line2D([], [], **style, label=study.arms[arm]) for arm, style in shown.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


def learning_curves(study: Study, numbers: dict[str, Any]) -> plt.Figure:
    figure = _curves(study, {"train/accuracy": "Accuracy", PRIMARY: "Lucky share of right rollouts"}, percent=True)
    for axis, policy in zip(figure.axes[1::2], policies_with_runs(study), strict=True):
        _label_ends(axis, [study.arms[arm] for arm in study.present(policy)])
    return figure


def auroc_curves(study: Study, numbers: dict[str, Any]) -> plt.Figure:
    titles = {
        "auroc/reward": "AUROC of the reward paid",
        "auroc/embedding": "AUROC of the embeddings",
        "auroc/hidden": "AUROC of the hidden states",
    }
    figure = _curves(study, titles, percent=False)
    for axis in figure.axes:
        axis.axhline(0.5, color=GREY, linewidth=0.8)
        axis.set_ylim(0, 1)
    _legend(figure, study, line_styles(study))
    return figure


def _curves(study: Study, titles: dict[str, str], percent: bool) -> plt.Figure:
    """Rows: starting policies; columns: metrics. Mean over seeds with its band."""
    policies, styles = policies_with_runs(study), line_styles(study)
    size = (10.5, 0.9 + 2.7 * len(policies))
    figure, axes = plt.subplots(
        len(policies), len(titles), figsize=size, sharex=True, sharey=not percent, squeeze=False, layout="constrained"
    )
    for row, policy in zip(axes, policies, strict=True):
        for axis, (metric, title) in zip(row, titles.items(), strict=True):
            highest = 0.05
            for arm in study.present(policy):
                steps, mean, low, high = _mean_curve(study, policy, arm, metric)
                highest = np.nanmax([highest, *mean])
                axis.plot(steps, mean, **styles[arm])
                if styles[arm]["color"] != LIGHT:
                    axis.fill_between(steps, low, high, color=styles[arm]["color"], alpha=0.13, linewidth=0)
            axis.set_title(title if axis in axes[0] else "")
            axis.set_xmargin(0)
            if percent:
                axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
                axis.set_ylim(0, min(1.0, 1.15 * highest))  # a wide band of few seeds does not flatten the lines
        row[0].set_ylabel(from_policy(policy))
    for axis in axes[-1]:
        axis.set_xlabel("training step")
    return figure


def _mean_curve(study: Study, policy: str, arm: str, metric: str) -> tuple[np.ndarray, ...]:
    curves = [training_curve(run, metric) for run in study.runs[policy][arm].values()]
    length = min(len(steps) for steps, _ in curves)
    return curves[0][0][:length], *mean_and_band(np.array([values[:length] for _, values in curves]))


def _label_ends(axis: plt.Axes, titles: list[str]) -> None:
    """Write each line's title beside its end, in its colour, those that would touch moved apart; light lines have
    none."""
    low, high = axis.get_ylim()
    lines = [(line.get_ydata()[-1], line.get_color(), title) for line, title in zip(axis.lines, titles, strict=True)]
    ends = sorted((end for end in lines if end[1] != LIGHT and not np.isnan(end[0])), key=lambda end: end[0])
    if not ends:
        return
    steps = 0.075 * (high - low) * np.arange(len(ends))
    places = (
        isotonic_regression(np.array([end[0] for end in ends]) - steps).x + steps
    )  # nearest ones that do not touch
    places -= max(0.0, places[-1] - high)
    for (value, colour, title), place in zip(ends, places, strict=True):
        axis.annotate(
            title, (1, value), xycoords=("axes fraction", "data"), xytext=(1.06, place),
            textcoords=("axes fraction", "data"), va="center", fontsize=9, color=colour, annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.5, "relpos": (0, 0.5), "shrinkA": 1, "shrinkB": 1},
        )  # fmt: skip
    if len(ends) < len(lines):
        axis.annotate(
            "light grey: others", (1.06, -0.1), xycoords="axes fraction", fontsize=9, color=GREY, annotation_clip=False
        )


def _legend(figure: plt.Figure, study: Study, styles: dict[str, dict[str, Any]], *more: Line2D) -> None:
    """One legend above all panels, since every panel has the same arms. The light ones share an entry."""
    present = [arm for arm in study.arms if any(arm in study.present(policy) for policy in policies_with_runs(study))]
    light = [arm for arm in present if styles[arm]["color"] == LIGHT]
    handles = [Line2D([], [], **styles[arm], label=study.arms[arm]) for arm in present if arm not in light]
    handles += [Line2D([], [], **styles[arm], label="others") for arm in light[:1]] + list(more)
    figure.legend(handles=handles, loc="outside upper center", ncols=min(4, len(handles)))


# ---------------------------------------------------------------------------------------------------------------------
# At the end
# ---------------------------------------------------------------------------------------------------------------------


def differences(study: Study, numbers: dict[str, Any]) -> plt.Figure | None:
    """Forest plot: an arm a line, a starting policy a column, a grey dot a seed."""
    compared = {
        policy: found
        for policy in policies_with_runs(study)
        if (found := numbers["policies"][policy]["differences"][study.reference])
    }
    if not compared:
        return None
    shown = [arm for arm in study.arms if any(arm in found for found in compared.values())]
    longest = max(len(study.arms[arm]) for arm in shown)  # its name stands beside the columns
    size = (max(10.5, 0.08 * longest + 2.8 * len(compared)), 1.5 + 0.52 * len(shown))
    figure, axes = plt.subplots(1, len(compared), figsize=size, sharey=True, squeeze=False, layout="constrained")
    styles = line_styles(study)
    for axis, (policy, found) in zip(axes[0], compared.items(), strict=True):
        axis.axvline(0, color=BLACK, linewidth=1)
        for place, arm in enumerate(shown):
            if arm not in found:
                continue
            primary, colour = found[arm][PRIMARY], styles[arm]["color"]
            colour = GREY if colour == LIGHT else colour
            by_seed = list(primary["by_seed"].values())
            axis.plot(by_seed, np.full(len(by_seed), place + 0.22), "o", color=LIGHT, markersize=3, alpha=0.8)
            axis.plot(
                [primary["low"], primary["high"]], [place, place], color=colour, linewidth=3, solid_capstyle="butt"
            )
            axis.plot(primary["mean"], place, "o", color=colour, markersize=7, markeredgecolor="white")
            axis.annotate(
                f"{primary['n_lower']} of {primary['n']}", (1, place), xycoords=("axes fraction", "data"),
                xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5, color=GREY, annotation_clip=False,
            )  # fmt: skip
        axis.set_title(from_policy(policy))
        axis.annotate(
            "lower in", (1, -0.6), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
            fontsize=8.5, color=GREY, annotation_clip=False,
        )  # fmt: skip
        axis.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
        axis.grid(axis="x", alpha=0.25)
        axis.grid(visible=False, axis="y")
        axis.set_yticks(range(len(shown)), [study.arms[arm] for arm in shown])
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.set_ylim(len(shown) - 0.4, -0.6)
    reference = study.arms[study.reference]
    figure.supxlabel(
        f"lucky share of the last {last_steps(study.settings['steps'])} training steps: percentage points above or below {reference}",
        fontsize=10,
    )
    return figure


def generalisation(study: Study, numbers: dict[str, Any]) -> plt.Figure | None:
    """Rows: accuracy, lucky share; columns: starting policies; a place on the x-axis for each test set."""
    policies, styles = policies_with_runs(study), line_styles(study)
    metrics = {"accuracy": "Accuracy", "lucky_share": "Lucky share of right rollouts"}
    size = (10.5, 6.6)
    figure, axes = plt.subplots(
        len(metrics), len(policies), figsize=size, sharex=True, sharey="row", squeeze=False, layout="constrained"
    )
    for column, policy in zip(axes.T, policies, strict=True):
        levels, start = numbers["policies"][policy]["arms"], numbers["policies"][policy]["start"]
        sets = [name for name in SET_LABELS if name in start]
        offsets = np.linspace(-0.33, 0.33, len(levels)) if len(levels) > 1 else [0.0]
        for axis, (metric, title) in zip(column, metrics.items(), strict=True):
            for place, name in enumerate(sets):
                value = number(start[name][metric])
                axis.plot([place - 0.42, place + 0.42], [value, value], color=GREY, linewidth=1, linestyle=":")
            for offset, arm in zip(offsets, levels, strict=True):
                found = [levels[arm].get(f"{name}/{metric}") for name in sets]
                x = np.arange(len(sets)) + offset
                y = np.array([np.nan if entry is None else entry["mean"] for entry in found])
                ends = np.array([[np.nan] * 2 if entry is None else [entry["low"], entry["high"]] for entry in found])
                colour, shape = styles[arm]["color"], "s" if arm in study.controls else "o"
                axis.vlines(x, ends[:, 0], ends[:, 1], color=colour, linewidth=1.6)
                axis.plot(x, y, shape, color=colour, markersize=5.5, markeredgecolor="white", markeredgewidth=0.6)
            axis.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
            axis.set_xticks(range(len(sets)), [SET_LABELS[name] for name in sets])
            axis.tick_params(axis="x", length=0)
            if policy == policies[0]:
                axis.set_ylabel(title)
        column[0].set_title(from_policy(policy))
    for axis in axes[:, 0]:  # once all that share it are drawn
        axis.set_ylim(bottom=0)
    markers = {
        arm: {**style, "linestyle": "none", "marker": "s" if arm in study.controls else "o"}
        for arm, style in styles.items()
    }
    _legend(figure, study, markers, Line2D([], [], color=GREY, linewidth=1, linestyle=":", label="start"))
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Embeddings
# ---------------------------------------------------------------------------------------------------------------------


def embeddings(study: Study, numbers: dict[str, Any]) -> plt.Figure | None:
    """Rows: starting policies, for the first arm that trains a head; columns: before and after training."""
    files = {
        policy: (arm, path)
        for policy in policies_with_runs(study)
        for arm, path in [_embeddings_of(study, policy)]
        if path is not None
    }
    if not files:
        return None
    size = (10.5, 0.6 + 3.4 * len(files))
    figure, axes = plt.subplots(len(files), 2, figsize=size, squeeze=False, layout="constrained")
    for row, (policy, (arm, path)) in zip(axes, files.items(), strict=True):
        with np.load(path) as saved:
            for axis, when in zip(row, ("before", "after"), strict=True):
                _scatter(axis, saved[when], saved[f"label_{when}"], saved[f"group_{when}"])
                axis.set_title(f"{study.arms[arm]} {from_policy(policy)}, {when} training")
    kinds = {"sound": SOUND, "lucky": LUCKY, "wrong": WRONG}
    handles = [
        Line2D([], [], marker="o", linestyle="none", color=colour, label=kind) for kind, colour in kinds.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _embeddings_of(study: Study, policy: str) -> tuple[str, Path | None]:
    for arm in study.present(policy):
        if arm == study.reference or arm in study.controls:
            continue
        for seed in sorted(study.runs[policy][arm]):
            if (path := study.folders[policy, arm, seed] / EMBEDDINGS).exists():
                return arm, path
    return "", None


def _scatter(axis: plt.Axes, points_ND: np.ndarray, label_N: np.ndarray, group_N: np.ndarray) -> None:
    """Draw the two main directions of embeddings from which the group's mean is taken off."""
    some = np.isin(group_N, np.unique(group_N)[:MAX_GROUPS])
    points_ND, label_N, group_N = points_ND[some], label_N[some], group_N[some]
    centred_ND = np.concatenate(
        [points_ND[group_N == g] - points_ND[group_N == g].mean(0) for g in np.unique(group_N)]
    )
    label_N = np.concatenate([label_N[group_N == g] for g in np.unique(group_N)])
    pca = PCA(2, random_state=0)
    place_N2 = pca.fit_transform(centred_ND)
    for label, colour in enumerate((WRONG, LUCKY, SOUND)):
        chosen = place_N2[label_N == label]
        axis.scatter(*chosen.T, s=26, color=colour, edgecolor="white", linewidth=0.5, zorder=2 + (label > 0))
    shares = pca.explained_variance_ratio_
    axis.set(xlabel=f"first direction ({shares[0]:.0%} of the variance)", ylabel=f"second direction ({shares[1]:.0%})")
    axis.set(xticks=[], yticks=[])
    axis.grid(visible=False)
