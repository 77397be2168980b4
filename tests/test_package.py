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


def test_a_public_name_can_be_replaced(monkeypatch):
    monkeypatch.setattr(clipo_trl, "contrastive_loss", "another")
    assert clipo_trl.contrastive_loss == "another"
