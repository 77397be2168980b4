"""A bounded pool of worker processes with a deadline for each task.

The workers are plain subprocesses ([`worker`]) and not `multiprocessing` ones: those would import the training script,
and with it torch, and could not be started from a daemon or while a script is being imported. Time is kept by the
caller, who kills what is late; no signals are used, so it works in any thread.
"""

import atexit
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any


logger = logging.getLogger(__name__)

START_DEADLINE = 120.0  # seconds for a worker to import sympy, on a machine that may be very busy
MAX_FAILED_STARTS = 3  # in a row, before it is an error
MAX_BATCH = 32  # tasks sent to a worker at once
MAX_BATCH_BYTES = 32_000  # half of a pipe's buffer, so that sending never blocks
MAX_WORKERS = 8

TIMED_OUT, DIED = "timed_out", "worker_died"

Task = tuple[str, ...]


@dataclass
class Outcome:
    """Results of the tasks, in their order: `True`, `False`, or `None` if the task was given up; `failures`: which
    were, and why."""

    results: list[bool | None]
    failures: dict[int, str] = field(default_factory=dict)


class WorkerPool:
    """
    Pool of worker processes. They start when first needed and end with the pool or with this process.

    Args:
        num_workers (`int`, *optional*): Processes, at most. Default: the cores this process may use, divided by the
            processes
            of the node (`LOCAL_WORLD_SIZE`), at least 1 and at most 8.
        deadline (`float`, *optional*, defaults to 5.0): Seconds a task may take. Later ones are given up, their worker
            killed and replaced.

    Raises:
        ValueError: `num_workers` below 1, `deadline` not above 0.
        RuntimeError: From `run`, if workers cannot start: no reward is better than a wrong one.
    """

    def __init__(self, num_workers: int | None = None, deadline: float = 5.0):
        if num_workers is not None and num_workers < 1:
            raise ValueError(
                f"`num_workers` is {num_workers}, but a pool needs at least 1, or None to go by the cores."
            )
        if not deadline > 0:
            raise ValueError(f"`deadline` is {deadline}, but must be above 0 seconds.")
        self.num_workers = num_workers or default_num_workers()
        self.deadline = deadline
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._failed_starts = 0  # in a row

    def run(self, tasks: Sequence[Task]) -> Outcome:
        """Run tasks, each the name of one and its strings (`worker.main` lists them). One call at a time, others
        wait."""
        if os.getpid() != self._pid:
            raise RuntimeError(
                "A WorkerPool belongs to the process that made it. Call `shared_pool()` for one of this process."
            )
        outcome = Outcome([None] * len(tasks))
        waiting = deque(enumerate(tasks))
        with self._lock:
            try:
                while waiting or any(worker.tasks for worker in self._workers):
                    self._hand_out(waiting)
                    self._collect(waiting, outcome)
            finally:
                for worker in [
                    worker for worker in self._workers if worker.tasks
                ]:  # interrupted: nobody reads its replies
                    self._remove(worker)
        return outcome

    def close(self) -> None:
        """End all workers. The next `run` starts new ones."""
        with self._lock:
            for worker in list(self._workers):
                self._remove(worker)

    def _hand_out(self, waiting: deque) -> None:
        """Give waiting tasks to idle workers, starting workers while there are fewer than useful."""
        for worker in [worker for worker in self._workers if worker.idle and worker.process.poll() is not None]:
            self._remove(worker)  # ended while it had nothing to do: no task is to blame
        while waiting and len(self._workers) < self.num_workers and sum(w.idle for w in self._workers) < len(waiting):
            if any(worker.starting for worker in self._workers) and len(waiting) < MAX_BATCH:
                break  # few tasks: one worker does them before another has started
            self._workers.append(_Worker(self.deadline))
        for worker in self._workers:
            if worker.idle and waiting:
                worker.send(waiting, at_most=max(1, len(waiting) // (2 * self.num_workers)))

    def _collect(self, waiting: deque, outcome: Outcome) -> None:
        """Wait for replies, or for the first deadline; replace workers that are late or dead."""
        busy = [worker for worker in self._workers if worker.busy]
        timeout = min(worker.due for worker in busy) - time.monotonic()
        ready = wait([worker.output for worker in busy], max(timeout, 0.0))
        for worker in busy:
            failure = None
            if worker.output in ready:
                failure = None if worker.receive(outcome.results) else DIED
                self._failed_starts = self._failed_starts if worker.starting else 0
            elif time.monotonic() >= worker.due:
                failure = TIMED_OUT
            if failure:
                self._remove(worker)
                self._give_up(worker, failure, waiting, outcome)

    def _give_up(self, worker: "_Worker", failure: str, waiting: deque, outcome: Outcome) -> None:
        """The task a worker was at has failed; the ones it had not begun go back."""
        if worker.starting:
            self._failed_starts += 1
            if not worker.error and self._failed_starts < MAX_FAILED_STARTS:
                return
            reason = worker.error or f"it {'took too long' if failure == TIMED_OUT else 'ended'} before it was ready"
            raise RuntimeError(
                f"A worker process for checking answers cannot start: {reason}. Try `{sys.executable} -m reward_funcs.worker 5` "
                "in this environment; math-verify must be installed."
            )
        index, task = worker.tasks.popleft()
        outcome.failures[index] = failure
        waiting.extendleft(reversed(worker.tasks))
        worker.tasks.clear()
        self._workers.append(_Worker(self.deadline))  # starts in the background, for now or for the next call
        logger.debug("%s: %s", failure, task)

    def _remove(self, worker: "_Worker") -> None:
        self._workers.remove(worker)
        worker.kill()


class _Worker:
    """One worker process: the tasks it was sent, and when it has to reply next (`due`, in monotonic seconds)."""

    def __init__(self, deadline: float):
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("worker.py")), str(deadline), *_library_folders()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {"PYTHONHASHSEED": "0"},
            bufsize=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None  # pipes, as asked for
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self.output = self._stdout.fileno()
        self.deadline = deadline
        self.due = time.monotonic() + START_DEADLINE
        self.starting = True
        self.error: str | None = None
        self.tasks: deque[tuple[int, Task]] = deque()
        self._unread = b""

    @property
    def busy(self) -> bool:
        return self.starting or bool(self.tasks)

    @property
    def idle(self) -> bool:
        return not self.busy

    def send(self, waiting: deque, at_most: int) -> None:
        """Take tasks from the left of `waiting` and send them."""
        texts: list[str] = []
        size = 0
        while waiting and len(texts) < min(at_most, MAX_BATCH):
            text = json.dumps(waiting[0][1])
            if texts and size + len(text) > MAX_BATCH_BYTES:
                break
            texts.append(text)
            size += len(text)
            self.tasks.append(waiting.popleft())
        self.due = time.monotonic() + self.deadline
        try:
            self._stdin.write(f"[{','.join(texts)}]\n".encode())
        except BrokenPipeError:
            pass  # it has died, which the next `receive` finds

    def receive(self, results: list[bool | None]) -> bool:
        """Read what has arrived into `results`. Returns whether the worker is still there."""
        data = os.read(self.output, 65536)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            reply = json.loads(line)
            if isinstance(reply, dict):
                self.error = reply["error"]
            elif self.starting:
                self.starting = False
            else:
                index, _ = self.tasks.popleft()
                results[index] = reply
        if lines:
            self.due = time.monotonic() + self.deadline
        return bool(data)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._stdin.close()
        self._stdout.close()


def _library_folders() -> list[str]:
    """
    Where a worker may find math-verify if it is not installed: PYTHONPATH, and where this process looks, but for the
    working directory, whose files have names of their own making.
    """
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    others = [folder for folder in sys.path if folder != os.getcwd()]
    return [folder for folder in dict.fromkeys([*named, *others]) if folder]


def default_num_workers() -> int:
    """
    Cores this process may use, divided by the training processes of this node, from 1 to 8. torchrun and accelerate
    say how many there are in `LOCAL_WORLD_SIZE`, DeepSpeed's launchers in `LOCAL_SIZE`, Open MPI in its own.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    said = [os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE")]
    local_processes = max(1, int(next(filter(None, said), 1)))
    return max(1, min(cores // local_processes, MAX_WORKERS))


_shared: WorkerPool | None = None
_settings: dict = {}
_shared_lock = threading.Lock()


def shared_pool() -> WorkerPool:
    """The pool of this process, made at the first call."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = WorkerPool(**_settings)
        return _shared


def ask_pool(task: str, rows: Sequence[tuple]) -> tuple[dict[tuple, Any], Counter]:
    """
    What the shared pool says of the arguments of a task, row by row. Equal rows are asked once; no row starts no pool.

    Returns:
        The verdict on each different row, `None` where it failed; and how many rows failed, by reason.
    """
    counts, failures = Counter(rows), Counter[str]()
    if not counts:
        return {}, failures
    outcome = shared_pool().run([(task, *row) for row in counts])
    different = list(counts)
    for index, reason in outcome.failures.items():
        failures[reason] += counts[different[index]]
    return dict(zip(different, outcome.results, strict=True)), failures


def configure_pool(num_workers: int | None = None, deadline: float = 5.0) -> None:
    """
    Set how many worker processes check answers, and how many seconds an answer may take, for all rewards of this
    process.

    Args and errors: [`WorkerPool`].
    """
    global _shared, _settings
    pool = WorkerPool(num_workers, deadline)
    with _shared_lock:
        old, _shared, _settings = _shared, pool, {"num_workers": num_workers, "deadline": deadline}
    if old is not None:
        old.close()


def _forget_after_fork() -> None:
    """A forked child must neither use nor end the workers of its parent: it makes its own."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


@atexit.register
def _close_at_exit() -> None:
    if _shared is not None and _shared._pid == os.getpid():
        _shared.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)
