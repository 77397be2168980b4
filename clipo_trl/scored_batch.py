"""What is known of a generation batch once the head has scored it: the container that travels on to reward, metrics
and tables."""

from dataclasses import dataclass, field

import torch


@dataclass
class ScoredBatch:
    """
    A generation batch as the head sees it: P prompts with G rollouts each, of all processes and the same on all of
    them, B rollouts of this process. Nothing has a gradient.

    Attributes:
        correct_PG (`torch.Tensor` of shape `(P, G)`, bool): success labels.
        valid_PG (`torch.Tensor` of shape `(P, G)`, bool): False where a rollout counts for nothing: no reward, or no
            finite state.
        steps_PG (`torch.Tensor` of shape `(P, G)`, *optional*): reward of the step checker, NaN where it gave none.
        embeddings_PGD (`torch.Tensor` of shape `(P, G, D)`): unit embeddings, by the head as it was before its step.
        loss_PG (`torch.Tensor` of shape `(P, G)`): contrastive loss, 0 where `is_anchor_PG` is False.
        is_anchor_PG (`torch.Tensor` of shape `(P, G)`, bool): rollouts that have a loss.
        agreement_PG (`torch.Tensor` of shape `(P, G)`): mean cosine to the group's other correct rollouts, less the
            group's mean, 0 where `is_scored_PG` is False.
        is_scored_PG (`torch.Tensor` of shape `(P, G)`, bool): correct rollouts with another one in their group.
        reward_PG (`torch.Tensor` of shape `(P, G)`): contrastive reward, calibrated if that is asked for.
        is_paid_PG (`torch.Tensor` of shape `(P, G)`, bool): correct rollouts that have a loss, or another score in its
            place.
        is_cut_PG (`torch.Tensor` of shape `(P, G)`, bool): where a bound of the reward acted.
        pooled_BH (`torch.Tensor` of shape `(B, H)`): hidden states of this process, 0 where left out.
        local (`slice`): place of these B rollouts among the P * G.
        token_scores (`dict[str, torch.Tensor]`): what is known of `"likelihood"`, the mean log-probability a token of
            each rollout, and `"negative_entropy"`, minus the policy's mean entropy before its tokens: each of shape
            `(P, G)`, NaN where no token counts.
        rewards (`dict[str, torch.Tensor]`): the other rewards, by the names of their functions, each of shape `(P,
            G)`, NaN where there was none. Put in by the trainer.
        figures (`dict[str, float]`): what the head's step and the calibration tell, by the names of the metrics.
    """

    correct_PG: torch.Tensor
    valid_PG: torch.Tensor
    steps_PG: torch.Tensor | None
    embeddings_PGD: torch.Tensor
    loss_PG: torch.Tensor
    is_anchor_PG: torch.Tensor
    agreement_PG: torch.Tensor
    is_scored_PG: torch.Tensor
    reward_PG: torch.Tensor
    is_paid_PG: torch.Tensor
    is_cut_PG: torch.Tensor
    pooled_BH: torch.Tensor
    local: slice
    token_scores: dict[str, torch.Tensor] = field(default_factory=dict)
    rewards: dict[str, torch.Tensor] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def likelihood_PG(self) -> torch.Tensor | None:
        """Likelihood of `token_scores`; `None` where no pass gives it."""
        return self.token_scores.get("likelihood")

    @property
    def negative_entropy_PG(self) -> torch.Tensor | None:
        """Minus the entropy of `token_scores`; `None` where no pass gives it."""
        return self.token_scores.get("negative_entropy")
