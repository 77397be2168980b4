"""Many independent jobs on a few worker processes, each written down whole or not at all, so that a stopped run goes
on.

A finished job is a folder with `result.json` (settings and result) and the files that the job wrote. It is made under
the name `<folder>.partial` and renamed when complete: after a power cut or `kill -9`, what is there under its own name
is whole. A finished job is not run again; one with other settings than those asked for is an error, never a result.
"""

import json
import math
import multiprocessing
import os
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn


RESULT = "result.json"


class SettingsDiffer(ValueError):
    """A finished job was run with other settings than those asked for."""


@dataclass(frozen=True)
class Job:
    """
    One job.

    Attributes:
        name (`str`): What to call it.
        folder (`Path`): Where it goes when it is complete.
        settings (`dict[str, Any]`): All that its result depends on, as JSON can hold it.
        steps (`int`): Steps it takes, to show progress.
        work (`Callable[[Path, Callable[..., None]], Any]`):
            Does the job: gets a folder to write files into and a function to call after each step, returns what JSON
            can hold. Must be importable in another process (a function of a module, or a `functools.partial` of one).
    """

    name: str
    folder: Path
    settings: dict[str, Any]
    steps: int
    work: Callable[[Path, Callable[..., None]], Any]

    @property
    def partial_folder(self) -> Path:
        return self.folder.with_name(self.folder.name + ".partial")

    @property
    def error_file(self) -> Path:
        return self.folder.with_name(self.folder.name + ".error.txt")

    def result(self) -> Any:
        """
        Return the result of the finished job, None if it is not finished.

        Raises:
            SettingsDiffer: it was run with other settings.
        """
        path = self.folder / RESULT
        if not path.exists():
            return None
        written = json.loads(path.read_text())
        wanted = json.loads(_to_json(self.settings))
        if differing := list(_differences(written["settings"], wanted)):
            raise SettingsDiffer(
                f"{path} was made with other settings than those asked for: {'; '.join(differing)}. Ask for the same "
                f"settings, choose another `--output_dir`, or delete {self.folder} to have it made again."
            )
        return written["result"]


def _differences(written: Any, wanted: Any, name: str = "") -> Iterable[str]:
    if isinstance(written, dict) and isinstance(wanted, dict):
        for key in written.keys() | wanted.keys():
            yield from _differences(written.get(key), wanted.get(key), f"{name}.{key}" if name else key)
    elif written != wanted:
        yield f"{name} is {written!r} there, and {wanted!r} was asked for"


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """Write `content` in one go: the file is the old one or the new one, never half of it. NaN is written as null."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(_to_json(content, indent))
    os.replace(partial, path)


def _to_json(content: Any, indent: int | None = None) -> str:
    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(entry) for key, entry in value.items()}
        if isinstance(value, (list, tuple)):
            return [clean(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(clean(content), indent=indent, allow_nan=False)


# ---------------------------------------------------------------------------------------------------------------------
# In a worker process
# ---------------------------------------------------------------------------------------------------------------------


class _Stopped(Exception):
    """The run was stopped; the job is given up."""


class _Worker:
    """What a worker process shares with the others: steps done so far, and whether to stop."""

    steps: Any
    stop: Any


def _start_worker(steps: Any, stop: Any, prepare: Callable[[], None] | None) -> None:
    _Worker.steps, _Worker.stop = steps, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of the terminal; the main one decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if prepare is not None:
        prepare()


def _end_with_parent() -> None:
    """A main process that was killed cannot stop its workers: without this they would wait for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _perform(job: Job) -> str | None:
    """Do one job. Returns the last line of its traceback if it failed."""
    n_steps = 0

    def advance(n: int) -> None:
        with _Worker.steps.get_lock():
            _Worker.steps.value += n

    def on_step(*_) -> None:
        nonlocal n_steps
        if _Worker.stop.is_set():
            raise _Stopped
        if n_steps < job.steps:
            n_steps += 1
            advance(1)

    try:
        shutil.rmtree(job.partial_folder, ignore_errors=True)
        job.partial_folder.mkdir(parents=True)
        result = job.work(job.partial_folder, on_step)
        write_json(job.partial_folder / RESULT, {"name": job.name, "settings": job.settings, "result": result})
        os.replace(job.partial_folder, job.folder)
        job.error_file.unlink(missing_ok=True)
        return None
    except _Stopped:
        shutil.rmtree(job.partial_folder, ignore_errors=True)
        return "stopped"
    except Exception as error:
        job.error_file.write_text(traceback.format_exc())
        shutil.rmtree(job.partial_folder, ignore_errors=True)
        return "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
    finally:
        advance(job.steps - n_steps)


# ---------------------------------------------------------------------------------------------------------------------
# In the main process
# ---------------------------------------------------------------------------------------------------------------------


class JobPool:
    """
    Worker processes that do jobs, and go on from one to the next without starting anew.

    Args:
        num_processes (`int`): Worker processes; they start when the first jobs come.
        console (`Console`): Where progress is shown.
        prepare (`Callable[[], None]`, *optional*): Called once in each worker process before its first job.
    """

    def __init__(self, num_processes: int, console: Console, prepare: Callable[[], None] | None = None):
        context = multiprocessing.get_context("spawn")
        self._console = console
        self._steps, self._stop = context.Value("q", 0), context.Event()
        arguments = (self._steps, self._stop, prepare)
        self._pool = ProcessPoolExecutor(num_processes, context, initializer=_start_worker, initargs=arguments)

    def __enter__(self) -> "JobPool":
        return self

    def __exit__(self, error_type, *_) -> None:
        if error_type is not None:
            self._stop.set()  # each worker sees it at its next step
        self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: list[Job], title: str) -> list[Job]:
        """
        Do those of the jobs that are not finished, in order. Returns the ones that failed; their tracebacks are in
        files.

        Raises:
            SettingsDiffer: a finished job was run with other settings; nothing is run then.
            RuntimeError: a worker process died.
        """
        unfinished = [job for job in jobs if job.result() is None]
        n_done, failed = len(jobs) - len(unfinished), []
        steps_before = self._steps.value - sum(job.steps for job in jobs) + sum(job.steps for job in unfinished)
        columns = "{task.description}", BarColumn(), TaskProgressColumn(), "{task.fields[jobs]}", "·"
        columns += TimeElapsedColumn(), "·", TimeRemainingColumn(), TextColumn("left")
        with Progress(*columns, console=self._console, speed_estimate_period=1800) as progress:
            bar = progress.add_task(title, total=sum(job.steps for job in jobs), jobs="")
            pending = {self._pool.submit(_perform, job): job for job in unfinished}
            while True:
                count = f"{n_done}/{len(jobs)} done" + (f", {len(failed)} failed" if failed else "")
                progress.update(bar, completed=self._steps.value - steps_before, jobs=count)
                if not pending:
                    break
                for future in wait(pending, timeout=0.5, return_when=FIRST_COMPLETED).done:
                    job, error = pending.pop(future), self._outcome(future)
                    n_done += error is None
                    if error is not None:
                        failed.append(job)
                        progress.console.print(f"[red]{job.name} failed:[/] {escape(error)}", highlight=False)
                    elif not self._console.is_terminal:  # no bar there
                        progress.console.print(f"{n_done}/{len(jobs)}  {job.name}", highlight=False)
        for job in failed:
            self._console.print(f"[red]{job.name} failed.[/] Its traceback: {job.error_file}", highlight=False)
        return failed

    @staticmethod
    def _outcome(future) -> str | None:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "A worker process died, perhaps for want of memory: lower `--num_processes`. Jobs that are finished are kept; "
                "the same command goes on with the others."
            ) from error
