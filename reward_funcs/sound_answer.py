"""One reward for two things: the right answer, and equations on the way to it that hold."""

from collections.abc import Callable, Sequence
from typing import Any

from .equation_steps import sound_equations_reward
from .verifiable import verifiable_reward


def right_with_sound_equations_reward(
    completions: Sequence[Any],
    accuracy_reward: Callable[..., Sequence[float | None]] = verifiable_reward,
    log_extra: Callable[[str, list], None] | None = None,
    log_metric: Callable[[str, float], None] | None = None,
    **kwargs,
) -> list[float | None]:
    """
    The reward for the answer, if it is above 0, all equations of the completion hold and there is at least one; else
    0.0.

    To be paid beside the answer's own reward: of right rollouts those whose arithmetic is sound get more. No label of
    the steps is needed. Nothing is gained by equations beside wrong answers, or by leaving all of them out; leaving
    out the one in doubt does pay. See [`sound_equations_reward`] for what is checked, and what is not.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions, plain or conversational.
        accuracy_reward (`Callable`, *optional*, defaults to [`verifiable_reward`]): Says whether the answer is right.
            Gets `completions`, `log_metric` and all columns.
        log_extra (`Callable`, *optional*): From TRL. Not used: the answers are the accuracy reward's to show.
        log_metric (`Callable`, *optional*): From TRL, see [`verifiable_reward`] and [`equation_steps_reward`].

    Returns:
        `list[float | None]`: `None` where the accuracy reward gives it.
    """
    right = accuracy_reward(completions=completions, log_metric=log_metric, **kwargs)
    sound = sound_equations_reward(completions, log_metric)
    return [
        None if one is None else float(one) if one > 0 and holds else 0.0
        for one, holds in zip(right, sound, strict=True)
    ]
