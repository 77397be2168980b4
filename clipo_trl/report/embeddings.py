"""Embeddings of rollouts, before and after training, as scatter plots: t-SNE, and the two principal components."""

from typing import TYPE_CHECKING, Any

import numpy as np

from ..completions_table import farthest_rows
from .pictures import LIGHT
from .record import EmbeddingSnapshot


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


NUM_SUSPICIOUS = 5  # rollouts of a snapshot, as many as are listed at a log
_SAME = 1e-3  # half precision: embeddings that differ by less are the same
_MIN_ROLLOUTS = 4  # fewer have no picture
RIGHT, WRONG, SUSPICIOUS = "right", "wrong", "suspicious"
# Told apart by shape, too: a page may be printed without colour.
MARKERS: dict[str, dict[str, Any]] = {
    WRONG: {"marker": "x", "s": 20, "color": LIGHT["grey"], "linewidths": 1.1},
    RIGHT: {"marker": "o", "s": 26, "color": LIGHT["blue"], "edgecolors": LIGHT["paper"], "linewidths": 0.5},
    SUSPICIOUS: {"marker": "^", "s": 62, "color": LIGHT["orange"], "edgecolors": LIGHT["ink"], "linewidths": 0.9},
}


def verdicts(snapshot: EmbeddingSnapshot) -> np.ndarray:
    """What each rollout is, an array `(P * G,)` of words; an empty one where it counts for nothing."""
    words = np.where(snapshot.correct_PG.flatten(), RIGHT, WRONG).astype("U10")
    words[farthest_rows(snapshot.agreement_PG.flatten().tolist(), NUM_SUSPICIOUS)] = SUSPICIOUS
    words[~snapshot.valid_PG.flatten()] = ""
    return words


def principal_components(points_ND: np.ndarray) -> np.ndarray:
    """Places `(N, 2)` along the two directions in which the points differ most."""
    centred_ND = points_ND - points_ND.mean(0)
    left, sizes, _ = np.linalg.svd(centred_ND, full_matrices=False)
    places = (left * sizes)[:, :2]
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))  # of embeddings of a single entry


def t_sne(points_ND: np.ndarray) -> np.ndarray:
    """Places `(N, 2)` in which neighbours are near each other; distances between clusters mean little."""
    from sklearn.manifold import TSNE

    if np.ptp(points_ND, axis=0).max() < _SAME:
        return np.zeros((len(points_ND), 2))  # t-SNE would divide by their spread
    perplexity = min(30.0, max(1.0, len(points_ND) / 8))  # neighbours to look at: of few points, few
    init = "pca" if points_ND.shape[1] > 1 else "random"  # there is no second component of a single entry
    return TSNE(2, perplexity=perplexity, init=init, random_state=0).fit_transform(points_ND)


METHODS = {"t-SNE": t_sne, "PCA": principal_components}


def draw_embeddings(method: str, before: EmbeddingSnapshot, after: EmbeddingSnapshot) -> "Figure":
    """Both batches side by side; `method` is a key of `METHODS`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, 3.7), layout="constrained")
    axes = figure.subplots(1, 2)
    _scatter(axes[0], method, before, f"first batch ({_after_steps(before.step)})")
    _scatter(axes[1], method, after, f"newest batch ({_after_steps(after.step)})")
    handles = [axes[0].scatter([], [], **style) for style in MARKERS.values()]
    figure.legend(handles, list(MARKERS), loc="outside lower center", ncols=3, labelcolor=LIGHT["muted"])
    return figure


def _after_steps(step: int) -> str:
    return "before training" if step == 0 else f"after {step:,} steps"


def _scatter(axes: "Axes", method: str, snapshot: EmbeddingSnapshot, title: str) -> None:
    words, points_ND = verdicts(snapshot), snapshot.embeddings_PGD.astype(np.float32)
    points_ND, words = points_ND.reshape(len(words), -1)[words != ""], words[words != ""]
    axes.set_title(f"{method}, {title}")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(True)
    if len(words) < _MIN_ROLLOUTS:
        axes.text(0.5, 0.5, "too few rollouts", transform=axes.transAxes, ha="center", va="center")
        return
    places_N2 = METHODS[method](points_ND)
    for word, style in MARKERS.items():  # the rarest last, on top
        axes.scatter(*places_N2[words == word].T, **style)
    axes.margins(0.06)
