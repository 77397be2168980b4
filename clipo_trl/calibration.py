"""How far a contrastive reward can be trusted, learned from the rollouts whose steps were checked."""

from dataclasses import dataclass

import torch

from .metrics import sound_against_lucky


MEMORY = 0.9  # weight of all earlier batches against the one at hand
PRIOR_PAIRS = 10.0  # as if so many pairs more had shown nothing


@dataclass
class Calibration:
    """
    Running AUROC of a reward for telling sound from lucky rollouts of a group, as a factor for that reward. Beyond the
    paper.

    Agreement with the majority favours sound rollouts in one run and lucky ones in another; a few checked problems
    tell which. The reward times 2 AUROC - 1 keeps its size where it favours the sound ones each time, shrinks where it
    is blind, and turns its sign where it favours the lucky ones.

    Attributes:
        n_ranked (`float`): pairs of a sound and a lucky rollout that the reward ranked rightly, a tie counting a half.
        n_pairs (`float`): all such pairs. Both fade by `MEMORY` with each batch that has a pair.
    """

    n_ranked: float = 0.0
    n_pairs: float = 0.0

    def update(self, reward_PG: torch.Tensor, sound_PG: torch.Tensor, lucky_PG: torch.Tensor) -> float:
        """
        Take in a generation batch and return the factor 2 AUROC - 1, from -1 to 1.

        Args:
            reward_PG (`torch.Tensor` of shape `(P, G)`): reward before calibration.
            sound_PG, lucky_PG (`torch.Tensor` of shape `(P, G)`, bool): correct rollouts whose steps were checked.
        """
        n_ranked, _, n_pairs = sound_against_lucky(reward_PG, sound_PG, lucky_PG).tolist()
        if n_pairs:
            self.n_ranked = MEMORY * self.n_ranked + n_ranked
            self.n_pairs = MEMORY * self.n_pairs + n_pairs
        return 2 * (self.n_ranked + PRIOR_PAIRS / 2) / (self.n_pairs + PRIOR_PAIRS) - 1
