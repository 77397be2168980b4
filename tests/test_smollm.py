"""The quickstart with a language model from end to end, on its own configuration with a tiny model of its kind."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from datasets import enable_progress_bars
from test_language_model import TINY, base, wheel  # noqa: F401  # fixtures
from transformers import AutoModelForCausalLM, ProgressCallback, trainer
from transformers.utils import logging

import smollm
from clipo_trl import ContrastiveHead
from experiments.language_model import FetchError, warm_starts


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    """A copy of the script's surroundings in `tmp_path`, and every global switch put back afterwards."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "smollm.yaml").write_text(Path("configs/smollm.yaml").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(smollm, "__file__", str(tmp_path / "smollm.py"))
    monkeypatch.setattr(trainer, "DEFAULT_PROGRESS_CALLBACK", ProgressCallback)
    yield tmp_path
    enable_progress_bars()
    logging.enable_progress_bar()


@pytest.mark.slow
def test_from_end_to_end(sandbox, base, monkeypatch, capsys):  # noqa: F811
    (sandbox / "runs" / "language_model").mkdir(parents=True)
    (sandbox / "runs" / "language_model" / "base").symlink_to(base / "base")
    for name in warm_starts.lineage(smollm.WARM_START):
        recipe = replace(TINY, start=warm_starts.WARM_STARTS[name].start)
        monkeypatch.setitem(warm_starts.WARM_STARTS, name, recipe)
    monkeypatch.setattr(smollm, "TEST_PROBLEMS", 2)
    small = ["--max_steps", "2", "--num_generations", "4", "--per_device_train_batch_size", "8"]
    assert smollm.main([*small, "--max_completion_length", "8", "--bf16", "false", "--dtype", "float32"]) == 0
    output = capsys.readouterr().out
    assert "2 problems that training never saw" in output and "Done in" in output

    folder = sandbox / "runs" / "smollm"
    results = json.loads((folder / "results.json").read_text())
    assert set(results["before"]) == set(results["after"]) == set(smollm.FIGURES)
    assert ContrastiveHead.from_pretrained(folder / "clipo" / "contrastive_head").hidden_size == 32
    assert "lora_A" in " ".join(AutoModelForCausalLM.from_pretrained(folder / "clipo").state_dict())


def test_a_model_that_cannot_be_had_is_said(sandbox, monkeypatch, capsys):
    def fetch(folder):
        raise FetchError("no network")

    monkeypatch.setattr(smollm, "fetch", fetch)
    assert smollm.main() == 1
    assert "no network" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--max_stepz", "3"], "Did you mean `max_steps`?"),
        (["--contrastive_temperature", "-1"], "contrastive_temperature"),
        (["--dry_run"], "`clipo train --config configs/smollm.yaml --dry_run`"),
    ],
)
def test_options_are_looked_at_before_the_model_is_fetched(sandbox, monkeypatch, capsys, options, says):
    monkeypatch.setattr(smollm, "fetch", lambda folder: pytest.fail("it was fetched first"))
    with pytest.raises(SystemExit) as stop:
        smollm.main(options)
    assert stop.value.code == 2 and says in capsys.readouterr().err


def test_options_are_looked_at_with_the_precision_of_the_machine(sandbox, monkeypatch):
    def fetch(folder):
        raise FetchError("no network")

    monkeypatch.setattr(smollm, "fetch", fetch)
    monkeypatch.setattr(smollm, "bf16_is_faster", lambda: False)
    assert smollm.main(["--use_cpu", "false"]) == 1  # its bf16 would be refused here


def test_help_is_short(sandbox, capsys):
    with pytest.raises(SystemExit) as stop:
        smollm.main(["--help"])
    assert stop.value.code == 0 and "`python smollm.py --max_steps 50" in capsys.readouterr().out
