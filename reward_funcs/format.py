r"""Format: 1.0 if the completion gives a final answer in a `\boxed{}` that is closed and not empty, else 0.0."""

from collections.abc import Callable, Sequence
from typing import Any

from .completions import completion_texts, last_boxed


def format_reward(
    completions: Sequence[Any], log_metric: Callable[[str, float], None] | None = None, **kwargs
) -> list[float]:
    r"""
    Reward for the form that the paper's prompts ask for ("output the final answer within \boxed{}"), right or wrong.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions, plain or conversational.
        log_metric (`Callable`, *optional*): From TRL, see [`~completions.completion_texts`].

    Returns:
        `list[float]`: 1.0 if the last `\boxed{}` is closed and not empty, else 0.0.
    """
    return [float(last_boxed(text) is not None) for text in completion_texts(completions, log_metric)]
