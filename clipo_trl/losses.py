"""Contrastive loss per rollout (CLIPO, arXiv 2603.10101, section 3): embeddings, labels and groups in, losses out.

Pure functions of tensors. Everything is a difference of log-sum-exps; no epsilon stands inside a logarithm (the
published implementation adds 1e-8 there, which acts as a phantom negative and inflates the loss of far-apart
embeddings).

Notation:
    P: prompts of the generation batch (groups), G: rollouts of a prompt, N = P * G, D: embedding size
    s_ia = sim(e_i, e_a) / tau: logit of anchor i and rollout a
    P(i): positives of anchor i, A(i): all others of anchor i; i itself is in neither
"""

import torch
from torch.utils.checkpoint import checkpoint

from .config import ANCHORS, LEVELS, LOSS_TYPES, SIMILARITIES, check_choice
from .precision import full_product


# Rows of the (rows x N) logits that are held at once at the levels that look at the whole batch.
_ROWS_PER_BLOCK = 256
# Keeps the square root's gradient finite where two embeddings coincide.
_L2_EPSILON = 1e-8


def contrastive_loss(
    embeddings_PGD: torch.Tensor,
    correct_PG: torch.Tensor,
    *,
    valid_PG: torch.Tensor | None = None,
    loss_type: str = "infonce",
    similarity: str = "cosine",
    temperature: float = 0.05,
    level: str = "group",
    anchors: str = "correct",
    num_positives: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Contrastive loss of every rollout. The head's loss is `loss_PG.sum() / is_anchor_PG.sum()`.

    | `loss_type` | loss of anchor i |
    |---|---|
    | `"infonce"` | -log(exp s_ip / sum_{a in A(i)} exp s_ia), p one positive drawn uniformly at each call |
    | `"supcon_out"` | the mean of the above over p in P(i) |
    | `"supcon_in"` | -log(mean_{p in P(i)} exp s_ip / sum_{a in A(i)} exp s_ia) |
    | `"soft_nn"` | -log(sum_{p in P(i)} exp s_ip / sum_{a in A(i)} exp s_ia) |

    With all positives in one point `"infonce"` and the two `"supcon"` still cost log |P(i)|, since the denominator
    holds the other positives. `"soft_nn"` does not.

    Time and memory grow with N * G at level `"group"`. The other two levels take time N * N and hold a block of rows
    of the logits at once, in the backward pass too.

    Args:
        embeddings_PGD (`torch.Tensor` of shape `(P, G, D)`):
            Unit embeddings, one group a row. Gradients flow into them.
        correct_PG (`torch.Tensor` of shape `(P, G)`, bool):
            True where the rollout succeeded.
        valid_PG (`torch.Tensor` of shape `(P, G)`, bool, *optional*):
            False where a rollout is neither anchor nor positive nor negative; its embedding may be anything. Default:
            all True.
        loss_type (`str`, *optional*, defaults to `"infonce"`):
            See the table.
        similarity (`str`, *optional*, defaults to `"cosine"`):
            `"cosine"`, `"l2"` = 1 - sqrt(2 - 2 cos) or `"negative_cosine"` = -cos.
        temperature (`float`, *optional*, defaults to `0.05`):
            tau > 0.
        level (`str`, *optional*, defaults to `"group"`):
            `"group"`: positives share group and label, A(i) is the group. `"cross"`: positives share group and label,
            A(i) is the batch. `"batch"`: positives share the label, A(i) is the batch.
        anchors (`str`, *optional*, defaults to `"correct"`):
            `"correct"`, `"incorrect"` or `"all"` rollouts have a loss.
        num_positives (`int`, *optional*, defaults to `1`):
            Positives that InfoNCE draws for each anchor, without replacement, each with the same chance; its loss is
            the mean over them. All are taken where there are no more, which is `"supcon_out"`.
        generator (`torch.Generator`, *optional*):
            CPU generator of InfoNCE's draw. `None` uses torch's global one.

    Returns:
        `tuple` of `loss_PG` (`(P, G)`, 0 where the rollout is no anchor) and `is_anchor_PG` (`(P, G)`, bool: valid, of
        the wanted label, with at least one positive and at least one rollout in A(i) that is not a positive).

    Raises:
        `ValueError`: an unknown name, a temperature or a `num_positives` that is not positive, or shapes that do not
        fit.
    """
    for name, value, choices in (
        ("loss_type", loss_type, LOSS_TYPES),
        ("similarity", similarity, SIMILARITIES),
        ("level", level, LEVELS),
        ("anchors", anchors, ANCHORS),
    ):
        check_choice(name, value, choices)
    if not temperature > 0:
        raise ValueError(f"`temperature` is {temperature}, but must be greater than 0.")
    if num_positives < 1:
        raise ValueError(f"`num_positives` is {num_positives}, but must be 1 or more.")
    valid_PG = torch.ones_like(correct_PG, dtype=torch.bool) if valid_PG is None else valid_PG.bool()
    if embeddings_PGD.dim() != 3 or not embeddings_PGD.shape[:2] == correct_PG.shape == valid_PG.shape:
        raise ValueError(
            f"`embeddings_PGD` has shape {tuple(embeddings_PGD.shape)}, `correct_PG` {tuple(correct_PG.shape)} and "
            f"`valid_PG` {tuple(valid_PG.shape)}. Expected (P, G, D), (P, G) and (P, G)."
        )

    # An invalid embedding may be NaN, and 0 * NaN is NaN: take it out of the product, not only out of the masks.
    embeddings_PGD = embeddings_PGD.masked_fill(~valid_PG.unsqueeze(-1), 0.0)
    correct_PG = correct_PG.bool()
    wanted_PG = valid_PG & {"correct": correct_PG, "incorrect": ~correct_PG, "all": valid_PG}[anchors]
    # One number u in [0, 1) per rollout chooses its positives, so the draw does not depend on how rows are blocked. It
    # travels as the integer u * 2**53: not every device has float64.
    draw_PG = torch.rand(correct_PG.shape, dtype=torch.float64, device="cpu", generator=generator)
    draw_PG = (draw_PG * 2**53).long().to(correct_PG.device)
    rollouts = (embeddings_PGD, correct_PG, valid_PG, wanted_PG, draw_PG)
    if level == "group":
        return _loss_in_groups(*rollouts, loss_type, num_positives, similarity, temperature)
    options = (loss_type, num_positives, similarity, temperature)
    return _loss_in_batch(*rollouts, *options, positives_share_group=level == "cross")


def log_positives(correct_PG: torch.Tensor, is_anchor_PG: torch.Tensor, valid_PG: torch.Tensor, level: str = "group"):
    r"""
    log |P(i)| of every anchor: what InfoNCE and SupCon cost it if its positives are all in one point with it and the
    rest is far away. For the two SupCon it is the least that they can cost; `"supcon_in"` less this is `"soft_nn"`.

    Args:
        correct_PG, is_anchor_PG, valid_PG (`torch.Tensor` of shape `(P, G)`, bool):
            Success labels, and as [`contrastive_loss`] has them.
        level (`str`, *optional*, defaults to `"group"`):
            As in [`contrastive_loss`].

    Returns:
        `torch.Tensor` of shape `(P, G)`: 0 where the rollout is no anchor.
    """
    check_choice("level", level, LEVELS)
    n_PG = torch.zeros(correct_PG.shape, device=correct_PG.device)
    for label_PG in (valid_PG & correct_PG, valid_PG & ~correct_PG):
        count = label_PG.sum() if level == "batch" else label_PG.sum(1, keepdim=True)
        n_PG = torch.where(label_PG, count - 1.0, n_PG)  # the anchor itself is no positive
    return n_PG.masked_fill(~is_anchor_PG, 1.0).log()


def _loss_in_groups(embeddings_PGD, correct_PG, valid_PG, wanted_PG, draw_PG, *options):
    """Positives and others from the anchor's group."""
    itself_GG = torch.eye(correct_PG.size(1), dtype=torch.bool, device=correct_PG.device)
    other_PGG = valid_PG.unsqueeze(1) & ~itself_GG
    positive_PGG = other_PGG & (correct_PG.unsqueeze(2) == correct_PG.unsqueeze(1))
    return _loss_of_rows(embeddings_PGD, embeddings_PGD, positive_PGG, other_PGG, wanted_PG, draw_PG, *options)


def _loss_in_batch(
    embeddings_PGD, correct_PG, valid_PG, wanted_PG, draw_PG, *options, positives_share_group: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Others from the whole batch, a block of anchors at a time; positives from it too, or from the anchor's group."""
    embeddings_ND, correct_N, valid_N, wanted_N, draw_N = (
        tensor.flatten(0, 1) for tensor in (embeddings_PGD, correct_PG, valid_PG, wanted_PG, draw_PG)
    )
    row_N = torch.arange(correct_N.numel(), device=correct_N.device)
    group_N = row_N // correct_PG.size(1)

    def loss_of_block(row_R: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        other_RN = valid_N & (row_R.unsqueeze(1) != row_N)
        positive_RN = other_RN & (correct_N[row_R].unsqueeze(1) == correct_N)
        if positives_share_group:
            positive_RN &= group_N[row_R].unsqueeze(1) == group_N
        rows = (embeddings_ND[row_R], embeddings_ND, positive_RN, other_RN, wanted_N[row_R], draw_N[row_R])
        return _loss_of_rows(*rows, *options)

    # Checkpointed: the backward pass makes a block's masks and logits again instead of keeping those of all blocks.
    blocks = [
        checkpoint(loss_of_block, row_R, use_reentrant=False, preserve_rng_state=False)
        for row_R in row_N.split(_ROWS_PER_BLOCK)
    ]
    loss_N, is_anchor_N = (torch.cat(parts) for parts in zip(*blocks, strict=True))
    return loss_N.view_as(correct_PG), is_anchor_N.view_as(correct_PG)


def _loss_of_rows(
    anchors_RD, others_CD, positive_RC, other_RC, wanted_R, draw_R, loss_type, num_positives, similarity, temperature
):
    """
    Loss of R anchors, each against C columns chosen by masks; all tensors may have a common leading axis.

    Returns the loss (`(..., R)`, 0 where the row is no anchor) and the rows that are anchors (`(..., R)`, bool).
    """
    has_positive_R = positive_RC.any(-1)
    has_negative_R = (other_RC & ~positive_RC).any(-1)
    is_anchor_R = wanted_R & has_positive_R & has_negative_R

    # A row that is no anchor may have empty sets, whose log-sum-exp has NaN gradients: let it see all columns instead,
    # and drop its loss at the end.
    positive_RC = positive_RC | ~is_anchor_R.unsqueeze(-1)
    other_RC = other_RC | ~is_anchor_R.unsqueeze(-1)

    logits_RC = _similarity(full_product(anchors_RD, others_CD), similarity) / temperature
    log_all_R = logits_RC.masked_fill(~other_RC, -torch.inf).logsumexp(-1)
    n_positives_R = positive_RC.sum(-1)
    if loss_type == "infonce":
        is_chosen_RC = _draw(positive_RC, n_positives_R, draw_R, num_positives)
        n_chosen_R = n_positives_R.clamp(max=num_positives)
        log_positive_R = logits_RC.masked_fill(~is_chosen_RC, 0.0).sum(-1) / n_chosen_R
    elif loss_type == "supcon_out":
        log_positive_R = logits_RC.masked_fill(~positive_RC, 0.0).sum(-1) / n_positives_R
    else:
        log_positive_R = logits_RC.masked_fill(~positive_RC, -torch.inf).logsumexp(-1)
        if loss_type == "supcon_in":
            log_positive_R = log_positive_R - n_positives_R.to(log_positive_R.dtype).log()
    return (log_all_R - log_positive_R).masked_fill(~is_anchor_R, 0.0), is_anchor_R


def _draw(positive_RC: torch.Tensor, n_R: torch.Tensor, draw_R: torch.Tensor, k: int) -> torch.Tensor:
    """
    A mask of k of each row's n positives, or of all if there are no more: from a drawn one on, in even strides, so
    that each is chosen with the same chance k / n and one number decides (systematic sampling).
    """
    first_R, n_R = _share_of(n_R, draw_R).unsqueeze(-1), n_R.unsqueeze(-1)
    place_RC = (positive_RC.cumsum(-1) - 1 - first_R) % n_R  # of a positive, counted from the drawn one
    return positive_RC & (place_RC * min(k, positive_RC.size(-1)) % n_R < k)


def _share_of(n_R: torch.Tensor, draw_R: torch.Tensor) -> torch.Tensor:
    """The integer part of u * n, exactly, for u = `draw_R` / 2**53. In two halves, as the whole product overflows
    int64."""
    high_R, low_R = draw_R >> 26, draw_R & (2**26 - 1)
    return (high_R * n_R + (low_R * n_R >> 26)) >> 27


def _similarity(cosine: torch.Tensor, similarity: str) -> torch.Tensor:
    if similarity == "cosine":
        return cosine
    if similarity == "negative_cosine":
        return -cosine
    return 1.0 - (2.0 - 2.0 * cosine).clamp(min=_L2_EPSILON).sqrt()
