"""
Says when nothing can be learned: rules over what training logs, in a table, and the callback that goes by it.

A rule sees one training log and the configuration, nothing else. To add one, add an entry to `RULES` and a section of
the same name to docs/metrics.md, "When nothing is learned".
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from .config import CLIPOConfigMixin
from .parent_shapes import CLIPOArguments
from .warmup import steps_of_batches


logger = logging.get_logger(__name__)

Logs = dict[str, Any]  # what transformers hands to `on_log`; TRL logs None where a metric was NaN in every batch

PAGE = "docs/metrics.md"
CORRECT, ANCHORS, LEFT_OUT = "contrastive/correct_rollouts", "contrastive/anchors", "contrastive/left_out_rollouts"
FLOOR, PAID, HEAD_GRADIENT = "contrastive/floor_rewards", "contrastive/reward/mean", "contrastive/head_grad_norm"
SAME, OTHER = "contrastive/embedding_cosine_correct_correct", "contrastive/embedding_cosine_correct_wrong"
UNFILLED, NO_REWARD = "dynamic_sampling/unfilled", "dynamic_sampling/dropped_no_reward"
NO_SPREAD, TRUNCATED, GRADIENT = "frac_reward_zero_std", "completions/clipped_ratio", "grad_norm"
IN_WARMUP = "contrastive/in_warmup"

_HEAD_LEARNS_IN = 50  # generation batches before embeddings are judged: the head's loss falls in the first tens
_SAME_COSINE = 1e-3  # collapsed embeddings differ by rounding
_ANSWER_REWARD = re.compile(r"accura|(?<!in)correct|verifiable|exact|choice|answer")


@dataclass(frozen=True)
class Rule:
    """
    One thing that may be wrong with a run.

    Args:
        name (`str`): of the finding.
        needs (`tuple[str, ...]`): metrics without which a log cannot tell: it then counts neither for nor against.
        holds (`Callable`): whether the log `(logs, args)` shows it; `None` if it cannot tell for another reason.
        message (`str`): what is wrong, and the likely cause; formatted with `logs` and `args`.
        silent (`tuple[Callable, ...]`): modes `(logs, args, step)` in which it is to be expected.
        yields_to (`tuple[str, ...]`): findings that explain it: as long as one of them is there, it is not said.
    """

    name: str
    needs: tuple[str, ...]
    holds: Callable[[Logs, CLIPOArguments], bool | None]
    message: str
    silent: tuple[Callable[[Logs, CLIPOArguments, int], bool], ...] = ()
    yields_to: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        return f"{PAGE}#{self.name.replace('_', '-')}"

    def verdict(self, logs: Logs, args: CLIPOArguments, step: int) -> bool | None:
        """Whether the log of optimizer step `step` shows it; `None` if it cannot tell."""
        if any(logs.get(key) is None for key in self.needs) or any(mode(logs, args, step) for mode in self.silent):
            return None
        return self.holds(logs, args)


@dataclass
class Finding:
    """A rule that held for a while: in the logs of optimizer steps `first_step` to `last_step`."""

    name: str
    first_step: int
    last_step: int
    message: str
    page: str


# ---------------------------------------------------------------------- modes in which a finding is to be expected


def _n_batches(args: CLIPOArguments, step: int) -> float:
    """Generation batches that the first `step` optimizer steps have used up."""
    return step * args.gradient_accumulation_steps / (args.steps_per_generation * args.num_iterations)


def _in_warmup(logs: Logs, args: CLIPOArguments, step: int) -> bool:
    if IN_WARMUP in logs:
        return bool(logs[IN_WARMUP])  # a part of the log's batches is enough
    return step <= steps_of_batches(
        args.contrastive_warmup_steps, args
    )  # of a log that has no new batch, or an old one


def _policy_is_frozen(logs: Logs, args: CLIPOArguments, step: int) -> bool:
    return args.contrastive_warmup_policy == "frozen" and _in_warmup(logs, args, step)


def _head_is_frozen(logs: Logs, args: CLIPOArguments, step: int) -> bool:
    return args.freeze_contrastive_head


def _head_is_young(logs: Logs, args: CLIPOArguments, step: int) -> bool:
    return _n_batches(args, step) < _HEAD_LEARNS_IN


def _correct_are_not_pulled_together(logs: Logs, args: CLIPOArguments, step: int) -> bool:
    return args.contrastive_anchors == "incorrect" or args.contrastive_similarity == "negative_cosine"


def _nothing_is_paid(logs: Logs, args: CLIPOArguments, step: int) -> bool:
    return args.contrastive_reward_weight == 0


# ---------------------------------------------------------------------- what a log shows


def _is_idle(logs: Logs, args: CLIPOArguments) -> bool:
    """Rollouts were fit to be anchors and none was. A frozen head needs none, as long as agreement or likelihood is
    paid without."""
    paid_without = args.freeze_contrastive_head and logs.get(PAID) is not None
    return logs[ANCHORS] == 0 and logs[LEFT_OUT] < 1 and not paid_without


def _has_no_spread(logs: Logs, args: CLIPOArguments) -> bool:
    return logs[NO_SPREAD] == 1 or logs.get("reward_std") == 0


def _not_finite(key: str, logs: Logs) -> bool | None:
    if key not in logs:  # no step was made
        return None
    return logs[key] is None or not math.isfinite(logs[key])  # None stands for NaN


def _has_no_gradient(logs: Logs, args: CLIPOArguments) -> bool:
    """
    No gradient, and no other finding to explain it. The norm is that of the last step before the log, whose groups may
    all have been without spread by chance where many of the log's are: then it says nothing.
    """
    all_masked = args.mask_truncated_completions and logs.get(TRUNCATED) == 1
    return logs[GRADIENT] == 0 and logs[NO_SPREAD] <= 0.5 and logs.get("reward_std") != 0 and not all_masked


def _correct_without_answer(logs: Logs, args: CLIPOArguments) -> bool:
    """Rollouts count as correct though every reward that by its name judges answers gave 0 to all."""
    judges = [
        key.removesuffix("/mean")
        for key, mean in logs.items()
        if key.startswith("rewards/") and key.endswith("/mean") and mean is not None
        if _ANSWER_REWARD.search(key.lower()) and "format" not in key.lower()
        if key != f"rewards/{args.contrastive_step_reward}/mean"
    ]
    never = [logs[f"{judge}/mean"] == 0 == logs.get(f"{judge}/std") for judge in judges]
    return logs[CORRECT] > 0 and bool(judges) and all(never)


# ---------------------------------------------------------------------- the table

# Where one finding explains another, the cause alone is said: it stands first, and the conditions exclude each other
# or the other one yields.
RULES = (
    Rule(
        "no_group_has_a_spread",
        needs=(UNFILLED, NO_REWARD),
        holds=lambda logs, args: logs[UNFILLED] == 1 and logs[NO_REWARD] < 1,
        message="In {args.dynamic_sampling_max_attempts} attempts `dynamic_sampling` found no group whose verifiable reward has a "
        "spread: nothing is trained. `dynamic_sampling/dropped_all_right` and `dropped_all_wrong` say whether the task is solved "
        "or too hard.",
    ),
    Rule(
        "no_rewards",
        needs=(LEFT_OUT,),
        holds=lambda logs, args: logs[LEFT_OUT] == 1 and logs.get("reward") is None,
        yields_to=("no_group_has_a_spread",),
        message="No reward function scored a single rollout: all returned None. Likely they do not find the column or the "
        "answer that they look for.",
    ),
    Rule(
        "no_states",
        needs=(LEFT_OUT, "reward"),
        holds=lambda logs, args: logs[LEFT_OUT] == 1,
        message="Every rollout was left out: none has hidden states that are finite, or a token that the policy wrote. "
        "Likely the policy's states overflow, or its completions are empty.",
    ),
    Rule(
        "no_correct_rollouts",
        needs=(CORRECT, ANCHORS, LEFT_OUT),
        holds=lambda logs, args: logs[CORRECT] == 0 and _is_idle(logs, args),
        message="No rollout was correct, so the head has nothing to learn from and no contrastive reward is paid. Likely the "
        "problems are too hard, the reward cannot read the answers, or `contrastive_success_threshold` "
        "({args.contrastive_success_threshold:g}) is too high for it.",
    ),
    Rule(
        "all_rollouts_correct",
        needs=(CORRECT, ANCHORS, LEFT_OUT),
        holds=lambda logs, args: logs[CORRECT] == 1 and _is_idle(logs, args),
        message="Every rollout was correct, so there is no wrong one to tell them from and the head learns nothing. Likely the "
        "task is solved, the reward is too lenient, or `contrastive_success_threshold` "
        "({args.contrastive_success_threshold:g}) is too low for it.",
    ),
    Rule(
        "no_mixed_groups",
        needs=(CORRECT, ANCHORS, LEFT_OUT),
        holds=_is_idle,
        message="No rollout was an anchor, so the head learns nothing: every group had fewer than two correct rollouts, or no "
        "wrong one (with `contrastive_anchors='incorrect'` the other way round). Likely the prompts are too hard or too easy, "
        "groups of {args.num_generations} are too small, or the rollouts of a group are alike.",
        yields_to=("no_correct_rollouts", "all_rollouts_correct"),
    ),
    Rule(
        "correct_without_answer",
        needs=(CORRECT,),
        holds=_correct_without_answer,
        message="Rollouts count as correct (share {logs[contrastive/correct_rollouts]:.2g}), but the reward for right answers "
        "is 0 for every one. Likely another reward, such as one of format, decides success: see "
        "`contrastive_success_rewards`.",
    ),
    Rule(
        "no_reward_spread",
        needs=(NO_SPREAD, "reward"),
        holds=_has_no_spread,
        message="The rollouts of every group got the same reward (mean {logs[reward]:.3g}), so all advantages are 0 and the policy "
        "learns nothing. Likely the reward is the same for all answers, the problems are all too hard or too easy, or the "
        "rollouts of a group are alike.",
        silent=(_policy_is_frozen,),
    ),
    Rule(
        "all_truncated",
        needs=(TRUNCATED,),
        holds=lambda logs, args: logs[TRUNCATED] == 1,
        message="Every completion was cut off at `max_completion_length` ({args.max_completion_length}). Likely it is too "
        "short, or the policy never writes its end token.",
    ),
    Rule(
        "all_rewards_on_the_floor",
        needs=(FLOOR,),
        holds=lambda logs, args: logs[FLOOR] == 1,
        message="Every contrastive reward was cut at its bound (`contrastive_reward_floor` is {args.contrastive_reward_floor:g}), so "
        "it tells no correct rollout from another. Likely `contrastive_reward_weight` ({args.contrastive_reward_weight:g}) "
        "is too large, or groups have so many correct rollouts that the loss stays high.",
        silent=(_nothing_is_paid, _in_warmup),
    ),
    Rule(
        "head_gradient_zero",
        needs=(HEAD_GRADIENT,),
        holds=lambda logs, args: logs[HEAD_GRADIENT] == 0,
        message="The head's gradient was 0 (`contrastive/head_grad_norm`), so it learns nothing. Likely all rollouts of a group "
        "have the same hidden state, or the head's units are dead.",
        silent=(_head_is_frozen,),
    ),
    Rule(
        "head_gradient_not_finite",
        needs=(),
        holds=lambda logs, args: _not_finite(HEAD_GRADIENT, logs),
        message="The head's gradient was not finite (`contrastive/head_grad_norm`), and its steps were skipped. Likely hidden "
        "states are so large that their projection overflows.",
        silent=(_head_is_frozen,),
    ),
    Rule(
        "embeddings_collapsed",
        needs=(SAME, OTHER),
        holds=lambda logs, args: logs[OTHER] >= logs[SAME] - _SAME_COSINE,
        message="The head does not tell correct from wrong rollouts: a correct one is as close to the wrong ones (mean cosine "
        "{logs[contrastive/embedding_cosine_correct_wrong]:.3f}) as to the other correct ones "
        "({logs[contrastive/embedding_cosine_correct_correct]:.3f}). Likely it learns too slowly or too fast, or what all "
        "answers to a prompt share drowns what tells them apart.",
        silent=(_head_is_frozen, _head_is_young, _correct_are_not_pulled_together),
    ),
    Rule(
        "policy_gradient_zero",
        needs=(GRADIENT, NO_SPREAD, "reward"),
        holds=_has_no_gradient,
        message="The policy's gradient was exactly 0 (`grad_norm`), though rewards differ: its weights do not move. Likely none "
        "of them is trainable, every token is masked, or with `scale_rewards='batch'` rewards differ between groups only.",
        silent=(_policy_is_frozen,),
    ),
    Rule(
        "policy_gradient_not_finite",
        needs=(),
        holds=lambda logs, args: _not_finite(GRADIENT, logs),
        message="The policy's gradient was not finite (`grad_norm`). Likely the learning rate is too high, or `fp16` overflows; "
        "once weights are NaN, nothing mends them but an earlier checkpoint.",
        silent=(_policy_is_frozen,),
    ),
)


class HealthCallback(TrainerCallback):
    """
    Warns when nothing can be learned: when one of `RULES` holds in `patience` training logs in a row. It names the
    likely cause and the section of docs/metrics.md that helps. A finding is said once, and again only when it has been
    away for as many logs.

    It reads the logs alone, with any `logging_steps`. Logs that lack a metric, for example between two generation
    batches, count neither for nor against. Evaluation logs and the summary at the end are left alone. Every process
    keeps the findings, and the first one speaks. Each call of `train` starts afresh, also when it resumes from a
    checkpoint.

    Args:
        patience (`int`, *optional*, defaults to `5`): logs in a row before a finding is said, or is over.

    Attributes:
        findings (`list[Finding]`): what was found, in order; one that came back stands there twice.

    Raises:
        `ValueError`: `patience` is not positive.
        `TypeError`: the trainer that trains is not CLIPO's.

    Example:

    ```python
    trainer = CLIPOTrainer(...)
    trainer.add_callback(HealthCallback())
    ```
    """

    def __init__(self, patience: int = 5):
        if not patience > 0:
            raise ValueError(f"`patience` is {patience}, but must be greater than 0. It counts logs.")
        self.patience = patience
        self._start_afresh()

    def _start_afresh(self) -> None:
        self.findings: list[Finding] = []
        self._current: dict[str, Finding] = {}
        # By rule: steps of the latest logs, all for a finding that is not current, or all against one that is.
        self._streaks: dict[str, list[int]] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        if not isinstance(args, CLIPOConfigMixin):
            raise TypeError(
                f"`args` is a `{type(args).__name__}`, which has no contrastive fields, and `HealthCallback` goes by them. Add "
                "it to a `CLIPOTrainer`, or leave it out."
            )
        self._start_afresh()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "train_runtime" in logs or any(key.startswith("eval_") for key in logs):
            return
        for rule in RULES:
            shows = rule.verdict(logs, args, state.global_step)
            if any(name in self._current for name in rule.yields_to):
                self._streaks.pop(rule.name, None)
            elif shows is not None:
                self._follow(rule, shows, logs, args, state)

    def _follow(self, rule: Rule, shows: bool, logs: Logs, args: CLIPOArguments, state) -> None:
        current = self._current.get(rule.name)
        if current and shows:
            current.last_step = state.global_step
        if bool(current) == shows:
            self._streaks.pop(rule.name, None)
            return
        steps = self._streaks.setdefault(rule.name, [])
        steps.append(state.global_step)
        if len(steps) < self.patience:
            return
        del self._streaks[rule.name]
        if current:
            del self._current[rule.name]
            return
        finding = Finding(rule.name, steps[0], steps[-1], rule.message.format(logs=logs, args=args), rule.page)
        self._current[rule.name] = finding
        self.findings.append(finding)
        if state.is_world_process_zero:
            since = f"steps {finding.first_step} to {finding.last_step}"
            logger.warning(f"Health check, {since}, {finding.name}: {finding.message} See {finding.page}")
