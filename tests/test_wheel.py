"""The wheel, installed into an environment of its own: the command `clipo` from a folder that knows nothing of the
project."""

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pandas as pd
import pytest

from clipo_trl import __version__


pytestmark = pytest.mark.slow  # builds and installs the package


ROOT = Path(__file__).parents[1]
BUILT_FROM = (
    "clipo_trl",
    "reward_funcs",
    "experiments",
    "train.py",
    "setup.cfg",
    "pyproject.toml",
    "README.md",
    "LICENSE",
)
TINY = (
    "--use_cpu true --bf16 false --report_to none --max_steps 1 --num_generations 4 --generation_batch_size 8 "
    "--per_device_train_batch_size 8 --gradient_accumulation_steps 1 --max_completion_length 8 --save_strategy no"
)
REWARD = "def even(completions, **kwargs): return [float(len(c[-1]['content']) % 2 == 0) for c in completions]\n"


def call(*command: str | Path, cwd: Path, expected: int = 0) -> str:
    """What a command says, of a process that finds no package but through its environment."""
    ours = ("PYTHONPATH", "PYTHONHOME")
    environment = {name: value for name, value in os.environ.items() if name not in ours} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == expected, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + (done.stderr if expected else "")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy: building writes beside its sources."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in BUILT_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    build = "-m pip --disable-pip-version-check wheel --no-deps --no-build-isolation --no-index -w dist ."
    call(sys.executable, *build.split(), cwd=folder)
    (path,) = (folder / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory) -> Path:
    """A fresh virtual environment with the wheel, and nothing else yet."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    call(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    install = f"-m pip --disable-pip-version-check --python {folder}/bin/python install --no-deps --no-index {wheel}"
    call(sys.executable, *install.split(), cwd=wheel.parent)
    return folder


@pytest.fixture
def clipo(environment, tmp_path):
    """The installed command, run in an empty folder; dependencies come from the environment that runs the tests."""
    (site_packages,) = (environment / "lib").glob("python*/site-packages")
    # A path in a .pth file is searched, but .pth files in it are not read: no editable install of this project is
    # found.
    (site_packages / "deps.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return lambda words: call(environment / "bin" / "clipo", *words.split(), cwd=tmp_path)


def test_what_the_wheel_holds(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"clipo_trl", "reward_funcs"}
    modules = {
        str(path.relative_to(ROOT)) for top in ("clipo_trl", "reward_funcs") for path in (ROOT / top).rglob("*.py")
    }
    assert (
        modules | {"clipo_trl/py.typed", "clipo_trl/report/page.html"} <= set(names)
        and "clipo_trl/cli/main.py" in modules
    )


def test_without_dependencies(environment, tmp_path):
    """Before anything else is installed: the command says so, in a sentence."""
    for deps in (environment / "lib").glob("python*/site-packages/deps.pth"):
        deps.unlink()
    assert call(environment / "bin" / "clipo", "--version", cwd=tmp_path) == f"clipo_trl {__version__}\n"
    said = call(environment / "bin" / "clipo", "doctor", cwd=tmp_path, expected=1)
    assert said.startswith("clipo doctor: error: packaging is not installed: ") and "pip install packaging" in said


def test_only_the_packages_are_importable(clipo, environment, tmp_path):
    python = environment / "bin" / "python"
    found = call(python, "-c", "import clipo_trl, reward_funcs, torch; print(clipo_trl.__file__)", cwd=tmp_path)
    assert Path(found.strip()).is_relative_to(environment)
    for name in ("experiments", "train", "benchmarks"):
        assert f"No module named '{name}'" in call(python, "-c", f"import {name}", cwd=tmp_path, expected=1)


def test_help_and_doctor(clipo, environment):
    assert clipo("--version") == f"clipo_trl {__version__}\n"
    assert "commands:" in clipo("--help")
    assert clipo("train --help").startswith("usage: clipo train ")
    report = clipo("doctor")
    assert f"{__version__}, in {environment}" in report and "Nothing has to be mended." in report


@pytest.mark.slow
def test_training_and_evaluation(clipo, model_path, tmp_path):
    """A reward of the user's, found in the working directory; then the trained model, with a reward of the package."""
    (tmp_path / "my_rewards.py").write_text(REWARD)
    rows = pd.DataFrame({"question": [f"{i} + {i}?" for i in range(4)], "answer": [f"#### {2 * i}" for i in range(4)]})
    rows.to_json(tmp_path / "rows.jsonl", orient="records", lines=True)
    run = (
        f"--model_name_or_path {model_path} --dataset_name rows.jsonl --output_dir out --reward_funcs my_rewards.even"
    )
    assert "1 optimizer steps" in clipo(f"train {run} {TINY}")
    assert (tmp_path / "out" / "contrastive_head" / "model.safetensors").is_file()
    clipo("evaluate --model out --datasets rows.jsonl --output_dir evals --max_completion_length 8")
    assert (tmp_path / "evals" / "results.md").is_file()
