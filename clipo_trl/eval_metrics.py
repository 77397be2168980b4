"""Evaluation during training: for each test set metrics and a completions table of its own, means over questions."""

from contextlib import contextmanager
from pathlib import Path

import torch


class EvalMetricsMixin:
    """
    Mends three things of TRL's evaluation for `CLIPOMixin`: TRL puts a plain `eval_` before its metrics of every test set, so
    that each set overwrites the last one's; it averages rewards over batches, so that a smaller last batch, or one that was
    filled up for several processes, weighs too much; and it writes the completions over those of training.
    """

    _metric_key_prefix = "eval"  # of the test set at hand: `eval`, or `eval_gsm8k` where several have names
    _test_rewards = ()  # of its rollouts so far, one tensor (rollouts, reward functions) a batch
    _n_test_rollouts = None  # all that it has; `None` if it is streamed

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        self._metric_key_prefix = metric_key_prefix
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        self._n_test_rollouts = len(dataset) * self.num_generations_eval if hasattr(dataset, "__len__") else None
        self._test_rewards = []
        try:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        finally:
            self._test_rewards = ()

    def predict(self, *args, **kwargs):
        try:
            return super().predict(*args, **kwargs)
        finally:
            self._test_rewards = ()

    def _keep_test_rewards(self, rewards_per_func: torch.Tensor) -> None:
        self._test_rewards = [*self._test_rewards, rewards_per_func]

    def _average_test_rewards(self) -> None:
        # What fills up the last batch stands at its end, in the order of the sampler.
        rewards = torch.cat(self._test_rewards)[: self._n_test_rollouts]
        self._test_rewards = []
        total = (rewards * self.reward_weights.to(rewards.device)).nansum(1)
        total = total.masked_fill(rewards.isnan().all(1), torch.nan)
        metrics = self._metrics["eval"]
        metrics["reward"] = [total.nanmean().item()]
        for column, name in enumerate(self.reward_func_names):
            if f"rewards/{name}/mean" in metrics:  # CLIPO's own column is empty here, and not logged
                metrics[f"rewards/{name}/mean"] = [rewards[:, column].nanmean().item()]

    def log(self, logs, start_time=None):
        if not self._evaluating:
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
    def _table_of_its_own(self):
        """TRL writes `completions_STEP.parquet` for training and evaluation alike; here an evaluation's gets its set's name."""
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
