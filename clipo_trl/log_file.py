"""All that a run logs, in `OUTPUT_DIR/log.jsonl`: whatever the console shows, for tables and pictures afterwards."""

import json
import math
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


LOG_NAME = "log.jsonl"
SUMMARY = "train_runtime"  # of the last log of a run, which is no end where another goes on


class LogFileCallback(TrainerCallback):
    """
    Writes every log of training and evaluation as a line of `OUTPUT_DIR/log.jsonl`: a JSON object with `step`,
    `epoch`, `time` (seconds since 1970) and the metrics under their names; `null` where one is NaN or infinite.

    The first process writes. A run that starts afresh starts the file afresh; one that resumes keeps the lines up to
    its checkpoint's step (those of the trainer's own history, where there is no file), and goes on after them.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = Path(args.output_dir, LOG_NAME)
            path.parent.mkdir(parents=True, exist_ok=True)
            earlier = (read_log(path) or state.log_history) if state.global_step else []
            kept = [row for row in earlier if row["step"] <= state.global_step and SUMMARY not in row]
            path.write_text("".join(map(_line, kept)), encoding="utf-8")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero:
            row = {"step": state.global_step, "epoch": state.epoch, "time": round(time.time(), 3)} | (logs or {})
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)  # an evaluation may come before any training
            with Path(args.output_dir, LOG_NAME).open("a", encoding="utf-8") as file:
                file.write(_line(row))


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a `log.jsonl`, but for a last line that was cut off; none if there is no file."""
    rows = []
    for line in Path(path).read_text(encoding="utf-8").splitlines() if Path(path).is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _line(row: dict[str, Any]) -> str:
    return json.dumps({name: _plain(value) for name, value in row.items()}) + "\n"


def _plain(value: Any) -> Any:
    """What JSON can hold: no NaN, no infinity, no tensor."""
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
