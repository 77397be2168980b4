"""What adversaries and other graders' tests try: dress is taken off, and what changes a value is not dress."""

import pytest
from reward_cases import CHOICE_B, CHOICE_NOT_B, QUESTION, RIGHT, WRONG

from reward_funcs import math_accuracy_reward, multiple_choice_reward, verifiable_reward


PROMPT = [{"role": "user", "content": QUESTION}]


def rows_of(table):
    return [(gold, answer) for rows in table.values() for gold, answers in rows for answer in answers]


def scores_of(rows):
    golds, answers = zip(*rows, strict=True)
    return math_accuracy_reward([rf"So it is $\boxed{{{answer}}}$." for answer in answers], golds)


@pytest.mark.parametrize("kind", RIGHT)
def test_right_answers_are_accepted(kind):
    rows = rows_of({kind: RIGHT[kind]})
    assert [row for row, score in zip(rows, scores_of(rows), strict=True) if score != 1.0] == []


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_answers_are_refused(kind):
    rows = rows_of({kind: WRONG[kind]})
    assert [row for row, score in zip(rows, scores_of(rows), strict=True) if score != 0.0] == []


@pytest.mark.parametrize("prompt", [PROMPT, None], ids=["options known", "options unknown"])
@pytest.mark.parametrize("answers", [CHOICE_B, CHOICE_NOT_B], ids=["right", "wrong"])
def test_letters_of_choices(answers, prompt):
    boxes = [rf"\boxed{{{answer}}}" for answer in answers]
    golds, prompts = ["B"] * len(boxes), None if prompt is None else [prompt] * len(boxes)
    expected = [float(answers is CHOICE_B)] * len(boxes)
    assert multiple_choice_reward(boxes, golds, prompts=prompts) == expected
    assert verifiable_reward(boxes, golds, prompts=prompts) == expected


def test_a_letter_with_another_options_text_is_refused():
    for answer in (
        "B bank",
        "B. a bank",
        "B - New York",
        "A library",
        "(B) something else",
        "B. libraries of all kinds",
    ):
        assert multiple_choice_reward([rf"\boxed{{{answer}}}"], ["B"], prompts=[PROMPT]) == [0.0], answer
    for answer in (
        "D. 1/2 of all malls",
        r"D. $\frac{1}{2}$ of all malls",
        r"D - \frac12 of all malls, wherever they are",
    ):
        assert multiple_choice_reward([rf"\boxed{{{answer}}}"], ["B"], prompts=[PROMPT]) == [0.0]
    assert (
        multiple_choice_reward([r"\boxed{A bank}", r"\boxed{A. a bank}"], ["A"] * 2, prompts=[PROMPT] * 2) == [1.0] * 2
    )
