"""
Scores that need no embedding: what a policy thinks of its own text, under other prompts, and cut or changed.

All are higher where a rollout is meant to be sounder. Scores of one rollout are given as plain numbers, NaN where
there is nothing to score.
"""

import itertools
import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .passes import FrozenPolicy, TokenFigures
from .rollouts import Rollouts
from .tasks import Task


def likelihood_scores(figures: TokenFigures) -> dict[str, float]:
    """Mean and sum of the log-probabilities, the lowest, certainty in two ways, and the number of tokens."""
    return {
        "likelihood/mean": figures.log_prob_T.mean().item(),
        "likelihood/sum": figures.log_prob_T.sum().item(),
        "likelihood/lowest": figures.log_prob_T.min().item(),
        "certainty/minus_entropy": -figures.entropy_T.mean().item(),
        "certainty/self_certainty": figures.certainty_T.mean().item(),
        "length": float(len(figures.log_prob_T)),
    }


def own_prompt_scores(
    own_T: torch.Tensor, others_KT: torch.Tensor, tokens_of_steps: list[list[int]]
) -> dict[str, float]:
    """
    How much likelier a trace is after its own problem than after others: a habit that looks at no problem scores 0.

    Args:
        own_T (`torch.Tensor`): log-probabilities of its tokens after its own problem.
        others_KT (`torch.Tensor`): the same after K other problems; their mean is taken.
        tokens_of_steps (`list[list[int]]`): places of each step's tokens.
    """
    gain_T = own_T - others_KT.mean(0)
    steps = [gain_T[places].sum().item() for places in tokens_of_steps if places]
    return {
        "own_prompt/sum": gain_T.sum().item(),
        "own_prompt/mean_step": sum(steps) / len(steps) if steps else math.nan,
        "own_prompt/lowest_step": min(steps, default=math.nan),
    }


def prefix_scores(p_answer: Sequence[float]) -> dict[str, float]:
    """
    From the probability of the answer after 0, 1, ... all steps: what the trace gains it (GRPO-VPS, arXiv 2604.20659),
    in all and in its weakest step, and how little of it is there before the last step.
    """
    if len(p_answer) < 2:
        return dict.fromkeys(("prefix/gain", "prefix/lowest_gain", "cut/lost"), math.nan)
    gains = [after - before for before, after in zip(p_answer, p_answer[1:], strict=False)]
    return {
        "prefix/gain": p_answer[-1] - p_answer[0],
        "prefix/lowest_gain": min(gains),
        "cut/lost": 1 - sum(p_answer[:-1]) / (len(p_answer) - 1),
    }


def changed_scores(p_answer: Sequence[float], p_last: float) -> dict[str, float]:
    """
    How little of the answer is left when a number that the trace states is another one: the mean over its numbers,
    the most that one of them can do, and the last number with the trace cut after it.
    """
    lost = [1 - p for p in p_answer]
    return {
        "changed/mean": sum(lost) / len(lost) if lost else math.nan,
        "changed/least": min(lost, default=math.nan),
        "changed/last": 1 - p_last,
    }


def token_places(texts: Sequence[str], spans: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Which tokens, given by their texts, start in each span of the characters of all of them."""
    starts = list(itertools.accumulate(map(len, texts), initial=0))[:-1]
    return [[place for place, first in enumerate(starts) if start <= first < end] for start, end in spans]


# ---------------------------------------------------------------------------------------------------------------------
# All groups of a policy
# ---------------------------------------------------------------------------------------------------------------------


def read_all(
    policy: FrozenPolicy, rollouts: Rollouts, on_group: Callable[[], Any] = lambda: None
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """
    One pass over every rollout.

    Returns:
        Scores `(P, G)` of [`likelihood_scores`] by name, and pooled states `(P, G, H)` by layer and pooling.
    """
    scores: list[list[dict[str, float]]] = []
    states: dict[str, list[np.ndarray]] = {}
    for group, messages in enumerate(rollouts.prompts):
        texts = _token_ids(policy, rollouts, group)
        figures, pooled = policy.figures_and_states(policy.prompt(messages), texts)
        scores.append([likelihood_scores(of_text) for of_text in figures])
        for name, states_GH in pooled.items():
            states.setdefault(name, []).append(states_GH.numpy())
        on_group()
    return _arrays(scores), {name: np.stack(groups) for name, groups in states.items()}


def compare_prompts(
    policy: FrozenPolicy,
    rollouts: Rollouts,
    groups: Sequence[int],
    n_others: int,
    seed: int,
    on_group: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """Scores `(P, G)` of [`own_prompt_scores`] of the right rollouts of some groups, NaN elsewhere."""
    shuffled = random.Random(seed).sample(list(groups), len(groups))
    rows: dict[int, dict[int, dict[str, float]]] = {}
    for place, group in enumerate(shuffled):
        others = [shuffled[(place + shift) % len(groups)] for shift in range(1, n_others + 1)]
        right, ids_G = np.flatnonzero(rollouts.right_PG[group]).tolist(), _token_ids(policy, rollouts, group)
        texts = [ids_G[rollout] for rollout in right]
        log_probs = [policy.log_probs(policy.prompt(rollouts.prompts[prompt]), texts) for prompt in (group, *others)]
        rows[group] = {}
        for n, rollout in enumerate(right):
            steps = rollouts.task.steps_of(rollouts.completions_PG[group][rollout])
            places = token_places([policy.tokenizer.decode([token]) for token in texts[n]], steps)
            own_T, *others_KT = (of_prompt[n] for of_prompt in log_probs)
            rows[group][rollout] = own_prompt_scores(own_T, torch.stack(others_KT), places)
        on_group()
    return _scattered(rows, rollouts)


def cut_and_change(
    policy: FrozenPolicy,
    rollouts: Rollouts,
    groups: Sequence[int],
    seed: int,
    on_group: Callable[[], Any] = lambda: None,
) -> dict[str, np.ndarray]:
    """Scores `(P, G)` of [`prefix_scores`] and [`changed_scores`] of the right rollouts of some groups."""
    rows: dict[int, dict[int, dict[str, float]]] = {}
    for group in groups:
        rng = random.Random(f"{seed} {group}")
        right = np.flatnonzero(rollouts.right_PG[group]).tolist()
        variants = [_variants(rollouts.task, rollouts.completions_PG[group][rollout], rng) for rollout in right]
        texts, answers = [], []
        for rollout, (cut, changed, last) in zip(right, variants, strict=True):
            answer_ids = policy.ids_of(rollouts.task.answer_of(rollouts.completions_PG[group][rollout]))
            texts += [policy.ids_of(text) + answer_ids for text in (*cut, *changed, *last)]
            answers += [len(answer_ids)] * len((*cut, *changed, *last))
        log_probs = policy.log_probs(policy.prompt(rollouts.prompts[group]), texts, answers)
        p_answer = iter([log_prob_T.sum().exp().item() for log_prob_T in log_probs])
        rows[group] = {}
        for rollout, kinds in zip(right, variants, strict=True):
            of_cut, of_changed, of_last = ([next(p_answer) for _ in kind] for kind in kinds)
            rows[group][rollout] = prefix_scores(of_cut) | changed_scores(of_changed, *(of_last or [math.nan]))
        on_group()
    return _scattered(rows, rollouts)


def _variants(task: Task, completion: str, rng: random.Random) -> tuple[list[str], list[str], list[str]]:
    """Texts made of one completion, each up to the answer: cut after each step; each number changed; the last one."""
    cut = [task.cut(completion, n) for n in range(len(task.steps_of(completion)) + 1)]
    changed = [task.changed(completion, span, rng) for span in task.stated_of(completion)]
    last = task.changed_last(completion, rng)
    return cut, changed, [] if last is None else [last]


def _token_ids(policy: FrozenPolicy, rollouts: Rollouts, group: int) -> list[list[int]]:
    """Tokens of each rollout of a group."""
    if rollouts.token_ids_PG is not None:
        return rollouts.token_ids_PG[group]
    return [policy.ids_of(completion, ends=True) for completion in rollouts.completions_PG[group]]


def _arrays(rows: list[list[dict[str, float]]]) -> dict[str, np.ndarray]:
    return {name: np.array([[scores[name] for scores in row] for row in rows]) for name in rows[0][0]}


def _scattered(rows: dict[int, dict[int, dict[str, float]]], rollouts: Rollouts) -> dict[str, np.ndarray]:
    """Scores of some rollouts as arrays over all, NaN where there are none."""
    found: dict[str, np.ndarray] = {}
    for group, of_group in rows.items():
        for rollout, scores in of_group.items():
            for name, value in scores.items():
                if name not in found:
                    found[name] = np.full(rollouts.right_PG.shape, np.nan)
                found[name][group, rollout] = value
    return found
