"""A grid of ablations: which arms there are, that it goes on where it was stopped, and what is told of it."""

import json
import math
import sys
from pathlib import Path

import ablations_stub
import pandas as pd
import pytest
from transformers import ProgressCallback, trainer

from experiments.ablations import grid
from experiments.ablations.__main__ import main
from experiments.ablations.grid import Settings, jobs_of, read_arms
from experiments.ablations.report import final_value, numbers_of, write_report
from reward_funcs.errors import UsageError


ROOT = Path(__file__).parents[1]
LAUNCHER = f"{sys.executable} {ablations_stub.__file__}"
BASE = "model_name_or_path: gpt2\ndataset_name: rows.jsonl\nshift: 0\n"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory: a base of two files and three arms, one of which changes nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "more.yaml").write_text("other: 1\n")
    (tmp_path / "up.yaml").write_text("shift: 3\n")
    (tmp_path / "down.yaml").write_text("shift: -1\n")
    (tmp_path / "same.yaml").write_text("other: 1\n")
    return tmp_path


def run(*words: str, arms="up.yaml down.yaml same.yaml") -> int:
    """`main` on two seeds by the stub."""
    given = f"--base base.yaml more.yaml --arms {arms} --metrics score --last_steps 4 --seeds 2 --first_seed 5".split()
    return main([*given, "--num_processes", "1", "--launcher", LAUNCHER, "--output_dir", "out", *words])


def starts() -> list[str]:
    return Path("starts.txt").read_text().splitlines() if Path("starts.txt").exists() else []


# ---------------------------------------------------------------------- arms


def test_arms_are_files_over_the_base(folder):
    arms, same = read_arms(["base.yaml", "more.yaml"], ["up.yaml", "same.yaml", "up.yaml+down.yaml"])
    assert [arm.name for arm in arms] == ["base", "up", "up+down"] and same == ["same"]
    assert [arm.fields["shift"] for arm in arms] == [0, 3, -1]
    assert arms[2].files == ("base.yaml", "more.yaml", "up.yaml", "down.yaml")
    assert all(arm.fields["other"] == 1 for arm in arms)


def test_arms_that_cannot_be_are_told(folder):
    with pytest.raises(UsageError, match="'none.yaml' does not exist"):
        read_arms(["base.yaml"], ["up.yaml+none.yaml"])
    with pytest.raises(ValueError, match="`arms` has 'up' twice"):
        read_arms(["base.yaml"], ["up.yaml", "up.yaml"])
    for name in ("seeds", "last_steps", "num_processes"):
        with pytest.raises(ValueError, match=f"`{name}` is 0"):
            Settings(**{name: 0})
    with pytest.raises(ValueError, match="`metrics` is empty"):
        Settings(metrics=[])


def test_a_stopped_grid_has_whole_pairs(folder):
    arms, _ = read_arms(["base.yaml"], ["up.yaml"])
    jobs = jobs_of(Settings(seeds=2, first_seed=5), arms)
    assert list(jobs) == [("base", 5), ("up", 5), ("base", 6), ("up", 6)]
    assert jobs["up", 6].settings == {"fields": arms[1].fields, "seed": 6}


def test_the_paper_s_ablations_of_the_quickstart(monkeypatch):
    monkeypatch.chdir(ROOT)
    settings = Settings()
    arms, same = read_arms(settings.base, settings.arms)
    assert same == [] and len(arms) == 16
    by_name = {arm.name: arm.fields for arm in arms}
    for arm in arms:  # the policy learns for as many steps in all of them
        waits = arm.fields["contrastive_warmup_policy"] == "frozen"
        assert arm.fields["max_steps"] - waits * arm.fields["contrastive_warmup_steps"] == 40, arm.name
    assert by_name["head_frozen+steps_40"]["freeze_contrastive_head"]
    sizes = [by_name[f"group_size_{size}"] for size in (4, 16, 32)]
    assert all(64 % fields["num_generations"] == 0 for fields in sizes)


# ---------------------------------------------------------------------- running


def test_a_grid_runs_and_goes_on(folder):
    assert run() == 0
    assert starts() == [f"{arm} {seed}" for seed in (5, 6) for arm in ("base+more", "base+more+up", "base+more+down")]
    report = Path("out/report.md").read_text()
    assert "The base itself: same." in report
    assert "| base | 2 | 5.500 |  |" in report
    assert "| up | 2 | 8.500 | +3.000 [+3.000, +3.000] |" in report
    assert "| down | 2 | 4.500 | −1.000 [−1.000, −1.000] |" in report
    assert Path("out/comparison.png").read_bytes().startswith(b"\x89PNG")

    Path("out/report.md").unlink()
    assert run("--seeds", "3") == 0  # what is finished is not run again
    assert starts()[6:] == ["base+more 7", "base+more+up 7", "base+more+down 7"]
    assert "| up | 3 | 9.000 |" in Path("out/report.md").read_text()
    assert run("--report_only", "true") == 0 and len(starts()) == 9


def test_a_failing_run_is_told_and_the_others_go_on(folder, capsys):
    (folder / "bad.yaml").write_text("fails: true")
    assert run("--seeds", "1", arms="bad.yaml up.yaml") == 1
    traceback = Path("out/runs/bad/5.error.txt").read_text()
    assert "the reason" in traceback and "ended with exit status 3" in traceback and "--seed 5" in traceback
    report = Path("out/report.md").read_text()
    assert "| up | 1 |" in report and "| bad |" not in report
    (folder / "bad.yaml").write_text("fails: false")
    assert run("--seeds", "1", arms="bad.yaml up.yaml") == 0 and len(starts()) == 4
    assert not Path("out/runs/bad/5.error.txt").exists()


def test_a_changed_arm_is_no_finished_run(folder, capsys):
    assert run("--seeds", "1") == 0
    (folder / "up.yaml").write_text("shift: 4\n")
    assert run("--seeds", "1") == 1
    assert "fields.shift is 3 there, and 4 was asked for" in " ".join(capsys.readouterr().out.split())
    assert len(starts()) == 3


def test_a_mistake_in_a_file_is_told_before_anything_runs(folder, capsys):
    (folder / "bad.yaml").write_text("dataset_name: none.jsonl")
    with pytest.raises(SystemExit) as stop:
        run(arms="up.yaml bad.yaml")
    assert stop.value.code == 2 and "'none.jsonl' does not exist" in capsys.readouterr().err
    assert starts() == []


def even_length(completions, **kwargs) -> list[float]:
    """Right about half of the time, for a model that knows nothing."""
    return [float(len(completion[-1]["content"]) % 2 == 0) for completion in completions]


def test_training_in_this_process(model_path, folder, monkeypatch, capsys):
    """As a worker process does it, by the words of `clipo train`: nothing is shown, every step is told."""
    monkeypatch.setattr(trainer, "DEFAULT_PROGRESS_CALLBACK", ProgressCallback)
    rows = pd.DataFrame(
        {"question": [f"{i} + {i}?" for i in range(10)], "answer": [f"#### {2 * i}" for i in range(10)]}
    )
    rows.to_json("rows.jsonl", orient="records", lines=True)
    sizes = (
        "num_generations: 4\nper_device_train_batch_size: 4\nmax_completion_length: 8\nmax_steps: 2\nlogging_steps: 1"
    )
    (folder / "tiny.yaml").write_text(
        f"model_name_or_path: {model_path}\ndataset_name: rows.jsonl\nuse_cpu: true\nbf16: false\nreport_to: none\n{sizes}\n"
        "save_strategy: 'no'\nreward_funcs: [test_ablations.even_length]\ndisable_tqdm: true"
    )
    steps = []
    logged = grid.train(["--config", "tiny.yaml", "--seed", "3"], folder, lambda: steps.append(1))
    assert len(steps) == 2 and [row["step"] for row in logged if "reward" in row] == [1, 2]
    assert "what will run" in (folder / "log.txt").read_text() and "what will run" not in capsys.readouterr().out
    state = json.loads((folder / "model" / "trainer_state.json").read_text())  # as a launched one is read
    assert [row["step"] for row in state["log_history"]] == [row["step"] for row in logged]
    assert (folder / "model" / "contrastive_head").is_dir()


# ---------------------------------------------------------------------- numbers


def test_final_values():
    logged = [{"step": step, "a": float(step), "b": None if step > 2 else 1.0} for step in range(1, 11)]
    logged += [{"step": 4, "eval_a": 1.0}, {"step": 8, "eval_a": 2.0}]
    assert final_value(logged, "a", 4) == 8.5 and final_value(logged, "a", 99) == 5.5
    assert final_value(logged, "eval_a", 1) == 2.0
    assert all(math.isnan(final_value(logged, name, 4)) for name in ("b", "c", "eval_c"))
    assert math.isnan(final_value([], "a", 4))


def test_differences_are_paired_by_seed(folder):
    """Seeds that differ much more than arms do not hide a difference; a seed that one arm lacks is left out."""
    base = {seed: {"a": 100.0 * seed} for seed in range(5)}
    arm = {seed: {"a": 100.0 * seed + 1 + 0.1 * seed} for seed in range(1, 5)}
    numbers = numbers_of({"base": base, "arm": arm}, ["a"])["a"]
    difference = numbers["arm"]["difference"]
    assert difference["n"] == 4 and difference["mean"] == pytest.approx(1.25)
    half = 3.1824 * math.sqrt(0.05 / 3) / 2  # Student's t of 3 degrees of freedom, standard error of 4 values
    assert (difference["low"], difference["high"]) == pytest.approx((1.25 - half, 1.25 + half), abs=1e-4)
    assert numbers["base"]["difference"] is None and numbers["base"]["level"]["mean"] == 200


def test_a_report_of_the_base_alone_has_no_picture(folder):
    about = {"base": ["base.yaml"], "last_steps": 4, "same": []}
    path = write_report({"base": {1: {"a": math.nan}}}, ["a"], about, folder / "out")
    assert "| base | 0 | – |  |" in path.read_text() and "![" not in path.read_text()
    assert not (folder / "out" / "comparison.png").exists()
