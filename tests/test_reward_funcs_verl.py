"""Grading as verl does: the cases follow its two scorers; where verl's files are at hand, they are asked."""

import importlib.util
import os
import random

import pytest
from test_reward_funcs_math import DIFFERENT, EQUAL

from reward_funcs import get_reward_func, verifiable_reward, verl_boxed_reward, verl_compatible_reward
from reward_funcs.verl_compatible import boxed_as_verl, same_string_as_verl


SAME = [
    (r"\frac{1}{2}", r"\frac12"), (r"\frac{1}{2}", r"\dfrac{1}{2}"), (r"\frac{1}{2}", "0.5"), (r"\frac{1}{2}", "1/2"), (r"\frac{1}{2}", ".5"),
    (r"\frac{3}{72}", r"\frac3{72}"), ("5", "x=5"), ("5", "k = 5"), ("5", r"5\text{ cm}"), ("5", r"5\%"), ("90", r"90^\circ"), ("90", r"90^{\circ}"),
    (r"\sqrt{3}", r"\sqrt3"), ("(1,2)", r"\left( 1, 2 \right)"), (r"10\,080", r"10\,080"), ("10080", r"10\!080"), (r"\$5", "5"), ("1\n2", "12"),
    (r"a\text{ b}\text{ c}", r"a\text{ b}\text{ c}"),
]  # fmt: skip
OTHER = [
    (r"\frac{1}{2}", r"\frac{2}{4}"), ("0.25", r"\frac14"), ("5", "5.0"), ("1,2", "2,1"), ("58,500", "58500"), ("5", r"5\text{cm}"), ("5", "abc=5"), ("5", "x=y=5"),
    (r"\frac72", r"\frac{7}2"), ("5", "5."), ("x^2", "x^{2}"), ("2/4", "1/2"), (r"a\text{ b}\text{ c}", r"a \text{ b}\text{ c}"), ("B", "(B)"), ("b", "B"),
]  # fmt: skip
BOXES = [
    (r"\boxed{1} and \boxed{2}", "2"), (r"\boxed 7$ so", "7"), (r"\boxed 7 $ or \boxed{8}", "7 "), (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"), (r"\boxed{7", None),
    (r"\boxed{1} \boxed", None), (r"\fbox{7}", None), ("7", None), (r"\boxed{\boxed{7}}", "7"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), SAME)
def test_strings_that_verl_takes_for_one(gold, answer):
    assert same_string_as_verl(gold, answer)
    assert verl_boxed_reward([rf"So \boxed{{{answer}}}."], [gold]) == [1.0]


@pytest.mark.parametrize(("gold", "answer"), OTHER)
def test_strings_that_verl_keeps_apart(gold, answer):
    assert verl_boxed_reward([rf"So \boxed{{{answer}}}."], [gold]) == [0.0]


@pytest.mark.parametrize(("text", "box"), BOXES)
def test_the_box_that_verl_reads(text, box):
    assert boxed_as_verl(text) == box


def test_math_verify_on_the_whole_completion():
    """The rows of the table in docs/rewards.md: what verl pays, and what we pay."""
    rows = [
        ("B", r"\boxed{B}", 1, 1), ("7", "the answer is 7", 1, 0), ("1,-2", r"first \boxed{1} and then \boxed{-2}", 1, 0), ("5", r"\boxed{x+3=5}", 1, 0),
        ("52_8", r"\boxed{52}", 1, 0), ("4R^2", r"\boxed{4r^2}", 1, 0), (r"40\text{ feet}", r"\boxed{40\text{ min}}", 1, 0), ("6", r"\boxed{2(3)}", 0, 1),
        (r"\tan 15^\circ", r"\boxed{2-\sqrt3}", 0, 1), ("7", r"\boxed{8}", 0, 0), (r"\frac12", r"\boxed{0.5}", 1, 1), ("7", "", 0, 0),
    ]  # fmt: skip
    golds, texts, verl, ours = (list(column) for column in zip(*rows, strict=True))
    metrics, extra = {}, {}
    scores = verl_compatible_reward(
        [*texts, "7"], [*golds, None], log_extra=extra.__setitem__, log_metric=metrics.__setitem__
    )
    assert scores == [*map(float, verl), None]
    assert verifiable_reward(texts, golds) == [*map(float, ours)]
    assert metrics == {f"reward_checks/{name}": 0.0 for name in ("odd_completions", "timed_out", "worker_died")}
    assert extra["verl_completion"] == [*texts, "7"]
    conversation = [[{"role": "assistant", "content": r"\boxed{\frac{2}{4}}"}]]
    assert verl_compatible_reward(conversation, [r"Half, \boxed{\frac12}."]) == [1.0]
    assert verl_boxed_reward(conversation, [r"\frac12"]) == [0.0] and verl_boxed_reward(
        [r"\boxed{7}"] * 2, [None, r"so \boxed{7}"]
    ) == [None, 1.0]


def test_both_go_by_name():
    assert (
        get_reward_func("verl_compatible") is verl_compatible_reward
        and get_reward_func("verl_boxed") is verl_boxed_reward
    )


@pytest.mark.skipif(
    "VERL_REWARD_SCORE" not in os.environ, reason="VERL_REWARD_SCORE names no folder verl/utils/reward_score"
)
def test_verls_own_file_says_the_same(capsys):
    spec = importlib.util.spec_from_file_location("math_reward", f"{os.environ['VERL_REWARD_SCORE']}/math_reward.py")
    verl = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verl)
    cases = [
        (gold, answer)
        for table in (EQUAL, DIFFERENT)
        for rows in table.values()
        for gold, answers in rows
        for answer in answers
    ]
    pieces = [
        *r"\frac \sqrt { } \boxed \boxed{ \text{ = 1 2 .5 / x $ \left \% 0.5 \fbox{ ^\circ \\ tfrac \! k= 3/4".split(),
        " ",
    ]
    draw = random.Random(0)
    cases += [tuple("".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(2)) for _ in range(5000)]
    for gold, answer in cases:
        for text in (rf"so $\boxed{{{answer}}}$.", answer, rf"\boxed {answer}$ x"):
            box = boxed_as_verl(text)
            assert verl.compute_score(text, gold) == float(box is not None and same_string_as_verl(box, gold)), (
                gold,
                text,
            )
