"""What is logged about one generation batch, under `contrastive/`. The docs have a glossary."""

import torch
import torch.nn.functional as F


def rollout_metrics(
    loss_PG: torch.Tensor,
    is_anchor_PG: torch.Tensor,
    reward_PG: torch.Tensor,
    correct_PG: torch.Tensor,
    valid_PG: torch.Tensor,
    floor: float,
) -> dict[str, float]:
    """
    Shares, and loss and reward of the correct rollouts that are anchors (NaN where there are none).

    Args:
        loss_PG, is_anchor_PG, reward_PG (`torch.Tensor` of shape `(P, G)`): of all processes.
        correct_PG, valid_PG (`torch.Tensor` of shape `(P, G)`, bool): success label; False where a rollout was left out.
        floor (`float`): the reward's floor.
    """
    metrics = {
        "head_loss": (loss_PG.sum() / is_anchor_PG.sum()).item(),  # 0 / 0 = NaN: TRL leaves NaN out of its averages
        "correct_rollouts": correct_PG.float().mean().item(),
        "anchors": is_anchor_PG.float().mean().item(),
        "trivial_groups": (~is_anchor_PG.any(dim=1)).float().mean().item(),
        "left_out_rollouts": (~valid_PG).float().mean().item(),
        "floor_rewards": float("nan"),
    }
    docked_PG = is_anchor_PG & correct_PG
    if docked_PG.any():
        metrics["floor_rewards"] = (reward_PG[docked_PG] <= floor).float().mean().item()
    for name, values in (("loss", loss_PG[docked_PG]), ("reward", reward_PG[docked_PG])):
        for statistic in ("mean", "min", "max"):
            value = getattr(values, statistic)().item() if len(values) else float("nan")
            metrics[f"{name}/{statistic}"] = value
    return metrics


def pair_cosines(vectors_PGX: torch.Tensor, correct_PG: torch.Tensor, valid_PG: torch.Tensor) -> torch.Tensor:
    """
    Sum and number of the cosines of pairs inside groups: a tensor `[[sum, number], [sum, number]]` of the
    correct-correct pairs and the correct-wrong pairs. Additive over processes.

    Args:
        vectors_PGX (`torch.Tensor` of shape `(P, G, X)`): hidden states or embeddings.
        correct_PG, valid_PG (`torch.Tensor` of shape `(P, G)`, bool): success label; False where there is no vector.
    """
    unit_PGX = F.normalize(vectors_PGX.detach().float().masked_fill(~valid_PG.unsqueeze(-1), 0.0), dim=-1)
    right_PG, wrong_PG = valid_PG & correct_PG, valid_PG & ~correct_PG
    # The cosines of all pairs of two sets add up to the product of the sets' sums: no (P, G, G) is needed.
    right_PX = (unit_PGX * right_PG.unsqueeze(-1)).sum(1)
    wrong_PX = (unit_PGX * wrong_PG.unsqueeze(-1)).sum(1)
    n_right_P, n_wrong_P = right_PG.sum(1).float(), wrong_PG.sum(1).float()
    return torch.stack(
        [
            torch.stack([right_PX.pow(2).sum() - n_right_P.sum(), (n_right_P * (n_right_P - 1)).sum()]),
            torch.stack([(right_PX * wrong_PX).sum(), (n_right_P * n_wrong_P).sum()]),
        ]
    )


def in_groups(rows_BX: torch.Tensor, group_size: int, first_row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Lay the rows of one process, contiguous in the generation batch, out in groups. Groups at the edges, shared with
    other processes, are filled with zeros.

    Args:
        rows_BX (`torch.Tensor` of shape `(B, X)`): the rows of this process.
        group_size (`int`): G.
        first_row (`int`): place of the first of these rows in the whole generation batch.

    Returns:
        `tuple`: the rows `(P', G, X)`, and a bool mask `(P', G)` that is True where a row of this process is.
    """
    before = first_row % group_size
    after = -(before + len(rows_BX)) % group_size
    present = F.pad(torch.ones(len(rows_BX), dtype=torch.bool, device=rows_BX.device), (before, after))
    padded = F.pad(rows_BX, (0, 0, before, after))
    return padded.view(-1, group_size, rows_BX.size(1)), present.view(-1, group_size)
