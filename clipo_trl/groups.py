"""Groups of rollouts where a process holds a slice of the generation batch, whose edges may cut through groups."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator


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


def group_means(
    rows_BX: torch.Tensor, valid_B: torch.Tensor, group_size: int, accelerator: Accelerator
) -> torch.Tensor:
    """
    Mean over the group of each row, over all processes. Only the sums of the groups that processes share travel: two
    rows a process.

    Args:
        rows_BX (`torch.Tensor` of shape `(B, X)`): the rows of this process; invalid ones are zero.
        valid_B (`torch.Tensor` of shape `(B,)`, bool): rows that count.
        group_size (`int`): G.
        accelerator (`Accelerator`): knows the place of this process among W of them.

    Returns:
        `torch.Tensor` of shape `(B, X)`: zero where no row of a group is valid.
    """
    B, rank = len(rows_BX), accelerator.process_index
    counted_BX = torch.cat([rows_BX, valid_B.unsqueeze(1).to(rows_BX.dtype)], dim=1)
    totals = in_groups(counted_BX, group_size, rank * B)[0].sum(1)
    if B % group_size and accelerator.num_processes > 1:
        edges = torch.stack([totals[0], totals[-1] * (len(totals) > 1)])  # a group is sent once
        edges = accelerator.gather(edges).view(-1, 2, totals.size(1))
        first_group = rank * B // group_size
        for other, sums in enumerate(edges):
            if other == rank:
                continue
            for row, total in zip((other * B, other * B + B - 1), sums, strict=True):
                group = row // group_size - first_group
                if 0 <= group < len(totals):
                    totals[group] += total
    means = totals[:, :-1] / totals[:, -1:].clamp(min=1)
    before = rank * B % group_size
    return means.repeat_interleave(group_size, dim=0)[before : before + B]
