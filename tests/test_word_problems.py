"""The word problems: their answers and their checker, against a reader of the story that shares no code with them."""

import math
import random
import re
import sys
from types import SimpleNamespace

import pytest

from experiments import word_problems as task
from experiments.chain import accuracy, lucky_share
from experiments.word_problems import VARIANTS, Problem, build_dataset, check, make_problem, write_trace
from reward_funcs import sound_equations_reward


# What the sentences of the stories say, in words of their own
SAYS = [
    (r"finds (\d+) more|gives \w+ (\d+) shells|buys (\d+)|gets (\d+) more|picks (\d+)|puts (\d+)|(\d+) passengers get on|brings (\d+)|pours in (\d+)", "+"),
    (r"away (\d+) of|loses (\d+)|uses (\d+)|trades (\d+)|cooks (\d+)|sells (\d+)|(\d+) passengers get off|drink (\d+)|(\d+) liters leak", "-"),
    (r"into (\d+) equal|among (\d+)|over (\d+) buses", "/"),
]  # fmt: skip
TIMES = {"doubles": 2, "triples": 3, "quadruples": 4, "five times": 5, "six times": 6}


def read(text):
    """(result, question) of a story, from its English alone."""
    story, _, question = re.split(r"(Are there|How many)", text, maxsplit=1)
    first, *sentences = story.strip().rstrip(".").split(". ")
    value = int(re.search(r"\d+", first)[0])
    for sentence in sentences:
        times = [factor for word, factor in TIMES.items() if word in sentence]
        if times:
            value *= times[0]
            continue
        ((sign, number),) = [
            (sign, next(filter(None, m.groups()))) for p, sign in SAYS if (m := re.search(p, sentence))
        ]
        value = eval(f"{value} {sign.replace('/', '//')} {number}")
    return value, question


def right_answer(text):
    value, question = read(text)
    if bound := re.match(r" more than (\d+)", question):
        return "yes" if value > int(bound[1]) else "no"
    options = re.findall(r"(\d+): ([A-Z])", question)
    return next((letter for option, letter in options if int(option) == value), None) if options else str(value)


@pytest.mark.parametrize("answer", task.ANSWERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_stories_say_what_the_answers_are(variant, answer):
    rng = random.Random(0)
    for _ in range(100):
        problem = make_problem(rng, answer=answer, **VARIANTS[variant])
        assert right_answer(problem.text) == problem.answer
        assert len(problem.operations) == VARIANTS[variant]["num_operations"]
        checked = check(problem, write_trace(problem, rng, commuted=0.5))
        assert checked.strictly_correct and all(checked.steps_correct)
        assert Problem.from_json(problem.to_json()) == problem


@pytest.mark.parametrize(
    "answer, num_options, luck", [("yes_no", 4, 0.5), ("choice", 2, 0.5), ("choice", 8, 0.125), ("number", 4, 0)]
)
def test_luck_is_a_knob(answer, num_options, luck):
    rng = random.Random(0)
    problems = [make_problem(rng, answer=answer, num_options=num_options) for _ in range(1500)]
    assert {problem.luck for problem in problems} == {luck}
    guess = {"yes_no": "yes", "choice": "B", "number": "17"}[answer]
    guessed = accuracy([check(problem, f"Answer: {guess}") for problem in problems])
    assert guessed == pytest.approx(luck, abs=0.04)
    for problem in problems:
        assert len(set(problem.options)) == len(problem.options) == (num_options if answer == "choice" else 0)


def test_mistakes_are_lucky_where_luck_is_possible():
    rng, shares = random.Random(0), {}
    for answer in task.ANSWERS:
        problems = [make_problem(rng, answer=answer) for _ in range(400)]
        shares[answer] = lucky_share([check(problem, write_trace(problem, rng, slip=0.3)) for problem in problems])
    assert shares["yes_no"] > 0.3 and shares["choice"] > 0.2 and shares["number"] < 0.05


PROBLEM = Problem(17, (("-", 9), ("*", 3)), "", "yes", bound=20)


@pytest.mark.parametrize(
    "completion, answer, steps",
    [
        ("17 - 9 = 8\n8 * 3 = 24\n24 is more than 20\nAnswer: yes", True, (True, True, True)),
        ("So 17 - 9 = 8 shells.\nThen 3 × 8 = 24 shells.\n**Answer: Yes.**", True, (True, True)),
        ("17 - 9 = 8\n8 * 3 = 24\nAnswer: no", False, (True, True)),
        ("17 - 9 = 9\n9 * 3 = 27\nAnswer: yes", True, (False, True)),
        ("17 - 9 = 8\n8 * 3 = 25\nAnswer: yes", True, (True, False)),
        ("17 - 9 = 8\n9 * 3 = 27\nAnswer: yes", True, (True, False)),
        ("9 - 17 = 8\n8 * 3 = 24\nAnswer: yes", True, (False, True)),
        ("17 * 3 = 51\n51 - 9 = 42\nAnswer: yes", True, (False, False)),
        ("17 - 9 = 8\nAnswer: yes", True, (True, False)),
        ("17 - 9 = 8\n8 * 3 = 24\n24 + 1 = 25\nAnswer: yes", True, (True, True, False)),
        ("17 - 9 = x\n8 * 3 = 24\nAnswer: yes", True, (False, False)),
        ("17 - 9 = 8, 8 * 3 = 24\nAnswer: yes", True, (False, False)),
        ("17 - 9 = 8\n8 * 3 = 24\n24 is not more than 20\nAnswer: yes", True, (True, True, False)),
        ("17 - 9 = 8\n8 * 3 = 24\n24 is more than 10\nAnswer: yes", True, (True, True, False)),
        ("17 - 9 = 8\n8 * 3 = 24\nAnswer: yes and no", False, (True, True)),
        ("17 - 9 = 8\n8 * 3 = 24\nyes", False, (True, True)),
        ("Answer: yes", True, (False, False)),
        ("", False, (False, False)),
    ],
)
def test_each_step_is_checked_in_its_place(completion, answer, steps):
    checked = check(PROBLEM, completion)
    assert (checked.answer_correct, checked.steps_correct) == (answer, steps)
    assert checked.lucky == (answer and not all(steps))


@pytest.mark.parametrize("answer", task.ANSWERS)
@pytest.mark.parametrize("line", ["Step 1: Subtract", "Step 1: Mia gives shells away.", "At 9: a friend comes."])
def test_prose_is_no_step(answer, line):
    problem = make_problem(random.Random(0), answer=answer)
    trace = write_trace(problem)
    assert check(problem, f"{line}\n{trace}").steps_correct == check(problem, trace).steps_correct


@pytest.mark.parametrize(
    "line, holds",
    [("24: B", True), ("So 24: B.", True), ("24 :b", True), ("24: A", False), ("25: B", False), ("25:b", False)],
)
def test_the_letter_of_a_result_is_a_step(line, holds):
    problem = Problem(17, (("-", 9), ("*", 3)), "", "B", options=(23, 24))
    checked = check(problem, f"17 - 9 = 8\n8 * 3 = 24\n{line}\nAnswer: B")
    assert checked.answer_correct and checked.steps_correct == (True, True, holds)


def test_a_division_must_be_whole():
    assert check(Problem(9, (("/", 2),), "", "4"), "9 / 2 = 4\nAnswer: 4").steps_correct == (False,)


def test_dataset_is_seeded_and_its_splits_share_no_numbers():
    train, again, test = (
        build_dataset(60, 0),
        build_dataset(60, 0),
        build_dataset(60, 0, split="test", stories="other"),
    )
    assert train.to_dict() == again.to_dict() != build_dataset(60, 1).to_dict()
    chains = [{(p.start, p.operations) for p in map(Problem.from_json, rows["problem"])} for rows in (train, test)]
    assert not chains[0] & chains[1] and len(set(train["problem"])) == 60
    row = train[0]
    assert set(row) == {"prompt", "solution", "problem"} and row["prompt"][0]["role"] == "user"
    assert row["solution"] == right_answer(row["prompt"][0]["content"])


def test_rewards_tell_lucky_from_sound():
    problem = PROBLEM.to_json()
    texts = ["17 - 9 = 8\n8 * 3 = 24\nAnswer: yes", "17 - 9 = 9\n9 * 3 = 27\nAnswer: yes", "Answer: no"]
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    assert task.answer_reward(completions, [problem] * 3) == [1.0, 1.0, 0.0]
    assert task.steps_reward(texts, [problem] * 3, solution=["yes"] * 3) == [1.0, 0.0, 0.0]
    rows = build_dataset(200, 0)["problem"]
    spot = task.spot_checked_steps_reward([write_trace(Problem.from_json(row)) for row in rows], rows)
    assert set(spot) == {1.0, None} and 10 < sum(reward is not None for reward in spot) < 45


@pytest.mark.parametrize(
    "arguments, named",
    [({"num_operations": 0}, "num_operations"), ({"answer": "maybe"}, "answer"), ({"numbers": "big"}, "numbers"),
     ({"stories": "none"}, "stories"), ({"num_options": 1}, "num_options")],
)  # fmt: skip
def test_bad_arguments_are_named(arguments, named):
    with pytest.raises(ValueError, match=f"`{named}` is"):
        make_problem(random.Random(0), **arguments)
    with pytest.raises(ValueError, match="`split` is 'dev'"):
        build_dataset(1, 0, split="dev")


def test_too_few_problems_are_an_error(monkeypatch):
    monkeypatch.setitem(task.NUMBERS, "train", task.Numbers((5, 5), (2, 2), (2, 2)))
    with pytest.raises(ValueError, match=r"`size` is 100, but only \d+ different"):
        build_dataset(100, 0, num_operations=1, answer="number")


@pytest.mark.filterwarnings("ignore")  # of what reasoning-gym imports
def test_the_foreign_source_itself():
    """What reasoning-gym gives: worked solutions that pass the check of equations, and wrong numbers that do not."""
    pytest.importorskip("reasoning_gym")
    rows = task.foreign_dataset(40, 0)
    assert len(set(rows["solution"])) > 20 and rows.to_dict() == task.foreign_dataset(40, 0).to_dict()
    assert all(math.isfinite(float(solution)) for solution in rows["solution"])
    import reasoning_gym

    entries = reasoning_gym.create_dataset("gsm_symbolic", seed=0, size=130)
    worked = {entry["question"]: entry["metadata"]["answer_cot"] for entry in entries}
    texts = [worked[prompt[0]["content"]] for prompt in rows["prompt"]]
    assert sound_equations_reward(texts) == [1.0] * 40
    spoiled = [re.sub(r"(=\s*[^\d\n]*)(\d+)", lambda m: f"{m[1]}{int(m[2]) + 7}", text, count=1) for text in texts]
    assert sum(reward == 0 for reward in sound_equations_reward(spoiled)) >= 38


def test_the_foreign_source_keeps_what_can_be_checked(monkeypatch):
    worked = [
        "2 + 3 = 5\n#### 5",
        "7 / 2 = 3\n#### 3",
        "five\n#### 5",
        "2 + 3 = 5\n#### 6",
        "1,000 + 5 = 1,005\n#### 1,005.0",
    ]
    entries = [
        {"question": f"Question {place}", "answer": answer, "metadata": {"answer_cot": text}}
        for place, (text, answer) in enumerate(zip(worked, ["5", "3", "5", "5", "1005"], strict=True))
    ]
    monkeypatch.setitem(sys.modules, "reasoning_gym", SimpleNamespace(create_dataset=lambda name, seed, size: entries))
    rows = task.foreign_dataset(2, 0)
    assert rows["solution"] == ["5", "1005"] and rows[1]["prompt"][0]["content"] == "Question 4"
    with pytest.raises(ValueError, match="only 2 problems passed"):
        task.foreign_dataset(3, 0)
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[reasoning-gym\]'"):
        task.foreign_dataset(1, 0)
