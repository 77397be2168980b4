"""The task for lm-evaluation-harness: the prompts and the grades of `clipo evaluate`."""

import importlib.util
from pathlib import Path

import pytest
import yaml

from clipo_trl.cli.data import load_prompts
from reward_funcs import verifiable_reward


FOLDER = Path(__file__).parents[1] / "examples" / "lm_eval"
DATA = Path(__file__).parents[2] / "shared" / "data"
ANSWERS = [r"So it is \boxed{18}.", r"\boxed{19}", "18"]


@pytest.fixture(scope="module")
def grade():
    spec = importlib.util.spec_from_file_location("grade", FOLDER / "grade.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the paper's files are not at {DATA}")
@pytest.mark.parametrize("name", ["gsm8k", "commonsense_qa", "math"])
def test_rows_and_grades_are_those_of_evaluate(grade, name):
    from datasets import load_dataset

    rows = load_dataset("parquet", data_files={"test": str(DATA / f"{name}.parquet")}, split="test[:5]")
    ours = load_prompts(str(DATA / f"{name}.parquet"), split="test[:5]", instruction=grade.INSTRUCTION)
    theirs = grade.read_rows(rows)
    assert theirs["question"] == [prompt[-1]["content"] for prompt in ours["prompt"]]
    assert theirs["solution"] == ours["solution"]
    answers = [rf"\boxed{{{solution}}}" for solution in ours["solution"][:3]] + [r"\boxed{nothing}", "none"]
    columns = {column: ours[column] for column in ours.column_names if column != "prompt"}
    wanted = verifiable_reward(prompts=ours["prompt"], completions=answers, **columns)
    graded = [grade.verifiable(row, [answer])["verifiable"] for row, answer in zip(theirs, answers, strict=True)]
    assert graded == wanted == [1, 1, 1, 0, 0]


def test_a_gold_that_cannot_be_read_is_wrong(grade):
    row = {"prompt": "1 + 1?", "question": "1 + 1?", "solution": None}
    assert grade.verifiable(row, [r"\boxed{2}"]) == {"verifiable": 0.0}


def test_the_instruction_is_that_of_the_suites(grade):
    suite = yaml.safe_load((FOLDER.parents[1] / "configs" / "eval" / "track1.yaml").read_text(encoding="utf-8"))
    assert suite["instruction"] == grade.INSTRUCTION


def test_the_task_names_what_is_there(grade):
    text = (FOLDER / "math_in_a_box.yaml").read_text(encoding="utf-8")
    functions = [line.partition("!function grade.")[2].split()[0] for line in text.splitlines() if "!function" in line]
    assert functions and all(callable(getattr(grade, name)) for name in functions)
