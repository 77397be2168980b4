"""CLIPO on GMPO (geometric-mean policy optimization, arXiv 2507.20673), TRL's experimental trainer."""

from dataclasses import dataclass
from typing import Any

from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from .config import CLIPOConfigMixin
from .trainer import CLIPOMixin


@dataclass
class CLIPOGMPOConfig(CLIPOConfigMixin, GMPOConfig):
    r"""
    Configuration class for the [`CLIPOGMPOTrainer`]: every field of `GMPOConfig`, and those of [`CLIPOConfigMixin`].
    `epsilon` and `epsilon_high` are in log space.
    """


class CLIPOGMPOTrainer(CLIPOMixin, GMPOTrainer):
    """
    `GMPOTrainer` with CLIPO's reward column. With `contrastive_reward_weight=0.0` the policy is trained exactly as by
    `GMPOTrainer`. It takes what that takes, and a [`CLIPOGMPOConfig`].
    """

    _config_class: Any = CLIPOGMPOConfig
    _tag_names = ["trl", "gmpo", "clipo"]
    _name = "CLIPO-GMPO"
