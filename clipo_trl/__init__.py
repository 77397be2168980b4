"""CLIPO (contrastive learning in policy optimization, arXiv 2603.10101) as a TRL trainer.

Public names are imported when they are first asked for: torch and TRL take seconds, which the scripts' checks of their
command line do not need.
"""

import importlib
import warnings
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:  # for editors; at run time `__getattr__` imports them
    from .agreement import agreement_score
    from .callbacks import SuspiciousRolloutsCallback
    from .config import CLIPOConfig, CLIPOConfigMixin
    from .conspo import conspo_weights, scheduled_margin
    from .conspo_config import CLIPOConSPOConfig, ConSPOConfig, ConSPOConfigMixin
    from .conspo_trainer import CLIPOConSPOTrainer, ConSPOMixin, ConSPOTrainer
    from .dapo import DAPOConfig, DAPOTrainer
    from .dynamic_sampling import DynamicSamplingMixin
    from .dynamic_sampling_config import DynamicSamplingConfigMixin
    from .embedder import RolloutEmbedder
    from .gmpo import CLIPOGMPOConfig, CLIPOGMPOTrainer
    from .head import ContrastiveHead
    from .health import HealthCallback
    from .losses import contrastive_loss
    from .report.callback import ReportCallback
    from .report.page import write_report
    from .rewards import contrastive_reward
    from .trainer import CLIPOMixin, CLIPOTrainer


__version__ = "0.1.0"
__all__ = [
    "CLIPOConSPOConfig",
    "CLIPOConSPOTrainer",
    "CLIPOConfig",
    "CLIPOConfigMixin",
    "CLIPOGMPOConfig",
    "CLIPOGMPOTrainer",
    "CLIPOMixin",
    "CLIPOTrainer",
    "ConSPOConfig",
    "ConSPOConfigMixin",
    "ConSPOMixin",
    "ConSPOTrainer",
    "ContrastiveHead",
    "DAPOConfig",
    "DAPOTrainer",
    "DynamicSamplingConfigMixin",
    "DynamicSamplingMixin",
    "HealthCallback",
    "ReportCallback",
    "RolloutEmbedder",
    "SuspiciousRolloutsCallback",
    "agreement_score",
    "conspo_weights",
    "contrastive_loss",
    "contrastive_reward",
    "scheduled_margin",
    "write_report",
]

_MODULES = {
    "CLIPOConSPOConfig": "conspo_config",
    "CLIPOConSPOTrainer": "conspo_trainer",
    "CLIPOGMPOConfig": "gmpo",
    "CLIPOGMPOTrainer": "gmpo",
    "CLIPOConfig": "config",
    "CLIPOConfigMixin": "config",
    "CLIPOMixin": "trainer",
    "CLIPOTrainer": "trainer",
    "ConSPOConfig": "conspo_config",
    "ConSPOConfigMixin": "conspo_config",
    "ConSPOMixin": "conspo_trainer",
    "ConSPOTrainer": "conspo_trainer",
    "ContrastiveHead": "head",
    "DAPOConfig": "dapo",
    "DAPOTrainer": "dapo",
    "DynamicSamplingConfigMixin": "dynamic_sampling_config",
    "DynamicSamplingMixin": "dynamic_sampling",
    "HealthCallback": "health",
    "ReportCallback": "report.callback",
    "RolloutEmbedder": "embedder",
    "SuspiciousRolloutsCallback": "callbacks",
    "conspo_weights": "conspo",
    "contrastive_loss": "losses",
    "contrastive_reward": "rewards",
    "scheduled_margin": "conspo",
    "agreement_score": "agreement",
    "write_report": "report.page",
}
_RENAMED = {"similarity_readout": "agreement_score"}


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        warnings.warn(f"`{name}` is now named `{_RENAMED[name]}`. Import that.", FutureWarning, stacklevel=2)
        name = _RENAMED[name]
    if name not in _MODULES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from .environment import explained_imports

    with explained_imports():
        module = importlib.import_module(f".{_MODULES[name]}", __name__)
    return getattr(module, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
