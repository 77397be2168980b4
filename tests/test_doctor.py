"""`clipo doctor`: what it tells of an environment, and that a run then does as it was told."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from recording import FUSED, record
from tiny_models import tiny_config
from transformers import GPT2Config
from trl import ModelConfig

from clipo_trl.capture import choose_capture_mode
from clipo_trl.cli import doctor, run_choices
from clipo_trl.cli.doctor import Row
from clipo_trl.cli.train import ScriptArguments


ROOT = Path(__file__).parents[1]
ON_CPU = "--use_cpu true --bf16 false --report_to none"
CONTINUOUS = {"use_transformers_continuous_batching": True}


@pytest.fixture
def versions(monkeypatch):
    """Other versions than those installed; `None`: the package is not there."""

    def pretend(**others: str | None) -> None:
        real = doctor.installed_version
        monkeypatch.setattr(doctor, "installed_version", lambda name: others.get(name, real(name)))

    return pretend


def rows_of(text: str) -> dict[str, str]:
    """Lines of the report by their subject, a fault's with its mark before it."""
    lines = [line.strip() for line in text.splitlines() if line.startswith(("  ", "! "))]
    return {subject: rest.strip() for subject, _, rest in (line.partition("  ") for line in lines)}


# ---------------------------------------------------------------------- the environment


def test_a_sound_environment(capsys, versions):
    versions(deepspeed="0.1", vllm="999")  # neither has to be there, nor to fit
    assert doctor.main([]) == 0
    text = capsys.readouterr().out
    rows = rows_of(text)
    for name in ("torch", "transformers", "trl", "accelerate", "peft", "datasets", "math-verify", "huggingface_hub"):
        assert rows[name].startswith(doctor.installed_version(name)) and "(tested: " in rows[name]
    assert rows["python"] == f"{sys.version.split()[0]} (tested: >=3.11)"
    assert rows["deepspeed"].startswith("0.1 is out of range (tested: ")
    assert rows["vllm"] == f"999 is out of range (supported by trl: {doctor.range_of('vllm')})"
    assert rows["downloads"].startswith("off" if os.environ.get("HF_HUB_OFFLINE") else "on")
    assert {"accelerator", "processors", "cache"} <= rows.keys()
    assert "│" not in text and text.endswith("Nothing has to be mended.\n")


def test_what_is_missing_or_out_of_range_is_mended_by_one_line(capsys, versions):
    torch_range, trl_range = (one for one in doctor.requirements_of("clipo_trl") if one.name in ("torch", "trl"))
    versions(torch="1.0", trl=None, vllm=None)
    assert doctor.main(["--config", "nowhere.yaml"]) == 1
    text = capsys.readouterr().out
    rows = rows_of(text)
    assert rows["! torch"] == f"1.0 is outside of the tested range {torch_range.specifier}"
    assert rows["! trl"] == f"not installed (tested: {trl_range.specifier})"
    assert rows["vllm"].startswith("not installed") and "machine" not in text
    assert text.endswith(f"To mend it: {sys.executable} -m pip install '{torch_range}' '{trl_range}'\n")


@pytest.mark.parametrize(
    "version, fits",
    [("2.13.0", True), ("2.13.1+cu130", True), ("2.13.1rc1", True), ("2.14.0", False), ("2.9", False)],
)
def test_ranges(monkeypatch, version, fits):
    monkeypatch.setattr(doctor, "installed_version", lambda name: version)
    row = doctor.check_package(Requirement("torch>=2.13,<2.14"))
    assert row.fault is not fits and row.install == (None if fits else "torch<2.14,>=2.13")
    assert doctor.check_python("3.10.2", ">=3.11").fault and not doctor.check_python("3.12.0rc1", ">=3.11").fault


def test_without_metadata_of_its_own(monkeypatch):
    def gone(name):
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "metadata", gone)
    (row,) = doctor.package_rows()
    assert row.fault and row.install == "clipo_trl"


def test_nothing_slow_is_imported_before_the_packages_are_sound():
    code = "import sys\nfrom clipo_trl.cli import doctor\ndoctor.installed_version = lambda name: None\n"
    code += "assert doctor.main([]) == 1\nsys.stderr.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not {"torch", "trl", "transformers", "yaml", "rich", "huggingface_hub"} & set(done.stderr.split())
    assert "! rich " in done.stdout


@pytest.mark.parametrize("bf16, told", [(True, "supported"), (False, "not supported: set `bf16: false`")])
def test_accelerators(monkeypatch, bf16, told):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(torch.accelerator, "get_memory_info", lambda index: ((index + 1) * 2**30, 4 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "H100")
    monkeypatch.setattr("transformers.utils.is_torch_bf16_gpu_available", lambda: bf16)
    rows = {row.subject: row.text for row in doctor.machine_rows()}
    assert rows["accelerator"] == "cuda, 2 devices" and rows["bf16"] == told
    assert rows["cuda:1"] == "H100, 2.0 of 4.0 GiB free"


def test_a_torch_that_cannot_be_imported(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert doctor.main(["--learning_rate", "1"]) == 1
    rows = rows_of(capsys.readouterr().out)
    assert rows["! torch"].startswith("is installed, but cannot be imported: ") and "not looked at" in rows


def test_a_table_for_a_terminal_and_one_voice_of_many(capsys, monkeypatch):
    sections = {"packages": [Row("torch", "[2.9]", True, "torch>=2.13")]}
    monkeypatch.setenv("RANK", "1")
    doctor.report(sections)
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    doctor.report(sections)
    shown = capsys.readouterr().out
    assert "╭" in shown and "[2.9]" in shown and "-m pip install 'torch>=2.13'" in shown


# ---------------------------------------------------------------------- a run


def test_the_rule_of_ways():
    names = ("scored_by_trl", "shifts_with_left_padding", "plain_generate")
    modes = {
        values: choose_capture_mode(**dict(zip(names, values, strict=True)))
        for values in itertools.product((0, 1), repeat=3)
    }
    assert {values for values, mode in modes.items() if mode == "fused"} == {(1, 0, 0), (1, 0, 1)}
    assert {values for values, mode in modes.items() if mode == "decode"} == {(0, 0, 1), (0, 1, 1), (1, 1, 1)}


@pytest.mark.parametrize(
    "settings",
    [
        {},
        FUSED,
        {"num_iterations": 2},
        {"dynamic_sampling": True},
        {"contrastive_reward_type": "likelihood"},
        CONTINUOUS,
    ],
    ids=str,
)
def test_a_run_reads_states_as_was_told(tmp_path, settings):
    told = run_choices.explain_capture_mode(tiny_config(tmp_path, **settings), shifts_with_left_padding=False)
    if settings == CONTINUOUS:  # which the tiny model cannot do
        assert told.startswith("forward, in an extra pass") and "continuous batching makes the rollouts" in told
    else:
        assert told.partition(",")[0] == record(tmp_path, max_steps=1, **settings).states.mode
    assert ("reuse a generation batch" in told) == (settings in (FUSED, {"num_iterations": 2}))
    assert ("`likelihood` asks for it" in told) == ("contrastive_reward_type" in settings)


def test_ways_with_vllm(tmp_path):
    args = tiny_config(tmp_path, use_vllm=True)
    assert run_choices.explain_capture_mode(args, False).endswith(
        "which it makes for vLLM's importance-sampling correction"
    )
    assert run_choices.explain_capture_mode(args, True).startswith("forward, ")
    args.vllm_importance_sampling_correction = False
    assert run_choices.explain_capture_mode(args, False).startswith(
        "forward, in an extra pass over the decoder: vLLM makes"
    )


def test_learned_positions_are_seen_without_weights(tmp_path):
    GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=98, architectures=["GPT2LMHeadModel"]).save_pretrained(
        tmp_path
    )
    args, model_args = tiny_config(tmp_path, **FUSED), ModelConfig(model_name_or_path=str(tmp_path))
    shifts, told, memory = run_choices.look_at_model(ScriptArguments(), args, model_args)
    assert memory.startswith("about ") and " MiB a process (" in memory
    assert shifts and told.endswith("a GPT2LMHeadModel with hidden size 16")
    assert run_choices.explain_capture_mode(args, shifts).startswith("decode, ")
    assert "not fused: padding on the left" in run_choices.explain_capture_mode(args, shifts)


def told_of(capsys, argv: str) -> tuple[int, dict[str, str], str]:
    code = doctor.main(argv.split())
    text = capsys.readouterr().out
    return code, rows_of(text), text


def test_a_file_is_explained(model_path, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    settings = {"model_name_or_path": model_path, "reward_funcs": ["verifiable", "format"], "num_iterations": 2}
    path.write_text(json.dumps(settings))
    code, rows, text = told_of(capsys, f"--config {path} {ON_CPU} --output_dir {tmp_path}")
    assert code == 0 and text.endswith("Nothing has to be mended.\n")
    assert rows["model"] == f"{model_path}, a Qwen2ForCausalLM with hidden size 16"
    assert rows["hidden states"].startswith("fused, in TRL's own scoring pass")
    assert rows["success"].startswith("verifiable_reward > 0 (known to tell right answers")
    assert rows["answers"].startswith("checked by ") and rows["processes"].startswith("1; ")

    code, rows, _ = told_of(capsys, f"--config {path} {ON_CPU} --output_dir {tmp_path} --reward_funcs format")
    assert code == 0 and rows["success"] == "format_reward > 0 (no other reward judges answers)"
    assert "no reward of this run compares values" in rows["answers"]


def test_a_model_that_is_not_there_is_told_and_no_fault(tmp_path, capsys):
    code, rows, _ = told_of(capsys, f"{ON_CPU} --output_dir {tmp_path} --model_name_or_path {tmp_path}/none")
    assert code == 0 and "could not be looked at" in rows["model"] and rows["hidden states"].startswith("decode")
    code, rows, _ = told_of(capsys, f"{ON_CPU} --output_dir {tmp_path}")
    assert code == 0 and rows["model"].startswith("not named")


@pytest.mark.skipif(torch.accelerator.is_available(), reason="needs a machine without an accelerator")
def test_a_file_for_another_machine_is_explained_too(model_path, tmp_path, capsys):
    argv = f"--output_dir {tmp_path} --report_to none --model_name_or_path {model_path}"
    code, rows, _ = told_of(capsys, f"{argv} --bf16 true")
    assert code == 1 and "bf16" in rows["! refused here"]
    assert rows["what follows"] == "as with `--use_cpu true --bf16 false`" and rows["hidden states"]


@pytest.mark.parametrize(
    "words, message",
    [
        ("--contrastive_success_rewards nobody", "`contrastive_success_rewards` is ['nobody'], but must be a list of"),
        ("--reward_weights 1 2", "`reward_weights` has 2 entries, but `reward_funcs` has 1"),
        ("--contrastive_layer 7", "`contrastive_layer` is 7, but the model has 2 layers"),
        ("--reward_funcs nowhere.good", "there is no package or module 'nowhere'"),
    ],
)
def test_what_a_trainer_would_refuse(model_path, tmp_path, capsys, words, message):
    code, rows, _ = told_of(capsys, f"{ON_CPU} --output_dir {tmp_path} --model_name_or_path {model_path} {words}")
    assert code == 1 and message in rows["! refused"]


def test_values_that_the_configuration_refuses(tmp_path, capsys):
    code, rows, _ = told_of(capsys, f"{ON_CPU} --output_dir {tmp_path} --contrastive_temperature -1")
    assert code == 1 and "`contrastive_temperature` is -1" in rows["! refused here"]
    assert "hidden states" not in rows


def test_vllm_that_a_run_needs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_choices, "installed_version", lambda name: None)
    code, rows, text = told_of(capsys, f"{ON_CPU} --output_dir {tmp_path} --use_vllm true")
    assert code == 1 and rows["! vllm"] == "not installed, but `use_vllm` is true"
    assert text.endswith(f"-m pip install 'vllm{doctor.range_of('vllm')}'\n")


def test_mistakes_in_a_sentence_before_slow_imports():
    code = "import sys; sys.argv[1:] = 'doctor --config none.yaml'.split()\nfrom clipo_trl.cli.main import main\n"
    code += "try: main()\nfinally: sys.stdout.write(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and not {"torch", "trl", "transformers"} & set(done.stdout.split())
    assert done.stderr.startswith("clipo doctor: error: Config file 'none.yaml' does not exist")
