"""CLIPO (contrastive learning in policy optimization, arXiv 2603.10101) as a TRL trainer."""

from .callbacks import SuspiciousRolloutsCallback
from .config import CLIPOConfig, CLIPOConfigMixin
from .contrastive_reward import contrastive_reward
from .head import ContrastiveHead
from .health import HealthCallback
from .losses import contrastive_loss
from .readout import similarity_readout
from .trainer import CLIPOMixin, CLIPOTrainer


__version__ = "0.1.0"
__all__ = [
    "CLIPOConfig",
    "CLIPOConfigMixin",
    "CLIPOMixin",
    "CLIPOTrainer",
    "ContrastiveHead",
    "HealthCallback",
    "SuspiciousRolloutsCallback",
    "contrastive_loss",
    "contrastive_reward",
    "similarity_readout",
]
