"""Whether the trainer trains or evaluates: told by the entry points, never read off `model.training`.

TRL asks that flag throughout, and others flip it: continuous batching leaves the policy in train mode, in evaluation too, and
so may a `rollout_func` or a reward function of a user's. Here the four doors through which work comes in say what it is, and
the flag is set back to that wherever code that may flip it returns.
"""

from collections import defaultdict, deque
from contextlib import contextmanager
from typing import Any


class ModeMixin:
    """
    `_evaluating` for `CLIPOMixin`: True inside `evaluate` and `predict`, False in a training step. Evaluation leaves nothing
    behind: its rollouts have a completions table of their own, and what a fault leaves half done is dropped.
    """

    _evaluating = False

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

    def _set_model_mode(self) -> None:
        for model in (self.model, self.model_wrapped):
            model.train(not self._evaluating)

    @contextmanager
    def _evaluation(self):
        """All of an evaluation: afterwards the policy, the rollouts at hand and the metrics are as they were before."""
        was_training, training_logs = self.model.training, self._logs
        self._logs = _empty_like(training_logs)
        try:
            with self._in_mode(evaluating=True):
                yield
        finally:
            self._logs = training_logs
            self._metrics["eval"].clear()
            for model in (self.model, self.model_wrapped):
                model.train(was_training)

    def training_step(self, *args, **kwargs):
        with self._in_mode(evaluating=False):
            return super().training_step(*args, **kwargs)

    def prediction_step(self, *args, **kwargs):
        with self._in_mode(evaluating=True):
            return super().prediction_step(*args, **kwargs)

    def evaluate(self, *args, **kwargs):
        with self._evaluation():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args, **kwargs):
        with self._evaluation():
            return super().predict(*args, **kwargs)

    def _generate(self, prompts):
        output = super()._generate(prompts)
        self._set_model_mode()
        return output

    def _calculate_rewards(self, *args):
        rewards_per_func = super()._calculate_rewards(*args)
        self._set_model_mode()
        return rewards_per_func


def _empty_like(logs: dict[str, Any]) -> dict[str, Any]:
    """TRL's store of the latest rollouts (deques, and dictionaries that make them), empty."""
    return {
        name: deque(maxlen=store.maxlen) if isinstance(store, deque) else defaultdict(store.default_factory)
        for name, store in logs.items()
    }
