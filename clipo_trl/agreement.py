"""What can be said of a group's correct rollouts besides the loss: how well the embedding of each agrees with those of
the others, and how likely each was to the policy.

Beyond the paper. CLIPO pays minus the loss, whose denominator (the other positives, the wrong rollouts) varies more
inside a group than its numerator does, so the reward can be blind to what the embeddings show. Agreement pays the
numerator itself. Likelihood needs no embeddings.
"""

import torch

from .beyond_the_paper_config import SIMILARITY_SCORES
from .config import check_choice


def agreement_score(
    embeddings_PGD: torch.Tensor,
    correct_PG: torch.Tensor,
    *,
    valid_PG: torch.Tensor | None = None,
    reward_type: str = "agreement",
    level: str = "group",
) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    Score of every correct rollout against the others of its group, to be paid by [`agreement_reward`].

    | `reward_type` | score of correct rollout i, before centring |
    |---|---|
    | `"agreement"` | mean cosine to its positives P(i), the other correct rollouts |
    | `"similarity_gap"` | the same, less the mean cosine to its negatives, the rollouts of A(i) that are not in P(i) |

    P(i) and A(i) are those of [`contrastive_loss`]. Centring takes off the mean score of the group's scored rollouts:
    the reward is then about one correct rollout against another, not about right against wrong, and adds up to zero in
    each group (where no bound cuts it). Agreement needs no wrong rollout, so a group in which all are right has one
    too; of two correct rollouts neither is closer to the other, and both score 0 at level `"group"`.

    The cosines of one rollout to a set add up to its product with the set's sum: time and memory grow with N * D.

    Args:
        embeddings_PGD (`torch.Tensor` of shape `(P, G, D)`): unit embeddings.
        correct_PG (`torch.Tensor` of shape `(P, G)`, bool): True where the rollout succeeded.
        valid_PG (`torch.Tensor` of shape `(P, G)`, bool, *optional*):
            False where a rollout counts for nothing; its embedding may be anything. Default: all True.
        reward_type (`str`, *optional*, defaults to `"agreement"`): see the table.
        level (`str`, *optional*, defaults to `"group"`): `"group"`, `"cross"` or `"batch"`, see [`contrastive_loss`].

    Returns:
        `tuple` of `score_PG` (`(P, G)`, detached, in [-2, 2] for agreement and [-4, 4] for the gap, 0 where there is
        none) and `is_scored_PG` (`(P, G)`, bool: correct, valid, with a positive and, for the gap, a negative).
    """
    check_choice("reward_type", reward_type, SIMILARITY_SCORES)
    valid_PG = torch.ones_like(correct_PG, dtype=torch.bool) if valid_PG is None else valid_PG.bool()
    unit_PGD = embeddings_PGD.detach().masked_fill(~valid_PG.unsqueeze(-1), 0.0)
    right_PG = valid_PG & correct_PG.bool()

    def sums(members_PG: torch.Tensor, of_batch: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum (P, 1, D) and number (P, 1) of some rollouts of the group, or of the batch (then P = 1)."""
        axes = (0, 1) if of_batch else 1
        sum_P1D = (unit_PGD * members_PG.unsqueeze(-1)).sum(axes, keepdim=True)
        return sum_P1D, members_PG.sum(axes, keepdim=True)

    positives, n_positives = sums(right_PG, level == "batch")
    others, n_others = sums(valid_PG, level != "group")
    n_negatives = n_others - n_positives
    itself_PG = unit_PGD.pow(2).sum(-1)
    to_positives_PG = ((unit_PGD * positives).sum(-1) - itself_PG) / (n_positives - 1).clamp(min=1)
    to_negatives_PG = (unit_PGD * (others - positives)).sum(-1) / n_negatives.clamp(min=1)

    is_scored_PG = right_PG & (n_positives > 1)
    score_PG = to_positives_PG
    if reward_type == "similarity_gap":
        is_scored_PG = is_scored_PG & (n_negatives > 0)
        score_PG = to_positives_PG - to_negatives_PG
    return _centred(score_PG, is_scored_PG), is_scored_PG


def likelihood_score(
    likelihood_PG: torch.Tensor, correct_PG: torch.Tensor, *, valid_PG: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Score of every correct rollout by its likelihood against the group's other correct ones, to be paid by
    [`agreement_reward`]: centred as [`agreement_score`] is. Two correct rollouts are enough for it. Minus the mean
    entropy is scored in the same way.

    Args:
        likelihood_PG (`torch.Tensor` of shape `(P, G)`): mean log-probability a token, or minus the mean entropy
            before each, not finite where there is none.
        correct_PG (`torch.Tensor` of shape `(P, G)`, bool): True where the rollout succeeded.
        valid_PG (`torch.Tensor` of shape `(P, G)`, bool, *optional*):
            False where a rollout counts for nothing. Default: all True.

    Returns:
        `tuple` of `score_PG` (`(P, G)`, detached, in nats a token, 0 where there is none) and `is_scored_PG` (`(P,
        G)`, bool: correct, valid, with a likelihood, and with another such one in the group).
    """
    valid_PG = torch.ones_like(correct_PG, dtype=torch.bool) if valid_PG is None else valid_PG.bool()
    right_PG = valid_PG & correct_PG.bool() & likelihood_PG.isfinite()
    is_scored_PG = right_PG & (right_PG.sum(1, keepdim=True) > 1)
    return _centred(likelihood_PG.detach(), is_scored_PG), is_scored_PG


def scaled_in_group(score_PG: torch.Tensor, is_scored_PG: torch.Tensor) -> torch.Tensor:
    """
    Scores in units of their standard deviation in the group, as GRPO's advantages are: of n scored rollouts at most
    (n - 1) / sqrt(n); one alone scores 0.

    Args:
        score_PG (`torch.Tensor` of shape `(P, G)`): centred scores, 0 where there is none.
        is_scored_PG (`torch.Tensor` of shape `(P, G)`, bool): where there is one.

    Returns:
        `torch.Tensor` of shape `(P, G)`. Deviations well below 1e-4, float32 rounding, say, stay small; those of a
        bfloat16 policy's rounding may be larger.
    """
    variance_P1 = score_PG.square().sum(1, keepdim=True) / (is_scored_PG.sum(1, keepdim=True) - 1).clamp(min=1)
    return score_PG / (variance_P1.sqrt() + 1e-4)


def _centred(score_PG: torch.Tensor, is_scored_PG: torch.Tensor) -> torch.Tensor:
    """The scores less their mean over the scored rollouts of the group; 0 elsewhere, whatever stands there."""
    score_PG = score_PG.masked_fill(~is_scored_PG, 0.0)
    mean_P1 = score_PG.sum(1, keepdim=True) / is_scored_PG.sum(1, keepdim=True).clamp(min=1)
    return (score_PG - mean_P1).masked_fill(~is_scored_PG, 0.0)
