"""Rollouts at temperature 1 and almost without chance: figures by hand, and the command on tiny policies."""

import csv

import numpy as np
import pytest
from test_language_model import TINY, base, wheel  # noqa: F401  # fixtures

from experiments import sharpening, word_problems
from experiments.language_model import load_policy, sample_problems, warm_start, warm_starts
from experiments.starting_policy import Phase
from experiments.starting_policy import warm_start as make_chain_policy


def test_figures_by_hand():
    """Two problems: of four rollouts three are right and one is sound; almost without chance both, and one."""
    checks = {1.0: np.array([[(1, 1), (1, 0)], [(1, 0), (0, 0)]]), 0.05: np.array([[(1, 1)], [(1, 0)]])}
    at_one, sure = sharpening.figures_of("policy", checks)
    assert (at_one["problems"], at_one["rollouts"], sure["rollouts"]) == (2, 4, 2)
    assert (at_one["right"], at_one["sound"]) == (0.75, 0.25) and at_one["lucky_share"] == pytest.approx(
        2 / 3, abs=1e-4
    )
    assert (sure["right"], sure["sound"], sure["lucky_share"], sure["ratio"]) == (1, 0.5, 0.5, 0.75)
    assert at_one["ratio"] == at_one["ratio_low"] == at_one["ratio_high"] == 1
    # resamples are of problems: the first one twice, both, or the second one twice
    assert (sure["lucky_share_low"], sure["lucky_share_high"]) == (0, 1) == (sure["sound_low"], sure["sound_high"])
    assert (at_one["right_low"], at_one["right_high"]) == (0.5, 1)


def test_no_right_rollout_has_no_lucky_share():
    checks = {1.0: np.array([[(0, 0)], [(0, 0)]]), 0.05: np.array([[(1, 1)], [(1, 1)]])}
    at_one, sure = sharpening.figures_of("policy", checks)
    assert np.isnan(at_one["lucky_share"]) and sure["lucky_share"] == 0 and np.isnan(sure["ratio"])


@pytest.mark.slow
def test_from_end_to_end(base, tmp_path, monkeypatch, capsys):  # noqa: F811
    make_chain_policy(tmp_path / "toys" / "toy", phases=(Phase("clean", 1, 1e-3),), hidden_size=16, num_layers=1)
    monkeypatch.setitem(warm_starts.WARM_STARTS, "tiny", TINY)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(base / "base")
    warm_start(tmp_path / "models", "tiny")
    words = ["--output", str(tmp_path / "figures.csv"), "--policies", str(tmp_path / "toys"), "--problems", "3"]
    assert sharpening.main([*words, "--names", "tiny", "--models", str(tmp_path / "models")]) == 0
    with open(tmp_path / "figures.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["policy"], float(row["temperature"]), row["rollouts"]) for row in rows] == [
        ("toy", 1.0, "24"), ("toy", 0.05, "3"), ("tiny", 1.0, "24"), ("tiny", 0.05, "3"),
    ]  # fmt: skip
    assert "| `tiny` | 0.05 |" in capsys.readouterr().out
    # what is there is not sampled again
    monkeypatch.setattr(sharpening, "checks_of", None)
    assert sharpening.main([*words, "--names", "tiny", "--models", str(tmp_path / "models")]) == 0


@pytest.mark.slow
def test_a_low_temperature_takes_the_likeliest_token(base, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(warm_starts.WARM_STARTS, "tiny", TINY)
    (tmp_path / "base").symlink_to(base / "base")
    model, tokenizer = load_policy(warm_start(tmp_path, "tiny"))
    problems = word_problems.build_dataset(2, seed=0, **TINY.problems)
    sure, again = (
        [
            r.token_ids
            for batch in sample_problems(model, tokenizer, problems, num_samples=1, seed=seed, temperature=1e-6)
            for r in batch
        ]
        for seed in (0, 1)
    )
    assert sure == again


@pytest.mark.parametrize(
    "words, message",
    [
        (["--names", "choice"], "`names` has ['choice'], but must be some of"),
        (["--problems", "0"], "`problems` is 0, but must be 1 or more"),
    ],
)
def test_bad_settings_are_named(words, message, capsys):
    with pytest.raises(SystemExit):
        sharpening.main(words)
    assert message in " ".join(capsys.readouterr().err.split())


def test_nothing_to_sample(tmp_path, capsys):
    assert sharpening.main(["--policies", str(tmp_path), "--output", str(tmp_path / "none.csv")]) == 1
    assert "nothing to sample" in capsys.readouterr().out


def test_figures_of_other_problems_are_not_mixed(tmp_path, capsys):
    (tmp_path / "figures.csv").write_text(sharpening.PUBLISHED.read_text())
    assert sharpening.main(["--output", str(tmp_path / "figures.csv"), "--problems", "3"]) == 1
    assert "has figures of 400 problems" in " ".join(capsys.readouterr().out.split())
