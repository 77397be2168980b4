"""Soft overlong punishment: a completion that comes close to the length limit loses up to 1.0."""

from collections.abc import Callable


def soft_overlong_punishment(
    max_completion_length: int, cache_length: int | None = None
) -> Callable[..., list[float]]:
    r"""
    Make the reward of DAPO, Eq. (13) (arXiv 2503.14476), by [`~trl.rewards.get_soft_overlong_punishment`]: 0 up to
    `max_completion_length - cache_length` tokens, from there linearly down to -1 at `max_completion_length`, and -1
    beyond.

    Args:
        max_completion_length (`int`): Longest completion that training allows, in tokens (L_max; DAPO: 20480).
        cache_length (`int`, *optional*): Tokens before the limit over which the punishment grows (L_cache). Default: a
            fifth of `max_completion_length`, DAPO's proportion (4096 of 20480).

    Returns:
        Reward function that reads `completion_ids`, as TRL passes them.

    Raises:
        ValueError: `cache_length` is not from 1 to `max_completion_length`.
    """
    from trl.rewards import get_soft_overlong_punishment  # slow to import, and needed nowhere else in this package

    cache_length = max(1, max_completion_length // 5) if cache_length is None else cache_length
    if not 1 <= cache_length <= max_completion_length:
        raise ValueError(
            f"`cache_length` is {cache_length}, but must be from 1 to `max_completion_length` = {max_completion_length} tokens."
        )
    return get_soft_overlong_punishment(max_completion_length, cache_length)
