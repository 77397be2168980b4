"""Which rewards say whether a rollout is correct. The contrastive loss is about correct against wrong: all else hangs
on this."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import NamedTuple

import torch
from accelerate.logging import get_logger


logger = get_logger(__name__)

# Reward functions that tell whether the answer is right: of `reward_funcs`, and TRL's.
ACCURACY_REWARDS = (
    "verifiable_reward",
    "math_accuracy_reward",
    "multiple_choice_reward",
    "accuracy_reward",
    "reasoning_accuracy_reward",
)


class SuccessRule(NamedTuple):
    """
    A rollout is correct if the weighted sum of the rewards `names` is greater than a threshold.

    `choice` tells how they were chosen: `"named"` by the user, `"only"` since there is no other, `"accuracy"` as known
    to tell whether the answer is right, or `"all"` for want of anything better.
    """

    names: list[str]
    choice: str


def find_success_rule(
    names: Sequence[str],
    weights: Sequence[float],
    wanted: list[str] | None,
    step_reward: str | None,
    argument: str = "contrastive_success_rewards",
) -> SuccessRule:
    """
    Args:
        names (`list[str]`): the reward functions, without CLIPO's own column. Those that share a name, as two lambdas
            do, decide together or not at all.
        weights (`list[float]`): theirs.
        wanted (`list[str]`, *optional*): the value of `argument`.
        step_reward (`str`, *optional*): `contrastive_step_reward`, which is no judge of answers unless there is no
            other.
        argument (`str`, *optional*, defaults to `"contrastive_success_rewards"`): what it is called, for errors.

    Raises:
        `ValueError`: names that are not there, or weights that decide nothing.
    """
    weighing = {name for name, weight in zip(names, weights, strict=True) if weight}
    rule = SuccessRule(wanted, "named") if wanted is not None else _by_default(names, weights, step_reward)
    if isinstance(wanted, str) or not rule.names or set(rule.names) - set(names):
        near = [name for word in set(rule.names) - set(names) for name in get_close_matches(str(word), names, n=1)]
        meant = f" Did you mean {', '.join(map(repr, near))}?" if near and not isinstance(wanted, str) else ""
        raise ValueError(
            f"`{argument}` is {wanted!r}, but must be a list of names of reward functions. Choose from "
            f"{list(names)}.{meant}"
        )
    if not weighing.intersection(rule.names):
        raise ValueError(
            f"All of the rewards that decide success weigh 0: `{argument}` is {rule.names!r}, and of {list(names)} the "
            f"`reward_weights` are {list(weights)}. Give one of them a weight, or name another."
        )
    return rule


def _by_default(names: Sequence[str], weights: Sequence[float], step_reward: str | None) -> SuccessRule:
    judges = [name for name in names if name != step_reward] or list(names)
    positive = {name for name, weight in zip(names, weights, strict=True) if weight > 0}
    accuracy = [name for name in judges if name in ACCURACY_REWARDS and name in positive]
    if len(judges) == 1 or accuracy == judges:
        return SuccessRule(judges, "only")
    return SuccessRule(accuracy, "accuracy") if accuracy else SuccessRule(judges, "all")


def check_step_reward(name: str | None, names: Iterable[str | None]) -> None:
    """Raise a `ValueError` if `contrastive_step_reward` is a `name` that none of the reward functions has, or
    several."""
    names = list(names)
    if name is not None and name not in names:
        raise ValueError(
            f"`contrastive_step_reward` is {name!r}, but must be the name of a reward function. Choose from {list(names)}."
        )
    if name is not None and names.count(name) > 1:
        raise ValueError(
            f"`contrastive_step_reward` is {name!r}, the name of {names.count(name)} reward functions. Give each a `__name__` of "
            "its own."
        )


def label_successes(
    rewards_NF: torch.Tensor, weights_F: torch.Tensor, columns: list[int], threshold: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Args:
        rewards_NF (`torch.Tensor` of shape `(N, F)`): of all F reward functions, NaN where one gave nothing.
        weights_F (`torch.Tensor` of shape `(F,)`): their weights.
        columns (`list[int]`): those that decide.
        threshold (`float`): a rollout is correct if their weighted sum is greater.

    Returns:
        `tuple` of two bool tensors of shape `(N,)`: correct rollouts, and those to which a deciding function gave
        anything.
    """
    rewards_NF = rewards_NF[:, columns]
    weights_F = weights_F.to(rewards_NF.device)[columns]
    return (rewards_NF * weights_F).nansum(1) > threshold, ~rewards_NF.isnan().all(1)


def warn_of(rule: SuccessRule, threshold: float) -> None:
    """Say aloud which rewards decide, where there was a choice that the user did not make."""
    if rule.choice == "accuracy":
        logger.warning(
            f"A rollout counts as correct if {' + '.join(rule.names)} > {threshold:g}: `contrastive_success_rewards` is not set, "
            "and that is known to tell whether the answer is right."
        )
    elif rule.choice == "all":
        share = len(set(rule.names)) < len(rule.names)
        logger.warning(
            f"A rollout counts as correct if the weighted sum of ALL rewards, {' + '.join(rule.names)}, is greater than "
            f"{threshold:g}: a reward for its format alone can make a wrong answer 'correct', and that is then what is learned "
            "from. Name the rewards that tell whether the answer is right, for example "
            f"`contrastive_success_rewards=[{rule.names[0]!r}]`."
            + (" Some share a name: give each function a `__name__` of its own first." if share else "")
        )
