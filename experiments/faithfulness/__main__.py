"""`python -m experiments.faithfulness`: run a study, or go on with it, and write its report."""

import os
import sys
from pathlib import Path

from ..command import console, run_command
from ..language_model import FetchError
from .jobs import JobPool, SettingsDiffer
from .report import write_report
from .study import Settings, arm_jobs, check_models, collect, policy_jobs, prepare_worker


DESCRIPTION = "Train GRPO, CLIPO and controls on steps that a program checks, and compare their lucky rollouts."


def main(argv: list[str] | None = None) -> int:
    """Run the experiment. Returns the exit status: 0, 1 if a run failed, 130 if it was stopped."""
    faults = (SettingsDiffer, FileNotFoundError, FetchError)
    return run_command("faithfulness", DESCRIPTION, Settings, experiment, argv, faults)


def experiment(settings: Settings) -> int:
    policies = policy_jobs(settings)
    runs = arm_jobs(settings, policies)
    failed = []
    if not settings.report_only:
        check_models(settings)
        os.environ["OMP_NUM_THREADS"] = "1"  # for the worker processes: one core each
        with JobPool(settings.num_processes, console, prepare_worker) as pool:
            if failed := pool.run(list(policies.values()), "Starting policies"):
                return 1  # there is nothing to train
            failed = pool.run(list(runs.values()), "Runs")

    study = collect(settings, policies, runs)
    with console.status("Writing the report"):
        report = write_report(study, Path(settings.output_dir))
    console.print(f"{study.n_runs} of {len(runs)} runs are in the report: {report}", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
