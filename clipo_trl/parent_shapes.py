"""What a mixin takes for granted of the class that it stands before: types, for the checker, and arguments."""

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import SchedulerType
from trl import GRPOConfig, GRPOTrainer

from .config import CLIPOConfigMixin
from .dynamic_sampling_config import DynamicSamplingConfigMixin


if TYPE_CHECKING:

    class GRPOArguments(GRPOConfig):
        """A checked configuration: `__post_init__` has filled in what may be left out."""

        output_dir: str
        num_generations: int
        num_generations_eval: int
        steps_per_generation: int
        generation_batch_size: int
        lr_scheduler_type: SchedulerType

    class DynamicSamplingArguments(DynamicSamplingConfigMixin, GRPOArguments):
        """The same with the fields of dynamic sampling."""

    class CLIPOArguments(CLIPOConfigMixin, DynamicSamplingArguments):
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
    DynamicSamplingArguments = DynamicSamplingConfigMixin
    CLIPOArguments = CLIPOConfigMixin
    GRPOTrainerShape = object


def end_tokens(trainer: GRPOTrainerShape) -> list[int]:
    """Tokens that end a completion: up to trl 1.14.1 the tokenizer's alone, later also the generation's."""
    own = getattr(trainer, "eos_token_ids", None)
    return [trainer._tokenizer.eos_token_id] if own is None else own


def default_arguments(trainer: Any, model: Any) -> Any:
    """What a trainer of ours takes where it is given no `args`: its own configuration, a folder named after both."""
    name = model if isinstance(model, str) else model.config._name_or_path
    return trainer._config_class(f"{name.rstrip('/').split('/')[-1]}-{trainer._name}")


def arguments_by_name(cls: type, mixin: type, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """
    Arguments for the parents of `mixin` in `cls`, by the names and places that these have: a subclass of `GRPOTrainer`
    may have others than its parent, or hand on what it does not name.

    Raises:
        `TypeError`: an argument is missing, or no parent takes `reward_funcs`.
    """
    parents = [vars(one)["__init__"] for one in cls.__mro__[cls.__mro__.index(mixin) + 1 :] if "__init__" in vars(one)]
    for constructor in parents:
        signature = inspect.signature(constructor)
        if "reward_funcs" in signature.parameters:
            if constructor is parents[0]:
                signature.bind(None, *args, **kwargs)  # says what is missing
            _, *by_place = signature.bind_partial(None, *args).arguments.items()
            return {**dict(by_place), **kwargs}
    raise TypeError(
        f"`{cls.__name__}` has no parent with an argument `reward_funcs`. Put `{mixin.__name__}` before a trainer that is shaped "
        "like `GRPOTrainer`."
    )
