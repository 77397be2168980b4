r"""Format: 1.0 if the completion gives a final answer in a `\boxed{}` that is closed and not empty, else 0.0."""

from collections.abc import Sequence
from typing import Any

from .completions import completion_text, last_boxed


def format_reward(completions: Sequence[Any], **kwargs) -> list[float]:
    r"""
    Reward for the form that the paper's prompts ask for ("output the final answer within \boxed{}"), right or wrong.

    Args:
        completions (`list[str]` or `list[list[dict]]`): Completions, plain or conversational.

    Returns:
        `list[float]`: 1.0 if the last `\boxed{}` is closed and not empty, else 0.0.
    """
    return [float(last_boxed(completion_text(completion)) is not None) for completion in completions]
