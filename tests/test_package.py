"""`import clipo_trl` is quick, and its public names are what they always were."""

import subprocess
import sys
from pathlib import Path

import pytest

import clipo_trl


ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, clipo_trl, clipo_trl.command_line; print(*sys.modules)"
    assert not {"torch", "trl", "transformers", "datasets", "numpy"} & set(run(code).split())


def test_public_names():
    assert set(clipo_trl.__all__) == set(clipo_trl._MODULES) <= set(dir(clipo_trl))
    for name in clipo_trl.__all__:
        value = getattr(clipo_trl, name)
        assert value.__name__ == name and value.__module__.startswith("clipo_trl.")
    with pytest.raises(AttributeError, match="'clipo_trl' has no attribute 'CLIPOTrianer'"):
        clipo_trl.CLIPOTrianer  # noqa: B018


@pytest.mark.parametrize("first", ["clipo_trl.contrastive_reward", "clipo_trl.trainer", "clipo_trl.config"])
def test_contrastive_reward_is_the_function_whatever_was_imported_before(first):
    code = f"import {first}; from clipo_trl import contrastive_reward; import clipo_trl; print(clipo_trl.contrastive_reward)"
    assert run(code).startswith("<function contrastive_reward")


def test_a_public_name_can_be_replaced(monkeypatch):
    monkeypatch.setattr(clipo_trl, "contrastive_loss", "another")
    assert clipo_trl.contrastive_loss == "another"
