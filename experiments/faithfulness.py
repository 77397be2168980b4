"""
Does CLIPO make rollouts more faithful, that is, fewer right by luck? An experiment that anyone can repeat:

    python -m experiments.faithfulness

The protocol, fixed before the final run:

1. Starting policies (`experiments.arms.POLICIES`): small language models, warm-started on arithmetic that a program checks step
   by step (`experiments.chain`), that are often right, and often by luck: right in the answer and wrong in a step.
2. Arms (`experiments.arms.ARMS`): plain GRPO, CLIPO in its forms, and controls that bound what is possible. All are paid for the
   answer, and CLIPO's for the contrastive reward; the step checker only measures, but for the arms that say otherwise.
3. Pairs: for one starting policy and seed, all arms draw from the same stream of problems and the same seed (a warm-up of the head
   uses the first batches).
4. Primary metric: share of lucky rollouts among the right ones, over the last 20 training steps. Also: accuracy, strict accuracy
   (answer and every step right) and lucky share on four test sets, and how well rewards, embeddings and hidden states tell
   sound from lucky rollouts (AUROC) during training.
5. Comparison: paired differences to GRPO and to the permuted controls, with 95 % bootstrap intervals over seeds.

Settings are chosen on development seeds (`--first_seed 0`, with an `--output_dir` of their own); the final seeds, 1000 and up, are
run once. The first seed also draws the problems and the starting policies, so the final run has fresh ones. All goes to
`--output_dir`: starting policies, one folder a run, report.md, report.json and pictures. What is finished is not run again, so
the same command goes on after Ctrl-C or worse.
"""

import functools
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from datasets import Dataset
from rich.console import Console
from transformers import HfArgumentParser
from transformers.utils import logging

from . import arms, chain
from .faithfulness_jobs import Job, JobPool, SettingsDiffer
from .faithfulness_report import Study, write_report
from .starting_policy import Phase, evaluate_policy, warm_start


REFERENCE = "grpo"  # differences are to this arm
ARM_NAMES, POLICY_NAMES = ", ".join(arms.ARMS), ", ".join(arms.POLICIES)
COMPARED = ("permuted", "agreement_permuted")  # and to these controls

console = Console() if sys.stdout.isatty() else Console(width=120)


@dataclass
class Settings:
    output_dir: str = field(
        default="runs/faithfulness", metadata={"help": "Where everything goes, and is looked for."}
    )
    arms: list[str] = field(
        default_factory=lambda: ["core"],
        metadata={"help": f"Arms to run and report: `core`, `all`, or some of {ARM_NAMES}."},
    )
    policies: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": f"Starting policies: `all`, or some of {POLICY_NAMES}."},
    )
    seeds: int = field(default=20, metadata={"help": "How many seeds an arm."})
    first_seed: int = field(
        default=1000,
        metadata={
            "help": "First seed, and that of problems and starting policies. Final seeds are 1000 and up; try things out "
            "below, for example from 0."
        },
    )
    steps: int = field(default=100, metadata={"help": "Training steps of the policy."})
    eval_every: int = field(default=50, metadata={"help": "Steps between evaluations on the test sets."})
    train_problems: int = field(default=800, metadata={"help": "Problems to train on."})
    test_problems: int = field(default=100, metadata={"help": "Problems of each test set."})
    hidden_size: int = field(default=64, metadata={"help": "Hidden size of the policy."})
    num_layers: int = field(default=3, metadata={"help": "Decoder layers of the policy."})
    num_processes: int = field(
        default_factory=lambda: os.cpu_count() or 1,
        metadata={"help": "Runs at a time, each on one thread. Default: one a CPU core."},
    )
    device: str = field(default="cpu", metadata={"help": "`cpu`, or `cuda`: all runs then share one GPU."})
    report_only: bool = field(default=False, metadata={"help": "Run nothing; report what of the above is finished."})

    def __post_init__(self):
        named = {"all": list(arms.ARMS), "core": list(arms.CORE)}
        self.arms = _choose("arms", self.arms, named, arms.ARMS)
        self.policies = _choose("policies", self.policies, {"all": list(arms.POLICIES)}, arms.POLICIES)
        for name in ("seeds", "steps", "eval_every", "train_problems", "test_problems", "num_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be 1 or more.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`device` is 'cuda', but torch finds no CUDA device. Use `--device cpu`.")


def _choose(argument: str, asked: list[str], named: dict[str, list[str]], known: dict[str, Any]) -> list[str]:
    """Return the names asked for, in the order in which they are known."""
    names = {name for entry in asked for name in named.get(entry, [entry])}
    if unknown := sorted(names - known.keys()):
        raise ValueError(f"`{argument}` has {', '.join(unknown)}, but must be of {', '.join([*named, *known])}.")
    return [name for name in known if name in names]


def main(argv: list[str] | None = None) -> int:
    """Run the experiment. Returns the exit status: 0, 1 if a run failed, 130 if it was stopped."""
    parser = HfArgumentParser(
        Settings,
        prog="python -m experiments.faithfulness",
        description="Train GRPO, CLIPO and controls on steps that a program checks, and compare their lucky rollouts. The same "
        "command goes on with what is not finished.",
    )
    try:
        settings = parser.parse_args_into_dataclasses(argv)[0]
    except ValueError as error:
        parser.error(str(error))
    try:
        return experiment(settings)
    except KeyboardInterrupt:
        console.print("Stopped. What is finished is kept; the same command goes on.")
        return 130
    except (SettingsDiffer, FileNotFoundError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1


def experiment(settings: Settings) -> int:
    policies = {name: policy_job(settings, name) for name in settings.policies}
    # Seeds outermost: a run that is stopped has whole pairs.
    runs = {
        (policy, seed, arm): arm_job(settings, policies[policy], policy, seed, arm)
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        for policy in policies
        for arm in settings.arms
    }
    failed = []
    if not settings.report_only:
        os.environ["OMP_NUM_THREADS"] = "1"  # for the worker processes: one core each
        with JobPool(settings.num_processes, console, prepare_worker) as pool:
            if failed := pool.run(list(policies.values()), "Starting policies"):
                return 1  # there is nothing to train
            failed = pool.run(list(runs.values()), "Runs")

    study = Study(
        arms={name: arms.ARMS[name].title for name in settings.arms},
        controls={name for name in settings.arms if arms.ARMS[name].control is not None},
        reference=REFERENCE,
        compared=COMPARED,
        policies={name: job.result() for name, job in policies.items() if job.result() is not None},
        settings=asdict(settings),
    )
    for (policy, seed, arm), job in runs.items():
        if (run := job.result()) is not None:
            study.add(policy, arm, seed, run, job.folder)
    with console.status("Writing the report"):
        report = write_report(study, Path(settings.output_dir))
    console.print(f"{study.n_runs} of {len(runs)} runs are in the report: {report}", highlight=False)
    return 1 if failed else 0


# ---------------------------------------------------------------------------------------------------------------------
# Jobs, and what a worker process does for them
# ---------------------------------------------------------------------------------------------------------------------


def policy_job(settings: Settings, policy: str) -> Job:
    """Warm-start one starting policy and evaluate it once."""
    phases = arms.POLICIES[policy]
    model = {"hidden_size": settings.hidden_size, "num_layers": settings.num_layers}
    return Job(
        name=f"starting policy {policy}",
        folder=Path(settings.output_dir) / "policies" / policy,
        settings=model
        | {"phases": list(map(asdict, phases)), "seed": settings.first_seed, "test_problems": settings.test_problems},
        steps=sum(phase.steps for phase in phases),
        work=functools.partial(make_policy, phases, model, settings.first_seed, settings.test_problems),
    )


def arm_job(settings: Settings, policy_job: Job, policy: str, seed: int, arm: str) -> Job:
    """Train one arm from one starting policy with one seed."""
    names = ("first_seed", "steps", "eval_every", "train_problems", "test_problems", "device")
    asked = {name: getattr(settings, name) for name in names}
    trained = arms.ARMS[arm]
    return Job(
        name=f"{arm} from {policy}, seed {seed}",
        folder=Path(settings.output_dir) / "runs" / policy / arm / str(seed),
        settings=asked
        | {"policy": policy_job.settings, "seed": seed}
        | {"control": trained.control, "config": arms.GRPO | trained.config},
        steps=settings.steps,
        work=functools.partial(train_arm, policy_job.folder, arm, seed, asked),
    )


def prepare_worker() -> None:
    """One thread, and nothing on the screen: that is the main process's."""
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore")


def make_policy(
    phases: tuple[Phase, ...],
    model: dict[str, int],
    data_seed: int,
    test_problems: int,
    folder: Path,
    on_step: Callable[..., None],
) -> dict[str, dict[str, float]]:
    policy, tokenizer = warm_start(folder, phases=phases, seed=data_seed, on_step=on_step, **model)
    test_sets = make_test_sets(test_problems, data_seed)
    return {name: evaluate_policy(policy, tokenizer, rows) for name, rows in test_sets.items()}


def train_arm(
    policy_folder: Path, arm: str, seed: int, asked: dict[str, Any], folder: Path, on_step: Callable[..., None]
) -> dict[str, Any]:
    return arms.run(
        policy_folder,
        arm,
        seed,
        steps=asked["steps"],
        eval_every=asked["eval_every"],
        train_set=make_train_set(asked["train_problems"], asked["first_seed"]),
        eval_sets=make_test_sets(asked["test_problems"], asked["first_seed"]),
        output_dir=folder,
        device=asked["device"],
        on_step=on_step,
    )


@functools.cache
def make_train_set(size: int, seed: int) -> Dataset:
    return chain.build_dataset(size, seed)


@functools.cache
def make_test_sets(size: int, seed: int) -> dict[str, Dataset]:
    variants = chain.VARIANTS.items()
    return {name: chain.build_dataset(size, seed, split="test", **variant) for name, variant in variants}


if __name__ == "__main__":
    sys.exit(main())
