"""The faithfulness experiment: its statistics on numbers with a known answer, its report, and a tiny run of it all."""

import csv
import json
import math
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from experiments.faithfulness import __main__ as command
from experiments.faithfulness import archive, arms, pictures, statistics
from experiments.faithfulness import study as studies
from experiments.faithfulness.jobs import write_json
from experiments.faithfulness.report import TEST_SETS, write_report
from experiments.faithfulness.study import Settings, Study
from experiments.faithfulness.tasks import right_with_sound_equations_reward
from experiments.starting_policy import Phase
from experiments.word_problems import Problem, answer_reward, build_dataset


pytestmark = pytest.mark.slow  # whole experiments, small


NAN = float("nan")
ROOT = Path(__file__).parents[1]


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
    run = make_run(10, 10, steps=100)
    for row in run["train"][-20:]:
        row |= {"right": 10, "sound": 8}
    run["train"][-1] |= {"right": 20, "sound": 0}
    metrics = statistics.run_metrics(run)
    assert metrics[statistics.PRIMARY] == pytest.approx((19 * 2 + 20) / (19 * 10 + 20))
    assert metrics["train/accuracy"] == pytest.approx((19 * 10 + 20) / (20 * 20))


def test_of_a_short_run_the_second_half_counts():
    assert [statistics.last_steps(steps) for steps in (1, 2, 16, 40, 100)] == [1, 1, 8, 20, 20]
    run = make_run(10, 10, steps=16)
    for row in run["train"][-8:]:
        row["sound"] = 5
    assert statistics.run_metrics(run)[statistics.PRIMARY] == 0.5


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


# ---------------------------------------------------------------------- report


@pytest.fixture
def study(tmp_path):
    """Two policies; CLIPO has half the lucky share in each of its seeds; the control is there once, one seed is
    not."""
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
    with (tmp_path / "out" / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 15 and [run["seed"] for run in runs] == sorted(run["seed"] for run in runs)
    (control,) = (run for run in runs if run["arm"] == "permuted")
    assert control[statistics.PRIMARY] == "" and control["p1/accuracy"] == "0.75"
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


def test_an_archive_of_finished_runs_is_gone_on_from(study, tmp_path):
    """Unpacked, it gives the same metrics, and so the same report; nothing but finished runs is in it."""
    origin, copy = tmp_path / "origin", tmp_path / "copy"
    rough = make_run(10, 9, auroc=1 / 3)
    rough["train"][9] |= {
        "contrastive/sound_auroc_reward": None,
        "contrastive/trust": -0.2,
        "contrastive/seconds": 0.1,
    }
    for seed in ("3", "4.partial"):
        folder = origin / "runs" / "habit" / "grpo" / seed
        folder.mkdir(parents=True)
        write_json(folder / "result.json", {"name": "any", "settings": {"seed": 3}, "result": rough})
        (folder / "embeddings.npz").write_text("left out")
    assert archive.pack(origin, tmp_path / "new" / "kept.tar.gz") == 1
    first = (tmp_path / "new" / "kept.tar.gz").read_bytes()
    archive.pack(origin, tmp_path / "new" / "kept.tar.gz")
    assert (tmp_path / "new" / "kept.tar.gz").read_bytes() == first

    with tarfile.open(tmp_path / "new" / "kept.tar.gz") as tar:
        assert tar.getnames() == ["runs/habit/grpo/3/result.json"]
        tar.extractall(copy, filter="data")
    kept = json.loads((copy / "runs" / "habit" / "grpo" / "3" / "result.json").read_text())
    assert kept["settings"] == {"seed": 3} and "contrastive/seconds" not in kept["result"]["train"][9]
    assert kept["result"]["train"][9]["contrastive/trust"] == -0.2
    metrics = [statistics.run_metrics(run) for run in (rough, kept["result"])]
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-5, nan_ok=True)


# ---------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--arms", "grpo", "nonsense"), "`arms` has nonsense, but must be of all, core, grpo"),
        (("--policies", "nonsense"), "`policies` has nonsense, but must be of all, "),
        (("--seeds", "0"), "`seeds` is 0"),
        (("--arms", "equations"), "The arm 'equations' needs rewards that are not among its policies'"),
    ],
)
def test_bad_settings_are_named(flags, message, capsys):
    with pytest.raises(SystemExit):
        command.main(list(flags))
    assert message in " ".join(capsys.readouterr().err.split())


def test_default_settings():
    settings = Settings()
    assert settings.arms == [name for name in arms.ARMS if name in arms.CORE]
    assert settings.policies == list(arms.POLICIES)
    assert (settings.seeds, settings.first_seed, settings.steps) == (20, 1000, 100)
    assert Settings(arms=["all"]).arms == [name for name in arms.ARMS if "equations" not in name]
    assert Settings(arms=["all"], policies=["own_slips"]).arms == list(arms.ARMS)
    assert Settings(arms=["clipo", "grpo"]).arms == ["grpo", "clipo"]
    assert {studies.REFERENCE, *studies.COMPARED} <= set(arms.ARMS)


def test_the_final_run_has_fresh_problems_and_policies():
    development, final = (Settings(first_seed=seed) for seed in (0, 1000))
    policy = next(iter(arms.POLICIES))
    policies = [studies.policy_job(settings, policy) for settings in (development, final)]
    assert policies[0].settings != policies[1].settings
    runs = [studies.arm_job(development, policies[0], policy, seed, "grpo") for seed in (0, 1)]
    assert runs[0].settings["policy"] == runs[1].settings["policy"]
    assert runs[0].folder != runs[1].folder
    train = [set(studies.task_of(policy).train_set(50, seed)["problem"]) for seed in (0, 1000)]
    assert train[0] != train[1]


def test_studies_that_were_begun_with_an_older_layout_go_on(tmp_path):
    """Folders and settings are those that version 0.1.0 wrote: what it finished is not run again."""
    phases = [
        {"name": "clean", "steps": 200, "learning_rate": 0.003, "wrong_quotient": 0.0, "wrong_remainder": 0.0, "lazy": 0.0},
        {"name": "noisy", "steps": 250, "learning_rate": 0.002, "wrong_quotient": 0.02, "wrong_remainder": 0.17, "lazy": 0.75},
    ]  # fmt: skip
    policy = {"hidden_size": 64, "num_layers": 3, "phases": phases, "seed": 1000, "test_problems": 100}
    config = {
        "num_generations": 8, "per_device_train_batch_size": 64, "max_completion_length": 48, "learning_rate": 2e-4,
        "lr_scheduler_type": "constant", "loss_type": "dapo", "beta": 0.0, "temperature": 1.0,
        "reward_weights": [1.0, 0.0, 0.0], "contrastive_step_reward": "steps_reward", "contrastive_reward_weight": 0.2,
        "contrastive_embedding_dim": 64, "contrastive_warmup_steps": 10,
    }  # fmt: skip
    run = {
        "first_seed": 1000, "steps": 100, "eval_every": 50, "train_problems": 800, "test_problems": 100, "device": "cpu",
        "policy": policy, "seed": 1003, "control": "sorted", "config": config,
    }  # fmt: skip
    for folder, written in {"policies/habit": policy, "runs/habit/sorted/1003": run}.items():
        (tmp_path / folder).mkdir(parents=True)
        write_json(tmp_path / folder / "result.json", {"name": "any", "settings": written, "result": "finished"})

    settings = Settings(output_dir=str(tmp_path), policies=["habit"], arms=["sorted"], seeds=4)
    policies = studies.policy_jobs(settings)
    runs = studies.arm_jobs(settings, policies)
    assert policies["habit"].result() == "finished"
    assert [job.result() for job in runs.values()] == [None, None, None, "finished"]
    # `__main__` of a package is not imported in a worker: what it does must lie elsewhere.
    assert {job.work.func.__module__ for job in (*policies.values(), *runs.values())} == {studies.__name__}


def test_a_phase_of_a_later_kind_is_another_policy():
    with_it = studies.phase_settings(Phase("noisy", 1, 1e-3, shortcut=0.85))
    without = studies.phase_settings(Phase("noisy", 1, 1e-3))
    assert with_it == without | {"shortcut": 0.85} and "lazy" in without


def test_pictures_do_not_need_the_report():
    code = "import sys, experiments.faithfulness.pictures; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "experiments.faithfulness.report" not in modules.split()


@pytest.mark.slow
def test_from_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(arms, "POLICIES", {"tiny": (Phase("clean", 2, 1e-3), Phase("noisy", 1, 1e-3, lazy=0.5))})
    flags = ["--output_dir", str(tmp_path), *"--arms grpo clipo --seeds 2 --first_seed 5 --steps 2".split()]
    flags += "--eval_every 1 --train_problems 16 --test_problems 4 --hidden_size 16 --num_layers 1".split()
    assert command.main([*flags, "--num_processes", "1"]) == 0
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
    monkeypatch.setattr(command.JobPool, "_outcome", lambda *_: pytest.fail("a job was run"))
    assert command.main(flags) == 0
    assert all(path.stat().st_mtime_ns == time for path, time in before.items() if path.name != "report.json")

    # Fewer and more than there is; other settings.
    assert command.main([*flags, "--report_only", "--seeds", "5"]) == 0
    assert "4 of 10 runs are in the report" in capsys.readouterr().out
    assert command.main([*flags, "--steps", "3"]) == 1
    assert "steps is 2 there, and 3 was asked for" in " ".join(capsys.readouterr().out.split())


def test_equations_are_paid_where_the_answer_is_right():
    """Never beside a wrong one: fewer equations, and easier ones, would earn it."""
    (problem,) = build_dataset(1, seed=0, num_operations=1, answer="number")["problem"]
    answer = Problem.from_json(problem).answer
    texts = [
        f"1 + 1 = 2\nAnswer: {answer}",
        f"1 + 1 = 3\nAnswer: {answer}",
        f"Answer: {answer}",
        "1 + 1 = 2\nAnswer: -7",
    ]
    assert answer_reward(texts, [problem] * 4) == [1, 1, 1, 0]
    assert right_with_sound_equations_reward(texts, [problem] * 4) == [1, 0, 0, 0]
