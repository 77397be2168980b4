"""TRL's own trainers with the repairs of this folder and nothing else: what a run with CLIPO is compared with.

They train the policy bit for bit as TRL's do; resuming and evaluating they share with the trainers that have CLIPO.
"""

from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer

from .continuous_batching import ContinuousBatchingMixin
from .evaluation import EvaluationMixin
from .exact_resume import ExactResumeMixin


class MendedGRPOTrainer(EvaluationMixin, ExactResumeMixin, ContinuousBatchingMixin, GRPOTrainer):
    """`GRPOTrainer`, which resumes exactly and keeps evaluations apart."""


class MendedGMPOTrainer(EvaluationMixin, ExactResumeMixin, ContinuousBatchingMixin, GMPOTrainer):
    """`GMPOTrainer`, the same."""
