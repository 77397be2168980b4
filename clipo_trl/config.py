"""Configuration of CLIPO: the fields that it adds to `GRPOConfig`, and their checks.

Symbols are those of the CLIPO paper (arXiv 2603.10101): tau temperature, lambda reward weight, b reward offset, G
rollouts of one prompt, H hidden size of the policy, D embedding size.
"""

import copy
import inspect
import textwrap
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from transformers.utils import logging
from trl import GRPOConfig

from .beyond_the_paper_config import (
    BASELINES,
    REWARD_TYPES,
    SCHEDULES,
    SCORE_SCALES,
    SIMILARITY_SCORES,
    TOKEN_SCORES,
    BeyondThePaperFields,
)
from .dynamic_sampling_config import DynamicSamplingConfigMixin
from .value_checks import RANGES, check_choice, check_number


if TYPE_CHECKING:
    from .parent_shapes import GRPOArguments as ParentConfig  # whose fields the mixin's checks read
else:
    ParentConfig = object

logger = logging.get_logger(__name__)

LOSS_TYPES = ("infonce", "supcon_out", "supcon_in", "soft_nn")
SIMILARITIES = ("cosine", "l2", "negative_cosine")
LEVELS = ("group", "cross", "batch")
ANCHORS = ("correct", "incorrect", "all")
HEAD_TYPES = ("linear", "mlp")
DEBIAS = (None, "layer_norm", "mean_subtract", "group_center")
POOLINGS = ("mean", "last")
WARMUP_POLICIES = ("frozen", "verifiable_reward")


# The fields, in groups. Each is described once, in its help: `--help` shows it, and the end of this file puts it into
# docstrings. Both add the default. argparse formats help with `%`, so a percent sign would have to be `%%` there:
# write "percent".


@dataclass
class MethodFields:
    """The method of the paper: the loss of a rollout, and the reward that is made of it."""

    contrastive_loss_type: str = field(
        default="infonce",
        metadata={
            "help": 'Loss L per rollout: "infonce" (one positive drawn at random), "supcon_out" (its expectation over the '
            'draw), "supcon_in" or "soft_nn".',
            "choices": LOSS_TYPES,
        },
    )
    contrastive_similarity: str = field(
        default="cosine",
        metadata={
            "help": 'Similarity of two embeddings: "cosine", "l2" (1 - Euclidean distance) or "negative_cosine".',
            "choices": SIMILARITIES,
        },
    )
    contrastive_temperature: float = field(
        default=0.05,
        metadata={"help": "Temperature tau > 0 that similarities are divided by. The paper uses 0.05."},
    )
    contrastive_level: str = field(
        default="group",
        metadata={
            "help": 'Where positives and all others of an anchor come from: "group" (both from its group), "cross" '
            '(positives from its group, others from the whole generation batch) or "batch" (both from the batch).',
            "choices": LEVELS,
        },
    )
    contrastive_anchors: str = field(
        default="correct",
        metadata={"help": 'Rollouts that have a loss: "correct", "incorrect" or "all".', "choices": ANCHORS},
    )
    contrastive_reward_weight: float = field(
        default=0.2,
        metadata={
            "help": "Weight lambda >= 0 of the loss, or of the agreement in its place, in the contrastive reward. 0.0 (with "
            "offset 0.0) is GRPO, bit for bit; the head is still trained and its metrics logged. The paper uses 0.2. With "
            '`multi_objective_aggregation="normalize_then_sum"` only its effect on the floor remains.'
        },
    )
    contrastive_reward_offset: float = field(
        default=0.0,
        metadata={
            "help": "Constant b of the contrastive reward, before the floor. Rollouts that are left out get none. The paper "
            "uses 0."
        },
    )
    contrastive_reward_floor: float = field(
        default=-0.5,
        metadata={
            "help": "Lowest contrastive reward, at most 0. The reference uses -0.5. The reward of an agreement stays within as "
            "much of the offset, above and below. With offset 0, a correct rollout stays above a wrong one if its verifiable "
            "reward is higher by more than the floor is deep."
        },
    )


@dataclass
class HeadFields:
    """The head: what it reads, what it is, and its optimizer."""

    contrastive_pooling: str = field(
        default="mean",
        metadata={
            "help": '"mean" of the hidden states of the completion\'s tokens but the last (the paper\'s way), or the "last" of '
            "them (beyond the paper).",
            "choices": POOLINGS,
        },
    )
    contrastive_layer: int = field(
        default=-1,
        metadata={
            "help": "-1 reads the states after the final norm, which the LM head reads (the paper's way). k reads the output of "
            "decoder layer k, counted from 0; -2 and below count from the end as Python does (both beyond the paper)."
        },
    )
    contrastive_debias: str | None = field(
        default=None,
        metadata={
            "help": 'What is taken off the pooled states before the head: None, "layer_norm" (LayerNorm without affine over H), '
            '"mean_subtract" (the mean over the generation batch, all processes; the last one is saved with the head) or '
            '"group_center" (the mean over the group, which takes out what all answers to one prompt share; beyond the paper).'
        },
    )
    contrastive_head_type: str = field(
        default="linear",
        metadata={
            "help": '"linear" (H -> D) or "mlp" (H -> H, ReLU, H -> D), both without bias.',
            "choices": HEAD_TYPES,
        },
    )
    contrastive_embedding_dim: int = field(
        default=512,
        metadata={"help": "Size D of the embeddings. The paper uses 512 (GSM8K) and 2048 (MATH)."},
    )
    contrastive_learning_rate: float = field(
        default=1e-3,
        metadata={
            "help": "Constant learning rate of the head's own AdamW, apart from the policy's optimizer and schedule. The "
            "reference uses 0.001."
        },
    )
    contrastive_weight_decay: float = field(
        default=0.01,
        metadata={"help": "Weight decay of the head's AdamW. The reference uses 0.01."},
    )
    contrastive_head_path: str | None = field(
        default=None,
        metadata={
            "help": "Saved head to start from: its folder, a model folder that has it in `contrastive_head/`, or the Hub id of "
            "either. The saved head's own type, size, debias, pooling and layer are used. Setting one of the first three to "
            "something else is warned of; setting pooling or layer to something else is an error."
        },
    )
    freeze_contrastive_head: bool = field(
        default=False,
        metadata={
            "help": "Never update the head. Without `contrastive_head_path` it stays the random projection that it starts as."
        },
    )


@dataclass
class WarmupFields:
    """Warm-up: batches in which the head learns first."""

    contrastive_warmup_steps: int = field(
        default=0,
        metadata={
            "help": "Number W of generation batches (each is one step of the head) during which only the head learns from the "
            "contrastive loss. The paper uses 14 (GSM8K) and 58 (MATH): one epoch. A frozen policy waits for whole optimizer "
            "steps, and the learning rate's schedule waits with it."
        },
    )
    contrastive_warmup_policy: str = field(
        default="frozen",
        metadata={
            "help": 'The policy during warm-up: "frozen" (no forward, no backward, weights untouched; the paper\'s way) or '
            '"verifiable_reward" (it trains on the verifiable reward alone; beyond the paper).',
            "choices": WARMUP_POLICIES,
        },
    )


@dataclass
class SuccessFields:
    """Success: which rollouts are correct."""

    contrastive_success_rewards: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the reward functions whose weighted sum decides whether a rollout is correct. Default: those known "
            "to tell whether the answer is right (`verifiable_reward`, `math_accuracy_reward`, `multiple_choice_reward`, TRL's "
            "`accuracy_reward` and `reasoning_accuracy_reward`); where there is none, all but `contrastive_step_reward`. A "
            "reward for the format among those makes wrong answers count as correct."
        },
    )
    contrastive_success_threshold: float = field(
        default=0.0,
        metadata={"help": "A rollout is correct if that sum is greater than this. The reference uses 0."},
    )


@dataclass
class CLIPOConfigMixin(  # a dataclass lists the fields of its last base first
    DynamicSamplingConfigMixin,
    BeyondThePaperFields,
    SuccessFields,
    WarmupFields,
    HeadFields,
    MethodFields,
    ParentConfig,
):
    r"""
    The fields that CLIPO adds to the configuration of a GRPO-shaped trainer. [`CLIPOConfig`] is this mixin over
    `GRPOConfig`; put it before another trainer's configuration to use [`CLIPOMixin`] there.
    """

    def __post_init__(self):
        if self.load_best_model_at_end and self.metric_for_best_model is None:
            self.metric_for_best_model = "reward"  # verifiable: in evaluation there is no contrastive reward
        super().__post_init__()
        self.check_contrastive_fields()

    def check_contrastive_fields(self) -> None:
        """Raise a `ValueError` for the first field of CLIPO's that cannot work, naming the field and its value."""
        self.check_dynamic_sampling_fields()
        self._check_choices()
        self._check_numbers()
        self._check_reward()
        self._check_group_size()
        self._check_head_and_warmup()

    @classmethod
    def from_grpo_config(cls, args: GRPOConfig) -> Any:
        """
        Return a copy of a parent's configuration (already checked by its own class), such as a plain `GRPOConfig`, as
        one of this class; the fields that the parent lacks take their defaults.
        """
        config: Any = copy.copy(
            args
        )  # a shallow copy, not a new instance: `GRPOConfig` derives fields from each other
        for new in fields(cls):
            if new.name not in vars(args):
                setattr(config, new.name, new.default if new.default_factory is MISSING else new.default_factory())
        config.__class__ = cls
        if config.load_best_model_at_end and config.metric_for_best_model == "loss":
            # What `GRPOConfig` fills in; in RL the loss says nothing about which model is best.
            config.metric_for_best_model, config.greater_is_better = "reward", True
        config.check_contrastive_fields()
        return config

    def _check_choices(self) -> None:
        check_choice("contrastive_loss_type", self.contrastive_loss_type, LOSS_TYPES)
        check_choice("contrastive_similarity", self.contrastive_similarity, SIMILARITIES)
        check_choice("contrastive_level", self.contrastive_level, LEVELS)
        check_choice("contrastive_anchors", self.contrastive_anchors, ANCHORS)
        check_choice("contrastive_reward_type", self.contrastive_reward_type, REWARD_TYPES)
        check_choice("contrastive_score_scale", self.contrastive_score_scale, SCORE_SCALES)
        check_choice("contrastive_baseline", self.contrastive_baseline, BASELINES)
        check_choice("contrastive_reward_schedule", self.contrastive_reward_schedule, SCHEDULES)
        check_choice("contrastive_head_type", self.contrastive_head_type, HEAD_TYPES)
        check_choice("contrastive_debias", self.contrastive_debias, DEBIAS)
        check_choice("contrastive_warmup_policy", self.contrastive_warmup_policy, WARMUP_POLICIES)
        check_choice("contrastive_pooling", self.contrastive_pooling, POOLINGS)

    def _check_numbers(self) -> None:
        for name in (name for names in RANGES.values() for name in names):
            check_number(name, getattr(self, name))

    def _check_reward(self) -> None:
        if self.contrastive_reward_offset < self.contrastive_reward_floor:
            raise ValueError(
                f"`contrastive_reward_offset` ({self.contrastive_reward_offset}) is below `contrastive_reward_floor` "
                f"({self.contrastive_reward_floor}), so every contrastive reward would be the floor. Lower the floor."
            )
        if self.contrastive_reward_type in SIMILARITY_SCORES and self.contrastive_similarity != "cosine":
            raise ValueError(
                f"`contrastive_reward_type={self.contrastive_reward_type!r}` is a mean of cosines, but "
                f"`contrastive_similarity` is {self.contrastive_similarity!r}. Set it to 'cosine', or the reward type to "
                "'loss'."
            )
        if self.contrastive_score_scale is not None and self.contrastive_reward_type == "loss":
            raise ValueError(
                f"`contrastive_score_scale` is {self.contrastive_score_scale!r}, but `contrastive_reward_type='loss'` pays the loss as it "
                "is. Leave it out, or choose a reward type that is a score."
            )
        self._check_baseline_and_positives()
        if self.contrastive_calibration and self.contrastive_step_reward is None:
            raise ValueError(
                "`contrastive_calibration` is True, but `contrastive_step_reward` is None. Name the reward function that checks "
                "the steps; it may return None for most rollouts."
            )

    def _check_baseline_and_positives(self) -> None:
        if self.contrastive_baseline is not None and self.contrastive_reward_type != "loss":
            raise ValueError(
                f"`contrastive_baseline` is {self.contrastive_baseline!r}, which is taken off the loss, but "
                f"`contrastive_reward_type={self.contrastive_reward_type!r}` pays no loss. Leave out one of the two."
            )
        if self.contrastive_baseline is not None and self.contrastive_loss_type == "soft_nn":
            raise ValueError(
                f"`contrastive_baseline` is {self.contrastive_baseline!r}, but `contrastive_loss_type='soft_nn'` costs a group "
                "in one point nothing, so there is nothing to take off. Set `contrastive_baseline` to None."
            )
        if self.contrastive_num_positives > 1 and self.contrastive_loss_type != "infonce":
            raise ValueError(
                f"`contrastive_num_positives` is {self.contrastive_num_positives}, but "
                f"`contrastive_loss_type={self.contrastive_loss_type!r}` uses all positives. Set it to 1, or the loss to 'infonce'."
            )

    def _check_group_size(self) -> None:
        in_group = self.contrastive_level == "group" or (
            self.contrastive_level == "cross" and self.contrastive_reward_type == "agreement"
        )
        if in_group and self.num_generations < 3:
            raise ValueError(
                f"`contrastive_level={self.contrastive_level!r}` needs `num_generations` of 3 or more, for an anchor, a positive and a "
                f"negative in one group, but it is {self.num_generations}. Raise `num_generations`, or choose "
                "a `contrastive_level` that looks beyond it."
            )

    def _check_head_and_warmup(self) -> None:
        if self.freeze_contrastive_head and self.contrastive_warmup_steps > 0:
            raise ValueError(
                f"`contrastive_warmup_steps` is {self.contrastive_warmup_steps} while `freeze_contrastive_head` is "
                "True: a frozen head has nothing to learn in a warm-up. Set one of the two."
            )
        is_read = self.contrastive_reward_type not in TOKEN_SCORES  # which leave the head without a say
        if self.freeze_contrastive_head and self.contrastive_head_path is None and is_read:
            logger.warning(
                "`freeze_contrastive_head` is True, but `contrastive_head_path` is None: the head is a random projection, which "
                "nothing trains. To freeze a head that was trained, set `contrastive_head_path` to a saved one, a folder "
                "or a Hub id."
            )
        if self.fp16 and self.contrastive_warmup_steps > 0 and self.contrastive_warmup_policy == "frozen":
            # The gradient scaler of fp16 cannot step without gradients.
            raise ValueError(
                "`contrastive_warmup_policy='frozen'` does not work with `fp16=True`. Use `bf16=True`, or "
                "`contrastive_warmup_policy='verifiable_reward'`."
            )


@dataclass
class CLIPOConfig(CLIPOConfigMixin, GRPOConfig):
    r"""
    Configuration class for the [`CLIPOTrainer`]: every field of `GRPOConfig`, and those of [`CLIPOConfigMixin`],
    listed below. With `contrastive_reward_weight=0.0` the policy is trained by GRPO, bit for bit.

    One default is another: with `load_best_model_at_end`, the best model is the one of the highest evaluation
    `reward`.
    """


def warn_of_combinations(args: Any) -> None:
    """Warn of fields of a GRPO-shaped trainer's configuration that work, but hardly as meant when they meet."""
    pays = args.contrastive_reward_weight > 0 and args.contrastive_reward_type == "loss"
    if pays and args.contrastive_anchors == "incorrect":
        logger.warning(
            "`contrastive_anchors='incorrect'` gives correct rollouts no loss, and `contrastive_reward_type='loss'` pays none "
            f"but theirs: the contrastive reward is the same for all, whatever `contrastive_reward_weight` "
            f"({args.contrastive_reward_weight:g}) is. Anchor 'correct' or 'all', or pay another score."
        )
    if args.multi_objective_aggregation == "normalize_then_sum" and args.contrastive_reward_weight > 0:
        logger.warning(
            "`multi_objective_aggregation='normalize_then_sum'` divides each reward by its own standard deviation: "
            "`contrastive_reward_weight` acts through the floor only, and the contrastive reward counts as much as any "
            "other. Use 'sum_then_normalize' for the paper's method."
        )
    if (args.contrastive_reward_type, args.contrastive_debias) == ("similarity_gap", "group_center"):
        logger.warning(
            "`contrastive_debias='group_center'` turns the mean of a group's wrong rollouts into that of its correct ones "
            "with the sign changed: `contrastive_reward_type='similarity_gap'` then says little that 'agreement' does not. "
            "Leave one of them out."
        )


FIELD_GROUPS = tuple(base for base in reversed(CLIPOConfigMixin.__bases__) if base is not object)


def with_parameters(docstring: str | None, groups: tuple[type, ...] = FIELD_GROUPS) -> str:
    """Return `docstring` with a section "Parameters": the fields of each group, with type, default and description."""
    entries = []
    for group in groups:
        entries += [f"    > {group.__doc__}\n", *map(_describe, fields(group))]
    return "\n".join([inspect.cleandoc(docstring or ""), "", "Parameters:", *entries])


def _describe(parameter: Field) -> str:
    kind = parameter.type.__name__ if type(parameter.type) is type else str(parameter.type).removesuffix(" | None")
    line = f"    {parameter.name} (`{kind}`, *optional*"
    if parameter.default is not None:
        default = f'"{parameter.default}"' if isinstance(parameter.default, str) else parameter.default
        line += f", defaults to `{default}`"
    text = textwrap.wrap(parameter.metadata["help"], width=111, break_long_words=False, break_on_hyphens=False)
    return "\n".join([f"{line}):", *(f"        {words}" for words in text), ""])


CLIPOConfigMixin.__doc__ = with_parameters(CLIPOConfigMixin.__doc__)
CLIPOConfig.__doc__ = with_parameters(CLIPOConfig.__doc__)
