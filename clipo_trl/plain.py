"""TRL's own trainers with the repairs of `upstream` and dynamic sampling: what a run with CLIPO is compared with.

They train the policy bit for bit as TRL's do; resuming, evaluating and drawing prompts they share with the trainers
that have CLIPO, so that the head's reward is all that differs.
"""

from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer

from .dynamic_sampling import DynamicSamplingMixin


class MendedGRPOTrainer(DynamicSamplingMixin, GRPOTrainer):
    """`GRPOTrainer`, which resumes exactly, keeps evaluations apart, and has dynamic sampling, off by default."""


class MendedGMPOTrainer(DynamicSamplingMixin, GMPOTrainer):
    """`GMPOTrainer`, the same."""
