"""Mistakes in the command line of the scripts: told at once, before slow imports, in a sentence with the remedy."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import evaluate
import train
from clipo_trl.cli.command_line import (
    argument_errors,
    check_evaluation,
    check_training,
    read_configs,
    read_options,
    usage_errors,
)
from clipo_trl.cli.paths import has_rows, looks_local
from clipo_trl.cli.train import parse_arguments
from reward_funcs.errors import MissingFile, UsageError


ROOT = Path(__file__).parents[1]
ROW = {"question": "1 + 1?", "answer": "#### 2"}
TRAIN = "--model_name_or_path gpt2 --dataset_name rows.jsonl"
EVALUATE = "--model gpt2 --datasets rows.jsonl --output_dir out"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory: a file of one row, empty files, files that are no configuration."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "empty.jsonl").touch()
    (tmp_path / "blank.jsonl").write_text("\n \n")
    (tmp_path / "header.csv").write_text("question,answer\n")
    (tmp_path / "list.yaml").write_text("- learning_rate")
    (tmp_path / "nothing.yaml").write_text("# to do\n")
    (tmp_path / "broken.yaml").write_text("a: [1\nb: 2")
    (tmp_path / "full.yaml").write_text(
        "model_name_or_path: gpt2\ndataset_name: rows.jsonl\nuse_cpu: true\nbf16: false\n"
    )
    (tmp_path / "no_model.yaml").write_text("model_name_or_path: ./none")
    (tmp_path / "tau.yaml").write_text("contrastive_temperature: 0.1\nreward_funcs: [format]")
    (tmp_path / "other_tau.yaml").write_text("contrastive_temperature: 0.2\nmodel_init_kwargs: {}")
    (tmp_path / "text.yaml").write_text("reward_funcs: verifiable")
    (tmp_path / "null.yaml").write_text("contrastive_temperature: null")
    (tmp_path / "misspelt.yaml").write_text("contrastive_temprature: 0.1")
    (tmp_path / "runs").mkdir()
    return tmp_path


TRAIN_MISTAKES = {
    f"{TRAIN} --streaming true": "`streaming` is true, but the rewards read every solution",
    f"{TRAIN} --test_split_size 0.5": "`test_split_size` is 0.5, which is for a mixture",
    f"{TRAIN} --resume_from_checkpoint runs/frist": "`resume_from_checkpoint` is 'runs/frist', but there is no such folder",
    f"{TRAIN} --reward_funcs": "`reward_funcs` is empty, so nothing would be rewarded",
    "--config none.yaml": r"Config file 'none.yaml' does not exist \(looked in /.*--config",
    "--config list.yaml": "'list.yaml' must hold a YAML mapping, but holds .'learning_rate'.*`field: value`",
    "--config nothing.yaml": "must hold a YAML mapping, but holds nothing",
    "--config broken.yaml": "(?s)'broken.yaml' is no YAML.*line 2",
    f"{TRAIN} --config": "`--config` is the last word",
    f"--config {TRAIN}": "`--config` is followed by '--model_name_or_path', but needs the path",
    f"--config full.yaml {TRAIN} --config tau.yaml": "`--config` is given twice. Give it once",
    "--config full.yaml none.yaml": "Config file 'none.yaml' does not exist",
    "--config full.yaml broken.yaml": "'broken.yaml' is no YAML",
    "--config full.yaml no_model.yaml": "`model_name_or_path` is './none', but there is no such folder",
    "--model_name_or_path gpt2": "`dataset_name` is missing: put it into .* or add --dataset_name",
    "--dataset_name rows.jsonl": "`model_name_or_path` is missing",
    f"{TRAIN} --model_name_or_path ./none": "`model_name_or_path` is './none', but there is no such folder .*Correct",
    f"{TRAIN} --model_name_or_path ../none": "no such folder",
    f"{TRAIN} --model_name_or_path ~/none/at/all": "no such folder",
    f"{TRAIN} --model_name_or_path /none/at/all": "no such folder",
    f"{TRAIN} --model_name_or_path runs/none": "no such folder",
    "--dataset_name rows.jsonl --model_name ./none": "no such folder",  # abbreviated, as argparse allows
    f"{TRAIN} --model-name-or-path=./none": "no such folder",
    f"{TRAIN} --dataset_name none.jsonl": r"Dataset file 'none.jsonl' does not exist \(looked in",
    f"{TRAIN} --dataset_name runs/none": "Dataset folder 'runs/none' does not exist",
    f"{TRAIN} --dataset_name list.yaml": "unknown ending. Known: .parquet",
    f"{TRAIN} --dataset_name empty.jsonl": r"'empty.jsonl' is empty: it has no rows \(0 bytes\)",
    f"{TRAIN} --dataset_name blank.jsonl": "'blank.jsonl' is empty",
    f"{TRAIN} --dataset_name header.csv": "'header.csv' is empty",
    f"{TRAIN} --max_train_samples 0": "`max_train_samples` is 0, but must be 1 or more. Leave it out",
    f"{TRAIN} --max_eval_samples -3": "`max_eval_samples` is -3",
    f"{TRAIN} --eval_datasets rows.jsonl": "`eval_datasets` is .*`eval_strategy` is 'no'.*'steps'",
    f"{TRAIN} --eval_strategy steps --eval_datasets a=none.csv": "'none.csv' does not exist",
    f"{TRAIN} --reward_funcs verifibale": "Unknown reward function 'verifibale'",
    f"{TRAIN} --reward_funcs format nowhere.good": "there is no package or module 'nowhere'",
    f"{TRAIN} --config text.yaml": r"`reward_funcs` is 'verifiable', but must be a list. Write \[verifiable\]",
    f"{TRAIN} --contrastive_temperature 0": "`contrastive_temperature` is 0.0, but must be greater than 0",
    f"{TRAIN} --contrastive_temperature nan": "`contrastive_temperature` is nan, but must be greater than 0",
    f"{TRAIN} --contrastive_reward_floor=0.5": "`contrastive_reward_floor` is 0.5, but must be at most 0",
    f"{TRAIN} --contrastive_warmup_steps ten": "`contrastive_warmup_steps` is 'ten', but must be a whole number",
    f"{TRAIN} --contrastive_level grup": "`contrastive_level` is 'grup', which is not known. Choose one of",
    "--config full.yaml null.yaml": "`contrastive_temperature` is None, but must be a number",
    "--config full.yaml misspelt.yaml": "'misspelt.yaml' has `contrastive_temprature`.* `contrastive_temperature`",
    f"{TRAIN} --lerning_rate 1": "The command line has `lerning_rate`, .*Did you mean `learning_rate`",
    f"{TRAIN} --conspo_temperature 1": "The command line has `conspo_temperature`, which is no field",
}
EVALUATE_MISTAKES = {
    "--config none.yaml": "Config file 'none.yaml' does not exist",
    "--config list.yaml": "must hold a YAML mapping",
    f"{EVALUATE} --model ./none": "`model` is './none', but there is no such folder",
    f"{EVALUATE} --datasets a=rows.jsonl b=none.csv": "'none.csv' does not exist",
    f"{EVALUATE} --datasets empty.jsonl": "'empty.jsonl' is empty",
    f"{EVALUATE} --max_samples 0": "`max_samples` is 0",
    f"{EVALUATE} --reward_func nowhere.good": "there is no package or module 'nowhere'",
    "--model gpt2 --output_dir out": "`datasets` is missing",
    f"{EVALUATE} --num_sample_s 3": "The command line has `num_sample_s`.*`num_samples`",
}


@pytest.mark.parametrize("argv", TRAIN_MISTAKES)
def test_mistakes_of_train(argv):
    for function in (check_training, train.main):
        with pytest.raises(UsageError, match=TRAIN_MISTAKES[argv]):
            function(argv.split())


@pytest.mark.parametrize("argv", EVALUATE_MISTAKES)
def test_mistakes_of_evaluate(argv):
    for function in (check_evaluation, evaluate.main):
        with pytest.raises(UsageError, match=EVALUATE_MISTAKES[argv]):
            function(argv.split())


@pytest.mark.parametrize(
    "argv",
    [
        TRAIN,
        "--help --config none.yaml",
        f"{TRAIN} --model_name_or_path Qwen/Qwen2.5-3B-Instruct --dataset_name openai/gsm8k",  # names on the Hub
        f"{TRAIN} --model_name_or_path runs --dataset_name runs",
        f"{TRAIN} --eval_strategy steps --eval_datasets a=rows.jsonl rows.jsonl --reward_funcs verifiable soft_overlong",
        f"{TRAIN} --max_train_samples 1 --max_eval_samples none",  # no number: for the parser to say
        f"{TRAIN} --algorithm conspo --conspo_temperature 1 --no_health --learning-rate=1 --lora_drop 0.1",
        f"{TRAIN} --contrastive_temperature 1e-1 --contrastive_level batch --contrastive_success_rewards a b",
        "--config run.yaml --model_name gpt2",  # an abbreviation goes over the file's, too
    ],
)
def test_what_is_right_passes(argv, folder):
    (folder / "run.yaml").write_text("model_name_or_path: ./none\ndataset_name: rows.jsonl\neval_datasets:\n")
    check_training(argv.split())


def test_evaluation_of_a_file_can_be_switched_off_on_the_command_line(folder):
    (folder / "run.yaml").write_text("eval_datasets: [rows.jsonl]\neval_strategy: 'no'\n")
    with pytest.raises(UsageError, match="`eval_strategy` is 'no'"):
        check_training(f"{TRAIN} --config run.yaml".split())
    with pytest.raises(UsageError, match="`eval_strategy` is 'no'"):
        check_training(f"{TRAIN} --eval_strategy no --eval_datasets rows.jsonl".split())
    with pytest.raises(UsageError, match="`eval_strategy` is 'no'"):
        check_training(f"{TRAIN} --config run.yaml --eval_strategy no --eval_datasets rows.jsonl".split())
    check_training(f"{TRAIN} --config run.yaml --eval_strategy no".split())


def test_what_is_right_passes_for_evaluate():
    check_evaluation(f"{EVALUATE} --max_samples 3 --reward_func verifiable".split())
    check_evaluation("--compare a b".split())


def test_the_command_line_goes_over_the_file(folder):
    (folder / "run.yaml").write_text("a: 1\nb: 2")
    assert dict(read_options("--config run.yaml --b 3 4 --c-d=5 --e".split())) == {
        "a": 1,
        "b": ["3", "4"],
        "c_d": ["5"],
        "e": [],
    }


def test_later_files_win_and_the_command_line_over_them_all(folder):
    read = read_options("--config full.yaml tau.yaml other_tau.yaml --learning_rate 1".split())
    assert read["model_name_or_path"] == "gpt2" and read["contrastive_temperature"] == 0.2
    for argv, tau in (
        ("full.yaml tau.yaml other_tau.yaml", 0.2),
        ("full.yaml other_tau.yaml tau.yaml", 0.1),
        ("full.yaml tau.yaml --contrastive_temperature 0.3", 0.3),
        ("full.yaml", 0.05),
    ):
        script_args, args, model_args = parse_arguments(["--config", *argv.split(), "--output_dir", "out"])
        assert args.contrastive_temperature == tau
        assert (script_args.dataset_name, model_args.model_name_or_path) == ("rows.jsonl", "gpt2")
        assert script_args.reward_funcs == (["format"] if " tau" in argv else ["verifiable"])


def test_a_list_of_a_later_file_takes_the_place_of_the_earlier_one(folder):
    (folder / "one.yaml").write_text("reward_funcs: [verifiable, format]\nmodel_init_kwargs: {a: 1, b: 2}")
    (folder / "two.yaml").write_text("reward_funcs: [format]\nmodel_init_kwargs: {b: 3}")
    assert read_configs(["one.yaml", "two.yaml"]) == {"reward_funcs": ["format"], "model_init_kwargs": {"b": 3}}


def test_variables_of_a_file_are_set(folder, monkeypatch):
    monkeypatch.delenv("OF_THE_FILE", raising=False)
    (folder / "variables.yaml").write_text("env: {OF_THE_FILE: 7}")
    parse_arguments("--config full.yaml variables.yaml --output_dir out".split())
    assert os.environ.pop("OF_THE_FILE") == "7"
    (folder / "variables.yaml").write_text("env: 7")
    with pytest.raises(UsageError, match="`env` is 7, but must be a mapping"):
        parse_arguments("--config full.yaml variables.yaml --output_dir out".split())


UNKNOWN = {
    "contrastive_temprature: 1": "Config file 'new.yaml' has `contrastive_temprature`, .* Did you mean `contrastive_temperature`",
    "num_generation: 8": "`num_generation`, .*Did you mean `num_generations`",
    "contrastive_lamda: 0.1": "Did you mean `contrastive_reward_weight`",
    "tau: 0.1": "Did you mean `contrastive_temperature`",
    "datset_name: a": "Did you mean `dataset_name`",
    "zzz: 1": "has `zzz`, which is no field. `--help` lists",
    "1: 1": "has `1`, which is no field",
}


@pytest.mark.parametrize("line", UNKNOWN)
def test_an_unknown_field_is_answered_with_the_nearest_one(line, folder):
    (folder / "new.yaml").write_text(line)
    for argv in ("new.yaml full.yaml", "full.yaml new.yaml tau.yaml"):
        with pytest.raises(UsageError, match=UNKNOWN[line]):
            train.main(["--config", *argv.split()])


def test_a_value_of_another_kind_is_answered_without_usage(folder, capsys):
    for words in ("--max_steps lots", "--learning_rate 3e-4x"):
        with pytest.raises(UsageError, match="argument --(max_steps|learning_rate).*invalid .* value: .*--help NAME"):
            train.main(f"--config full.yaml --output_dir out {words}".split())
    assert "usage:" not in capsys.readouterr().err


def test_unknown_options_are_answered_too(folder):
    with pytest.raises(UsageError, match="The command line has `contrastive_temprature`.*`contrastive_temperature`"):
        train.main("--config full.yaml --output_dir out --contrastive-temprature=1".split())
    with pytest.raises(UsageError, match=r"The command line has \['stray'\], which belong to no option"):
        train.main("stray --config full.yaml --output_dir out".split())
    (folder / "evaluation.yaml").write_text("model: gpt2\ndatasets: [rows.jsonl]\noutput_dir: out")
    (folder / "new.yaml").write_text("num_sample: 2")
    with pytest.raises(UsageError, match="'new.yaml' has `num_sample`.*`num_samples`"):
        evaluate.main("--config evaluation.yaml new.yaml".split())


def test_names_on_the_hub_and_paths(folder):
    assert [looks_local(name) for name in ("gpt2", "Qwen/Qwen2.5-3B", "runs", "a/runs")] == [False] * 4
    assert [looks_local(name) for name in ("./a", "../a", "..", "~/a", "/a", "runs/a")] == [True] * 6


def test_files_with_and_without_rows(folder):
    rows = pd.DataFrame([ROW])
    rows.to_parquet("full.parquet")
    rows[:0].to_parquet("empty.parquet")
    (folder / "damaged.parquet").write_text("no parquet")
    (folder / "full.csv").write_text("question,answer\n1,2\n")
    (folder / "empty.json").write_text("[\n]\n")
    (folder / "long.csv").write_text("a" * 2**17)
    found = {
        path.name: has_rows(path)
        for ending in ("parquet", "json", "jsonl", "csv")
        for path in folder.glob(f"*.{ending}")
    }
    empty = {"empty.parquet", "empty.json", "empty.jsonl", "blank.jsonl", "header.csv"}
    assert {name for name, has in found.items() if not has} == empty and len(found) == 10


def test_errors_are_of_the_kinds_that_callers_know():
    for argv, kind in (("--config none.yaml", FileNotFoundError), (f"{TRAIN} --reward_funcs a.b", ImportError)):
        with pytest.raises(kind) as caught:
            train.main(argv.split())
        assert isinstance(caught.value, ValueError)
    assert str(MissingFile("no 'x'")) == "no 'x'"


# ---------------------------------------------------------------------- the scripts themselves


def start(script: str, argv: str, *options: str) -> subprocess.CompletedProcess:
    """`script`: a file of the project, or words of the command `clipo`."""
    words = [str(ROOT / script)] if script.endswith(".py") else ["-m", "clipo_trl.cli", *script.split()[1:]]
    command = [sys.executable, *options, *words, *argv.split()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "script, argv, message",
    [
        ("train.py", "--config none.yaml", "Config file 'none.yaml' does not exist"),
        (
            "train.py",
            f"{TRAIN} --reward_funcs my_rewards.good nowhere.good",
            "there is no package or module 'nowhere'",
        ),
        ("evaluate.py", f"{EVALUATE} --datasets empty.jsonl", "Dataset file 'empty.jsonl' is empty"),
        ("evaluate.py", f"{EVALUATE} --reward_func my_rewards.god", "'my_rewards' .* has no 'god'. It has: good"),
        ("clipo train", f"{TRAIN} --lerning_rate 1", "Did you mean `learning_rate`"),
        ("clipo train", "--config misspelt.yaml", "Did you mean `contrastive_temperature`"),
        ("train.py", f"{TRAIN} --contrastive_temperature 0", "must be greater than 0"),
        ("clipo train", f"{TRAIN} --max_train_samples 0", "`max_train_samples` is 0"),
        ("clipo evaluate", f"{EVALUATE} --reward_func my_rewards.god", "'my_rewards' .* has no 'god'. It has: good"),
    ],
)
def test_a_sentence_and_no_slow_import(script, argv, message, folder):
    """Started from another folder than its own, a script finds rewards in the working directory, and fails fast."""
    (folder / "my_rewards.py").write_text("def good(completions, **kwargs): return [1.0] * len(completions)\n")
    done = start(script, argv, "-X", "importtime")
    imported = {
        line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    }
    said = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    assert done.returncode == 2
    assert said.startswith(f"{script}: error: ") and re.search(message, said) and "Traceback" not in said
    assert "yaml" in imported and not {"torch", "trl", "transformers", "datasets"} & imported


@pytest.mark.slow
def test_a_late_mistake_is_a_sentence_too(folder):
    (folder / "rows.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"question": " "}) + "\n")
    done = start("evaluate.py", EVALUATE)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "evaluate.py: error: rows.jsonl (test), row 1: the question is empty." in done.stderr


def test_unexpected_errors_keep_their_traceback(capsys):
    with pytest.raises(ValueError, match="a bug"), usage_errors():
        raise ValueError("a bug")
    with pytest.raises(SystemExit) as stop, usage_errors():
        raise UsageError("`a` is 1, but must be 2.")
    assert stop.value.code == 2 and capsys.readouterr().err.endswith(": error: `a` is 1, but must be 2.\n")


def test_values_that_the_libraries_refuse_are_mistakes_of_usage():
    with pytest.raises(UsageError, match="`contrastive_temperature` is -1"):
        train.main(f"{TRAIN} --use_cpu true --bf16 false --output_dir out --contrastive_temperature -1".split())
    with pytest.raises(UsageError, match="`num_samples` is 0"):
        evaluate.main(f"{EVALUATE} --num_samples 0".split())
    with pytest.raises(TypeError), argument_errors():
        raise TypeError("a bug")
