"""The faithfulness experiment: its statistics on numbers with a known answer, its jobs on stubs, and a tiny run of it all."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faithfulness_stub as stub
import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from experiments import arms, faithfulness
from experiments import faithfulness_pictures as pictures
from experiments import faithfulness_statistics as statistics
from experiments.faithfulness_jobs import JobPool, SettingsDiffer, write_json
from experiments.faithfulness_report import TEST_SETS, Study, write_report
from experiments.starting_policy import Phase


NAN = float("nan")


def make_run(right, sound, steps=30, auroc=0.5, accuracy=0.75):
    """A run whose steps all have the same counts; its head was warmed up for two steps, with counts of its own."""
    row = {"rollouts": 20, "right": right, "sound": sound, "contrastive/sound_auroc_reward": auroc}
    warmup = [row | {"step": step, "right": 20, "sound": 0} for step in (-1, 0)]
    evaluation = {
        name: {"accuracy": accuracy, "strict_accuracy": accuracy / 2, "lucky_share": 0.5} for name in TEST_SETS
    }
    return {
        "steps": steps,
        "train": warmup + [row | {"step": step + 1} for step in range(steps)],
        "eval": [{"step": step} | evaluation for step in (steps // 2, steps)],
    }


# ---------------------------------------------------------------------- statistics


def test_the_primary_metric_is_that_of_the_last_steps_together():
    run = make_run(10, 10)
    for row in run["train"][-20:]:
        row |= {"right": 10, "sound": 8}
    run["train"][-1] |= {"right": 20, "sound": 0}
    metrics = statistics.run_metrics(run)
    assert metrics[statistics.PRIMARY] == pytest.approx((19 * 2 + 20) / (19 * 10 + 20))
    assert metrics["train/accuracy"] == pytest.approx((19 * 10 + 20) / (20 * 20))


def test_short_runs_do_not_count_the_warmup():
    assert statistics.run_metrics(make_run(10, 9, steps=3))[statistics.PRIMARY] == pytest.approx(0.1)


def test_metrics_of_a_run():
    run = make_run(10, 9, auroc=0.5)
    run["train"][5]["contrastive/sound_auroc_reward"] = None  # NaN in JSON
    run["train"][6]["contrastive/sound_auroc_reward"] = 0.5 + 0.29
    run["eval"][-1]["p1"]["lucky_share"] = None
    metrics = statistics.run_metrics(run)
    assert metrics["auroc/reward"] == pytest.approx(0.51)
    assert math.isnan(metrics["auroc/hidden"])  # never logged
    assert metrics["p2/strict_accuracy"] == 0.375
    assert math.isnan(metrics["p1/lucky_share"])


def test_no_right_rollout_has_no_lucky_share():
    assert math.isnan(statistics.run_metrics(make_run(0, 0))[statistics.PRIMARY])


def test_only_pairs_are_compared():
    results = {
        "ours": {1: {"m": 0.1}, 2: {"m": 0.2}, 3: {"m": NAN}, 4: {"m": 0.4}},
        "theirs": {2: {"m": 0.5}, 3: {"m": 0.5}, 4: {"m": 0.1}, 5: {"m": 0.9}},
    }
    assert statistics.paired_differences(results, "ours", "theirs", "m") == pytest.approx({2: -0.3, 4: 0.3})
    compared = statistics.compare(results, "ours", "theirs", "m")
    assert (compared["n"], compared["n_lower"]) == (2, 1)
    assert compared["mean"] == pytest.approx(0.0)
    assert compared["ratio"] == pytest.approx(1.0)
    nothing = statistics.compare(results, "ours", "absent", "m")
    assert nothing["n"] == 0 and math.isnan(nothing["mean"]) and math.isnan(nothing["ratio"])


def test_no_difference_is_exactly_zero():
    same = {seed: {"m": 0.1 * seed} for seed in range(1, 6)}
    compared = statistics.compare({"a": same, "b": same}, "a", "b", "m")
    assert [compared[key] for key in ("mean", "low", "high", "n_lower")] == [0, 0, 0, 0]
    assert [compared[key] for key in ("ratio", "ratio_low", "ratio_high")] == [1, 1, 1]


def test_a_constant_difference_has_no_spread():
    theirs = {seed: {"m": 0.1 * seed} for seed in range(1, 6)}
    ours = {seed: {"m": 0.1 * seed - 0.05} for seed in range(1, 6)}
    compared = statistics.compare({"a": ours, "b": theirs}, "a", "b", "m")
    assert (compared["mean"], compared["low"], compared["high"]) == pytest.approx((-0.05, -0.05, -0.05))
    assert compared["n_lower"] == 5
    assert compared["ratio"] == pytest.approx(0.25 / 0.3)


def test_the_bootstrap_interval_covers():
    rng = np.random.default_rng(0)
    intervals = [statistics.bootstrap_interval(rng.normal(1, 2, 20), n_resamples=1000) for _ in range(300)]
    covered = np.mean([low <= 1 <= high for low, high in intervals])
    assert 0.89 < covered < 0.98
    widths = [high - low for low, high in intervals]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * 2 / np.sqrt(20), rel=0.1)


def test_the_interval_of_a_ratio_resamples_pairs():
    rng = np.random.default_rng(0)
    theirs = rng.uniform(0.1, 10, 30)
    low, high = statistics.bootstrap_interval(theirs / 2, theirs, statistic=statistics._ratio)
    assert (low, high) == pytest.approx((0.5, 0.5))  # not so if each were resampled by itself


def test_a_ratio_to_almost_nothing_is_infinite_in_some_resamples():
    compared = statistics.compare(
        {"a": {1: {"m": 0.5}, 2: {"m": 0.5}}, "b": {1: {"m": 0.0}, 2: {"m": 0.1}}}, "a", "b", "m"
    )
    assert compared["ratio"] == pytest.approx(10)
    assert compared["ratio_high"] == math.inf


def test_the_interval_is_the_same_each_time_and_needs_two_seeds():
    values = [0.1, 0.5, 0.2, 0.9]
    assert statistics.bootstrap_interval(values) == statistics.bootstrap_interval(values)
    assert all(map(math.isnan, statistics.bootstrap_interval([0.3])))
    assert statistics.describe([0.25, NAN, 0.75])["n"] == 2


def test_the_band_is_students():
    curves = np.random.default_rng(0).normal(size=(6, 3))
    curves[2:, 1] = NAN
    curves[1:, 2] = NAN
    mean, low, high = statistics.mean_and_band(curves)
    for column, n in ((0, 6), (1, 2)):
        values = curves[:n, column]
        expected = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
        assert (low[column], high[column]) == pytest.approx(expected)
    assert mean[2] == curves[0, 2] and math.isnan(low[2])


def test_training_curve():
    run = make_run(10, 10, steps=5)
    run["train"][2] |= {"right": 20, "sound": 10}  # step 1
    steps, lucky = statistics.training_curve(run, statistics.PRIMARY, window=3)
    assert steps.tolist() == [1, 2, 3, 4, 5]
    assert lucky.tolist() == pytest.approx([10 / 30, 10 / 40, 0, 0, 0])
    assert statistics.training_curve(run, "auroc/reward")[1].tolist() == [0.5] * 5
    assert np.isnan(statistics.training_curve(run, "auroc/embedding")[1]).all()


# ---------------------------------------------------------------------- jobs


@pytest.fixture
def pool():
    with JobPool(1, Console(quiet=True)) as pool:
        yield pool


def test_finished_jobs_are_not_run_again(pool, tmp_path):
    first, second = (stub.make_job(tmp_path / name, stub.counts) for name in ("first", "second"))
    assert pool.run([first], "Jobs") == []
    before = (tmp_path / "first" / "result.json").stat().st_mtime_ns
    assert pool.run([first, second], "Jobs") == []
    assert (tmp_path / "first" / "result.json").stat().st_mtime_ns == before
    assert first.result()["nan"] is None  # JSON has no NaN
    assert first.result()["pid"] == second.result()["pid"] != os.getpid()  # workers are used again
    assert (first.folder / "file.txt").read_text() == "kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


def test_steps_add_up_whatever_a_job_does(pool, tmp_path):
    jobs = [stub.make_job(tmp_path / name, getattr(stub, name)) for name in ("counts", "fails")]
    pool.run(jobs, "Jobs")
    assert pool._steps.value == sum(job.steps for job in jobs)


def test_a_failing_job_does_not_stop_the_others(pool, tmp_path, monkeypatch):
    jobs = [stub.make_job(tmp_path / "bad", stub.fails), stub.make_job(tmp_path / "good", stub.counts)]
    assert pool.run(jobs, "Jobs") == jobs[:1]
    assert jobs[1].result() is not None
    assert jobs[0].result() is None
    traceback = jobs[0].error_file.read_text()
    assert "in fails" in traceback and "ValueError: on purpose" in traceback
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.error.txt", "good"]

    assert pool.run([stub.make_job(tmp_path / "bad", stub.counts)], "Jobs") == []  # run again, and right this time
    assert not jobs[0].error_file.exists()


def test_other_settings_are_refused_before_anything_runs(pool, tmp_path):
    pool.run([stub.make_job(tmp_path / "old", stub.counts, {"steps": 2, "arm": {"tau": 0.1}})], "Jobs")
    new = stub.make_job(tmp_path / "new", stub.counts)
    changed = stub.make_job(tmp_path / "old", stub.counts, {"steps": 2, "arm": {"tau": 0.5}})
    with pytest.raises(
        SettingsDiffer, match=r"old.result\.json .*arm\.tau is 0\.1 there, and 0\.5.*`--output_dir`.*delete"
    ):
        pool.run([new, changed], "Jobs")
    assert not new.folder.exists()


def test_a_dead_worker_is_told(tmp_path):
    with pytest.raises(RuntimeError, match="worker process died.*`--num_processes`"):
        with JobPool(1, Console(quiet=True)) as pool:
            pool.run([stub.make_job(tmp_path / "dead", stub.dies)], "Jobs")


@pytest.fixture
def running(tmp_path):
    """The stub as a script, in a process group of its own, at its second job."""
    root = Path(__file__).parent.parent
    process = subprocess.Popen(
        [sys.executable, stub.__file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(root)},
        start_new_session=True,
    )
    wait_until((tmp_path / "second.partial" / "beat").exists)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_interrupting_keeps_what_is_finished(running, tmp_path):
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: every process gets it
    assert running.wait(20) == 130
    assert [path.name for path in tmp_path.iterdir()] == ["first"]


def test_killing_leaves_no_worker_and_no_half_result(pool, running, tmp_path):
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    beat = tmp_path / "second.partial" / "beat"

    def is_still():
        before = beat.stat().st_mtime_ns
        time.sleep(0.5)
        return beat.stat().st_mtime_ns == before

    wait_until(is_still)
    finished = (tmp_path / "first" / "result.json").stat().st_mtime_ns
    jobs = [stub.make_job(tmp_path / name, stub.counts) for name in ("first", "second")]
    assert jobs[1].result() is None
    assert pool.run(jobs, "Jobs") == []
    assert (tmp_path / "first" / "result.json").stat().st_mtime_ns == finished
    assert sorted(path.name for path in jobs[1].folder.iterdir()) == ["file.txt", "result.json"]  # nothing of before


def test_json_is_written_whole(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": [1.5, NAN, math.inf], "b": "text"})
    assert json.loads(path.read_text()) == {"a": [1.5, None, None], "b": "text"}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"] == "text"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]


# ---------------------------------------------------------------------- report


@pytest.fixture
def study(tmp_path):
    """Two policies; CLIPO has half the lucky share in each of its seeds; the control is there once, one seed is not."""
    start = {name: {"accuracy": 0.5, "strict_accuracy": 0.25, "lucky_share": None} for name in TEST_SETS}
    study = Study(
        arms={"grpo": "GRPO", "clipo": "CLIPO", "permuted": "permuted", "absent": "absent"},
        controls={"permuted"},
        reference="grpo",
        compared=("permuted",),
        policies={"rare_slips": start, "habit": start, "no_runs": start},
        settings={"first_seed": 0, "seeds": 4, "steps": 30, "device": "cpu"},
    )
    for policy in ("rare_slips", "habit"):
        for seed in range(4):
            study.add(policy, "grpo", seed, make_run(10, 8), tmp_path / policy / "grpo" / str(seed))
            if seed < 3:
                run = make_run(10, 9, auroc=0.875, accuracy=0.875)
                study.add(policy, "clipo", seed, run, tmp_path / policy / "clipo" / str(seed))
    study.add("habit", "permuted", 0, make_run(0, 0, auroc=None), tmp_path / "habit" / "permuted" / "0")
    return study


def write_embeddings(folder):
    rng = np.random.default_rng(0)
    arrays = {}
    for when in ("before", "after"):
        arrays[when] = rng.normal(size=(16, 5))
        arrays[f"label_{when}"], arrays[f"group_{when}"] = np.arange(16) % 3, np.arange(16) // 4
    folder.mkdir(parents=True)
    np.savez(folder / "embeddings.npz", **arrays)
    return arrays


def test_report(study, tmp_path):
    write_embeddings(study.folders["habit", "clipo", 0])
    report = write_report(study, tmp_path / "out").read_text()
    numbers = json.loads((tmp_path / "out" / "report.json").read_text())

    habit = numbers["policies"]["habit"]
    assert habit["seeds"] == {"grpo": [0, 1, 2, 3], "clipo": [0, 1, 2], "permuted": [0]}
    primary = habit["differences"]["grpo"]["clipo"][statistics.PRIMARY]
    assert (primary["n"], primary["n_lower"]) == (3, 3)
    assert (primary["mean"], primary["low"], primary["high"]) == pytest.approx((-0.1, -0.1, -0.1))
    assert primary["by_seed"] == pytest.approx({"0": -0.1, "1": -0.1, "2": -0.1})
    assert habit["differences"]["permuted"]["clipo"]["p1/accuracy"]["mean"] == pytest.approx(0.125)
    assert habit["arms"]["permuted"][statistics.PRIMARY]["mean"] is None
    assert [row["step"] for row in habit["evaluations"]["clipo"]] == [15, 30]
    assert habit["evaluations"]["clipo"][0]["p2"]["accuracy"] == 0.875
    assert numbers["policies"]["rare_slips"]["differences"]["permuted"] == {}

    assert "| CLIPO | 3 | **10.0** [10.0, 10.0] | 50.0 [50.0, 50.0] | 0.88 | – | – |" in report
    assert "| CLIPO | 3 | **−10.0** [−10.0, −10.0] | 3 of 3 | 0.50 [0.50, 0.50] | +0.0 [+0.0, +0.0] |" in report
    assert "| start |  | 50.0 / 25.0 / – |" in report
    assert "15 runs are reported" in report
    assert "No run is finished." in report
    drawn = [line.partition("(")[2].rstrip(")") for line in report.splitlines() if line.startswith("![")]
    assert drawn == [
        "overview.png",
        "differences.png",
        "learning_curves.png",
        "auroc.png",
        "generalisation.png",
        "embeddings.png",
    ]
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in drawn)


def test_report_of_what_there_is(study, tmp_path):
    study.arms = {"clipo": "CLIPO"}  # no reference, no embeddings
    report = write_report(study, tmp_path / "out").read_text()
    assert "Paired difference" not in report
    assert "differences.png" not in report and "embeddings.png" not in report
    assert "learning_curves.png" in report

    study.runs, study.folders = {}, {}
    report = write_report(study, tmp_path / "nothing").read_text()
    assert "0 runs are reported" in report and "![" not in report


def test_titles_beside_lines_do_not_touch(study):
    figure, axis = pictures.plt.subplots()
    for place, colour in enumerate(pictures.COLOURS):
        axis.plot([0, 1], [0, 0.9 + 0.001 * place], color=colour)
    axis.plot([0, 1], [0, 0.5], color=pictures.LIGHT)
    axis.set_ylim(0, 1)
    pictures._label_ends(axis, ["a", "b", "c", "d", "light"])
    *titles, others = axis.texts
    heights = [title.xyann[1] for title in titles]
    assert [title.get_text() for title in titles] == ["a", "b", "c", "d"]
    assert min(np.diff(heights)) > 0.07 and max(heights) <= 1.0
    assert others.get_text() == "light grey: others"
    pictures.plt.close(figure)


def test_embeddings_are_centred_in_their_groups(tmp_path):
    arrays = write_embeddings(tmp_path / "run")
    figure, axis = pictures.plt.subplots()
    shifted = (
        arrays["after"] + 100 * arrays["group_after"][:, None]
    )  # takes all of the variance if it is not taken off
    pictures._scatter(axis, arrays["after"], arrays["label_after"], arrays["group_after"])
    pictures._scatter(axis, shifted, arrays["label_after"], arrays["group_after"])
    offsets = [np.asarray(collection.get_offsets()) for collection in axis.collections]
    assert [len(points) for points in offsets[:3]] == [6, 5, 5]  # wrong, lucky, sound
    for here, there in zip(offsets[:3], offsets[3:], strict=True):
        np.testing.assert_allclose(here, there, atol=1e-9)
    pictures.plt.close(figure)


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--arms", "grpo", "nonsense"), "`arms` has nonsense, but must be of all, core, grpo"),
        (("--policies", "nonsense"), "`policies` has nonsense, but must be of all, "),
        (("--seeds", "0"), "`seeds` is 0"),
    ],
)
def test_bad_settings_are_named(flags, message, capsys):
    with pytest.raises(SystemExit):
        faithfulness.main(list(flags))
    assert message in " ".join(capsys.readouterr().err.split())


def test_default_settings():
    settings = faithfulness.Settings()
    assert settings.arms == [name for name in arms.ARMS if name in arms.CORE]
    assert settings.policies == list(arms.POLICIES)
    assert (settings.seeds, settings.first_seed, settings.steps) == (20, 1000, 100)
    assert faithfulness.Settings(arms=["all"]).arms == list(arms.ARMS)
    assert faithfulness.Settings(arms=["clipo", "grpo"]).arms == ["grpo", "clipo"]
    assert {faithfulness.REFERENCE, *faithfulness.COMPARED} <= set(arms.CORE)


def test_the_final_run_has_fresh_problems_and_policies():
    development, final = (faithfulness.Settings(first_seed=seed) for seed in (0, 1000))
    policy = next(iter(arms.POLICIES))
    policies = [faithfulness.policy_job(settings, policy) for settings in (development, final)]
    assert policies[0].settings != policies[1].settings
    runs = [faithfulness.arm_job(development, policies[0], policy, seed, "grpo") for seed in (0, 1)]
    assert runs[0].settings["policy"] == runs[1].settings["policy"]
    assert runs[0].folder != runs[1].folder
    train = [set(faithfulness.make_train_set(50, seed)["problem"]) for seed in (0, 1000)]
    assert train[0] != train[1]


def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(arms, "POLICIES", {"tiny": (Phase("clean", 2, 1e-3), Phase("noisy", 1, 1e-3, lazy=0.5))})
    flags = ["--output_dir", str(tmp_path), *"--arms grpo clipo --seeds 2 --first_seed 5 --steps 2".split()]
    flags += "--eval_every 1 --train_problems 16 --test_problems 4 --hidden_size 16 --num_layers 1".split()
    assert faithfulness.main([*flags, "--num_processes", "1"]) == 0
    assert "4 of 4 runs are in the report" in capsys.readouterr().out

    written = sorted(path.relative_to(tmp_path / "runs") for path in (tmp_path / "runs").rglob("result.json"))
    assert [str(path.parent) for path in written] == ["tiny/clipo/5", "tiny/clipo/6", "tiny/grpo/5", "tiny/grpo/6"]
    for path in written:
        run = json.loads((tmp_path / "runs" / path).read_text())["result"]
        assert [row["step"] for row in run["train"] if row["step"] > 0] == [1, 2]
        assert all(row["rollouts"] == 64 and row["right"] >= row["sound"] for row in run["train"])
        assert [row["step"] for row in run["eval"]] == [1, 2]
        assert set(run["eval"][0]) == {"step", *TEST_SETS}
    numbers = json.loads((tmp_path / "report.json").read_text())["policies"]["tiny"]
    assert numbers["seeds"] == {"grpo": [5, 6], "clipo": [5, 6]}
    assert set(numbers["start"]) == set(TEST_SETS)

    # Again: nothing to do, nothing done.
    before = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.suffix in (".json", ".safetensors")
    }
    monkeypatch.setattr(faithfulness.JobPool, "_outcome", lambda *_: pytest.fail("a job was run"))
    assert faithfulness.main(flags) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.name != "report.json")

    # Fewer and more than there is; other settings.
    assert faithfulness.main([*flags, "--report_only", "--seeds", "5"]) == 0
    assert "4 of 10 runs are in the report" in capsys.readouterr().out
    assert faithfulness.main([*flags, "--steps", "3"]) == 1
    assert "steps is 2 there, and 3 was asked for" in " ".join(capsys.readouterr().out.split())
