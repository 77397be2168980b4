"""Rollouts about images. Their states are read where those of text are; a pass of our own must be fed the images, too,
and what cannot be read is refused."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .hidden_states import RolloutTokens
from .parent_shapes import GRPOTrainerShape


COLUMNS = ("image", "images")
TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids")  # one number a prompt token; 0 is text
SCORE_THEM = (
    "Let TRL score the rollouts itself, so that the states are read there: generate for several optimizer steps "
    "(`steps_per_generation` above `gradient_accumulation_steps`), or use vLLM with "
    "`vllm_importance_sampling_correction=True`."
)


def image_column(names: Iterable[str] | None) -> str | None:
    """The column in which TRL looks for images, if there is one."""
    return next((name for name in names or [] if name in COLUMNS), None)


def has_image(prompt: str | list[dict[str, Any]] | None) -> bool:
    """Whether an image stands in the messages of a prompt."""
    contents = [message.get("content") for message in prompt or [] if isinstance(message, Mapping)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, Mapping) and part.get("type") == "image" for part in parts)


def check_images(trainer: GRPOTrainerShape, mode: str, decoder: torch.nn.Module, where: str) -> None:
    """
    Refuse images of which no right states can be read.

    Args:
        trainer (`GRPOTrainer`): after its construction.
        mode (`str`): the capture mode.
        decoder (`nn.Module`): what a pass of our own calls.
        where (`str`): where images were found, the message's first words.

    Raises:
        `ValueError`: no processor takes them, or a pass of our own cannot be fed them.
    """
    if not trainer._is_vlm:
        raise ValueError(
            f"{where}, but `processing_class` is a `{type(trainer.processing_class).__name__}`, which takes no images. Use a "
            "vision-language model with its processor, or take the images out."
        )
    if mode == "forward" and "pixel_values" not in inspect.signature(decoder.forward).parameters:
        raise ValueError(
            f"{where}, but the states are read in a pass over `{type(decoder).__name__}`, which takes no `pixel_values`. "
            f"{SCORE_THEM}"
        )


def check_prompts(trainer: GRPOTrainerShape, inputs: list[dict[str, Any]], check: Callable[[str], None]) -> None:
    """
    Refuse the images in the messages of a generation batch, of which no column told, before anything is generated.

    Args:
        trainer (`GRPOTrainer`): after its construction.
        inputs (`list[dict]`): TRL's examples of the batch.
        check (`Callable`): [`check_images`] of this trainer, of the words that say where the images were found.
    """
    if image_column(inputs[0]) or not any(has_image(example.get("prompt")) for example in inputs):
        return
    where = "`train_dataset` has an image in the messages of a prompt"
    check(where)
    if trainer.rollout_func is not None:
        raise ValueError(
            f"{where}, but with a `rollout_func` TRL scores and trains on such a rollout without it. Put the image into a "
            "column `image` or `images`."
        )


def check_tool_images(mode: str, tool_images: list | None) -> None:
    """Refuse a tool's images: they stand among the completion's tokens, where a pass of our own cannot place them."""
    if mode != "fused" and any(tool_images or []):
        raise ValueError(
            "A tool returned an image, but the states are read in a pass of our own, which can be fed the prompts' images "
            f"only. {SCORE_THEM}"
        )


def prompt_image_inputs(
    trainer: GRPOTrainerShape, prompts: list, tokens: RolloutTokens, rows: list[int], width: int
) -> dict[str, torch.Tensor]:
    """
    What the processor makes of the images of some rollouts' prompts, for a pass over these rows, padded on the right.

    Args:
        trainer (`GRPOTrainer`): makes the inputs from the prompts, as it did for generation.
        prompts (`list`): messages of all B rollouts, images in them.
        tokens (`RolloutTokens`): the B rollouts.
        rows (`list[int]`): the rows of the pass.
        width (`int`): tokens of the longest of them.

    Returns:
        `pixel_values` and whatever else the model takes; token types have shape `(len(rows), width)`.

    Raises:
        `ValueError`: the prompts that the rollouts began with are others.
    """
    with environments_of(trainer, rows):
        prompt_ids, _, fields = trainer._tokenize_prompts([prompts[row] for row in rows])
    if [list(ids) for ids in prompt_ids] != [list(tokens.prompt_ids[row]) for row in rows]:
        raise ValueError(
            "A rollout about an image begins with other tokens than the processor makes of its prompt, as a `rollout_func` "
            "may do it: a pass of our own cannot be fed its images. Let `rollout_func` return `prompt_ids` of "
            f"`processing_class`. Or: {SCORE_THEM}"
        )
    inputs: Any = trainer._prepare_input(
        {
            name: right_padded_types(values, width) if name in TOKEN_TYPES else as_tensor(values)
            for name, values in fields.items()
        }
    )
    return inputs


@contextmanager
def environments_of(trainer: GRPOTrainerShape, rows: list[int]) -> Iterator[None]:
    """While open, the environments of the batch are those of some rows: TRL reads one a prompt."""
    if trainer.environment_factories is None:
        yield
        return
    names: list = trainer._batch_environments
    trainer._batch_environments = [names[row] for row in rows]
    try:
        yield
    finally:
        trainer._batch_environments = names


def right_padded_types(types: list, width: int) -> torch.Tensor:
    """Token types of prompts, with those of text for what follows: `(rows, width)`."""
    padded = torch.zeros(len(types), width, dtype=torch.long)
    for row, values in enumerate(types):
        padded[row, : len(values)] = torch.as_tensor(values)
    return padded


def as_tensor(values: torch.Tensor | list | np.ndarray) -> torch.Tensor:
    """A processor's output, which is a list of arrays where no type of tensor was asked for."""
    return values if isinstance(values, torch.Tensor) else torch.as_tensor(np.asarray(values))
