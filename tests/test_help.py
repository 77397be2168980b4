"""`--help` and the names of all options: read from sources, exact, and without slow imports."""

import ast
import sys

import pytest
from test_command_line import start
from trl import ModelConfig, TrlParser

import evaluate
import train
from clipo_trl.algorithms import ALGORITHMS, find_algorithm
from clipo_trl.cli import main as command
from clipo_trl.cli.options import CLIPO, EVALUATION, Group, option_names, read_class, training_groups
from clipo_trl.config import FIELD_GROUPS


def names_of(classes) -> set[str]:
    """What the parser that imports everything takes, in the spelling of fields."""
    actions = [action for action in TrlParser(classes)._actions if action.dest not in ("help", "config")]
    return {action.dest for action in actions}


@pytest.mark.parametrize("algorithm", [None, *ALGORITHMS])
def test_the_names_are_those_of_the_parser(algorithm):
    classes = (train.ScriptArguments, find_algorithm(algorithm).config_class(), ModelConfig)
    assert set(option_names(training_groups(algorithm))) == names_of(classes)


def test_the_names_of_evaluation_too():
    assert set(option_names(EVALUATION)) == names_of((evaluate.EvaluationArguments,))


def test_clipos_options_are_as_its_fields_have_them():
    fields = {name: field for group in FIELD_GROUPS for name, field in group.__dataclass_fields__.items()}
    for option in (option for group in CLIPO for option in group.options()):
        field = fields[option.name]
        assert option.help == " ".join(field.metadata["help"].split())
        assert option.choices == field.metadata.get("choices")
        assert ast.literal_eval(option.default) == field.default


def test_a_source_that_is_not_there_leaves_it_to_the_parser():
    assert option_names([Group("", "clipo_trl:none.py", ("A",))]) is None
    assert option_names([Group("", "clipo_trl:config.py", ("NoSuchFields",))]) is None
    with pytest.raises(LookupError, match="no_such_package is not installed"):
        read_class("no_such_package:a.py", "A")


def helped(words: str, monkeypatch, capsys, run=command.run_train) -> str:
    monkeypatch.setattr(sys, "argv", ["clipo train", *words.split()])
    monkeypatch.setenv("COLUMNS", "100")
    run()
    return capsys.readouterr().out


def test_help_has_clipos_options_first_and_is_short(monkeypatch, capsys):
    text = helped("--help", monkeypatch, capsys)
    lines = text.splitlines()
    assert len(lines) < 160 and max(map(len, lines)) <= 119
    places = [text.index(title) for title in ("CLIPO: the method:", "data, rewards", "GRPO (TRL):", "(transformers):")]
    assert places == sorted(places)
    assert "  contrastive_temperature [0.05]        Temperature tau > 0 that similarities are divided by\n" in text
    assert set(option_names(training_groups())) <= set(text.replace("[", " ").split())
    assert text == helped("--config none.yaml -h", monkeypatch, capsys)
    assert "tensor_parallel_size [1]" in helped("--help", monkeypatch, capsys, command.run_evaluate)


def test_help_on_a_word_says_all_of_it(monkeypatch, capsys):
    text = helped("--help contrastive-level", monkeypatch, capsys)
    assert text.startswith(
        "--contrastive_level (group | cross | batch, default 'group')\\n    Where positives".replace("\\n", "\n")
    )
    assert text.count("\n--") == 0
    assert helped("--help temperature", monkeypatch, capsys).startswith(
        "--contrastive_temperature (float, default 0.05)"
    )
    with pytest.raises(SystemExit) as stop:
        helped("--help tmeperature", monkeypatch, capsys)
    assert stop.value.code == 2 and "Did you mean `temperature`?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, said",
    [([], "one of train, evaluate, report, doctor. See `clipo --help`."), (["trian"], "Did you mean `clipo train`?")],
)
def test_clipo_alone_and_a_mistyped_command_are_answered(argv, said, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(argv)
    assert stop.value.code == 2 and capsys.readouterr().err.endswith(f"{said}\n")


@pytest.mark.parametrize(
    "words", ["clipo train --help", "clipo evaluate --help", "clipo train --contrastive_level grup"]
)
def test_no_slow_import(words):
    script, _, argv = words.partition(" --")
    done = start(script, f"--{argv}", "-X", "importtime")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert not {"torch", "trl", "transformers", "datasets", "numpy"} & imported and "yaml" in imported
    assert "Traceback" not in done.stderr
