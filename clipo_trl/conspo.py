"""ConSPO (arXiv 2605.12969): scores and labels of groups of rollouts in, weights in the policy gradient out.

Pure functions of tensors. Notation, as in the paper:
    s_i: score of rollout i, its mean log-probability a token; i right, j wrong, both of one group
    tau: temperature, m: margin, N+: right rollouts of the group
    J = (1/N+) sum_i tau log[ exp((s_i - m)/tau) / (exp((s_i - m)/tau) + sum_j exp(s_j/tau)) ], maximised (eq. 13)
"""

import math

import torch
import torch.nn.functional as F


def sequence_scores(logps_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """
    Score s_i = (1/|o_i|) sum_t log pi(o_t | q, o_<t) of each rollout.

    Args:
        logps_BT (`torch.Tensor` of shape `(B, T)`): log-probabilities, in nats.
        mask_BT (`torch.Tensor` of shape `(B, T)`): 1 at the tokens that the policy wrote, else 0.

    Returns:
        `torch.Tensor` of shape `(B,)`, at least float32: nats a token; 0 where the mask is empty.
    """
    logps_BT = logps_BT.to(torch.promote_types(logps_BT.dtype, torch.float32))
    return logps_BT.masked_fill(mask_BT == 0, 0.0).sum(1) / mask_BT.sum(1).clamp(min=1)


@torch.no_grad()
def conspo_weights(
    score_PG: torch.Tensor,
    correct_PG: torch.Tensor,
    *,
    valid_PG: torch.Tensor | None = None,
    temperature: float = 10.0,
    margin: float = 0.0,
    share_PG: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Weight w = dJ/ds of every rollout, and the objective J of every group (eq. 13 and Lemma 2 of arXiv 2605.12969).

    With P_i = exp((s_i - m)/tau) / Z_i and P_ij = exp(s_j/tau) / Z_i, a right rollout weighs (1 - P_i) / N+ and a
    wrong one -(1/N+) sum_i P_ij; over a group they sum to 0. As P_ij = (1 - P_i) softmax_j(s_j/tau), no pair is ever
    formed: time and memory grow with P * G. `-(weight_PG * score_PG).sum()` with the weights held constant has the
    gradient of -J.

    Args:
        score_PG (`torch.Tensor` of shape `(P, G)`):
            Scores of G rollouts of each of P prompts, in nats a token. No gradient flows into them.
        correct_PG (`torch.Tensor` of shape `(P, G)`, bool):
            True where the rollout is right.
        valid_PG (`torch.Tensor` of shape `(P, G)`, bool, *optional*):
            False where a rollout counts for nothing; its score may be anything. Default: all True.
        temperature (`float`, *optional*, defaults to `10.0`):
            tau > 0, in nats a token.
        margin (`float`, *optional*, defaults to `0.0`):
            m, in nats a token; see [`scheduled_margin`].
        share_PG (`torch.Tensor` of shape `(P, G)`, *optional*):
            Positive numbers: what each right rollout counts for in the mean over its group's right ones, in place of
            1/N+; they are divided by their sum. Ours, not the paper's. Default: all the same.

    Returns:
        `tuple` of `weight_PG` (`(P, G)`, 0 where the rollout is not valid or its group lacks right or wrong ones) and
        `objective_P` (`(P,)`, NaN where the group lacks one of the two).

    Raises:
        `ValueError`: a temperature that is not positive, a margin that is not finite, or shapes that do not fit.
    """
    valid_PG = torch.ones_like(correct_PG, dtype=torch.bool) if valid_PG is None else valid_PG.bool()
    share_PG = torch.ones_like(score_PG) if share_PG is None else share_PG
    _check(temperature, margin, score_PG=score_PG, correct_PG=correct_PG, valid_PG=valid_PG, share_PG=share_PG)
    right_PG, wrong_PG = valid_PG & correct_PG.bool(), valid_PG & ~correct_PG.bool()
    live_P1 = right_PG.any(1, keepdim=True) & wrong_PG.any(1, keepdim=True)
    right_PG, wrong_PG = right_PG & live_P1, wrong_PG & live_P1

    logit_PG = score_PG / temperature
    # Where a group is not live, log-sum-exp and softmax see zeros: nothing of them is used, and nothing of them is
    # NaN.
    wrong_logit_PG = logit_PG.masked_fill(~wrong_PG, -torch.inf).masked_fill(~live_P1, 0.0)
    lead_PG = (score_PG - margin) / temperature - wrong_logit_PG.logsumexp(1, keepdim=True)  # log P_i - log(1 - P_i)
    lead_PG = lead_PG.masked_fill(~right_PG, 0.0)
    share_PG = share_PG.masked_fill(~right_PG, 0.0)
    share_PG = share_PG / share_PG.sum(1, keepdim=True).masked_fill(~live_P1, 1.0)

    up_PG = share_PG * torch.sigmoid(-lead_PG)  # 1 - P_i
    down_PG = (wrong_logit_PG.softmax(1) * up_PG.sum(1, keepdim=True)).masked_fill(~wrong_PG, 0.0)
    objective_P = temperature * (share_PG * F.logsigmoid(lead_PG)).sum(1)
    return up_PG - down_PG, objective_P.masked_fill(~live_P1.squeeze(1), torch.nan)


def scheduled_margin(progress: float, *, target_margin: float = 0.01, margin_warmup_ratio: float = 0.3) -> float:
    """
    Margin m = (M/2) (1 - cos(pi rho)), rho = min(progress / alpha, 1): from 0 up to M along half a cosine, then M.

    Args:
        progress (`float`): share of the training that is done, from 0 to 1.
        target_margin (`float`, *optional*, defaults to `0.01`): M >= 0, in nats a token.
        margin_warmup_ratio (`float`, *optional*, defaults to `0.3`): alpha, from 0 (M from the start on) to 1.

    Raises:
        `ValueError`: a number that is out of its range.
    """
    for name, value in (("progress", progress), ("margin_warmup_ratio", margin_warmup_ratio)):
        if not 0 <= value <= 1:
            raise ValueError(f"`{name}` is {value}, but must be from 0 to 1.")
    if not 0 <= target_margin < math.inf:
        raise ValueError(
            f"`target_margin` is {target_margin}, but must be 0 or greater, and finite. Use 0.0 for no margin."
        )
    done = min(progress / margin_warmup_ratio, 1.0) if margin_warmup_ratio > 0 else 1.0
    return target_margin / 2 * (1 - math.cos(math.pi * done))


def _check(temperature: float, margin: float, **tensors: torch.Tensor) -> None:
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` is {temperature}, but must be greater than 0, and finite.")
    if not math.isfinite(margin):
        raise ValueError(f"`margin` is {margin}, but must be a finite number. Use 0.0 for no margin.")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or len(shapes["score_PG"]) != 2:
        raise ValueError(f"The shapes are {shapes}, but must all be (P, G). Lay the rollouts out in groups.")
