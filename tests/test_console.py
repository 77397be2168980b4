"""What a training says: the file of all that it logs, and its lines on the console."""

import json
from pathlib import Path

import pytest
import torch
from transformers import TrainerControl, TrainerState, TrainingArguments

from clipo_trl.cli.log_file import LOG_NAME, LogFileCallback, read_log


@pytest.fixture
def args(tmp_path) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True, report_to="none")


def state_at(step: int, **fields) -> TrainerState:
    return TrainerState(global_step=step, epoch=step / 10, max_steps=10, **fields)


def log(callback, args, state, **logs):
    callback.on_log(args, state, TrainerControl(), logs=logs)


# ---------------------------------------------------------------------- the file


def test_every_log_is_a_line_of_strict_json(args):
    callback, path = LogFileCallback(), Path(args.output_dir, LOG_NAME)
    callback.on_train_begin(args, state_at(0), TrainerControl())
    log(callback, args, state_at(1), reward=0.5, grad_norm=float("inf"), loss=torch.tensor(0.25))
    log(callback, args, state_at(2), eval_reward=float("nan"), **{"contrastive/loss/mean": None})
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert lines == read_log(path) and all(row["time"] > 1.7e9 for row in lines)
    assert [{**row, "time": 0} for row in lines] == [
        {"step": 1, "epoch": 0.1, "time": 0, "reward": 0.5, "grad_norm": None, "loss": 0.25},
        {"step": 2, "epoch": 0.2, "time": 0, "eval_reward": None, "contrastive/loss/mean": None},
    ]


def test_resuming_goes_on_after_the_checkpoint_and_starting_afresh_does_not(args):
    path = f"{args.output_dir}/{LOG_NAME}"
    for begin, steps, kept in ((0, (1, 2, 3), [1, 2, 3]), (2, (3, 4), [1, 2, 3, 4]), (0, (1,), [1])):
        callback = LogFileCallback()
        callback.on_train_begin(args, state_at(begin), TrainerControl())
        for step in steps:
            log(callback, args, state_at(step), reward=0.0)
        assert [row["step"] for row in read_log(path)] == kept
        with open(path, "a") as file:
            file.write('{"step": 9, "rew')  # killed while it wrote


def test_one_process_writes(args, tmp_path):
    callback = LogFileCallback()
    callback.on_train_begin(args, state_at(0, is_world_process_zero=False), TrainerControl())
    log(callback, args, state_at(1, is_world_process_zero=False), reward=0.5)
    assert not (tmp_path / "out" / LOG_NAME).exists()
