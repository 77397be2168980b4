"""All repairs of this folder in one, so that no trainer lacks one that another has."""

from .continuous_batching import ContinuousBatchingMixin
from .evaluation import EvaluationMixin
from .exact_resume import ExactResumeMixin
from .vllm_weights import VLLMWeightsMixin
from .zero3_order import ZeRO3OrderMixin


class MendedMixin(EvaluationMixin, ExactResumeMixin, ContinuousBatchingMixin, VLLMWeightsMixin, ZeRO3OrderMixin):
    """Over a `GRPOTrainer`-shaped class."""
