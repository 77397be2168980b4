"""Ctrl-C and SIGTERM in `clipo train`: a checkpoint after the step, the command that goes on, and the same run."""

import itertools
import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_train_script import SMALL_BATCH, TINY, even_length, rows_path, run  # noqa: F401  # fixtures
from transformers import AutoModelForCausalLM, TrainerControl, TrainerState

import train
from clipo_trl import ContrastiveHead
from clipo_trl.cli.main import interrupts
from clipo_trl.cli.stopping import StopCallback, command_to_go_on
from clipo_trl.log_file import LOG_NAME, read_log


ROOT = Path(__file__).parents[1]
LENGTH = "--max_steps 7 --logging_steps 1"
sent: list[int] = []  # by this process, at its second generation batch


def signals_itself(completions, **kwargs) -> list[float]:
    for number in sent:
        if len(sent) > 1 or signals_itself.calls:
            signal.raise_signal(number)
    signals_itself.calls += 1
    return even_length(completions)


def slow(completions, **kwargs) -> list[float]:
    time.sleep(0.3)
    return even_length(completions)


signals_itself.__name__ = slow.__name__ = "even_length"  # the name is that of metrics


@pytest.fixture(autouse=True)
def afresh():
    outside = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    signals_itself.calls = 0
    yield sent.clear()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before  # put back
    signal.signal(signal.SIGINT, outside)


def assert_saved_the_same(folder: Path, whole: Path) -> None:
    """Bit for bit: weights and head; and what was logged."""
    for load in (AutoModelForCausalLM, ContrastiveHead):
        place = "" if load is AutoModelForCausalLM else "contrastive_head"
        here, there = (load.from_pretrained(path / place).state_dict() for path in (folder, whole))
        assert all(torch.equal(here[name], there[name]) for name in there)
    rows = [[row for row in read_log(path / LOG_NAME) if "loss" in row] for path in (folder, whole)]
    keys = ("step", "reward", "contrastive/loss/mean", "entropy", "learning_rate", "grad_norm")
    here, there = ([[row.get(key) for key in keys] for row in of_run] for of_run in rows)
    assert here == there


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_tells_how_to_go_on(run, number, tmp_path, capfd):  # noqa: F811
    sent.append(number)
    with pytest.raises(SystemExit) as stop:
        run(f"{LENGTH} --reward_funcs test_stopping.signals_itself")
    assert stop.value.code == 128 + number
    checkpoint = tmp_path / "out" / "checkpoint-3"  # two optimizer steps a generation batch
    said = capfd.readouterr().err
    assert f"{number.name}: saving after this optimizer step; once more stops at once." in said
    assert f"Stopped by {number.name} after step 3 of 7, with a checkpoint. Go on with: clipo train " in said
    assert said.rstrip().endswith(f"--resume_from_checkpoint {checkpoint}")
    assert checkpoint.is_dir() and not (checkpoint.parent / "model.safetensors").exists()  # which is the end's

    sent.clear()
    words = shlex.split(said.rstrip().rpartition("clipo train ")[2])
    assert train.main(words).state.global_step == 7
    assert not any(path.name.startswith("checkpoint") and path != checkpoint for path in checkpoint.parent.iterdir())
    checkpoint.parent.rename(tmp_path / "stopped")
    run(LENGTH)
    assert_saved_the_same(tmp_path / "stopped", tmp_path / "out")


def test_a_second_signal_stops_at_once(run, tmp_path):  # noqa: F811
    sent.extend([signal.SIGINT, signal.SIGINT])
    with pytest.raises(KeyboardInterrupt):
        run(f"{LENGTH} --reward_funcs test_stopping.signals_itself")
    assert not list((tmp_path / "out").glob("checkpoint*"))


def test_ctrl_c_is_a_sentence(capsys):
    with pytest.raises(SystemExit) as stop, interrupts("Nothing was saved."):
        raise KeyboardInterrupt
    assert stop.value.code == 130 and "stopped at once. Nothing was saved." in capsys.readouterr().err


def accelerator(received_elsewhere: int = 0, num_processes: int = 2) -> SimpleNamespace:
    def gather(tensor):
        return torch.cat([tensor, torch.tensor([received_elsewhere])])

    return SimpleNamespace(num_processes=num_processes, is_main_process=False, device="cpu", gather=gather)


def test_a_signal_to_one_process_stops_all():
    for received, step, stops in ((0, 1, False), (signal.SIGTERM, 1, True), (signal.SIGTERM, 9, False)):
        stop, control = StopCallback(accelerator(received)), TrainerControl()
        args = SimpleNamespace(save_total_limit=1)
        stop.on_step_end(args, TrainerState(global_step=step, max_steps=9), control)
        assert args.save_total_limit == 1 + stops  # the best checkpoint and this one stay
        assert control.should_save == control.should_training_stop == stops == bool(stop.stopped)


def never_returns_to_python(connection) -> None:
    connection.send("running")
    sum(itertools.repeat(0, 10**12))


def test_a_forked_child_ends_as_it_would_without(capfd):
    """A reward function's own processes, which it may have to terminate."""
    with StopCallback(SimpleNamespace(num_processes=1, is_main_process=True)) as stop:
        here, there = multiprocessing.Pipe()
        child = multiprocessing.get_context("fork").Process(target=never_returns_to_python, args=(there,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads
            child.start()
        assert here.poll(60)  # Python forgets signals that come while it forks
        time.sleep(0.3)  # by then it is in C
        child.terminate()
        child.join(20)
        exitcode = child.exitcode
        child.kill()
    assert exitcode == -signal.SIGTERM and stop.received == 0
    assert "saving" not in capfd.readouterr().err


def test_what_a_launcher_sends_on_is_the_same_signal(monkeypatch):
    now = iter([0.0, 1.0, 10.0])
    monkeypatch.setattr("clipo_trl.cli.stopping.time.monotonic", lambda: next(now))
    with pytest.raises(KeyboardInterrupt), StopCallback(accelerator()) as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a second later
        assert stop.received == signal.SIGINT
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize(
    "program, words, command",
    [
        ("train.py", ["--config", "a b.yaml"], "python train.py --config 'a b.yaml' --resume_from_checkpoint out/c"),
        (
            "clipo train",
            ["--resume_from_checkpoint", "true", "--seed", "1"],
            "clipo train --seed 1 --resume_from_checkpoint out/c",
        ),
        (
            "clipo train",
            ["--seed=1", "--resume-from-checkpoint=x"],
            "clipo train --seed=1 --resume_from_checkpoint out/c",
        ),
    ],
)
def test_the_command_to_go_on(program, words, command, monkeypatch):
    monkeypatch.setattr(sys, "argv", [program, *words])
    assert command_to_go_on(None, "out/c") == command


# ---------------------------------------------------------------------- real processes


def start(launcher: list[str], words: list[str], folder: Path) -> subprocess.Popen:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train.py"), *words],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("n_processes, number", [(1, signal.SIGINT), (2, signal.SIGTERM)])
def test_real_processes_stop_and_go_on_bit_for_bit(n_processes, number, model_path, rows_path, tmp_path):  # noqa: F811
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"] if n_processes > 1 else []
    paths = f"--model_name_or_path {model_path} --dataset_name {rows_path} --save_strategy no"
    words = f"{paths} {TINY} {SMALL_BATCH} {LENGTH} --contrastive_debias mean_subtract".split()
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"

    process = start(launcher, [*words, "--output_dir", str(stopped), "--reward_funcs", "test_stopping.slow"], tmp_path)
    try:
        deadline = time.monotonic() + 120
        while len(read_log(stopped / LOG_NAME)) < 2 and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.05)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0 and f"Stopped by {number.name} after step" in output, output[-3000:]
    (checkpoint,) = stopped.glob("checkpoint-*")
    assert 2 <= int(checkpoint.name.rpartition("-")[2]) < 7
    assert output.count("Go on with") == 1 and f"--resume_from_checkpoint {checkpoint}" in output
    assert ("the same launcher and: " in output) == (n_processes > 1)

    again = [*words, "--reward_funcs", "test_stopping.even_length", "--output_dir"]
    for more in ([str(stopped), "--resume_from_checkpoint", str(checkpoint)], [str(whole)]):
        process = start(launcher, [*again, *more], tmp_path)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output[-3000:]
    assert_saved_the_same(stopped, whole)
