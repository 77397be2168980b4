"""What a mixin may take for granted of the class that it stands before. For the type checker: at run time these add nothing."""

from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import SchedulerType
from trl import GRPOConfig, GRPOTrainer

from .config import CLIPOConfigMixin


if TYPE_CHECKING:

    class GRPOArguments(GRPOConfig):
        """A checked configuration: `__post_init__` has filled in what may be left out."""

        output_dir: str
        num_generations: int
        num_generations_eval: int
        steps_per_generation: int
        generation_batch_size: int
        lr_scheduler_type: SchedulerType

    class CLIPOArguments(CLIPOConfigMixin, GRPOArguments):
        """The same with CLIPO's fields."""

        metric_for_best_model: Any  # which both parents set

    class GRPOTrainerShape(GRPOTrainer):
        """A trainer that has been constructed; `datasets` has no types."""

        args: GRPOArguments
        model: nn.Module
        model_wrapped: nn.Module
        train_dataset: Any
        eval_dataset: Any
        num_generations: int
        num_generations_eval: int

else:
    GRPOArguments = GRPOConfig
    CLIPOArguments = CLIPOConfigMixin
    GRPOTrainerShape = object
