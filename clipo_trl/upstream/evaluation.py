"""Train or evaluate: told by the entry points, never read off `model.training`; and an evaluation that leaves nothing
behind.

trl 1.16 asks that flag throughout (`GRPOTrainer._prepare_inputs`, `_generate`, `_generate_and_score_completions`,
`_compute_loss`, `log`), and others flip it: continuous batching leaves the policy in train mode, in evaluation too,
and so may a `rollout_func` or a reward function of a user's. Here the four doors through which work comes in say what
it is, and the flag is set back to that wherever code that may flip it returns.

TRL also puts a plain `eval_` before its metrics of every test set, so that each set overwrites the last one's;
averages rewards over batches, so that a smaller last batch, or one that was filled up for several processes, weighs
too much; and writes an evaluation's completions over those of training. Can go when TRL is told the mode and keeps the
three apart.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ..parent_shapes import GRPOTrainerShape
from .continuous_batching import lowered_weights


class EvaluationMixin(GRPOTrainerShape):
    """
    Over a `GRPOTrainer`-shaped class. `_evaluating` is True inside `evaluate` and `predict`, False in a training step.
    What a fault leaves half done is dropped.
    """

    _evaluating = False
    _metric_key_prefix = "eval"  # of the test set at hand: `eval`, or `eval_gsm8k` where several have names
    # Of its rollouts so far, one tensor (rollouts, reward functions) a batch.
    _test_rewards: Sequence[torch.Tensor] = ()
    _n_test_rollouts: int | None = None  # all that it has; `None` if it is streamed

    # ------------------------------------------------------------------ the mode

    @contextmanager
    def _in_mode(self, evaluating: bool):
        before, self._evaluating = self._evaluating, evaluating
        self._set_model_mode()
        try:
            yield
        except BaseException:
            self._pending_extra_logs.clear()  # of a batch that was not finished: the next table would not fit
            self._pending_metrics.clear()
            raise
        finally:
            self._set_model_mode()  # the log that follows a step asks for it
            self._evaluating = before

    def _set_model_mode(self, training: bool | None = None) -> None:
        """To what the trainer was told, unless something else is asked for."""
        for model in (self.model, self.model_wrapped):
            model.train(not self._evaluating if training is None else training)

    @contextmanager
    def _evaluation(self):
        """All of an evaluation: afterwards the policy, the rollouts at hand and the metrics are as they were
        before."""
        was_training, training_logs = self.model.training, self._logs
        self._logs, self._test_rewards = _empty_like(training_logs), ()
        try:
            with self._full_eval_precision(), self._in_mode(evaluating=True):
                yield
        finally:
            self._logs, self._test_rewards = training_logs, ()
            self._metrics["eval"].clear()
            self._set_model_mode(was_training)

    def _full_eval_precision(self):
        """`bf16_full_eval` and `fp16_full_eval` outside of a training cast the weights, for good: here they get them
        back."""
        low = torch.bfloat16 if self.args.bf16_full_eval else torch.float16 if self.args.fp16_full_eval else None
        if low is None or self.is_in_train:
            return nullcontext()
        return lowered_weights(self.accelerator.unwrap_model(self.model), low)

    def training_step(self, *args, **kwargs):
        with self._in_mode(evaluating=False):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        with self._in_mode(evaluating=True):
            return super().prediction_step(*args, **kwargs)

    def _generate(self, prompts):
        output = super()._generate(prompts)
        self._set_model_mode()
        return output

    def _calculate_rewards(self, *args):
        rewards_per_func = super()._calculate_rewards(*args)
        self._set_model_mode()
        if self._evaluating:
            self._test_rewards = [*self._test_rewards, rewards_per_func]
        return rewards_per_func

    # ------------------------------------------------------------------ the best model

    def train(self, *args, **kwargs):
        self._check_best_metric()
        return super().train(*args, **kwargs)

    def _check_best_metric(self) -> None:
        """Test sets that have names give no plain `eval_reward`, for want of which a run would end at its first
        evaluation."""
        metric, sets = self.args.metric_for_best_model, self.eval_dataset
        if metric is None or not isinstance(sets, dict) or self.args.eval_strategy == "no":
            return
        if f"eval_{metric.removeprefix('eval_')}".startswith(tuple(f"eval_{name}_" for name in sets)):
            return
        rewards = [f"eval_{name}_reward" for name in sets]
        if metric.removeprefix("eval_") != "reward" or len(sets) > 1:
            raise ValueError(
                f"`metric_for_best_model` is {metric!r}, but test sets with names have metrics of their own. Choose one of them: "
                f"{', '.join(rewards)}."
            )
        [self.args.metric_for_best_model] = rewards

    # ------------------------------------------------------------------ one test set

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self._metric_key_prefix = metric_key_prefix
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        self._n_test_rollouts = len(dataset) * self.num_generations_eval if hasattr(dataset, "__len__") else None
        with self._evaluation():
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(self, *args, **kwargs):
        with self._evaluation():
            return super().predict(*args, **kwargs)

    def _average_test_rewards(self) -> None:
        # What fills up the last batch stands at its end, in the order of the sampler.
        rewards = torch.cat([*self._test_rewards])[: self._n_test_rollouts]
        self._test_rewards = []
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        total = total.masked_fill(rewards.isnan().all(1), torch.nan)
        metrics = self._metrics["eval"]
        metrics["reward"] = [total.nanmean().item()]
        for column, name in enumerate(self.reward_func_names):
            if f"rewards/{name}/mean" in metrics:  # a column that is empty here is not logged
                metrics[f"rewards/{name}/mean"] = [rewards[:, column].nanmean().item()]

    def log(self, logs, start_time=None):
        if not self._evaluating:
            with self._no_empty_table():
                super().log(logs, start_time)
            return
        if self._test_rewards:
            self._average_test_rewards()
        name = self._metric_key_prefix.removeprefix("eval").removeprefix("_")
        if name:
            metrics = self._metrics["eval"]
            for key in list(metrics):
                metrics[f"{name}_{key}"] = metrics.pop(key)
        with self._table_of_its_own():
            super().log(logs, start_time)

    @contextmanager
    def _no_empty_table(self):
        """A run that goes on between two generations has no completions at hand: the table that is there stays."""
        asked, self.log_completions = self.log_completions, self.log_completions and bool(self._logs["prompt"])
        try:
            yield
        finally:
            self.log_completions = asked

    @contextmanager
    def _table_of_its_own(self):
        """TRL writes `completions_STEP.parquet` for training and evaluation alike; here an evaluation's gets its set's
        name."""
        table = Path(self.args.output_dir, "completions", f"completions_{self.state.global_step:05d}.parquet")
        writes = self.log_completions and self.accelerator.is_main_process
        of_training = table.with_suffix(".training")
        if writes and table.exists():
            table.replace(of_training)
        try:
            yield
        finally:
            if writes and table.exists():
                table.replace(table.with_name(f"{self._metric_key_prefix.replace('/', '_')}_{table.name}"))
            if writes and of_training.exists():
                of_training.replace(table)


def _empty_like(logs: dict[str, Any]) -> dict[str, Any]:
    """TRL's store of the latest rollouts (deques, and dictionaries that make them), empty."""
    return {
        name: deque(maxlen=store.maxlen) if isinstance(store, deque) else defaultdict(store.default_factory)
        for name, store in logs.items()
    }
