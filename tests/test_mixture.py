"""TRL's `datasets:` mixtures: the rows that TRL's own `get_dataset` gives, each dataset in a layout of its own."""

import json
from pathlib import Path

import pytest
import yaml
from test_train_script import SMALL_BATCH, TINY
from trl import DatasetMixtureConfig, get_dataset

import train
from clipo_trl.cli.command_line import check_training
from clipo_trl.cli.mixture import load_mixture
from reward_funcs.errors import UsageError


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    """Twelve rows as TRL has them, six of GSM8K's."""
    plain = [{"prompt": f"{i} + {i}?", "solution": str(2 * i), "level": i} for i in range(12)]
    gsm8k = [{"question": f"{i} times 3?", "answer": f"Three times. #### {3 * i}"} for i in range(6)]
    return {"plain": write(tmp_path / "plain.jsonl", plain), "gsm8k": write(tmp_path / "gsm8k.jsonl", gsm8k)}


def mixture(*entries: dict, **options) -> DatasetMixtureConfig:
    return DatasetMixtureConfig(datasets=list(entries), **options)


@pytest.mark.parametrize("shares", [(None, None), (0.5, 0.5), (3, 1), (0, 1)])
def test_rows_are_those_of_trl(files, shares):
    """Written as TRL understands it, by builder and files."""
    entries = [
        {"path": "json", "data_files": files["plain"], "columns": ["prompt", "solution"], "fraction": share}
        for share in shares
    ]
    ours, held_out = load_mixture(mixture(*entries))
    theirs = get_dataset(mixture(*entries))["train"]
    assert held_out is None
    assert ours.to_dict() == theirs.to_dict()
    assert len(ours) > 0


def test_each_dataset_has_a_layout_of_its_own(files):
    rows = [json.loads(line) for line in Path(files["plain"]).read_text(encoding="utf-8").splitlines()]
    rows = [row | {"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    path = write(Path(files["plain"]).with_name("messages.jsonl"), rows)
    rows, _ = load_mixture(
        mixture({"path": path}, {"path": files["gsm8k"], "split": "train[:2]"}), instruction="Think."
    )
    assert [row["solution"] for row in rows] == [*(str(2 * i) for i in range(12)), "0", "3"]
    assert rows[0]["level"] == 0 and rows[12]["level"] is None  # a column that only one of them has
    assert all(row["prompt"][-1]["content"].endswith("Think.") for row in rows)


def test_held_out_rows_are_the_same_for_the_same_seed(files):
    one = mixture({"path": files["plain"]}, test_split_size=0.25)
    (train_1, test_1), (train_2, test_2), (_, test_3) = (load_mixture(one, seed=seed) for seed in (1, 1, 2))
    assert len(train_1) == 9 and len(test_1) == 3
    assert train_1.to_dict() == train_2.to_dict() and test_1.to_dict() == test_2.to_dict()
    assert test_1["prompt"] != test_3["prompt"]
    assert not set(train_1["prompt"]) & set(test_1["prompt"])


def test_fewer_rows_are_rows_of_all_datasets(files):
    other = write(
        Path(files["plain"]).with_name("other.jsonl"), [{"prompt": f"other {i}", "solution": "1"} for i in range(12)]
    )
    rows, _ = load_mixture(mixture({"path": files["plain"]}, {"path": other}), max_samples=8, seed=0)
    assert len(rows) == 8
    assert 0 < sum(prompt.startswith("other") for prompt in rows["prompt"]) < 8


@pytest.mark.parametrize(
    ("entries", "options", "message"),
    [
        ([{"fraction": 0.5}, {}], {}, r"`fraction`s of `datasets` are \[0.5, None\]"),
        ([{"fraction": -1}, {"fraction": 2}], {}, "numbers of 0 or more"),
        ([{"columns": ["prompt", "answer"]}], {}, r"names \['answer'\], but it has"),
        ([{}], {"test_split_size": 1.5}, "`test_split_size` is 1.5, of 12 rows"),
    ],
)
def test_mistakes(files, entries, options, message):
    with pytest.raises(UsageError, match=message):
        load_mixture(mixture(*({"path": files["plain"], **entry} for entry in entries), **options))


def test_columns_that_do_not_agree(files):
    """Text in one dataset and messages in the other."""
    with pytest.raises(UsageError, match="(?s)columns of several types: {'prompt': .*plain.jsonl.*gsm8k.jsonl"):
        load_mixture(mixture({"path": files["plain"]}, {"path": files["gsm8k"]}))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"datasets": [{"path": "none.jsonl"}]}, "'none.jsonl' does not exist"),
        ({"datasets": ["rows.jsonl"]}, "`datasets` holds 'rows.jsonl', but must be a list of mappings"),
        ({"datasets": [{"path": "a/b", "frction": 1}]}, r"has \['frction'\], which are no fields. Choose from"),
        ({"datasets": [{"path": "a/b"}], "dataset_name": "c/d"}, "`dataset_name` is 'c/d', but there is a mixture"),
        ({"datasets": [{"path": "a/b"}], "streaming": True}, "`streaming` is true"),
    ],
)
def test_mistakes_in_the_file_are_told_first(tmp_path, config, message):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"model_name_or_path": "gpt2", **config}), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        check_training(["--config", str(path)])


@pytest.mark.slow
def test_a_training_on_a_mixture(files, model_path, tmp_path):
    """With TRL's rewards by name, evaluated on what was held out; the card names both files."""
    entries = [{"path": "json", "data_files": files["gsm8k"]}, {"path": files["gsm8k"], "split": "train[:4]"}]
    config = {"datasets": entries, "test_split_size": 2, "reward_funcs": ["accuracy_reward", "think_format_reward"]}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    argv = f"--config {path} --model_name_or_path {model_path} --output_dir {tmp_path / 'out'} {TINY} {SMALL_BATCH}"
    trainer = train.main([*argv.split(), *"--max_steps 2 --eval_strategy steps --eval_steps 1".split()])
    assert len(trainer.train_dataset) == 8 and len(trainer.eval_dataset) == 2
    assert trainer.success_rule.names == ["accuracy_reward"]
    assert any("eval_reward" in entry for entry in trainer.state.log_history)
    assert "`gsm8k.jsonl` (a local file)" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
