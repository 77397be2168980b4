"""What training logs about a generation batch: metrics under `contrastive/`, and columns of the completions table."""

import torch
import torch.nn.functional as F

from .groups import in_groups
from .metrics import pair_cosines, rollout_metrics, sound_against_lucky
from .readout import similarity_readout


GROUP, LOSS, AGREEMENT = "group", "contrastive_loss", "agreement"  # columns of the completions table


class TrainMetricsMixin:
    """Logs for `CLIPOMixin`. Shapes: P groups of G rollouts of all processes, B rollouts of this one."""

    def _log_rollouts(
        self, loss_PG, is_anchor_PG, reward_PG, is_paid_PG, is_cut_PG, correct_PG, valid_PG, embeddings_PGD, pooled_BH
    ) -> None:
        metrics = rollout_metrics(loss_PG, is_anchor_PG, reward_PG, is_paid_PG, is_cut_PG, correct_PG, valid_PG)
        states, present, groups = self._states_in_groups(pooled_BH)
        of_states = pair_cosines(states, correct_PG[groups], valid_PG[groups] & present)
        of_embeddings = pair_cosines(embeddings_PGD, correct_PG, valid_PG)
        for what, pairs in (("hidden", self.accelerator.reduce(of_states, "sum")), ("embedding", of_embeddings)):
            for kind, (total, number) in zip(("correct_correct", "correct_wrong"), pairs.tolist(), strict=True):
                metrics[f"{what}_cosine_{kind}"] = total / number if number else float("nan")
        for name, value in metrics.items():
            self._log_contrastive(name, value)

    def _states_in_groups(self, pooled_BH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, slice]:
        """
        Hidden states in groups (P', G, H), which of them are on this process (P', G), and the place of the P' groups.
        The states do not travel: pairs of them are looked at where both are on one process.
        """
        G, first = self.num_generations, self.accelerator.process_index * len(pooled_BH)
        states, present = in_groups(pooled_BH, G, first)
        return states, present, slice(first // G, first // G + len(states))

    def _log_sound_and_lucky(
        self, steps_PG, reward_PG, agreement_PG, is_scored_PG, correct_PG, valid_PG, pooled_BH
    ) -> None:
        """How well the reward paid, the embeddings and the hidden states tell sound from lucky correct rollouts."""
        sound_PG, lucky_PG = steps_PG > 0, steps_PG <= 0  # neither where the checker gave nothing
        states, present, groups = self._states_in_groups(pooled_BH)
        of_states, has_score = similarity_readout(
            F.normalize(states, dim=-1),
            correct_PG[groups],
            valid_PG=valid_PG[groups] & present,
        )
        hidden = sound_against_lucky(of_states, has_score & sound_PG[groups], has_score & lucky_PG[groups])
        sums = {
            "reward": sound_against_lucky(reward_PG, is_scored_PG & sound_PG, is_scored_PG & lucky_PG),
            "embedding": sound_against_lucky(agreement_PG, is_scored_PG & sound_PG, is_scored_PG & lucky_PG),
            "hidden": self.accelerator.reduce(hidden, "sum"),
        }
        for name, (n_ranked, difference, n_pairs) in ((name, values.tolist()) for name, values in sums.items()):
            self._log_contrastive(f"sound_auroc_{name}", n_ranked / n_pairs if n_pairs else float("nan"))
            self._log_contrastive(f"sound_gap_{name}", difference / n_pairs if n_pairs else float("nan"))
        n_correct = (correct_PG & valid_PG & (sound_PG | lucky_PG)).sum().item()
        n_lucky = (correct_PG & valid_PG & lucky_PG).sum().item()
        self._log_contrastive("lucky_share", n_lucky / n_correct if n_correct else float("nan"))

    def _add_to_completions_table(self, n_rows: int, scores_BX: dict[str, torch.Tensor] | None = None) -> None:
        """
        Columns of the completions table for the `n_rows` rollouts of this process: the number of the rollout's group in its
        generation batch, or test set; `contrastive_loss`; and `agreement`, the mean cosine of its embedding to the group's other correct ones,
        less the mean of that over the group. Empty where there is none, as in evaluation.
        """
        if not self.log_completions:
            return
        G = self.num_generations_eval if self._evaluating else self.num_generations
        first = sum(map(len, self._test_rewards)) + self.accelerator.process_index * n_rows
        self._log_completion_extra(GROUP, [row // G for row in range(first, first + n_rows)])
        for name in (LOSS, AGREEMENT):
            scores = [None] * n_rows if scores_BX is None else scores_BX[name].tolist()
            self._log_completion_extra(name, [None if x is None or x != x else x for x in scores])

    def _log_contrastive(self, name: str, value: float) -> None:
        self._metrics["train"][f"contrastive/{name}"].append(value)
