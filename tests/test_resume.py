"""A run that stops and goes on is the run that never stopped; what checkpoints, `output_dir` and the Hub hold of the
head."""

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future
from pathlib import Path

import distributed_worker
import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from test_trainer import letters_reward, make, rows, same, tiny_dataset, trained, weights
from tiny_models import tiny_config, tiny_tokenizer

from clipo_trl import CLIPOTrainer, ContrastiveHead
from clipo_trl.checkpoint import ROLLOUTS_NAME, STATE_NAME, last_whole_checkpoint
from clipo_trl.head import HEAD_FOLDER, load_head
from clipo_trl.plain import MendedGRPOTrainer


EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}
# Epochs are short: one ends, a generation batch ends and a log is due at different steps.
SHORT_EPOCHS = {"train_dataset": tiny_dataset(6)}
SPLITS = {
    "two steps a generation batch": {"steps_per_generation": 2, "per_device_train_batch_size": 4, "logging_steps": 3},
    "two iterations": {"num_iterations": 2, "steps_per_generation": 1},
    "accumulated gradients": {"gradient_accumulation_steps": 2, "steps_per_generation": 6, "logging_steps": 2}
    | {"per_device_train_batch_size": 4},
    "mean_subtract": {"contrastive_debias": "mean_subtract", "logging_steps": 2},
    "warm-up": {"contrastive_warmup_steps": 2, "steps_per_generation": 2, "per_device_train_batch_size": 4},
}


def assert_same_run(resumed, whole):
    assert same(weights(resumed.model), weights(whole.model))
    assert same(resumed.contrastive_head.state_dict(), whole.contrastive_head.state_dict())
    assert torch.equal(resumed.head_learner.draw_generator.get_state(), whole.head_learner.draw_generator.get_state())
    timed = ("time", "seconds")
    for here, there in zip(rows(resumed), rows(whole), strict=True):
        # The first mean of the loss after a stop between two logs is transformers' own: it leaves out the steps
        # before.
        names = {name for name in there if name != "loss" and not any(word in name for word in timed)}
        assert {name: here.get(name) for name in names} == {name: there[name] for name in names}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.slow
def test_any_step_will_do(split, tmp_path):
    settings = {"max_steps": 7, "trainer_kwargs": SHORT_EPOCHS, **EVERY_STEP, **SPLITS[split]}
    whole = trained(tmp_path, **settings)
    random_state = torch.get_rng_state()
    assert whole.state.epoch > 1
    for step in range(1, 8):
        resumed = make(tmp_path / "again", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert torch.equal(torch.get_rng_state(), random_state) or step == 7  # no step was left to take
        assert_same_run(resumed, whole)


def test_the_mean_of_the_last_batch_is_in_the_checkpoint(tmp_path):
    """So rollouts that are embedded one at a time are what they were in training."""

    class Recording(CLIPOTrainer):
        def reward_to_pay(self, batch):
            self.last = (batch.pooled_BH, batch.embeddings_PGD.flatten(0, 1)[batch.local])
            return super().reward_to_pay(batch)

    settings = {"contrastive_debias": "mean_subtract", "freeze_contrastive_head": True, **EVERY_STEP}
    trainer = trained(tmp_path, Recording, max_steps=2, **settings)
    head = ContrastiveHead.from_pretrained(tmp_path / "checkpoint-2")
    pooled, embeddings = trainer.last
    torch.testing.assert_close(torch.cat([head(row) for row in pooled.split(1)]), embeddings)
    resumed = make(tmp_path / "again", max_steps=2, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))  # no step is left to take
    assert torch.equal(resumed.contrastive_head.mean_H, trainer.contrastive_head.mean_H)


def test_a_stream_resumes_in_its_first_pass(tmp_path, caplog):
    stream = {"train_dataset": tiny_dataset(6).to_iterable_dataset()}
    settings = {"max_steps": 8, "trainer_kwargs": stream, **EVERY_STEP, **SPLITS["two steps a generation batch"]}
    whole = trained(tmp_path, **settings)
    for step, warned in ((3, False), (7, True)):
        resumed = make(tmp_path / "again", **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert ("`train_dataset` is a stream" in caplog.text) == warned
        if not warned:
            assert_same_run(resumed, whole)


@pytest.mark.parametrize("as_stream", [False, True])
def test_a_finished_run_that_is_resumed_ends(tmp_path, as_stream):
    data = {"train_dataset": tiny_dataset(6).to_iterable_dataset() if as_stream else tiny_dataset(6)}
    settings = {"max_steps": 2, "trainer_kwargs": data, **EVERY_STEP}
    whole = trained(tmp_path, **settings)
    resumed = make(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 2 and same(weights(resumed.model), weights(whole.model))


def test_rollouts_are_found_where_each_node_has_its_own_disk(tmp_path):
    """`save_on_each_node`: a node has the files of its own processes alone."""
    settings = {"steps_per_generation": 2, "per_device_train_batch_size": 4, "max_steps": 3, **EVERY_STEP}
    whole = trained(tmp_path, **settings)
    checkpoint = tmp_path / "checkpoint-1"
    (checkpoint / ROLLOUTS_NAME.format(0)).rename(checkpoint / ROLLOUTS_NAME.format(9))
    resumed = make(tmp_path / "again", **settings)
    resumed.accelerator.state._shared_state["process_index"], index = 9, resumed.accelerator.process_index
    try:
        resumed._load_rollouts(str(checkpoint))
    finally:
        resumed.accelerator.state._shared_state["process_index"] = index
    assert resumed._step == 1 and resumed._buffered_inputs is not None and whole.state.global_step == 3


@pytest.mark.parametrize("left_out", ["_load_rollouts", "_get_train_sampler"])
def test_what_trl_does_not_save_matters(left_out, tmp_path, monkeypatch):
    """Without the waiting rollouts, or the orders of past epochs, the run that goes on is another one."""
    settings = {
        "max_steps": 11,
        **EVERY_STEP,
        **SPLITS["two steps a generation batch"],
        "trainer_kwargs": SHORT_EPOCHS,
    }
    whole = trained(tmp_path, **settings)
    if left_out == "_load_rollouts":
        monkeypatch.setattr(CLIPOTrainer, left_out, lambda *args: None)
    else:
        monkeypatch.delattr("clipo_trl.upstream.exact_resume.ExactResumeMixin._get_train_sampler")
    resumed = make(tmp_path / "again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert not same(weights(resumed.model), weights(whole.model))


def test_saving_does_not_disturb_the_run(tmp_path):
    saving, silent = (trained(tmp_path, max_steps=4, **settings) for settings in (EVERY_STEP, {}))
    assert_same_run(saving, silent)


# ---------------------------------------------------------------------- stops at the worst moment


KILLED = ["killed_in_step", "killed_in_save", "killed_in_head"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Three runs in processes of their own, each killed with signal 9; and the run that goes its way."""
    folder = tmp_path_factory.mktemp("killed")
    here = Path(__file__).parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(here.parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(here / "distributed_worker.py"), "alone", str(folder)]
    runs = [
        subprocess.Popen([*command, case], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for case in KILLED
    ]
    for run in runs:
        output, _ = run.communicate(timeout=300)
        assert run.returncode == -9, output.decode()[-3000:]
    return folder, distributed_worker.run("alone", folder, "whole")


@pytest.mark.parametrize("case", KILLED)
@pytest.mark.slow
def test_a_killed_run_goes_on_from_its_last_whole_checkpoint(case, killed, caplog):
    folder, whole = killed
    assert last_whole_checkpoint(folder / case) == str(folder / case / "checkpoint-3")
    resumed = distributed_worker.run("alone", folder, f"whole@{case}")
    if case != "killed_in_step":
        assert "checkpoint-6 is passed over: it was not written to its end" in caplog.text
    assert all(torch.equal(here, there) for here, there in zip(resumed["weights"], whole["weights"], strict=True))
    assert torch.equal(resumed["head"], whole["head"]) and resumed["random"] == whole["random"]
    for here, there in zip(resumed["log"], whole["log"], strict=True):
        assert {**here, "loss": 0} == {**there, "loss": 0}
    assert last_whole_checkpoint(folder / case) == str(folder / case / "checkpoint-8")
    assert not (folder / case / "checkpoint-6" / f"_{HEAD_FOLDER}").exists()


def test_a_checkpoint_is_whole_when_its_trainer_state_is(tmp_path):
    trained(tmp_path, **EVERY_STEP)
    (tmp_path / "checkpoint-best").mkdir()
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    state = tmp_path / "checkpoint-3" / "trainer_state.json"
    state.write_text(state.read_text()[:-20])
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-2")
    with pytest.raises(
        ValueError, match="`resume_from_checkpoint` is .*checkpoint-3.*not|no checkpoint that was written"
    ):
        make(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    with pytest.raises(ValueError, match="`resume_from_checkpoint` is True, but there is no whole checkpoint"):
        make(tmp_path / "empty").train(resume_from_checkpoint=True)


def test_a_checkpoint_that_is_written_over_is_not_whole_meanwhile(tmp_path, monkeypatch):
    trained(tmp_path, **EVERY_STEP)

    def stop(self, output_dir):
        raise KeyboardInterrupt

    monkeypatch.setattr(CLIPOTrainer, "_save_rng_state", stop)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, **EVERY_STEP).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert not (tmp_path / "checkpoint-2" / "trainer_state.json").exists()


# ---------------------------------------------------------------------- what transformers offers around checkpoints


def test_an_older_checkpoint_is_deleted_only_when_the_new_one_is_whole(tmp_path, monkeypatch):
    settings = {"save_total_limit": 1, "max_steps": 5, **EVERY_STEP}
    seen = []
    save_rng_state = CLIPOTrainer._save_rng_state

    def look(self, output_dir):
        save_rng_state(self, output_dir)
        seen.append(last_whole_checkpoint(tmp_path))

    monkeypatch.setattr(CLIPOTrainer, "_save_rng_state", look)
    whole = trained(tmp_path, **settings)
    assert seen == [None, *(str(tmp_path / f"checkpoint-{step}") for step in (1, 2, 3, 4))]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    resumed = make(tmp_path, **{**settings, "max_steps": 6})
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6 and not same(weights(whole.model), weights(resumed.model))


def earlier_is_better(completions, trainer_state, **kwargs):
    return [-0.1 * trainer_state.global_step] * len(completions)


def test_the_best_model_comes_with_its_head(tmp_path):
    trainer = trained(
        tmp_path,
        reward_funcs=[letters_reward, earlier_is_better],
        trainer_kwargs={"eval_dataset": tiny_dataset(2)},
        contrastive_success_rewards=["letters_reward"],
        metric_for_best_model="rewards/earlier_is_better/mean",
        greater_is_better=True,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=1,
        max_steps=4,
        save_total_limit=2,
        **EVERY_STEP,
    )
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]
    best, last = (load_head(str(tmp_path / f"checkpoint-{step}"), 16) for step in (1, 4))
    assert same(weights(trainer.contrastive_head), weights(best))
    assert not same(weights(trainer.contrastive_head), weights(last))


def test_the_best_model_is_chosen_by_a_verifiable_reward(tmp_path):
    trainer = trained(
        tmp_path,
        trainer_kwargs={"eval_dataset": tiny_dataset(2)},
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=1,
        **EVERY_STEP,
    )
    assert trainer.args.metric_for_best_model == "reward" and trainer.args.greater_is_better
    logged = [row for row in trainer.state.log_history if "eval_reward" in row]
    assert trainer.state.best_metric == max(row["eval_rewards/letters_reward/mean"] for row in logged)


def test_a_checkpoint_of_the_model_only_has_the_head(tmp_path, caplog):
    trainer = trained(tmp_path, save_only_model=True, max_steps=2, **EVERY_STEP)
    assert not (tmp_path / "checkpoint-2" / STATE_NAME).exists()
    resumed = make(tmp_path, max_steps=2)
    resumed.train(resume_from_checkpoint=True)
    assert same(weights(resumed.contrastive_head), weights(trainer.contrastive_head))
    assert "The optimizer of the contrastive head and its warm-up start afresh" in caplog.text


def test_rollouts_of_an_earlier_run_of_more_processes_are_removed(tmp_path):
    """They are no witness of how many wrote the checkpoint that is written over theirs."""
    settings = {"steps_per_generation": 2, "per_device_train_batch_size": 4, "max_steps": 3, **EVERY_STEP}
    stale = [tmp_path / "checkpoint-1" / ROLLOUTS_NAME.format(index) for index in (1, 10)]
    stale[0].parent.mkdir(parents=True)
    for path in stale:
        torch.save({"num_processes": 11}, path)
    whole = trained(tmp_path, **settings)
    assert not any(path.exists() for path in stale)
    resumed = make(tmp_path / "again", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert_same_run(resumed, whole)


@pytest.mark.parametrize(
    "field, before, value",
    [
        ("steps_per_generation", 2, 4),
        ("steps_per_generation", 2, 1),
        ("num_iterations", 1, 2),
        ("num_generations", 4, 8),
        ("gradient_accumulation_steps", 1, 2),
    ],
)
def test_rollouts_of_another_batch_size_are_made_again(field, before, value, tmp_path, caplog):
    settings = {"steps_per_generation": 2, "per_device_train_batch_size": 4, "max_steps": 3, "num_generations": 4}
    trained(tmp_path, **settings, **EVERY_STEP)
    resumed = make(tmp_path / "again", **settings | {field: value})
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert f"`{field}` was {before} and is {value}" in caplog.text and "made again" in caplog.text
    assert resumed.state.global_step == 3


def test_a_run_without_completions_at_hand_writes_no_empty_table(tmp_path):
    settings = {"steps_per_generation": 2, "per_device_train_batch_size": 4, "log_completions": True, **EVERY_STEP}
    trained(tmp_path, max_steps=2, **settings)
    tables = sorted((tmp_path / "completions").glob("*.parquet"))
    before = [path.read_bytes() for path in tables]
    resumed = make(tmp_path, max_steps=2, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert len(tables) == 2 and [path.read_bytes() for path in tables] == before
    assert resumed.log_completions


def test_another_number_of_processes_is_said(tmp_path, caplog):
    settings = {"steps_per_generation": 2, "per_device_train_batch_size": 4}
    trained(tmp_path, max_steps=1, **EVERY_STEP, **settings)
    path = tmp_path / "checkpoint-1" / ROLLOUTS_NAME.format(0)
    torch.save({**torch.load(path), "num_processes": 8}, path)
    resumed = make(tmp_path, max_steps=3, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert "written by 8 processes, and is read by 1" in caplog.text
    assert resumed.state.global_step == 3


class Hub:
    """Stands in for the Hub: keeps a copy of each folder that is uploaded."""

    def __init__(self, folder):
        self.folder, self.uploads = folder, []

    def create_repo(self, name, **kwargs):
        return type("RepoUrl", (str,), {"repo_id": name})(name)

    def upload_folder(self, *, folder_path, path_in_repo="", ignore_patterns=None, run_as_future=False, **kwargs):
        files = [str(path.relative_to(folder_path)) for path in Path(folder_path).rglob("*") if path.is_file()]
        copy = self.folder / str(len(self.uploads))
        for name in filter_repo_objects(files, ignore_patterns=ignore_patterns):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(Path(folder_path, name), copy / name)
        self.uploads.append((path_in_repo, copy))
        done = Future()
        done.set_result(None)
        return done if run_as_future else None


@pytest.mark.parametrize(
    "strategy, places",
    [
        ("end", [""]),
        ("every_save", ["", "", ""]),
        ("checkpoint", ["", "last-checkpoint", "", "last-checkpoint", ""]),
        ("all_checkpoints", ["", "checkpoint-1", "", "checkpoint-2", ""]),
    ],
)
def test_the_head_goes_to_the_hub(strategy, places, tmp_path, monkeypatch):
    hub = Hub(tmp_path / "hub")
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    settings = {"push_to_hub": True, "hub_model_id": "someone/tiny", "hub_strategy": strategy}
    trainer = make(tmp_path / "out", max_steps=2, **EVERY_STEP, **settings)
    trainer.train()
    trainer.save_model()
    assert [place for place, _ in hub.uploads] == places
    heads = [weights(ContrastiveHead.from_pretrained(copy / HEAD_FOLDER)) for _, copy in hub.uploads]
    assert same(heads[-1], weights(trainer.contrastive_head))
    for (place, copy), head in zip(hub.uploads, heads, strict=True):
        step = json.loads((copy / "trainer_state.json").read_text())["global_step"] if place else None
        assert (copy / STATE_NAME).exists() == bool(place)
        assert same(head, weights(trainer.contrastive_head)) == (
            step != 1 and copy != hub.uploads[0][1] or strategy == "end"
        )
        assert not (copy / f"_{HEAD_FOLDER}").exists()


@pytest.mark.parametrize("trainer_class", [CLIPOTrainer, MendedGRPOTrainer])
def test_a_reference_that_comes_with_resuming(trainer_class, tmp_path, model_path, caplog):
    """Rollouts that wait were made without `beta`, so without log-probabilities under the reference."""
    settings = {"steps_per_generation": 2, "per_device_train_batch_size": 4, **EVERY_STEP}

    def run(folder, checkpoint=None, **more):
        data = {"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer()}
        trainer = trainer_class(model_path, letters_reward, tiny_config(folder, **settings | more), **data)
        trainer.train(checkpoint)
        return trainer

    run(tmp_path, max_steps=1)
    resumed = run(tmp_path / "again", str(tmp_path / "checkpoint-1"), max_steps=3, beta=0.1)
    assert "`beta` is 0.1, which needs" in caplog.text and "made again" in caplog.text
    assert resumed.state.global_step == 3 and "warm-up" not in caplog.text
