"""Rewards by dotted path: found from the working directory, and an error that says which of the names is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from reward_funcs import get_reward_func
from reward_funcs.errors import NotImportable, UsageError


ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch) -> Path:
    """A user's folder, which is the working directory, and a package in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    before = set(sys.modules)
    package = tmp_path / "dp_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rewards.py").write_text(
        "BONUS = 1\n\ndef good(completions, **kwargs):\n    return [1.0] * len(completions)\n"
    )
    (package / "broken.py").write_text("import math\nimport dp_not_there.at_all\n")
    (package / "renamed.py").write_text("\n\nfrom math import circle_number\n")
    (package / "buggy.py").write_text("1 / 0\n")
    (tmp_path / "dp_module.py").write_text("from dp_package.rewards import good\n")
    (tmp_path / "dp_self_broken").mkdir()
    (tmp_path / "dp_self_broken" / "__init__.py").write_text("from .gone import good\n")
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("dp_"):
            del sys.modules[name]


@pytest.mark.parametrize("path", ["dp_package.rewards.good", "dp_module.good"])
def test_found_from_the_working_directory(path):
    assert get_reward_func(path)(["a", "b"]) == [1.0, 1.0]


def test_the_working_directory_comes_last_and_once(project):
    before = list(sys.path)
    get_reward_func("dp_module.good")
    get_reward_func("dp_package.rewards.good")
    assert sys.path == [*before, str(project)]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "dp_nowhere.rewards.good",
            "no package or module 'dp_nowhere'. Looked in the working directory '{folder}', .*PYTHONPATH",
        ),
        ("dp_nowhere.good", "no package or module 'dp_nowhere'"),
        ("dp_package.gone.good", "package 'dp_package' has no module 'gone'. Looked in {folder}/dp_package. Correct"),
        ("dp_package.gone.further.good", "package 'dp_package' has no module 'gone'"),
        ("dp_module.gone.good", r"'dp_module' \({folder}/dp_module.py\) is a module and no package.*no 'gone' in it"),
        ("dp_package.rewards.god", r"'dp_package.rewards' \({folder}/.*rewards.py\) has no 'god'. It has: good"),
        (
            "dp_package.broken.good",
            r"'dp_package.broken' was found, but an import inside it failed \({folder}/dp_package/broken.py, line 2\): "
            "No module named 'dp_not_there'. Install",
        ),
        ("dp_package.renamed.good", r"inside it failed \(.*renamed.py, line 3\): cannot import name 'circle_number'"),
        ("dp_self_broken.good", r"inside it failed \(.*__init__.py, line 1\): No module named 'dp_self_broken.gone'"),
        ("dp_self_broken.gone.good", "inside it failed .*__init__.py, line 1"),
    ],
)
def test_which_name_is_wrong(path, message, project):
    with pytest.raises(NotImportable, match=f"^Reward function '{path}': .*{message.format(folder=project)}"):
        get_reward_func(path)


def test_an_installed_package_of_the_same_name_is_named(project):
    (project / "yaml").mkdir()
    (project / "yaml" / "rewards.py").touch()
    with pytest.raises(
        NotImportable, match=f"'yaml' has no module 'rewards'.*or rename '{project}/yaml': an installed"
    ):
        get_reward_func("yaml.rewards.good")


def test_errors_of_the_users_own_code_are_passed_on():
    with pytest.raises(ZeroDivisionError):
        get_reward_func("dp_package.buggy.good")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dp_package.rewards.BONUS", "is a int, which cannot be called"),
        ("good", "Unknown reward function 'good'"),
        (".good", "Unknown reward function '.good'"),
        ("dp_package..good", "Unknown reward function"),
        ("", "Unknown reward function ''"),
    ],
)
def test_no_function(name, message):
    with pytest.raises(UsageError, match=message):
        get_reward_func(name)


def test_a_file_named_like_a_library_does_no_harm(project):
    """The working directory is searched last: `random.py` in it is not the standard library's."""
    (project / "random.py").write_text("raise RuntimeError('imported')\n")
    code = (
        "from reward_funcs import get_reward_func; get_reward_func('dp_module.good'); import random; random.random()"
    )
    environment = {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
