"""What a training says: the file of all that it logs, and its lines on the console."""

import io
import json
import re
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from test_train_script import rows_path, run  # noqa: F401  # fixtures
from transformers import PrinterCallback, ProgressCallback, TrainerControl, TrainerState, TrainingArguments

from clipo_trl.cli.console import ROWS_A_HEADER, Column, TableCallback, clock, evaluation_lines
from clipo_trl.log_file import LOG_NAME, LogFileCallback, read_log


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


# ---------------------------------------------------------------------- the table

COLUMNS = [Column("reward", "reward"), Column("accuracy", "correct", "{:.1%}"), Column("cosine", "cosine")]


def rows_of(output: str) -> tuple[list[str], list[list[str]]]:
    """The titles and the cells of the rows of a table without style."""
    lines = [line.split() for line in output.splitlines()]
    (titles,) = [words for words in lines if words[:2] == ["step", "reward"]]
    return titles, [words for words in lines if words and re.fullmatch(r"\d+/\d+", words[0])]


def test_a_row_a_log_in_the_columns_of_the_titles(args, capsys, monkeypatch):
    now = iter([0.0, *(2.0, 5.0), *(6.0, 10.0), 10.0])  # begin; two steps of 3 and 4 seconds; the row
    monkeypatch.setattr("clipo_trl.cli.console.time.monotonic", lambda: next(now))
    callback = TableCallback(COLUMNS)
    callback.on_train_begin(args, state_at(0), TrainerControl())
    for step in (1, 2):
        callback.on_step_begin(args, state_at(step), TrainerControl())
        callback.on_step_end(args, state_at(step), TrainerControl())
    log(callback, args, state_at(2), reward=0.5, correct=0.25, cosine=None, loss=1.0)
    log(callback, args, state_at(2), train_runtime=65.2)
    output = capsys.readouterr()
    assert rows_of(output.out) == (
        ["step", "reward", "accuracy", "cosine", "s/step", "ETA"],
        [["2/10", "0.500", "25.0%", "-", "3.50", "0:00:40"]],
    )
    assert output.out.splitlines()[-1] == "2 steps in 0:01:05" and output.err == ""
    assert len({len(line) for line in output.out.splitlines()[:2]}) == 1  # aligned


def test_the_time_left_counts_the_steps_of_this_run_alone(args, capsys, monkeypatch):
    now = iter([0.0, 10.0])
    monkeypatch.setattr("clipo_trl.cli.console.time.monotonic", lambda: next(now))
    callback = TableCallback(COLUMNS)
    callback.on_train_begin(args, state_at(5), TrainerControl())
    log(callback, args, state_at(6), reward=0.5)
    assert rows_of(capsys.readouterr().out)[1] == [["6/10", "0.500", "-", "-", "-", "0:00:40"]]


def test_a_terminal_has_a_bar_and_titles_again_and_a_pipe_has_not(args, monkeypatch, capsys):
    for is_terminal in (False, True):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        callback, file = TableCallback(COLUMNS), io.StringIO()
        callback.console = Console(file=file, force_terminal=is_terminal)
        args.disable_tqdm = False
        callback.on_train_begin(args, state_at(0), TrainerControl())
        assert (callback.training_bar is not None) == is_terminal
        callback.on_step_end(args, state_at(1), TrainerControl())
        for _ in range(ROWS_A_HEADER + 1):
            log(callback, args, state_at(1), reward=0.5)
        callback.on_train_end(args, state_at(1), TrainerControl())
        assert file.getvalue().count("accuracy") == 1 + is_terminal
        assert ("\x1b[" in file.getvalue()) == is_terminal
    args.disable_tqdm = True
    callback.on_train_begin(args, state_at(0), TrainerControl())
    assert callback.training_bar is None


def test_an_evaluation_has_a_line_for_each_set():
    of_two = {
        "eval_math_reward": 0.5,
        "eval_math_rewards/verifiable_reward/mean": 0.25,
        "eval_math_rewards/contrastive/mean": None,
        "eval_math_completions/mean_length": 31.04,
        "eval_math_runtime": 12.3,
        "eval_math_reward_std": 0.1,
        "eval_amc_23_reward": 0.125,
        "epoch": 1.0,
    }
    assert evaluation_lines(of_two, 7) == [
        "evaluation, step 7, math: reward 0.500, verifiable_reward 0.250, length 31.0, 12 s",
        "evaluation, step 7, amc_23: reward 0.125",
    ]
    assert evaluation_lines({"eval_reward": 1, "eval_rewards/a/mean": 0.5}, 7) == [
        "evaluation, step 7: reward 1.000, a 0.500"
    ]
    assert clock(3725.4) == "1:02:05"


def test_a_training_prints_the_table_and_not_the_dicts(run, rows_path, capsys):  # noqa: F811
    trainer = run(
        "--max_steps 2 --logging_steps 1 --eval_strategy steps --eval_steps 2 --beta 0.1 --eval_datasets",
        f"x={rows_path}",
    )
    output = capsys.readouterr()
    titles, rows = rows_of(output.out)
    assert titles == "step reward accuracy contrastive cosine KL entropy length s/step ETA".split()
    logs = [row for row in trainer.state.log_history if "loss" in row]
    assert [row[0] for row in rows] == ["1/2", "2/2"] and [len(row) for row in rows] == [len(titles)] * 2
    assert rows[0][1] == f"{logs[0]['reward']:.3f}" and rows[0][7] == f"{logs[0]['completions/mean_length']:.1f}"
    assert rows[0][2] == f"{logs[0]['contrastive/correct_rollouts']:.1%}"
    assert rows[1][1] == "-" and rows[1][6] == f"{logs[1]['entropy']:.2f}"  # of the same generation batch
    assert output.out.count("evaluation, step 2, x: ") == 1 and "Saved in" in output.out
    assert "{" not in output.out and "step_time" not in output.out


def test_the_table_of_a_plain_algorithm(run, capsys):  # noqa: F811
    run("--max_steps 1 --logging_steps 1 --contrastive false")
    assert rows_of(capsys.readouterr().out)[0] == "step reward accuracy entropy length s/step ETA".split()


def test_the_full_console_is_transformers_own(run, capsys):  # noqa: F811
    trainer = run("--max_steps 1 --logging_steps 1 --console full")
    assert "'contrastive/loss/mean'" in capsys.readouterr().out
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert PrinterCallback in kinds and TableCallback not in kinds  # `disable_tqdm`: no ProgressCallback
    trainer = run("--max_steps 1 --disable_tqdm false")
    kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
    assert TableCallback in kinds and not {PrinterCallback, ProgressCallback} & set(kinds)
