"""`clipo train --dry_run`: the table of the run that it stands for, every gold read, nothing trained or written."""

import json
import re
import sys

import pytest
from test_train_script import rows_path, run  # noqa: F401  # fixtures
from tiny_vision import tiny_vision_model

from clipo_trl import CLIPOConfig, CLIPOTrainer
from clipo_trl.cli.main import run_train
from clipo_trl.cli.memory import count_parameters
from clipo_trl.cli.run_choices import model_without_weights
from reward_funcs.errors import UsageError


def table_of(output: str) -> dict[str, str]:
    """Subjects and texts of the table in the output."""
    rows: dict[str, str] = {}
    last = ""
    for subject, text in re.findall(r"^│ (.*?) │ (.*?) *│$", output, re.MULTILINE):
        subject = subject.strip() or last
        rows[subject] = f"{rows.get(subject, '')} {text}".strip()
        last = subject
    return rows


@pytest.fixture
def no_trainer(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a dry run makes no trainer")

    monkeypatch.setattr(CLIPOTrainer, "__init__", fail)


@pytest.mark.parametrize(
    "options",
    [
        "--max_steps 2 --num_iterations 2",
        "--max_steps 2 --use_peft true --lora_r 2 --contrastive_head_type mlp --contrastive_embedding_dim 8",
        "--max_steps 1 --contrastive false",
    ],
)
def test_the_table_is_that_of_the_run(run, options, capsys, tmp_path):  # noqa: F811
    assert run(options, "--dry_run") is None
    output = capsys.readouterr().out
    assert not (tmp_path / "out").exists() and "Dry run: nothing was trained" in output
    told = table_of(output)
    trainer = run(options)
    assert told.pop("golds") == "not parsed: no reward of this run compares values"
    shown = table_of(capsys.readouterr().out)
    if "false" not in options:  # the dry run adds why
        assert told.pop("hidden states").startswith(shown["hidden states"]) and trainer.states.mode in shown.pop(
            "hidden states"
        )
    assert told == shown and len(told) > 9


@pytest.fixture
def bad_golds(tmp_path):
    path = tmp_path / "golds.jsonl"
    golds = ["\\boxed{3}", "\\boxed{}", "7", "\\boxed{}", "\\boxed{\\frac{}{}{}}", "\\boxed{}"]
    path.write_text("".join(json.dumps({"prompt": "1 + 1", "solution": gold}) + "\n" for gold in golds))
    return path


def test_every_gold_is_parsed(run, bad_golds, no_trainer, capsys):  # noqa: F811
    compare = f"--dataset_name {bad_golds} --reward_funcs verifiable --dry_run true --max_steps 1"
    with pytest.raises(
        UsageError, match=r"(?s)4 of 6 golds .*cannot be parsed.*row 1: .*row 3: .*`max_unparsable_share`"
    ):
        run(compare)
    run(compare, f"--max_unparsable_share 1 --eval_strategy steps --eval_steps 1 --eval_datasets held={bad_golds}")
    told = table_of(capsys.readouterr().out)["golds"]
    found = "4 of 6 cannot be parsed (row 1: '\\\\boxed{}', row 3: '\\\\boxed{}', row 4: "
    assert " ".join(told.split()).startswith(f"train: {found}") and f"held: {found}" in told and ", ...)" in told


@pytest.mark.parametrize(
    "options, message",
    [
        ("--generation_batch_size 64", "has 10 prompts, but a generation batch takes 16"),
        ("--reward_weights 1 2", "`reward_weights` has 2 entries, but `reward_funcs` has 1"),
        ("--contrastive_step_reward steps", "`contrastive_step_reward` is 'steps', .* Choose from .'even_length'"),
        ("--contrastive_success_rewards steps", r"`contrastive_success_rewards` is \['steps'\]"),
        ("--dynamic_sampling true --dynamic_sampling_rewards steps", r"`dynamic_sampling_rewards` is \['steps'\]"),
        (
            "--algorithm conspo --contrastive false --contrastive_success_rewards steps",
            "`contrastive_success_rewards`",
        ),
        ("--contrastive_head_path nowhere/at_all", "nowhere/at_all"),
        ("--contrastive_layer 7", "`contrastive_layer` is 7"),
        ("--model_name_or_path nobody/nothing", "`model_name_or_path` is 'nobody/nothing', which cannot be read: "),
    ],
)
def test_what_would_stop_the_run_stops_the_dry_run(run, options, message, no_trainer):  # noqa: F811
    with pytest.raises(UsageError, match=message):
        run("--max_steps 1 --dry_run", options)


@pytest.mark.parametrize("stage_3", [False, True])
def test_models_of_every_class_are_made_without_weights(stage_3, tmp_path):
    """Images, which have a class of their own; and where DeepSpeed would shard what is made."""
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    model, _ = tiny_vision_model("Qwen2.5-VL")
    sharded = (
        HfDeepSpeedConfig({"zero_optimization": {"stage": 3}, "train_micro_batch_size_per_gpu": 1})
        if stage_3
        else None
    )
    model.config.architectures = [type(model).__name__]
    empty = model_without_weights(model.config, CLIPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False))
    assert type(empty) is type(model) and all(weight.is_meta for weight in empty.parameters())
    assert count_parameters(empty) == count_parameters(model)
    del sharded


def test_exit_codes(run, no_trainer, monkeypatch, capsys, model_path, rows_path, tmp_path):  # noqa: F811
    words = (
        f"--model_name_or_path {model_path} --dataset_name {rows_path} --output_dir {tmp_path / 'out'} --use_cpu true"
    )
    sizes = "--bf16 false --num_generations 4 --per_device_train_batch_size 8 --max_steps 1 --dry_run"
    monkeypatch.setattr(sys, "argv", ["clipo train", *words.split(), *sizes.split()])
    run_train()  # which ends in 0
    assert "Dry run" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--num_generations", "80", "--generation_batch_size", "880"])
    with pytest.raises(SystemExit) as stop:
        run_train()
    assert stop.value.code == 2 and "clipo train: error: The training set has 10 prompts" in capsys.readouterr().err
