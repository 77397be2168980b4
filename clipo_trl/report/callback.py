"""Keeps what a report needs while a training runs."""

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.utils import logging

from ..log_file import SUMMARY, LogFileCallback
from ..scored_batch import ScoredBatch
from .facts import run_facts
from .record import FIRST, FOLDER, NEWEST, RUN, EmbeddingSnapshot, read_json, read_record
from .trackers import send_pictures


logger = logging.get_logger(__name__)


class ReportCallback(TrainerCallback):
    """
    Keeps what [`write_report`] needs in `output_dir/report/`: what runs, and the embeddings of a few groups of the
    first and of the newest generation batch. Every log is kept by a [`LogFileCallback`], which it adds to the trainer
    where there is none. At the end it sends pictures of these embeddings to the trackers that are on (W&B, Trackio,
    TensorBoard), and to TensorBoard's projector the embeddings themselves.

    One process writes. Two files of embeddings are kept, of at most `num_groups * num_generations *
    contrastive_embedding_dim` half-precision numbers each; the time that takes is `contrastive/report_seconds`. A
    training that is resumed keeps the first batch of its beginning; one that starts afresh in the same folder does
    not. Evaluation is left alone. With a trainer that has no contrastive head there are no embeddings.

    Args:
        trainer (`GRPOTrainer` or [`CLIPOTrainer`]): trainer to tell of. Add the callback with `trainer.add_callback`.
        description (`dict[str, str]`, *optional*): what runs, a text for each subject. Default: model, data and
            rewards, as far as the trainer knows them.
        num_groups (`int`, *optional*, defaults to `16`): groups of a batch to keep; all if it has fewer.

    Raises:
        `ValueError`: `num_groups` is not positive.

    Example:

    ```python
    trainer = CLIPOTrainer(...)
    trainer.add_callback(ReportCallback(trainer))
    trainer.train()
    write_report(trainer.args.output_dir)
    ```
    """

    def __init__(self, trainer: Any, description: dict[str, str] | None = None, num_groups: int = 16):
        if not num_groups > 0:
            raise ValueError(
                f"`num_groups` is {num_groups}, but must be greater than 0. It counts groups of rollouts."
            )
        self.trainer, self.description, self.num_groups = trainer, description, num_groups
        if not any(isinstance(other, LogFileCallback) for other in trainer.callback_handler.callbacks):
            trainer.add_callback(LogFileCallback())
        self._folder = Path(trainer.args.output_dir, FOLDER)
        self._has_begun = False  # before, what is there is of an earlier run, which an evaluation leaves alone

    def on_train_begin(self, args, state, control, **kwargs):
        if not state.is_world_process_zero:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        run, is_resumed = self._folder / RUN, state.global_step > 0
        starts = read_json(run).get("starts", []) if is_resumed else []
        if not is_resumed:
            for name in (FIRST, NEWEST):
                (self._folder / name).unlink(missing_ok=True)
        facts = run_facts(self.trainer, self.description, starts)
        run.write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
        self._has_begun = True

    def on_batch_scored(self, args, state, control, batch: ScoredBatch, **kwargs):
        """[`CLIPOMixin`]'s event: a generation batch of training was scored."""
        if not state.is_world_process_zero:
            return
        start = time.perf_counter()
        snapshot = EmbeddingSnapshot.of(batch, state.global_step, self.num_groups)
        if not (self._folder / FIRST).exists():
            snapshot.save(self._folder / FIRST)
        snapshot.save(self._folder / NEWEST)
        batch.figures["report_seconds"] = time.perf_counter() - start

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not (state.is_world_process_zero and self._has_begun):
            return
        if SUMMARY in logs:  # the last log of a training; once it has ended, trackers are closed
            try:
                send_pictures(read_record(args.output_dir), self.trainer.callback_handler.callbacks)
            except Exception as error:  # the model is not saved yet
                logger.warning(f"No pictures of the embeddings for the trackers ({type(error).__name__}: {error}).")
