"""DAPO (arXiv 2503.14476) as a TRL trainer, without CLIPO: TRL's GRPO with DAPO's settings, and dynamic sampling."""

import textwrap
from dataclasses import dataclass, field, fields

from trl import GRPOConfig, GRPOTrainer

from .config import with_parameters
from .dynamic_sampling import DynamicSamplingMixin
from .dynamic_sampling_config import DynamicSamplingConfigMixin
from .parent_shapes import arguments_by_name, default_arguments


_DYNAMIC_SAMPLING = {one.name: one.metadata for one in fields(DynamicSamplingConfigMixin)}


@dataclass
class DAPOFields(DynamicSamplingConfigMixin):
    """DAPO's settings."""

    dynamic_sampling: bool = field(default=True, metadata=_DYNAMIC_SAMPLING["dynamic_sampling"])
    loss_type: str = field(default="dapo", metadata={"help": 'Loss of TRL\'s. "dapo" averages over tokens.'})
    epsilon_high: float | None = field(
        default=0.28,
        metadata={"help": "How far the ratio may rise above 1 before it is clipped. DAPO uses 0.28 (clip-higher)."},
    )
    beta: float = field(default=0.0, metadata={"help": "Weight of the KL term. DAPO has none."})


@dataclass
class DAPOConfig(DAPOFields, GRPOConfig):
    r"""
    Configuration class for the [`DAPOTrainer`]: every field of `GRPOConfig`, with these added or of another default.

    Two more parts of DAPO are for you to choose: overlong filtering, `mask_truncated_completions=True`, and soft
    overlong punishment, the reward function `reward_funcs.soft_overlong_punishment`.
    """


class DAPOTrainer(DynamicSamplingMixin, GRPOTrainer):
    """
    Trainer for Decoupled Clip and Dynamic sAmpling Policy Optimization (DAPO,
    https://huggingface.co/papers/2503.14476): dynamic sampling over `GRPOTrainer`, and runs that resume bit for bit.
    Arguments are those of `GRPOTrainer`; `args` is a [`DAPOConfig`].
    """

    _config_class = DAPOConfig
    _tag_names = ["trl", "grpo", "dapo"]
    _name = "DAPO"
    _paper = {
        "title": "DAPO: An Open-Source LLM Reinforcement Learning System at Scale",
        "id": "2503.14476",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{yu2025dapo,
                title        = {{DAPO: An Open-Source LLM Reinforcement Learning System at Scale}},
                author       = {Yu, Qiying and others},
                year         = 2025,
                eprint       = {arXiv:2503.14476},
            }"""),
    }

    def __init__(self, *args, **kwargs):
        given = arguments_by_name(type(self), DAPOTrainer, args, kwargs)
        if given.get("args") is None:
            given["args"] = default_arguments(self, given.get("model"))
        super().__init__(**given)


DAPOConfig.__doc__ = with_parameters(DAPOConfig.__doc__, (DAPOFields,))
