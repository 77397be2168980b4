"""`python -m experiments.ablations`: run a grid of arms, or go on with it, and write the comparison."""

import os
import sys
from dataclasses import asdict
from pathlib import Path

from reward_funcs.errors import UsageError

from ..command import console, run_command
from ..faithfulness.jobs import JobPool, SettingsDiffer
from .grid import Settings, check_arms, jobs_of, prepare_worker, read_arms
from .report import final_value, write_report


DESCRIPTION = "Train arms that differ by files of fields, and compare them with a base in pairs of the same seed."


def main(argv: list[str] | None = None) -> int:
    """Run the grid. Returns the exit status: 0, 1 if a run failed, 130 if it was stopped."""
    return run_command("ablations", DESCRIPTION, Settings, run_grid, argv, (SettingsDiffer,), (UsageError, ValueError))


def run_grid(settings: Settings) -> int:
    arms, same = read_arms(settings.base, settings.arms)
    jobs = jobs_of(settings, arms)
    failed = []
    if not settings.report_only:
        check_arms(arms, settings.launcher)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the worker processes: one core each
        with JobPool(settings.num_processes, console, None if settings.launcher else prepare_worker) as pool:
            failed = pool.run(list(jobs.values()), "Runs")
    results: dict[str, dict[int, dict[str, float]]] = {arm.name: {} for arm in arms}
    for (arm, seed), job in jobs.items():
        if (logged := job.result()) is not None:
            results[arm][seed] = {name: final_value(logged, name, settings.last_steps) for name in settings.metrics}
    finished = {arm: seeds for arm, seeds in results.items() if seeds}
    path = write_report(finished, settings.metrics, asdict(settings) | {"same": same}, Path(settings.output_dir))
    n_runs = sum(map(len, finished.values()))
    console.print(f"{n_runs} of {len(jobs)} runs are in the report: {path}", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
