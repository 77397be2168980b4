"""The quickstart from end to end, on its own configuration with tiny sizes."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import enable_progress_bars
from transformers import ProgressCallback, trainer
from transformers.utils import logging

import quickstart
import train
from clipo_trl import ContrastiveHead
from clipo_trl.cli.main import COMMANDS
from clipo_trl.cli.train import parse_arguments
from experiments import starting_policy
from experiments.starting_policy import Phase


pytestmark = pytest.mark.slow  # the quickstart, whole


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A copy of the scripts' surroundings in `tmp_path`, and every global switch of the quickstart put back
    afterwards."""
    config = Path(quickstart.__file__).parent / "configs" / "quickstart.yaml"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "quickstart.yaml").write_text(config.read_text())
    threads = torch.get_num_threads()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "__file__", str(tmp_path / "quickstart.py"))
    monkeypatch.setattr(trainer, "DEFAULT_PROGRESS_CALLBACK", ProgressCallback)
    yield tmp_path
    torch.set_num_threads(threads)
    enable_progress_bars()
    logging.enable_progress_bar()


def test_from_end_to_end(sandbox, monkeypatch, capsys):
    phases = (Phase("clean", 2, 1e-3), Phase("noisy", 2, 1e-3))
    warm_starts, warm_start, run = [], starting_policy.warm_start, train.main

    def tiny_warm_start(folder, **kwargs):
        warm_starts.append(folder)
        return warm_start(folder, phases=phases, batch_size=2, hidden_size=16, num_layers=1, **kwargs)

    monkeypatch.setattr(quickstart, "PHASES", phases)
    monkeypatch.setattr(quickstart, "warm_start", tiny_warm_start)
    monkeypatch.setattr(
        quickstart.train, "main", lambda argv: run([*argv, "--max_steps", "4", "--contrastive_warmup_steps", "1"])
    )
    for _ in range(2):
        quickstart.main()
        output = capsys.readouterr().out
        assert "Before and after CLIPO" in output
        assert "Done in" in output and "One seed is an anecdote" in output and "docs/faithfulness.md" in output
        assert [line.split("  #")[0].strip() for line in output.splitlines()[-3:]] == [
            words for words, _ in quickstart.NEXT
        ]
    assert len(warm_starts) == 1  # the second run finds the policy of the first

    folder = sandbox / "runs" / "quickstart"
    results = json.loads((folder / "results.json").read_text())
    assert set(results["before"]) == set(results["after"]) == set(quickstart.TEST_SETS)
    assert list(results) == ["before", "grpo", "after", "agreement"]
    assert "CLIPO: what will run" in output and output.count("what will run") == 1
    log = (folder / "agreement" / "log.jsonl").read_text()
    assert "contrastive/reward/mean" in log and "contrastive/" not in (folder / "grpo" / "log.jsonl").read_text()
    assert (folder / "quickstart.png").read_bytes().startswith(b"\x89PNG")
    assert ContrastiveHead.from_pretrained(folder / "clipo" / "contrastive_head").hidden_size == 16
    assert len((folder / "train.jsonl").read_text().splitlines()) == 800
    assert not (folder / "grpo" / "contrastive_head").exists() and (folder / "agreement" / "contrastive_head").is_dir()


def test_the_arms_differ_by_their_reward_alone(monkeypatch):
    runs = {}
    monkeypatch.chdir(Path(quickstart.__file__).parent)
    monkeypatch.setattr(trainer, "DEFAULT_PROGRESS_CALLBACK", ProgressCallback)
    monkeypatch.setattr(quickstart.train, "main", lambda argv: runs.setdefault(argv[-1], parse_arguments(argv)))
    for key in quickstart.ARMS:
        quickstart.train_arm(key, [])
    (script, grpo, _), (_, clipo, _), (_, agreement, _) = runs.values()
    assert not script.contrastive and grpo.max_steps == clipo.max_steps - clipo.contrastive_warmup_steps == 100
    names = {field.name for field in fields(clipo)}
    differ = {name for name in names if getattr(clipo, name) != getattr(agreement, name)}
    assert differ == {"output_dir", "contrastive_reward_type", "contrastive_debias"}
    assert (agreement.contrastive_reward_type, agreement.contrastive_debias) == ("agreement", "group_center")


@pytest.mark.parametrize("command", [words for words, _ in quickstart.NEXT])
def test_the_next_commands_are_there(command):
    root = Path(quickstart.__file__).parent
    words = command.split()
    assert (root / words[1]).is_file() if words[0] == "python" else words[1] in COMMANDS
    assert all((root / word).is_file() for word in words if word.endswith(".yaml"))


def test_moving_mean():
    nan = float("nan")
    smooth = quickstart.moving_mean(np.array([1.0, nan, 3.0, 5.0, nan, nan, nan]), window=3)
    assert smooth.tolist() == pytest.approx([1.0, 2.0, 4.0, 4.0, 5.0, nan, nan], nan_ok=True)


def test_options_are_looked_at_first(sandbox, capsys):
    with pytest.raises(SystemExit) as stop:
        quickstart.main(["--learning_rats", "1"])
    assert stop.value.code == 2 and "Did you mean `learning_rate`?" in capsys.readouterr().err
    assert not (sandbox / "runs").exists()
