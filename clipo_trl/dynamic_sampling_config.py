"""The fields of dynamic sampling (DAPO, arXiv 2503.14476), for CLIPO's configuration and for those without CLIPO."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from .parent_shapes import GRPOArguments as ParentConfig
else:
    ParentConfig = object


@dataclass
class DynamicSamplingConfigMixin(ParentConfig):
    """Dynamic sampling (DAPO): only groups that teach something."""

    dynamic_sampling: bool = field(
        default=False,
        metadata={
            "help": "Drop groups whose verifiable reward is the same for all of their rollouts, and generate for more prompts until "
            "the generation batch is full of others (DAPO, arXiv 2503.14476, Eq. 11). Off, nothing changes."
        },
    )
    dynamic_sampling_max_attempts: int = field(
        default=10,
        metadata={
            "help": "Rounds of generation for one batch, at most, the first one included. If it is not full by then, it is trained on "
            "as it is: rollouts of dropped groups fill it up, with all of their tokens masked. DAPO's recipe uses 10."
        },
    )
    dynamic_sampling_rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the reward functions whose weighted sum must have a spread. Default: with CLIPO, those that decide "
            "success; else those known to tell whether the answer is right, or all where there is none."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        self.check_dynamic_sampling_fields()

    def check_dynamic_sampling_fields(self) -> None:
        """Raise a `ValueError` for a field of dynamic sampling that cannot work, naming the field and its value."""
        n_attempts = self.dynamic_sampling_max_attempts
        if n_attempts < 1:
            raise ValueError(
                f"`dynamic_sampling_max_attempts` is {n_attempts}, but must be 1 or greater. Set 1 to mask groups without a spread and "
                "draw no others."
            )
