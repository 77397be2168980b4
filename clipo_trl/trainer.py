"""CLIPO (arXiv 2603.10101) on top of TRL's `GRPOTrainer`: one more reward column, and a head that learns beside the
policy.

    prompts --TRL--> rollouts --hidden_states.py--> pooled_BH --head.py--> embeddings --losses.py--> loss per rollout
       (or --agreement.py--> score per rollout) --rewards.py--> one more reward column --TRL--> policy loss

Axes: B rollouts of this process, N = P * G of all processes, P prompts, G rollouts a prompt, H hidden size, D
embedding size.
"""

import copy
import os
import time
from collections.abc import Callable
from functools import partial

import torch
from accelerate.logging import get_logger
from trl import GRPOConfig, GRPOTrainer

from .capture import StateSource, choose_capture_mode, rollouts_are_scored, trl_scores_rollouts
from .checkpoint import began_with_a_warm_head, load_checked, load_state, save_state
from .completions_table import table_columns
from .config import CLIPOConfig, CLIPOConfigMixin, warn_of_combinations
from .dynamic_sampling import DynamicSamplingMixin
from .environment import check_environment
from .head import HEAD_FOLDER, ContrastiveHead, check_hidden_size, head_settings, resolve_saved_head
from .hidden_states import HiddenStateReader
from .images import check_images, check_prompts, has_image, image_column, prompt_image_inputs
from .learner import HeadLearner
from .metrics import batch_metrics
from .model_card import CITATION, PAPER_ID, PAPER_TITLE
from .parent_shapes import CLIPOArguments, arguments_by_name, default_arguments, end_tokens
from .scored_batch import ScoredBatch
from .scoring import ScoringMixin
from .sharing import SharingMixin
from .success import check_step_reward, find_success_rule, label_successes, warn_of
from .warmup import Warmup, deepspeed_steps_the_scheduler


logger = get_logger(__name__)


def contrastive(completions, **kwargs) -> list[None]:
    """Holds the place of the contrastive reward among TRL's reward functions: gives it a column, a name and a
    weight."""
    return [None] * len(completions)


class CLIPOMixin(ScoringMixin, SharingMixin, DynamicSamplingMixin):
    """
    CLIPO for any trainer that is shaped like `GRPOTrainer`: `class MyTrainer(CLIPOMixin, GMPOTrainer)`, with a
    configuration `class MyConfig(CLIPOConfigMixin, GMPOConfig)`.

    The only change to the parent is one more reward column, `contrastive`. It is filled in training; in evaluation it
    stays empty. Everything after it (advantages, clipping, KL) is the parent's. Here stand the parent's methods that
    are overridden, each a few lines; the work is done by a [`StateSource`] (hidden states), a [`HeadLearner`] (head,
    loss, reward) and a [`Warmup`].
    """

    args: CLIPOArguments
    _config_class = CLIPOConfig
    _not_verifiable = (contrastive.__name__,)

    def __init__(self, *args, **kwargs):
        given = arguments_by_name(type(self), CLIPOMixin, args, kwargs)
        given["args"] = self._with_contrastive_fields(given.get("args"), given.get("model"))
        if given["args"].use_vllm and given["args"].vllm_mode == "colocate":  # else the engine is elsewhere
            check_environment()
        # First of all: a saved head decides which states are read.
        given["args"], self._saved_head = resolve_saved_head(given["args"])
        weights = given["args"].reward_weights
        self._place_column(given)
        super().__init__(**given)
        self.args.reward_weights = weights
        self._success_columns = self._find_success_columns()
        self._step_column = self._find_step_column()
        warn_of_combinations(self.args)

        reader = HiddenStateReader(self.accelerator.unwrap_model(self.model), self.args.contrastive_layer)
        mode = self._choose_capture_mode(reader)
        self._check_images = partial(check_images, self, mode, reader.decoder)
        if column := image_column(getattr(self.train_dataset, "column_names", None)):
            self._check_images(f"`train_dataset` has the column {column!r}")
        self.states = StateSource(reader, mode, self.args.contrastive_pooling, end_tokens(self), self.accelerator)
        self.states.is_scored = rollouts_are_scored(self.args)
        self.states.asks_for_scores = self.states.is_scored and not trl_scores_rollouts(self.args)
        # To be paid, or to be judged by the steps before it is paid.
        is_asked = (
            self.args.contrastive_reward_type == "negative_entropy" or self.args.contrastive_step_reward is not None
        )
        self.states.reads_entropy = self.states.is_scored and is_asked
        self.contrastive_head = self._make_head(reader.hidden_size).to(self.accelerator.device)
        self.contrastive_head.trained_with = self._trained_with()
        self.head_learner = HeadLearner(self.contrastive_head, self.args, self.accelerator)
        num_prompts = len(self.train_dataset) if hasattr(self.train_dataset, "__len__") else None
        self.warmup = Warmup(self.args, num_prompts)
        self.warmup.warn(has_scheduler=self.lr_scheduler is not None)

    # ------------------------------------------------------------------ construction

    def _place_column(self, given: dict) -> None:
        """Give the contrastive reward a column, a weight and a processing class, without touching the caller's
        lists."""
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
            return default_arguments(self, model)
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

    def _find_success_columns(self) -> list[int]:
        """Columns of the reward functions that decide success; environments may have added columns after ours."""
        names = {column: name for column, name in enumerate(self.reward_func_names) if column != self._column}
        if not names:
            raise ValueError("`reward_funcs` is empty. CLIPO needs a verifiable reward to tell correct rollouts.")
        if contrastive.__name__ in names.values():
            raise ValueError(
                f"A reward function is named {contrastive.__name__!r}, the name of CLIPO's own column. Rename it."
            )
        weights, args = self.reward_weights[list(names)].tolist(), self.args
        self.success_rule = find_success_rule(
            list(names.values()), weights, args.contrastive_success_rewards, args.contrastive_step_reward
        )
        warn_of(self.success_rule, args.contrastive_success_threshold)
        return [column for column, name in names.items() if name in self.success_rule.names]

    def _find_step_column(self) -> int | None:
        """Column of the reward function that checks the steps, if there is one."""
        name = self.args.contrastive_step_reward
        check_step_reward(
            name, [other for column, other in enumerate(self.reward_func_names) if column != self._column]
        )
        return None if name is None else self.reward_func_names.index(name)

    def _make_head(self, hidden_size: int) -> ContrastiveHead:
        args, head = self.args, self._saved_head
        if head is None:
            return ContrastiveHead(hidden_size, seed=args.seed, **head_settings(args))
        check_hidden_size(head, hidden_size, args.contrastive_head_path)
        return head.train()

    def _choose_capture_mode(self, reader: HiddenStateReader) -> str:
        return choose_capture_mode(
            scored_by_trl=rollouts_are_scored(self.args),
            shifts_with_left_padding=reader.shifts_with_left_padding,
            plain_generate=not (self.use_vllm or self.use_transformers_continuous_batching or self.rollout_func)
            and not (self.tools or self.args.dynamic_sampling),
        )

    # ------------------------------------------------------------------ rollouts

    def _generate_and_score_completions(self, inputs):
        if not self._evaluating:
            check_prompts(self, inputs, self._check_images)
        beta, frozen = self.beta, self.warmup.freezes(self.state.global_step)
        if not self._evaluating and frozen and self.warmup.has_batch(self.head_learner.n_batches):
            self.beta = 0.0  # no step will use these rollouts' log-probabilities under the reference
        try:
            with self.states.rollouts():
                return super()._generate_and_score_completions(inputs)
        finally:
            self.beta = beta
            # The column is empty in evaluation: no mean to log.
            self._metrics["eval"].pop(f"rewards/{contrastive.__name__}/mean", None)
            self._metrics["eval"].pop(f"rewards/{contrastive.__name__}/std", None)

    def _generate(self, prompts):
        step = self.state.global_step
        if self.use_vllm and self._last_loaded_step >= 0 and self.warmup.same_policy(self._last_loaded_step, step):
            self._last_loaded_step = step  # the engine has these weights
        return self.states.generate(partial(super()._generate, prompts), self._evaluating)

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        def score(mask, **settings):
            return parent(model, input_ids, mask, logits_to_keep, *args, **kwargs | settings)

        parent = super()._get_per_token_logps_and_entropies
        return self.states.score(score, attention_mask, logits_to_keep, self.mask_truncated_completions)

    # ------------------------------------------------------------------ reward and head

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._evaluating:
            rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
            self._add_to_completions_table(len(prompts))
            return rewards_per_func
        start = time.perf_counter()
        # First: a pass of our own then runs on the device while the reward functions run on the host.
        image_inputs = partial(prompt_image_inputs, self, prompts) if any(map(has_image, prompts)) else None
        pooled_BH = self.states.pooled(
            self.model_wrapped, self.args.per_device_train_batch_size, self._tokenizer.pad_token_id, image_inputs
        )
        if self.states.n_extra_passes:
            self._log_contrastive(extra_forward_passes=float(self.states.n_extra_passes))
        own_seconds = self.states.seconds + time.perf_counter() - start
        rewards_per_func = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        start = time.perf_counter()
        rewards_per_func[:, self._column] = self._contrastive_column(rewards_per_func, pooled_BH)
        self._log_contrastive(seconds=own_seconds + time.perf_counter() - start)
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
        G = self.num_generations
        correct_N, has_reward_N = label_successes(
            rewards_per_func, self.reward_weights, self._success_columns, self.args.contrastive_success_threshold
        )
        steps_PG = None if self._step_column is None else rewards_per_func[:, self._step_column].view(-1, G)
        in_warmup = self.warmup.has_batch(self.head_learner.n_batches)
        progress = self.warmup.progress(self.state.global_step, self.state.max_steps)
        labels = (correct_N.view(-1, G), has_reward_N.view(-1, G))
        batch = self.head_learner.score(pooled_BH, *labels, steps_PG, progress, self.states.token_scores)
        columns = zip(self.reward_func_names, rewards_per_func.T.reshape(-1, *batch.correct_PG.shape), strict=True)
        batch.rewards = {name: column_PG for name, column_PG in columns if name != contrastive.__name__}
        batch.reward_PG = self.reward_to_pay(batch)
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "on_batch_scored"):  # an event of CLIPO's own: training, on every process
                callback.on_batch_scored(self.args, self.state, self.control, batch=batch)
        self._log_contrastive(**batch_metrics(batch, self.accelerator))
        if self.args.contrastive_warmup_steps:
            self._log_contrastive(in_warmup=float(in_warmup))
        self._add_to_completions_table(len(pooled_BH), batch)
        reward_PG = batch.reward_PG
        if in_warmup and self.args.contrastive_warmup_policy == "verifiable_reward":
            reward_PG = torch.zeros_like(reward_PG)
        return reward_PG.masked_fill(~batch.valid_PG, torch.nan).flatten()

    def reward_to_pay(self, batch: ScoredBatch) -> torch.Tensor:
        """
        The contrastive reward to be paid for a generation batch. Override it to try another: it is logged, put into
        the table and added to the other rewards as CLIPO's own is. On every process it gets, and must give, the same.

        Args:
            batch (`ScoredBatch`): what is known of the batch, CLIPO's reward among it.

        Returns:
            `torch.Tensor` of shape `(P, G)`. Where a rollout counts for nothing (`valid_PG` is False), anything.
        """
        return batch.reward_PG

    @property
    def pays_contrastive_reward(self) -> bool:
        """Whether the contrastive reward can have a say in the policy's steps."""
        return self.args.contrastive_reward_weight > 0

    def _add_to_completions_table(self, n_rows: int, batch: ScoredBatch | None = None) -> None:
        if not self.log_completions:
            return
        G = self.num_generations if batch is not None else self.num_generations_eval
        first = self.accelerator.process_index * n_rows + sum(map(len, self._test_rewards[:-1]))
        for name, values in table_columns(n_rows, first, G, batch).items():
            if name in self._pending_extra_logs or name in self.reward_func_names:
                raise ValueError(
                    f"A reward function is called {name!r} or logs a column {name!r}, which is CLIPO's own in the table of "
                    "completions. Rename it, or set `log_completions=False`."
                )
            self._log_completion_extra(name, values)

    def _log_contrastive(self, **values: float) -> None:
        for name, value in values.items():
            self._metrics["train"][f"contrastive/{name}"].append(value)

    # ------------------------------------------------------------------ a frozen warm-up

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        ours = self.lr_scheduler is None  # not one of the user's
        scheduler = super().create_scheduler(max(num_training_steps - self.warmup.frozen_steps, 1), optimizer)
        if ours and not deepspeed_steps_the_scheduler(self.accelerator):
            self.warmup.delay(scheduler)
        return scheduler

    def _begin_run(self, checkpoint: str | None) -> None:
        n_batches = self.head_learner.n_batches
        is_another = n_batches > 0 and not self.warmup.has_batch(n_batches)  # run of this trainer
        self.warmup.is_over = is_another if checkpoint is None else began_with_a_warm_head(checkpoint)
        super()._begin_run(checkpoint)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if not self.warmup.freezes(self.state.global_step):
            return super().training_step(model, inputs, num_items_in_batch)
        # Rollouts and the head's step, without a forward or backward pass of the policy: no parameter gets a gradient,
        # so the optimizer's step that follows changes nothing.
        start = time.perf_counter()
        with self._in_mode(evaluating=False):
            self._prepare_inputs(inputs)
        self._step += 1
        self._current_train_step_time += time.perf_counter() - start
        if self._step % self.current_gradient_accumulation_steps == 0:
            self._metrics["train"]["step_time"].append(self._current_train_step_time)
            self._current_train_step_time = 0.0
        return torch.zeros((), device=self.accelerator.device)

    # ------------------------------------------------------------------ saving and resuming

    def _save_head(self, folder: str) -> None:
        if self.args.should_save:
            self.contrastive_head.trained_with = self._trained_with()
            self.contrastive_head.save_into(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # The head first: the parent may push the folder.
        self._save_head(output_dir or self.args.output_dir)
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model, trial) -> None:
        self._log_contrastive(**self.head_learner.synchronise())
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            save_state(output_dir, self.head_learner, self.warmup)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        upload = getattr(self, "push_in_progress", None)  # on the main process; it reads the folder until it is done
        if self.args.hub_always_push or upload is None or upload.is_done():
            self._save_head(self.args.output_dir)  # the parent copies the files that it knows from the checkpoint
        super()._push_from_checkpoint(checkpoint_folder)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        begins = False
        if checkpoint is not None:  # before the rollouts that wait there, which a frozen warm-up has a say in
            begins = load_state(checkpoint, self.head_learner, self.warmup, self.state.global_step)
        super()._load_optimizer_and_scheduler(checkpoint)
        if begins and self.warmup.frozen_steps:
            self._buffered_inputs = None  # of a run without a head: the warm-up's frozen steps are for its own

    def _trains_on_waiting(self) -> bool:
        return not self.warmup.freezes(self.state.global_step)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        best = self.state.best_model_checkpoint
        if best is not None and os.path.isdir(os.path.join(best, HEAD_FOLDER)):
            load_checked(self.contrastive_head, best, "load_best_model_at_end")


class CLIPOTrainer(CLIPOMixin, GRPOTrainer):
    """
    Trainer for Contrastive Learning in Policy Optimization (CLIPO, https://huggingface.co/papers/2603.10101).

    The only change w.r.t. `GRPOTrainer` is one more reward, `contrastive`: a head embeds each rollout's pooled last
    hidden states, a contrastive loss pulls the correct rollouts of a group together and away from the wrong ones, and
    that loss is taken off their reward. The head learns from the same loss, with its own optimizer, one step a
    generation batch. With `contrastive_reward_weight=0.0` the policy is trained exactly as by `GRPOTrainer`.

    Args:
        args ([`CLIPOConfig`] or `GRPOConfig`, *optional*):
            Configuration. A plain `GRPOConfig` gets CLIPO's defaults; `None` gets the defaults of [`CLIPOConfig`].
        model, reward_funcs, train_dataset, ...:
            As in `GRPOTrainer`.

    Attributes:
        contrastive_head ([`ContrastiveHead`]): the head, saved in `contrastive_head/` beside the model.
        success_rule ([`SuccessRule`]): the rewards that decide which rollouts are correct, and how they were chosen.
    """

    _tag_names = ["trl", "grpo", "clipo"]
    _name = "CLIPO"
    _paper = {"title": PAPER_TITLE, "id": PAPER_ID, "citation": CITATION}

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
