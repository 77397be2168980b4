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
from .statistics import BesideLikelihood, Bootstrap, Pairs, make_pairs, table_row
from .token_scores import compare_prompts, cut_and_change, read_all


LIKELIHOOD = "likelihood/mean"
MAX_LAYERS = 7  # that are read, spread over a deep model
SCORES = "scores.npz"
ROLLOUTS = "rollouts.jsonl"  # of a language model, beside its folder `model`
STAGES = ("rollouts", "read", "prompts", "cuts", "embeddings", "table", "models")
OF_THE_TEXT = (
    "likelihood/sum", "likelihood/lowest", "certainty/minus_entropy", "certainty/self_certainty", "length",
)  # fmt: skip
OF_EMBEDDINGS = (
    "states/0/mean/alignment", "states/-1/mean/alignment", "states/-1/mean/minus_uniformity", "states/-1/mean/gap",
    "centred/-1/mean/alignment", "states/-1/last/centroid_right", "head/alignment", "head/minus_uniformity",
    "centred_head/alignment", "centred_head/minus_uniformity",
)  # fmt: skip
OF_OTHER_TEXTS = (
    "own_prompt/sum", "own_prompt/lowest_step", "prefix/gain", "prefix/lowest_gain", "cut/lost", "changed/mean",
    "changed/last",
)  # fmt: skip
# What a model has beside likelihood.
MODELS: dict[str, tuple[str, ...]] = {
    "model/likelihood": (),
    "model/text": OF_THE_TEXT,
    "model/embeddings": OF_EMBEDDINGS,
    "model/other_texts": OF_OTHER_TEXTS,
    "model/together": OF_THE_TEXT + OF_EMBEDDINGS + OF_OTHER_TEXTS,
}


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
    language_model_groups: int = field(
        default=250,
        metadata={"help": "Groups of a language model that are scored, of those with something to compare."},
    )
    costly_groups: int = field(
        default=100, metadata={"help": "How many of these are also read after other problems, cut and changed."}
    )
    threads: int = field(default=1, metadata={"help": "CPU threads."})
    publish: bool = field(
        default=False, metadata={"help": "Write results and page into the checkout, not into `output_dir`."}
    )
    report_only: bool = field(default=False, metadata={"help": "Compute nothing; report what is finished."})

    def __post_init__(self):
        for name in ("groups", "group_size", "head_steps", "other_prompts", "language_model_groups", "costly_groups",
                     "threads"):  # fmt: skip
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
        asked = {"seed": settings.seed, "language_model_groups": settings.language_model_groups}
    more = {"prompts": {"other_prompts": settings.other_prompts}, "embeddings": {"head_steps": settings.head_steps}}
    more["cuts"] = {}
    if source.given is not None:
        more["prompts"]["costly_groups"] = more["cuts"]["costly_groups"] = settings.costly_groups
    more["table"] = more["models"] = more["prompts"] | more["embeddings"]
    n_groups, n_costly = settings.groups, settings.groups
    if source.given is not None:
        n_groups, n_costly = settings.language_model_groups, settings.costly_groups
    steps = {"read": n_groups, "prompts": n_costly, "cuts": n_costly, "embeddings": 30, "table": 300}
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
        scored = rollouts.part(np.flatnonzero(rollouts.compared_P)[: asked["language_model_groups"]])
        scored.save(folder)
        return rollouts.figures() | {name: scored.figures()[name] for name in ("compared_groups", "pairs")}
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
    groups = _costly_groups(source, asked, rollouts := _rollouts_beside(folder))
    settings = {"n_others": asked["other_prompts"], "seed": asked["seed"], "on_group": on_step}
    scores = compare_prompts(_frozen_policy(source), rollouts, groups, **settings)
    return _keep(scores, folder)


def _cut_and_change(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[str]:
    groups = _costly_groups(source, asked, rollouts := _rollouts_beside(folder))
    scores = cut_and_change(_frozen_policy(source), rollouts, groups, asked["seed"], on_step)
    return _keep(scores, folder)


def _costly_groups(source: Source, asked: dict[str, Any], rollouts: Rollouts) -> np.ndarray:
    groups = np.flatnonzero(rollouts.compared_P)
    return groups if source.given is None else groups[: asked["costly_groups"]]


def _embed(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[str]:
    right_PG = _rollouts_beside(folder).right_PG
    with np.load(folder.parent / "read" / "states.npz") as states:
        settings = {"head_steps": asked["head_steps"], "seed": asked["seed"], "on_space": on_step}
        scores = all_embedding_scores(dict(states), right_PG, **settings)
    return _keep(scores, folder)


def _make_table(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[dict[str, Any]]:
    """One row a score."""
    rollouts, scores = _rollouts_beside(folder), all_scores(folder.parent)
    pairs, beside, bootstrap = _pairs_and_likelihood(rollouts, scores, asked["seed"])
    rows = []
    for name, score_PG in scores.items():
        rows.append({"score": name} | table_row(score_PG, pairs, beside, bootstrap))
        on_step()
    return rows


def _rank_together(source: Source, asked: dict[str, Any], folder: Path, on_step) -> list[dict[str, Any]]:
    rollouts, scores = _rollouts_beside(folder), all_scores(folder.parent)
    return model_rows(scores, *_pairs_and_likelihood(rollouts, scores, asked["seed"]))


def model_rows(
    scores: dict[str, np.ndarray], pairs: Pairs, beside: BesideLikelihood, bootstrap: Bootstrap
) -> list[dict[str, Any]]:
    """Rows of the models of `MODELS`, on groups in which all of their scores are known."""
    rows = []
    for name, members in MODELS.items():
        known = [scores[member] for member in members if member in scores]
        known_PK = np.stack(
            [np.isfinite(score_PG[pairs.groups]).any(1) for score_PG in (scores[LIKELIHOOD], *known)], 1
        )
        known_N = known_PK.all(1)[pairs.group_N]
        alone_N = beside.rank_out_of_fold([], known_N=known_N)
        ranked_N = beside.rank_out_of_fold(known, strength=0.1, known_N=known_N) if known else alone_N
        row: dict[str, Any] = {"score": name}
        for figure, of_pair_N in (("combined", ranked_N), ("gain", ranked_N - alone_N)):
            ends = zip(("", "_low", "_high"), bootstrap.mean(of_pair_N, known_N), strict=True)
            row |= {f"{figure}{end}": value for end, value in ends}
        rows.append(row)
    return rows


def _pairs_and_likelihood(
    rollouts: Rollouts, scores: dict[str, np.ndarray], seed: int
) -> tuple[Pairs, BesideLikelihood, Bootstrap]:
    pairs = make_pairs(rollouts.sound_PG, rollouts.lucky_PG, rollouts.compared_P)
    return pairs, BesideLikelihood(scores[LIKELIHOOD], pairs, seed), Bootstrap(pairs, seed)


WORK: dict[str, Callable[..., Any]] = {
    "rollouts": _make_rollouts,
    "read": _read,
    "prompts": _compare_prompts,
    "cuts": _cut_and_change,
    "embeddings": _embed,
    "table": _make_table,
    "models": _rank_together,
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
