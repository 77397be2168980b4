"""Worked solutions with several boxes: parts of one answer are all asked for, alternatives and steps are not."""

import logging
from pathlib import Path

import pytest

from reward_funcs import check_golds, final_answer, math_accuracy_reward
from reward_funcs.worked_solutions import boxes_of


PARTS = {
    r"Then $k = \boxed{5}$ or $k = \boxed{-3}$.": (["5, -3", "-3,5", r"k=5 \text{ or } k=-3", r"\{5,-3\}"], ["5", "-3", "5, 3", "5,-3,1"]),
    r"Enclosed points are $\boxed{(-2,18)}$ and $\boxed{(8,38)}$.": (["(-2,18), (8,38)"], ["(-2,18)", "(8,38)"]),
    r"Hence $g(x) = \boxed{2x+1}$ or $g(x) = \boxed{-2x-1}.$": (["2x+1, -2x-1"], ["2x+1", "-2x-1"]),
    r"They are $\boxed{1}$, $\boxed{2}$, and $\boxed{3}$.": (["1,2,3"], ["3", "1,2"]),
    r"One is $\boxed{30^\circ}.$  The other two angles must be equal, so they are $\boxed{75^\circ, 75^\circ}.$": (
        ["30,75,75", r"75^\circ,30^\circ,75^\circ"], ["75,75", "30", "30,75"]),
    r"If $x = 1,$ then it is \boxed{4}. If $x = 2,$ then it is \boxed{-4}.": (["4,-4"], ["4", "-4"]),
    r"Values are $\boxed{30}$ or $\boxed{150}.$ Solution 2. Again they are $\boxed{30}$ or $\boxed{150}.$": (["30, 150"], ["30", "150"]),
}  # fmt: skip
ONE = {
    r"It is \boxed{\frac12}. Alternatively, it is \boxed{0.5}.": (["0.5"], ["0.5, 0.5"]),
    r"This yields $\boxed{-b+2}$, or $\boxed{2 - b}$.": (["2-b", "-b+2"], ["2-b, 2-b"]),
    r"It is $\boxed{28}$ or $\boxed{28_9}$.": ([r"28_9"], ["28, 28_9"]),
    r"In $\boxed{20\!:\!34}$ or $\boxed{8\!:\!34 \text{ p.m.}}$.": ([r"8:34"], ["20:34, 8:34"]),
    r"It is $\boxed{1}.$ We could also divide to get $\boxed{-1}.$": (["-1"], ["1,-1"]),
    r"$(x - \boxed{\phantom{9}})$ is solved by $\boxed{-5}$": (["-5"], ["9"]),
    r"[asy] label(\boxed{3}); [/asy] So $\boxed{22}$": (["22"], ["3,22"]),
}  # fmt: skip
UNDECIDED = {r"$\log_2 4=\boxed{2}$, so $\log_2(4^2) = \boxed{4}$": (["4"], ["2", "2,4"])}


@pytest.mark.parametrize("solution", [*PARTS, *ONE, *UNDECIDED])
def test_all_parts_are_asked_for_and_one_of_alternatives(solution):
    right, wrong = (PARTS | ONE | UNDECIDED)[solution]
    boxes = [rf"\boxed{{{answer}}}" for answer in (*right, *wrong)]
    assert math_accuracy_reward(boxes, [solution] * len(boxes)) == [1.0] * len(right) + [0.0] * len(wrong)


def test_one_box_is_the_answer():
    assert final_answer(r"So \boxed{7}.") == final_answer(r"So \boxed{\boxed{7}}.") == "7"
    assert final_answer(r"So \boxed{7} and then \boxed{") == ""
    assert [box.content for box in boxes_of(r"\boxed{1} \fbox{\boxed{2}} \boxed 3 \boxed{4")] == ["1", "2"]


def test_what_was_not_decided_is_listed(caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("reward_funcs"), "propagate", True)
    solutions = [*PARTS, *ONE, *UNDECIDED, "7", None]
    with caplog.at_level(logging.WARNING):
        report = check_golds([{"solution": solution} for solution in solutions], max_unparsable_share=0.2)
    assert report.undecided == {len(PARTS) + len(ONE): next(iter(UNDECIDED))}
    assert f"row {len(PARTS) + len(ONE)}: 4" in caplog.text and "boxes of different values" in caplog.text


def test_the_worked_golds_of_the_training_file():
    file = Path(__file__).parents[1].parent / "shared" / "data" / "train" / "math75.parquet"
    if not file.exists():
        pytest.skip(f"no {file}")
    table = pytest.importorskip("pyarrow.parquet").read_table(file, columns=["reward_model"]).to_pydict()
    solutions = [row["ground_truth"] for row in table["reward_model"]]
    joined = {334, 504, 3460, 3694, 3997, 6780, 6816, 6843, 6922, 7225, 7321, 7414}
    from reward_funcs.completions import last_boxed

    assert {row for row, text in enumerate(solutions) if (final_answer(text) or None) != last_boxed(text)} == joined
    assert set(check_golds([{"solution": text} for text in solutions]).undecided) == {1425, 3326, 5270}
