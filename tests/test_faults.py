"""What goes wrong in a run gives a clear error, leaves the last checkpoint whole, and the run goes on from there
unchanged."""

import errno
import json
import os
import shutil

import pytest
import torch
from test_resume import EVERY_STEP, assert_same_run
from test_trainer import advantages_and_columns, letters_reward, make, rows, same, trained, weights
from tiny_models import tiny_dataset
from transformers import TrainerState
from trl import GRPOTrainer

from clipo_trl import ContrastiveHead
from clipo_trl.checkpoint import STATE_NAME, last_whole_checkpoint
from clipo_trl.head import HEAD_FOLDER


SETTINGS = {"max_steps": 4, **EVERY_STEP}


def go_on(tmp_path, **settings):
    trainer = make(tmp_path, **{**SETTINGS, **settings})
    trainer.train(resume_from_checkpoint=True)
    return trainer


# ---------------------------------------------------------------------- rewards and data


def failing(completions, trainer_state, **kwargs):
    if trainer_state.global_step == 2 and failing.is_on:
        return failing.fault(completions)
    return letters_reward(completions)


def raises(completions):
    raise ConnectionError("the judge is away")


def too_short(completions):
    return [1.0] * (len(completions) - 1)


@pytest.mark.parametrize(
    "fault, error, message",
    [
        (raises, ConnectionError, "the judge is away"),
        (too_short, ValueError, "'failing' returned 7 rewards, but 8 were expected"),
    ],
)
def test_a_reward_function_that_fails_stops_the_run_which_can_go_on(fault, error, message, tmp_path, monkeypatch):
    monkeypatch.setattr(failing, "fault", fault, raising=False)
    monkeypatch.setattr(failing, "is_on", True, raising=False)
    stopped = make(tmp_path / "stopped", reward_funcs=failing, **SETTINGS)
    with pytest.raises(error, match=message):
        stopped.train()
    assert stopped.head_learner.n_batches == 2 and stopped.states.tokens is None
    assert last_whole_checkpoint(tmp_path / "stopped").endswith("checkpoint-2")
    monkeypatch.setattr(failing, "is_on", False)
    whole = trained(tmp_path / "whole", reward_funcs=failing, **SETTINGS)
    assert_same_run(go_on(tmp_path / "stopped", reward_funcs=failing), whole)


def test_rows_without_an_answer_are_left_out(tmp_path):
    """The reward is None: neither right nor wrong. The other groups of the batch are as they would be."""

    def graded(completions, solution, **kwargs):
        return [
            None if answer is None else float(len(c[0]["content"]) % 2)
            for c, answer in zip(completions, solution, strict=True)
        ]

    data = tiny_dataset(2)
    without = data.map(lambda row: {"solution": None if row["solution"] == "0" else row["solution"]})
    settings = {"reward_funcs": graded, "max_steps": 1, "contrastive_loss_type": "supcon_out"}
    full, partial = (trained(tmp_path, trainer_kwargs={"train_dataset": d}, **settings) for d in (data, without))
    (_, columns), (advantages, part) = advantages_and_columns(full), advantages_and_columns(partial)
    missing = part["graded"].isnan()
    assert missing.sum() == 4 and torch.equal(part["contrastive"].isnan(), missing)
    assert advantages[missing].eq(0).all()
    torch.testing.assert_close(part["contrastive"][~missing], columns["contrastive"][~missing])
    assert rows(partial)[0]["contrastive/left_out_rollouts"] == 0.5


def test_a_dataset_without_the_answers_column_is_the_reward_functions_error(tmp_path):
    def graded(completions, solution, **kwargs):
        return [float(bool(answer)) for answer in solution]

    without = tiny_dataset().remove_columns("solution")
    with pytest.raises(TypeError, match="solution"):
        trained(tmp_path, reward_funcs=graded, trainer_kwargs={"train_dataset": without})


# ---------------------------------------------------------------------- disks


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("what", ["head", "state", "rollouts", "rng_state", "trainer_state"])
@pytest.mark.slow
def test_a_full_disk_leaves_the_checkpoint_before(what, tmp_path, monkeypatch):
    settings = {**SETTINGS, "save_total_limit": 1, "steps_per_generation": 2, "per_device_train_batch_size": 4}
    whole = trained(tmp_path / "whole", **settings)
    stopped = make(tmp_path / "stopped", **settings)
    write, fills = torch.save, {"state": STATE_NAME, "rollouts": "contrastive_rollouts", "rng_state": "rng_state"}

    def write_until_full(data, path, *args, **kwargs):
        if "checkpoint-3" in str(path) and fills[what] in str(path):
            full_disk()
        write(data, path, *args, **kwargs)

    def full_at_step_3(save):
        return lambda *args: full_disk() if stopped.state.global_step == 3 else save(*args)

    with monkeypatch.context() as patch:
        if what in fills:
            patch.setattr(torch, "save", write_until_full)
        else:
            owner, name = {
                "head": (ContrastiveHead, "_save_pretrained"),
                "trainer_state": (TrainerState, "save_to_json"),
            }[what]
            patch.setattr(owner, name, full_at_step_3(getattr(owner, name)))
        with pytest.raises(OSError, match="No space left on device"):
            stopped.train()
    assert last_whole_checkpoint(tmp_path / "stopped").endswith("checkpoint-2")
    assert_same_run(go_on(tmp_path / "stopped", **settings), whole)


def test_an_earlier_head_in_the_folder_outlives_a_full_disk(tmp_path, monkeypatch):
    first, second = (ContrastiveHead(16, 8, seed=seed) for seed in (1, 2))
    first.save_into(tmp_path)
    monkeypatch.setattr(ContrastiveHead, "_save_pretrained", full_disk)
    with pytest.raises(OSError, match="No space left"):
        second.save_into(tmp_path)
    assert same(weights(ContrastiveHead.from_pretrained(tmp_path / HEAD_FOLDER)), weights(first))


# ---------------------------------------------------------------------- other heads


@pytest.mark.parametrize(
    "field, here, saved",
    [
        ("contrastive_embedding_dim", 24, 8),
        ("contrastive_head_type", "mlp", "linear"),
        ("contrastive_debias", "layer_norm", None),
        ("contrastive_pooling", "last", "mean"),
        ("contrastive_layer", 0, -1),
    ],
)
def test_the_checkpoint_of_another_head_is_refused(field, here, saved, tmp_path):
    trained(tmp_path, max_steps=1, **EVERY_STEP)
    with pytest.raises(ValueError, match=f"`{field}` of this run's head is {here!r}, .*has {saved!r}. Set `{field}`"):
        go_on(tmp_path, **{field: here})


def test_a_checkpoint_of_version_0_1_0_goes_on(tmp_path):
    """Its head does not say which states it reads: the run's own settings hold."""
    settings = {"contrastive_pooling": "last", "contrastive_layer": 0}
    whole = trained(tmp_path, **SETTINGS, **settings)
    shutil.rmtree(tmp_path / "checkpoint-4")
    path = tmp_path / "checkpoint-3" / HEAD_FOLDER / "config.json"
    recorded = json.loads(path.read_text())
    assert (recorded.pop("pooling"), recorded.pop("layer")) == ("last", 0)
    path.write_text(json.dumps(recorded))
    assert_same_run(go_on(tmp_path, **settings), whole)


@pytest.mark.parametrize("damage", ["cut off", "weights gone", "config gone", "folder gone", "other width"])
def test_a_damaged_head_is_never_loaded(damage, tmp_path):
    trained(tmp_path, max_steps=1, **EVERY_STEP)
    folder = tmp_path / "checkpoint-1" / HEAD_FOLDER
    file = folder / "model.safetensors"
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-4])
    elif damage == "other width":
        ContrastiveHead(12, 8).save_pretrained(folder)
    elif damage == "folder gone":
        folder.rename(tmp_path / "elsewhere")
    else:
        (file if damage == "weights gone" else folder / "config.json").unlink()
    with pytest.raises(ValueError, match="`resume_from_checkpoint` is .*checkpoint-1"):
        go_on(tmp_path)


def test_the_checkpoint_of_a_run_without_a_head_starts_one(tmp_path, caplog):
    trained(tmp_path, GRPOTrainer, max_steps=2, **EVERY_STEP)
    trainer = go_on(tmp_path)
    assert "The contrastive head and its warm-up start afresh" in caplog.text
    assert trainer.state.global_step == 4 and trainer.head_learner.n_batches == 2
