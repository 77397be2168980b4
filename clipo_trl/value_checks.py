"""Values of CLIPO's fields that can be judged one by one. Imports nothing slow: command lines are checked too."""

import math
from typing import Any


# By what is told of a number that is out of range: the fields, in the order in which they are checked.
RANGES = {
    "greater than 0": ("contrastive_temperature", "contrastive_embedding_dim", "contrastive_learning_rate"),
    "0 or greater": ("contrastive_reward_weight", "contrastive_weight_decay", "contrastive_warmup_steps"),
    "a finite number": ("contrastive_reward_offset", "contrastive_success_threshold"),
    "1 or greater": ("contrastive_num_positives",),
    "at most 0": ("contrastive_reward_floor",),
}


def check_choice(name: str, value: Any, choices: tuple) -> None:
    """Raise a `ValueError` that names the argument `name`, its `value` and the allowed `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` is {value!r}, which is not known. Choose one of {list(choices)}.")


def check_number(name: str, value: float) -> None:
    """Raise a `ValueError` if the field `name` has a range, and `value` is outside of it or not finite."""
    for expected, names in RANGES.items():
        in_range = {
            "greater than 0": value > 0,
            "0 or greater": value >= 0,
            "1 or greater": value >= 1,
            "at most 0": value <= 0,
        }.get(expected, True)
        if name in names and not (in_range and math.isfinite(value)):
            raise ValueError(f"`{name}` is {value}, but must be {expected}.")
