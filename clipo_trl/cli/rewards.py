"""The reward functions that a command line names: loaded, and checked before anything slow is done."""

from collections.abc import Callable
from functools import partial
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from trl.trainer.utils import get_callable_name

from reward_funcs import (
    check_golds,
    get_reward_func,
    math_accuracy_reward,
    right_with_sound_equations_reward,
    verifiable_reward,
    verl_compatible_reward,
)
from reward_funcs.errors import UsageError

from ..parent_shapes import CLIPOArguments
from ..success import check_step_reward, find_success_rule
from .command_line import argument_errors


COMPARE_GOLDS = (verifiable_reward, math_accuracy_reward, right_with_sound_equations_reward)  # by value
USE_WORKERS = (*COMPARE_GOLDS, verl_compatible_reward)  # processes beside the training's


def load_reward_funcs(script_args: Any, args: CLIPOArguments, train_dataset: Dataset) -> list:
    """
    The reward functions by their names; weights and names that do not fit them stop the run here, as do golds that
    they could not read.
    """
    length = args.max_completion_length
    reward_funcs = [get_reward_func(name, max_completion_length=length) for name in script_args.reward_funcs]
    with argument_errors():
        check_rewards(script_args, args, reward_funcs)
    if any(function in COMPARE_GOLDS for function in reward_funcs):
        on_one_process(partial(check_golds, train_dataset, script_args.max_unparsable_share))
    return reward_funcs


def check_rewards(script_args: Any, args: CLIPOArguments, reward_funcs: list[Callable]) -> None:
    """Raise a `ValueError` for what the trainer would refuse: names and weights that do not fit the functions."""
    names = [get_callable_name(function) for function in reward_funcs]
    weights = weights_of(args, names)
    step_reward = args.contrastive_step_reward
    if script_args.contrastive:
        check_step_reward(step_reward, names)
    wanted = args.dynamic_sampling_rewards if args.dynamic_sampling else None
    by_success = args.dynamic_sampling and wanted is None
    if script_args.contrastive or script_args.algorithm == "conspo" or by_success:
        find_success_rule(names, weights, args.contrastive_success_rewards, step_reward)
    if wanted is not None:
        find_success_rule(names, weights, wanted, step_reward, argument="dynamic_sampling_rewards")


def on_one_process(check: Callable[[], Any]) -> None:
    """Run a check on the first process; its error is raised on all, so that none waits for another."""
    found: Exception | None = None
    if PartialState().is_main_process:
        try:
            check()
        except Exception as error:
            known = isinstance(error, UsageError)  # which can travel; of others, what they say does
            found = error if known else RuntimeError(f"{type(error).__name__}: {error}")
    [found] = broadcast_object_list([found])
    if found is not None:
        raise found


def weights_of(args: CLIPOArguments, names: list[str]) -> list[float]:
    """The weight of each reward function; a [`UsageError`] if there are more weights than functions, or fewer."""
    weights = [1.0] * len(names) if args.reward_weights is None else args.reward_weights
    if len(weights) != len(names):
        raise UsageError(
            f"`reward_weights` has {len(weights)} entries, but `reward_funcs` has {len(names)}: give one for each."
        )
    return weights
