"""CLIPO (arXiv 2603.10101) on top of TRL's `GRPOTrainer`: one more reward column, and a head that learns beside the policy.

    prompts --TRL--> rollouts --hidden_states.py--> pooled_BH --head.py--> embeddings --losses.py--> loss per rollout
       --contrastive_reward.py--> one more reward column --TRL--> advantages --> policy loss

Axes: B rollouts of this process, N = P * G of all processes, P prompts, G rollouts a prompt, H hidden size, D embedding size.
"""

import copy
import inspect
import textwrap
import time
from contextlib import nullcontext

import torch
from accelerate.logging import get_logger
from torch import nn
from trl import GRPOConfig, GRPOTrainer
from trl.models.utils import _ForwardRedirection

from .checkpoint import CheckpointMixin
from .config import CLIPOConfig, CLIPOConfigMixin
from .contrastive_reward import contrastive_reward
from .eval_metrics import EvalMetricsMixin
from .head import ContrastiveHead, load_head
from .hidden_states import (
    DecodePooler,
    ForwardPooler,
    HiddenStateReader,
    RolloutTokens,
    left_padded_reads,
    right_padded,
)
from .losses import contrastive_loss
from .metrics import in_groups, pair_cosines, rollout_metrics


logger = get_logger(__name__)


def contrastive(completions, **kwargs) -> list[None]:
    """Holds the place of the contrastive reward among TRL's reward functions: gives it a column, a name and a weight."""
    return [None] * len(completions)


class CLIPOMixin(CheckpointMixin, EvalMetricsMixin):
    """
    CLIPO for any trainer that is shaped like `GRPOTrainer`: `class MyTrainer(CLIPOMixin, GMPOTrainer)`, with a
    configuration `class MyConfig(CLIPOConfigMixin, GMPOConfig)`.

    The only change to the parent is one more reward column, `contrastive`. It is filled in training; in evaluation it stays
    empty. Everything after it (advantages, clipping, KL) is the parent's.
    """

    _config_class = CLIPOConfig

    def __init__(self, model, reward_funcs=None, args=None, *positional, **kwargs):
        # The parent takes the rest by keyword or by place; here it is looked at by name.
        names = list(inspect.signature(GRPOTrainer.__init__).parameters)[4:]
        kwargs.update(zip(names, positional, strict=False))
        args = self._with_contrastive_fields(args, model)
        self._refuse_images(kwargs.get("train_dataset"))

        # Place the column, without touching the caller's lists.
        reward_funcs = [] if reward_funcs is None else reward_funcs
        reward_funcs = [*reward_funcs] if isinstance(reward_funcs, list) else [reward_funcs]
        self._column = len(reward_funcs)
        weights = args.reward_weights
        if weights is not None:
            args = copy.copy(args)
            args.reward_weights = [*weights, 1.0]  # lambda is applied before the floor, so the column weighs 1
        processing_classes = kwargs.get("reward_processing_classes")
        if processing_classes is not None:
            if not isinstance(processing_classes, list):
                processing_classes = [processing_classes]
            kwargs["reward_processing_classes"] = [*processing_classes, None]

        super().__init__(model, [*reward_funcs, contrastive], args, **kwargs)
        self.args.reward_weights = weights
        self._success_columns = self._find_success_columns()
        if self.multi_objective_aggregation == "normalize_then_sum" and self.args.contrastive_reward_weight > 0:
            logger.warning(
                "`multi_objective_aggregation='normalize_then_sum'` divides each reward by its own standard deviation: "
                "`contrastive_reward_weight` acts through the floor only, and the contrastive reward counts as much as any "
                "other. Use 'sum_then_normalize' for the paper's method."
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
        self._n_generation_batches = 0  # scored so far in training: the warm-up counts them
        self._tokens = self._pooled_BH = None

    # ------------------------------------------------------------------ construction

    def _with_contrastive_fields(self, args, model) -> CLIPOConfigMixin:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            return self._config_class(f"{name.rstrip('/').split('/')[-1]}-{self._name}")
        if isinstance(args, CLIPOConfigMixin):
            return args
        if type(args) is GRPOConfig:
            config = CLIPOConfig.from_grpo_config(args)
            logger.info(
                "`args` is a `GRPOConfig`: CLIPO's fields take their defaults. Pass a `CLIPOConfig` to set them."
            )
            return config
        raise TypeError(
            f"`args` is a `{type(args).__name__}`, which has no contrastive fields. Pass a `CLIPOConfig`, a `GRPOConfig`, or "
            f"an instance of `class MyConfig(CLIPOConfigMixin, {type(args).__name__})` decorated with `@dataclass`."
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
        wanted = self.args.contrastive_success_rewards
        if wanted is None:
            wanted = list(names.values())
        unknown = [wanted] if isinstance(wanted, str) else [name for name in wanted if name not in names.values()]
        if unknown or not wanted:
            raise ValueError(
                f"`contrastive_success_rewards` is {wanted!r}, but must be a list of names of reward functions. Choose from "
                f"{list(names.values())}."
            )
        columns = [column for column, name in names.items() if name in wanted]
        if not self.reward_weights[columns].any():
            raise ValueError(
                f"All of the rewards that decide success weigh 0: `contrastive_success_rewards` is {wanted!r} and "
                f"`reward_weights` are {dict(zip(names.values(), self.reward_weights[list(names)].tolist(), strict=True))}. "
                "Give one of them a weight, or name another."
            )
        return columns

    def _choose_way(self) -> str:
        """
        Where the states are read; fixed for the run, so that all processes make the same forward passes.

        `"fused"`: in TRL's own pass for old log-probabilities. `"decode"`: while `generate` decodes. `"forward"`: in a pass
        of our own over the decoder.
        """
        args = self.args
        trl_scores_rollouts = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) != 0
        trl_scores_rollouts |= self.use_vllm and self.vllm_importance_sampling_correction
        # `mask_truncated_completions` hides truncated completions from TRL's pass, and so from themselves; its padding on
        # the left moves learned positions.
        if trl_scores_rollouts and not (self.mask_truncated_completions or self._reader.shifts_with_left_padding):
            return "fused"
        plain_generate = not (
            self.use_vllm or self.use_transformers_continuous_batching or self.rollout_func or self.tools
        )
        return "decode" if plain_generate else "forward"

    def _make_head(self) -> ContrastiveHead:
        args, hidden_size = self.args, self._reader.hidden_size
        if args.contrastive_head_path is not None:
            return load_head(args.contrastive_head_path, hidden_size)
        return ContrastiveHead(
            hidden_size, args.contrastive_embedding_dim, args.contrastive_head_type, args.contrastive_debias, args.seed
        )

    # ------------------------------------------------------------------ hidden states of the rollouts

    def _generate_and_score_completions(self, inputs):
        if not self.model.training:
            output = super()._generate_and_score_completions(inputs)
            # The column is empty in evaluation: no mean to log.
            self._metrics["eval"].pop(f"rewards/{contrastive.__name__}/mean", None)
            self._metrics["eval"].pop(f"rewards/{contrastive.__name__}/std", None)
            return output
        try:
            return super()._generate_and_score_completions(inputs)
        finally:
            self._tokens = self._pooled_BH = None

    def _generate(self, prompts):
        pooler = None
        if self.model.training and self._way == "decode":
            pooler = DecodePooler(self.eos_token_ids, self.args.contrastive_pooling)
        with self._reader.watch(pooler) if pooler is not None else nullcontext():
            output = super()._generate(prompts)
        self._forget_order_of_layers()
        if not self.model.training:
            return output
        prompt_ids, completion_ids, tool_mask, _, _, _, images = output[:7]
        if any(images or []):  # inside messages, from a tool or from an environment: no column told of them
            raise ValueError(
                "A rollout has an image in its messages, but CLIPO reads the hidden states of text rollouts only. Take the "
                "images out of the prompts, tools and environments, or train with `GRPOTrainer`."
            )
        self._tokens = RolloutTokens(prompt_ids, completion_ids, tool_mask)
        if pooler is not None:
            self._pooled_BH = self._agreed(pooler.result(self._tokens))
        return output

    def _forget_order_of_layers(self) -> None:
        """
        ZeRO-3 fetches parameters ahead in the order of the last passes. Decoding layer by layer leaves an order that does
        not fit the training pass: with an LM head of its own the backward pass would fail ("size of tensor a (0)").
        """
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is None or plugin.zero_stage != 3 or self.args.ds3_gather_for_generation or self.deepspeed is None:
            return
        coordinator = self.model_wrapped.optimizer.parameter_offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    def _agreed(self, pooled_BH: torch.Tensor | None) -> torch.Tensor | None:
        """`None` on every process if it is `None` on one: all of them then make the forward pass."""
        missing = torch.tensor([pooled_BH is None], dtype=torch.float32, device=self.accelerator.device)
        return None if self.accelerator.gather(missing).any() else pooled_BH

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        scored = (model, input_ids, attention_mask, logits_to_keep, *args)
        # The first pass after generation is that of the policy; the one of a reference adapter may follow.
        if self._tokens is None or self._way != "fused" or self._pooled_BH is not None:
            return super()._get_per_token_logps_and_entropies(*scored, **kwargs)
        n_prompt = input_ids.size(1) - logits_to_keep
        reads_BL = left_padded_reads(self._tokens, self.args.contrastive_pooling, n_prompt, logits_to_keep)
        pooler = ForwardPooler(reads_BL.to(input_ids.device))
        with self._reader.watch(pooler):
            output = super()._get_per_token_logps_and_entropies(*scored, **kwargs)
        self._pooled_BH = pooler.result()
        return output

    @torch.no_grad()
    def _forward_pooled(self) -> torch.Tensor:
        """Pooled states (B, H) by a pass over the decoder alone, in micro-batches of sequences of similar length."""
        tokens, pooling = self._tokens, self.args.contrastive_pooling
        by_length = sorted(range(len(tokens)), key=tokens.length, reverse=True)
        pooled_BH = torch.empty(len(tokens), self._reader.hidden_size, device=self.accelerator.device)
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        was_training = policy.training
        policy.eval()  # states without dropout, and without a draw from the global random state
        n_rows = self.args.per_device_train_batch_size  # the same number of passes on every process, as ZeRO-3 needs
        for start in range(0, len(tokens), n_rows):
            rows = by_length[start : start + n_rows]
            input_ids, attention_mask, reads = right_padded(
                tokens, rows, pooling, self._tokenizer.pad_token_id, self.accelerator.device
            )
            pooler = ForwardPooler(reads)
            with self._reader.watch(pooler), self.accelerator.autocast():
                self._forward_redirection(
                    self.model_wrapped,
                    policy,
                    self._reader.decoder,
                    input_ids=input_ids,
                    attention_mask=attention_mask,
                    use_cache=False,
                )
            pooled_BH[rows] = pooler.result().to(pooled_BH.device)
            self._log_contrastive("extra_forward_passes", 1.0)
        policy.train(was_training)
        return pooled_BH

    # ------------------------------------------------------------------ reward and head

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        if not self.model.training:
            self._keep_test_rewards(rewards_per_func)
        else:
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
        reward_PG = contrastive_reward(
            loss_PG,
            correct_PG,
            weight=args.contrastive_reward_weight,
            offset=args.contrastive_reward_offset,
            floor=args.contrastive_reward_floor,
        )
        if is_anchor_PG.any() and not args.freeze_contrastive_head:
            (loss_PG.sum() / is_anchor_PG.sum()).backward()
            self._step_head(embeddings_BD, embeddings_ND.grad[local])

        self._log_rollouts(loss_PG.detach(), is_anchor_PG, reward_PG, correct_PG, valid_PG, embeddings_ND, pooled_BH)
        if self._in_warmup() and args.contrastive_warmup_policy == "verifiable_reward":
            reward_PG = torch.zeros_like(reward_PG)
        return reward_PG.masked_fill(~valid_PG, torch.nan).flatten()

    @torch.enable_grad()
    def _embed(self, pooled_BH: torch.Tensor, valid_B: torch.Tensor) -> torch.Tensor:
        """Embeddings (B, D) of this process; invalid rows of `pooled_BH` are zero."""
        mean_H = None
        if self.contrastive_head.debias == "mean_subtract":
            sum_H = self.accelerator.reduce(pooled_BH.sum(0), "sum")
            mean_H = sum_H / self.accelerator.reduce(valid_B.sum().float(), "sum").clamp(min=1)
        return self.contrastive_head(pooled_BH, mean_H)

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

    def _log_rollouts(self, loss_PG, is_anchor_PG, reward_PG, correct_PG, valid_PG, embeddings_ND, pooled_BH) -> None:
        floor, G = self.args.contrastive_reward_floor, self.num_generations
        metrics = rollout_metrics(loss_PG, is_anchor_PG, reward_PG, correct_PG, valid_PG, floor)

        # Pairs of hidden states are counted where both are on one process: the states do not travel.
        first = self.accelerator.process_index * len(pooled_BH)
        states, present = in_groups(pooled_BH, G, first)
        groups = slice(first // G, first // G + len(states))
        of_states = pair_cosines(states, correct_PG[groups], valid_PG[groups] & present)
        of_embeddings = pair_cosines(embeddings_ND.view(*correct_PG.shape, -1), correct_PG, valid_PG)
        for what, pairs in (("hidden", self.accelerator.reduce(of_states, "sum")), ("embedding", of_embeddings)):
            for kind, (total, number) in zip(("correct_correct", "correct_wrong"), pairs.tolist(), strict=True):
                metrics[f"{what}_cosine_{kind}"] = total / number if number else float("nan")
        for name, value in metrics.items():
            self._log_contrastive(name, value)

    def _log_contrastive(self, name: str, value: float) -> None:
        self._metrics["train"][f"contrastive/{name}"].append(value)

    # ------------------------------------------------------------------ warm-up

    def _in_warmup(self) -> bool:
        """Whether the generation batch that is being scored now belongs to the head's warm-up."""
        return self._n_generation_batches < self.args.contrastive_warmup_steps

    def _policy_is_frozen(self) -> bool:
        """Whether the rollouts of the training step that begins now belong to a warm-up with a frozen policy."""
        if self.args.contrastive_warmup_policy != "frozen":
            return False
        generate_every = self.args.steps_per_generation * self.num_iterations
        generates = self._step % generate_every == 0 or self._buffered_inputs is None  # as TRL decides it
        batch = self._n_generation_batches if generates else self._n_generation_batches - 1
        return batch < self.args.contrastive_warmup_steps

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self._policy_is_frozen():
            return super().training_step(model, inputs, num_items_in_batch)
        # Rollouts and the head's step, without a forward or backward pass of the policy: no parameter gets a gradient, so
        # the optimizer's step that follows changes nothing.
        start = time.perf_counter()
        model.train()
        self._prepare_inputs(inputs)
        self._step += 1
        self._current_train_step_time += time.perf_counter() - start
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._metrics["train"]["step_time"].append(self._current_train_step_time)
            self._current_train_step_time = 0.0
        return torch.zeros((), device=self.accelerator.device)


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
