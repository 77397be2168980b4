r"""The numbers of an evaluation: scores of questions, their uncertainty, and the difference between two models.

Axes: Q questions, K samples a question, R resamples. Scores are shares between 0 and 1.

| score | of one question |
|---|---|
| mean@k | share of its k samples that are right (the paper's "mean of 16"); the same number as pass@1 |
| pass@k | probability that at least one of k samples is right: 1 - C(K-c, k) / C(K, k) with c right of K |
| maj@k | whether the answer that most of the k samples give is right |

pass@k: Chen et al. 2021, https://huggingface.co/papers/2107.03374. maj@k: Wang et al. 2022,
https://huggingface.co/papers/2203.11171.

Questions are what is uncertain: a test set is a sample of the questions that could have been asked (Miller 2024,
https://huggingface.co/papers/2411.00640). So intervals come from resampling questions, each with all its samples, and
with all its rows where a set asks it more than once: such rows are no further evidence. Means are over rows, as the
paper counts them.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from typing import NamedTuple

import numpy as np

from reward_funcs.answers import equal
from reward_funcs.multiple_choice import choice_letter


RESAMPLES = 10_000
CONFIDENCE = 0.95


# ---------------------------------------------------------------------- scores of questions


def mean_at_k(correct_QK: np.ndarray) -> np.ndarray:
    """Share of right samples, `(Q,)`."""
    return np.asarray(correct_QK, dtype=float).mean(1)


def pass_at_k(correct_QK: np.ndarray, k: int) -> np.ndarray:
    """Unbiased estimate of the probability that one of `k` samples is right, `(Q,)`. Needs `1 <= k <= K`."""
    n_samples = np.shape(correct_QK)[1]
    if not 1 <= k <= n_samples:
        raise ValueError(f"`k` is {k}, but pass@k needs 1 <= k <= {n_samples}, the number of samples a question.")
    of_count = np.array([1 - comb(n_samples - c, k) / comb(n_samples, k) for c in range(n_samples + 1)])
    return of_count[np.asarray(correct_QK, dtype=int).sum(1)]


def majority_answers(classes_K: Sequence[int | None]) -> list[int]:
    """Classes with the most votes, in order of appearance: several if they tie, none if no sample has an answer."""
    votes = Counter(label for label in classes_K if label is not None)
    most = max(votes.values(), default=0)
    return [label for label, count in votes.items() if count == most]


def majority_at_k(classes_QK: Sequence[Sequence[int | None]], correct_QK: np.ndarray) -> np.ndarray:
    """
    Whether the majority's answer is right, `(Q,)`.

    A sample without an answer (class `None`) does not vote; without any vote the question is lost, and a set without
    any vote has no score of this kind (see [`~clipo_trl.cli.evaluation_tables.question_scores`]). A tie counts as the
    share of the tied answers that are right: what drawing one of them would give on average, without a draw.
    """
    scores = []
    for classes_K, correct_K in zip(classes_QK, correct_QK, strict=True):
        winners = majority_answers(classes_K)
        shares = [
            np.mean([right for label, right in zip(classes_K, correct_K, strict=True) if label == winner])
            for winner in winners
        ]
        scores.append(np.mean(shares) if winners else 0.0)
    return np.array(scores, dtype=float)


def answer_classes(answers_K: Sequence[str | None], options: Mapping[str, str]) -> list[int | None]:
    r"""
    Number the distinct answers of a question's samples: each joins the first class whose first member it equals.

    Two answers are equal if they name the same of the question's options, or if that can be told by spelling,
    structure and exact arithmetic (`0.5`, `\frac12`); what only computer algebra could tell (`(x+1)^2`, `x^2+2x+1`)
    counts as different.

    Args:
        answers_K (`Sequence[str | None]`): Contents of the last `\boxed{}`; `None` where a sample has none, and stays
            `None`.
        options (`Mapping[str, str]`): Options of a multiple choice question, letter -> text; else empty.
    """
    firsts: list[str] = []
    seen: dict[str, int] = {}
    for answer in answers_K:
        if answer is not None and answer not in seen:
            matches = (label for label, first in enumerate(firsts) if _same_answer(first, answer, options))
            seen[answer] = next(matches, len(firsts))
            if seen[answer] == len(firsts):
                firsts.append(answer)
    return [None if answer is None else seen[answer] for answer in answers_K]


def _same_answer(first: str, second: str, options: Mapping[str, str]) -> bool:
    if options and (letter := choice_letter(first, options)) is not None:
        return letter == choice_letter(second, options)
    return bool(equal(first, second) or equal(second, first))  # which is the gold makes a difference


# ---------------------------------------------------------------------- uncertainty


class Estimate(NamedTuple):
    """A mean over questions and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """Mean of B minus mean of A on the same questions, its 95 % bootstrap interval, and the p-value of no
    difference."""

    value: float
    low: float
    high: float
    p_value: float


def bootstrap_means(
    scores_Q: np.ndarray, rng: np.random.Generator, resamples: int = RESAMPLES, questions_Q: np.ndarray | None = None
) -> np.ndarray:
    """
    Means over rows of `resamples` draws of questions with replacement, `(R,)` (Efron 1979).

    Only how often each score occurs matters, and the counts of a draw are multinomial: no (R, Q) table is needed.
    `questions_Q`: which question each row asks; rows of one question are drawn together (a cluster bootstrap). `None`:
    each row asks its own.
    """
    totals = np.stack(_totals(scores_Q, questions_Q), axis=1)
    values, counts = np.unique(totals, axis=0, return_counts=True)
    n = counts.sum()
    draws = rng.multinomial(n, counts / n, size=resamples)
    return (draws @ values[:, 0]) / (draws @ values[:, 1])


def sign_flip_means(
    differences_Q: np.ndarray,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    questions_Q: np.ndarray | None = None,
) -> np.ndarray:
    """
    Means of the differences with random signs, `(R,)`: how they scatter if the two models' scores could be exchanged
    on each question. As in [`bootstrap_means`], equal sizes are drawn together (the number of plus signs is binomial),
    and rows of one question have one sign.
    """
    sums, _ = _totals(differences_Q, questions_Q)
    sizes, counts = np.unique(np.abs(sums), return_counts=True)
    plus = rng.binomial(counts, 0.5, size=(resamples, len(counts)))
    return (2 * plus - counts) @ sizes / len(differences_Q)


def _totals(scores_Q: np.ndarray, questions_Q: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Of each distinct question: the sum of its rows' scores, and how many they are."""
    scores_Q = np.asarray(scores_Q, dtype=float)
    if questions_Q is None:
        return scores_Q, np.ones_like(scores_Q)
    _, places = np.unique(questions_Q, return_inverse=True)
    return np.bincount(places, weights=scores_Q), np.bincount(places).astype(float)


def estimate(
    sets: Sequence[np.ndarray], seed: int = 0, questions: Sequence[np.ndarray | None] | None = None
) -> Estimate:
    """
    Mean over the sets of their mean scores (each set weighs the same, as in the paper's tables), with a percentile
    interval.

    Args:
        sets (`Sequence` of arrays `(Q,)`): Scores of the questions of each set; one set for a set's own score.
        seed (`int`, defaults to `0`): Of the resampling.
        questions (`Sequence` of arrays `(Q,)`, *optional*): Which question each row of each set asks. Default: each
            its own.
    """
    rng = np.random.default_rng(seed)
    both = zip(sets, questions or [None] * len(sets), strict=True)
    draws = np.mean([bootstrap_means(scores, rng, questions_Q=labels) for scores, labels in both], axis=0)
    return Estimate(float(np.mean([np.mean(scores) for scores in sets])), *_interval(draws))


def paired_difference(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], seed: int = 0, questions: Sequence[np.ndarray | None] | None = None
) -> Difference:
    """
    How much better B is than A on the same questions: a paired permutation test, two-sided.

    The statistic is the mean over sets of the mean difference; its distribution without a difference comes from
    flipping the signs of the questions' differences (Noreen 1989; Dror et al. 2018,
    https://aclanthology.org/P18-1128). With one sample a question that is McNemar's exact test, up to the number of
    resamples; unlike it, the test takes means of k samples too. p = (1 + as extreme) / (1 + R), which is never 0
    (Phipson and Smyth 2010).

    Args:
        pairs (`Sequence` of `(scores_A, scores_B)`, arrays `(Q,)`): One pair a set, questions in the same order.
        seed (`int`, defaults to `0`): Of the resampling.
        questions (`Sequence` of arrays `(Q,)`, *optional*): As in [`estimate`].
    """
    rng = np.random.default_rng(seed)
    labels = questions or [None] * len(pairs)
    differences = [np.asarray(b, dtype=float) - np.asarray(a, dtype=float) for a, b in pairs]
    observed = np.mean([np.mean(difference) for difference in differences])
    both = list(zip(differences, labels, strict=True))
    null = np.mean([sign_flip_means(difference, rng, questions_Q=asked) for difference, asked in both], axis=0)
    as_extreme = np.sum(np.abs(null) >= abs(observed) - 1e-12)
    draws = np.mean([bootstrap_means(difference, rng, questions_Q=asked) for difference, asked in both], axis=0)
    return Difference(float(observed), *_interval(draws), float((1 + as_extreme) / (1 + RESAMPLES)))


def _interval(draws_R: np.ndarray) -> tuple[float, float]:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws_R, [tail, 1 - tail])
    return float(low), float(high)
