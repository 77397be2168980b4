"""The arms of the faithfulness experiment: what is trained from which policy with what reward, and what is kept of it.

All arms of a seed start from the same policy and draw from the same stream of problems. They differ in the contrastive
reward, and in its warm-up: with one, the first batches of the stream train the head alone. GRPO is CLIPO with weight
0: plain GRPO bit for bit, with the metrics of an untold head beside it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback

from clipo_trl import CLIPOConfig, CLIPOTrainer
from clipo_trl.metrics import sound_against_lucky
from reward_funcs import sound_equations_reward

from .. import chain
from ..starting_policy import Phase
from .tasks import CHAINS, Task, right_with_sound_equations_reward


# ---------------------------------------------------------------------------------------------------------------------
# Starting policies: about half of the answers are right, and some of those by luck
# ---------------------------------------------------------------------------------------------------------------------

CLEAN = Phase("clean", 200, 3e-3)
POLICIES: dict[str, tuple[Phase, ...]] = {
    # A slip now and then: lucky rollouts are a minority, and each is wrong in its own way.
    "rare_slips": (CLEAN, Phase("noisy", 250, 2e-3, wrong_quotient=0.10, wrong_remainder=0.17)),
    # Slips in most traces: lucky rollouts are the majority, and each is still wrong in its own way.
    "frequent_slips": (CLEAN, Phase("noisy", 250, 2e-3, wrong_quotient=0.35, wrong_remainder=0.17)),
    # A habit: most traces write every quotient as 0. Lucky rollouts are the majority, and all wrong in the same way.
    "habit": (CLEAN, Phase("noisy", 250, 2e-3, lazy=0.75, wrong_quotient=0.02, wrong_remainder=0.17)),
    # A shortcut: most traces hardly divide, and the steps after go on from values that are not reduced. Lucky rollouts
    # are the majority and all wrong in the same way, and that way fails more often on larger numbers.
    "shortcut": (CLEAN, Phase("noisy", 250, 2e-3, shortcut=0.85, wrong_quotient=0.02, wrong_remainder=0.10)),
}

# ---------------------------------------------------------------------------------------------------------------------
# Arms
# ---------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """
    One arm.

    Attributes:
        title (`str`): Name in tables and pictures.
        config (`dict[str, Any]`): Fields of [`CLIPOConfig`] that differ from the task's.
        control (`str`, *optional*):
            Which of a group's right rollouts gets which of their contrastive rewards: its own (None), one drawn at
            random (`"permuted"`), or the higher ones to those whose steps are all right (`"sorted"`).
        paid (`tuple[str, ...]`): Reward functions that are paid, with weight 1; the others are watched.
    """

    title: str
    config: dict[str, Any] = field(default_factory=dict)
    control: str | None = None
    paid: tuple[str, ...] = (chain.answer_reward.__name__,)


WARMUP = {"contrastive_warmup_steps": CHAINS.warmup_steps}  # another task puts its own there: see `config_of`
CLIPO = {"contrastive_reward_weight": 0.2, **WARMUP}
AGREEMENT = {
    "contrastive_reward_type": "agreement",
    "contrastive_debias": "group_center",
    "contrastive_reward_weight": 0.2,
    **WARMUP,
}
ENTROPY = {"contrastive_reward_type": "negative_entropy", "contrastive_reward_weight": 0.2, **WARMUP}
LIKELIHOOD = {"contrastive_reward_type": "likelihood", "contrastive_reward_weight": 0.2, **WARMUP}
SCALED = {"contrastive_score_scale": "group"}
EQUATIONS_CHECK = (chain.answer_reward.__name__, right_with_sound_equations_reward.__name__)
SPOT_CHECK = (chain.answer_reward.__name__, chain.spot_checked_steps_reward.__name__)


def calibrated(step_reward: Callable) -> dict[str, Any]:
    return AGREEMENT | {"contrastive_calibration": True, "contrastive_step_reward": step_reward.__name__}


CALIBRATED = calibrated(chain.spot_checked_steps_reward)

ARMS: dict[str, Arm] = {
    "grpo": Arm("GRPO"),
    "clipo": Arm("CLIPO", CLIPO),
    "permuted": Arm("CLIPO, permuted", CLIPO, "permuted"),
    "sorted": Arm("CLIPO, sorted", CLIPO, "sorted"),
    "agreement": Arm("agreement", AGREEMENT),
    "agreement_permuted": Arm("agreement, permuted", AGREEMENT, "permuted"),
    "spot_check": Arm("GRPO, 1 in 8 spot-checked", paid=SPOT_CHECK),
    "calibrated_spot_check": Arm("agreement, calibrated, 1 in 8 spot-checked", CALIBRATED, paid=SPOT_CHECK),
    "calibrated": Arm("agreement, calibrated on 1 in 8", CALIBRATED),
    "agreement_weight_1": Arm("agreement, weight 1", AGREEMENT | {"contrastive_reward_weight": 1.0}),
    "frozen_head": Arm("CLIPO, frozen head", {"contrastive_reward_weight": 0.2, "freeze_contrastive_head": True}),
    "supcon_out": Arm("CLIPO, SupCon", CLIPO | {"contrastive_loss_type": "supcon_out"}),
    "temperature": Arm("CLIPO, temperature 0.5", CLIPO | {"contrastive_temperature": 0.5}),
    "similarity_gap": Arm(
        "similarity gap", AGREEMENT | {"contrastive_reward_type": "similarity_gap", "contrastive_debias": None}
    ),
    "likelihood": Arm("likelihood", LIKELIHOOD),
    "likelihood_permuted": Arm("likelihood, permuted", LIKELIHOOD, "permuted"),
    "negative_entropy": Arm("minus entropy", ENTROPY),
    "negative_entropy_permuted": Arm("minus entropy, permuted", ENTROPY, "permuted"),
    "likelihood_scaled": Arm("likelihood, scaled", LIKELIHOOD | SCALED),
    "likelihood_scaled_permuted": Arm("likelihood, scaled, permuted", LIKELIHOOD | SCALED, "permuted"),
    "negative_entropy_scaled": Arm("minus entropy, scaled", ENTROPY | SCALED),
    "calibrated_equations": Arm("agreement, calibrated by equations", calibrated(sound_equations_reward)),
    "equations": Arm("GRPO, equations checked", paid=EQUATIONS_CHECK),
}
CORE = ("grpo", "clipo", "permuted", "sorted", "agreement", "agreement_permuted")


def config_of(arm: str, task: Task) -> dict[str, Any]:
    """Fields of [`CLIPOConfig`] that an arm is trained with. Raises a `ValueError` if it asks for a reward that the
    task does not have."""
    asked, names = ARMS[arm], [function.__name__ for function in task.rewards]
    config = task.config | {"reward_weights": [float(name in asked.paid) for name in names]} | asked.config
    if not suits(arm, task):
        raise ValueError(f"The arm {arm!r} needs rewards that are not among its policies': {', '.join(names)}.")
    if "contrastive_warmup_steps" in config:
        config["contrastive_warmup_steps"] = task.warmup_steps
    return config


def suits(arm: str, task: Task) -> bool:
    """Whether the task has all rewards that the arm asks for."""
    asked, names = ARMS[arm], {function.__name__ for function in task.rewards}
    return {asked.config.get("contrastive_step_reward", task.config["contrastive_step_reward"]), *asked.paid} <= names


class ControlledTrainer(CLIPOTrainer):
    """`CLIPOTrainer` that pays the contrastive rewards of a group's right rollouts as an arm's `control` says."""

    reward_control: str | None = None
    n_batches = 0  # that are scored in the whole run
    snapshots: dict[str, np.ndarray]  # embeddings of the first and of the last batch

    soundness: list[dict[str, float]]  # of each batch: how well what was paid tells sound from lucky rollouts

    def reward_to_pay(self, batch):
        answers_PG, steps_PG = (batch.rewards[f.__name__] for f in (chain.answer_reward, chain.steps_reward))
        right_PG, paid_PG = answers_PG > 0, super().reward_to_pay(batch).clone()
        self._keep_embeddings(batch, right_PG, steps_PG > 0)
        if self.reward_control is not None:
            for paid_G, right_G, steps_G in zip(paid_PG, right_PG, steps_PG, strict=True):
                paid_G[right_G] = self._reordered(paid_G[right_G], steps_G[right_G])
        # On all problems, also where the trainer's own metrics know the spot-checked ones alone.
        scored_PG = right_PG & (right_PG.sum(1, keepdim=True) > 1)
        sums = sound_against_lucky(paid_PG, scored_PG & (steps_PG > 0), scored_PG & (steps_PG == 0))
        figures = (("auroc", sums[0]), ("gap", sums[1]))
        self.soundness.append(
            {f"contrastive/sound_{name}_reward": (total / sums[2]).item() for name, total in figures}
        )
        return paid_PG

    def _reordered(self, rewards: torch.Tensor, steps: torch.Tensor) -> torch.Tensor:
        """The rewards of one group's right rollouts, permuted, or the highest ones where the steps are right."""
        order = torch.randperm(len(rewards), generator=self.head_learner.draw_generator).to(rewards.device)
        if self.reward_control == "permuted":
            return rewards[order]
        order = order[steps[order].argsort(descending=True, stable=True)]  # best first, ties at random
        return torch.empty_like(rewards).index_copy(0, order, rewards.sort(descending=True).values)

    def _keep_embeddings(self, batch, right_PG, sound_PG) -> None:
        name = {1: "before", self.n_batches: "after"}.get(self.head_learner.n_batches)
        if name is not None:
            label_N = (right_PG.long() + sound_PG).flatten()  # 0 wrong, 1 lucky, 2 sound
            self.snapshots |= {
                name: batch.embeddings_PGD.flatten(0, 1).cpu().numpy(),
                f"label_{name}": label_N.cpu().numpy(),
                f"group_{name}": np.arange(len(label_N)) // self.num_generations,
            }


# ---------------------------------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------------------------------


def run(
    policy_folder: Path,
    arm: str,
    seed: int,
    *,
    task: Task = CHAINS,
    steps: int,
    eval_every: int,
    train_set: Dataset,
    eval_sets: dict[str, Dataset],
    output_dir: Path,
    num_samples: int = 1,
    device: str = "cpu",
    on_step: Callable[[int], Any] | None = None,
) -> dict[str, Any]:
    """
    Train one arm.

    Args:
        policy_folder (`Path`): Starting policy, see [`warm_start`].
        arm (`str`): Name in `ARMS`.
        seed (`int`): Order of the problems, rollouts, draws and weights of the head.
        task (`Task`, *optional*, defaults to `CHAINS`): What the policy is trained on.
        steps (`int`): Steps of the policy; those of a frozen warm-up come on top.
        eval_every (`int`): Steps between two evaluations; there is one at the end in any case.
        train_set (`Dataset`), eval_sets (`dict[str, Dataset]`): See [`Task`].
        output_dir (`Path`): Folder of the trainer; gets `embeddings.npz` with what [`ControlledTrainer`] keeps.
        num_samples (`int`, *optional*, defaults to `1`): Completions a problem in evaluations.
        device (`str`, *optional*, defaults to `"cpu"`): `"cpu"` or `"cuda"`.
        on_step (`Callable[[int], Any]`, *optional*): Called after each step with the steps done, warm-up included.

    Returns:
        `dict`, ready for JSON: `arm`, `seed`, `steps`, `seconds`, `config`; `train`, one entry a step (from 1; those
        of a frozen warm-up are 0 and below) with the numbers of `rollouts`, of `right` and of `sound` ones and the
        metrics `contrastive/...`; `eval`, one entry an evaluation, with `step` and the figures of each set.
    """
    config = config_of(arm, task)
    args = _make_args(config, seed, steps, output_dir, device)
    n_warmup = args.contrastive_warmup_steps
    model, tokenizer = task.load(policy_folder)
    evaluations = []

    def evaluate() -> dict[str, dict[str, float]]:
        sampling = {"num_samples": num_samples, "seed": seed}
        return {name: task.evaluate(model, tokenizer, rows, **sampling) for name, rows in eval_sets.items()}

    def after_step(step: int) -> None:
        if step > n_warmup and ((step - n_warmup) % eval_every == 0 or step == args.max_steps):
            evaluations.append({"step": step - n_warmup} | evaluate())
        if on_step is not None:
            on_step(step)

    trainer = _make_trainer(arm, task, args, model, tokenizer, train_set, after_step)
    start = time.perf_counter()
    with task.while_training(model):
        trainer.train()
    seconds = round(time.perf_counter() - start, 1)
    np.savez(Path(output_dir, "embeddings.npz"), **trainer.snapshots)
    asked = {"arm": arm, "seed": seed, "steps": steps, "seconds": seconds, "config": config}
    return asked | {"train": _training_rows(trainer, n_warmup), "eval": evaluations}


def _make_args(config: dict[str, Any], seed: int, steps: int, output_dir: Path, device: str) -> CLIPOConfig:
    return CLIPOConfig(
        output_dir=str(output_dir),
        max_steps=steps + config.get("contrastive_warmup_steps", 0),
        seed=seed,
        use_cpu=device == "cpu",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        contrastive_success_rewards=[chain.answer_reward.__name__],
        **{"bf16": False} | config,
    )


def _make_trainer(arm: str, task: Task, args, model, tokenizer, train_set: Dataset, after_step) -> ControlledTrainer:
    trainer = ControlledTrainer(
        model,
        list(task.rewards),
        args,
        train_dataset=train_set,
        processing_class=tokenizer,
        peft_config=task.peft_config(model),
        rollout_func=task.rollout_func,
        callbacks=[_AfterStep(after_step)],
    )
    trainer.reward_control, trainer.n_batches = ARMS[arm].control, args.max_steps
    trainer.snapshots, trainer.soundness = {}, []
    trainer.remove_callback(PrinterCallback)
    return trainer


def _training_rows(trainer: ControlledTrainer, n_warmup: int) -> list[dict[str, Any]]:
    """What was logged of each generation batch, counted from the first step after the warm-up."""
    n_rollouts = trainer.args.per_device_train_batch_size
    return [
        {
            "step": row["step"] - n_warmup,
            "rollouts": n_rollouts,
            "right": round(row["rewards/answer_reward/mean"] * n_rollouts),
            "sound": round(row["rewards/steps_reward/mean"] * n_rollouts),
            **{key: value for key, value in row.items() if key.startswith("contrastive/")},
            **soundness,
        }
        for row, soundness in zip(
            (row for row in trainer.state.log_history if "reward" in row), trainer.soundness, strict=True
        )
    ]


class _AfterStep(TrainerCallback):
    def __init__(self, after_step: Callable[[int], None]):
        self.after_step = after_step

    def on_step_end(self, args, state, control, **kwargs):
        self.after_step(state.global_step)
