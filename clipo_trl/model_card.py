"""Model cards: what CLIPO did to a model, and what a head is for. A card is made of what the trainer knows; TRL's card
gives the tags, the links to trackers and TRL's citation."""

import os
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from . import __version__
from .policy_loss import describe_policy_loss


if TYPE_CHECKING:
    from .head import ContrastiveHead
    from .trainer import CLIPOMixin


PACKAGE = "clipo_trl"
PAPER_ID = "2603.10101"
PAPER_TITLE = "CLIPO: Contrastive Learning in Policy Optimization Generalizes RLVR"
PAPER_URL = f"https://huggingface.co/papers/{PAPER_ID}"
CITATION = f"""\
@article{{cui2026clipo,
    title  = {{{{{PAPER_TITLE}}}}},
    author = {{Sijia Cui and Pengyu Cheng and Jiajun Song and Yongbo Gai and Guojun Zhang and Zhechao Yu and Jianhe Lin
              and Xiaoxi Jiang and Guanjun Jiang}},
    year   = 2026,
    eprint = {{arXiv:{PAPER_ID}}},
}}"""
VERSIONS_OF = ("trl", "transformers", "torch", "datasets", "tokenizers", "peft", "accelerate")
TRL_CITATION = "Cite TRL as:"  # what comes after it in TRL's card
EVALUATION = ("<!-- clipo evaluate -->", "<!-- end of clipo evaluate -->")
# Figures of training that a card shows, in this order.
TRAINING_FIGURES = {
    "reward": "reward",
    "contrastive/correct_rollouts": "correct rollouts",
    "contrastive/lucky_share": "of which lucky",
    "contrastive/embedding_cosine_correct_correct": "cosine of correct to correct",
    "contrastive/embedding_cosine_correct_wrong": "cosine of correct to wrong",
    "completions/mean_length": "tokens a completion",
    "entropy": "entropy",
}

Rows = Sequence[tuple[str, str]]


# ---------------------------------------------------------------------- names


class BaseModel(NamedTuple):
    """
    What a policy started from: `text` for a sentence, in Markdown; `name`, what the card's metadata can point to on
    the Hub, if anything; `is_adapter`.
    """

    text: str
    name: str | None
    is_adapter: bool


def base_model(model: Any) -> BaseModel:
    """Of a model or a PEFT model. A local folder is named by its last part, and by what its own card is based on."""
    adapters = getattr(model, "peft_config", None) or {}
    config = getattr(model, "config", None)
    path = next((one.base_model_name_or_path for one in adapters.values()), None)
    path = path or getattr(config, "_name_or_path", None)
    if not path:
        kind = (getattr(config, "architectures", None) or [type(model).__name__])[0]
        return BaseModel(f"a `{kind}` without a name", None, bool(adapters))
    if not os.path.isdir(path) and _is_repo_id(path):
        return BaseModel(_link(path), path, bool(adapters))
    own = _read_card(Path(path))
    beneath = own.data.get("base_model") if own else None
    beneath = beneath[0] if isinstance(beneath, list) and beneath else beneath
    text = f"the local model `{Path(path).name}`"
    if beneath:
        text += f", itself based on {_link(beneath)}"
    return BaseModel(text, beneath or None, bool(adapters))


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _link(repo_id: str, kind: str = "") -> str:
    return f"[{repo_id}](https://huggingface.co/{kind}{repo_id})"


def _read_card(folder: Path) -> ModelCard | None:
    """The card in a folder, if there is one that can be read."""
    try:
        return ModelCard.load(folder / "README.md", ignore_metadata_errors=True)
    except (OSError, ValueError):
        return None


def project_link() -> str:
    """This project, linked to the address that its installed package gives, if it gives one."""
    try:
        listed = metadata.metadata(PACKAGE)
    except metadata.PackageNotFoundError:
        return f"`{PACKAGE}`"
    urls = [line.partition(", ")[2] for line in listed.get_all("Project-URL") or []]
    address = next((url for url in [*urls, *(listed.get_all("Home-page") or [])] if url.startswith("http")), None)
    return f"[`{PACKAGE}`]({address})" if address else f"`{PACKAGE}`"


# ---------------------------------------------------------------------- a model's card


def trainer_card(
    trainer: "CLIPOMixin", trl_card: ModelCard | None, model_name: str, dataset_name: str | None = None
) -> ModelCard:
    """
    Card of the model that a trainer has.

    Args:
        trainer ([`CLIPOMixin`]): constructed; its logs, if it has any, are shown.
        trl_card (`ModelCard`, *optional*): TRL's card, for its tags, links and citation.
        model_name (`str`): name of the model.
        dataset_name (`str`, *optional*): of the training set, on the Hub.
    """
    base = base_model(trainer.accelerator.unwrap_model(trainer.model))
    # A local path would be of no use to others, and may say what is not theirs to know.
    repo_id = trainer.hub_model_id or f"path/to/{Path(trainer.args.output_dir).absolute().name}"
    evaluation = evaluation_of_training(trainer)
    data = ModelCardData(
        base_model=base.name,
        datasets=dataset_name,
        library_name="peft" if base.is_adapter else "transformers",
        pipeline_tag="text-generation",
        model_name=model_name,
        tags=sorted(trl_card.data.get("tags") or []) if trl_card else sorted(trainer._tag_names),
        eval_results=evaluation.results or None,
    )
    badges = [line for line in (trl_card.text if trl_card else "").splitlines() if line.lstrip().startswith("[<img")]
    kind = "An adapter for" if base.is_adapter else "A fine-tuned version of"
    parts = [
        f"---\n{data.to_yaml()}\n---",
        f"# {model_name}",
        f"{kind} {base.text}, trained with {trainer._name} by {project_link()}, on top of "
        f"[TRL](https://github.com/huggingface/trl): {what_is_paid(trainer)} ([{PAPER_TITLE}]({PAPER_URL})).",
        *badges,
        "## Use",
        _code(
            "from transformers import pipeline\n\n"
            f'generator = pipeline("text-generation", model="{repo_id}")\n'
            'generator([{"role": "user", "content": "What is 12 * 13?"}], max_new_tokens=512, return_full_text=False)'
        ),
        f"The head lies beside the model in `contrastive_head/`. It embeds completions (pip package `{PACKAGE}`):",
        embedder_snippet(repo_id),
        "## Training",
        _table(("", ""), training_facts(trainer, base, dataset_name)),
        *figures_of_training(trainer),
        *evaluation.parts,
        "## Versions",
        versions(),
        "## Citation",
        _code(CITATION, "bibtex"),
    ]
    own = trainer._paper.get("citation", CITATION)
    if own != CITATION:
        parts += [f"{trainer._name}:", _code(own, "bibtex")]
    _, found, trl_citation = (trl_card.text if trl_card else "").partition(TRL_CITATION)
    if found:
        parts += [TRL_CITATION, trl_citation.strip()]
    return ModelCard("\n\n".join(parts) + "\n")


def embedder_snippet(policy: str, head: str | None = None) -> str:
    elsewhere = f', head="{head}"' if head else ""
    return _code(
        "from clipo_trl import RolloutEmbedder\n\n"
        f'embedder = RolloutEmbedder.from_pretrained("{policy}"{elsewhere})\n'
        "embeddings = embedder(prompts, completions)  # (N, D), rows of length 1"
    )


def training_facts(trainer: "CLIPOMixin", base: BaseModel, dataset_name: str | None = None) -> Rows:
    """What was trained on what, how: rows of a table."""
    args, head, rule = trainer.args, trainer.contrastive_head, trainer.success_rule
    rewards = [
        f"`{name}` x {weight:g}"
        for name, weight in zip(trainer.reward_func_names, trainer.reward_weights.tolist(), strict=True)
        if name != "contrastive"
    ]
    data = _link(dataset_name, "datasets/") if dataset_name else trainer.dataset_label
    if hasattr(trainer.train_dataset, "__len__"):
        prompts = f"{len(trainer.train_dataset):,} prompts"
        data = f"{data}, {prompts}" if data else prompts
    loss = f"`{args.contrastive_loss_type}`, {args.contrastive_similarity} similarity, tau = {args.contrastive_temperature:g}"
    reward = f"type `{args.contrastive_reward_type}`, lambda = {args.contrastive_reward_weight:g}"
    if args.contrastive_reward_schedule != "constant":
        reward += f" ({args.contrastive_reward_schedule} schedule)"
    if args.contrastive_score_scale is not None:
        reward += f", in standard deviations of the {args.contrastive_score_scale}"
    if args.contrastive_baseline is not None:
        reward += f", baseline `{args.contrastive_baseline}`"
    if args.contrastive_calibration:
        reward += ", calibrated by the step checker"
    sizes = f"{head.head_type}, {head.hidden_size} -> {head.embedding_dim}"
    optional = []
    if args.contrastive_step_reward is not None:
        optional.append(("steps checked by", f"`{args.contrastive_step_reward}`"))
    if args.contrastive_warmup_steps:
        warmup = f"{args.contrastive_warmup_steps} generation batches, policy: {args.contrastive_warmup_policy}"
        optional.append(("warm-up of the head", warmup))
    learning = "frozen" if args.freeze_contrastive_head else f"AdamW, learning rate {args.contrastive_learning_rate:g}"
    return [
        ("base model", base.text),
        ("training data", data or "a stream of prompts"),
        ("rewards", ", ".join(rewards)),
        ("a rollout is correct if", f"{' + '.join(f'`{name}`' for name in rule.names)} > {args.contrastive_success_threshold:g}"),
        ("contrastive reward", f"{reward}, offset {args.contrastive_reward_offset:g}, floor {args.contrastive_reward_floor:g}"),
        ("contrastive loss", f"{loss}, level {args.contrastive_level}, anchors {args.contrastive_anchors}"),
        ("head", f"{sizes}; pooling {head.pooling}, layer {head.layer}, debias {head.debias or 'none'}; {learning}"),
        *optional,
        ("policy loss", f"{describe_policy_loss(args)}, KL {args.beta:g}, learning rate {args.learning_rate:g}"),
        ("rollouts", f"{args.num_generations} a prompt, temperature {args.temperature:g}, {args.max_completion_length} tokens at most"),
        ("optimizer steps", f"{trainer.state.global_step:,}, {args.generation_batch_size} rollouts a generation batch"),
    ]  # fmt: skip


def what_is_paid(trainer: "CLIPOMixin") -> str:
    """What the contrastive reward pays for, in a sentence."""
    if not trainer.pays_contrastive_reward:
        return "the verifiable rewards alone are paid, and a contrastive head learns from the rollouts' hidden states"
    score = {
        "likelihood": "how likely the policy finds it beside the group's other correct ones",
        "negative_entropy": "how sure the policy is of its tokens, beside the group's other correct ones",
    }.get(
        trainer.args.contrastive_reward_type,
        "how close its hidden states are to those of the group's other correct ones",
    )
    return f"besides the verifiable rewards, a rollout is paid for {score}"


def figures_of_training(trainer: "CLIPOMixin") -> list[str]:
    """The last figures that were logged in training; nothing before the first log."""
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    if not logs:
        return []
    last = logs[-1]
    means = {name: name.split("/")[1] for name in last if re.fullmatch(r"rewards/[^/]+/mean", name)}
    rows = [
        (label if name in TRAINING_FIGURES else f"`{label}`", f"{last[name]:.4g}")
        for name, label in (TRAINING_FIGURES | means).items()
        if _is_figure(last.get(name))
    ]
    return [f"In the log of step {last['step']:,}:", _table(("mean over rollouts", ""), rows)]


def _is_figure(value: Any) -> bool:
    """Whether a log has a number there, and not NaN."""
    return isinstance(value, int | float) and value == value


class Evaluation(NamedTuple):
    """Parts of a card's text, and the same as entries of its `model-index`."""

    parts: list[str]
    results: list[EvalResult]


def evaluation_of_training(trainer: "CLIPOMixin") -> Evaluation:
    """Rewards on the test sets, of the best model where that is the one that is kept, else of the last evaluation."""
    step = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    rows, results = [], []
    found: dict[tuple[str, str], tuple[float, float]] = {}
    for entry in trainer.state.log_history:
        if step is not None and entry.get("step") != step:
            continue
        for key, value in entry.items():
            match = re.fullmatch(r"eval_(?:(.+)_)?rewards/([^/]+)/mean", key)
            if match and _is_figure(value):  # a reward may have nothing to say of a test set
                found[match[1] or "test set", match[2]] = (entry["step"], value)
    for (test_set, reward), (at, value) in found.items():
        rows.append((test_set, f"`{reward}`", f"{value:.4f}", f"{at:,.0f}"))
        results.append(result_of(test_set, "mean_reward", reward, value))
    if not rows:
        return Evaluation([], [])
    header = ("test set", "reward", "mean", "step")
    note = f"During training, {trainer.num_generations_eval} samples a prompt at the training temperature:"
    return Evaluation(["## Evaluation", note, _table(header, rows)], results)


def result_of(test_set: str, metric_type: str, metric_name: str, value: float) -> EvalResult:
    """An entry of `model-index`."""
    return EvalResult(
        task_type="text-generation",
        dataset_type=re.sub(r"[^\w./-]+", "_", test_set),
        dataset_name=test_set,
        metric_type=metric_type,
        metric_name=metric_name,
        metric_value=round(value, 6),
    )


def add_evaluation(model_folder: str | Path, markdown: str, results: list[EvalResult]) -> None:
    """
    Put an evaluation into the card of a local model, text and `model-index`, in the place of an earlier one. The rest
    of the card stays as it is.

    Raises:
        `ValueError`: there is no card.
    """
    path = check_card(model_folder)
    card = ModelCard.load(path, ignore_metadata_errors=True)
    start, end = EVALUATION
    section = f"{start}\n## Evaluation by `clipo evaluate`\n\n{markdown.strip()}\n{end}"
    before, marked, after = card.text.partition(start)
    if marked:
        text = before + section + after.partition(end)[2]
    else:
        before, heading, after = card.text.partition("## Versions")
        text = (
            f"{before.rstrip()}\n\n{section}\n\n{heading}{after}" if heading else f"{before.rstrip()}\n\n{section}\n"
        )
    new = {(one.dataset_name, one.metric_type, one.metric_name) for one in results}
    kept = [
        one for one in card.data.eval_results or [] if (one.dataset_name, one.metric_type, one.metric_name) not in new
    ]
    card.data.eval_results = [*kept, *results]
    card.data.model_name = card.data.model_name or Path(model_folder).absolute().name
    card.text = text
    card.save(path)


def check_card(model_folder: str | Path) -> Path:
    """The card of a local model; a `ValueError` if there is none."""
    path = Path(model_folder, "README.md")
    if not path.is_file():
        raise ValueError(
            f"`model_card` is True, but '{model_folder}' has no README.md to write the evaluation into. Training writes one; give "
            "the folder of a model that was trained here, or leave out `model_card`."
        )
    return path


# ---------------------------------------------------------------------- a head's card


def head_card(head: "ContrastiveHead", repo_id: str | None = None) -> ModelCard:
    """
    Card of a head.

    Args:
        head ([`ContrastiveHead`]): its `trained_with` says which `policy` it was trained with, and from which
            `base_model` that came, as far as it is known.
        repo_id (`str`, *optional*): Hub id of the head's own repository; without, it lies in its policy's folder.
    """
    policy, base = head.trained_with.get("policy"), head.trained_with.get("base_model")
    data = ModelCardData(
        base_model=policy or base,
        library_name=PACKAGE,
        pipeline_tag="feature-extraction",
        tags=["clipo", "contrastive-learning", "model_hub_mixin", "pytorch_model_hub_mixin"],
        clipo_policy=policy,
        clipo_base_model=base,
    )
    beside = f"It was trained with {_link(policy)}" if policy else "It was trained with the policy that it lies beside"
    if base:
        beside += f", which came from {_link(base)}"
    facts = [
        ("type", f"{head.head_type}, {head.hidden_size} -> {head.embedding_dim}"),
        ("reads", f"pooling {head.pooling}, layer {head.layer}"),
        ("debias", head.debias or "none"),
    ]
    parts = [
        f"---\n{data.to_yaml()}\n---",
        "# Contrastive head",
        f"The head of a CLIPO run ([{PAPER_TITLE}]({PAPER_URL})), made by {project_link()}: it turns the pooled hidden states "
        f"of a language model's completion into an embedding. {beside}, and knows the states of that policy alone.",
        "## Use",
        embedder_snippet(policy or "path/to/the/policy", repo_id),
        "The head alone, for states that are pooled already:",
        _code(
            "from clipo_trl import ContrastiveHead\n\n"
            f'head = ContrastiveHead.from_pretrained("{repo_id or policy or "path/to/the/policy"}")\n'
            f"embeddings = head(pooled_states)  # (N, {head.hidden_size}) -> (N, {head.embedding_dim})"
        ),
        "## What it is",
        _table(("", ""), facts),
        f"Paper: [{PAPER_TITLE}]({PAPER_URL}). Package: {project_link()} {__version__}.",
        "## Citation",
        _code(CITATION, "bibtex"),
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def trained_with(folder: str | Path) -> dict[str, str]:
    """What the card in a head's folder says of the policy; nothing if there is none, or an older one."""
    card = _read_card(Path(folder))
    facts = {name: card.data.get(f"clipo_{name}") for name in ("policy", "base_model")} if card else {}
    return {name: value for name, value in facts.items() if isinstance(value, str)}


# ---------------------------------------------------------------------- Markdown


def versions() -> str:
    lines = [f"- {PACKAGE}: {__version__}"]
    for name in VERSIONS_OF:
        try:
            lines.append(f"- {name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return "\n".join(lines)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str, language: str = "python") -> str:
    return f"```{language}\n{text}\n```"
