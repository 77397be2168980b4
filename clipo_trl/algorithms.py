"""The base algorithms that a run can name: which trainer, what makes it that algorithm, and its published values.

Light to import, for the checks of a command line: classes are named here, and imported when they are asked for.
"""

import importlib
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Algorithm:
    """
    A base algorithm, with CLIPO and plain.

    Attributes:
        paper (`str`): where it is published.
        makes (`dict[str, tuple]`): fields that make it this algorithm, and the values that they may have. The first
            one is taken where the user gives none.
        published (`dict[str, Any]`): values that the paper, its code or TRL's paper index tells, for fields that the
            user may set to others; taken where the user gives none. Only fields whose default is another.
        unread (`tuple[str, ...]`): fields of TRL that nothing reads with this algorithm.
        config, trainer, plain (`str`): configuration, and trainers with and without CLIPO, as `module:class`. The
            plain trainer takes the same configuration; CLIPO's fields have no effect on it.
    """

    paper: str
    makes: dict[str, tuple] = field(default_factory=dict)
    published: dict[str, Any] = field(default_factory=dict)
    unread: tuple[str, ...] = ()
    config: str = "clipo_trl.config:CLIPOConfig"
    trainer: str = "clipo_trl.trainer:CLIPOTrainer"
    plain: str = "clipo_trl.plain:MendedGRPOTrainer"

    def config_class(self) -> Any:
        return _load(self.config)

    def trainer_class(self, contrastive: bool = True) -> Any:
        """The trainer with CLIPO, or the plain one, which trains the policy as TRL's own does, bit for bit."""
        return _load(self.trainer if contrastive else self.plain)

    def fields(self) -> set[str]:
        """Every field that the algorithm has a word in."""
        return {*self.makes, *self.published, *self.unread}

    def defaults(self, given: Collection[str] = ()) -> dict[str, Any]:
        """Values for the fields that were not `given` by the user."""
        values = {name: allowed[0] for name, allowed in self.makes.items()} | self.published
        return {name: value for name, value in values.items() if name not in given}

    def check(self, name: str, args: Any, given: Collection[str] = ()) -> None:
        """Raise a `ValueError` for the first field of `args` that contradicts the algorithm called `name`."""
        for other, allowed in self.makes.items():
            if getattr(args, other) not in allowed:
                raise ValueError(
                    f"`{other}` is {getattr(args, other)!r}, but `algorithm` is {name!r}, for which it must be "
                    f"{' or '.join(map(repr, allowed))}. Leave `{other}` out, or choose another `algorithm`."
                )
        for other in self.unread:
            if other in given:
                raise ValueError(
                    f"`{other}` is {getattr(args, other)!r}, but `algorithm` is {name!r}, with which nothing reads it. "
                    f"Leave `{other}` out, or choose another `algorithm`."
                )


TOKEN = {"importance_sampling_level": ("token",)}
# What `loss_type` and the level would choose, these have in their own `_compute_loss`, or in the weights.
GMPO: dict[str, Any] = {
    "config": "clipo_trl.gmpo:CLIPOGMPOConfig",
    "trainer": "clipo_trl.gmpo:CLIPOGMPOTrainer",
    "plain": "clipo_trl.plain:MendedGMPOTrainer",
}
CONSPO: dict[str, Any] = {
    "config": "clipo_trl.conspo_config:CLIPOConSPOConfig",
    "trainer": "clipo_trl.conspo_trainer:CLIPOConSPOTrainer",
    "plain": "clipo_trl.conspo_trainer:ConSPOTrainer",
}

ALGORITHMS = {
    "grpo": Algorithm("arXiv 2402.03300", makes={"loss_type": ("grpo", "bnpo", "dapo"), **TOKEN}),
    "dr_grpo": Algorithm("arXiv 2503.20783", makes={"loss_type": ("dr_grpo",), "scale_rewards": ("none",), **TOKEN}),
    "gspo": Algorithm(
        "arXiv 2507.18071",
        makes={"loss_type": ("grpo",), "importance_sampling_level": ("sequence",)},
        published={"epsilon": 3e-4, "epsilon_high": 4e-4},
    ),
    "dapo": Algorithm(
        "arXiv 2503.14476",
        makes={"loss_type": ("dapo",), **TOKEN},
        published={"epsilon_high": 0.28, "mask_truncated_completions": True, "dynamic_sampling": True},
        plain="clipo_trl.dapo:DAPOTrainer",
    ),
    "gmpo": Algorithm(
        "arXiv 2507.20673",
        published={"epsilon": 0.4},
        unread=("loss_type", "importance_sampling_level", "delta", "off_policy_mask_threshold"),
        **GMPO,
    ),
    "cispo": Algorithm(
        "arXiv 2506.13585",
        makes={"loss_type": ("cispo",), **TOKEN},
        published={"epsilon_high": 5.0},
        unread=("epsilon", "delta"),
    ),
    "sapo": Algorithm(
        "arXiv 2511.20347",
        makes={"loss_type": ("sapo",), **TOKEN},
        unread=("epsilon", "epsilon_high", "delta"),
    ),
    "conspo": Algorithm(
        "arXiv 2605.12969",
        makes={"loss_type": ("grpo",)},
        published={"learning_rate": 2e-6},
        unread=(
            "epsilon",
            "epsilon_high",
            "importance_sampling_level",
            "scale_rewards",
            "multi_objective_aggregation",
        ),
        **CONSPO,
    ),
}

# Where a run names none: CLIPO on TRL's trainer, and the algorithm is what the fields make of it.
UNNAMED = Algorithm("as the fields say")


def find_algorithm(name: str | None) -> Algorithm:
    """
    Return the algorithm called `name`, or for `None` the one that leaves all to the fields.

    Raises:
        `ValueError`: there is none of this name.
    """
    if name is not None and name not in ALGORITHMS:
        raise ValueError(f"`algorithm` is {name!r}, which is not known. Choose one of {list(ALGORITHMS)}.")
    return UNNAMED if name is None else ALGORITHMS[name]


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
