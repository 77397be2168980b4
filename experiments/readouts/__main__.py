"""`python -m experiments.readouts`: score frozen policies, or go on with it, and write the page."""

import os
import sys
from pathlib import Path

from ..command import console, run_command
from ..faithfulness.jobs import JobPool, SettingsDiffer
from ..faithfulness.study import prepare_worker
from .report import write_report
from .study import STAGES, Settings, jobs_of, policy_jobs, sources


DESCRIPTION = "Which scores of a frozen policy's rollouts tell sound from lucky ones, and what they add to likelihood."


def main(argv: list[str] | None = None) -> int:
    """Run the experiment. Returns the exit status: 0, 1 if a job failed, 130 if it was stopped."""
    return run_command("readouts", DESCRIPTION, Settings, experiment, argv, (SettingsDiffer, FileNotFoundError))


def experiment(settings: Settings) -> int:
    jobs = {source.name: jobs_of(settings, source) for source in sources(settings)}
    if not settings.report_only:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)  # for the worker process
        with JobPool(1, console, prepare_worker) as pool:
            if pool.run(policy_jobs(settings), "Policies"):
                return 1
            for stage in STAGES:
                if pool.run([of_policy[stage] for of_policy in jobs.values()], stage.capitalize()):
                    return 1
    finished = {name: of_policy for name, of_policy in jobs.items() if of_policy[STAGES[-1]].result() is not None}
    if not finished:
        console.print("No policy is finished: there is nothing to report.")
        return 1
    with console.status("Writing the page"):
        page = write_report(finished, Path(settings.output_dir), settings.publish)
    console.print(f"{len(finished)} of {len(jobs)} policies are in the page: {page}", highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
