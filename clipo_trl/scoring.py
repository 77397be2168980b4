"""The policy's own log-probabilities of its rollouts: TRL is asked for them where it would not compute them.

TRL makes a pass for log-probabilities where the ratio of old and new policy, or vLLM's correction, needs it
(`trl_scores_rollouts`). Elsewhere it is told that it generates out of step with its updates, which has it make the
same pass: with the same micro-batches, masks, images and temperature. What it finds is taken out of the batch again,
so that training goes on without a ratio, bit for bit as without the pass.
"""

import math
import time

from .capture import StateSource
from .parent_shapes import CLIPOArguments, GRPOTrainerShape


class ScoringMixin(GRPOTrainerShape):
    """Over a `GRPOTrainer`-shaped class, whose pass for log-probabilities is the first one after generation."""

    args: CLIPOArguments
    states: StateSource
    _evaluating: bool
    _is_asked_pass = False

    def _generate_and_score_completions(self, inputs):
        if self._evaluating or not self.states.asks_for_scores:
            return super()._generate_and_score_completions(inputs)
        num_iterations = self.num_iterations
        self.num_iterations = self.args.gradient_accumulation_steps + 1  # no accumulation is a multiple of that
        self._is_asked_pass = True
        try:
            batch = super()._generate_and_score_completions(inputs)
        finally:
            self.num_iterations, self._is_asked_pass = num_iterations, False
        batch.pop("old_per_token_logps", None)
        return batch

    def _get_per_token_logps_and_entropies(self, model, input_ids, *args, **kwargs):
        if not self._is_asked_pass:
            return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)
        self._is_asked_pass = False  # that of a reference may follow
        start, was_training = time.perf_counter(), model.training
        model.eval()  # without dropout, and without a draw from the global random state
        try:
            return super()._get_per_token_logps_and_entropies(model, input_ids, *args, **kwargs)
        finally:
            model.train(was_training)
            self.states.n_extra_passes += math.ceil(len(input_ids) / self.args.per_device_train_batch_size)
            self.states.seconds += time.perf_counter() - start
