"""Contrastive loss per rollout in, contrastive reward per rollout out (CLIPO, arXiv 2603.10101, section 3)."""

import math

import torch

from .config import SCHEDULES, check_choice


def contrastive_reward(
    loss_PG: torch.Tensor,
    correct_PG: torch.Tensor,
    *,
    weight: float = 0.2,
    offset: float = 0.0,
    floor: float = -0.5,
) -> torch.Tensor:
    r"""
    Reward max(b - lambda * L_i * c_i, floor), to be added to the verifiable reward.

    Only correct rollouts (c_i = 1) are docked for their loss. lambda stands before the floor, so the floor does not
    move with it. A correct rollout stays above a wrong one, which gets b, if its verifiable reward is higher by more
    than b - floor.

    Args:
        loss_PG (`torch.Tensor` of shape `(P, G)`):
            Loss L_i of G rollouts of each of P prompts, 0 where the rollout is no anchor. With a baseline taken off it
            may be below 0.
        correct_PG (`torch.Tensor` of shape `(P, G)`, bool):
            Success label c_i.
        weight (`float`, *optional*, defaults to `0.2`):
            lambda >= 0.
        offset (`float`, *optional*, defaults to `0.0`):
            b.
        floor (`float`, *optional*, defaults to `-0.5`):
            Lowest reward, at most 0.

    Returns:
        `torch.Tensor` of shape `(P, G)`, detached.

    Raises:
        `ValueError`: a negative `weight`, a positive `floor`, or shapes that differ.
    """
    _check(loss_PG, correct_PG, weight, floor)
    return (offset - weight * loss_PG.detach() * correct_PG).clamp(min=floor)


def agreement_reward(
    score_PG: torch.Tensor,
    correct_PG: torch.Tensor,
    *,
    weight: float = 0.2,
    offset: float = 0.0,
    floor: float = -0.5,
) -> torch.Tensor:
    r"""
    Reward b + lambda * g_i * c_i, cut to b + floor and b - floor: what is paid for an agreement g_i in place of the
    loss.

    A correct rollout stays above a wrong one, which gets b, if its verifiable reward is higher by more than -floor.
    Beyond the paper.

    Args:
        score_PG (`torch.Tensor` of shape `(P, G)`):
            Agreement g_i or another score, scaled or not; 0 where there is none. See [`agreement_score`].
        correct_PG (`torch.Tensor` of shape `(P, G)`, bool):
            Success label c_i.
        weight, offset, floor (`float`):
            lambda, b and the largest cut, at most 0, as in [`contrastive_reward`].

    Returns:
        `torch.Tensor` of shape `(P, G)`, detached.

    Raises:
        `ValueError`: a negative `weight`, a positive `floor`, or shapes that differ.
    """
    _check(score_PG, correct_PG, weight, floor, "score_PG")
    return offset + (weight * score_PG.detach() * correct_PG).clamp(min=floor, max=-floor)


def scheduled_weight(weight: float, schedule: str = "constant", progress: float = 0.0) -> float:
    r"""
    lambda at a place in training: `weight` times 1, 1 - t or (1 + cos(pi t)) / 2. Beyond the paper.

    Args:
        weight (`float`):
            lambda at the start.
        schedule (`str`, *optional*, defaults to `"constant"`):
            `"constant"`, `"linear"` or `"cosine"`; the last two end at 0.
        progress (`float`, *optional*, defaults to `0.0`):
            t, the share of the policy's updates that are done, cut to 0 and 1.

    Raises:
        `ValueError`: an unknown schedule.
    """
    check_choice("schedule", schedule, SCHEDULES)
    t = min(max(progress, 0.0), 1.0)
    return weight * {"constant": 1.0, "linear": 1.0 - t, "cosine": (1.0 + math.cos(math.pi * t)) / 2.0}[schedule]


def _check(
    values_PG: torch.Tensor, correct_PG: torch.Tensor, weight: float, floor: float, name: str = "loss_PG"
) -> None:
    if not weight >= 0:
        raise ValueError(f"`weight` is {weight}, but must be 0 or greater.")
    if not floor <= 0:
        raise ValueError(f"`floor` is {floor}, but must be at most 0.")
    if values_PG.shape != correct_PG.shape:
        raise ValueError(
            f"`{name}` has shape {tuple(values_PG.shape)} and `correct_PG` {tuple(correct_PG.shape)}. Expected the same."
        )
