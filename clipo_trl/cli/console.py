"""A training on the console: a short line a log in the columns of a table, in place of a dict of forty metrics."""

import re
import sys
import time
from datetime import timedelta
from typing import Any, NamedTuple

from rich.console import Console
from rich.text import Text
from tqdm.auto import tqdm  # type: ignore[import-untyped]
from transformers import PrinterCallback, ProgressCallback

from ..log_file import SUMMARY
from ..success import find_success_rule
from ..trainer import CLIPOMixin


ROWS_A_HEADER = 30  # in a terminal, where the first one is out of sight by then
EVALUATION = re.compile(
    r"eval_(?:(?P<set>.+)_)?(?P<metric>reward|rewards/[^/]+/mean|completions/mean_length|runtime)$"
)


class Column(NamedTuple):
    """A column: its title, the metric that it shows, and how."""

    title: str
    metric: str
    form: str = "{:.3f}"


def show_table(trainer: Any) -> None:
    """Have a trainer show [`TableCallback`]'s table in the place of transformers' bar and dicts."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(TableCallback(columns_of(trainer)))


def columns_of(trainer: Any) -> list[Column]:
    """The columns that this training can fill."""
    columns = [Column("reward", "reward")]
    if accuracy := accuracy_metric(trainer):
        columns.append(Column("accuracy", accuracy, "{:.1%}"))
    if isinstance(trainer, CLIPOMixin):
        columns.append(Column("contrastive", "rewards/contrastive/mean"))
        columns.append(Column("cosine", "contrastive/embedding_cosine_correct_correct"))
    if trainer.args.beta:
        columns.append(Column("KL", "kl", "{:.4f}"))
    return [*columns, Column("entropy", "entropy", "{:.2f}"), Column("length", "completions/mean_length", "{:.1f}")]


def accuracy_metric(trainer: Any) -> str | None:
    """The metric that tells the share of correct rollouts; `None` where no single one does."""
    if isinstance(trainer, CLIPOMixin):
        return "contrastive/correct_rollouts"
    names, weights = trainer.reward_func_names, trainer.reward_weights.tolist()
    try:
        rule = find_success_rule(names, weights, getattr(trainer.args, "contrastive_success_rewards", None), None)
    except ValueError:  # of a field that has no effect without CLIPO
        return None
    return f"rewards/{rule.names[0]}/mean" if len(rule.names) == 1 else None


class TableCallback(ProgressCallback):
    """
    Prints a line for each log: the step, the columns, seconds a step (sampling and learning, without evaluation and
    saving) and the time left at the pace so far. An evaluation has a line of its own, for each test set.

    In a terminal the lines are styled, the titles come again, and transformers' bar (unless `disable_tqdm`) runs below
    them; elsewhere they are plain, and no bar is drawn.
    """

    def __init__(self, columns: list[Column]):
        super().__init__()
        self.columns = columns
        self.console = Console(highlight=False, soft_wrap=True)
        self.has_bar = False
        self.n_rows = 0
        self.first_step, self.begin, self.step_begin = 0, 0.0, 0.0
        self.seconds: list[float] = []  # of the steps since the last row

    def on_train_begin(self, args, state, control, **kwargs):
        self.has_bar = sys.stderr.isatty() and not args.disable_tqdm
        self.n_rows, self.seconds = 0, []
        self.first_step, self.begin = state.global_step, time.monotonic()
        if self.has_bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_begin(self, args, state, control, **kwargs):
        self.step_begin = time.monotonic()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.monotonic() - self.step_begin)
        if self.has_bar:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if self.has_bar:
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs:
            return
        if SUMMARY in logs:
            n_steps = state.global_step - self.first_step
            self._print(f"{n_steps:,} steps in {clock(logs[SUMMARY])}", "bold")
        elif any(name.startswith("eval_") for name in logs):
            for line in evaluation_lines(logs, state.global_step):
                self._print(line, "green")
        else:
            self._print_row(state, logs)

    def on_train_end(self, args, state, control, **kwargs):
        if self.has_bar:
            super().on_train_end(args, state, control, **kwargs)

    def _print_row(self, state: Any, logs: dict[str, Any]) -> None:
        width = 2 * len(str(state.max_steps)) + 1
        titles = [f"{'step':>{width}}", *(column.title for column in self.columns), "s/step", f"{'ETA':>7}"]
        again = self.console.is_terminal and self.n_rows % ROWS_A_HEADER == 0
        if again or self.n_rows == 0:
            self._print("  ".join(f"{title:>6}" for title in titles), "bold cyan")
        per_step = sum(self.seconds) / len(self.seconds) if self.seconds else None
        n_done, n_left = state.global_step - self.first_step, state.max_steps - state.global_step
        time_left = clock((time.monotonic() - self.begin) / n_done * n_left) if n_done > 0 else None
        cells = [
            f"{state.global_step}/{state.max_steps}",
            *(filled(logs.get(column.metric), column.form) for column in self.columns),
            filled(per_step, "{:.2f}" if per_step is not None and per_step < 10 else "{:.0f}"),
            filled(time_left, "{}"),
        ]
        self._print("  ".join(f"{cell:>{max(6, len(title))}}" for cell, title in zip(cells, titles, strict=True)))
        self.n_rows, self.seconds = self.n_rows + 1, []

    def _print(self, line: str, style: str = "") -> None:
        with tqdm.external_write_mode():  # a bar, whoever's, is taken away and drawn again below
            self.console.print(Text(line, style))


def filled(value: Any, form: str) -> str:
    """A cell; a dash where there is nothing."""
    return "-" if value is None else form.format(value)


def clock(seconds: float) -> str:
    """Hours, minutes and seconds: `0:01:05`."""
    return str(timedelta(seconds=round(seconds)))


def evaluation_lines(logs: dict[str, Any], step: int) -> list[str]:
    """A line for each test set of which a log of an evaluation tells."""
    sets: dict[str | None, dict[str, float]] = {}
    for name, value in logs.items():
        if (found := EVALUATION.match(name)) and value is not None:
            sets.setdefault(found["set"], {})[found["metric"]] = value
    lines = []
    for test_set, metrics in sets.items():
        seconds, length = metrics.pop("runtime", None), metrics.pop("completions/mean_length", None)
        parts = [
            f"{metric.removeprefix('rewards/').removesuffix('/mean')} {value:.3f}" for metric, value in metrics.items()
        ]
        parts += [f"length {length:.1f}"] if length is not None else []
        parts += [f"{seconds:.0f} s"] if seconds is not None else []
        lines.append(f"evaluation, step {step}{f', {test_set}' if test_set else ''}: {', '.join(parts)}")
    return lines
