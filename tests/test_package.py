"""`import clipo_trl` is quick, and its public names are what they always were."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import clipo_trl
from clipo_trl.cli.main import main


ROOT = Path(__file__).parents[1]


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_nothing_slow():
    code = "import sys, clipo_trl, clipo_trl.cli.command_line; print(*sys.modules)"
    assert not {"torch", "trl", "transformers", "datasets", "numpy"} & set(run(code).split())


@pytest.mark.slow
def test_the_method_stands_apart_from_the_tools():
    """Whoever imports the trainer gets no command line, and needs no rewards of ours."""
    folder = Path(clipo_trl.__file__).parent
    modules = [
        module.name
        for module in pkgutil.walk_packages([str(folder)], "clipo_trl.")
        if not f"{module.name}.".startswith("clipo_trl.cli.")
    ]
    assert "clipo_trl.trainer" in modules and (folder / "cli" / "main.py").is_file()
    code = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    found = {name for name in run(code).split() if name.startswith(("clipo_trl.cli", "reward_funcs"))}
    assert not found


@pytest.mark.parametrize("words", ["--version", "--help"])
def test_the_command_answers_without_slow_imports(words):
    code = f"import sys; sys.argv[1:] = ['{words}']\nfrom clipo_trl.cli.main import main\n"
    code += "try: main()\nexcept SystemExit as stop: assert not stop.code\nprint(*sys.modules)"
    *said, modules = run(code).splitlines()
    assert not {"torch", "trl", "transformers", "datasets", "numpy", "rich"} & set(modules.split())
    assert said == [f"clipo_trl {clipo_trl.__version__}"] if words == "--version" else "  train " in "\n".join(said)


@pytest.mark.parametrize(
    "argv, message", [([], "the following arguments are required"), (["trian"], "invalid choice: 'trian'")]
)
def test_a_command_that_does_not_exist(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and message in capsys.readouterr().err


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


def test_an_old_name_is_the_new_one_and_warns():
    with pytest.warns(FutureWarning, match="`similarity_readout` is now named `agreement_score`"):
        assert clipo_trl.similarity_readout is clipo_trl.agreement_score
