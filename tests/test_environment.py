"""Packages that cannot work together are named, with the line of pip that mends it."""

import re
import shlex

import pytest
import torch
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

import clipo_trl
from clipo_trl import CLIPOTrainer, environment
from clipo_trl.cli import doctor
from clipo_trl.environment import Conflict, check_environment, conflicts, explain


OURS = {"torch": ">=2.13,<3", "transformers": ">=5.10.4,<6", "huggingface_hub": ">=1.33,<3", "numpy": ">=2.3,<3"}
VLLM_31 = {"torch": "==2.13.0", "transformers": "<5.18.0,>=5.10.4", "huggingface_hub": ">=1.31.0", "numpy": ""}
VLLM_26 = {**VLLM_31, "torch": "==2.11.0"}
SOUND = {
    "torch": "2.13.0+cpu",
    "transformers": "5.17.0",
    "huggingface_hub": "1.33.0",
    "numpy": "2.3.5",
    "trl": "1.16.0",
}


@pytest.fixture
def installed(monkeypatch):
    """Pretend an environment: versions, and what packages declare."""

    def pretend(versions, vllm=None, **others):
        declared = {"clipo_trl": OURS, **({"vllm": vllm} if vllm else {}), **others}
        versions = {name.replace("_", "-"): version for name, version in versions.items()}

        def requirements_of(package, extra=""):
            if (package, extra) == ("trl", "vllm"):
                return [Requirement("vllm<=0.31.0,>=0.22.0")]
            return [Requirement(name + range) for name, range in declared.get(package, {}).items()]

        monkeypatch.setattr(environment, "installed_version", lambda name: versions.get(name.replace("_", "-")))
        monkeypatch.setattr(environment, "requirements_of", requirements_of)

    return pretend


def test_this_environment_is_sound():
    assert conflicts() == []
    check_environment()


def test_what_fits_is_left_alone(installed):
    installed({**SOUND, "vllm": "0.31.0"}, VLLM_31)
    assert conflicts() == []


def test_transformers_that_vllm_does_not_take(installed):
    installed({**SOUND, "vllm": "0.31.0", "transformers": "5.23.0"}, VLLM_31)
    (conflict,) = conflicts()
    assert conflict.text == "vllm 0.31.0 needs transformers<5.18.0,>=5.10.4, but transformers 5.23.0 is installed"
    (mend,) = map(Requirement, conflict.install)
    assert mend.name == "transformers" and mend.specifier == SpecifierSet(">=5.10.4,<5.18.0,<6")
    with pytest.raises(ImportError, match="vllm 0.31.0 needs transformers.*pip install 'transformers"):
        check_environment()


def test_numpy_that_one_of_vllms_packages_holds_back(installed):
    installed(
        {**SOUND, "vllm": "0.30.0", "mistral_common": "1.13.1", "numpy": "2.4.6"},
        VLLM_31,
        mistral_common={"numpy": "<2.4,>=1.25"},
    )
    (conflict,) = conflicts()
    assert conflict.text.startswith("mistral_common 1.13.1 needs numpy<2.4,>=1.25, but numpy 2.4.6")
    (mend,) = map(Requirement, conflict.install)
    assert mend.specifier.contains("2.3.5") and not mend.specifier.contains("2.4.6") | mend.specifier.contains("2.2")


def test_an_engine_for_another_torch_is_changed_and_not_torch(installed):
    installed({**SOUND, "vllm": "0.26.0"}, VLLM_26)
    (conflict,) = conflicts()
    assert "needs torch==2.11.0, but torch 2.13.0+cpu is installed" in conflict.text
    assert [Requirement(one).name for one in conflict.install] == ["vllm", "torch"]
    assert Requirement(conflict.install[0]).specifier.contains("0.31.0")


@pytest.mark.parametrize("trl, requests, found", [("1.14.1", None, 1), ("1.14.1", "2.34", 0), ("1.14.2", None, 0)])
def test_what_an_older_trl_imports_unsaid(installed, trl, requests, found):
    versions = {**SOUND, "trl": trl} | ({"requests": requests} if requests else {})
    installed(versions)
    assert [conflict.install for conflict in conflicts()] == [("requests",)] * found


def test_one_line_mends_all(installed):
    conflict = Conflict("vllm", "one", ("a>=1", "b"))
    line = explain([conflict, Conflict("trl", "two", ("b", "c"))])
    assert "one; two" in line
    assert shlex.split(line.partition("pip install ")[2]) == ["a>=1", "b", "c"]


def test_a_trainer_with_vllm_names_it_at_its_start(tmp_path, monkeypatch):
    monkeypatch.setattr(
        environment, "conflicts", lambda: [Conflict("vllm", "vllm 0.31.0 needs less", ("transformers<6",))]
    )
    with pytest.raises(ImportError, match="vllm 0.31.0 needs less. To mend it: .* -m pip install 'transformers<6'"):
        make(tmp_path, use_vllm=True)
    make(tmp_path)  # nothing of vLLM's is used


def make(folder, **settings):
    return CLIPOTrainer(
        tiny_model(),
        letters_reward,
        tiny_config(folder, **settings),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
    )


def test_an_import_that_fails_is_put_down_to_it(monkeypatch):
    def fail(*args):
        raise RuntimeError("Failed to import trl.trainer.grpo_trainer")

    monkeypatch.setattr(clipo_trl.importlib, "import_module", fail)
    with pytest.raises(RuntimeError, match="Failed to import"):
        clipo_trl.CLIPOTrainer  # noqa: B018
    monkeypatch.setattr(environment, "conflicts", lambda: [Conflict("vllm", "torch is too old", ("torch>=9",))])
    with pytest.raises(ImportError, match="torch is too old.*'torch>=9'"):
        clipo_trl.CLIPOTrainer  # noqa: B018


def test_doctor_tells_it_and_fails(monkeypatch, capsys):
    found = [Conflict("vllm", "vllm 0.31.0 needs less", ("transformers<6", "torch>=2"))]
    monkeypatch.setattr(doctor, "conflicts", lambda: found)
    assert doctor.main([]) == 1
    text = capsys.readouterr().out
    assert re.search(r"^! vllm +vllm 0.31.0 needs less$", text, re.MULTILINE)
    assert text.endswith("-m pip install 'transformers<6' 'torch>=2'\n")


def test_the_versions_of_torch_that_are_declared_hold_here():
    assert environment.range_for("clipo_trl", "torch").contains(torch.__version__, prereleases=True)
