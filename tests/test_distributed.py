"""
Many processes give what one gives: DDP, ZeRO-2, ZeRO-3 and FSDP2, each really run with two gloo processes on the CPU.

A generation batch has three groups of four, so the middle one straddles the two processes. `distributed_worker.py`
holds the runs; each backend is launched once for all of its cases.
"""

import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import distributed_worker
import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny_model


pytestmark = pytest.mark.slow  # several processes, launched for each backend


HERE = Path(__file__).parent
RESUMED = ["whole", "whole@whole/checkpoint-3", "whole@whole/checkpoint-6"]
CASES = {
    "ddp": ["decode", "forward", "fused", "mean", "agreement", "likelihood", "one_group", "no_group", "warmup"]
    + ["conspo", "conspo_parts", "images", "images_forward"],
    "zero2": ["decode", "forward", "fused", "warmup"],
    "zero3": ["decode", "forward", "fused", "mean", "agreement", "likelihood", "one_group", "no_group", "warmup"]
    + [
        "tied_gather_off",
        "untied_gather_off",
        "lora",
        "lora_gather_off",
        "from_elsewhere",
        "conspo",
        "images_forward",
    ],
    "fsdp2": ["decode", "forward", "fused", "mean", "likelihood", "one_group", "no_group", "warmup", "images_forward"],
}
MORE_CASES = {
    "ddp": ["continuous_batching", "bf16_full_eval"]
    + ["wide", "accuracy", "rounded_head", "other_head", "other_head_at_save", *RESUMED, "whole@killed_in_save"],
    "zero2": [],
    "zero3": [*RESUMED, "whole@killed_in_step"],
    "fsdp2": RESUMED,
}
KILLED = {"ddp": "killed_in_save", "zero3": "killed_in_step"}
WRAPPERS = {
    "ddp": "DistributedDataParallel",
    "zero2": "DeepSpeedEngine",
    "zero3": "DeepSpeedEngine",
    "fsdp2": "FSDPQwen2ForCausalLM",
}
# Share of the policy's parameters that a process holds.
SHARES = {"ddp": 1.0, "zero2": 1.0, "zero3": 0.5, "fsdp2": 0.5}


def by_backend(rows):
    """Rows of parameters, the backend first. A backend is a launch: DDP's in `make test`, all in `make test-all`."""
    return [pytest.param(*row, marks=() if row[0] == "ddp" else pytest.mark.slow) for row in rows]


def launch(backend, folder, *cases, timeout=300):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    devices = {} if backend == "nccl" else {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, str(HERE / "distributed_worker.py"), backend, str(folder), *cases],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **devices},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """What the processes of a backend saw: `launched(backend)(case)` is a list of reports, one a process."""

    @cache
    def of_backend(backend):
        if backend.startswith("zero"):
            pytest.importorskip("deepspeed")
        folder = tmp_path_factory.mktemp(backend)
        if backend in KILLED:
            done = launch(backend, folder, KILLED[backend])
            assert done.returncode != 0 and "exitcode: -9" in done.stdout, done.stdout[-5000:]
        done = launch(backend, folder, *CASES[backend], *MORE_CASES[backend])
        assert done.returncode == 0, done.stdout[-5000:]

        def of_case(case):
            files = [folder / f"{case.replace('/', '_')}.{process}.pt" for process in (0, 1)]
            return [torch.load(file, map_location="cpu") for file in files]

        of_case.folder = folder
        return of_case

    return of_backend


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same case in this one process."""
    folder = tmp_path_factory.mktemp("alone")
    of_case = cache(lambda case: distributed_worker.run("alone", folder, case))
    of_case.folder = folder
    return of_case


def moved(report):
    return (report["seen"][0]["head"] - report["head"]).abs().max().item()


@pytest.mark.parametrize("backend", by_backend([name] for name in CASES))
def test_two_processes_and_the_wrapper_that_was_asked_for(backend, launched):
    for report in launched(backend)("decode"):
        assert report["world_size"] == 2
        assert report["wrapper"] == WRAPPERS[backend]
        assert report["share"] == pytest.approx(SHARES[backend], abs=0.02)


@pytest.mark.parametrize("backend, case", by_backend((name, case) for name in CASES for case in CASES[name]))
def test_rewards_and_head_are_those_of_one_process(backend, case, launched, alone):
    first, second = launched(backend)(case)
    one = alone(case)
    modes = {"forward": "forward", "lora_gather_off": "forward", "from_elsewhere": "forward"}
    modes |= {"fused": "fused", "likelihood": "fused", "conspo_parts": "fused", "images_forward": "forward"}
    assert first["mode"] == one["mode"] == modes.get(case, "decode")
    assert len(one["seen"]) == len(first["seen"]) == len(second["seen"])
    for here, there, reference in zip(first["seen"], second["seen"], one["seen"], strict=True):
        for name in ("rewards", "column", "head"):  # bit for bit between the processes
            assert torch.equal(here[name], there[name])
        assert torch.equal(here["rewards"], reference["rewards"])  # the same rollouts
        torch.testing.assert_close(here["column"], reference["column"], atol=2e-5, rtol=0)
        torch.testing.assert_close(here["head"], reference["head"], atol=2e-6, rtol=0)
    if case == "no_group":
        assert moved(one) == moved(first) == 0
    else:
        assert moved(first) > 1e-3 and min(batch["column"].min() for batch in first["seen"]) < -1e-3
    if case == "mean":  # what the head keeps for rollouts that come alone
        assert torch.equal(first["mean"], second["mean"])
        torch.testing.assert_close(first["mean"], one["mean"])
    names = {"loss", "reward", "reward_std", "contrastive/head_loss", "contrastive/embedding_cosine_correct_wrong"}
    names |= {"contrastive/trust", "contrastive/lucky_share"}
    names |= {"contrastive/likelihood_correct", "contrastive/sound_auroc_likelihood"}
    names |= {"contrastive/negative_entropy_correct", "contrastive/sound_auroc_negative_entropy"}
    names |= {f"conspo/{name}" for name in ("objective", "p_correct", "score_gap", "live_groups", "score_staleness")}
    for row, reference in zip(first["log"], one["log"], strict=True):
        for name in names & reference.keys():
            assert row[name] == (pytest.approx(reference[name], abs=2e-5) if reference[name] is not None else None)


@pytest.mark.parametrize("case", ["conspo", "conspo_parts"])
def test_conspo_trains_the_policy_of_one_process(case, launched, alone):
    """A group is contrasted as a whole, whichever micro-batches and processes its rollouts come to be in."""
    reports = launched("ddp")(case)
    start = distributed_worker.tiny_model().parameters()
    for here, there, weight, first in zip(
        *(report["weights"] for report in (*reports, alone(case))), start, strict=True
    ):
        assert torch.equal(here, there)
        torch.testing.assert_close(here, weight, atol=1e-5, rtol=1e-5)
        assert (here - first).abs().max() > 1e-4
    assert any(0 < row.get("conspo/live_groups", 0) for row in reports[0]["log"])


def test_the_completions_table_is_that_of_one_process(launched, alone):
    """Each rollout's agreement stands beside it, whichever process it was on."""
    assert alone("agreement") and launched("ddp")("agreement")
    tables = [
        pd.concat(
            pd.read_parquet(path) for path in sorted((run.folder / "agreement" / "completions").glob("*.parquet"))
        )
        for run in (launched("ddp"), alone)
    ]
    assert tables[0].completion.astype(str).tolist() == tables[1].completion.astype(str).tolist()
    np.testing.assert_allclose(*(table.agreement for table in tables), atol=2e-5)
    assert 0 < tables[0].agreement.notna().sum() < len(tables[0])


def test_traffic_grows_with_embeddings_not_with_hidden_states(launched):
    """H = 16, D = 8, and 6 or 12 rollouts on each process: 4 bytes for each number of an embedding, 1 for its
    validity."""
    usual, wide = (launched("ddp")(case)[0]["seen"][0]["bytes"] for case in ("decode", "wide"))
    assert wide - usual == 6 * (4 * 8 + 1)
    head_gradient, fingerprint, pairs_of_states = 4 * 16 * 8, 8, 4 * 4
    assert usual == 6 * (4 * 8 + 1) + head_gradient + fingerprint + pairs_of_states


@pytest.mark.parametrize("when", ["", "_at_save"])
def test_another_head_stops_the_run(when, launched):
    """At the next generation batch, and at a save."""
    for report in launched("ddp")(f"other_head{when}"):
        assert report["error"].startswith("`contrastive_head` on process [1] is not that of process 0")
    assert not list(launched("ddp").folder.glob("other_head*/checkpoint-*/trainer_state.json"))


def test_heads_that_differ_by_rounding_are_made_equal(launched):
    """The run is the one in which they never differed, but for a metric that says so."""
    rounded, whole = launched("ddp")("rounded_head"), launched("ddp")("whole")
    for here, there in zip(rounded, whole, strict=True):
        for name in ("weights", "moments"):
            assert all(torch.equal(*pair) for pair in zip(here[name], there[name], strict=True))
        assert torch.equal(here["head"], there["head"]) and here["random"] == there["random"]
        assert all(torch.equal(a["column"], b["column"]) for a, b in zip(here["seen"], there["seen"], strict=True))
    differed = [row.pop("contrastive/heads_differed", None) for row in rounded[0]["log"]]
    assert differed == [None, None, 1.0, 1.0]  # at the third batch and, once logged, at the save that follows step 6
    assert rounded[0]["log"] == whole[0]["log"]


def assert_same_run(resumed, whole):
    """Bit for bit: weights, head, rewards, random states, what was logged."""
    assert all(torch.equal(here, there) for here, there in zip(resumed["weights"], whole["weights"], strict=True))
    assert torch.equal(resumed["head"], whole["head"])
    assert resumed["random"] == whole["random"]
    n = len(resumed["seen"])
    assert 0 < n < len(whole["seen"])
    for here, there in zip(resumed["seen"], whole["seen"][-n:], strict=True):
        assert torch.equal(here["rewards"], there["rewards"]) and torch.equal(here["column"], there["column"])
    assert len(resumed["log"]) == len(whole["log"])
    for here, there in zip(resumed["log"], whole["log"], strict=True):
        # The first mean of the loss after a stop between two logs leaves out the steps before: transformers' own.
        unequal = {name for name in there if here[name] != there[name]}
        assert unequal <= ({"loss"} if there["step"] == 4 else set())


RESUMES = [(backend, case) for backend in MORE_CASES for case in MORE_CASES[backend] if "@" in case]


@pytest.mark.parametrize("backend, case", by_backend(RESUMES))
def test_resumed_runs_are_the_uninterrupted_run(backend, case, launched):
    """From the middle and the end of a generation batch; after a process was killed in a step, and in a save."""
    whole = launched(backend)("whole")
    assert whole[0]["log"][0]["loss"] == 0  # a frozen warm-up is part of it
    for here, there in zip(launched(backend)(case), whole, strict=True):
        assert_same_run(here, there)


@pytest.mark.parametrize("case", ["continuous_batching", "bf16_full_eval"])
def test_copies_in_low_precision_leave_gradients_averaged(case, launched):
    """A parameter that is cast and cast back loses the hook by which DDP averages its gradients."""
    first, second = launched("ddp")(case)
    for here, there in zip(first["weights"], second["weights"], strict=True):
        assert here.dtype == torch.float32 and torch.equal(here, there)
    start = list(tiny_model().parameters())
    assert any((here - before).abs().max() > 1e-4 for here, before in zip(first["weights"], start, strict=True))


def test_accuracy_does_not_count_what_fills_up_the_last_batch(launched):
    for report in launched("ddp")("accuracy"):
        assert report["metrics"]["eval_rewards/first_prompt/mean"] == pytest.approx(1 / 3)


@pytest.mark.slow
def test_zero3_fetches_ahead_in_training_whatever_our_pass_does(launched):
    """With rollouts from elsewhere; where the policy decodes, trl 1.16 has DeepSpeed forget the order of layers."""
    for report in launched("zero3")("from_elsewhere"):
        assert report["fetched_ahead"] == [False, True, True, True, True, True]


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_after_the_deadline(tmp_path):
    start = time.monotonic()
    done = launch("ddp_5s", tmp_path, "hang")
    assert done.returncode != 0 and time.monotonic() - start < 55  # the reward function sleeps for a minute
    assert "Timed out waiting 5000ms" in done.stdout, done.stdout[-5000:]


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_gpus(tmp_path):
    """The same over NCCL, where rollouts are those of the device: alike between the processes, and over a stop."""
    done = launch("nccl", tmp_path, "decode", "fused", "whole", "whole@whole/checkpoint-3")
    assert done.returncode == 0, done.stdout[-5000:]
    reports = {
        case: [
            torch.load(tmp_path / f"{case.replace('/', '_')}.{process}.pt", map_location="cpu") for process in (0, 1)
        ]
        for case in ("decode", "fused", "whole", "whole@whole/checkpoint-3")
    }
    for first, second in reports.values():
        assert first["world_size"] == 2 and first["wrapper"] == "DistributedDataParallel"
        for here, there in zip(first["seen"], second["seen"], strict=True):
            assert torch.equal(here["column"], there["column"]) and torch.equal(here["head"], there["head"])
    assert torch.equal(reports["whole"][0]["head"], reports["whole@whole/checkpoint-3"][0]["head"])
