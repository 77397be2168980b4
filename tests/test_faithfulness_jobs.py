"""The jobs of the faithfulness experiment, on stubs: finished ones are kept whatever happens, half ones never."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import faithfulness_stub as stub
import pytest
from rich.console import Console

from experiments.faithfulness.jobs import JobPool, SettingsDiffer, write_json


ROOT = Path(__file__).parents[1]


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
    process = subprocess.Popen(
        [sys.executable, stub.__file__, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
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
    write_json(path, {"a": [1.5, math.nan, math.inf], "b": "text"})
    assert json.loads(path.read_text()) == {"a": [1.5, None, None], "b": "text"}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text())["b"] == "text"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.json"]
