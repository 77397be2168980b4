"""What the head that was saved with a model says of an evaluation's right completions, and what a checker of steps
says.

    agreement/NAME.jsonl    of each test set, a line a question: for each sample its agreement, whether it is
                            suspicious, and the checker's reward

Q questions, K samples of each, D embedding size. Both figures are made from the records, anew each time.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset

from reward_funcs import get_reward_func

from ..embedder import RolloutEmbedder
from ..metrics import sound_against_lucky
from .command_line import argument_errors
from .evaluation_records import Record, write_text
from .evaluation_tables import correct_samples
from .reward_call import call_reward


EMBEDDED_ROWS = 32  # completions embedded at a time, unless `batch_size` says otherwise


def look_closer(sets: dict[str, list[Record]], datasets: dict[str, Dataset], args: Any) -> dict[str, dict[str, Any]]:
    """
    Figures by test set, and a file for each.

    Args:
        sets (`dict[str, list[Record]]`): records of finished test sets.
        datasets (`dict[str, Dataset]`): the rows that their questions number; sets without are left out.
        args ([`~clipo_trl.cli.evaluate.EvaluationArguments`]): one of `agreement` and `step_reward` is set.

    Raises:
        `UsageError`: the model has no head.
    """
    embedder = step_reward = None
    if args.agreement:
        with argument_errors():
            embedder = RolloutEmbedder.from_pretrained(args.model, dtype=args.dtype)
    if args.step_reward is not None:
        step_reward = get_reward_func(args.step_reward, max_completion_length=args.max_completion_length)
    told = {}
    for name in datasets:
        if name not in sets:
            continue
        records, found, steps_QK = sets[name], None, None
        correct_QK = torch.from_numpy(correct_samples(records))
        if embedder is not None:
            embeddings_QKD = embed_records(
                records, embedder, args.batch_size or EMBEDDED_ROWS, args.chat_template_kwargs
            )
            found = agreements(embeddings_QKD, correct_QK)
        if step_reward is not None:
            steps_QK = step_rewards(records, datasets[name], step_reward)
        write_agreement(Path(args.output_dir), name, records, found, steps_QK)
        told[name] = figures(correct_QK, found, steps_QK)
    return told


class Agreement(NamedTuple):
    """
    How the right completions of each question stand to each other, each of shape `(Q, K)`.

    `agreement`: mean cosine to the other right ones; NaN where there is none. `suspicious`: nearer, on average, to the
    wrong ones than to the other right ones. `comparable`: where there is another right one and a wrong one.
    """

    agreement: torch.Tensor
    suspicious: torch.Tensor
    comparable: torch.Tensor


def agreements(embeddings_QKD: torch.Tensor, correct_QK: torch.Tensor) -> Agreement:
    """Of unit embeddings, and which completions are right."""
    cosines_QKK = embeddings_QKD @ embeddings_QKD.transpose(1, 2)
    others_QKK = correct_QK.unsqueeze(1) & ~torch.eye(correct_QK.size(1), dtype=torch.bool)
    wrong_QKK = ~correct_QK.unsqueeze(1).expand_as(cosines_QKK)

    def mean_over(members_QKK: torch.Tensor) -> torch.Tensor:  # NaN where there are none
        return (cosines_QKK * members_QKK).sum(2) / members_QKK.sum(2)

    to_right_QK = mean_over(others_QKK).where(correct_QK, torch.nan)
    to_wrong_QK = mean_over(wrong_QKK)
    comparable_QK = to_right_QK.isfinite() & to_wrong_QK.isfinite()
    return Agreement(to_right_QK, comparable_QK & (to_right_QK < to_wrong_QK), comparable_QK)


def embed_records(
    records: list[Record], embedder: RolloutEmbedder, batch_size: int, template_options: dict[str, Any] | None = None
) -> torch.Tensor:
    """Embeddings of all completions, `(Q, K, D)`."""
    rows = [(record["prompt"], *sample) for record in records for sample in _samples(record)]
    prompts, completions, truncated = (list(column) for column in zip(*rows, strict=True))
    # A completion without any token has no state: its end stands for it.
    truncated = [is_cut and bool(text) for is_cut, text in zip(truncated, completions, strict=True)]
    embeddings_ND = embedder(
        prompts, completions, truncated=truncated, batch_size=batch_size, chat_template_kwargs=template_options
    )
    return embeddings_ND.view(len(records), -1, embedder.embedding_dim)


def _samples(record: Record):
    return zip(record["completions"], record["truncated"], strict=True)


def step_rewards(records: list[Record], dataset: Dataset, step_reward: Callable) -> torch.Tensor:
    """Rewards of the checker of steps, `(Q, K)`; NaN where it gave none."""
    rows = dataset.select([record["question"] for record in records])
    rewards = call_reward(step_reward, rows, [text for record in records for text in record["completions"]])
    values = [torch.nan if reward is None else float(reward) for reward in rewards]
    return torch.tensor(values).view(len(records), -1)


def figures(correct_QK: torch.Tensor, found: Agreement | None, steps_QK: torch.Tensor | None) -> dict[str, Any]:
    """
    Figures of a test set, JSON values, `None` where there is nothing to tell.

    Args:
        correct_QK (`torch.Tensor` of shape `(Q, K)`, bool): right completions.
        found ([`Agreement`], *optional*): adds `agreement` (its mean) and `suspicious` (their share of those that
            are `comparable`).
        steps_QK (`torch.Tensor` of shape `(Q, K)`, *optional*): rewards of a checker of steps, sound above 0. Adds
            `lucky_share`, the share of lucky completions among the right ones that were checked; with `found` also
            `sound_auroc`, how often agreement ranks a sound one over a lucky one of the same question, and the number
            of such pairs.
    """
    told: dict[str, Any] = {}
    if found is not None:
        told["agreement"] = _mean(found.agreement[found.agreement.isfinite()])
        told["suspicious"] = _mean(found.suspicious[found.comparable])
        told["comparable"] = int(found.comparable.sum())
    if steps_QK is not None:
        sound_QK, lucky_QK = correct_QK & (steps_QK > 0), correct_QK & (steps_QK <= 0)
        told["lucky_share"] = _mean(lucky_QK[sound_QK | lucky_QK])
        if found is not None:
            has_QK = found.agreement.isfinite()
            score_QK = found.agreement.nan_to_num()
            n_ranked, _, n_pairs = sound_against_lucky(score_QK, has_QK & sound_QK, has_QK & lucky_QK).tolist()
            told |= {"sound_auroc": n_ranked / n_pairs if n_pairs else None, "sound_lucky_pairs": int(n_pairs)}
    return told


def _mean(values: torch.Tensor) -> float | None:
    return values.float().mean().item() if len(values) else None


def write_agreement(
    folder: Path, name: str, records: list[Record], found: Agreement | None, steps_QK: torch.Tensor | None
) -> None:
    """A line a question; `null` where a sample has none."""
    columns: dict[str, list] = {"question": [record["question"] for record in records]}
    if found is not None:
        columns["agreement"] = _listed(found.agreement)
        columns["suspicious"] = found.suspicious.tolist()
    if steps_QK is not None:
        columns["steps"] = _listed(steps_QK)
    rows = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
    (folder / "agreement").mkdir(exist_ok=True)
    write_text(folder / "agreement" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def _listed(values_QK: torch.Tensor) -> list[list[float | None]]:
    return [[None if value != value else value for value in row] for row in values_QK.tolist()]
