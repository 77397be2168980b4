"""Datasets in every known layout and file format become `prompt` and `solution`; anything else is an error that says
why."""

import json
from pathlib import Path

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, Features, Value
from tiny_models import tiny_tokenizer

from clipo_trl.cli import data
from clipo_trl.cli.data import (
    add_instruction,
    check_chat_template,
    drop_long_prompts,
    find_layout,
    load_prompts,
    to_prompt_solution,
)
from reward_funcs.errors import UsageError, WrongType


SHARED_DATA = Path(__file__).parents[1].parent / "shared" / "data"
BOXED = "Let's think step by step and output the final answer within \\boxed{}."

needs_shared_data = pytest.mark.skipif(not SHARED_DATA.is_dir(), reason=f"the paper's files are not at {SHARED_DATA}")


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


TRL = {"prompt": user("2 + 2?"), "solution": "4", "data_source": "a"}
TRL_PLAIN = {"prompt": "2 + 2?", "solution": "4", "data_source": "a"}
VERL = {"prompt": user("2 + 2?"), "reward_model": {"ground_truth": "4", "style": "rule"}, "data_source": "a"}
GSM8K = {"question": "2 + 2?", "answer": "Two <<1+1=2>>2, and #### two.\n#### 4", "data_source": "a"}
MATH = {"problem": "2 + 2?", "solution": "It is \\boxed{3+1}, so \\boxed{4}.", "data_source": "a"}


# ---------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("row", "layout", "prompt", "solution"),
    [
        (TRL, "TRL", user("2 + 2?"), "4"),
        (TRL_PLAIN, "TRL", "2 + 2?", "4"),
        (VERL, "verl", user("2 + 2?"), "4"),
        (GSM8K, "GSM8K", user("2 + 2?"), "4"),
        (MATH, "MATH", user("2 + 2?"), "It is \\boxed{3+1}, so \\boxed{4}."),  # whole: rewards read the last box
    ],
)
def test_layouts(row, layout, prompt, solution):
    dataset = Dataset.from_list([row])
    assert find_layout(dataset).name == layout
    # The columns that were read are replaced; others are kept, for the reward functions.
    assert to_prompt_solution(dataset).to_list() == [{"prompt": prompt, "solution": solution, "data_source": "a"}]


@pytest.mark.parametrize(
    ("answer", "solution"),
    [("#### 1,234,567", "1234567"), ("#### -5\n", "-5"), ("#### (1, 2)", "(1, 2)"), ("####2.50", "2.50")],
)
def test_gsm8k_answer(answer, solution):
    rows = to_prompt_solution(Dataset.from_list([{"question": "?", "answer": answer}]))
    assert rows["solution"][0] == solution


def test_first_layout_that_fits_wins():
    both = Dataset.from_list([TRL | {"reward_model": {"ground_truth": "5"}}])
    assert to_prompt_solution(both)["solution"][0] == "4"
    # A `reward_model` without a ground truth is not verl's.
    other = Dataset.from_list([GSM8K | {"prompt": user("other"), "reward_model": {"path": "x"}}])
    assert find_layout(other).name == "GSM8K"


def test_numbers_become_text():
    assert to_prompt_solution(Dataset.from_dict({"prompt": ["a", "b"], "solution": [4, -1]}))["solution"][:] == [
        "4",
        "-1",
    ]
    verl = {"prompt": [user("a")], "reward_model": [{"ground_truth": 0.5}]}
    assert to_prompt_solution(Dataset.from_dict(verl))["solution"][:] == ["0.5"]


@needs_shared_data
@pytest.mark.parametrize(
    "file", ["train/gsm8k", "train/math75", "gsm8k", "math", "aime", "commonsense_qa", "truthfulqa"]
)
def test_paper_files(file):
    path = SHARED_DATA / f"{file}.parquet"
    dataset = load_prompts(str(path), instruction=BOXED)
    rows = pd.read_parquet(path)
    assert dataset["solution"][:] == [cell["ground_truth"].strip() for cell in rows["reward_model"]]
    assert dataset["prompt"][:] == [list(messages) for messages in rows["prompt"]]  # they ask for a box already
    assert dataset["data_source"][:] == list(rows["data_source"])


# ---------------------------------------------------------------------- where rows come from


@pytest.mark.parametrize("ending", ["parquet", "json", "jsonl", "csv"])
def test_local_files(tmp_path, ending):
    rows = pd.DataFrame({"question": ["1 + 1?", "2 + 3?"], "answer": ["#### 2", "so\n#### 5"], "level": [1, 2]})
    path = tmp_path / f"rows.{ending}"
    {
        "parquet": lambda: rows.to_parquet(path),
        "json": lambda: path.write_text(json.dumps(rows.to_dict("records"))),
        "jsonl": lambda: rows.to_json(path, orient="records", lines=True),
        "csv": lambda: rows.to_csv(path, index=False),
    }[ending]()
    dataset = load_prompts(str(path), split="test")  # one file is its only split
    assert dataset.to_list() == [
        {"level": 1, "prompt": user("1 + 1?"), "solution": "2"},
        {"level": 2, "prompt": user("2 + 3?"), "solution": "5"},
    ]
    assert len(load_prompts(str(path), split="train[:1]")) == 1


def test_saved_folders(tmp_path):
    train, test = Dataset.from_list([TRL, TRL]), Dataset.from_list([TRL])
    DatasetDict({"train": train, "test": test}).save_to_disk(tmp_path / "dict")
    train.save_to_disk(tmp_path / "one")
    (tmp_path / "files").mkdir()
    test.to_parquet(tmp_path / "files" / "test.parquet")
    assert len(load_prompts(str(tmp_path / "dict"), split="train")) == 2
    assert len(load_prompts(str(tmp_path / "dict"), split="test")) == 1
    assert len(load_prompts(str(tmp_path / "one"))) == 2
    assert len(load_prompts(str(tmp_path / "files"), split="test")) == 1
    with pytest.raises(ValueError, match=r"no split 'valid'.*\['train', 'test'\]"):
        load_prompts(str(tmp_path / "dict"), split="valid")


def test_hub(monkeypatch):
    calls = []

    def load_dataset(path, **kwargs):
        calls.append((path, kwargs))
        return Dataset.from_list([GSM8K])

    monkeypatch.setattr(data, "load_dataset", load_dataset)
    assert load_prompts("openai/gsm8k", "main", "test")["solution"][:] == ["4"]
    assert calls == [("openai/gsm8k", {"name": "main", "split": "test"})]


def test_several_by_name(tmp_path):
    for stem in ("one", "two"):
        Dataset.from_list([GSM8K | {"question": stem}] * 2).to_parquet(tmp_path / f"{stem}.parquet")
    entries = [f"{tmp_path}/one.parquet", f"second={tmp_path}/two.parquet"]
    datasets = data.load_named_prompts(entries, instruction="Do it.", max_samples=1)
    assert {name: dataset["prompt"][:] for name, dataset in datasets.items()} == {
        "one": [user("one\nDo it.")],
        "second": [user("two\nDo it.")],
    }
    with pytest.raises(ValueError, match="Two datasets are called 'one'"):
        data.load_named_prompts([f"{tmp_path}/one.parquet", f"one={tmp_path}/two.parquet"])


def test_paths_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "files").mkdir()
    Dataset.from_list([TRL]).to_parquet(tmp_path / "files" / "train.parquet")
    assert len(load_prompts("~/files")) == len(load_prompts("~/files/train.parquet")) == 1


def test_wrong_paths(tmp_path):
    (tmp_path / "rows.jsonl").touch()
    with pytest.raises(UsageError, match="rows.jsonl' is empty"):
        load_prompts(str(tmp_path / "rows.jsonl"))
    with pytest.raises(FileNotFoundError, match="folder '.*none' does not exist"):
        load_prompts(str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match="missing.parquet' does not exist"):
        load_prompts("missing.parquet")
    (tmp_path / "rows.txt").write_text("2 + 2 = 4")
    with pytest.raises(ValueError, match="unknown ending.*parquet"):
        load_prompts(str(tmp_path / "rows.txt"))


# ---------------------------------------------------------------------- instruction


def test_instruction_ends_the_last_user_message():
    conversation = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U1"},
        {"role": "assistant", "content": "A"},
        {"role": "user", "content": "U2 \n"},
        {"role": "assistant", "content": "<think>"},
    ]
    expected = [dict(message) for message in conversation]
    expected[3]["content"] = "U2\nDo it."
    given = [dict(message) for message in conversation]
    once = add_instruction(given, "Do it.\n")
    assert once == expected
    assert given == conversation  # the caller's messages are left alone
    assert add_instruction(once, "Do it.") == once
    assert add_instruction("U2", "Do it.") == "U2\nDo it."
    assert add_instruction("U2\nDo it.", "Do it.") == "U2\nDo it."


def test_instruction_does_not_ask_for_a_box_twice():
    choice = "Which?\nOutput the final answer (eg, A, B) within \\boxed{}."
    assert add_instruction(choice, BOXED) == choice
    assert add_instruction(choice, "Be brief.") == choice + "\nBe brief."
    assert add_instruction("Which?", BOXED) == f"Which?\n{BOXED}"


def test_instruction_in_every_layout():
    for row in (TRL, VERL, GSM8K, MATH):
        assert to_prompt_solution(Dataset.from_list([row]), instruction="Do it.")["prompt"][0] == user(
            "2 + 2?\nDo it."
        )
    assert to_prompt_solution(Dataset.from_list([TRL_PLAIN]), instruction="Do it.")["prompt"][0] == "2 + 2?\nDo it."


def test_instruction_needs_a_user_message():
    with pytest.raises(ValueError, match="needs a user message"):
        add_instruction([{"role": "system", "content": "S"}], "Do it.")


# ---------------------------------------------------------------------- subsets, gaps, errors


def test_max_samples():
    dataset = Dataset.from_dict({"prompt": ["a", "b", "c"], "solution": ["1", "2", "3"]})
    assert to_prompt_solution(dataset, max_samples=2)["prompt"][:] == ["a", "b"]
    assert len(to_prompt_solution(dataset, max_samples=10)) == 3
    with pytest.raises(ValueError, match="`max_samples` is 0"):
        to_prompt_solution(dataset, max_samples=0)


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ({"prompt": ["a", "b", "c", "d"], "solution": ["1", None, "", " "]}, ["1"]),
        ({"question": ["a", "b", "c"], "answer": ["so 5", "#### 5", None]}, ["5"]),
        ({"problem": ["a", "b"], "solution": ["\\boxed{1}", "unboxed"]}, ["\\boxed{1}"]),
        ({"prompt": ["a", "b"], "reward_model": [{"ground_truth": "1"}, {"ground_truth": None}]}, ["1"]),
    ],
)
def test_rows_without_answer_are_counted_and_left_out(rows, kept, caplog):
    dataset = Dataset.from_dict(rows)
    assert to_prompt_solution(dataset, name="some set")["solution"][:] == kept
    assert f"some set: {len(dataset) - 1} of {len(dataset)} rows have no answer" in caplog.text


def test_no_warning_without_gaps(caplog):
    to_prompt_solution(Dataset.from_list([TRL]))
    assert not caplog.records


def test_no_answer_at_all():
    with pytest.raises(ValueError, match="none of 2 rows has an answer.*####.*`prompt` and `solution`"):
        to_prompt_solution(Dataset.from_dict({"question": ["a", "b"], "answer": ["1", "2"]}))


def test_empty():
    with pytest.raises(ValueError, match="some set is empty"):
        to_prompt_solution(Dataset.from_dict({"prompt": [], "solution": []}), name="some set")


def test_unknown_layout_lists_what_is_there_and_what_is_understood():
    with pytest.raises(ValueError) as error:
        to_prompt_solution(Dataset.from_dict({"text": ["a"], "label": [1]}))
    message = str(error.value)
    assert "['text', 'label']" in message
    for understood in ("prompt, solution", "reward_model.ground_truth", "question, answer", "problem, solution"):
        assert understood in message


@pytest.mark.parametrize("prompt", [None, 3, [], [{"role": "user", "content": None}], ["a"], [{"content": "a"}]])
def test_bad_prompt(prompt):
    with pytest.raises(TypeError, match="row 1: the prompt is"):
        data._convert_row({"prompt": prompt, "solution": "1"}, 1, data.LAYOUTS[0].read_row, None, "some set", True)


@pytest.mark.parametrize(
    "row",
    [
        TRL_PLAIN | {"prompt": ""},
        TRL_PLAIN | {"prompt": " \n"},
        TRL | {"prompt": user("a") + [{"role": "assistant", "content": "b"}] + user(" ")},
        VERL | {"prompt": user("")},
        GSM8K | {"question": ""},
        MATH | {"problem": "\t"},
    ],
)
def test_an_empty_question_is_named_by_its_row(row):
    other = {
        name: value if name in ("solution", "answer", "reward_model", "data_source") else None
        for name, value in row.items()
    }
    other |= {
        name: "2 + 2?" if isinstance(row[name], str) else user("2 + 2?")
        for name, value in other.items()
        if value is None
    }
    with pytest.raises(UsageError, match="some set, row 1: the question is empty. Write one, or leave the row out"):
        to_prompt_solution(Dataset.from_list([other, row]), name="some set")


def test_an_empty_system_prompt_is_no_empty_question():
    prompt = [{"role": "system", "content": ""}, *user("2 + 2?")]
    assert to_prompt_solution(Dataset.from_list([TRL | {"prompt": prompt}]))["prompt"][0] == prompt


def test_bad_answer():
    with pytest.raises(TypeError, match="row 0: the answer is a list"):
        to_prompt_solution(Dataset.from_dict({"prompt": ["a"], "solution": [["1", "2"]]}))


def test_drop_long_prompts(caplog):
    tokenizer = tiny_tokenizer()  # one token a character; a user message costs `<u>`, one end token and `<a>`
    dataset = Dataset.from_dict({"prompt": [user("abc"), user("abcd")], "solution": ["1", "2"]})
    assert drop_long_prompts(dataset, tokenizer, 3 + 3 + 1 + 3)["solution"][:] == ["1"]
    assert "1 of 2 prompts have more than 10 tokens" in caplog.text
    assert len(drop_long_prompts(dataset, tokenizer, 11)) == 2
    plain = Dataset.from_dict({"prompt": ["abc", "abcd"], "solution": ["1", "2"]})
    assert drop_long_prompts(plain, tokenizer, 3)["solution"][:] == ["1"]
    with pytest.raises(ValueError, match="No prompt has at most 2 tokens.*`max_prompt_length`"):
        drop_long_prompts(plain, tokenizer, 2)


def test_text_of_csv_joins_that_of_other_files(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,solution,kind\nq,None,a\nr,NA,b\n")
    dataset = load_prompts(str(tmp_path / "rows.csv"))
    assert dataset.features == Features({name: Value("string") for name in ("kind", "prompt", "solution")})
    assert dataset["solution"] == ["None", "NA"]  # which are answers


@pytest.mark.parametrize(
    "rows, solutions",
    [
        ([{"question": "q", "answer": 7}, {"question": "r", "answer": None}], None),
        ([{"problem": "q", "solution": 7}], None),
        ([{"prompt": "q", "reward_model": None}, {"prompt": "r", "reward_model": {"ground_truth": "7"}}], ["7"]),
    ],
)
def test_odd_values_are_rows_without_an_answer(rows, solutions):
    if solutions is None:
        with pytest.raises(UsageError, match="none of . rows has an answer"):
            to_prompt_solution(Dataset.from_list(rows))
    else:
        assert to_prompt_solution(Dataset.from_list(rows))["solution"] == solutions


def test_reward_model_of_text_is_no_layout():
    with pytest.raises(UsageError, match="no known layout"):
        find_layout(Dataset.from_list([{"prompt": "q", "reward_model": "{'ground_truth': 7}"}]))


def test_a_split_that_is_not_there(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps(TRL) + "\n")
    with pytest.raises(UsageError, match="split 'test'.*Unknown split"):
        load_prompts(str(tmp_path), split="test")


def test_messages_need_a_chat_template():
    tokenizer, messages = tiny_tokenizer(), Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}]}])
    check_chat_template(tokenizer, messages)
    tokenizer.chat_template = None
    check_chat_template(tokenizer, Dataset.from_list([{"prompt": "q"}]))
    with pytest.raises(UsageError, match="has no `chat_template`"):
        check_chat_template(tokenizer, messages)


def test_the_length_of_a_prompt_is_that_of_its_template(caplog):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if long is defined %}aaaaaaaaaa{% endif %}{{ messages[0].content }}"
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": "q"}]}])
    assert len(drop_long_prompts(dataset, tokenizer, 5)) == 1
    with pytest.raises(UsageError, match="No prompt has at most 5 tokens"):
        drop_long_prompts(dataset, tokenizer, 5, long=True)


def test_prompts_of_two_kinds_are_named_by_their_row(tmp_path):
    rows = [TRL_PLAIN, TRL]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises((WrongType, UsageError), match="row 1: some prompts are text and some are messages"):
        load_prompts(str(tmp_path / "rows.jsonl"))
