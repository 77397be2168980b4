"""A study: what is asked for, the jobs it is made of, and what there is of it to report."""

import functools
import os
import warnings
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from transformers.utils import logging

from .. import language_model
from ..language_model import WARM_STARTS
from ..language_model.warm_starts import lineage
from ..starting_policy import Phase, warm_start
from . import arms
from .jobs import Job
from .statistics import Metrics, Run, run_metrics
from .tasks import CHAINS, Task, word_problems_task


REFERENCE = "grpo"  # differences are to this arm
COMPARED = (  # and to these arms
    "permuted",
    "agreement",
    "agreement_permuted",
    "likelihood",
    "likelihood_permuted",
    "negative_entropy_permuted",
    "likelihood_scaled_permuted",
)
LATER_PHASE_FIELDS = ("shortcut",)  # than version 0.1.0
ARM_NAMES, POLICY_NAMES = ", ".join(arms.ARMS), ", ".join(arms.POLICIES)
LANGUAGE_MODEL_NAMES = ", ".join(WARM_STARTS)


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
        metadata={
            "help": f"Starting policies: `all`, or some of {POLICY_NAMES}; or, of a language model, {LANGUAGE_MODEL_NAMES}."
        },
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
    models: str = field(
        default="runs/language_model",
        metadata={"help": "Where the language model and its warm starts go; see experiments.language_model."},
    )
    device: str = field(default="cpu", metadata={"help": "`cpu`, or `cuda`: all runs then share one GPU."})
    report_only: bool = field(default=False, metadata={"help": "Run nothing; report what of the above is finished."})

    def __post_init__(self):
        known = [*arms.POLICIES, *WARM_STARTS]
        self.policies = _choose("policies", self.policies, {"all": list(arms.POLICIES)}, known)
        tasks = [task_of(policy) for policy in self.policies]
        possible = [arm for arm in arms.ARMS if all(arms.suits(arm, task) for task in tasks)]
        self.arms = _choose("arms", self.arms, {"all": possible, "core": list(arms.CORE)}, arms.ARMS)
        for arm in self.arms:
            for task in tasks:
                arms.config_of(arm, task)
        for name in ("seeds", "steps", "eval_every", "train_problems", "test_problems", "num_processes"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be 1 or more.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("`device` is 'cuda', but torch finds no CUDA device. Use `--device cpu`.")


def task_of(policy: str) -> Task:
    """What a starting policy is trained on."""
    return CHAINS if policy in arms.POLICIES else word_problems_task(WARM_STARTS[policy].problems)


def _choose(argument: str, asked: list[str], named: dict[str, list[str]], known: Collection[str]) -> list[str]:
    """Return the names asked for, in the order in which they are known."""
    names = {name for entry in asked for name in named.get(entry, [entry])}
    if unknown := sorted(names.difference(known)):
        raise ValueError(f"`{argument}` has {', '.join(unknown)}, but must be of {', '.join([*named, *known])}.")
    return [name for name in known if name in names]


@dataclass
class Study:
    """
    What there is to report.

    Attributes:
        arms (`dict[str, str]`): Titles by name, in the order of the tables.
        controls (`set[str]`): Arms that are controls.
        reference (`str`): Arm that differences are to.
        compared (`tuple[str, ...]`): Arms that more differences are to.
        policies (`dict[str, Any]`): Evaluations of the starting policies, by name and test set.
        settings (`dict[str, Any]`): Of the experiment.
        runs (`dict[str, dict[str, dict[int, Run]]]`): By starting policy, arm and seed.
        folders (`dict[tuple[str, str, int], Path]`): Where each run's files are.
    """

    arms: dict[str, str]
    controls: set[str]
    reference: str
    compared: tuple[str, ...]
    policies: dict[str, Any]
    settings: dict[str, Any]
    runs: dict[str, dict[str, dict[int, Run]]] = field(default_factory=dict)
    folders: dict[tuple[str, str, int], Path] = field(default_factory=dict)

    def add(self, policy: str, arm: str, seed: int, run: Run, folder: Path) -> None:
        self.runs.setdefault(policy, {}).setdefault(arm, {})[seed] = run
        self.folders[policy, arm, seed] = folder

    @property
    def n_runs(self) -> int:
        return len(self.folders)

    def present(self, policy: str) -> list[str]:
        """Arms that have a run from this policy, in order."""
        return [arm for arm in self.arms if arm in self.runs.get(policy, {})]

    def metrics(self, policy: str) -> dict[str, dict[int, Metrics]]:
        """Metrics by arm and seed."""
        return {
            arm: {seed: run_metrics(run) for seed, run in sorted(self.runs[policy][arm].items())}
            for arm in self.present(policy)
        }


# ---------------------------------------------------------------------------------------------------------------------
# The jobs of a study, and what a worker process does for them
# ---------------------------------------------------------------------------------------------------------------------


def policy_jobs(settings: Settings) -> dict[str, Job]:
    """The jobs that make the starting policies, by their names."""
    return {policy: policy_job(settings, policy) for policy in settings.policies}


def arm_jobs(settings: Settings, policies: dict[str, Job]) -> dict[tuple[str, str, int], Job]:
    """The jobs that train, by starting policy, arm and seed. Seeds outermost: a run that is stopped has whole
    pairs."""
    return {
        (policy, arm, seed): arm_job(settings, job, policy, seed, arm)
        for seed in range(settings.first_seed, settings.first_seed + settings.seeds)
        for policy, job in policies.items()
        for arm in settings.arms
    }


def check_models(settings: Settings) -> None:
    """Fetch the language model, for all workers, where a warm start of it is to be made; and raise a
    `FileNotFoundError` where one was measured that is no longer there."""
    for name, job in policy_jobs(settings).items():
        if name in arms.POLICIES or Path(settings.models, name, "model").exists():
            continue
        if job.result() is not None:
            raise FileNotFoundError(
                f"`models` is '{settings.models}', but there is no warm start {name!r} in it, which {job.folder} is about. Name its "
                "folder, or delete that one to have it made again."
            )
        language_model.fetch(settings.models)


def collect(settings: Settings, policies: dict[str, Job], runs: dict[tuple[str, str, int], Job]) -> Study:
    """What is finished of those jobs."""
    study = Study(
        arms={name: arms.ARMS[name].title for name in settings.arms},
        controls={name for name in settings.arms if arms.ARMS[name].control is not None},
        reference=REFERENCE,
        compared=COMPARED,
        policies={name: result for name, job in policies.items() if (result := job.result()) is not None},
        settings=asdict(settings),
    )
    for (policy, arm, seed), job in runs.items():
        if (run := job.result()) is not None:
            study.add(policy, arm, seed, run, job.folder)
    return study


def policy_job(settings: Settings, policy: str) -> Job:
    """Warm-start one starting policy and evaluate it once."""
    if policy not in arms.POLICIES:
        return language_model_job(settings, policy)
    phases = arms.POLICIES[policy]
    model = {"hidden_size": settings.hidden_size, "num_layers": settings.num_layers}
    return Job(
        name=f"starting policy {policy}",
        folder=Path(settings.output_dir) / "policies" / policy,
        settings=model
        | {
            "phases": list(map(phase_settings, phases)),
            "seed": settings.first_seed,
            "test_problems": settings.test_problems,
        },
        steps=sum(phase.steps for phase in phases),
        work=functools.partial(make_policy, phases, model, settings.first_seed, settings.test_problems),
    )


def language_model_job(settings: Settings, name: str) -> Job:
    """Warm-start the language model, if that is not done yet, and evaluate it once. The model stays in
    `settings.models`."""
    recipes = {each: asdict(WARM_STARTS[each]) for each in lineage(name)}
    return Job(
        name=f"warm start {name}",
        folder=Path(settings.output_dir) / "policies" / name,
        settings={"recipes": recipes, "seed": settings.first_seed, "test_problems": settings.test_problems},
        steps=sum(WARM_STARTS[each].steps for each in recipes),
        work=functools.partial(
            make_language_model, settings.models, name, settings.first_seed, settings.test_problems
        ),
    )


def phase_settings(phase: Phase) -> dict[str, Any]:
    """The fields of a phase; those that came later only where they are used: studies that were begun before go on."""
    return {name: value for name, value in asdict(phase).items() if value or name not in LATER_PHASE_FIELDS}


def arm_job(settings: Settings, policy_job: Job, policy: str, seed: int, arm: str) -> Job:
    """Train one arm from one starting policy with one seed."""
    names = ("first_seed", "steps", "eval_every", "train_problems", "test_problems", "device")
    asked = {name: getattr(settings, name) for name in names}
    is_toy, task = policy in arms.POLICIES, task_of(policy)
    policy_folder = policy_job.folder if is_toy else Path(settings.models, policy, "model")
    return Job(
        name=f"{arm} from {policy}, seed {seed}",
        folder=Path(settings.output_dir) / "runs" / policy / arm / str(seed),
        settings=asked
        | {"policy": policy_job.settings, "seed": seed}
        | {"control": arms.ARMS[arm].control, "config": arms.config_of(arm, task)}
        | task.settings,
        steps=settings.steps,
        work=functools.partial(train_arm, policy_folder, task, arm, seed, asked),
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
    return evaluations_of(CHAINS, policy, tokenizer, test_problems, data_seed)


def make_language_model(
    models: str, name: str, data_seed: int, test_problems: int, folder: Path, on_step: Callable[..., None]
) -> dict[str, dict[str, float]]:
    done_before = {each: sum(WARM_STARTS[one].steps for one in lineage(each)[:-1]) for each in lineage(name)}
    model = language_model.warm_start(models, name, on_step=lambda each, done: on_step(done_before[each] + done))
    task = task_of(name)
    return evaluations_of(task, *task.load(model), test_problems, data_seed)


def evaluations_of(task: Task, model, tokenizer, test_problems: int, seed: int) -> dict[str, dict[str, float]]:
    test_sets = task.test_sets(test_problems, seed)
    return {name: task.evaluate(model, tokenizer, rows, num_samples=4) for name, rows in test_sets.items()}


def train_arm(
    policy_folder: Path,
    task: Task,
    arm: str,
    seed: int,
    asked: dict[str, Any],
    folder: Path,
    on_step: Callable[..., None],
) -> dict[str, Any]:
    return arms.run(
        policy_folder,
        arm,
        seed,
        task=task,
        steps=asked["steps"],
        eval_every=asked["eval_every"],
        train_set=task.train_set(asked["train_problems"], asked["first_seed"]),
        eval_sets=task.test_sets(asked["test_problems"], asked["first_seed"]),
        output_dir=folder,
        device=asked["device"],
        on_step=on_step,
    )
