"""What is logged about one generation batch, under `contrastive/`. The docs have a glossary."""

import torch
import torch.nn.functional as F
from accelerate import Accelerator

from .agreement import agreement_score
from .groups import in_groups
from .scored_batch import ScoredBatch


# Scores that differ by rounding alone count as equal.
_TIE = 1e-6


def rollout_metrics(
    loss_PG: torch.Tensor,
    is_anchor_PG: torch.Tensor,
    reward_PG: torch.Tensor,
    is_paid_PG: torch.Tensor,
    is_cut_PG: torch.Tensor,
    correct_PG: torch.Tensor,
    valid_PG: torch.Tensor,
) -> dict[str, float]:
    """
    Shares, loss of the correct rollouts that are anchors, and reward of those that are paid one (NaN where there are
    none).

    Args:
        loss_PG, is_anchor_PG, reward_PG (`torch.Tensor` of shape `(P, G)`): of all processes.
        is_paid_PG (`torch.Tensor` of shape `(P, G)`, bool): correct rollouts that have a loss, or another score in its
            place.
        is_cut_PG (`torch.Tensor` of shape `(P, G)`, bool): where a bound of the reward acted.
        correct_PG, valid_PG (`torch.Tensor` of shape `(P, G)`, bool): success label; False where a rollout was left
            out.
    """
    n_valid = valid_PG.sum().item()
    metrics = {
        "head_loss": (loss_PG.sum() / is_anchor_PG.sum()).item(),  # 0 / 0 = NaN: TRL leaves NaN out of its averages
        # Of the rollouts, and groups, that count: 0 / 0 where there are none.
        "correct_rollouts": (correct_PG & valid_PG).sum().item() / n_valid if n_valid else float("nan"),
        "anchors": is_anchor_PG.sum().item() / n_valid if n_valid else float("nan"),
        "trivial_groups": (~is_anchor_PG.any(1))[valid_PG.any(1)].float().mean().item(),
        "left_out_rollouts": (~valid_PG).float().mean().item(),
        "floor_rewards": float("nan"),
    }
    if is_paid_PG.any():
        metrics["floor_rewards"] = is_cut_PG[is_paid_PG].float().mean().item()
    for name, values in (("loss", loss_PG[is_anchor_PG & correct_PG]), ("reward", reward_PG[is_paid_PG])):
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


def sound_against_lucky(score_PG: torch.Tensor, sound_PG: torch.Tensor, lucky_PG: torch.Tensor) -> torch.Tensor:
    """
    How well a score tells sound from lucky rollouts of the same group: `[ranked, difference, number]` over the pairs
    of a sound and a lucky rollout. `ranked / number` is the AUROC inside groups, with a half for a tie; `difference /
    number` is the mean difference of their scores. Additive over processes.

    Args:
        score_PG (`torch.Tensor` of shape `(P, G)`): higher is meant to be sounder.
        sound_PG, lucky_PG (`torch.Tensor` of shape `(P, G)`, bool): which rollouts are compared.
    """
    difference_PGG = score_PG.unsqueeze(2) - score_PG.unsqueeze(1)
    pair_PGG = sound_PG.unsqueeze(2) & lucky_PG.unsqueeze(1)
    tie_PGG = difference_PGG.abs() <= _TIE
    ranked_PGG = ((difference_PGG > 0) & ~tie_PGG).float() + 0.5 * tie_PGG.float()
    return torch.stack([(ranked_PGG * pair_PGG).sum(), (difference_PGG * pair_PGG).sum(), pair_PGG.sum().float()])


def batch_metrics(batch: ScoredBatch, accelerator: Accelerator) -> dict[str, float]:
    """All figures of a generation batch, by the names that the docs explain; NaN where there is nothing to tell."""
    metrics = batch.figures | rollout_metrics(
        *_on_host(
            batch.loss_PG,
            batch.is_anchor_PG,
            batch.reward_PG,
            batch.is_paid_PG,
            batch.is_cut_PG,
            batch.correct_PG,
            batch.valid_PG,
        )
    )
    states, present, groups = _states_in_groups(batch)
    of_states = pair_cosines(states, batch.correct_PG[groups], batch.valid_PG[groups] & present)
    of_embeddings = pair_cosines(batch.embeddings_PGD, batch.correct_PG, batch.valid_PG)
    for what, pairs in (("hidden", accelerator.reduce(of_states, "sum")), ("embedding", of_embeddings)):
        for kind, (total, number) in zip(("correct_correct", "correct_wrong"), pairs.tolist(), strict=True):
            metrics[f"{what}_cosine_{kind}"] = total / number if number else float("nan")
    for name, score_PG in batch.token_scores.items():
        metrics |= token_score_metrics(name, score_PG, batch.correct_PG, batch.valid_PG)
    if batch.steps_PG is not None:
        metrics |= soundness_metrics(batch, accelerator)
    return metrics


def token_score_metrics(
    name: str, score_PG: torch.Tensor, correct_PG: torch.Tensor, valid_PG: torch.Tensor
) -> dict[str, float]:
    """Mean score of correct and of wrong rollouts, of those that have one; NaN where there are none."""
    counts_PG = valid_PG & score_PG.isfinite()
    kinds = {"correct": counts_PG & correct_PG, "wrong": counts_PG & ~correct_PG}
    means = torch.stack([score_PG[of_PG].mean() for of_PG in kinds.values()])
    return dict(zip((f"{name}_{kind}" for kind in kinds), means.tolist(), strict=True))


def _on_host(*tensors_PG: torch.Tensor) -> list[torch.Tensor]:
    """Copies on the CPU, made at once: the host waits for the device one time, not once a figure."""
    rows = torch.stack([tensor_PG.float() for tensor_PG in tensors_PG]).cpu()
    return [row_PG.to(tensor_PG.dtype) for row_PG, tensor_PG in zip(rows, tensors_PG, strict=True)]


def _states_in_groups(batch: ScoredBatch) -> tuple[torch.Tensor, torch.Tensor, slice]:
    """
    Hidden states in groups (P', G, H), which of them are on this process (P', G), and the place of the P' groups.
    The states do not travel: pairs of them are looked at where both are on one process.
    """
    G, first = batch.correct_PG.size(1), batch.local.start
    states, present = in_groups(batch.pooled_BH, G, first)
    return states, present, slice(first // G, first // G + len(states))


def soundness_metrics(batch: ScoredBatch, accelerator: Accelerator) -> dict[str, float]:
    """How well the reward paid, the embeddings, the hidden states and, where they are known, likelihood and entropy
    tell sound from lucky correct rollouts."""
    assert batch.steps_PG is not None
    sound_PG, lucky_PG = batch.steps_PG > 0, batch.steps_PG <= 0  # neither where the checker gave nothing
    states, present, groups = _states_in_groups(batch)
    of_states, has_score = agreement_score(
        F.normalize(states, dim=-1),
        batch.correct_PG[groups],
        valid_PG=batch.valid_PG[groups] & present,
    )
    hidden = sound_against_lucky(of_states, has_score & sound_PG[groups], has_score & lucky_PG[groups])
    of_sound, of_lucky = batch.is_scored_PG & sound_PG, batch.is_scored_PG & lucky_PG
    sums = {
        "reward": sound_against_lucky(batch.reward_PG, of_sound, of_lucky),
        "embedding": sound_against_lucky(batch.agreement_PG, of_sound, of_lucky),
        "hidden": accelerator.reduce(hidden, "sum"),
    }
    for name, score_PG in batch.token_scores.items():
        has_one_PG = score_PG.isfinite()
        known_PG = score_PG.masked_fill(~has_one_PG, 0.0)
        sums[name] = sound_against_lucky(known_PG, of_sound & has_one_PG, of_lucky & has_one_PG)
    metrics = {}
    for name, (n_ranked, difference, n_pairs) in ((name, values.tolist()) for name, values in sums.items()):
        metrics[f"sound_auroc_{name}"] = n_ranked / n_pairs if n_pairs else float("nan")
        metrics[f"sound_gap_{name}"] = difference / n_pairs if n_pairs else float("nan")
    right_PG = batch.correct_PG & batch.valid_PG
    n_correct, n_lucky = (right_PG & (sound_PG | lucky_PG)).sum().item(), (right_PG & lucky_PG).sum().item()
    return metrics | {"lucky_share": n_lucky / n_correct if n_correct else float("nan")}
