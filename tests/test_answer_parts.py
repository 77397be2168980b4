"""The benchmark of the parts of the comparison of answers, in a tiny size."""

import json
import sys
import time

import pytest

from benchmarks import answer_parts
from benchmarks.answer_parts import Algebra, Case, Part, cases_of_the_tests, markdown, parts, switched_off, verdicts
from reward_funcs import answers


def test_a_part_is_switched_off_and_on_again():
    units = next(part for part in parts() if part.name == "units")
    case = Case(r"40\text{ feet}", "40 ft", True)
    algebra = Algebra()
    on, off, again = (verdicts(part, [case], algebra)[0].equal for part in (None, units, None))
    assert (on, off, again) == (True, False, True) and answers.equal(case.gold, case.answer) is True
    with pytest.raises(RuntimeError), switched_off(units):
        raise RuntimeError
    assert answer_parts.MODULES["shapes"].split_unit("5 cm")[1] == {"centimeter"}


def test_what_is_lost_is_counted_on_the_rows_of_the_part():
    cases = [
        Case("1", "1.0", True),
        Case("3", r"3\text{ cm}", True),
        Case("3", r"\frac62", True),
        Case("3", "4", False),
    ]
    algebra = Algebra()
    whole = verdicts(None, cases, algebra)
    off = verdicts(Part("", "units", {"shapes.split_unit": lambda normal: (normal, None)}), cases, algebra)
    liar = [answer_parts.Verdict(not case.right, (), 1.0) for case in cases]
    row = answer_parts.compare("units", "units", 9, cases, whole, off, liar)
    assert row["rows"] == row["lost without"] == row["lost to math-verify"] == 1
    assert row["wrong accepts without"] == row["wrong accepts of math-verify"] == 0
    row = answer_parts.compare("all", "", 9, cases, whole, liar, liar)
    assert (row["lost without"], row["wrong accepts without"], row["rows/s without"]) == (3, 1, 1)


def test_every_part_names_code_that_is_there():
    for part in parts():
        assert part.lines > 0
        for where, name, _ in answer_parts.targets(part):
            assert hasattr(answer_parts.MODULES[where], name)


def test_the_cases_are_those_of_the_tests_and_those_of_the_data(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    cases = cases_of_the_tests()
    assert Case("0.5", r"\frac12", True) in cases and Case("18", "-18", False) in cases
    golds = [r"\frac{1}{2}", "1234", "x = 2", r"(-\infty, 3]", "B", r"There are $\boxed{7}$."]
    table = {"reward_model": [{"ground_truth": gold} for gold in golds], "data_source": ["own/math"] * len(golds)}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "golds.parquet")
    cases = answer_parts.cases_of_the_data(tmp_path, rows=100)
    assert {case.gold for case in cases} == {r"\frac{1}{2}", "1234", "x = 2", r"(-\infty, 3]", "7"}
    for case in [
        Case("1234", "1,234", True), Case("1234", "1235", False), Case("1234", "7", False), Case("x = 2", "2(x)=2(2)", True),
        Case("x = 2", "x=2+1", False), Case(r"(-\infty, 3]", r"x \in (-\infty, 3]", True), Case(r"(-\infty, 3]", "(-∞,3]", True),
    ]:  # fmt: skip
        assert case in cases
    assert cases == answer_parts.cases_of_the_data(tmp_path, rows=100)
    with pytest.raises(FileNotFoundError, match="No parquet files"):
        answer_parts.cases_of_the_data(tmp_path / "empty", rows=5)


def test_a_question_that_hangs_is_given_up(monkeypatch):
    monkeypatch.setattr(answer_parts, "SECONDS", 0.2)

    def hang(gold, answer):
        while True:
            pass

    start = time.monotonic()
    assert answer_parts.timed(hang, "1", "2")[0] is False and time.monotonic() - start < 5.0


def test_the_script_writes_figures_and_a_table(monkeypatch, tmp_path):
    output = tmp_path / "runs" / "parts.json"
    monkeypatch.setattr(answer_parts, "parts", lambda: parts()[:3])
    monkeypatch.setattr(sys, "argv", ["answer_parts", "--cases", "25", "--output", str(output)])
    answer_parts.main()
    results = json.loads(output.read_text())
    assert results["cases"] == 25 and results["refused"] == results["accepted"] == []
    assert [row["part"] for row in results["parts"]] == [answer_parts.EVERYTHING, *(part.name for part in parts()[:3])]
    table = output.with_suffix(".md").read_text()
    assert table == markdown(results) + "\n" and table.count("\n") == 2 + 4
