"""`python -m experiments.language_model`: fetch the language model, warm-start it, measure it, sample from it."""

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ..command import console, run_command
from .fetching import FetchError, fetch
from .sampling import held_out_problems, measure, read_rollouts, sample_rollouts
from .warm_starts import WARM_STARTS, lineage, warm_start


DESCRIPTION = "Fetch a small language model, warm-start it on word problems, measure it and sample from it."


@dataclass
class Settings:
    """
    Options.

    Attributes:
        output_dir (`str`): Where the language model and its warm starts go.
        names (`list[str]`): Warm starts to make: some of `WARM_STARTS`, or none to fetch the language model alone.
        num_threads (`int`): Threads of matrix products, or 0 for torch's default. Where other programs keep the cores
            busy, 1 is many times as fast as 2.
        eval_problems (`int`): Held-out problems that a warm start is measured on, 4 rollouts each.
        rollouts (`int`): Problems that 8 rollouts each are kept of, in `rollouts.jsonl` of each warm start.
    """

    output_dir: str = field(
        default="runs/language_model", metadata={"help": "Where the language model and its warm starts go."}
    )
    names: list[str] = field(
        default_factory=lambda: list(WARM_STARTS), metadata={"help": f"Warm starts to make, of {list(WARM_STARTS)}."}
    )
    num_threads: int = field(
        default=0,
        metadata={"help": "Threads, or 0 for torch's default; 1 where other programs keep the cores busy."},
    )
    eval_problems: int = field(
        default=64, metadata={"help": "Held-out problems that a warm start is measured on, 4 rollouts each."}
    )
    rollouts: int = field(
        default=0, metadata={"help": "Problems that 8 rollouts each are kept of, in each warm start's rollouts.jsonl."}
    )

    def __post_init__(self):
        if unknown := set(self.names) - set(WARM_STARTS):
            raise ValueError(f"`names` has {sorted(unknown)}, but must be some of {list(WARM_STARTS)}.")


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 1 if the model cannot be had, 130 if it was stopped."""
    return run_command("language_model", DESCRIPTION, Settings, prepare, argv, (FetchError, ValueError))


def prepare(settings: Settings) -> int:
    """Make what is not there yet, and print the figures of each warm start. Returns 0."""
    transformers.utils.logging.disable_progress_bar()
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    folder = Path(settings.output_dir)
    with console.status("Fetching and converting the language model"):
        fetch(folder)
    table = Table(title="Held-out word problems, sampled at temperature 1")
    for title in ("", "right answer", "of which lucky", "answer and all steps right"):
        table.add_column(title, justify="right" if title else "left")
    for name in settings.names:
        with progress_bar() as progress:
            train(folder, name, progress)
            task = progress.add_task(f"{name}: measuring", total=settings.eval_problems)
            show = functools.partial(progress.update, task)
            found = measure(
                folder, name, settings.eval_problems, on_batch=lambda done, show=show: show(completed=done)
            )
            show(completed=settings.eval_problems)
            keep_rollouts(folder, name, settings.rollouts, progress)
        table.add_row(name, *(f"{found[key]:.0%}" for key in ("accuracy", "lucky_share", "strict_accuracy")))
    if settings.names:
        console.print(table)
    return 0


def train(folder: Path, name: str, progress: Progress) -> None:
    """Make the warm start, with a bar for it and for each that it goes on from."""
    tasks = {each: progress.add_task(f"{each}: warm start", total=WARM_STARTS[each].steps) for each in lineage(name)}
    warm_start(folder, name, on_step=lambda trained, done: progress.update(tasks[trained], completed=done))
    for each, task in tasks.items():
        progress.update(task, completed=WARM_STARTS[each].steps)


def keep_rollouts(folder: Path, name: str, n_problems: int, progress: Progress) -> None:
    """Sample held-out problems into the `rollouts.jsonl` of a warm start."""
    if n_problems:
        problems = held_out_problems(name, n_problems)
        task = progress.add_task(f"{name}: rollouts", total=n_problems)
        path = sample_rollouts(
            folder / name, problems, on_batch=lambda n_done: progress.update(task, completed=n_done)
        )
        progress.update(task, completed=n_problems)
        console.print(f"{len(read_rollouts(path))} rollouts: {path}", highlight=False)


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, TimeRemainingColumn(), console=console)


if __name__ == "__main__":
    sys.exit(main())
