"""Two pictures: why the loss is blind (alignment against uniformity), and the AUROC of every score."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib


matplotlib.use("agg")  # pictures go to files: no display is needed
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from ..faithfulness.pictures import BLACK, COLOURS, GREY, LIGHT, LUCKY, SOUND, STYLE  # noqa: E402
from .report import GROUPS, TITLES, Results  # noqa: E402
from .rollouts import Rollouts  # noqa: E402
from .study import LIKELIHOOD, all_scores  # noqa: E402


MECHANISM, FOREST = "readouts_mechanism.png", "readouts_auroc.png"
SPACE = "head"  # whose alignment and uniformity are drawn
MAX_POINTS = 500  # of each kind, a panel
WIDTH = 3  # standard deviations that a panel shows


def draw_all(results: Results, folders: Mapping[str, Path], image_dir: Path) -> None:
    """Draw both; the first one from the scores of single rollouts in the policies' folders."""
    with plt.rc_context(STYLE):
        for name, figure in ((MECHANISM, mechanism(folders)), (FOREST, forest(results))):
            figure.savefig(image_dir / name, dpi=130)
            plt.close(figure)


def panels(number: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in rows of three at most, the surplus ones taken away."""
    columns = min(3, number)
    rows = -(-number // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(width * columns, height * rows + 0.5), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[number:]:
        axis.remove()
    return figure, list(axes.flat[:number])


# ---------------------------------------------------------------------------------------------------------------------
# Why the loss is blind
# ---------------------------------------------------------------------------------------------------------------------


def mechanism(folders: Mapping[str, Path]) -> Figure:
    """Alignment against uniformity of right rollouts, less their group's mean: a panel a policy."""
    figure, axes = panels(len(folders), 3.5, 3.3)
    for axis, (policy, folder) in zip(axes, folders.items(), strict=True):
        points = centred_points(Rollouts.load(folder / "rollouts"), all_scores(folder))
        _mechanism_panel(axis, points)
        axis.set_title(policy.replace("_", " "))
    figure.supxlabel("alignment: mean cosine to the other right ones, less the group's mean", fontsize=10)
    figure.supylabel("uniformity: denominator of the loss,\nless the group's mean", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    return figure


def centred_points(rollouts: Rollouts, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Alignment and uniformity `(N, 2)` of sound and of lucky rollouts, less the mean of their group's right ones."""
    values_PG2 = np.stack([scores[f"{SPACE}/alignment"], -scores[f"{SPACE}/minus_uniformity"]], 2)
    right_PG1 = rollouts.right_PG[..., None]
    mean_P12 = (values_PG2 * right_PG1).sum(1, keepdims=True) / np.maximum(right_PG1.sum(1, keepdims=True), 1)
    counts_P1 = rollouts.compared_P[:, None]
    return {
        "sound": (values_PG2 - mean_P12)[rollouts.sound_PG & counts_P1],
        "lucky": (values_PG2 - mean_P12)[rollouts.lucky_PG & counts_P1],
    }


def _mechanism_panel(axis: Axes, points: Mapping[str, np.ndarray]) -> None:
    together = np.concatenate(list(points.values()))
    reach = WIDTH * max(together.std(0)) if len(together) else 1.0
    axis.plot([-reach, reach], [-reach, reach], color=GREY, linewidth=1, zorder=1, label="same loss (SupCon)")
    rng = np.random.default_rng(0)
    for points_N2, colour in zip(points.values(), (SOUND, LUCKY), strict=True):
        shown = rng.permutation(len(points_N2))[:MAX_POINTS]
        axis.scatter(*points_N2[shown].T, s=6, color=colour, alpha=0.25, linewidth=0, zorder=2)
    for (kind, points_N2), colour in zip(points.items(), (SOUND, LUCKY), strict=True):
        style = {"color": colour, "markeredgecolor": "white", "markersize": 10, "linestyle": "", "zorder": 4}
        axis.plot(*points_N2.mean(0)[:, None], marker="o", label=f"{kind}, and their mean", **style)
    axis.annotate("lower loss", (0.97, 0.05), xycoords="axes fraction", ha="right", fontsize=8.5, color=GREY)
    axis.annotate("higher loss", (0.03, 0.92), xycoords="axes fraction", fontsize=8.5, color=GREY)
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axis.locator_params(nbins=5)


# ---------------------------------------------------------------------------------------------------------------------
# All scores
# ---------------------------------------------------------------------------------------------------------------------


def forest(results: Results) -> Figure:
    """AUROC with its interval: a line a score, a column a policy; filled where the score adds to likelihood."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(3.2 + 1.9 * len(results), 0.22 * len(TITLES) + 1.4), sharey=True, squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axis, (policy, of_policy) in zip(axes[0], results.items(), strict=True):
        place = 0
        for titles, colour in zip(GROUPS.values(), (BLACK, *COLOURS), strict=False):
            for score in titles:
                if "auroc" in of_policy.get(score, {}):
                    row = of_policy[score]
                    adds = row.get("gain_low", 0.0) > 0
                    axis.plot([row["auroc_low"], row["auroc_high"]], [place, place], color=colour, linewidth=2)
                    axis.plot(row["auroc"], place, "o", color=colour, markerfacecolor=colour if adds else "white",
                              markersize=5.5)  # fmt: skip
                place += 1
            axis.axhline(place - 0.5, color=LIGHT, linewidth=0.6)
        axis.axvline(0.5, color=GREY, linewidth=1)
        axis.axvline(of_policy[LIKELIHOOD]["auroc"], color=BLACK, linewidth=0.8, linestyle=":")
        axis.set(xlim=(0, 1), ylim=(len(TITLES) - 0.5, -0.5), title=policy.replace("_", " "))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.grid(visible=False)
    axes[0, 0].set_yticks(range(len(TITLES)), list(TITLES.values()), fontsize=8.5)
    figure.supxlabel(
        "AUROC for sound against lucky, 95 % interval; dotted: likelihood; filled: adds to likelihood", fontsize=9.5
    )
    return figure
