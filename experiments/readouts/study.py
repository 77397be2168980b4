"""What is asked for, and the jobs it is made of: each is written down whole, and not done again."""

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from ..faithfulness import arms, study
from ..faithfulness.jobs import Job
from .embedding_scores import all_embedding_scores
from .passes import FrozenPolicy
from .rollouts import Rollouts, load_policy, sample
from .statistics import BesideLikelihood, Bootstrap, make_pairs, table_row
from .token_scores import compare_prompts, cut_and_change, read_all


LIKELIHOOD = "likelihood/mean"
MANY = 400  # groups of a language model, about, to show progress
MAX_LAYERS = 7  # that are read, spread over a deep model
SCORES = "scores.npz"
ROLLOUTS = "rollouts.jsonl"  # of a language model, beside its folder `model`
STAGES = ("rollouts", "read", "prompts", "cuts", "embeddings", "table")
# Scores that a model of all of them together has beside likelihood.
TOGETHER = (
    "likelihood/sum", "likelihood/lowest", "certainty/minus_entropy", "certainty/self_certainty", "length",
    "own_prompt/sum", "own_prompt/lowest_step", "prefix/gain", "prefix/lowest_gain", "cut/lost", "changed/mean",
    "changed/last", "states/-1/mean/alignment", "states/-1/mean/gap", "states/-1/mean/minus_uniformity",
    "centred/-1/mean/alignment", "states/0/mean/alignment", "head/alignment", "head/minus_supcon",
    "states/-1/last/centroid_right",
)  # fmt: skip


@dataclass
class Settings:
    output_dir: str = field(
        default="runs/readouts", metadata={"help": "Where all that is found goes, and is looked for."}
    )
    policies: list[str] = field(
        default_factory=lambda: ["all"],
        metadata={"help": f"Toy policies: `all`, `none`, or some of {', '.join(arms.POLICIES)}."},
    )
    language_models: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Language models with rollouts of word problems, each as NAME=FOLDER, as `python -m experiments.language_model` "
            "writes them."
        },
    )
    groups: int = field(default=400, metadata={"help": "Held-out problems that a toy policy is sampled on."})
    group_size: int = field(default=16, metadata={"help": "Rollouts of each."})
    head_steps: int = field(default=200, metadata={"help": "Steps that a head learns, 8 groups a step."})
    other_prompts: int = field(
        default=2, metadata={"help": "Other problems that a trace's likelihood is compared with."}
    )
    seed: int = field(default=0, metadata={"help": "Of toy policies, problems, rollouts, heads, folds and intervals."})
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    publish: bool = field(
        default=False, metadata={"help": "Write results and page into the checkout, not into `output_dir`."}
    )
    report_only: bool = field(default=False, metadata={"help": "Compute nothing; report what is finished."})

    def __post_init__(self):
        for name in ("groups", "group_size", "head_steps", "other_prompts", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be 1 or more.")
        named = {"all": list(arms.POLICIES), "none": []}
        asked = [name for entry in self.policies for name in named.get(entry, [entry])]
        if unknown := sorted(set(asked) - arms.POLICIES.keys()):
            raise ValueError(
                f"`policies` has {', '.join(unknown)}, but must be of all, none, {', '.join(arms.POLICIES)}."
            )
        self.policies = [name for name in arms.POLICIES if name in asked]
        for entry in self.language_models:
            name, separator, folder = entry.partition("=")
            if not (name and separator and Path(folder, ROLLOUTS).is_file()):
                raise ValueError(
                    f"`language_models` has {entry!r}, but must be NAME=FOLDER, of a folder with `model` and `{ROLLOUTS}` in "
                    "it. `python -m experiments.language_model` makes them."
                )

    @property
    def folders(self) -> dict[str, Path]:
        """Folders of the language models by name."""
        pairs = (entry.partition("=") for entry in self.language_models)
        return {name: Path(folder) for name, _, folder in pairs}


@dataclass(frozen=True)
class Source:
    """A policy, and where its rollouts come from: they are sampled unless they are there."""

    name: str
    policy_folder: Path
    given: Path | None
    dtype: str


# ---------------------------------------------------------------------------------------------------------------------
# Jobs
# ---------------------------------------------------------------------------------------------------------------------


def policy_jobs(settings: Settings) -> list[Job]:
    """The jobs that make the toy policies."""
    if not settings.policies:
        return []
    warm_starts = study.Settings(settings.output_dir, policies=settings.policies, first_seed=settings.seed)
    return list(study.policy_jobs(warm_starts).values())


def sources(settings: Settings) -> list[Source]:
    toys = [Source(job.folder.name, job.folder, None, "float32") for job in policy_jobs(settings)]
    models = settings.folders.items()
    return toys + [Source(name, folder / "model", folder / ROLLOUTS, "bfloat16") for name, folder in models]


def jobs_of(settings: Settings, source: Source) -> dict[str, Job]:
    """The jobs of one policy, by stage; each needs those before it."""
    folder = Path(settings.output_dir, source.name)
    asked = {name: getattr(settings, name) for name in ("seed", "groups", "group_size")}
    if source.given is not None:
        asked = {"seed": settings.seed, "given": str(source.given)}
    more = {"prompts": {"other_prompts": settings.other_prompts}, "embeddings": {"head_steps": settings.head_steps}}
    more["table"] = more["prompts"] | more["embeddings"]
    n_groups = settings.groups if source.given is None else MANY
    steps = {"read": n_groups, "prompts": n_groups, "cuts": n_groups, "embeddings": 30, "table": 300}
    return {
        stage: Job(
            name=f"{source.name}: {stage}",
            folder=folder / stage,
            settings=asked | more.get(stage, {}),
            steps=steps.get(stage, 1),
            work=functools.partial(work, stage, source, asdict(settings)),
        )
        for stage in STAGES
    }


def work(stage: str, source: Source, asked: dict[str, Any], folder: Path, on_step: Callable[..., None]) -> Any:
    """Do one stage in a worker process."""
    torch.set_num_threads(asked["threads"])
    return WORK[stage](source, asked, folder, on_step)


def _make_rollouts(source: Source, asked: dict[str, Any], folder: Path, on_step) -> dict[str, float]:
    if source.given is not None:
        rollouts = Rollouts.read_word_problems(source.given)
    else:
        size = (asked["groups"], asked["group_size"], asked["seed"])
        rollouts = sample(source.policy_folder, "chain", *size, getattr(torch, source.dtype))
    rollouts.save(folder)
    return rollouts.figures()


def _frozen_policy(source: Source) -> FrozenPolicy:
    config = AutoConfig.from_pretrained(source.policy_folder).get_text_config()
    model, tokenizer = load_policy(source.policy_folder, getattr(torch, source.dtype))
    return FrozenPolicy(model, tokenizer, layers_to_read(config.num_hidden_layers))


def layers_to_read(n_layers: int) -> list[int]:
    """The last layer (-1) and others from the first one on, evenly spread."""
    others = np.unique(np.linspace(0, n_layers - 2, min(MAX_LAYERS, n_layers) - 1).round().astype(int))
    return [*others.tolist(), -1] if n_layers > 1 else [-1]


def _read(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[str]:
    scores, states = read_all(_frozen_policy(source), _rollouts_beside(folder), on_step)
    np.savez(folder / "states.npz", **states)
    return _keep(scores, folder)


def _compare_prompts(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[str]:
    rollouts = _rollouts_beside(folder)
    scores = compare_prompts(_frozen_policy(source), rollouts, asked["other_prompts"], asked["seed"], on_step)
    return _keep(scores, folder)


def _cut_and_change(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[str]:
    scores = cut_and_change(_frozen_policy(source), _rollouts_beside(folder), asked["seed"], on_step)
    return _keep(scores, folder)


def _embed(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[str]:
    right_PG = _rollouts_beside(folder).right_PG
    with np.load(folder.parent / "read" / "states.npz") as states:
        settings = {"head_steps": asked["head_steps"], "seed": asked["seed"], "on_space": on_step}
        scores = all_embedding_scores(dict(states), right_PG, **settings)
    return _keep(scores, folder)


def _make_table(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[dict[str, Any]]:
    """One row a score, and one of a model that has many of them."""
    rollouts, scores = _rollouts_beside(folder), all_scores(folder.parent)
    pairs = make_pairs(rollouts.sound_PG, rollouts.lucky_PG, rollouts.compared_P)
    bootstrap = Bootstrap(pairs, asked["seed"])
    beside = BesideLikelihood(scores[LIKELIHOOD], pairs, asked["seed"])
    rows = []
    for name, score_PG in scores.items():
        rows.append({"score": name} | table_row(score_PG, pairs, beside, bootstrap))
        on_step()
    return rows + summary_rows(scores, beside, bootstrap)


def summary_rows(
    scores: dict[str, np.ndarray], beside: BesideLikelihood, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Rows of the models: likelihood alone, its sign learned, and many scores together."""
    rows = []
    together = [scores[name] for name in TOGETHER if name in scores]
    models = {"model/likelihood": beside.alone_N, "model/together": beside.rank_out_of_fold(together, strength=0.1)}
    for name, ranked_N in models.items():
        row: dict[str, Any] = {"score": name}
        for figure, of_pair_N in (("combined", ranked_N), ("gain", ranked_N - beside.alone_N)):
            ends = zip(("", "_low", "_high"), bootstrap.mean(of_pair_N), strict=True)
            row |= {f"{figure}{end}": value for end, value in ends}
        rows.append(row)
    return rows


WORK: dict[str, Callable[..., Any]] = {
    "rollouts": _make_rollouts,
    "read": _read,
    "prompts": _compare_prompts,
    "cuts": _cut_and_change,
    "embeddings": _embed,
    "table": _make_table,
}


def _keep(scores: dict[str, np.ndarray], folder: Path) -> list[str]:
    """Write scores of single rollouts; their names are the job's result."""
    np.savez(folder / SCORES, **scores)
    return list(scores)


def _rollouts_beside(folder: Path) -> Rollouts:
    return Rollouts.load(folder.parent / "rollouts")


def all_scores(policy_folder: Path) -> dict[str, np.ndarray]:
    """All scores `(P, G)` of a policy that were computed, by name."""
    scores: dict[str, np.ndarray] = {}
    for stage in STAGES:
        path = policy_folder / stage / SCORES
        if path.exists():
            with np.load(path) as found:
                scores |= dict(found)
    return scores
