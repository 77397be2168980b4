"""Sends pictures of the embeddings, before and after training, to the trackers that a run has."""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback
from transformers.utils import logging

from .embeddings import METHODS, draw_embeddings, verdicts
from .pictures import drawing, to_image
from .record import EmbeddingSnapshot, TrainingRecord


if TYPE_CHECKING:
    from PIL.Image import Image


logger = logging.get_logger(__name__)

Images = dict[str, "Image"]  # by name


def send_pictures(record: TrainingRecord, callbacks: Iterable[TrainerCallback]) -> None:
    """
    Send what there is of `record` to the tracker of each callback among `callbacks` that is one of transformers'. A
    tracker that fails is a warning: at the end of a training, nothing is worth losing it.
    """
    senders = [(callback, send) for callback in callbacks for kind, send in SENDERS if isinstance(callback, kind)]
    if not senders or record.before is None or record.after is None:
        return
    images: Images = {}
    for method in METHODS:
        image = drawing(_image, method, record.before, record.after)
        if not isinstance(image, str):
            images[f"embeddings/{method}"] = image
    for callback, send in senders:
        try:
            send(callback, images, record)
        except Exception as error:
            logger.warning(
                f"{type(callback).__name__} did not take the pictures of the embeddings ({type(error).__name__}: {error}). They "
                f"are in the page that `clipo report {record.folder}` writes."
            )


def _image(method: str, before: EmbeddingSnapshot, after: EmbeddingSnapshot) -> "Image":
    return to_image(draw_embeddings(method, before, after))


def _to_wandb(callback: Any, images: Images, record: TrainingRecord) -> None:
    import wandb

    if images and wandb.run is not None:
        wandb.log({name: wandb.Image(image) for name, image in images.items()} | {"train/global_step": record.step})


def _to_trackio(callback: Any, images: Images, record: TrainingRecord) -> None:
    import trackio

    if images:
        trackio.log(
            {name: trackio.Image(image) for name, image in images.items()} | {"train/global_step": record.step}
        )


def _to_tensorboard(callback: Any, images: Images, record: TrainingRecord) -> None:
    """The pictures, and for the projector the embeddings with what is known of each."""
    writer = callback.tb_writer
    if writer is None:
        return
    for name, image in images.items():
        writer.add_image(name, np.asarray(image), record.step, dataformats="HWC")
    for name, snapshot in (("before", record.before), ("after", record.after)):
        assert snapshot is not None  # the caller has looked
        words, G = verdicts(snapshot), snapshot.correct_PG.shape[1]
        rows = [
            [word or "left out", str(row // G), f"{agreement:.4f}"]
            for row, (word, agreement) in enumerate(zip(words, snapshot.agreement_PG.flatten(), strict=True))
        ]
        writer.add_embedding(
            snapshot.embeddings_PGD.reshape(len(rows), -1).astype(np.float32),
            metadata=rows,
            metadata_header=["rollout", "group", "agreement"],
            tag=name,
            global_step=record.step,
        )
    writer.flush()


SENDERS: tuple[tuple[type, Callable[[Any, Images, TrainingRecord], None]], ...] = (
    (WandbCallback, _to_wandb),
    (TrackioCallback, _to_trackio),
    (TensorBoardCallback, _to_tensorboard),
)
