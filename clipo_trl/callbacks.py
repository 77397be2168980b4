"""Callbacks for looking at what CLIPO sees."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import TrainerCallback

from .completions_table import AGREEMENT, SUSPICIOUS, farthest_rows
from .trainer import CLIPOMixin


class SuspiciousRolloutsCallback(TrainerCallback):
    """
    Lists, at each log, the correct rollouts that are farthest from their group: lowest agreement, that is, the mean
    cosine of their embedding to those of the group's other correct rollouts, less the mean of that over the group.
    They are the ones to read first when looking for answers that are right by luck.

    They are printed, lowest first, once for each generation batch, and marked in a column `suspicious` of the
    completions table that `log_completions` writes to `output_dir/completions/` and to the trackers; its column
    `agreement` has that of every correct rollout with another one in its group (with two more, to differ from 0). The
    table of an evaluation has none.

    Where most correct rollouts of a group are right by luck, it is the sound ones that are far: read what you see.

    Args:
        trainer ([`CLIPOTrainer`]): trainer to look into. Add the callback with `trainer.add_callback`.
        num_rollouts (`int`, *optional*, defaults to `5`): how many to list.

    Raises:
        `ValueError`: `log_completions` is not set, or `num_rollouts` is not positive.

    Example:

    ```python
    trainer = CLIPOTrainer(..., args=CLIPOConfig(..., log_completions=True))
    trainer.add_callback(SuspiciousRolloutsCallback(trainer))
    ```
    """

    def __init__(self, trainer: CLIPOMixin, num_rollouts: int = 5):
        if not trainer.log_completions:
            raise ValueError(
                "`log_completions` is False, so there is no completions table to list suspicious rollouts in. Set "
                "`log_completions=True` in the trainer's `args`."
            )
        if not num_rollouts > 0:
            raise ValueError(f"`num_rollouts` is {num_rollouts}, but must be greater than 0.")
        self.trainer = trainer
        self.num_rollouts = num_rollouts
        self._n_listed = 0  # generation batches scored when the last list was printed

    def on_log(self, args, state, control, logs=None, **kwargs):
        rollouts: dict[str, Any] = self.trainer._logs
        agreement = list(rollouts["extra"][AGREEMENT])
        farthest = farthest_rows(agreement, self.num_rollouts)
        # TRL builds its table after the callbacks have seen the log.
        rollouts["extra"][SUSPICIOUS] = [row in farthest for row in range(len(agreement))]
        if self.trainer._evaluating:
            return
        n_batches, self._n_listed = self._n_listed, self.trainer.head_learner.n_batches
        if farthest and self._n_listed > n_batches and state.is_world_process_zero:
            table = Table(
                title=f"Correct rollouts farthest from their group, step {state.global_step}", show_lines=True
            )
            for title in ("Prompt", "Completion", "Agreement"):
                table.add_column(title, justify="right" if title == "Agreement" else "left")
            for row in farthest:
                texts = (_text(rollouts[column][row]) for column in ("prompt", "completion"))
                table.add_row(*map(escape, texts), f"{agreement[row]:.3f}")
            Console().print(table)


def _text(messages: str | list[dict]) -> str:
    return messages if isinstance(messages, str) else str(messages[-1].get("content") or "")
