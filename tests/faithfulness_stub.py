"""
Jobs for test_faithfulness_jobs.py; light, since each worker process imports it. As a script it works on jobs until it
is stopped: `python faithfulness_stub.py FOLDER`.
"""

import os
import signal
import sys
from pathlib import Path

from rich.console import Console

from experiments.faithfulness.jobs import Job, JobPool


STEPS = 3


def counts(folder, on_step):
    for step in range(STEPS + 1):  # one more than was said
        on_step(step)
    (folder / "file.txt").write_text("kept")
    return {"nan": float("nan"), "pid": os.getpid()}


def fails(folder, on_step):
    on_step(1)
    (folder / "file.txt").write_text("thrown away")
    raise ValueError("on purpose")


def dies(folder, on_step):
    os.kill(os.getpid(), signal.SIGKILL)


def never_ends(folder, on_step):
    """Beats: its file changes for as long as it is alive."""
    n = 0
    while True:
        on_step(n)
        (folder / "beat").write_text(str(n := n + 1))


def make_job(folder: Path, work, settings=None) -> Job:
    return Job(f"job {folder.name}", folder, settings or {"size": (1, 2)}, STEPS, work)


def main(folder: Path) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # some runners ignore it
    jobs = [make_job(folder / "first", counts), make_job(folder / "second", never_ends)]
    try:
        with JobPool(1, Console()) as pool:
            pool.run(jobs, "Jobs")
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
