"""What a score has to know of a task's text: where steps end, which numbers they state, where the answer is."""

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from .. import chain, word_problems


Span = tuple[int, int]


@dataclass(frozen=True)
class Task:
    """
    A task whose steps a program checks.

    Attributes:
        build_dataset (`Callable[..., Dataset]`): Size and seed in, rows with `prompt` and `problem` out.
        check (`Callable[[str, str], chain.Check]`): Problem and completion in, what is right of it out.
        marker (`str`): What stands before the answer. The working is what is before the last one.
        separator (`str`): What goes between marker and answer, and belongs to the answer's tokens.
        step (`re.Pattern`): A step of the working, its end included.
        stated (`re.Pattern`): Inside a step, what is worked out: each group is a number that the step states.
    """

    build_dataset: Callable[..., Dataset]
    check: Callable[[str, str], chain.Check]
    marker: str
    separator: str
    step: re.Pattern
    stated: re.Pattern

    def working_of(self, completion: str) -> str:
        """What stands before the answer's marker; all of it if there is none."""
        working, marker, _ = completion.rpartition(self.marker)
        return working if marker else completion

    def answer_of(self, completion: str) -> str:
        """The answer, with the separator before it, as its tokens have it."""
        return self.separator + completion.rpartition(self.marker)[2].strip()

    def steps_of(self, completion: str) -> list[Span]:
        """Where each step of the working starts and ends."""
        return [match.span() for match in self.step.finditer(self.working_of(completion))]

    def stated_of(self, completion: str) -> list[Span]:
        """Where each number that a step states starts and ends."""
        return [
            match.span(group)
            for start, end in self.steps_of(completion)
            for match in self.stated.finditer(completion, start, end)
            for group in range(1, match.re.groups + 1)
        ]

    def cut(self, completion: str, n_steps: int) -> str:
        """The first `n_steps` steps, and the answer asked for at once."""
        steps = self.steps_of(completion)
        return completion[: steps[n_steps - 1][1] if n_steps else 0] + self.marker

    def changed(self, completion: str, span: Span, rng: random.Random) -> str:
        """The completion with another number of as many digits at `span`, up to the answer."""
        start, end = span
        old, digits = int(completion[start:end]), end - start
        lowest = 10 ** (digits - 1) if digits > 1 else 0
        new = rng.choice([number for number in range(lowest, min(10**digits, lowest + 200)) if number != old])
        whole = completion[:start] + str(new) + completion[end:]
        return self.working_of(whole) + self.marker

    def changed_last(self, completion: str, rng: random.Random) -> str | None:
        """Cut after the step that states the last number, with another number there. None if no step states one."""
        spans = self.stated_of(completion)
        if not spans:
            return None
        last = next(n for n, (_, end) in enumerate(self.steps_of(completion), 1) if end >= spans[-1][1])
        return self.changed(self.cut(completion, last) + self.answer_of(completion), spans[-1], rng)


TASKS: dict[str, Task] = {
    "chain": Task(
        build_dataset=lambda size, seed: chain.build_dataset(size, seed, split="test", **chain.VARIANTS["test"]),
        check=chain.check,
        marker="#",
        separator="",
        step=re.compile(r"[^;]*;"),
        stated=re.compile(r"=([0-9])r([0-9])"),
    ),
    "word_problems": Task(
        build_dataset=lambda size, seed: word_problems.build_dataset(size, seed, split="test"),
        check=word_problems.check,
        marker="Answer:",
        separator=" ",
        step=re.compile(r"[^\n]*[^\s][^\n]*\n"),
        stated=re.compile(r"=\s*([0-9]{1,9})"),
    ),
}


def check_all(task: Task, problems: Sequence[str], completions_PG: Sequence[Sequence[str]]) -> list[list[Any]]:
    """The checker's finding for each completion of each problem."""
    return [
        [task.check(problem, completion) for completion in completions]
        for problem, completions in zip(problems, completions_PG, strict=True)
    ]
