"""The process that does computer algebra: `python -m reward_funcs.worker`, started by [`pool.WorkerPool`].

One JSON line in, a list of tasks; one JSON line out for each task, as soon as it is done. It holds sympy and math-verify, not torch,
and ends with its standard input, so that no worker outlives the trainer; one that hangs then is ended by the alarm that is
set for each task. It never has to keep time: its parent does, and kills it.
"""

import contextlib
import json
import logging
import os
import resource
import signal
import sys


MAX_MEMORY = 2 * 2**30  # bytes of address space; a task that needs more fails
ALARM_DELAY = 5  # seconds after the deadline at which a worker without a parent dies


def main(deadline: float) -> None:
    """Answer tasks until standard input ends. `deadline`: seconds a task may take."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    with contextlib.suppress(ValueError, OSError):  # not every system can limit it
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY, MAX_MEMORY))
    replies = os.fdopen(os.dup(1), "w", buffering=1)  # the replies' own, whatever parsers print
    os.dup2(2, 1)
    try:
        from .comparison import equal_answers, is_comparable
        from .symbolic import equal_expressions, parse_expression
    except Exception as error:
        replies.write(json.dumps({"error": f"{type(error).__name__}: {error}"}) + "\n")
        return
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    tasks = {
        "equal": lambda gold, answer: equal_answers(gold, answer, equal_expressions),
        "comparable": lambda gold: is_comparable(gold, lambda part: parse_expression(part) is not None),
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


if __name__ == "__main__":
    main(float(sys.argv[1]))
