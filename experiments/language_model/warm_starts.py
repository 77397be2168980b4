"""Supervised warm starts of the language model on word problems: half of the answers right, and some of those by luck.

Minutes on two cores have to do. Drills come first, equations without a story, whose results alone are learned: they
teach the arithmetic at a fifth of the tokens. Stories with their traces then teach to read and to answer. Matrix
products are in bfloat16 where that is faster, weights and their updates in float32.
"""

import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from .. import word_problems
from ..starting_policy import encode_example
from .fetching import fetch


DRILL_LINES = 9
Example = dict[str, list[int]]


@dataclass(frozen=True)
class Phase:
    """
    One part of a warm start.

    Attributes:
        steps (`int`): Optimizer steps.
        drill (`str`, *optional*): `"equations"` without a story; else stories.
    """

    steps: int
    drill: str | None = None


@dataclass(frozen=True)
class WarmStart:
    """
    A warm start.

    Attributes:
        phases (`tuple[Phase, ...]`): What is learned, one after the other, under one schedule of the learning rate.
        start (`str`, *optional*): The warm start to go on from; else the language model as it is.
        problems (`dict[str, Any]`): Arguments of [`word_problems.make_problem`].
        learning_rate (`float`): Peak; it falls to 0 along a cosine.
        batch_size (`int`): Examples an optimizer step.
        trained_layers (`int`): How many of the last layers learn; the others and the embeddings, which are the output
            layer too, stay as they are and cost no backward pass.
        seed (`int`): Decides the problems.
    """

    phases: tuple[Phase, ...]
    start: str | None = None
    problems: dict[str, Any] = field(default_factory=lambda: {"num_operations": 2})
    learning_rate: float = 2e-4
    batch_size: int = 8
    trained_layers: int = 15
    seed: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps, those of the warm start that it goes on from not counted."""
        return sum(phase.steps for phase in self.phases)


CHOICES = WarmStart(
    (Phase(60, drill="equations"), Phase(60)),
    problems={"num_operations": 2, "answer": "choice", "num_options": 3},
    seed=1,
)
WARM_STARTS: dict[str, WarmStart] = {
    # Questions of yes or no, on numbers of two digits. The comparison, which the answer hangs on, is more than so
    # short a course can teach: answers are guessed, and most right ones are lucky.
    "own_slips": WarmStart((Phase(40, drill="equations"), Phase(60))),
    # Three answers to choose from. To look up a result's letter is easily learned, so that answers follow from steps;
    # where a slip leads to none of the three, one is guessed.
    "choices": CHOICES,
    # The same with other problems: what is found on one policy need not hold on the next.
    "choices_again": replace(CHOICES, seed=2),
}


def lineage(name: str) -> list[str]:
    """The warm starts that lead to `name`, the first one first and itself last."""
    start = WARM_STARTS[name].start
    return [*(lineage(start) if start else []), name]


# ---------------------------------------------------------------------------------------------------------------------
# Examples
# ---------------------------------------------------------------------------------------------------------------------


def drill_lines(trace: str) -> list[tuple[str, str]]:
    """What is asked and what is to be answered in each equation of a trace."""
    equations = (line.partition("=") for line in trace.splitlines() if "=" in line)
    return [(asked + sign, result) for asked, sign, result in equations]


def encode_drill(tokenizer: PreTrainedTokenizerBase, lines: list[tuple[str, str]]) -> Example:
    """Return `input_ids` and `labels` of lines; only their answers have labels."""
    example: Example = {"input_ids": [], "labels": []}
    for asked, answer in lines:
        asked_ids, answer_ids = tokenizer(asked)["input_ids"], tokenizer(f"{answer}\n")["input_ids"]
        example["input_ids"] += asked_ids + answer_ids
        example["labels"] += [-100] * len(asked_ids) + answer_ids
    return example


def examples(tokenizer: PreTrainedTokenizerBase, recipe: WarmStart) -> Iterator[Example]:
    """The examples of a warm start, in order; problems are of the train split."""
    rng = random.Random(recipe.seed)

    def worked() -> tuple[word_problems.Problem, str]:
        while True:
            problem = word_problems.make_problem(rng, **recipe.problems)
            if word_problems.split_of(problem) == "train":
                return problem, word_problems.write_trace(problem)

    for phase in recipe.phases:
        for _ in range(phase.steps * recipe.batch_size):
            if phase.drill is None:
                problem, trace = worked()
                yield encode_example(tokenizer, problem.text, trace)
            else:
                lines: list[tuple[str, str]] = []
                while len(lines) < DRILL_LINES:
                    lines += drill_lines(worked()[1])
                yield encode_drill(tokenizer, lines[:DRILL_LINES])


@dataclass
class Collator:
    """
    Pads examples on the left, so that what has labels stands at the end, and asks for the logits of that part alone:
    with 49,152 words they are a third of the work.
    """

    pad_token_id: int

    def __call__(self, batch: list[Example]) -> dict[str, Any]:
        length = max(len(row["input_ids"]) for row in batch)

        def padded(key: str, value: int) -> Tensor:
            return torch.tensor([[value] * (length - len(row[key])) + row[key] for row in batch])

        labels = padded("labels", -100)
        first = int((labels != -100).any(0).nonzero()[0])
        mask = torch.tensor([[0] * (length - len(row["labels"])) + [1] * len(row["labels"]) for row in batch])
        return {
            "input_ids": padded("input_ids", self.pad_token_id),
            "attention_mask": mask,
            "labels": labels[:, first:],
            "logits_to_keep": length - first + 1,
        }


def completion_loss(outputs, labels: Tensor, num_items_in_batch=None) -> Tensor:
    """Mean cross-entropy of `labels` (B, T), -100 where there are none, from logits (B, T + 1, V) that start one
    token before them."""
    return torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1).float(), labels.flatten())


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


def bf16_is_faster(size: int = 512, tries: int = 5) -> bool:
    """Whether this CPU multiplies matrices at least half as fast again in bfloat16 as in float32, by trying."""

    def seconds(dtype: torch.dtype) -> float:
        matrix, taken = torch.ones(size, size, dtype=dtype), []
        for _ in range(tries + 1):
            start = time.perf_counter()
            matrix @ matrix
            taken.append(time.perf_counter() - start)
        return min(taken)

    return seconds(torch.float32) > 1.5 * seconds(torch.bfloat16)


def warm_start(
    folder: str | Path,
    name: str,
    *,
    save_steps: int = 20,
    on_step: Callable[[str, int], Any] | None = None,
) -> Path:
    """
    Train the warm start `name`, after the one that it goes on from. One that is finished is not trained again, and one
    that was stopped goes on from its last checkpoint.

    Args:
        folder (`str` or `Path`): Where models go: `folder/base`, see [`fetch`], and `folder/<name>`.
        name (`str`): Of `WARM_STARTS`.
        save_steps (`int`, *optional*, defaults to `20`): Steps between two checkpoints, of 1 GB; the last one is kept
            until the end.
        on_step (`Callable[[str, int], Any]`, *optional*): Called after each step with the name of the warm start that
            is trained and its steps done.

    Returns:
        `Path`: `folder/<name>/model`, a model folder in float32.

    Raises:
        ValueError: `name` is unknown, or the folder holds a warm start of that name by another recipe.
        FetchError: See [`fetch`].
    """
    if name not in WARM_STARTS:
        raise ValueError(f"`name` is {name!r}, but must be one of {tuple(WARM_STARTS)}.")
    recipe, target = WARM_STARTS[name], Path(folder, name)
    _check_recipe(recipe, target)
    if Path(target, "model").exists():
        return target / "model"
    first = recipe.start
    source = warm_start(folder, first, save_steps=save_steps, on_step=on_step) if first else fetch(folder)
    tokenizer = AutoTokenizer.from_pretrained(source)
    trainer = _make_trainer(recipe, source, tokenizer, target / "checkpoints", save_steps)
    if on_step is not None:
        trainer.add_callback(_AfterStep(lambda state: on_step(name, state.global_step)))
    trainer.train(resume_from_checkpoint=get_last_checkpoint(target / "checkpoints"))
    trainer.model.save_pretrained(target / "unfinished")
    tokenizer.save_pretrained(target / "unfinished")
    (target / "log.json").write_text(json.dumps(trainer.state.log_history, indent=1))
    (target / "unfinished").rename(target / "model")
    shutil.rmtree(target / "checkpoints")
    return target / "model"


def _check_recipe(recipe: WarmStart, target: Path) -> None:
    """Keep the recipe beside what comes of it, and refuse to mix two."""
    asked, path = json.loads(json.dumps(asdict(recipe))), target / "recipe.json"
    if path.exists() and json.loads(path.read_text()) != asked:
        raise ValueError(f"{target} holds a warm start by another recipe. Delete it, or take another folder.")
    target.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asked, indent=1))


def _make_trainer(recipe: WarmStart, source: Path, tokenizer, output_dir: Path, save_steps: int) -> Trainer:
    set_seed(recipe.seed)
    args = TrainingArguments(
        output_dir=str(output_dir),
        num_train_epochs=1,
        per_device_train_batch_size=recipe.batch_size,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=5,
        seed=recipe.seed,
        use_cpu=True,
        bf16=bf16_is_faster(),
        save_steps=save_steps,
        save_total_limit=1,
        logging_steps=5,
        report_to="none",
        disable_tqdm=True,
    )
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).requires_grad_(False)
    for layer in model.model.layers[-recipe.trained_layers :]:
        layer.requires_grad_(True)
    trainer = Trainer(
        model,
        args,
        train_dataset=list(examples(tokenizer, recipe)),
        data_collator=Collator(tokenizer.pad_token_id),
        compute_loss_func=completion_loss,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _AfterStep(TrainerCallback):
    def __init__(self, after_step: Callable[[Any], None]):
        self.after_step = after_step

    def on_step_end(self, args, state, control, **kwargs):
        self.after_step(state)
