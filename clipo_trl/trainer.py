"""CLIPO (arXiv 2603.10101) on top of TRL's `GRPOTrainer`: one more reward column, and a head that learns beside the policy.

    prompts --TRL--> rollouts --hidden_states.py--> pooled_BH --head.py--> embeddings --losses.py--> loss per rollout
       (or --readout.py--> score per rollout) --rewards.py--> one more reward column --TRL--> policy loss

Axes: B rollouts of this process, N = P * G of all processes, P prompts, G rollouts a prompt, H hidden size, D embedding size.
"""

import copy
import inspect
import textwrap
import time
from collections.abc import Callable

import torch
from accelerate.logging import get_logger
from torch import nn
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import _ForwardRedirection

from .calibration import Calibration
from .capture import CaptureMixin
from .checkpoint import CheckpointMixin
from .config import CLIPOConfig, CLIPOConfigMixin
from .continuous_batching import ContinuousBatchingMixin
from .eval_metrics import EvalMetricsMixin
from .groups import group_means
from .head import ContrastiveHead, check_hidden_size, head_settings, resolve_saved_head
from .hidden_states import HiddenStateReader
from .losses import contrastive_loss
from .mode import ModeMixin
from .readout import similarity_readout
from .rewards import contrastive_reward, readout_reward
from .success import find_success_rule, warn_of
from .train_metrics import AGREEMENT, LOSS, TrainMetricsMixin
from .warmup import WarmupMixin


logger = get_logger(__name__)


def contrastive(completions, **kwargs) -> list[None]:
    """Holds the place of the contrastive reward among TRL's reward functions: gives it a column, a name and a weight."""
    return [None] * len(completions)


class CLIPOMixin(
    ModeMixin,
    WarmupMixin,
    CaptureMixin,
    ContinuousBatchingMixin,
    CheckpointMixin,
    TrainMetricsMixin,
    EvalMetricsMixin,
):
    """
    CLIPO for any trainer that is shaped like `GRPOTrainer`: `class MyTrainer(CLIPOMixin, GMPOTrainer)`, with a
    configuration `class MyConfig(CLIPOConfigMixin, GMPOConfig)`.

    The only change to the parent is one more reward column, `contrastive`. It is filled in training; in evaluation it stays
    empty. Everything after it (advantages, clipping, KL) is the parent's.
    """

    _config_class = CLIPOConfig

    def __init__(self, *args, **kwargs):
        given = self._by_name(*args, **kwargs)
        args = self._with_contrastive_fields(given.get("args"), given.get("model"))
        # First of all: a saved head decides which states are read.
        args, self._saved_head = resolve_saved_head(args)
        given["args"] = args
        self._refuse_images(given.get("train_dataset"))
        weights = args.reward_weights
        self._place_column(given)
        super().__init__(**given)
        self.args.reward_weights = weights
        self._success_columns = self._find_success_columns()
        self._step_column = self._find_step_column()
        if self.multi_objective_aggregation == "normalize_then_sum" and self.args.contrastive_reward_weight > 0:
            logger.warning(
                "`multi_objective_aggregation='normalize_then_sum'` divides each reward by its own standard deviation: "
                "`contrastive_reward_weight` acts through the floor only, and the contrastive reward counts as much as any "
                "other. Use 'sum_then_normalize' for the paper's method."
            )
        if (self.args.contrastive_reward_type, self.args.contrastive_debias) == ("similarity_gap", "group_center"):
            logger.warning(
                "`contrastive_debias='group_center'` turns the mean of a group's wrong rollouts into that of its correct ones "
                "with the sign changed: `contrastive_reward_type='similarity_gap'` then says little that 'agreement' does not. "
                "Leave one of them out."
            )

        self._reader = HiddenStateReader(self.accelerator.unwrap_model(self.model), self.args.contrastive_layer)
        self._way = self._choose_way()
        self._forward_redirection = _ForwardRedirection()
        self.contrastive_head = self._make_head().to(self.accelerator.device)
        self._head_optimizer = torch.optim.AdamW(
            self.contrastive_head.parameters(),
            lr=self.args.contrastive_learning_rate,
            weight_decay=self.args.contrastive_weight_decay,
        )
        # InfoNCE's draw is the same on every process, and leaves the global random state alone.
        self._draw_generator = torch.Generator().manual_seed(self.args.seed)
        self._calibration = Calibration()
        self._plan_warmup()
        self._n_generation_batches = 0  # scored so far in training: the warm-up counts them
        self._tokens = self._pooled_BH = None

    # ------------------------------------------------------------------ construction

    @classmethod
    def _by_name(cls, *args, **kwargs) -> dict:
        """Arguments of the parent, by its own names and places: a subclass of `GRPOTrainer` may have others."""
        for parent in cls.__mro__[cls.__mro__.index(CLIPOMixin) + 1 :]:
            if "__init__" in vars(parent):
                signature = inspect.signature(parent.__init__)
                if "reward_funcs" in signature.parameters:
                    _, *given = signature.bind(None, *args, **kwargs).arguments.items()
                    by_name = {}
                    for name, value in given:
                        is_rest = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
                        by_name.update(value if is_rest else {name: value})
                    return by_name
        raise TypeError(
            f"`{cls.__name__}` has no parent with an argument `reward_funcs`. Put `CLIPOMixin` before a trainer that is shaped like "
            "`GRPOTrainer`."
        )

    def _place_column(self, given: dict) -> None:
        """Give the contrastive reward a column, a weight and a processing class, without touching the caller's lists."""
        reward_funcs, args = given.get("reward_funcs"), given["args"]
        reward_funcs = [] if reward_funcs is None else reward_funcs
        reward_funcs = [*reward_funcs] if isinstance(reward_funcs, list | tuple) else [reward_funcs]
        self._column = len(reward_funcs)
        given["reward_funcs"] = [*reward_funcs, contrastive]
        if args.reward_weights is not None:
            self._check_length("reward_weights", args.reward_weights)
            given["args"] = copy.copy(args)
            # lambda is applied before the floor, so the column weighs 1
            given["args"].reward_weights = [*args.reward_weights, 1.0]
        classes = given.get("reward_processing_classes")
        if classes is not None:
            classes = classes if isinstance(classes, list) else [classes]
            self._check_length("reward_processing_classes", classes)
            given["reward_processing_classes"] = [*classes, None]

    def _check_length(self, name: str, values: list) -> None:
        if len(values) != self._column:
            raise ValueError(
                f"`{name}` has {len(values)} entries, but `reward_funcs` has {self._column}: give one for each of your reward "
                "functions, in their order. CLIPO's own column takes care of itself."
            )

    def _with_contrastive_fields(self, args, model) -> CLIPOConfigMixin:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            return self._config_class(f"{name.rstrip('/').split('/')[-1]}-{self._name}")
        if isinstance(args, CLIPOConfigMixin):
            return args
        if isinstance(args, GRPOConfig) and issubclass(self._config_class, type(args)):
            name = self._config_class.__name__
            logger.info(
                f"`args` is a `{type(args).__name__}`: CLIPO's fields take their defaults. Pass a `{name}` to set them."
            )
            return self._config_class.from_grpo_config(args)
        raise TypeError(
            f"`args` is a `{type(args).__name__}`, which has no contrastive fields. Pass a `CLIPOConfig`, a `GRPOConfig`, or "
            f"an instance of `class MyConfig(CLIPOConfigMixin, {type(args).__name__})` decorated with `@dataclass`, which the "
            "trainer can name as its `_config_class`."
        )

    @staticmethod
    def _refuse_images(train_dataset) -> None:
        found = {"image", "images"} & set(getattr(train_dataset, "column_names", None) or [])
        if found:
            raise ValueError(
                f"`train_dataset` has the column {found.pop()!r}, but CLIPO reads the hidden states of text rollouts only. "
                "Remove the column, or train with `GRPOTrainer`."
            )

    def _find_success_columns(self) -> list[int]:
        """Columns of the reward functions that decide success; environments may have added columns after ours."""
        names = {column: name for column, name in enumerate(self.reward_func_names) if column != self._column}
        if not names:
            raise ValueError("`reward_funcs` is empty. CLIPO needs a verifiable reward to tell correct rollouts.")
        if contrastive.__name__ in names.values():
            raise ValueError(
                f"A reward function is named {contrastive.__name__!r}, the name of CLIPO's own column. Rename it."
            )
        weights = dict(zip(names.values(), self.reward_weights[list(names)].tolist(), strict=True))
        args = self.args
        self.success_rule = find_success_rule(weights, args.contrastive_success_rewards, args.contrastive_step_reward)
        warn_of(self.success_rule, args.contrastive_success_threshold)
        return [column for column, name in names.items() if name in self.success_rule.names]

    def _find_step_column(self) -> int | None:
        """Column of the reward function that checks the steps, if there is one."""
        name = self.args.contrastive_step_reward
        names = {other: column for column, other in enumerate(self.reward_func_names) if column != self._column}
        if name is not None and name not in names:
            raise ValueError(
                f"`contrastive_step_reward` is {name!r}, but must be the name of a reward function. Choose from {list(names)}."
            )
        return names.get(name)

    def _make_head(self) -> ContrastiveHead:
        hidden_size = self._reader.hidden_size
        if self._saved_head is None:
            return ContrastiveHead(hidden_size, seed=self.args.seed, **head_settings(self.args))
        check_hidden_size(self._saved_head, hidden_size, self.args.contrastive_head_path)
        return self._saved_head.train()

    # ------------------------------------------------------------------ reward and head

    def _generate_and_score_completions(self, inputs):
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self._tokens = self._pooled_BH = None
            # The column is empty in evaluation: no mean to log.
            self._metrics["eval"].pop(f"rewards/{contrastive.__name__}/mean", None)
            self._metrics["eval"].pop(f"rewards/{contrastive.__name__}/std", None)

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if self._evaluating:
            self._add_to_completions_table(len(prompts))
            self._keep_test_rewards(rewards_per_func)
            return rewards_per_func
        start = time.perf_counter()
        pooled_BH = self._forward_pooled() if self._pooled_BH is None else self._pooled_BH
        pooled_BH = pooled_BH.to(self.accelerator.device)
        rewards_per_func[:, self._column] = self._contrastive_column(rewards_per_func, pooled_BH)
        self._n_generation_batches += 1
        self._log_contrastive("seconds", time.perf_counter() - start)
        return rewards_per_func

    def _contrastive_column(self, rewards_per_func: torch.Tensor, pooled_BH: torch.Tensor) -> torch.Tensor:
        """
        Score a generation batch, and let the head learn from it.

        Args:
            rewards_per_func (`torch.Tensor` of shape `(N, number of reward functions)`): of all processes.
            pooled_BH (`torch.Tensor` of shape `(B, H)`): pooled hidden states of this process.

        Returns:
            `torch.Tensor` of shape `(N,)`: contrastive reward; NaN where none could be given, as TRL has it.
        """
        self._check_heads_agree()
        args, G = self.args, self.num_generations
        success_rewards = rewards_per_func[:, self._success_columns]
        success_weights = self.reward_weights.to(success_rewards.device)[self._success_columns]
        correct_PG = ((success_rewards * success_weights).nansum(1) > args.contrastive_success_threshold).view(-1, G)
        unscorable_N = success_rewards.isnan().all(1)

        first = self.accelerator.process_index * len(pooled_BH)
        local = slice(first, first + len(pooled_BH))
        has_state_B = pooled_BH.isfinite().all(1) & pooled_BH.ne(0).any(1)
        pooled_BH = pooled_BH.masked_fill(~(has_state_B & ~unscorable_N[local]).unsqueeze(1), 0.0)
        embeddings_BD = self._embed(pooled_BH, has_state_B & ~unscorable_N[local])
        # Hidden states stay on their process. Embeddings meet as a leaf: its gradient is the same on every process, and
        # each takes the part of its own rollouts on to the head.
        embeddings_ND = self.accelerator.gather(embeddings_BD.detach())
        has_state_N = self.accelerator.gather(has_state_B) & embeddings_ND.isfinite().all(1)
        valid_PG = (has_state_N & ~unscorable_N).view(-1, G)
        embeddings_ND.requires_grad_()
        loss_PG, is_anchor_PG = contrastive_loss(
            embeddings_ND.view(-1, G, embeddings_ND.size(1)),
            correct_PG,
            valid_PG=valid_PG,
            loss_type=args.contrastive_loss_type,
            similarity=args.contrastive_similarity,
            temperature=args.contrastive_temperature,
            level=args.contrastive_level,
            anchors=args.contrastive_anchors,
            generator=self._draw_generator,
        )
        reward_settings = {
            "weight": args.contrastive_reward_weight,
            "offset": args.contrastive_reward_offset,
            "floor": args.contrastive_reward_floor,
        }
        if args.contrastive_reward_type == "loss":
            reward_PG, is_paid_PG = (
                contrastive_reward(loss_PG, correct_PG, **reward_settings),
                is_anchor_PG & correct_PG,
            )
            is_cut_PG = reward_PG <= args.contrastive_reward_floor
        else:
            score_PG, is_paid_PG = similarity_readout(
                embeddings_ND.view(*correct_PG.shape, -1),
                correct_PG,
                valid_PG=valid_PG,
                reward_type=args.contrastive_reward_type,
                level=args.contrastive_level,
            )
            reward_PG = readout_reward(score_PG, correct_PG, **reward_settings)
            is_cut_PG = (reward_PG - args.contrastive_reward_offset).abs() >= -args.contrastive_reward_floor
        steps_PG = None if self._step_column is None else rewards_per_func[:, self._step_column].view(-1, G)
        if args.contrastive_calibration:
            trust = self._calibration.update(reward_PG, is_paid_PG & (steps_PG > 0), is_paid_PG & (steps_PG <= 0))
            reward_PG = args.contrastive_reward_offset + trust * (reward_PG - args.contrastive_reward_offset)
            self._log_contrastive("trust", trust)
            self._log_contrastive("checked_pairs", self._calibration.n_pairs)
        if is_anchor_PG.any() and not args.freeze_contrastive_head:
            (loss_PG.sum() / is_anchor_PG.sum()).backward()
            self._step_head(embeddings_BD, embeddings_ND.grad[local])

        embeddings_PGD = embeddings_ND.detach().view(*correct_PG.shape, -1)
        self._log_rollouts(
            loss_PG.detach(),
            is_anchor_PG,
            reward_PG,
            is_paid_PG,
            is_cut_PG,
            correct_PG,
            valid_PG,
            embeddings_PGD,
            pooled_BH,
        )
        agreement_PG, is_scored_PG = similarity_readout(embeddings_PGD, correct_PG, valid_PG=valid_PG)
        scores_PG = {
            LOSS: loss_PG.where(is_anchor_PG, torch.nan),
            AGREEMENT: agreement_PG.where(is_scored_PG, torch.nan),
        }
        self._add_to_completions_table(
            len(pooled_BH), {name: values.detach().flatten()[local] for name, values in scores_PG.items()}
        )
        if steps_PG is not None:
            self._log_sound_and_lucky(steps_PG, reward_PG, agreement_PG, is_scored_PG, correct_PG, valid_PG, pooled_BH)
        if self._in_warmup() and args.contrastive_warmup_policy == "verifiable_reward":
            reward_PG = torch.zeros_like(reward_PG)
        return reward_PG.masked_fill(~valid_PG, torch.nan).flatten()

    @torch.enable_grad()
    def _embed(self, pooled_BH: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of this process; invalid rows of `pooled_BH` are zero."""
        mean = None
        if self.contrastive_head.debias == "mean_subtract":
            sum_H = self.accelerator.reduce(pooled_BH.sum(0), "sum")
            mean = sum_H / self.accelerator.reduce(valid_B.sum().float(), "sum").clamp(min=1)
        elif self.contrastive_head.debias == "group_center":
            mean = group_means(pooled_BH, valid_B, self.num_generations, self.accelerator)
        return self.contrastive_head(pooled_BH, mean)

    def _step_head(self, embeddings_BD: torch.Tensor, gradient_BD: torch.Tensor) -> None:
        """One AdamW step of the head on the loss over all processes, given its gradient at this process' embeddings."""
        embeddings_BD.backward(gradient_BD)
        parameters = list(self.contrastive_head.parameters())
        for parameter in parameters:
            parameter.grad = self.accelerator.reduce(parameter.grad, "sum")
        norm = nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        self._log_contrastive("head_grad_norm", norm.item())
        if norm.isfinite():  # a state may be finite and its projection not
            self._head_optimizer.step()
        self._head_optimizer.zero_grad()


class CLIPOTrainer(CLIPOMixin, GRPOTrainer):
    """
    Trainer for Contrastive Learning in Policy Optimization (CLIPO, https://huggingface.co/papers/2603.10101).

    The only change w.r.t. `GRPOTrainer` is one more reward, `contrastive`: a head embeds each rollout's pooled last hidden
    states, a contrastive loss pulls the correct rollouts of a group together and away from the wrong ones, and that loss
    is taken off their reward. The head learns from the same loss, with its own optimizer, one step a generation batch. With
    `contrastive_reward_weight=0.0` the policy is trained exactly as by `GRPOTrainer`.

    Args:
        args ([`CLIPOConfig`] or `GRPOConfig`, *optional*):
            Configuration. A plain `GRPOConfig` gets CLIPO's defaults; `None` gets the defaults of [`CLIPOConfig`].
        model, reward_funcs, train_dataset, ...:
            As in `GRPOTrainer`. Datasets with images are refused.

    Attributes:
        contrastive_head ([`ContrastiveHead`]): the head, saved in `contrastive_head/` beside the model.
        success_rule ([`SuccessRule`]): the rewards that decide which rollouts are correct, and how they were chosen.
    """

    _tag_names = ["trl", "grpo", "clipo"]
    _name = "CLIPO"
    _paper = {
        "title": "CLIPO: Contrastive Learning in Policy Optimization Generalizes RLVR",
        "id": "2603.10101",
        # docstyle-ignore
        "citation": textwrap.dedent("""\
            @article{cui2026clipo,
                title        = {{CLIPO: Contrastive Learning in Policy Optimization Generalizes RLVR}},
                author       = {Cui and others},
                year         = 2026,
                eprint       = {arXiv:2603.10101},
            }"""),
    }

    def __init__(
        self,
        model,
        reward_funcs=None,
        args: CLIPOConfig | GRPOConfig | None = None,
        train_dataset=None,
        eval_dataset=None,
        processing_class=None,
        reward_processing_classes=None,
        callbacks=None,
        optimizers=(None, None),
        quantization_config=None,
        peft_config=None,
        tools: list[Callable] | None = None,
        rollout_func=None,
        environment_factory=None,
    ):
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            reward_processing_classes=reward_processing_classes,
            callbacks=callbacks,
            optimizers=optimizers,
            quantization_config=quantization_config,
            peft_config=peft_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
