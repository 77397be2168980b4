"""The head's warm-up (CLIPO, arXiv 2603.10101): first the head learns from the rollouts, then the policy from its reward."""

import math
import time

import torch
from accelerate.logging import get_logger
from torch.optim.lr_scheduler import LambdaLR
from trl import GRPOConfig


logger = get_logger(__name__)


def steps_of_batches(n_batches: int, args: GRPOConfig, num_prompts: int | None = None) -> int:
    """
    Optimizer steps that a run has begun once its first generation batches are used up.

    Args:
        n_batches (`int`): generation batches.
        args (`GRPOConfig`): has the batch sizes.
        num_prompts (`int`, *optional*): prompts of the training set. An epoch ends with an optimizer step, however few passes are
            left for it. Default: all is one epoch.
    """
    passes_per_batch = args.steps_per_generation * args.num_iterations
    batches_per_epoch = max(n_batches, 1)
    if num_prompts is not None:
        batches_per_epoch = max(num_prompts // (args.generation_batch_size // args.num_generations), 1)

    def steps(batches: int) -> int:
        return math.ceil(batches * passes_per_batch / args.gradient_accumulation_steps)

    epochs, rest = divmod(n_batches, batches_per_epoch)
    return epochs * steps(batches_per_epoch) + steps(rest)


class WarmupMixin:
    """
    Warm-up for `CLIPOMixin`. With `contrastive_warmup_policy="frozen"` the policy waits for `_frozen_steps` optimizer steps: no
    forward or backward pass, no pass of a reference, no weights sent to vLLM, and the schedule of the learning rate waits too.
    """

    _frozen_steps = 0
    _warmup_start = 0  # optimizer step at which the warm-up began; not 0 where a run of plain GRPO goes on with CLIPO

    def _plan_warmup(self) -> None:
        args, n_batches = self.args, self.args.contrastive_warmup_steps
        if args.contrastive_warmup_policy != "frozen" or not n_batches:
            return
        num_prompts = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        self._frozen_steps = steps_of_batches(n_batches, args, num_prompts)
        if self._ends_inside_a_window(n_batches, num_prompts):
            logger.warning(
                f"`contrastive_warmup_steps` is {n_batches}, which ends inside an accumulation window "
                f"(`gradient_accumulation_steps` {args.gradient_accumulation_steps}, {args.steps_per_generation} passes a "
                f"generation batch). The policy stays frozen to the end of it: for {self._frozen_steps} optimizer steps."
            )
        if self.lr_scheduler is not None:
            logger.warning(
                "`optimizers` brings a learning rate scheduler of yours, which counts the steps of the frozen warm-up too: the "
                f"policy's first update is its step {self._frozen_steps + 1}. Leave it out (`optimizers=(optimizer, None)`) to "
                "have the schedule begin after the warm-up."
            )

    def _ends_inside_a_window(self, n_batches: int, num_prompts: int | None) -> bool:
        """Whether passes over the batch after the warm-up fall into its last optimizer step."""
        args = self.args
        prompts = args.generation_batch_size // args.num_generations
        in_epoch = n_batches if num_prompts is None else n_batches % max(num_prompts // prompts, 1)
        return in_epoch * args.steps_per_generation * args.num_iterations % args.gradient_accumulation_steps != 0

    def _in_warmup(self) -> bool:
        """Whether the generation batch that is being scored now belongs to the head's warm-up."""
        return self._n_generation_batches < self.args.contrastive_warmup_steps

    def _policy_is_frozen(self) -> bool:
        """Whether the training step that begins now belongs to a warm-up with a frozen policy."""
        return self._n_frozen_by(self.state.global_step + 1) > self._n_frozen_by(self.state.global_step)

    def _n_frozen_by(self, step: int) -> int:
        """How many of the first `step` optimizer steps the policy is frozen for."""
        return min(max(step - self._warmup_start, 0), self._frozen_steps)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        # Without a scheduler of the user's: the schedule spans the steps in which the policy learns.
        ours = self.lr_scheduler is None
        scheduler = super().create_scheduler(max(num_training_steps - self._frozen_steps, 1), optimizer)
        if ours and self._frozen_steps and isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [self._while_not_frozen(factor) for factor in scheduler.lr_lambdas]
        return scheduler

    def _while_not_frozen(self, factor):
        """The schedule `factor`, counting the steps in which the policy learns."""
        return lambda step: factor(step - self._n_frozen_by(step))

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self._policy_is_frozen():
            return super().training_step(model, inputs, num_items_in_batch)
        # Rollouts and the head's step, without a forward or backward pass of the policy: no parameter gets a gradient, so
        # the optimizer's step that follows changes nothing.
        start = time.perf_counter()
        self._prepare_inputs(inputs)
        self._step += 1
        self._current_train_step_time += time.perf_counter() - start
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._metrics["train"]["step_time"].append(self._current_train_step_time)
            self._current_train_step_time = 0.0
        return torch.zeros((), device=self.accelerator.device)

    def _generate(self, prompts):
        # The engine has the weights already if the policy was frozen in all steps since it got them.
        if self.use_vllm and self._last_loaded_step >= 0:
            learned = (step - self._n_frozen_by(step) for step in (self._last_loaded_step, self.state.global_step))
            if len(set(learned)) == 1:
                self._last_loaded_step = self.state.global_step
        return super()._generate(prompts)

    def _generate_and_score_completions(self, inputs):
        beta = self.beta
        if not self._evaluating and self._frozen_steps and self._in_warmup():
            self.beta = 0.0  # no step will use these rollouts' log-probabilities under the reference
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self.beta = beta
