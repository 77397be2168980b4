"""The head's warm-up (CLIPO, arXiv 2603.10101): first the head learns from the rollouts, then the policy from its
reward."""

import math
from collections.abc import Callable

from accelerate import Accelerator
from accelerate.logging import get_logger
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .parent_shapes import CLIPOArguments, GRPOArguments


logger = get_logger(__name__)


def steps_of_batches(n_batches: int, args: GRPOArguments, num_prompts: int | None = None) -> int:
    """
    Optimizer steps that a run has begun once its first generation batches are used up.

    Args:
        n_batches (`int`): generation batches.
        args (`GRPOConfig`): has the batch sizes.
        num_prompts (`int`, *optional*): prompts of the training set. An epoch ends with an optimizer step, however few
            passes are left for it. Default: all is one epoch.
    """
    passes_per_batch = args.steps_per_generation * args.num_iterations
    batches_per_epoch = max(n_batches, 1)
    if num_prompts is not None:
        batches_per_epoch = max(num_prompts // (args.generation_batch_size // args.num_generations), 1)

    def steps(batches: int) -> int:
        return math.ceil(batches * passes_per_batch / args.gradient_accumulation_steps)

    epochs, rest = divmod(n_batches, batches_per_epoch)
    return epochs * steps(batches_per_epoch) + steps(rest)


def deepspeed_steps_the_scheduler(accelerator: Accelerator) -> bool:
    """With an optimizer of its own it does, after backward passes alone: it counts no frozen step."""
    plugin = accelerator.state.deepspeed_plugin
    return plugin is not None and "optimizer" in plugin.deepspeed_config


class Warmup:
    """
    Plan of the head's warm-up. With `contrastive_warmup_policy="frozen"` the policy waits for whole optimizer steps,
    and the schedule of the learning rate waits with it.

    Args:
        args (`CLIPOConfigMixin`): has the batch sizes and `contrastive_warmup_steps`.
        num_prompts (`int`, *optional*): prompts of the training set. Default: unknown.

    Attributes:
        start (`int`): optimizer step at which the warm-up began; not 0 where a run of plain GRPO goes on with CLIPO.
        is_over (`bool`): the head was warm before the run's first step: no step of it is frozen.
    """

    def __init__(self, args: CLIPOArguments, num_prompts: int | None = None):
        self.args, self.num_prompts = args, num_prompts
        self.start, self.is_over = 0, False
        freezes = args.contrastive_warmup_policy == "frozen"
        self._planned = steps_of_batches(args.contrastive_warmup_steps, args, num_prompts) if freezes else 0

    @property
    def frozen_steps(self) -> int:
        """Optimizer steps that the policy waits for."""
        return 0 if self.is_over else self._planned

    def has_batch(self, n_before: int) -> bool:
        """Whether the generation batch that `n_before` others came before belongs to the warm-up."""
        return n_before < self.args.contrastive_warmup_steps

    def frozen_by(self, step: int) -> int:
        """How many of the first `step` optimizer steps the policy is frozen for."""
        return min(max(step - self.start, 0), self.frozen_steps)

    def freezes(self, step: int) -> bool:
        """Whether the policy is frozen in the optimizer step that `step` others came before."""
        return self.frozen_by(step + 1) > self.frozen_by(step)

    def same_policy(self, step: int, other: int) -> bool:
        """Whether the policy is the same before two optimizer steps."""
        return step - self.frozen_by(step) == other - self.frozen_by(other)

    def progress(self, step: int, max_steps: int) -> float:
        """Share, from 0 to 1, of the policy's updates that are done after `step` of `max_steps` optimizer steps."""
        n_updates = max_steps - self.frozen_by(max_steps)
        return (step - self.frozen_by(step)) / n_updates if n_updates > 0 else 0.0

    def delay(self, scheduler: LRScheduler) -> None:
        """Have a scheduler count the steps in which the policy learns. One that follows a metric has no steps to
        count."""
        if self.frozen_steps and isinstance(scheduler, LambdaLR):
            scheduler.lr_lambdas = [self._while_not_frozen(factor) for factor in scheduler.lr_lambdas]

    def _while_not_frozen(self, factor: Callable[[int], float]) -> Callable[[int], float]:
        return lambda step: factor(step - self.frozen_by(step))

    def warn(self, has_scheduler: bool) -> None:
        """Say what a user may not expect; `has_scheduler`: the trainer was given one."""
        args = self.args
        if self.frozen_steps and self._ends_inside_a_window():
            logger.warning(
                f"`contrastive_warmup_steps` is {args.contrastive_warmup_steps}, which ends inside an accumulation window "
                f"(`gradient_accumulation_steps` {args.gradient_accumulation_steps}, {args.steps_per_generation} passes a "
                f"generation batch). The policy stays frozen to the end of it: for {self.frozen_steps} optimizer steps."
            )
        if self.frozen_steps and has_scheduler:
            logger.warning(
                "`optimizers` brings a learning rate scheduler of yours, which counts the steps of the frozen warm-up too: the "
                f"policy's first update is its step {self.frozen_steps + 1}. Leave it out (`optimizers=(optimizer, None)`) to "
                "have the schedule begin after the warm-up."
            )

    def _ends_inside_a_window(self) -> bool:
        """Whether passes over the batch after the warm-up fall into its last optimizer step."""
        args, n_batches = self.args, self.args.contrastive_warmup_steps
        if self.num_prompts is not None:
            n_batches %= max(self.num_prompts // (args.generation_batch_size // args.num_generations), 1)
        return n_batches * args.steps_per_generation * args.num_iterations % args.gradient_accumulation_steps != 0
