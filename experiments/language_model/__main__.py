"""`python -m experiments.language_model`: fetch the language model, warm-start it, measure it, sample from it."""

import functools
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from transformers import HfArgumentParser

from .. import word_problems
from .fetching import FetchError, fetch
from .sampling import measure, read_rollouts, sample_rollouts
from .warm_starts import WARM_STARTS, lineage, warm_start


console = Console() if sys.stdout.isatty() else Console(width=120)


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


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 1 if the model cannot be had, 130 if it was stopped."""
    parser = HfArgumentParser(
        Settings,
        prog="python -m experiments.language_model",
        description="Fetch a small language model, warm-start it on word problems, measure it and sample from it. The "
        "same command goes on with what is not finished.",
    )
    try:
        settings = parser.parse_args_into_dataclasses(argv)[0]
        unknown = set(settings.names) - set(WARM_STARTS)
        if unknown:
            raise ValueError(f"`names` has {sorted(unknown)}, but must be some of {list(WARM_STARTS)}.")
    except ValueError as error:
        parser.error(str(error))
    try:
        prepare(settings)
    except KeyboardInterrupt:
        console.print("Stopped. What is finished is kept; the same command goes on.")
        return 130
    except (FetchError, ValueError) as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    return 0


def prepare(settings: Settings) -> None:
    """Make what is not there yet, and print the figures of each warm start."""
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


def train(folder: Path, name: str, progress: Progress) -> None:
    """Make the warm start, with a bar for it and for each that it goes on from."""
    tasks = {each: progress.add_task(f"{each}: warm start", total=WARM_STARTS[each].steps) for each in lineage(name)}
    warm_start(folder, name, on_step=lambda trained, done: progress.update(tasks[trained], completed=done))
    for each, task in tasks.items():
        progress.update(task, completed=WARM_STARTS[each].steps)


def keep_rollouts(folder: Path, name: str, n_problems: int, progress: Progress) -> None:
    """Sample problems of the train split, as training would, into the `rollouts.jsonl` of a warm start."""
    if n_problems:
        problems = word_problems.build_dataset(n_problems, seed=1_000, **WARM_STARTS[name].problems)
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
