"""Pushes by the real client of the Hub to a stand-in (`stand_in_hub.py`): what arrives, and what becomes of faults."""

import io
import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load, load_file
from stand_in_hub import TOKEN
from test_trainer import make, same, weights
from tiny_models import tiny_dataset, tiny_model, tiny_tokenizer

import train
from clipo_trl import ContrastiveHead, RolloutEmbedder
from clipo_trl.checkpoint import STATE_NAME
from clipo_trl.head import HEAD_FOLDER
from clipo_trl.hub import HubError
from reward_funcs.errors import UsageError


PUSH = {"push_to_hub": True, "hub_model_id": "me/tiny", "hub_always_push": True}
EVERY_STEP = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
MODEL_FILES = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "training_args.bin"}
HEAD_FILES = {f"{HEAD_FOLDER}/{name}" for name in ("README.md", "config.json", "model.safetensors")}


def is_whole(folder) -> bool:
    """Model, head and card can be read from the disk."""
    head = ContrastiveHead.from_pretrained(folder)
    card = ModelCard.load(folder / "README.md")
    return bool(load_file(folder / "model.safetensors")) and head.hidden_size == 16 and "lambda" in card.text


def place_of(commit) -> str:
    """The folder of a checkpoint that a commit is all of, or "" for the model."""
    folders = {name.partition("/")[0] + "/" for name in commit.files}
    return folders.pop() if len(folders) == 1 else ""


@pytest.mark.parametrize(
    "strategy, places",
    [
        ("end", []),
        ("every_save", ["", ""]),
        ("checkpoint", ["", "last-checkpoint/", "", "last-checkpoint/"]),
        ("all_checkpoints", ["", "checkpoint-1/", "", "checkpoint-2/"]),
    ],
)
def test_every_strategy_down_to_the_files(strategy, places, tmp_path, hub):
    trainer = make(tmp_path / "out", **EVERY_STEP, **PUSH, hub_strategy=strategy)
    trainer.train()
    trainer.save_model()
    assert {commit.repo_id for commit in hub.commits} == {"me/tiny"}
    *on_the_way, end = hub.commits
    assert sorted(place_of(commit) for commit in on_the_way) == sorted(places)
    for commit in on_the_way:
        place = place_of(commit)
        names = {name.removeprefix(place) for name in commit.files}
        assert HEAD_FILES <= names and not any(name.startswith("_") or "/_" in name for name in names)
        assert (STATE_NAME in names) == ("trainer_state.json" in names) == bool(place)
        if not place:
            assert MODEL_FILES <= names and not any(name.startswith("checkpoint-") for name in names)
    # the end: what is on the disk, byte for byte
    assert MODEL_FILES | HEAD_FILES <= set(end.files) and end.message == "Model save"
    for name, content in end.files.items():
        assert (tmp_path / "out" / name).read_bytes() == content
    assert same(weights(trainer.contrastive_head), load(end.files[f"{HEAD_FOLDER}/model.safetensors"]))
    text = end.files["README.md"].decode()
    assert 'RolloutEmbedder.from_pretrained("me/tiny")' in text and "lambda = 0.2" in text and "None" not in text
    assert 'RolloutEmbedder.from_pretrained("me/tiny")' in end.files[f"{HEAD_FOLDER}/README.md"].decode()
    settings = torch.load(io.BytesIO(end.files["training_args.bin"]), weights_only=False)
    assert settings.hub_token is None or TOKEN not in text


def test_what_was_pushed_embeds_as_before(tmp_path, hub):
    trainer = make(tmp_path / "out", max_steps=1, **PUSH)
    trainer.train()
    trainer.save_model()
    here = RolloutEmbedder(trainer.model, trainer.processing_class, trainer.contrastive_head)
    there = RolloutEmbedder.from_pretrained("me/tiny", device="cpu")
    torch.testing.assert_close(there(["hi"] * 2, ["abc", "x"]), here(["hi"] * 2, ["abc", "x"]))
    assert there.head.trained_with == {"policy": "me/tiny", "base_model": "tiny-qwen2"}


def test_a_head_alone(tmp_path, hub):
    head = ContrastiveHead(16, 8, debias="layer_norm")
    head.trained_with = {"policy": "me/tiny"}
    head.push_to_hub("me/head")
    [commit] = hub.commits
    assert {"README.md", "config.json", "model.safetensors"} <= set(commit.files)
    assert json.loads(commit.files["config.json"])["debias"] == "layer_norm"
    assert 'from_pretrained("me/tiny", head="me/head")' in commit.files["README.md"].decode()
    loaded = ContrastiveHead.from_pretrained("me/head")
    assert torch.equal(loaded.fingerprint(), head.fingerprint()) and loaded.trained_with == {"policy": "me/tiny"}
    tiny_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    assert RolloutEmbedder.from_pretrained(tmp_path, head="me/head", device="cpu")(["hi"], ["a"]).shape == (1, 8)


def test_the_head_is_left_alone_while_an_upload_reads_it(tmp_path, hub):
    trainer = make(tmp_path / "out", max_steps=1, **PUSH | {"hub_always_push": False})
    for busy in (True, False):
        trainer.push_in_progress = SimpleNamespace(is_done=lambda busy=busy: not busy, jobs=[])
        trainer._push_from_checkpoint(str(tmp_path))
        assert (tmp_path / "out" / HEAD_FOLDER).is_dir() is not busy


# ---------------------------------------------------------------------- faults


def test_no_token_and_a_wrong_token_are_told_before_training(tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="'me/tiny'.*there is no token to log in with: run `hf auth login`"):
        make(tmp_path, **PUSH)
    with pytest.raises(
        HubError, match=r"the token was refused \(HTTP 401\).*write permission.*Nothing has been pushed"
    ):
        make(tmp_path, **PUSH, hub_token="hf_wrong")
    assert not hub.commits
    with pytest.raises(HubError, match="Pushing the head to 'me/head' failed: there is no token"):
        ContrastiveHead(16, 8).push_to_hub("me/head")


def commits(method, path):
    return "drop" if "/commit/" in path else None


@pytest.mark.parametrize(
    "fault, told", [("drop", "the connection failed"), (403, r"refused \(HTTP 403\)"), (500, "HTTP 500")]
)
def test_a_fault_at_the_end_loses_nothing(fault, told, tmp_path, hub):
    trainer = make(tmp_path / "out", max_steps=1, **PUSH)
    trainer.train()
    hub.fault = lambda method, path: fault if "/commit/" in path else None
    with pytest.raises(HubError, match=f"{told}.*whole in .*hf upload me/tiny"):
        trainer.save_model()
    assert is_whole(tmp_path / "out") and not hub.commits
    hub.fault = lambda method, path: None
    trainer.push_to_hub()  # it can be made up for
    assert MODEL_FILES | HEAD_FILES <= set(hub.commits[-1].files)


def test_a_fault_on_the_way_is_told_and_stops_nothing(tmp_path, hub, caplog):
    trainer = make(tmp_path / "out", **EVERY_STEP, **PUSH, hub_strategy="checkpoint")
    hub.fault = commits
    trainer.train()
    assert trainer.state.global_step == 2 and not hub.commits
    assert caplog.text.count("A push in the background to 'me/tiny' failed: the connection failed") == 4
    assert (tmp_path / "out" / "checkpoint-2" / "trainer_state.json").is_file() and is_whole(tmp_path / "out")
    hub.fault = lambda method, path: None
    trainer.save_model()
    assert len(hub.commits) == 1


def test_errors_of_others_keep_their_name(tmp_path, hub, monkeypatch):
    trainer = make(tmp_path / "out", max_steps=1, **PUSH)
    monkeypatch.setattr(trainer, "_save", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trainer.push_to_hub()


def test_the_script_tells_it_in_a_sentence(model_path, tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    rows = tmp_path / "rows.jsonl"
    tiny_dataset().map(lambda row: {"question": row["solution"], "answer": "#### 1"}).to_json(rows)
    argv = f"--model_name_or_path {model_path} --dataset_name {rows} --output_dir {tmp_path / 'out'} --use_cpu true --bf16 false"
    more = "--num_generations 4 --generation_batch_size 8 --per_device_train_batch_size 8 --report_to none --use_vllm false"
    with pytest.raises(UsageError, match="there is no token to log in with"):
        train.main(f"{argv} {more} --push_to_hub true --hub_model_id me/tiny".split())
