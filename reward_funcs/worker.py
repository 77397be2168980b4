"""The process that does computer algebra, started by [`pool.WorkerPool`] as `python -P .../worker.py DEADLINE
FOLDER...`.

By its file and not by `-m`: nothing is then imported from the working directory, or from whatever folder this package
lies in. The standard library and the installed packages come first, and then the folders that are named.

One JSON line in, a list of tasks; one JSON line out for each task, as soon as it is done. It holds sympy and
math-verify, not torch, and ends with its standard input, so that no worker outlives the trainer; one that hangs then
is ended by the alarm that is set for each task. It never has to keep time: its parent does, and kills it.
"""

import contextlib
import importlib.util
import json
import logging
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path


MAX_MEMORY = 2 * 2**30  # bytes of address space; a task that needs more fails
ALARM_DELAY = 5  # seconds after the deadline at which a worker without a parent dies


def main(deadline: float) -> None:
    """Answer tasks until standard input ends. `deadline`: seconds a task may take."""
    for number in (signal.SIGINT, signal.SIGTERM):  # Ctrl-C and a scheduler's signal are the parent's to handle
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    replies = os.fdopen(os.dup(1), "w", buffering=1)  # the replies' own, whatever parsers print
    os.dup2(2, 1)
    try:
        from .answers import equal, is_comparable, load_algebra
        from .verl_compatible import same_as_verl

        algebra = load_algebra()
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    tasks: dict[str, Callable[..., bool | None]] = {
        "equal": lambda gold, answer: equal(gold, answer, algebra),
        "comparable": lambda gold: is_comparable(gold, algebra),
        "verl": same_as_verl,
    }
    replies.write(json.dumps("ready") + "\n")
    for line in sys.stdin:
        for name, *arguments in json.loads(line):
            signal.setitimer(signal.ITIMER_REAL, deadline + ALARM_DELAY)
            try:
                result = bool(tasks[name](*arguments))
            except Exception:  # what sympy cannot handle is not equal; MemoryError and RecursionError are among it
                result = False
            signal.setitimer(signal.ITIMER_REAL, 0)
            replies.write(json.dumps(result) + "\n")


def load_package() -> None:
    """Import the package that this file lies in, and no other of its name."""
    spec = importlib.util.spec_from_file_location("reward_funcs", Path(__file__).resolve().with_name("__init__.py"))
    assert spec is not None and spec.loader is not None  # it is a file of Python
    sys.modules["reward_funcs"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["reward_funcs"])


if __name__ == "__main__":
    sys.path += sys.argv[2:]
    if not __package__:  # `python -m reward_funcs.worker` has one
        load_package()
    importlib.import_module("reward_funcs.worker").main(float(sys.argv[1]))
