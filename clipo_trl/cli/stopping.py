"""Ctrl-C, and a scheduler's SIGTERM: the running optimizer step is finished, a checkpoint is saved, and the way to go
on is told. A second signal stops at once."""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


SIGNALS = (signal.SIGINT, signal.SIGTERM)
FORWARDED = 2.0  # seconds in which launchers of several processes may send on what the terminal has sent already
RESUME = "resume_from_checkpoint"


class StopCallback(TrainerCallback):
    """
    Ends a training after the optimizer step in which a signal arrived, with a checkpoint, on all processes alike. The
    handlers are there in a `with` block; in another thread than the main one there are none.

    Args:
        accelerator (`Accelerator`): the trainer's, to ask the other processes.

    Attributes:
        stopped (`int`): number of the signal that ended the training; 0 if it went its way.
    """

    def __init__(self, accelerator: Any):
        self.accelerator = accelerator
        self.received, self.stopped = 0, 0
        self._first = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopCallback":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
            _entered.append(self)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            _entered.remove(self)
        self._before = {}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if self.accelerator.num_processes == 1 or time.monotonic() - self._first > FORWARDED:
                self.__exit__()
                signal.raise_signal(number)
        else:
            self.received, self._first = number, time.monotonic()
            if self.accelerator.is_main_process:  # without Python's buffers, which the signal may have interrupted
                name = signal.Signals(number).name
                os.write(2, f"\n{name}: saving after this optimizer step; once more stops at once.\n".encode())

    def on_step_end(self, args, state, control, **kwargs):
        received = self.received
        if self.accelerator.num_processes > 1:  # one number a process; none may stop alone
            numbers = self.accelerator.gather(torch.tensor([received], device=self.accelerator.device))
            received = int(numbers.max())
        if received and state.global_step < state.max_steps:
            self.stopped = received
            control.should_save = control.should_training_stop = True
            if args.save_total_limit == 1:  # of which the best checkpoint takes one, at the end of `train`
                args.save_total_limit = 2


_entered: list[StopCallback] = []


def _leave_in_child() -> None:
    """A forked child, of a reward's say, has no training to save. Its handlers are put back before it does anything:
    one in Python would wait until the code in C returns that whoever terminates the child had enough of."""
    for stop in list(_entered):
        stop.__exit__()


if hasattr(os, "register_at_fork"):  # where processes fork
    os.register_at_fork(after_in_child=_leave_in_child)


def describe_stop(stop: StopCallback, trainer: Any, argv: Sequence[str] | None) -> str:
    """What has happened, and the command that goes on."""
    args, step = trainer.args, trainer.state.global_step
    checkpoint = str(Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{step}")
    exact = ", of the model only (`save_only_model`), so not bit for bit" if args.save_only_model else ""
    launcher = " the same launcher and" if args.world_size > 1 else ""
    return (
        f"Stopped by {signal.Signals(stop.stopped).name} after step {step} of {trainer.state.max_steps}, with a checkpoint. "
        f"Go on{exact} with{launcher}: {command_to_go_on(argv, checkpoint)}"
    )


def command_to_go_on(argv: Sequence[str] | None, checkpoint: str) -> str:
    """The command that was given, `argv` its words (default: the command line's), now from this checkpoint."""
    program = "clipo train" if argv is not None else sys.argv[0]
    if program.endswith(".py"):
        program = f"python {shlex.quote(program)}"
    kept, skips = [], False
    for word in sys.argv[1:] if argv is None else argv:
        if word.startswith("--"):
            skips = word[2:].partition("=")[0].replace("-", "_") == RESUME
        if not skips:
            kept.append(word)
    return " ".join([program, *map(shlex.quote, kept), f"--{RESUME}", shlex.quote(checkpoint)])
