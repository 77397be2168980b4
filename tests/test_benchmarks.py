"""The benchmarks in a tiny size: they run, write what they promise, and compare what they say they compare."""

import json
import sys
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import normalize
from transformers import logging
from trl import GRPOTrainer

from benchmarks import common, conspo_weights, dynamic_sampling, gpu, loss, overhead, scaling
from clipo_trl import contrastive_loss
from clipo_trl.hidden_states import RolloutTokens
from experiments.starting_policy import Phase, warm_start


pytestmark = pytest.mark.slow  # whole benchmarks, small


CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def verbosity():
    """The command lines quieten transformers; the tests that follow must not notice."""
    before = logging.get_verbosity()
    yield
    logging.set_verbosity(before)


def run_main(monkeypatch, tmp_path, module, *flags):
    """Run a benchmark as from the command line; returns what it wrote."""
    name = module.__name__.split(".")[-1]
    monkeypatch.setattr(sys, "argv", [name, *map(str, flags), "--output_dir", str(tmp_path)])
    module.main()
    assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    record = json.loads((tmp_path / f"{name}.json").read_text())
    assert record["benchmark"] == name and record["machine"]["torch"] == torch.__version__
    return record


# ---------------------------------------------------------------------- measuring


def test_peak_memory_is_counted_to_the_byte():
    def call():
        first = torch.ones(1000)
        del first
        second = torch.ones(2000)
        third = torch.ones(500)
        del second, third

    assert common.peak_bytes(call, CPU) == 2500 * 4
    assert common.peak_bytes(lambda: None, CPU) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="the high-water mark is Linux'")
def test_the_high_water_mark_is_that_of_the_stretch():
    memory = common.PeakMemory(CPU)
    memory.reset()
    before = memory.read()
    torch.ones(64 * common.MIB // 4)
    assert memory.read() - before > 60 * common.MIB
    memory.reset()
    assert memory.read() - before < 30 * common.MIB


def test_rounds_take_turns_and_the_first_is_not_counted():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    measured = common.alternate(functions, 2, CPU)
    assert {name: len(durations) for name, durations in measured.items()} == {"a": 2, "b": 2, "c": 2}
    assert "".join(calls) == "abcbcacab"


def test_spread():
    assert common.spread([5.0, 1.0, 2.0, 3.0, 4.0]) == {"median": 3.0, "q25": 2.0, "q75": 4.0, "n": 5}
    assert common.ratios([2.0, 9.0], [4.0, 3.0]) == [0.5, 3.0]


# ---------------------------------------------------------------------- loss


@pytest.mark.parametrize("level", loss.LEVELS)
def test_the_dense_form_is_the_same_loss(level):
    generator = torch.Generator().manual_seed(0)
    embeddings = normalize(torch.randn(6, 5, 8, generator=generator, dtype=torch.float64), dim=-1).requires_grad_()
    correct = torch.rand(6, 5, generator=generator) < 0.5
    correct[0], correct[1] = True, False  # groups without an anchor at level "group"
    dense = loss.dense_loss(embeddings, correct, level)
    ours, _ = contrastive_loss(embeddings, correct, loss_type="supcon_out", temperature=loss.TEMPERATURE, level=level)
    torch.testing.assert_close(dense, ours)
    gradients = [torch.autograd.grad(values.sum(), embeddings)[0] for values in (dense, ours)]
    torch.testing.assert_close(*gradients)


def test_the_group_level_needs_no_memory_for_pairs_of_the_batch(monkeypatch, tmp_path):
    # D is small here, so that what counts is the pairs
    flags = ("--n_rollouts", 1024, "--group_size", 8, "--embedding_dim", 8, "--rounds", 1)
    rows = run_main(monkeypatch, tmp_path, loss, *flags)["rows"]
    assert [(row["level"], row["loss_type"]) for row in rows] == [
        ("group", "supcon_out"),
        ("group", "infonce"),
        ("cross", "supcon_out"),
        ("batch", "supcon_out"),
    ]
    for row in rows:
        assert row["dense_peak_bytes"] > 3 * 4 * 1024**2
        assert row["times_smaller"] > (20 if row["level"] == "group" else 1)
        assert row["loss_type"] == "infonce" or row["largest_difference"] < 1e-3
        assert row["times_faster"]["n"] == 1


# ---------------------------------------------------------------------- ConSPO's weights


def test_conspo_weights_over_the_temperature(monkeypatch, tmp_path):
    """The figures that docs/conspo.md tells."""
    weights = run_main(monkeypatch, tmp_path, conspo_weights)["weights"]
    assert all(sum(values) == pytest.approx(0, abs=1e-12) for values in weights.values())
    assert [round(-value, 3) for value in weights["10"][2:]] == [0.205, 0.202, 0.199, 0.195]
    assert [round(-value, 2) for value in weights["0.3162"][2:]] == [0.36, 0.22, 0.14, 0.07]
    assert -weights["0.1"][2] / sum(weights["0.1"][:2]) == pytest.approx(0.78, abs=0.005)


# ---------------------------------------------------------------------- overhead


@pytest.fixture
def tiny():
    return overhead.SHAPES["tiny"]


@pytest.mark.slow
def test_overhead_runs(monkeypatch, tmp_path):
    record = run_main(monkeypatch, tmp_path, overhead, "--shape", "tiny", "--rounds", 2, "--seeds", 2)
    assert [row["mode"] for row in record["rows"]] == ["fused", "decode", "forward", "likelihood", "naive"]
    for row in record["rows"]:
        assert row["step_time_ratio"]["n"] == row["peak_memory_ratio"]["n"] == 4
        assert row["step_time_ratio"]["median"] > 0.1
        assert 0 < row["own_share"]["median"] < 1


def test_an_unknown_shape_is_named():
    with pytest.raises(ValueError, match="`shape` is 'huge'"):
        overhead.Settings(shape="huge")


def test_without_clipo_a_step_is_that_of_grpo(tmp_path, tiny):
    trained = {}
    for trainer_class in (overhead.TurnsTrainer, GRPOTrainer):
        trainer = overhead.make_trainer(tiny, 0, 1, 2, str(tmp_path))
        if trainer_class is GRPOTrainer:
            trainer = GRPOTrainer(
                overhead.make_model(tiny, 0, CPU),
                overhead.every_other,
                trainer.args,
                train_dataset=trainer.train_dataset,
                processing_class=trainer.processing_class,
            )
        trainer.args.learning_rate = 1e-2
        trainer.train()
        trained[trainer_class] = trainer.model.state_dict()
        logged = {name for row in trainer.state.log_history for name in row}
        assert not any(name.startswith("contrastive/") for name in logged)
    start = overhead.make_model(tiny, 0, CPU).state_dict()
    ours, theirs = trained.values()
    assert all(torch.equal(ours[name], theirs[name]) for name in start)
    assert any(not torch.equal(ours[name], start[name]) for name in start)


@pytest.mark.parametrize("window", overhead.SETTINGS)
def test_every_way_takes_its_turn_and_only_forward_makes_extra_passes(tmp_path, tiny, window):
    modes, rounds = overhead.SETTINGS[window], 2
    trainer = overhead.make_trainer(tiny, 0, window, (rounds + 1) * len(modes) * window, str(tmp_path))
    turns = []
    generate = trainer._generate

    def watched(prompts):
        output = generate(prompts)
        turns.append(trainer.mode)
        assert {len(ids) for ids in output[1]} == {tiny.n_completion}
        return output

    trainer._generate = watched
    callback = overhead.Turns(trainer, modes, window, lambda: None)
    trainer.add_callback(callback)
    trainer.train()
    for start in range(0, len(turns), len(modes)):
        assert set(turns[start : start + len(modes)]) == set(modes)
    assert {len(values) for values in callback.measured.values()} == {rounds}
    logged = trainer.state.log_history[-1]
    assert ("contrastive/extra_forward_passes" in logged) == ("forward" in modes)


def test_naive_states_are_ours(tmp_path, tiny):
    trainer = overhead.make_trainer(tiny, 0, 1, 1, str(tmp_path))
    trainer.model.eval()
    ids = torch.randint(2, tiny.vocab_size, (8, 12), generator=torch.Generator().manual_seed(0)).tolist()
    pooled = []
    for mode in ("naive", "forward"):
        trainer.take_turn(mode)
        with trainer.states.rollouts():
            trainer.states.tokens = RolloutTokens([row[:4] for row in ids], [row[4:] for row in ids])
            pooled.append(trainer.states.pooled(trainer.model_wrapped, 4, 0))
    torch.testing.assert_close(*pooled)


# ---------------------------------------------------------------------- scaling


@pytest.mark.slow
def test_scaling_runs(monkeypatch, tmp_path):
    flags = "--rollouts 32 64 --tokens 8 16 --hidden_size 64 --group_size 4 8 --processes 1 2 --rounds 1".split()
    rows = run_main(monkeypatch, tmp_path, scaling, *flags)["rows"]
    for axis, (_, parts) in scaling.AXES.items():
        assert {row["part"] for row in rows if row["axis"] == axis} == set(parts)
    assert [row["rollouts"] for row in rows if row["axis"] == "rollouts"] == [32, 64]
    assert [row["processes"] for row in rows if row["axis"] == "processes"] == [1, 2]
    assert all(row["seconds_per_rollout"]["median"] > 0 for row in rows)


def test_common_point_is_on_every_axis():
    point, settings = scaling.Point(), scaling.Settings()
    for axis in scaling.AXES:
        values = getattr(settings, axis)
        assert getattr(point, axis) in values
        assert all(a < b for a, b in pairwise(values))


def test_random_prompts_are_of_the_wanted_length(tmp_path, tiny):
    trainer = overhead.make_trainer(tiny, 0, 1, 1, str(tmp_path))
    assert isinstance(trainer.train_dataset, Dataset)
    for row in trainer.train_dataset:
        assert len(trainer.processing_class(row["prompt"])["input_ids"]) == tiny.n_prompt


def test_a_gpu_run_reports_every_part_whatever_fails():
    spread = {"median": 1.01}
    row = dict.fromkeys(("step_time_ratio", "peak_memory_ratio", "seconds", "grpo_seconds", "own_share"), spread)

    def fails():
        raise RuntimeError("out of memory\nand more")

    results = gpu.run_parts(
        {
            "tests": lambda: {"summary": "20 passed"},
            "overhead": lambda: {"rows": [{"mode": "fused", **row}]},
            "quickstart": fails,
        }
    )
    text = gpu.markdown(results)
    assert "| tests | 20 passed |" in text and "| `fused` | 1.010 | 1.010 | 1.01 | 1.01 | 101.0% |" in text
    assert "| quickstart | FAILED: RuntimeError: out of memory |" in text


def test_rollouts_of_the_warm_up_round_may_be_short():
    settings = overhead.Settings(shape="tiny", rounds=1, seeds=1, warm_up_tokens=2)
    lengths = []

    class Noted(overhead.TurnsTrainer):
        def _generate(self, prompts):
            output = super()._generate(prompts)
            lengths.append({len(ids) for ids in output[1]})
            return output

    original, overhead.TurnsTrainer = overhead.TurnsTrainer, Noted
    try:
        overhead.run(settings)
    finally:
        overhead.TurnsTrainer = original
    turns = [len(modes) for modes in overhead.SETTINGS.values()]
    assert lengths == [length for n_modes in turns for length in [{2}] * n_modes + [{8}] * n_modes]


# ---------------------------------------------------------------------- dynamic sampling


@pytest.mark.slow
def test_dynamic_sampling_runs(monkeypatch, tmp_path):
    warm_start(tmp_path / "policy", phases=(Phase("short", 1, 1e-3),))
    flags = ("--steps", 2, "--seeds", 1, "--n_prompts", 2, "--eval_steps", 1, "--policy", tmp_path / "policy")
    rows = run_main(monkeypatch, tmp_path, dynamic_sampling, *flags)["rows"]
    without, dynamic = rows
    assert without["generated"] == [0, 16, 32] and len(without["accuracy"]) == 3
    assert dynamic["figures"]["attempts"] == [10.0, 10.0]  # a policy that knows nothing yet
    assert dynamic["generated"] == [0, 160, 320]
