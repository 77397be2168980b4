"""
What a score is worth: AUROC for sound against lucky among a group's right rollouts, and what it adds to likelihood.

All figures are of pairs: a sound and a lucky rollout of one group. Groups are pooled by their pairs, and intervals are
95 % bootstrap over groups.

The primary measure of what a score adds to likelihood, fixed before any result was seen, is the *gain*: a rank model
(conditional logistic regression on differences within pairs) is fitted on the groups of four folds in five, once with
a smooth function of the rollout's mean log-probability alone and once with the score beside it, and both rank the
pairs of the fifth; the gain is the difference of their AUROCs. Reasons: it uses all pairs and no cut-off, it is in the
unit of the AUROC itself, either sign of a score counts, and no function of likelihood alone can gain anything. The
second one is simpler and needs no fit: the AUROC in those pairs whose likelihoods are closest (*matched*).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import QuantileTransformer, SplineTransformer, StandardScaler

from ..faithfulness.statistics import CONFIDENCE


N_RESAMPLES = 2000
N_FOLDS = 5
MATCHED_SHARE = 0.25  # of the pairs: those whose likelihoods are closest
N_KNOTS = 5
TIE = 1e-9


@dataclass(frozen=True)
class Pairs:
    """
    Pairs of a sound and a lucky rollout of one group.

    Attributes:
        group_N, sound_N, lucky_N (`np.ndarray`): group, and places in it, of each pair.
        n_groups (`int`): Groups that have pairs; `group_N` counts them from 0.
        groups (`np.ndarray`): Which ones they are.
    """

    group_N: np.ndarray
    sound_N: np.ndarray
    lucky_N: np.ndarray
    groups: np.ndarray

    @property
    def n_groups(self) -> int:
        return len(self.groups)

    def values(self, score_PG: np.ndarray) -> np.ndarray:
        """A score of each pair's sound and lucky rollout: `(pairs, 2)`."""
        row_N = self.groups[self.group_N]
        return np.stack([score_PG[row_N, self.sound_N], score_PG[row_N, self.lucky_N]], 1)


def make_pairs(sound_PG: np.ndarray, lucky_PG: np.ndarray, compared_P: np.ndarray) -> Pairs:
    """All pairs of the groups that count."""
    groups = np.flatnonzero(compared_P & sound_PG.any(1) & lucky_PG.any(1))
    found = [
        (place, sound, lucky)
        for place, group in enumerate(groups)
        for sound in np.flatnonzero(sound_PG[group])
        for lucky in np.flatnonzero(lucky_PG[group])
    ]
    return Pairs(*np.array(found, dtype=int).reshape(-1, 3).T, groups)


def ranked(values_N2: np.ndarray) -> np.ndarray:
    """1 where the sound rollout's score is higher, a half for a tie and where one of them has none, 0 otherwise."""
    difference_N = values_N2[:, 0] - values_N2[:, 1]
    tie_N = ~(np.abs(difference_N) > TIE * np.nanmax(np.abs(values_N2), initial=TIE))
    return np.where(tie_N, 0.5, (difference_N > 0).astype(float))


class Bootstrap:
    """
    95 % percentile intervals over groups; every figure sees the same resamples.

    Args:
        pairs (`Pairs`): Whose groups are drawn.
        seed (`int`, *optional*, defaults to `0`): Of the draw.
    """

    def __init__(self, pairs: Pairs, seed: int = 0, n_resamples: int = N_RESAMPLES):
        self.pairs = pairs
        n = pairs.n_groups
        self._counts_RP = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), n_resamples) if n else None

    def mean(self, of_pair_N: np.ndarray, chosen_N: np.ndarray | None = None) -> tuple[float, float, float]:
        """Mean over pairs, or over chosen ones, with the ends of its interval; NaN where there is none."""
        weight_N = np.ones(len(of_pair_N)) if chosen_N is None else chosen_N.astype(float)
        if self._counts_RP is None or not weight_N.any():
            return (np.nan,) * 3
        sums = np.bincount(self.pairs.group_N, of_pair_N * weight_N, self.pairs.n_groups)
        numbers = np.bincount(self.pairs.group_N, weight_N, self.pairs.n_groups)
        with np.errstate(invalid="ignore"):
            resampled = (self._counts_RP @ sums) / (self._counts_RP @ numbers)
        low, high = np.nanquantile(resampled, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        return float(sums.sum() / numbers.sum()), float(low), float(high)


# ---------------------------------------------------------------------------------------------------------------------
# Beside likelihood
# ---------------------------------------------------------------------------------------------------------------------


class BesideLikelihood:
    """
    What scores add to a rollout's likelihood.

    Args:
        likelihood_PG (`np.ndarray`): Mean log-probability of each rollout.
        pairs (`Pairs`): What is ranked.
        seed (`int`, *optional*, defaults to `0`): Of the folds.
    """

    def __init__(self, likelihood_PG: np.ndarray, pairs: Pairs, seed: int = 0):
        self.pairs = pairs
        self.likelihood_N2 = pairs.values(likelihood_PG)
        self.fold_N = (np.random.default_rng(seed).permutation(pairs.n_groups) % N_FOLDS)[pairs.group_N]
        distance_N = np.abs(self.likelihood_N2[:, 0] - self.likelihood_N2[:, 1])
        self.matched_N = distance_N <= np.quantile(distance_N, MATCHED_SHARE) if len(distance_N) else distance_N > 0
        self.alone_N = self.rank_out_of_fold([])

    def rank_out_of_fold(
        self, scores: Sequence[np.ndarray], strength: float = 1.0, known_N: np.ndarray | None = None
    ) -> np.ndarray:
        """
        How a model with likelihood and `scores` ranks each pair, fitted on other groups; see [`ranked`].

        Args:
            scores (`Sequence[np.ndarray]`): Scores `(P, G)` beside likelihood.
            strength (`float`, *optional*, defaults to `1.0`): Inverse of the penalty (scikit-learn's C).
            known_N (`np.ndarray`, bool, *optional*): Pairs to fit on. Default: all.
        """
        known_N = np.ones(len(self.fold_N), dtype=bool) if known_N is None else known_N
        values = [self.likelihood_N2, *(self.pairs.values(score_PG) for score_PG in scores)]
        ranked_N = np.full(len(self.fold_N), 0.5)
        for fold in np.unique(self.fold_N):
            held_N = self.fold_N == fold
            train_N = ~held_N & known_N
            if train_N.sum() < 2:
                continue
            columns = [_transform(values_N2, train_N, spline=place == 0) for place, values_N2 in enumerate(values)]
            difference_NX = np.concatenate([column[:, 0] - column[:, 1] for column in columns], 1)
            ranked_N[held_N] = ranked(self._fit(difference_NX, train_N, strength)[held_N, None] * np.array([[1, 0]]))
        return ranked_N

    def _fit(self, difference_NX: np.ndarray, train_N: np.ndarray, strength: float) -> np.ndarray:
        """Predicted difference of each pair: logistic regression without intercept, on both signs of the training
        pairs."""
        scaled_NX = difference_NX / np.maximum(difference_NX[train_N].std(0), 1e-12)
        sign_N = np.where(np.arange(train_N.sum()) % 2, 1.0, -1.0)
        model = LogisticRegression(C=strength, fit_intercept=False, max_iter=500)
        return scaled_NX @ model.fit(scaled_NX[train_N] * sign_N[:, None], sign_N > 0).coef_[0]


def _transform(values_N2: np.ndarray, train_N: np.ndarray, spline: bool) -> np.ndarray:
    """
    Ranks from 0 to 1 among the rollouts of the training pairs, `(pairs, 2, 1)`, a missing score in the middle; of
    likelihood the values of a cubic spline over them.
    """
    train = np.unique(values_N2[train_N])
    train = train[~np.isnan(train)].reshape(-1, 1)
    if len(train) < 2:
        return np.zeros((*values_N2.shape, 1))
    ranks = QuantileTransformer(n_quantiles=min(1000, len(train))).fit(train)
    flat = np.nan_to_num(ranks.transform(values_N2.reshape(-1, 1)), nan=0.5)
    if spline:
        knots = SplineTransformer(n_knots=N_KNOTS, include_bias=False, extrapolation="constant")
        fitted = knots.fit(np.linspace(0, 1, 101).reshape(-1, 1))
        flat = np.concatenate([flat, StandardScaler(with_std=False).fit_transform(fitted.transform(flat))], 1)
    return flat.reshape(*values_N2.shape, -1)


def table_row(score_PG: np.ndarray, pairs: Pairs, beside: BesideLikelihood, bootstrap: Bootstrap) -> dict[str, float]:
    """
    All figures of one score: `auroc`, `gain` over likelihood, `combined` (AUROC of likelihood and the score together)
    and `matched`, each with `_low` and `_high`. Groups in which no rollout has the score are left out.
    """
    ranked_N = ranked(pairs.values(score_PG))
    known_N = np.isfinite(score_PG[pairs.groups]).any(1)[pairs.group_N]
    alone_N = beside.alone_N if known_N.all() else beside.rank_out_of_fold([], known_N=known_N)
    combined_N = beside.rank_out_of_fold([score_PG], known_N=known_N)
    figures = {
        "auroc": bootstrap.mean(ranked_N, known_N),
        "gain": bootstrap.mean(combined_N - alone_N, known_N),
        "combined": bootstrap.mean(combined_N, known_N),
        "matched": bootstrap.mean(ranked_N, beside.matched_N & known_N),
    }
    return {
        f"{name}{end}": value
        for name, values in figures.items()
        for end, value in zip(("", "_low", "_high"), values, strict=True)
    }
