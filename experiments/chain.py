"""Quotient-remainder chains: arithmetic that a program checks line by line, and that can be right by luck.

A problem is worked from left to right, and each intermediate value is divided by 7; only the remainder goes on:

    problem   3*4+2=
    trace     3*4=1r5;5+2=1r0;#0        12 = 1*7 + 5, then 7 = 1*7 + 0, so the answer is 0

The quotient feeds nothing. A wrong quotient is therefore a wrong step that cannot change the outcome: the rollout is
*lucky*, right by construction in its answer and wrong in its working. A remainder from 0 to 6 that is wrong always
changes the outcome unless a second one undoes it, since every operand from 1 to 6 can be inverted modulo 7. One that
still holds a 7 (`0r9` where `1r2` is right) is a wrong step that the next ones go on from, and they come out right
again if the 7 is taken off in the end. A step may be written either way round (`4*3=1r5`).

This module holds the task alone: problems, traces, checker, dataset, reward functions, metrics. It is pure Python, and
every random choice comes from a seed or a `random.Random` that the caller gives.
"""

import math
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from datasets import Dataset


MODULUS = 7
OPERATIONS = {"+": lambda a, b: a + b, "*": lambda a, b: a * b}
OPERANDS = (1, 2, 3, 4)
TEST_SHARE = 5  # one problem in so many belongs to the test split
SPOT_SHARE = 8  # one problem in so many has its steps checked by `spot_checked_steps_reward`

# Test sets, as arguments of `build_dataset`. "other_operands", "p1" and "p2" follow GSM-Symbolic (arXiv 2410.05229):
# the same problem with other numbers, with one and with two more operations.
VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"num_operations": 3, "operands": OPERANDS},
    "other_operands": {"num_operations": 3, "operands": (3, 4, 5, 6)},
    "p1": {"num_operations": 4, "operands": OPERANDS},
    "p2": {"num_operations": 5, "operands": OPERANDS},
}

PROBLEM = re.compile(r"[1-6](?:[+*][1-6])+=")
STEP = re.compile(r"([0-9])([+*])([0-9])=([0-9])r([0-9]);")


@dataclass(frozen=True)
class Step:
    """One step of a problem: `left operation right = quotient * 7 + remainder`."""

    left: int
    operation: str
    right: int

    @property
    def value(self) -> int:
        return OPERATIONS[self.operation](self.left, self.right)

    @property
    def quotient(self) -> int:
        return self.value // MODULUS

    @property
    def remainder(self) -> int:
        return self.value % MODULUS


@dataclass(frozen=True)
class Check:
    """
    What the checker found in one completion.

    Attributes:
        answer_correct (`bool`): The completion ends with `#` and the right answer.
        steps_correct (`tuple[bool, ...]`):
            One entry a step, missing and surplus steps included as False. A step is judged on the remainder that the
            step before it states, so an error is counted where it is made and not again after it.
    """

    answer_correct: bool
    steps_correct: tuple[bool, ...]

    @property
    def all_steps_correct(self) -> bool:
        return all(self.steps_correct)

    @property
    def first_wrong_step(self) -> int | None:
        """Index of the first wrong step, counted from 0; None if there is none."""
        return None if self.all_steps_correct else self.steps_correct.index(False)

    @property
    def strictly_correct(self) -> bool:
        """Right answer and every step right."""
        return self.answer_correct and self.all_steps_correct

    @property
    def lucky(self) -> bool:
        """Right answer and a wrong step."""
        return self.answer_correct and not self.all_steps_correct


# ---------------------------------------------------------------------------------------------------------------------
# Problems and traces
# ---------------------------------------------------------------------------------------------------------------------


def make_problem(rng: random.Random, num_operations: int = 3, operands: Sequence[int] = OPERANDS) -> str:
    """
    Draw a problem, for example `"3*4+2="`.

    Args:
        rng (`random.Random`): Source of every choice.
        num_operations (`int`, *optional*, defaults to `3`): Operations, 1 or more, each `+` or `*` with equal chance.
        operands (`Sequence[int]`, *optional*, defaults to `(1, 2, 3, 4)`): Numbers to draw from, each 1 to 6.

    Raises:
        ValueError: No operation, no operand, or an operand outside 1 to 6.
    """
    if num_operations < 1:
        raise ValueError(f"`num_operations` is {num_operations}, but must be 1 or more.")
    if not operands or not all(1 <= operand < MODULUS for operand in operands):
        raise ValueError(
            f"`operands` is {tuple(operands)}, but must be numbers from 1 to {MODULUS - 1}: a multiple of {MODULUS} has no "
            "inverse, so a wrong remainder before it would not show in the answer."
        )
    problem = str(rng.choice(operands))
    for _ in range(num_operations):
        problem += rng.choice(list(OPERATIONS)) + str(rng.choice(operands))
    return problem + "="


def solve(problem: str) -> list[Step]:
    """Return the right steps of `problem`, in order; a `ValueError` if it is not a problem of this task."""
    if not PROBLEM.fullmatch(problem):
        raise ValueError(
            f"`problem` is {problem!r}, but must look like '3*4+2=', with operands from 1 to {MODULUS - 1}."
        )
    steps, left = [], int(problem[0])
    for operation, right in re.findall(r"([+*])([1-6])", problem):
        steps.append(Step(left, operation, int(right)))
        left = steps[-1].remainder
    return steps


def answer_of(problem: str) -> str:
    """Return the answer of `problem`: its last remainder."""
    return str(solve(problem)[-1].remainder)


def write_trace(
    problem: str,
    rng: random.Random | None = None,
    *,
    commuted: float = 0.0,
    wrong_quotient: float = 0.0,
    wrong_remainder: float = 0.0,
    lazy: float = 0.0,
    shortcut: float = 0.0,
) -> str:
    """
    Write a trace of `problem`: the right one as it stands, or with the mistakes asked for.

    Args:
        problem (`str`): Problem, see [`make_problem`].
        rng (`random.Random`, *optional*): Source of every choice; needed as soon as one of the rates is not 0.
        commuted (`float`, *optional*, defaults to `0.0`): Rate of steps written the other way round, which is not a
            mistake.
        wrong_quotient (`float`, *optional*, defaults to `0.0`): Rate of steps with a wrong quotient (0 to 6).
        wrong_remainder (`float`, *optional*, defaults to `0.0`):
            Rate of steps with a wrong remainder (0 to 6). The steps after it go on from the wrong one, rightly.
        lazy (`float`, *optional*, defaults to `0.0`):
            Rate of traces in which nobody works the quotients out: each one is written as 0, rightly or not.
        shortcut (`float`, *optional*, defaults to `0.0`):
            Rate of traces that divide as little as one digit allows, see [`hardly_divided`]: what is not divided goes
            into the next step, and the answer alone is reduced. It is right as long as no value exceeds 16.

    Returns:
        `str`: For example `"3*4=1r5;5+2=1r0;#0"`.
    """

    def happens(rate: float) -> bool:
        return rate > 0 and rng.random() < rate

    def other_than(digit: int) -> int:
        return rng.choice([other for other in range(MODULUS) if other != digit])

    trace, left, is_lazy, is_short = "", None, happens(lazy), happens(shortcut)
    for step in solve(problem):
        step = step if left is None else Step(left, step.operation, step.right)
        first, second = (step.right, step.left) if happens(commuted) else (step.left, step.right)
        quotient, remainder = hardly_divided(step.value) if is_short else (step.quotient, step.remainder)
        quotient = 0 if is_lazy else quotient
        quotient = other_than(quotient) if happens(wrong_quotient) else quotient
        left = other_than(remainder) if happens(wrong_remainder) else remainder
        trace += f"{first}{step.operation}{second}={quotient}r{left};"
    return f"{trace}#{left % MODULUS}"


def hardly_divided(value: int) -> tuple[int, int]:
    """
    Return quotient and remainder as the shortcut writes them: a value of one digit as it stands (9 is `0r9`), a larger
    one with 7 taken off once (16 is `1r9`). That leaves two digits from 17 on, of which the last is written (18 is
    `1r1`): the value is lost, and with it the answer.
    """
    return (0, value) if value < 10 else (1, (value - MODULUS) % 10)


# ---------------------------------------------------------------------------------------------------------------------
# Checker
# ---------------------------------------------------------------------------------------------------------------------


def check(problem: str, completion: str) -> Check:
    """
    Check a completion step by step. Any text is accepted: what cannot be read is wrong.

    Each step must read `left operation right=quotient r remainder;` with the operation and the operand of the problem,
    must start from the remainder that the step before it states, and must be right in quotient and remainder. After a
    step that cannot be read, the next one has nothing to start from and is wrong as well.

    Args:
        problem (`str`): Problem, see [`make_problem`].
        completion (`str`): What the policy wrote, without special tokens.
    """
    expected = solve(problem)
    working, _, answer = completion.partition("#")
    lines = [line for line in re.split("(?<=;)", working) if line]

    left: int | None = expected[0].left
    steps_correct = []
    for index in range(max(len(expected), len(lines))):
        match = STEP.fullmatch(lines[index]) if index < len(lines) else None
        checkable = match is not None and left is not None and index < len(expected)
        steps_correct.append(
            checkable and _states(match, Step(left, expected[index].operation, expected[index].right))
        )
        left = int(match[5]) if match else None
    return Check(answer == str(expected[-1].remainder), tuple(steps_correct))


def _states(match: re.Match, step: Step) -> bool:
    first, operation, second, quotient, remainder = match.groups()
    return (
        operation == step.operation
        and (int(first), int(second)) in ((step.left, step.right), (step.right, step.left))
        and (int(quotient), int(remainder)) == (step.quotient, step.remainder)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Dataset
# ---------------------------------------------------------------------------------------------------------------------


def split_of(problem: str) -> str:
    """Return the split, `"train"` or `"test"`, that `problem` belongs to: a fixed property, whatever seed drew it."""
    return "test" if zlib.crc32(problem.encode()) % TEST_SHARE == 0 else "train"


def draw_different(
    size: int, split: str, draw: Callable[[], Any], split_of: Callable[[Any], str], text: Callable[[Any], str] = str
) -> list:
    """
    Call `draw` until there are `size` problems of one split whose texts differ, in the order of drawing; fewer where
    so many are hardly to be found.

    Raises:
        ValueError: Unknown split.
    """
    if split not in ("train", "test"):
        raise ValueError(f"`split` is {split!r}, but must be 'train' or 'test'.")
    problems: dict[str, Any] = {}
    for _ in range(100 * size + 1000):
        if len(problems) == size:
            break
        problem = draw()
        if split_of(problem) == split:
            problems.setdefault(text(problem), problem)
    return list(problems.values())


def build_dataset(
    size: int, seed: int, *, split: str = "train", num_operations: int = 3, operands: Sequence[int] = OPERANDS
) -> Dataset:
    """
    Draw `size` different problems of one split.

    Args:
        size (`int`): Rows.
        seed (`int`): The same seed draws the same rows.
        split (`str`, *optional*, defaults to `"train"`): `"train"` or `"test"`; no problem is in both, see
            [`split_of`].
        num_operations (`int`, *optional*, defaults to `3`): See [`make_problem`].
        operands (`Sequence[int]`, *optional*, defaults to `(1, 2, 3, 4)`): See [`make_problem`].

    Returns:
        `Dataset` with `prompt` (one user message), `solution` (the answer, `str`) and `problem` (`str`).

    Raises:
        ValueError: Unknown split, or fewer than `size` different problems.
    """
    rng = random.Random(seed)
    problems = draw_different(size, split, lambda: make_problem(rng, num_operations, operands), split_of)
    if len(problems) < size:
        raise ValueError(
            f"`size` is {size}, but only {len(problems)} different problems with {num_operations} operations on "
            f"{tuple(operands)} were found in the split '{split}'. Lower `size`."
        )
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": problem}], "solution": answer_of(problem), "problem": problem}
            for problem in problems
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reward functions, in TRL's form
# ---------------------------------------------------------------------------------------------------------------------


def answer_reward(completions: list, solution: list[str], **kwargs) -> list[float]:
    """Reward 1 for the right answer, whatever the steps; else 0."""
    answers = (text.partition("#")[2] for text in _texts(completions))
    return [float(answer == right) for answer, right in zip(answers, solution, strict=True)]


def steps_reward(completions: list, problem: list[str], **kwargs) -> list[float]:
    """Reward 1 for the right answer with every step right, else 0: `answer_reward` without the lucky rollouts."""
    return [float(checked.strictly_correct) for checked in check_completions(problem, completions)]


def spot_checked_steps_reward(completions: list, problem: list[str], **kwargs) -> list[float | None]:
    """`steps_reward` for one problem in `SPOT_SHARE`, always the same ones; None (no reward) for the others."""
    return spot_checked(steps_reward(completions, problem), problem)


def spot_checked(rewards: Sequence[float], problems: Sequence[str]) -> list[float | None]:
    """The rewards of one problem in `SPOT_SHARE`, always the same ones; None for the others."""
    is_checked = (zlib.crc32(f"spot {text}".encode()) % SPOT_SHARE == 0 for text in problems)
    return [reward if checked else None for reward, checked in zip(rewards, is_checked, strict=True)]


def check_completions(problems: Iterable[str], completions: Iterable) -> list[Check]:
    """Check completions, each plain text or messages, the last of which is read; see [`check`]."""
    return [check(problem, text) for problem, text in zip(problems, _texts(completions), strict=True)]


def _texts(completions: Iterable) -> Iterator[str]:
    return (completion if isinstance(completion, str) else completion[-1]["content"] for completion in completions)


# ---------------------------------------------------------------------------------------------------------------------
# Metrics
# ---------------------------------------------------------------------------------------------------------------------


def accuracy(checks: Sequence[Check]) -> float:
    """Share of completions with the right answer; NaN if there is no completion."""
    return _mean([checked.answer_correct for checked in checks])


def strict_accuracy(checks: Sequence[Check]) -> float:
    """Share of completions with the right answer and every step right; NaN if there is no completion."""
    return _mean([checked.strictly_correct for checked in checks])


def lucky_share(checks: Sequence[Check]) -> float:
    """Share of lucky completions among those with the right answer; NaN if none has it."""
    return _mean([checked.lucky for checked in checks if checked.answer_correct])


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values) if values else math.nan
