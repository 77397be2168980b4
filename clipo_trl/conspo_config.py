"""Configuration of ConSPO (arXiv 2605.12969), alone and under CLIPO: its fields, and checks of them and of TRL's."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trl import GRPOConfig

from .config import CLIPOConfigMixin, SuccessFields, with_parameters
from .dynamic_sampling_config import DynamicSamplingConfigMixin


if TYPE_CHECKING:
    from .parent_shapes import GRPOArguments as ParentConfig  # whose fields the mixin's checks read
else:
    ParentConfig = object


# Fields of TRL that would make the gradient another one than that of eq. 13, and the value at which they do not.
NEUTRAL = {
    "loss_type": "grpo",
    "vllm_importance_sampling_correction": False,
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "delta": None,
}


@dataclass
class ConSPOFields:
    """ConSPO: temperature and margin of its contrast."""

    conspo_temperature: float = field(
        default=10.0,
        metadata={
            "help": "Temperature tau > 0 that scores are divided by, in nats a token. The paper uses 10, where all wrong rollouts weigh "
            "nearly the same; from 1 downwards those with the highest scores weigh more."
        },
    )
    conspo_target_margin: float = field(
        default=0.01,
        metadata={
            "help": "Margin M >= 0 at the end of its schedule, in nats a token. The paper uses 0.01; 0.0 is no margin."
        },
    )
    conspo_margin_warmup_ratio: float = field(
        default=0.3,
        metadata={
            "help": "Share alpha of the training, from 0 to 1, in which the margin grows from 0 to M along half a cosine. The paper uses "
            "0.3; 0.0 is M from the start on."
        },
    )


@dataclass
class ConSPOConfigMixin(ConSPOFields, DynamicSamplingConfigMixin, SuccessFields, ParentConfig):
    r"""
    The fields that ConSPO adds to the configuration of a GRPO-shaped trainer, and other defaults of two that TRL has:
    `loss_type` is `"grpo"` and `vllm_importance_sampling_correction` is `False`. Other values of these are refused,
    since the gradient would not be that of eq. 13; so are other values of `top_entropy_quantile`,
    `off_policy_mask_threshold` and `delta`. Nothing reads `epsilon`, `epsilon_high`, `importance_sampling_level` and
    `scale_rewards`: there is no ratio, no clip and no advantage. With `beta` the KL term is TRL's; in it, too, the
    ratio of `use_bias_correction_kl` is 1, with its gradient.
    """

    loss_type: str = field(
        default="grpo", metadata={"help": "Only 'grpo': ConSPO puts its weights into the mean over rollouts."}
    )
    vllm_importance_sampling_correction: bool = field(
        default=False, metadata={"help": "Only False: the scores of ConSPO have no importance ratio."}
    )

    def __post_init__(self):
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "reward"  # in RL the loss says nothing about which model is best
        super().__post_init__()
        self.check_conspo_fields()

    def check_conspo_fields(self) -> None:
        """Raise a `ValueError` for the first field that cannot work, naming the field and its value."""
        if not 0 < self.conspo_temperature < float("inf"):
            raise ValueError(
                f"`conspo_temperature` is {self.conspo_temperature}, but must be greater than 0, and finite."
            )
        if not 0 <= self.conspo_target_margin < float("inf"):
            raise ValueError(
                f"`conspo_target_margin` is {self.conspo_target_margin}, but must be 0 or greater, and finite."
            )
        if not 0 <= self.conspo_margin_warmup_ratio <= 1:
            raise ValueError(
                f"`conspo_margin_warmup_ratio` is {self.conspo_margin_warmup_ratio}, but must be from 0 to 1."
            )
        for name, value in NEUTRAL.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)!r}, but must be {value!r} for ConSPO, whose gradient has no ratio, no "
                    f"clip and no mask of tokens. Leave `{name}` out, or choose another algorithm."
                )


@dataclass
class ConSPOConfig(ConSPOConfigMixin, GRPOConfig):
    r"""
    Configuration class for the [`ConSPOTrainer`]: every field of `GRPOConfig`, and those of [`ConSPOConfigMixin`],
    listed below. The fields of success are CLIPO's, those of dynamic sampling [`DAPOConfig`]'s.
    """


@dataclass
class CLIPOConSPOConfig(ConSPOConfigMixin, CLIPOConfigMixin, GRPOConfig):
    r"""
    Configuration class for the [`CLIPOConSPOTrainer`]: every field of `GRPOConfig`, of [`CLIPOConfigMixin`] and of
    [`ConSPOConfigMixin`], and one more.

    Parameters:
        conspo_contrastive_scale (`float`, *optional*, defaults to `0.0`):
            Scale k >= 0 of what a right rollout counts for in its group: exp(k r) with r its contrastive reward,
            divided by the sum over the group's right ones. At 0.0 all count the same, as in the paper, and the
            contrastive reward has no effect on the policy. Ours, in neither paper.
    """

    conspo_contrastive_scale: float = field(
        default=0.0,
        metadata={
            "help": "Scale k >= 0: a right rollout counts for exp(k r) in its group, r its contrastive reward. 0.0: all count the same, "
            "and the contrastive reward has no effect on the policy. Ours, in neither paper."
        },
    )

    def check_conspo_fields(self) -> None:
        super().check_conspo_fields()
        if not 0 <= self.conspo_contrastive_scale < float("inf"):
            raise ValueError(
                f"`conspo_contrastive_scale` is {self.conspo_contrastive_scale}, but must be 0 or greater, and finite. Use 0.0 "
                "for right rollouts that all count the same."
            )


ConSPOConfigMixin.__doc__ = with_parameters(
    ConSPOConfigMixin.__doc__, (ConSPOFields, SuccessFields, DynamicSamplingConfigMixin)
)
ConSPOConfig.__doc__ = with_parameters(ConSPOConfig.__doc__, (ConSPOFields, SuccessFields, DynamicSamplingConfigMixin))
