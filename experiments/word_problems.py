"""Word problems in English whose every equation, and its place in the story, is checked by a program.

    problem   Mia has 17 shells. Mia gives away 9 of them. Then the number of shells triples.
              Does Mia end up with more than 20 shells?
    trace     17 - 9 = 8
              8 * 3 = 24
              24 is more than 20
              Answer: yes

In multiple choice the question is "How many shells are there in the end? 11: A, 24: B, 78: C." and the last lines are
`24: B` and `Answer: B`.

The rate of luck is a knob: a guess is right half of the time where the answer is yes or no, one time in `num_options`
in multiple choice, and hardly ever where the answer is the number itself. A rollout with the right answer and a wrong
step is *lucky*; no rollout has to be made so, as guesses and mistakes that do not matter are natural here.

This module holds the task alone: stories, traces, checker, dataset, reward functions. Metrics are those of
`experiments.chain`. It is pure Python, and every random choice comes from a seed or a `random.Random` that the caller
gives. [`foreign_dataset`] takes problems from reasoning-gym's `gsm_symbolic` instead, whose equations are checked by
`reward_funcs.find_equations`, though not their place in the story.
"""

import json
import random
import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import Any

from datasets import Dataset

from reward_funcs import find_equations
from reward_funcs.completions import completion_text

from .chain import TEST_SHARE, Check, draw_different, spot_checked


LARGEST = 999  # no value of a story is larger
ANSWERS = ("yes_no", "choice", "number")
OPERATIONS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a // b,
}  # fmt: skip
TIMES = {
    2: "doubles",
    3: "triples",
    4: "quadruples",
    5: "grows to five times as many",
    6: "grows to six times as many",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Numbers:
    """Ranges to draw from, ends included: what a story starts with, what is added or taken, factors and divisors."""

    starts: tuple[int, int]
    changes: tuple[int, int]
    factors: tuple[int, int]


@dataclass(frozen=True)
class Story:
    """
    What happens to one kind of thing: sentences with `{name}`, `{n}` and, for `*`, `{times}`.

    Attributes:
        noun (`str`): The things that are counted.
        names (`tuple[str, ...]`): Who has them.
        begin (`str`): First sentence.
        events (`dict[str, tuple[str, ...]]`): For each operation, sentences that say it.
    """

    noun: str
    names: tuple[str, ...]
    begin: str
    events: dict[str, tuple[str, ...]]


NUMBERS = {
    "train": Numbers((5, 40), (2, 20), (2, 4)),
    "small": Numbers((4, 15), (2, 9), (2, 3)),
    "other": Numbers((41, 90), (21, 45), (3, 6)),
}
STORIES: dict[str, tuple[Story, ...]] = {
    "train": (
        Story("shells", ("Mia", "Tom", "Lena"), "{name} has {n} shells.", {
            "+": ("{name} finds {n} more shells.", "A friend gives {name} {n} shells."),
            "-": ("{name} gives away {n} of them.", "{name} loses {n} shells."),
            "*": ("Then the number of shells {times}.",),
            "/": ("{name} sorts the shells into {n} equal heaps and keeps only one heap.",)}),
        Story("stickers", ("Ben", "Aisha", "Kofi"), "{name} starts the week with {n} stickers.", {
            "+": ("{name} buys {n} stickers.", "{name} gets {n} more stickers at school."),
            "-": ("{name} uses {n} stickers.", "{name} trades {n} stickers away for a pen."),
            "*": ("After a contest the number of stickers {times}.",),
            "/": ("{name} shares all stickers equally among {n} children, {name} among them.",)}),
        Story("apples", ("Rosa", "Ivan", "Noor"), "There are {n} apples in {name}'s basket.", {
            "+": ("{name} picks {n} more apples.", "A neighbor puts {n} apples in."),
            "-": ("{name} eats or cooks {n} apples.", "{name} sells {n} of the apples."),
            "*": ("By the next day the number of apples {times}.",),
            "/": ("{name} packs the apples into {n} equal bags and carries home one bag.",)}),
    ),
    "other": (
        Story("passengers", ("driver Olga", "driver Sam"), "The bus of {name} leaves with {n} passengers.", {
            "+": ("At a stop {n} passengers get on.",),
            "-": ("At a stop {n} passengers get off.",),
            "*": ("At the station the number of passengers {times}.",),
            "/": ("The passengers spread evenly over {n} buses, one of which {name} goes on driving.",)}),
        Story("liters", ("Farmer Jo", "Farmer Eli"), "{name} has a tank with {n} liters of water.", {
            "+": ("Rain brings {n} liters.", "{name} pours in {n} liters."),
            "-": ("The cows drink {n} liters.", "{n} liters leak out."),
            "*": ("A storm comes, and the number of liters {times}.",),
            "/": ("{name} divides the water equally among {n} tanks and looks after one of them.",)}),
    ),
}  # fmt: skip

# Test sets, as arguments of `build_dataset`.
VARIANTS: dict[str, dict[str, Any]] = {
    "test": {"num_operations": 3},
    "other_numbers": {"num_operations": 3, "numbers": "other"},
    "other_stories": {"num_operations": 3, "stories": "other"},
    "p1": {"num_operations": 4},
    "p2": {"num_operations": 5},
}

STEP = re.compile(r"[^0-9=]*?([0-9]{1,9})\s*([-+*/x×÷−–])\s*([0-9]{1,9})\s*=\s*([0-9]{1,9})[^0-9=]*")
SIGNS = {"x": "*", "×": "*", "÷": "/", "−": "-", "–": "-"}
COMPARISON = re.compile(r"[^0-9]*([0-9]{1,9}) is (not )?more than ([0-9]{1,9})[^0-9]*")
CHOICE = re.compile(r"(?:[^0-9:]*\s)?([0-9]{1,9})\s*:\s*([A-Za-z])\W*")
FORMAT = "Write one equation for each thing that happens, one a line, and end with '{}'."


@dataclass(frozen=True)
class Problem:
    """
    A problem, without its choice of words.

    Attributes:
        start (`int`): What the story starts with.
        operations (`tuple[tuple[str, int], ...]`): What happens: one of `+ - * /`, and its number.
        text (`str`): The prompt.
        answer (`str`): The right answer: "yes" or "no", a letter, or a number.
        bound (`int`, *optional*): Of a question of yes or no: whether the result is more than this.
        options (`tuple[int, ...]`): Of multiple choice: what the letters stand for.
    """

    start: int
    operations: tuple[tuple[str, int], ...]
    text: str
    answer: str
    bound: int | None = None
    options: tuple[int, ...] = ()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Problem":
        row = json.loads(text)
        operations = tuple((operation, number) for operation, number in row.pop("operations"))
        return cls(operations=operations, options=tuple(row.pop("options")), **row)

    @property
    def luck(self) -> float:
        """How often a guess is right: 1/2, one over the number of options, or 0."""
        return 0.5 if self.bound is not None else 1 / len(self.options) if self.options else 0.0


# ---------------------------------------------------------------------------------------------------------------------
# Problems
# ---------------------------------------------------------------------------------------------------------------------


def values_of(start: int, operations: Iterable[tuple[str, int]]) -> list[int] | None:
    """All values of a story, `start` first; `None` if one is below 0, above `LARGEST` or not whole."""
    values = [start]
    for operation, number in operations:
        if operation == "/" and values[-1] % number:
            return None
        values.append(OPERATIONS[operation](values[-1], number))
        if not 0 < values[-1] <= LARGEST:
            return None
    return values


def make_problem(
    rng: random.Random,
    num_operations: int = 3,
    *,
    answer: str = "yes_no",
    num_options: int = 4,
    numbers: str = "train",
    stories: str = "train",
) -> Problem:
    """
    Draw a problem.

    Args:
        rng (`random.Random`): Source of every choice.
        num_operations (`int`, *optional*, defaults to `3`): Things that happen, 1 or more.
        answer (`str`, *optional*, defaults to `"yes_no"`): `"yes_no"`, `"choice"` or `"number"`.
        num_options (`int`, *optional*, defaults to `4`): Options of multiple choice, 2 to 26.
        numbers (`str`, *optional*, defaults to `"train"`): `"train"`, `"small"` or `"other"`, see `NUMBERS`.
        stories (`str`, *optional*, defaults to `"train"`): `"train"` or `"other"`, see `STORIES`.

    Raises:
        ValueError: A value that is none of these.
    """
    if num_operations < 1:
        raise ValueError(f"`num_operations` is {num_operations}, but must be 1 or more.")
    if not 2 <= num_options <= len(LETTERS):
        raise ValueError(f"`num_options` is {num_options}, but must be from 2 to {len(LETTERS)}.")
    for name, value, known in (
        ("answer", answer, ANSWERS), ("numbers", numbers, tuple(NUMBERS)), ("stories", stories, tuple(STORIES))
    ):  # fmt: skip
        if value not in known:
            raise ValueError(f"`{name}` is {value!r}, but must be one of {known}.")
    start, operations = _draw_chain(rng, num_operations, NUMBERS[numbers])
    story = rng.choice(STORIES[stories])
    who = rng.choice(story.names)
    sentences = [story.begin.format(name=who, n=start)]
    for operation, number in operations:
        sentences.append(rng.choice(story.events[operation]).format(name=who, n=number, times=TIMES.get(number)))
    told, result = (
        " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences),
        values_of(start, operations)[-1],
    )
    return _ask(rng, Problem(start, operations, told, str(result)), story.noun, answer, num_options)


def _draw_chain(rng: random.Random, num_operations: int, numbers: Numbers) -> tuple[int, tuple[tuple[str, int], ...]]:
    """A start and operations whose values are all whole and within bounds."""
    start = rng.randint(*numbers.starts)
    operations: tuple[tuple[str, int], ...] = ()
    while len(operations) < num_operations:
        operation = rng.choice("+-*/")
        drawn = (operation, rng.randint(*(numbers.changes if operation in "+-" else numbers.factors)))
        if values_of(start, (*operations, drawn)) is not None:
            operations = (*operations, drawn)
    return start, operations


def _ask(rng: random.Random, problem: Problem, noun: str, answer: str, num_options: int) -> Problem:
    """The problem with its question, the form of its answer, and the right one."""
    result = int(problem.answer)
    if answer == "number":
        text = f"{problem.text} How many {noun} are there in the end? {FORMAT.format('Answer: ' + 'the number')}"
        return Problem(problem.start, problem.operations, text, str(result))
    if answer == "choice":
        options = [result, *rng.sample(_distractors(problem, num_options), num_options - 1)]
        rng.shuffle(options)
        listed = ", ".join(f"{option}: {letter}" for letter, option in zip(LETTERS, options, strict=False))
        text = f"{problem.text} How many {noun} are there in the end? {listed}. {FORMAT.format('Answer: the letter')}"
        right = LETTERS[options.index(result)]
        return Problem(problem.start, problem.operations, text, right, options=tuple(options))
    distance = rng.randint(1, max(3, result // 4))
    is_more = rng.random() < 0.5 and result > distance
    bound = result - distance if is_more else result + distance - 1
    text = f"{problem.text} Are there more than {bound} {noun} in the end? {FORMAT.format('Answer: yes')[:-2]}' or 'Answer: no'."
    return Problem(problem.start, problem.operations, text, "yes" if is_more else "no", bound=bound)


def _distractors(problem: Problem, num_options: int) -> list[int]:
    """Wrong results, those of natural mistakes first: a step left out, a sign turned round, near misses."""
    result, operations = int(problem.answer), problem.operations
    turned = {"+": "-", "-": "+", "*": "+", "/": "-"}
    mistaken = [operations[:place] + operations[place + 1 :] for place in range(len(operations))]
    mistaken += [
        (*operations[:place], (turned[operation], number), *operations[place + 1 :])
        for place, (operation, number) in enumerate(operations)
    ]
    found = [values[-1] for chain in mistaken if (values := values_of(problem.start, chain))]
    near = [result + sign * step for step in (1, 10, 2, *range(3, 40)) for sign in (1, -1)]
    return [value for value in dict.fromkeys([*found, *near]) if value > 0 and value != result][: num_options + 2]


def write_trace(
    problem: Problem, rng: random.Random | None = None, *, commuted: float = 0.0, slip: float = 0.0
) -> str:
    """
    Write a trace of `problem`: the right one, or with the mistakes asked for.

    Args:
        problem (`Problem`): Problem.
        rng (`random.Random`, *optional*): Source of every choice; needed as soon as one of the rates is not 0.
        commuted (`float`, *optional*, defaults to `0.0`): Rate of sums and products written the other way round, which
            is not a mistake.
        slip (`float`, *optional*, defaults to `0.0`): Rate of steps with a wrong result. The steps after it, and the
            answer, go on from the wrong one, rightly. In multiple choice the answer is the nearest option, whose
            number stands before its letter.
    """
    lines, left = [], problem.start
    for place, (operation, number) in enumerate(problem.operations):
        result = OPERATIONS[operation](left, number)
        if slip > 0 and rng.random() < slip:
            wrong = [result + off for off in (1, -1, 2, -2, 10, -10, *range(3, 10)) if result + off > 0]
            wrong = [value for value in wrong if values_of(value, problem.operations[place + 1 :])]
            result = rng.choice(wrong) if wrong else result
        first, second = left, number
        if operation in "+*" and commuted > 0 and rng.random() < commuted:
            first, second = second, first
        lines.append(f"{first} {operation} {second} = {result}")
        left = result
    if problem.bound is not None:
        is_more = left > problem.bound
        lines.append(f"{left} is {'' if is_more else 'not '}more than {problem.bound}")
        return "\n".join([*lines, f"Answer: {'yes' if is_more else 'no'}"])
    if problem.options:
        nearest = min(range(len(problem.options)), key=lambda place: abs(problem.options[place] - left))
        lines.append(f"{problem.options[nearest]}: {LETTERS[nearest]}")
        return "\n".join([*lines, f"Answer: {LETTERS[nearest]}"])
    return "\n".join([*lines, f"Answer: {left}"])


# ---------------------------------------------------------------------------------------------------------------------
# Checker
# ---------------------------------------------------------------------------------------------------------------------


def check(problem: Problem | str, completion: str) -> Check:
    """
    Check a completion step by step. Any text is accepted: what cannot be read is wrong.

    A step is a line with an `=`. In the order of the story, it must state one operation, `a op b = c` with words
    around it if need be, start from the result that the step before it states, use the story's operation and number
    (sums and products either way round) and be right. After a step that cannot be read the next one has nothing to
    start from. Missing and surplus steps are wrong. A line `24 is more than 20` is a step too where it stands: it must
    be true, of the last result and the bound asked for; so is a line `24: B`, of the last result and its letter.

    Args:
        problem (`Problem` or `str`): Problem, or its JSON.
        completion (`str`): What the policy wrote, without special tokens.
    """
    problem = Problem.from_json(problem) if isinstance(problem, str) else problem
    working, marker, answer = completion.rpartition("Answer:")
    working = working if marker else completion
    lines = [line for line in working.splitlines() if "=" in line]
    left: int | None = problem.start
    steps_correct = []
    for place in range(max(len(problem.operations), len(lines))):
        match = STEP.fullmatch(lines[place]) if place < len(lines) else None
        checkable = match is not None and left is not None and place < len(problem.operations)
        steps_correct.append(checkable and _states(match, left, *problem.operations[place]))
        left = int(match[4]) if match else None
    for match in filter(None, map(COMPARISON.fullmatch, working.splitlines())):
        number, bound = int(match[1]), int(match[3])
        steps_correct.append(number == left and bound == problem.bound and (number > bound) != bool(match[2]))
    options = dict(zip(LETTERS, problem.options, strict=False))
    for match in filter(None, map(CHOICE.fullmatch, working.splitlines() if options else ())):
        steps_correct.append(int(match[1]) == left == options.get(match[2].upper()))
    given = answer.strip().strip("*.").strip() if marker else ""
    return Check(given.lower() == problem.answer.lower(), tuple(steps_correct))


def _states(match: re.Match, left: int, operation: str, number: int) -> bool:
    first, sign, second, result = int(match[1]), SIGNS.get(match[2], match[2]), int(match[3]), int(match[4])
    pairs = [(left, number), (number, left)] if operation in "+*" else [(left, number)]
    is_whole = operation != "/" or left % number == 0
    return (
        sign == operation and (first, second) in pairs and is_whole and result == OPERATIONS[operation](left, number)
    )


# ---------------------------------------------------------------------------------------------------------------------
# Datasets
# ---------------------------------------------------------------------------------------------------------------------


def split_of(problem: Problem) -> str:
    """Return the split, `"train"` or `"test"`, that the numbers of `problem` belong to, whatever story they are in."""
    key = f"{problem.start}{problem.operations}"
    return "test" if zlib.crc32(key.encode()) % TEST_SHARE == 0 else "train"


def build_dataset(size: int, seed: int, *, split: str = "train", **kwargs) -> Dataset:
    """
    Draw `size` different problems of one split.

    Args:
        size (`int`): Rows.
        seed (`int`): The same seed draws the same rows.
        split (`str`, *optional*, defaults to `"train"`): `"train"` or `"test"`: no chain of numbers is in both, see
            [`split_of`].
        kwargs: Of [`make_problem`], for example one of `VARIANTS`.

    Returns:
        `Dataset` with `prompt` (one user message), `solution` (the answer, `str`) and `problem` (JSON, `str`).

    Raises:
        ValueError: Unknown split, or fewer than `size` different problems.
    """
    rng = random.Random(seed)
    problems = draw_different(
        size, split, lambda: make_problem(rng, **kwargs), split_of, text=lambda problem: problem.text
    )
    if len(problems) < size:
        raise ValueError(f"`size` is {size}, but only {len(problems)} different problems were found. Lower `size`.")
    return _dataset([(problem.text, problem.answer, problem.to_json()) for problem in problems])


def foreign_dataset(size: int, seed: int) -> Dataset:
    """
    Problems of reasoning-gym's `gsm_symbolic` (`pip install -e '.[reasoning-gym]'`), a source unlike this one.

    Its templates know no steps to compare with, so `problem` is empty: `reward_funcs.sound_equations_reward` checks
    the equations of a completion, and any reward of answers its `solution`. Problems whose own worked solution does
    not pass that check (some templates cut to whole numbers) or does not end in their answer are left out.

    Args:
        size (`int`): Rows.
        seed (`int`): The same seed draws the same rows.

    Raises:
        ImportError: reasoning-gym is not installed.
    """
    try:
        import reasoning_gym
    except ImportError as error:
        raise ImportError(
            "`foreign_dataset` needs reasoning-gym. Install it: pip install -e '.[reasoning-gym]'"
        ) from error
    rows = []
    for entry in reasoning_gym.create_dataset("gsm_symbolic", seed=seed, size=2 * size + 50):
        worked, _, stated = entry["metadata"]["answer_cot"].partition("####")
        equations = find_equations(worked)
        agrees = _number(stated) is not None and _number(stated) == _number(str(entry["answer"]))
        if equations and all(equation.holds for equation in equations) and agrees:
            rows.append((entry["question"], str(entry["answer"]), ""))
    if len(rows) < size:
        raise ValueError(f"`size` is {size}, but only {len(rows)} problems passed the check. Lower `size`.")
    return _dataset(rows[:size])


def _number(text: str) -> Fraction | None:
    try:
        return Fraction(text.strip().replace(",", ""))
    except (ValueError, ZeroDivisionError):
        return None


def _dataset(rows: Sequence[tuple[str, str, str]]) -> Dataset:
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": text}], "solution": answer, "problem": problem}
            for text, answer, problem in rows
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Reward functions, in TRL's form
# ---------------------------------------------------------------------------------------------------------------------


def check_completions(problems: Iterable[str], completions: Iterable) -> list[Check]:
    """Check completions, each plain text or messages; see [`check`]."""
    return [
        check(problem, completion_text(completion)) for problem, completion in zip(problems, completions, strict=True)
    ]


def answer_reward(completions: list, problem: list[str], **kwargs) -> list[float]:
    """Reward 1 for the right answer, whatever the steps; else 0."""
    return [float(checked.answer_correct) for checked in check_completions(problem, completions)]


def steps_reward(completions: list, problem: list[str], **kwargs) -> list[float]:
    """Reward 1 for the right answer with every step right, else 0: `answer_reward` without the lucky rollouts."""
    return [float(checked.strictly_correct) for checked in check_completions(problem, completions)]


def spot_checked_steps_reward(completions: list, problem: list[str], **kwargs) -> list[float | None]:
    """`steps_reward` for one problem in `SPOT_SHARE`, as in `chain`; None (no reward) for the others."""
    return spot_checked(steps_reward(completions, problem), problem)
