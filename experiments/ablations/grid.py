"""Arms from files of fields, and the jobs that train them: one for each arm and seed."""

import contextlib
import functools
import json
import shlex
import subprocess
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipo_trl.cli.command_line import check_training, read_configs

from ..faithfulness.jobs import Job


CONFIGS = Path("configs/ablations")
STEPS_40 = "experiments/ablations/steps_40.yaml"
ARMS = (
    *(f"loss_{name}" for name in ("supcon_out", "supcon_in", "soft_nn")),
    *(f"temperature_{value}" for value in (0.02, 0.1, 0.2)),
    *(f"group_size_{size}" for size in (4, 16, 32)),
    *(f"level_{name}" for name in ("cross", "batch")),
)
POLICY_NEVER_WAITS = ("head_frozen", "warmup_none", "warmup_verifiable_reward")
BASE, MODEL, LOG = "base", "model", "log.txt"
LOG_LINES = 30  # of a run that failed, to be told


def default_arms() -> list[str]:
    plain = [f"{CONFIGS}/{name}.yaml" for name in ("grpo", *ARMS)]
    return [*plain, *(f"{CONFIGS}/{name}.yaml+{STEPS_40}" for name in POLICY_NEVER_WAITS)]


@dataclass
class Settings:
    base: list[str] = field(
        default_factory=lambda: ["configs/quickstart.yaml", "experiments/ablations/quickstart.yaml"],
        metadata={"help": "Files of the base configuration, later ones winning. It is an arm too."},
    )
    arms: list[str] = field(
        default_factory=default_arms,
        metadata={"help": "Arms: each a file over the base, or several joined by `+`, later ones winning."},
    )
    seeds: int = field(default=6, metadata={"help": "How many seeds an arm."})
    first_seed: int = field(default=1000, metadata={"help": "First seed."})
    metrics: list[str] = field(
        default_factory=lambda: ["rewards/answer_reward/mean", "rewards/steps_reward/mean", "contrastive/lucky_share"],
        metadata={
            "help": "What is compared, by its logged name: the mean over the last steps, or the last value of an `eval_...`."
        },
    )
    last_steps: int = field(default=20, metadata={"help": "Steps at the end of training that metrics are of."})
    launcher: str = field(
        default="",
        metadata={
            "help": "Words that start a training, such as `accelerate launch train.py`. Default: in this program's processes."
        },
    )
    num_processes: int = field(
        default=2, metadata={"help": "Trainings at a time, each on one thread; 1 where they share one GPU."}
    )
    output_dir: str = field(default="runs/ablations", metadata={"help": "Where everything goes, and is looked for."})
    report_only: bool = field(default=False, metadata={"help": "Run nothing; report what is finished."})

    def __post_init__(self):
        for name in ("seeds", "last_steps", "num_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be 1 or more.")
        for name in ("base", "metrics"):
            if not getattr(self, name):
                raise ValueError(f"`{name}` is empty. Name at least one.")


@dataclass(frozen=True)
class Arm:
    """One arm: its name, its files and the fields that they come to."""

    name: str
    files: tuple[str, ...]
    fields: dict[str, Any]


def read_arms(base: list[str], arms: list[str]) -> tuple[list[Arm], list[str]]:
    """
    The base and the arms, by their files.

    Returns:
        `tuple`: the arms, the base first, and the names of those that change nothing of it and so are left out.

    Raises:
        `UsageError`: a file that is missing or no mapping. `ValueError`: two arms of one name.
    """
    found = [Arm(BASE, tuple(base), read_configs(base))]
    same = []
    for words in arms:
        files = words.split("+")
        name = "+".join(Path(file).stem for file in files)
        arm = Arm(name, (*base, *files), read_configs([*base, *files]))
        if arm.fields == found[0].fields:
            same.append(name)
        elif name in {other.name for other in found}:
            raise ValueError(f"`arms` has '{name}' twice, or two files of that name. Rename one.")
        else:
            found.append(arm)
    return found, same


def jobs_of(settings: Settings, arms: list[Arm]) -> dict[tuple[str, int], Job]:
    """A job for each arm and seed. Seeds outermost: a grid that is stopped has whole pairs."""
    return {
        (arm.name, seed): _job(settings, arm, seed)
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        for arm in arms
    }


def check_arms(arms: list[Arm], launcher: str = "") -> None:
    """Raise a `UsageError` for the first arm that could not be trained, as far as its files tell. What a `launcher`
    starts may have fields of its own."""
    for arm in arms:
        check_training(["--config", *arm.files], names=not launcher)


def _job(settings: Settings, arm: Arm, seed: int) -> Job:
    words = ["--config", *arm.files, "--seed", str(seed)]
    launcher = shlex.split(settings.launcher)
    return Job(
        name=f"{arm.name}, seed {seed}",
        folder=Path(settings.output_dir) / "runs" / arm.name / str(seed),
        settings={"fields": arm.fields, "seed": seed},
        steps=1 if launcher else max(arm.fields.get("max_steps", 1), 1),
        work=functools.partial(launch, [*launcher, *words]) if launcher else functools.partial(train, words),
    )


def train(words: list[str], folder: Path, on_step: Callable[..., None]) -> list[dict[str, Any]]:
    """Train in this process as the words of `clipo train` say, into `folder`. Returns what was logged."""
    import transformers  # here: the main process needs none of it

    from clipo_trl.cli.train import main

    class Stepper(transformers.TrainerCallback):
        """In the place of the progress bar."""

        def on_step_end(self, args, state, control, **kwargs):
            on_step()

    transformers.trainer.DEFAULT_PROGRESS_CALLBACK = Stepper
    with open(folder / LOG, "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        trainer = main([*words, "--output_dir", str(folder / MODEL), "--disable_tqdm", "false"])
    return trainer.state.log_history


def launch(command: list[str], folder: Path, on_step: Callable[..., None]) -> list[dict[str, Any]]:
    """
    Train by a command of its own, into `folder`. Returns what was logged.

    Raises:
        RuntimeError: it failed; with the end of what it wrote.
    """
    words = [*command, "--output_dir", str(folder / MODEL)]
    with open(folder / LOG, "w") as log:
        process = subprocess.Popen(words, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    try:
        while process.poll() is None:
            on_step()  # raises if the grid is stopped
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.5)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
    if process.returncode:
        end = "\n".join((folder / LOG).read_text(errors="replace").splitlines()[-LOG_LINES:])
        raise RuntimeError(f"{shlex.join(words)}\n{end}\nended with exit status {process.returncode}")
    return json.loads((folder / MODEL / "trainer_state.json").read_text())["log_history"]


def prepare_worker() -> None:
    """One thread, and nothing on the screen: that is the main process's."""
    import datasets
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)  # trainings share the cores, and results do not depend on their number
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")
