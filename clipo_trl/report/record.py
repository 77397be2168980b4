"""What a report needs of a training: files that [`ReportCallback`] keeps in `OUTPUT_DIR/report/`, and those that are
there anyhow.

    OUTPUT_DIR/
        report/run.json                what runs: settings, versions, when it was started and resumed
        report/embeddings_first.npz    some groups of the first generation batch that was seen
        report/embeddings_newest.npz   the same of the newest
        log.jsonl                      every log so far, a line each ([`LogFileCallback`])
        completions/*.parquet          TRL's tables, with `log_completions`
        trainer_state.json             transformers', also in each checkpoint: the logs of a run without the callback
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..log_file import LOG_NAME, SUMMARY, read_log
from ..scored_batch import ScoredBatch


FOLDER = "report"
RUN = "run.json"
FIRST, NEWEST = "embeddings_first.npz", "embeddings_newest.npz"

Logs = list[dict[str, Any]]  # as in `TrainerState.log_history`: a row a log, `step` among its entries


# ---------------------------------------------------------------------- embeddings


@dataclass(frozen=True)
class EmbeddingSnapshot:
    """
    Some groups of a generation batch: P prompts, G rollouts each, D entries of an embedding.

    Attributes:
        step (`int`): optimizer steps that were done when the batch was scored.
        embeddings_PGD (`np.ndarray` of shape `(P, G, D)`): unit embeddings, in half precision.
        correct_PG, valid_PG (`np.ndarray` of shape `(P, G)`, bool): success label; False where a rollout counts for
            nothing.
        agreement_PG (`np.ndarray` of shape `(P, G)`): mean cosine to the group's other correct rollouts, less the
            group's mean, NaN where there is none.
    """

    step: int
    embeddings_PGD: np.ndarray
    correct_PG: np.ndarray
    valid_PG: np.ndarray
    agreement_PG: np.ndarray

    @classmethod
    def of(cls, batch: ScoredBatch, step: int, num_groups: int) -> "EmbeddingSnapshot":
        """The first `num_groups` groups of a batch."""

        def first(tensor: torch.Tensor) -> np.ndarray:
            return tensor[:num_groups].cpu().numpy()

        return cls(
            step=step,
            embeddings_PGD=first(batch.embeddings_PGD.half()),
            correct_PG=first(batch.correct_PG),
            valid_PG=first(batch.valid_PG),
            agreement_PG=first(batch.agreement_PG.where(batch.is_scored_PG, torch.nan)),
        )

    def save(self, path: Path) -> None:
        """Replace the file at once: a report may be made while the run goes on."""
        waiting = path.with_suffix(".part")
        with waiting.open("wb") as file:
            np.savez(file, **asdict(self))
        os.replace(waiting, path)

    @classmethod
    def load(cls, path: Path) -> "EmbeddingSnapshot | None":
        """`None` if there is no such file."""
        if not path.is_file():
            return None
        with np.load(path) as saved:
            return cls(int(saved["step"]), *(saved[name] for name in list(cls.__dataclass_fields__)[1:]))


# ---------------------------------------------------------------------- the logs


def read_logs(folder: Path) -> Logs | None:
    """
    The logs of the run in `folder`: those of its `log.jsonl`, or else those of the `trainer_state.json` that has come
    farthest; `None` if there are neither.
    """
    path = folder / LOG_NAME
    if path.is_file():
        return read_log(path)
    paths = [folder / TRAINER_STATE_NAME, *folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    states = [state for path in paths if path.is_file() and (state := read_json(path))]
    if not states:
        return None
    return max(states, key=lambda state: state.get("global_step", 0)).get("log_history", [])


def read_json(path: Path) -> dict[str, Any]:
    """Nothing if the file is not there, or was cut off."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


# ---------------------------------------------------------------------- all of it


@dataclass(frozen=True)
class TrainingRecord:
    """
    What is known of a training.

    Attributes:
        folder (`Path`): its `output_dir`.
        facts (`dict[str, Any]`): contents of `run.json`, see [`run_facts`]; empty for a run without the callback.
        logs (`list[dict]`): a row a log, evaluations among them.
        before, after (`EmbeddingSnapshot`, *optional*): embeddings of the first and of the newest batch.
    """

    folder: Path
    facts: dict[str, Any]
    logs: Logs
    before: EmbeddingSnapshot | None
    after: EmbeddingSnapshot | None

    @property
    def step(self) -> int:
        """Optimizer steps that the logs tell of."""
        return max((row.get("step", 0) for row in self.logs), default=0)

    @property
    def is_finished(self) -> bool:
        """Whether it took its last step; transformers logs a summary where it was stopped before, too."""
        return any(SUMMARY in row for row in self.logs) and self.step >= self.facts.get("max_steps", 0)


def read_record(output_dir: str | Path) -> TrainingRecord:
    """
    Read what is known of the training in `output_dir`.

    Raises:
        `FileNotFoundError`: there is no such folder.
        `ValueError`: it holds no training.
    """
    folder = Path(output_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"`output_dir` is '{output_dir}', but there is no such folder (looked in {Path.cwd()}). Name the `output_dir` of a "
            "training."
        )
    facts_path, logs = folder / FOLDER / RUN, read_logs(folder)
    if logs is None and not facts_path.is_file():
        raise ValueError(
            f"`output_dir` is '{output_dir}', but no training was begun there: it has neither {FOLDER}/{RUN} nor "
            f"{TRAINER_STATE_NAME}, nor a {PREFIX_CHECKPOINT_DIR}-* folder with one. Name the `output_dir` of a run of "
            "`clipo train`, or add a `ReportCallback` to a trainer of yours."
        )
    return TrainingRecord(
        folder=folder,
        facts=read_json(facts_path),
        logs=logs or [],
        before=EmbeddingSnapshot.load(folder / FOLDER / FIRST),
        after=EmbeddingSnapshot.load(folder / FOLDER / NEWEST),
    )
