"""Two pictures: why the loss is blind (alignment against uniformity of pairs), and the AUROC of every score."""

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
from .statistics import make_pairs, ranked  # noqa: E402
from .study import LIKELIHOOD, all_scores  # noqa: E402


MECHANISM, FOREST = "readouts_mechanism.png", "readouts_auroc.png"
SPACE = "head"  # whose alignment and uniformity are drawn
MAX_POINTS = 1500  # a panel
SOME_GAIN = 0.01  # that a filled mark stands for
SHOWN = 0.9  # share of the points that a panel reaches to, and a little more


def draw_all(results: Results, folders: Mapping[str, Path], image_dir: Path) -> None:
    """Draw both; the first one from the scores of single rollouts in the policies' folders."""
    with plt.rc_context(STYLE):
        for name, figure in ((MECHANISM, mechanism(folders)), (FOREST, forest(results))):
            figure.savefig(image_dir / name, dpi=130)
            plt.close(figure)


def panels(number: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Panels in rows of three at most, the surplus ones taken away."""
    rows = -(-number // 3)
    columns = -(-number // rows)
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
    """
    A sound less a lucky rollout of its group, in alignment and in uniformity: a panel a policy, a point a pair. The
    shares of points on one side of the axes and of the diagonal are the AUROCs of the two and of their difference.
    """
    figure, axes = panels(len(folders), 3.4, 3.4)
    for axis, (policy, folder) in zip(axes, folders.items(), strict=True):
        _mechanism_panel(axis, differences(Rollouts.load(folder / "rollouts"), all_scores(folder)))
        axis.set_title(policy.replace("_", " "))
    figure.supxlabel("alignment (mean cosine to the other right ones), sound less lucky", fontsize=10)
    figure.supylabel("uniformity (the loss's denominator), sound less lucky", fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(handles), markerscale=3)
    return figure


def differences(rollouts: Rollouts, scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Alignment and uniformity `(pairs, 2)` of the sound rollout of each pair, less those of the lucky one."""
    pairs = make_pairs(rollouts.sound_PG, rollouts.lucky_PG, rollouts.compared_P)
    of_both = (scores[f"{SPACE}/alignment"], -scores[f"{SPACE}/minus_uniformity"])
    return np.stack([values_N2[:, 0] - values_N2[:, 1] for values_N2 in map(pairs.values, of_both)], 1)


def _mechanism_panel(axis: Axes, points_N2: np.ndarray) -> None:
    reach = 1.3 * np.quantile(np.abs(points_N2).max(1), SHOWN) if len(points_N2) else 1.0
    shown_N2 = np.random.default_rng(0).permutation(points_N2)[:MAX_POINTS]
    is_lower_N = shown_N2[:, 0] > shown_N2[:, 1]
    for chosen_N, colour, label in (
        (is_lower_N, SOUND, "the loss pays the sound one more"), (~is_lower_N, LUCKY, "the lucky one"),
    ):  # fmt: skip
        axis.scatter(*shown_N2[chosen_N].T, s=6, color=colour, alpha=0.45, linewidth=0, zorder=2, label=label)
    axis.plot([-reach, reach], [-reach, reach], color=GREY, linewidth=1, zorder=1, label="same loss (SupCon)")
    axis.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axis.axhline(0, color=GREY, linewidth=0.8, zorder=1)
    parts = (points_N2[:, 0], -points_N2[:, 1], points_N2[:, 0] - points_N2[:, 1])
    aligned, even, paid = (ranked(np.stack([part_N, 0 * part_N], 1)).mean() for part_N in parts)
    told = f"AUROC\nalignment {aligned:.2f}\nminus uniformity {even:.2f}\nminus loss {paid:.2f}"
    axis.annotate(told, (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=8.5, color=BLACK)
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
                    adds = row["gain_low"] > 0 and row["gain"] >= SOME_GAIN
                    axis.plot([row["auroc_low"], row["auroc_high"]], [place, place], color=colour, linewidth=2)
                    axis.plot(row["auroc"], place, "o", color=colour, markerfacecolor=colour if adds else "white", clip_on=False,
                              markersize=5.5)  # fmt: skip
                place += 1
            axis.axhline(place - 0.5, color=LIGHT, linewidth=0.6)
        axis.axvline(0.5, color=GREY, linewidth=1)
        axis.axvline(of_policy[LIKELIHOOD]["auroc"], color=BLACK, linewidth=0.8, linestyle=":")
        axis.set(xlim=(-0.02, 1.02), ylim=(len(TITLES) - 0.5, -0.5), title=policy.replace("_", " "))
        axis.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axis.grid(visible=False)
    axes[0, 0].set_yticks(range(len(TITLES)), list(TITLES.values()), fontsize=8.5)
    figure.supxlabel(
        f"AUROC for sound against lucky, 95 % interval; dotted: likelihood; filled: adds {SOME_GAIN} or more to it",
        fontsize=9.5,
    )
    return figure
