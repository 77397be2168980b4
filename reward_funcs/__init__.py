"""Reward functions for the paper's data: plain TRL reward functions, usable without this project's trainer.

Nothing heavy is imported here: computer algebra lives in worker processes, TRL is imported by the one reward that
needs it.
"""

from collections.abc import Callable, Sequence

from .dotted_path import import_function
from .equation_steps import equation_steps_reward, find_equations, sound_equations_reward
from .errors import UsageError
from .format import format_reward
from .gold import GoldReport, check_golds, final_answer
from .math_accuracy import math_accuracy_reward
from .multiple_choice import multiple_choice_reward
from .overlong import soft_overlong_punishment
from .pool import configure_pool
from .sound_answer import right_with_sound_equations_reward
from .verifiable import verifiable_reward
from .verl_compatible import verl_boxed_reward, verl_compatible_reward


REWARD_FUNCS: dict[str, Callable[..., Sequence[float | None]]] = {
    "verifiable": verifiable_reward,
    "math_accuracy": math_accuracy_reward,
    "multiple_choice": multiple_choice_reward,
    "format": format_reward,
    "equation_steps": equation_steps_reward,
    "sound_equations": sound_equations_reward,
    "right_with_sound_equations": right_with_sound_equations_reward,
    "verl_compatible": verl_compatible_reward,
    "verl_boxed": verl_boxed_reward,
}


# TRL's own rewards under the names of TRL's GRPO script, taken from `trl.rewards` (slow to import) when asked for.
TRL_REWARDS = ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward", "get_soft_overlong_punishment")


def get_reward_func(name: str, *, max_completion_length: int | None = None) -> Callable[..., Sequence[float | None]]:
    """
    Reward function by its name, or by a dotted path `package.module.function`.

    Args:
        name (`str`): `verifiable`, `math_accuracy`, `multiple_choice`, `format`, `equation_steps`,
            `sound_equations`, `right_with_sound_equations`, `soft_overlong`, `verl_compatible`, `verl_boxed`; a name
            of TRL's GRPO script, which gives TRL's own function: `accuracy_reward`, `reasoning_accuracy_reward`,
            `think_format_reward`, `get_soft_overlong_punishment` (1,280 tokens, the last 256 of them punished, as
            there); or a dotted path.
        max_completion_length (`int`, *optional*): Longest completion in tokens; `soft_overlong` needs it.

    Raises:
        UsageError: Unknown name, `soft_overlong` without a length, or a path to something that cannot be called. A
        `ValueError`. NotImportable: A name in a dotted path leads nowhere, and which
        ([`~dotted_path.import_function`]). An `ImportError`.
    """
    if name in REWARD_FUNCS:
        return REWARD_FUNCS[name]
    if name == "soft_overlong":
        if max_completion_length is None:
            raise UsageError("Reward 'soft_overlong' needs `max_completion_length`, the longest completion in tokens.")
        return soft_overlong_punishment(max_completion_length)
    if name in TRL_REWARDS:
        return _trl_reward(name)
    if not all(name.split(".")) or "." not in name:
        known = ", ".join(sorted([*REWARD_FUNCS, "soft_overlong"], key=lambda name: name.startswith("verl_")))
        raise UsageError(
            f"Unknown reward function '{name}'. Known: {known}; TRL's {', '.join(TRL_REWARDS)}; or give a dotted path, 'package.module.function'."
        )
    return import_function(name)


def _trl_reward(name: str) -> Callable[..., Sequence[float | None]]:
    import trl.rewards

    if name == "get_soft_overlong_punishment":
        return trl.rewards.get_soft_overlong_punishment(max_completion_len=1280, soft_punish_cache=256)
    return getattr(trl.rewards, name)


__all__ = [
    "GoldReport",
    "check_golds",
    "configure_pool",
    "equation_steps_reward",
    "final_answer",
    "find_equations",
    "format_reward",
    "get_reward_func",
    "math_accuracy_reward",
    "multiple_choice_reward",
    "right_with_sound_equations_reward",
    "soft_overlong_punishment",
    "sound_equations_reward",
    "verifiable_reward",
    "verl_boxed_reward",
    "verl_compatible_reward",
]
