"""The benchmark of our rewards beside peers, in a tiny size."""

import json
import sys

import pytest

from benchmarks import reward_peers
from benchmarks.answer_parts import Case


CASES = [Case("5", "5.0", True), Case("5", r"5\text{ cm}", True), Case("5", "6", False), Case("1,2", "12", False)]


def test_errors_are_counted_both_ways():
    scorers = {"ours": reward_peers.ours, "verl": reward_peers.verl_boxed, "all": lambda texts, golds: [True] * 4}
    rows = reward_peers.measure("tiny", CASES, scorers)
    assert [(row["refused"], row["accepted"]) for row in rows] == [(0, 0), (1, 0), (0, 2)]
    assert rows[1]["refused %"] == "50.0" and rows[2]["accepted %"] == "100.0" and all(row["rows/s"] for row in rows)
    total = reward_peers.summed(rows * 2)
    assert [(row["refused"], row["right"]) for row in total] == [(0, 4), (2, 4), (0, 4)]


def test_the_script_writes_figures_and_a_table(monkeypatch, tmp_path):
    output = tmp_path / "runs" / "peers.json"
    monkeypatch.setattr(reward_peers, "cases_of_the_tests", lambda: CASES)
    monkeypatch.setattr(sys, "argv", ["reward_peers", "--output", str(output)])
    reward_peers.main()
    rows = json.loads(output.read_text())
    assert [row["scorer"] for row in rows] == ["ours", "Math-Verify", "TRL", "verl, math-verify", "verl, strings"]
    assert output.with_suffix(".md").read_text() == reward_peers.markdown(rows)
    with pytest.raises(FileNotFoundError, match="--verl"):
        reward_peers.verls_own(tmp_path)
