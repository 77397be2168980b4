"""Every code block of the README and the docs is run, or checked, or says why not.

| language | what happens |
|---|---|
| `python` | run, a page's blocks one after the other, with stand-ins for what a reader has and a test has not |
| `diff` | its new side is run as Python |
| `yaml` | read by `clipo train` (or `clipo evaluate`), with the checks of its dataclasses |
| `bash` | each command's options are parsed by the program's own parser, which then stops; files and targets exist |
| `json` | read, as a whole or line by line |
| `math` | built with the site |
| `text` | a drawing or an output: nothing to run |

Any other block, or one that cannot be run, has `<!-- not run: why -->` on the line before it.
"""

import argparse
import ast
import configparser
import json
import os
import re
import runpy
import subprocess
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
import yaml
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

from clipo_trl import CLIPOTrainer, ContrastiveHead
from reward_funcs import configure_pool


ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]+?) -->\n)?"
    r"^(?P<indent> *)(?P<ticks>```+)(?P<language>[^\n]*)\n(?P<text>.*?)^ *(?P=ticks) *$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str
    reason: str | None

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(text: str, page: str) -> list[Block]:
    """The fenced blocks of a page, in their order."""
    found = []
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start("ticks")) + 1
        language = match["language"].strip()
        found.append(Block(page, line, language, textwrap.dedent(match["text"]), match["reason"]))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page.read_text(), page.relative_to(ROOT).as_posix())]


def checked(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages and block.reason is None]


# ---------------------------------------------------------------------------------------------------------------------
# Stand-ins
# ---------------------------------------------------------------------------------------------------------------------

SMALL = "max_steps=1, max_completion_length=4, use_cpu=True, bf16=False, report_to='none'"
# Text of a block -> what is run in its place. All but the first two rows make it smaller.
SUBSTITUTIONS = {
    r'"Qwen/Qwen2\.5-[\w.]+-Instruct"': "'policy'",  # saved in the working directory, as are all folders below
    r'load_dataset\("trl-lib/DeepMath-103K", split="train"\)': "dataset",
    r'output_dir="out"': f'output_dir="out", {SMALL}',
    r'warm_start\("policy"\)': 'warm_start("policy", phases=PHASES)',
    r"max_steps=100": "max_steps=1, per_device_train_batch_size=8, report_to='none'",
    r"build_dataset\(800": "build_dataset(16",
    r"build_dataset\(200": "build_dataset(16",
}
# Folders of trained policies, or names of such on the Hub.
TRAINED = ("outputs/run", "outputs/run/checkpoint-100", "user/policy", "runs/track1_gsm8k")


def short_phases():
    from experiments.starting_policy import Phase

    return (Phase("clean", 1, 1e-3),)


def accuracy_reward():
    from trl.rewards import accuracy_reward

    return accuracy_reward


# What a page takes for granted: made where a block reads the name.
STAND_INS = {
    "PHASES": short_phases,
    "accuracy_reward": accuracy_reward,
    "completions": lambda: ["2", "3"],
    "dataset": tiny_dataset,
    "model": lambda: "policy",
    "pooled": lambda: torch.randn(1, 16, generator=torch.Generator().manual_seed(0)),
    "prompts": lambda: ["1 + 1", "1 + 2"],
    "reward_funcs": lambda: [letters_reward],
    "train_dataset": tiny_dataset,
    "trainer": lambda: CLIPOTrainer(
        "policy", letters_reward, tiny_config("out", log_completions=True), train_dataset=tiny_dataset()
    ),
}
# A configuration that commands name.
FILES = {"run.yaml": "model_name_or_path: policy\ndataset_name: data/train.jsonl\noutput_dir: runs/first\n"}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder that looks like the checkout, with saved policies, data and a configuration in it."""
    folder = tmp_path_factory.mktemp("workplace")
    for entry in ROOT.iterdir():
        if entry.name not in {"runs", "data", "site"} and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry)
    (folder / "data").mkdir()
    tiny_dataset().to_json(folder / "data" / "train.jsonl")
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for path in ("policy", *TRAINED):
        tiny_model().save_pretrained(folder / path)
        tiny_tokenizer().save_pretrained(folder / path)
    for path in TRAINED:
        ContrastiveHead(16, 4).save_pretrained(folder / path / "contrastive_head")
    return folder


@pytest.fixture
def at_work(workplace, monkeypatch) -> Path:
    monkeypatch.chdir(workplace)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    yield workplace
    configure_pool()


# ---------------------------------------------------------------------------------------------------------------------
# Python
# ---------------------------------------------------------------------------------------------------------------------


def python_of(block: Block) -> str:
    """What of the block is run, with the substitutions."""
    text = block.text
    if block.language == "diff":
        text = "\n".join(line[1:] for line in text.splitlines() if not line.startswith("-"))
    for pattern, replacement in SUBSTITUTIONS.items():
        text = re.sub(pattern, replacement, text)
    return text


def by_page(blocks: list[Block]) -> dict[str, list[Block]]:
    found = defaultdict(list)
    for block in blocks:
        found[block.page].append(block)
    return dict(found)


@pytest.mark.filterwarnings("ignore::trl.experimental.TRLExperimentalWarning")
@pytest.mark.parametrize("page, blocks", by_page(checked("python", "diff")).items(), ids=lambda value: str(value)[:40])
def test_python(page, blocks, at_work):
    namespace: dict = {"__name__": "a_page"}
    for block in blocks:
        text = python_of(block)
        tree = ast.parse(text, block.where)
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
        for name in sorted(names & set(STAND_INS) - set(namespace)):
            namespace[name] = STAND_INS[name]()
        exec(compile(tree, block.where, "exec"), namespace)


# ---------------------------------------------------------------------------------------------------------------------
# Configurations
# ---------------------------------------------------------------------------------------------------------------------

ON_A_CPU = ["--use_cpu", "true", "--bf16", "false"]
NEEDED = {"model_name_or_path": "policy", "dataset_name": "data/train.jsonl", "output_dir": "out"}


def parse_training(words: list[str]) -> None:
    """Read words of `clipo train` as it reads them, up to the datasets."""
    from clipo_trl.cli.train import parse_arguments

    parse_arguments([*words, *ON_A_CPU])


def parse_evaluation(words: list[str]) -> None:
    from clipo_trl.cli.evaluate import EvaluationArguments
    from clipo_trl.cli.parsing import parse

    parse((EvaluationArguments,), words)


def check_configuration(text: str, folder: Path) -> None:
    """Fields of `clipo evaluate` are read by it, all others by `clipo train`."""
    from clipo_trl.cli.evaluate import EvaluationArguments

    given = yaml.safe_load(text)
    is_evaluation = set(given) <= {field.name for field in fields(EvaluationArguments)}
    (folder / "block.yaml").write_text(yaml.safe_dump(given if is_evaluation else NEEDED | given))
    (parse_evaluation if is_evaluation else parse_training)(["--config", "block.yaml"])


@pytest.mark.parametrize("block", checked("yaml"), ids=lambda block: block.where)
def test_yaml(block, at_work):
    check_configuration(block.text, at_work)


@pytest.mark.parametrize("block", checked("json"), ids=lambda block: block.where)
def test_json(block):
    try:
        json.loads(block.text)
    except json.JSONDecodeError:
        for line in block.text.splitlines():
            json.loads(line)


# ---------------------------------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------------------------------


class Parsed(BaseException):
    """A program's parser has read its words: no more is wanted of it."""


def stop_after_parsing(monkeypatch) -> None:
    original = argparse.ArgumentParser.parse_known_args

    def parse_known_args(self, *args, **kwargs):
        _, unknown = original(self, *args, **kwargs)
        raise Parsed(unknown)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_known_args)


def parse_by(program, words: list[str]) -> None:
    """Run `program` up to where its parser has read `words`."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as parsed:
        patch.setattr(sys, "argv", ["program", *words])
        stop_after_parsing(patch)
        program()
    assert parsed.value.args == ([],), f"unknown: {parsed.value.args[0]}"


def commands_of(text: str) -> list[str]:
    """The commands of a block, a line each."""
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def words_of(command: str) -> list[str]:
    """The words of a command as bash sees them: comments taken out, braces and variables expanded; no assignments."""
    assert not re.search(r"&&|[|;<>`]|\$\(", re.sub(r"#.*|'[^']*'|\"[^\"]*\"", "", command)), (
        "one plain command a line"
    )
    environment = {"RANK": "0", "FIRST_NODE": "node0", "SERVING_NODE": "node9", "PATH": os.environ["PATH"]}
    script = f"printf '%s\\0' {command}"
    done = subprocess.run(["bash", "-uc", script], env=environment, check=True, capture_output=True, text=True)
    words = done.stdout.split("\0")[:-1]
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    return words


def check_command(words: list[str]) -> None:
    program, *rest = words
    name = Path(program).name
    assert name in PROGRAMS, f"`{program}` is no program that this test knows"
    PROGRAMS[name](rest)


def check_make(words: list[str]) -> None:
    for word in words:
        assert re.search(rf"^{word}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target `{word}`"


def check_pip(words: list[str]) -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    parser = argparse.ArgumentParser()
    parser.add_argument("install", choices=["install"])
    parser.add_argument("-c", "--constraint", type=Path)
    parser.add_argument("-e", "--editable")
    parser.add_argument("packages", nargs="*")
    args = parser.parse_intermixed_args(words)
    assert args.constraint is None or (ROOT / args.constraint).is_file()
    path, _, extras = (args.editable or ".").partition("[")
    assert path == "."
    for extra in filter(None, extras.rstrip("]").split(",")):
        assert extra in settings["options.extras_require"], f"no extra `{extra}`"


def check_clipo(words: list[str]) -> None:
    from clipo_trl.cli.main import COMMANDS

    command, *rest = words
    assert command in COMMANDS, f"no command `clipo {command}`"
    if command == "train" or (command == "doctor" and rest):
        parse_training(rest)
    elif command == "evaluate":
        parse_evaluation(rest)
    else:
        parse_by(COMMANDS[command][0], rest)


def check_python(words: list[str]) -> None:
    if words[0] != "-m":
        return check_script(ROOT / words[0], words[1:])
    module, rest = words[1], words[2:]
    if module == "pytest":
        files = [word for word in rest if word.endswith(".py")]
        return [check_script(ROOT / file, []) for file in files] and None
    if module == "clipo_trl.cli":
        return check_clipo(rest)
    path = ROOT / module.replace(".", "/")
    check_script(path / "__main__.py" if path.is_dir() else path.with_suffix(".py"), rest, module)


def check_script(path: Path, words: list[str], module: str | None = None) -> None:
    assert path.is_file(), f"no file {path}"
    if path.name in ("train.py", "quickstart.py", "smollm.py"):
        return parse_training(words) if path.name == "train.py" or words else None
    if path.name == "evaluate.py":
        return parse_evaluation(words)
    if not re.search("ArgumentParser|run_command", path.read_text()):
        assert not words, f"{path.name} takes no options"
    elif module is not None:
        with pytest.MonkeyPatch.context() as patch:  # another test may have imported it, of which `runpy` warns
            patch.delitem(sys.modules, f"{module}.__main__" if path.name == "__main__.py" else module, raising=False)
            parse_by(lambda: runpy.run_module(module, run_name="__main__"), words)
    else:
        parse_by(lambda: runpy.run_path(str(path), run_name="__main__"), words)


def check_accelerate(words: list[str]) -> None:
    from accelerate.commands.launch import launch_command_parser

    command, *rest = words
    assert command == "launch"
    args = launch_command_parser().parse_args(rest)
    assert args.config_file is None or (ROOT / args.config_file).is_file(), f"no file {args.config_file}"
    check_python([*(["-m"] if args.module else []), args.training_script, *args.training_script_args])


def check_trl(words: list[str]) -> None:
    from trl.scripts import vllm_serve

    command, *rest = words
    assert command == "vllm-serve"
    assert not vllm_serve.make_parser().parse_args_and_config(args=rest, return_remaining_strings=True)[-1]


PROGRAMS = {
    "accelerate": check_accelerate,
    "clipo": check_clipo,
    "make": check_make,
    "pip": check_pip,
    "python": check_python,
    "trl": check_trl,
}
COMMANDS = [(block.where, command) for block in checked("bash", "sh") for command in commands_of(block.text)]


@pytest.mark.parametrize("where, command", COMMANDS, ids=[f"{where} {command[:40]}" for where, command in COMMANDS])
def test_command(where, command, at_work, capsys):
    check_command(words_of(command))


# ---------------------------------------------------------------------------------------------------------------------
# All of them, and that what is wrong is found
# ---------------------------------------------------------------------------------------------------------------------

KINDS = {"python", "diff", "yaml", "bash", "sh", "json", "math", "text"}


def unmarked(blocks: list[Block]) -> list[str]:
    return [
        f"{block.where}: `{block.language}` is not run; say why in `<!-- not run: why -->` on the line before it"
        for block in blocks
        if block.language not in KINDS and block.reason is None
    ]


def test_every_block_is_run_or_says_why_not():
    assert len(BLOCKS) > 50
    assert unmarked(BLOCKS) == []


def test_how_blocks_are_found():
    page = "# A\n```python\nx = 1\n```\n\n<!-- not run: a citation -->\n```bibtex\n@a\n```\n- b\n  ```\n  c\n  ```\n"
    python, bibtex, plain = blocks_of(page, "a.md")
    assert (python.where, python.language, python.text, python.reason) == ("a.md:2", "python", "x = 1\n", None)
    assert (bibtex.where, bibtex.reason, plain.where, plain.text) == ("a.md:7", "a citation", "a.md:11", "c\n")
    assert [line.partition(" ")[0] for line in unmarked([python, bibtex, plain])] == ["a.md:11:"]


@pytest.mark.parametrize(
    "command",
    [
        "make nothing",
        "pip install -e '.[no_such_extra]'",
        "pip install -c no_such_file.txt -e .",
        "clipo trian --config run.yaml",
        "clipo train --config run.yaml --contrastive_heat 1",
        "clipo train --config no_such_file.yaml",
        "clipo evaluate --modle a --datasets b --output_dir c",
        "python -m experiments.faithfulness --arm_s grpo",
        "python no_such_file.py",
        "python -m benchmarks.no_such_module",
        "accelerate launch --config_file configs/no_such_file.yaml train.py --config run.yaml",
        "accelerate launch train.py --config run.yaml --no_such_option 1",
        "trl vllm-serve --model a --no_such_option 1",
        "curl example.org",
        "clipo doctor && clipo train --config run.yaml",
        "clipo train --config $NO_SUCH_VARIABLE",
    ],
)
def test_what_is_wrong_with_a_command_is_found(command, at_work, capsys):
    with pytest.raises((Exception, SystemExit, pytest.fail.Exception)):
        check_command(words_of(command))


@pytest.mark.parametrize("text", ["contrastive_temperatur: 1", "contrastive_temperature: -1", "a: [", "loss_type: [1"])
def test_what_is_wrong_with_a_configuration_is_found(text, at_work):
    with pytest.raises(Exception):  # noqa: B017  # each reader has its own
        check_configuration(text, at_work)
