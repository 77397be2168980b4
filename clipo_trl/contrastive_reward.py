"""Contrastive loss per rollout in, contrastive reward per rollout out (CLIPO, arXiv 2603.10101, section 3)."""

import torch


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

    Only correct rollouts (c_i = 1) are docked for their loss. lambda stands before the floor, so the floor does not move
    with it. A readout (see [`similarity_readout`]) is paid as a loss of the other sign; its reward is cut as far above b as
    the floor is below 0, where the reward for a loss never gets. So a correct rollout stays above a wrong one if its
    verifiable reward is higher by more than -floor.

    Args:
        loss_PG (`torch.Tensor` of shape `(P, G)`):
            Loss L_i >= 0 of G rollouts of each of P prompts, 0 where the rollout is no anchor; or minus a readout.
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
    if not weight >= 0:
        raise ValueError(f"`weight` is {weight}, but must be 0 or greater.")
    if not floor <= 0:
        raise ValueError(f"`floor` is {floor}, but must be at most 0.")
    if loss_PG.shape != correct_PG.shape:
        raise ValueError(
            f"`loss_PG` has shape {tuple(loss_PG.shape)} and `correct_PG` {tuple(correct_PG.shape)}. Expected the same."
        )
    return (offset - weight * loss_PG.detach() * correct_PG).clamp(min=floor, max=offset - floor)
