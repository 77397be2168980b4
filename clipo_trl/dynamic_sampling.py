"""Dynamic sampling (DAPO, arXiv 2503.14476, Eq. 11): only groups whose verifiable reward has a spread are trained on.

    prompts --TRL--> rollouts --> rewards --> groups with a spread --+--> batch full --TRL--> training
       ^                                                             |
       +------------------ more prompts, if it is not <--------------+

TRL makes rollouts in an attempt and is stopped once they are made; the groups that are kept are then handed back to it
by its own door for rollouts made elsewhere, `rollout_func`. So all that follows (passes, advantages, metrics, tables,
CLIPO's column and head) is TRL's own, once a batch, and sees what is trained on alone.

Axes: B rollouts of this process, N = P * G of all processes, P prompts, G rollouts a prompt, F reward functions.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, gcd
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from .dynamic_sampling_config import DynamicSamplingConfigMixin
from .parent_shapes import DynamicSamplingArguments
from .success import SuccessRule, find_success_rule
from .upstream.mended import MendedMixin


logger = get_logger(__name__)

STATE_NAME = "dynamic_sampling.json"
_SWITCHED_OFF = ("rollout_func", "tools", "environments", "environment_factories")


# ---------------------------------------------------------------------- what is decided, of tensors and numbers alone


def total_reward(rewards_NF: torch.Tensor, weights_F: torch.Tensor, group_size: int) -> torch.Tensor:
    """Weighted sum of the rewards, in groups `(P, G)`; NaN for a rollout that no function gave one."""
    total_N = (rewards_NF * weights_F.to(rewards_NF.device)).nansum(1)
    return total_N.masked_fill(rewards_NF.isnan().all(1), torch.nan).view(-1, group_size)


def has_spread(total_PG: torch.Tensor) -> torch.Tensor:
    """Which groups, bool `(P,)`, have rollouts of different reward. Rollouts without one (NaN) have no say."""
    missing = total_PG.isnan()
    lowest, highest = (total_PG.masked_fill(missing, sign * torch.inf) for sign in (1, -1))
    return highest.amax(1) > lowest.amin(1)


def n_groups_to_draw(n_missing: int, n_kept: int, n_seen: int, n_full: int, n_processes: int, group_size: int) -> int:
    """
    Groups of the next attempt: as many as fill the batch if the share that was kept of it so far stays, and not more
    than a full batch. Their rollouts can be divided equally among the processes.
    """
    n_groups = min(ceil(n_missing * n_seen / n_kept), n_full) if n_kept else n_full
    step = n_processes // gcd(n_processes, group_size)
    return ceil(n_groups / step) * step


def prompts_in_order(seed: int, n_prompts: int, first: int, n: int) -> list[int]:
    """
    Indices at the places `first` to `first + n - 1` of an endless order of prompts: one random order of all
    `n_prompts` after the other, each of them the same whenever and wherever it is asked for.
    """
    orders: dict[int, list[int]] = {}
    indices = []
    for place in range(first, first + n):
        number, index = divmod(place, n_prompts)
        if number not in orders:
            generator = torch.Generator().manual_seed(seed + 1 + number)  # `seed` itself orders the first epoch
            orders[number] = torch.randperm(n_prompts, generator=generator).tolist()
        indices.append(orders[number][index])
    return indices


def taken_groups(alive_P: torch.Tensor, n_missing: int, fill: bool) -> torch.Tensor:
    """
    Which groups, bool `(P,)`, are taken: the first `n_missing` that have a spread; with `fill`, others where these are
    too few.
    """
    order = torch.sort(alive_P.byte(), descending=True, stable=True).indices
    n_taken = min(n_missing, len(alive_P) if fill else int(alive_P.sum()))
    taken_P = torch.zeros_like(alive_P)
    taken_P[order[:n_taken]] = True
    return taken_P


# ---------------------------------------------------------------------- what is kept


@dataclass
class Rollout:
    """One rollout as TRL's `_generate` gives it, with its rows of the dataset and of the completions table."""

    inputs: dict[str, Any]
    prompt: Any
    prompt_ids: list[int]
    completion_ids: list[int]
    policy_mask: list[int] | None
    completion: Any
    logprobs: list[float] | None
    columns: dict[str, Any]


@dataclass
class KeptBatch:
    """
    A generation batch that is trained on.

    Attributes:
        rollouts (`list[Rollout]`): those of this process.
        rewards_NF (`torch.Tensor` of shape `(N, F)`): of all processes; NaN where a rollout only fills up the batch.
        is_filler_B (`torch.Tensor` of shape `(B,)`, bool): rollouts of this process that do.
        has_fillers (`bool`): whether there are such on any process.
    """

    rollouts: list[Rollout]
    rewards_NF: torch.Tensor
    is_filler_B: torch.Tensor
    has_fillers: bool

    def hand_out(self, prompts: list, trainer: Any) -> dict[str, Any]:
        """As a `rollout_func` of TRL's."""
        columns: dict[str, Any] = {
            "prompt_ids": [rollout.prompt_ids for rollout in self.rollouts],
            "completion_ids": [rollout.completion_ids for rollout in self.rollouts],
            "logprobs": [rollout.logprobs for rollout in self.rollouts],
            "env_mask": [rollout.policy_mask for rollout in self.rollouts],
        }
        return {name: None if values[0] is None else values for name, values in columns.items()}


@dataclass
class Tally:
    """What became of the groups of a generation batch."""

    attempts: int = 0
    seen: int = 0
    kept: int = 0
    surplus: int = 0
    all_right: int = 0
    all_wrong: int = 0
    no_reward: int = 0

    def add(self, total_PG: torch.Tensor, n_missing: int, threshold: float) -> None:
        """Count the groups of another attempt, when `n_missing` were missing."""
        alive_P, without_P = has_spread(total_PG), total_PG.isnan().all(1)
        right_P = (total_PG > threshold).any(1)
        n_alive = int(alive_P.sum())
        self.attempts += 1
        self.seen += len(total_PG)
        self.kept += min(n_alive, n_missing)
        self.surplus += max(n_alive - n_missing, 0)
        self.no_reward += int(without_P.sum())
        self.all_right += int((~alive_P & right_P).sum())
        self.all_wrong += int((~alive_P & ~right_P & ~without_P).sum())

    def metrics(self, n_full: int) -> dict[str, float]:
        """By the names that the docs explain."""
        return {
            "attempts": float(self.attempts),
            "dropped_all_right": self.all_right / self.seen,
            "dropped_all_wrong": self.all_wrong / self.seen,
            "dropped_no_reward": self.no_reward / self.seen,
            "surplus": self.surplus / self.seen,
            "unfilled": 1 - self.kept / n_full,
            "generated_per_trained": self.seen / self.kept if self.kept else float("nan"),
        }


class _RolloutsMade(Exception):
    """Ends an attempt: TRL has made its rollouts, and shall not go on before it is known which are kept."""

    def __init__(self, prompts: list, output: tuple):
        self.prompts, self.output = prompts, output


# ---------------------------------------------------------------------- the trainer's part


class DynamicSamplingMixin(MendedMixin):
    """
    Dynamic sampling for any trainer that is shaped like `GRPOTrainer`: `class MyTrainer(DynamicSamplingMixin,
    GMPOTrainer)`, with a configuration `class MyConfig(DynamicSamplingConfigMixin, GMPOConfig)`. [`DAPOTrainer`] and
    [`CLIPOTrainer`] have it already.

    Evaluation is the parent's. With `dynamic_sampling=False`, and where all groups have a spread, training is the
    parent's too, bit for bit. What happens when the attempts are used up, and which metrics count what:
    docs/dynamic_sampling.md.
    """

    args: DynamicSamplingArguments
    _not_verifiable: tuple[str, ...] = ()  # columns among the rewards that cannot say which groups have a spread
    _prompts_drawn = 0  # of the endless order; the prompts of first attempts are the sampler's
    _prompts_consumed = 0  # of both
    _said_unfilled = False
    _in_attempt = False
    _kept: KeptBatch | None = None

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        if not isinstance(self.args, DynamicSamplingConfigMixin):
            raise TypeError(
                f"`args` is a `{type(self.args).__name__}`, which has no field `dynamic_sampling`. Pass a `DAPOConfig`, or an instance "
                f"of `class MyConfig(DynamicSamplingConfigMixin, {type(self.args).__name__})` decorated with `@dataclass`."
            )
        if not resume_from_checkpoint:
            self._prompts_drawn = self._prompts_consumed = 0
        if self.args.dynamic_sampling:
            self._check_dataset()
            self._spread_columns = self._find_spread_columns()
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _check_dataset(self) -> None:
        if not (hasattr(self.train_dataset, "__len__") and hasattr(self.train_dataset, "__getitem__")):
            raise ValueError(
                f"`train_dataset` is a `{type(self.train_dataset).__name__}`, without a length, but `dynamic_sampling` draws prompts "
                "from all of it. Give a dataset with a length, or set `dynamic_sampling=False`."
            )
        found = {"image", "images"} & set(getattr(self.train_dataset, "column_names", None) or [])
        if found:
            raise ValueError(
                f"`train_dataset` has the column {found.pop()!r}, but `dynamic_sampling` keeps rollouts of text only. Remove the "
                "column, or set `dynamic_sampling=False`."
            )

    def _find_spread_columns(self) -> list[int]:
        """Columns of the verifiable rewards; see `dynamic_sampling_rewards`."""
        columns = {i: name for i, name in enumerate(self.reward_func_names) if name not in self._not_verifiable}
        weights = self.reward_weights[list(columns)].tolist()
        of_clipo: SuccessRule | None = getattr(self, "success_rule", None)
        wanted = self.args.dynamic_sampling_rewards
        rule = of_clipo if wanted is None else None
        if rule is None:
            # A configuration that has CLIPO's fields names them there: with CLIPO and without, the same decide.
            step_reward = getattr(self.args, "contrastive_step_reward", None)
            named = getattr(self.args, "contrastive_success_rewards", None) if wanted is None else wanted
            argument = "contrastive_success_rewards" if wanted is None else "dynamic_sampling_rewards"
            rule = find_success_rule(list(columns.values()), weights, named, step_reward, argument=argument)
        if rule.choice == "all" and of_clipo is None:
            logger.warning(
                f"`dynamic_sampling` keeps the groups in which the weighted sum of ALL rewards, {' + '.join(rule.names)}, has a spread: a "
                "reward for its length or format alone can keep a group whose answers are all right or all wrong. Name the rewards "
                f"that tell whether the answer is right, for example `dynamic_sampling_rewards=[{rule.names[0]!r}]`."
            )
        return [i for i, name in columns.items() if name in rule.names]

    # ------------------------------------------------------------------ a generation batch

    def _generate_and_score_completions(self, inputs):
        if self._evaluating or not self.args.dynamic_sampling:
            return super()._generate_and_score_completions(inputs)
        kept = self._sample_until_full(inputs)
        with self._handing_out(kept):
            output = super()._generate_and_score_completions(
                [{**rollout.inputs, "prompt": rollout.prompt} for rollout in kept.rollouts]
            )
        return self._without_fillers(output, kept)

    def _sample_until_full(self, inputs: list[dict[str, Any]]) -> KeptBatch:
        """The attempts at a generation batch. Every process decides the same, by the rewards of all of them."""
        G, n_processes, n_rows = self.num_generations, self.accelerator.num_processes, len(inputs)
        n_full = n_rows * n_processes // G
        tally, n_drawn = Tally(), 0
        rollouts: list[Rollout] = []
        rewards, fillers = [], []
        while True:
            made, rewards_NF = self._attempt(inputs)
            total_PG = total_reward(rewards_NF[:, self._spread_columns], self.reward_weights[self._spread_columns], G)
            alive_P, n_missing = has_spread(total_PG), n_full - tally.kept
            tally.add(total_PG, n_missing, getattr(self.args, "contrastive_success_threshold", 0.0))
            is_last = tally.kept == n_full or tally.attempts == self.args.dynamic_sampling_max_attempts
            taken_P = taken_groups(alive_P, n_missing, fill=is_last)
            taken_N = taken_P.repeat_interleave(G)
            rollouts += self._gather_taken(made, taken_N)
            rewards.append(rewards_NF[taken_N])
            fillers.append(~alive_P[taken_P].repeat_interleave(G))
            if is_last:
                break
            n_groups = n_groups_to_draw(n_full - tally.kept, tally.kept, tally.seen, n_full, n_processes, G)
            inputs = self._draw_inputs(self._prompts_drawn + n_drawn, n_groups)
            n_drawn += n_groups
        self._prompts_drawn += n_drawn
        self._log_sampling(tally, n_full)
        is_filler_N = torch.cat(fillers)
        rewards_NF = torch.cat(rewards).masked_fill(is_filler_N.unsqueeze(1), torch.nan)
        place = slice(self.accelerator.process_index * n_rows, (self.accelerator.process_index + 1) * n_rows)
        return KeptBatch(rollouts[place], rewards_NF, is_filler_N[place], tally.kept < n_full)

    def _attempt(self, inputs: list[dict[str, Any]]) -> tuple[list[Rollout], torch.Tensor]:
        """Rollouts of this process, and rewards `(N, F)` of all processes."""
        n_tokens, metrics = self.state.num_input_tokens_seen, self._metrics["train"]
        of_attempt: defaultdict[str, list[float]] = defaultdict(list)
        self._metrics["train"] = of_attempt
        self._in_attempt = True
        try:
            super()._generate_and_score_completions(inputs)
        except _RolloutsMade as made:
            prompts, output = made.prompts, made.output
        finally:
            self._in_attempt = False
            self._metrics["train"], self.state.num_input_tokens_seen = metrics, n_tokens
        for name, values in of_attempt.items():
            if name != "num_tokens" and not name.startswith("completions/"):  # these will be told of what is kept
                metrics[name].extend(values)
        prompt_ids, completion_ids, policy_mask, completions, logprobs, fields, images, _ = output
        if any(images or []):
            raise ValueError(
                "A rollout has an image in its messages, but `dynamic_sampling` keeps rollouts of text only. Take the images out of the "
                "prompts, tools and environments, or set `dynamic_sampling=False`."
            )
        inputs = [{**row, **_row_of(fields, i)} for i, row in enumerate(inputs)]
        rewards_NF = super()._calculate_rewards(inputs, prompts, completions, completion_ids)
        none = [None] * len(inputs)
        rows = zip(
            inputs, prompts, prompt_ids, completion_ids, policy_mask or none, completions, logprobs or none,
            self._take_columns(len(inputs)), strict=True,
        )  # fmt: skip
        return [Rollout(*row) for row in rows], rewards_NF

    def _take_columns(self, n_rows: int) -> list[dict[str, Any]]:
        """What reward functions have put into the table of completions, a dictionary a rollout."""
        columns = {name: list(values) for name, values in self._pending_extra_logs.items() if values}
        self._pending_extra_logs.clear()
        for name, values in columns.items():
            if len(values) != n_rows:
                raise ValueError(
                    f"A reward function logs {len(values)} values in the column {name!r} for {n_rows} rollouts, but `dynamic_sampling` "
                    "keeps some of the rollouts only. Log one value for each of them."
                )
        return [{name: values[row] for name, values in columns.items()} for row in range(n_rows)]

    def _gather_taken(self, made: list[Rollout], taken_N: torch.Tensor) -> list[Rollout]:
        """Those of all processes, in their order."""
        first = self.accelerator.process_index * len(made)
        taken = taken_N[first : first + len(made)].tolist()
        return gather_object([rollout for rollout, is_taken in zip(made, taken, strict=True) if is_taken])

    def _draw_inputs(self, first: int, n_groups: int) -> list[dict[str, Any]]:
        """The rows of this process among `n_groups` groups of more prompts, each a dictionary of its own."""
        dataset, G = self.train_dataset, self.num_generations
        indices = prompts_in_order(self.args.seed, len(dataset), first, n_groups)
        n_rows = n_groups * G // self.accelerator.num_processes
        start = self.accelerator.process_index * n_rows
        rows = [dict(dataset[indices[row // G]]) for row in range(start, start + n_rows)]
        if self.args.remove_unused_columns:
            used: set[str] = set(self._signature_columns or ())
            rows = [{name: value for name, value in row.items() if name in used} for row in rows]
        return rows

    def _log_sampling(self, tally: Tally, n_full: int) -> None:
        self._prompts_consumed += tally.seen
        for name, value in tally.metrics(n_full).items():
            self._metrics["train"][f"dynamic_sampling/{name}"].append(value)
        self._metrics["train"]["dynamic_sampling/prompts_consumed"] = [self._prompts_consumed]
        if tally.kept < n_full and not self._said_unfilled:
            self._said_unfilled = True
            logger.warning(
                f"A batch was not full after `dynamic_sampling_max_attempts` = {self.args.dynamic_sampling_max_attempts} attempts: too few "
                "groups have a spread in their verifiable reward. It is trained on those there are, as will be others like it "
                "(`dynamic_sampling/unfilled` has the share that is missing). If that goes on, the task is too easy or too hard."
            )

    # ------------------------------------------------------------------ TRL's methods, in an attempt and after it

    @contextmanager
    def _handing_out(self, kept: KeptBatch) -> Iterator[None]:
        """While open, TRL's rollouts are those that are kept: no tool is called, no environment is reset."""
        before = {name: getattr(self, name) for name in _SWITCHED_OFF}
        self.rollout_func, self.tools, self.environments, self.environment_factories = kept.hand_out, [], None, None
        for name in {name for rollout in kept.rollouts for name in rollout.columns}:
            self._log_completion_extra(name, [rollout.columns.get(name) for rollout in kept.rollouts])
        self._kept = kept
        try:
            yield
        finally:
            self._kept = None
            for name, value in before.items():
                setattr(self, name, value)

    def _generate(self, prompts):
        output = super()._generate(prompts)
        if self._in_attempt:
            raise _RolloutsMade(prompts, output)
        if self._kept is None:
            return output
        completions = [rollout.completion for rollout in self._kept.rollouts]  # with the messages of tools
        return *output[:3], completions, *output[4:]

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        if self._kept is not None:
            return self._kept.rewards_NF.clone()
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _without_fillers(self, output: dict[str, Any], kept: KeptBatch) -> dict[str, Any]:
        """TRL's batch, with the tokens masked that fill it up."""
        if not kept.has_fillers:
            return output
        is_filler = kept.is_filler_B.to(output["completion_mask"].device).unsqueeze(1)
        for name in ("completion_mask", "old_per_token_logps", "ref_per_token_logps", "sampling_per_token_logps"):
            if output.get(name) is not None:  # 0, as TRL has log-probabilities of tokens that are masked
                output[name] = output[name].masked_fill(is_filler, 0)
        mask = output["completion_mask"] * output.get("tool_mask", 1)
        output["num_items_in_batch"] = self.accelerator.gather(mask.sum()).sum()
        return output

    # ------------------------------------------------------------------ resuming

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {"prompts_drawn": self._prompts_drawn, "prompts_consumed": self._prompts_consumed}
            Path(output_dir, STATE_NAME).write_text(json.dumps(state))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        path = Path(checkpoint or "", STATE_NAME)
        if checkpoint is not None and path.exists():  # not of a run without this mixin
            state = json.loads(path.read_text())
            self._prompts_drawn, self._prompts_consumed = state["prompts_drawn"], state["prompts_consumed"]


def _row_of(fields: dict[str, Any], row: int) -> dict[str, Any]:
    """What a `rollout_func` gives beside its rollouts, for one of them, as TRL gives it to reward functions."""
    short = {name for name, values in fields.items() if isinstance(values, list) and row >= len(values)}
    return {
        name: values[row] if isinstance(values, list) else values
        for name, values in fields.items()
        if name not in short
    }
