"""What other libraries say at each run is left out of the console, and nothing else is."""

import logging
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from test_train_script import SMALL_BATCH, TINY, rows_path  # noqa: F401  # a fixture

from clipo_trl.cli.quiet import ACCELERATOR, BARS, quiet


ROOT = Path(__file__).parents[1]


def test_two_sentences_are_left_out_and_no_others(caplog, monkeypatch):
    logger = logging.getLogger("DeepSpeed")
    monkeypatch.setattr(logger, "propagate", True)
    with quiet():
        warnings.warn("`gradient_checkpointing_enable` is deprecated and will", FutureWarning, stacklevel=1)
        with pytest.warns(FutureWarning, match="fsdp"):
            warnings.warn("`fsdp` is deprecated and will", FutureWarning, stacklevel=1)
        with pytest.warns(UserWarning):  # of another kind
            warnings.warn("`gradient_checkpointing` is deprecated", UserWarning, stacklevel=1)
        for text in (f"{ACCELERATOR}. If you have GPU", "The loss is NaN."):
            logger.warning(text)
    assert {record.getMessage() for record in caplog.records} == {"The loss is NaN."}
    logger.warning(ACCELERATOR)
    assert ACCELERATOR in caplog.text  # after the block as before


def test_bars_are_for_terminals(monkeypatch):
    for name in BARS:
        monkeypatch.delenv(name, raising=False)
    for is_terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal, raising=False)
        with quiet():
            assert [name in os.environ for name in BARS] == [not is_terminal] * 2
        assert not set(BARS) & set(os.environ)
    monkeypatch.setenv(BARS[0], "0")  # the user's word
    with quiet():
        assert os.environ[BARS[0]] == "0"


@pytest.mark.slow
def test_a_short_training_says_nothing_on_the_error_stream(model_path, rows_path, tmp_path):  # noqa: F811
    paths = f"--model_name_or_path {model_path} --dataset_name {rows_path} --output_dir {tmp_path / 'out'}"
    words = (
        f"{paths} {TINY} {SMALL_BATCH} --max_steps 2 --logging_steps 1 --reward_funcs test_train_script.even_length"
    )
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *words.split(), "--save_strategy", "no"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
            "CUDA_VISIBLE_DEVICES": "",
        },
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].strip() == "CLIPO: what will run" and lines[-1].startswith("Saved in ")
    assert len(lines[lines.index(next(line for line in lines if line.startswith("╰"))) + 1 :]) == 6
