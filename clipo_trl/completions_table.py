"""What CLIPO adds to TRL's table of completions: columns that say how a rollout stands in its group."""

from collections.abc import Sequence

import torch

from .scored_batch import ScoredBatch


GROUP, LOSS, AGREEMENT = "group", "contrastive_loss", "agreement"
SUSPICIOUS = "suspicious"  # put in by `SuspiciousRolloutsCallback`
_ROUNDING = 1e-5  # agreements of rollouts that are as close as each other differ by less


def table_columns(n_rows: int, first_row: int, group_size: int, batch: ScoredBatch | None = None) -> dict[str, list]:
    """
    Columns for the `n_rows` rollouts of this process: the number of the rollout's group in its generation batch, or
    test set; its contrastive loss; and its agreement, the mean cosine of its embedding to the group's other correct
    ones, less the mean of that over the group. `None` where there is none, as in evaluation, which has no `batch`.
    """
    columns: dict[str, list] = {GROUP: [row // group_size for row in range(first_row, first_row + n_rows)]}
    if batch is None:
        return columns | {LOSS: [None] * n_rows, AGREEMENT: [None] * n_rows}
    for name, values_PG, has_PG in (
        (LOSS, batch.loss_PG, batch.is_anchor_PG),
        (AGREEMENT, batch.agreement_PG, batch.is_scored_PG),
    ):
        values = values_PG.where(has_PG, torch.nan).flatten()[batch.local].tolist()
        columns[name] = [None if value != value else value for value in values]
    return columns


def farthest_rows(agreement: Sequence[float | None], num_rollouts: int) -> list[int]:
    """
    Rows of the correct rollouts that are farthest from their group, farthest first: the `num_rollouts` lowest values
    of `agreement` that are below 0 by more than rounding. `None` and NaN, where a rollout has none, are passed over.
    """
    below = [row for row, value in enumerate(agreement) if value is not None and value < -_ROUNDING]
    return sorted(below, key=agreement.__getitem__)[:num_rollouts]  # type: ignore[arg-type]  # none of them is None
