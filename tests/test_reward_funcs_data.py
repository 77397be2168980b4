"""The rewards on all rows of the paper's data: own golds, golds of other rows, rewritten golds, near misses.

Skipped where the data files are not at hand.
"""

import random
import re
from functools import cache
from pathlib import Path

import pytest

from reward_funcs import check_golds, final_answer, verifiable_reward
from reward_funcs.answers import equal as quick_verdict
from reward_funcs.answers.comparison import equal_answers
from reward_funcs.answers.normal_form import normal_form
from reward_funcs.answers.shapes import shape_of
from reward_funcs.answers.symbolic import equal_expressions


DATA = Path(__file__).parents[1].parent / "shared" / "data"
FILES = sorted(str(path.relative_to(DATA)) for path in DATA.rglob("*.parquet"))
pytestmark = pytest.mark.skipif(not FILES, reason=f"no data files in {DATA}")
each_file = pytest.mark.parametrize("name", FILES or ["none"])
CHOICE = ("commonsense", "truthful", "mmlu")


@cache
def rows_of(name):
    """Columns of a file: golds, data sources, prompts. Read with pyarrow, which `datasets` needs anyway."""
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(DATA / name, columns=["reward_model", "data_source", "prompt"]).to_pydict()
    return [row["ground_truth"] for row in table["reward_model"]], table["data_source"], table["prompt"]


def distinct_answers(name):
    """The final answers of a file, each spelling once, without the empty boxes that the MATH training set has two
    of."""
    return list(dict.fromkeys(answer for gold in rows_of(name)[0] if (answer := final_answer(gold))))


@each_file
def test_own_golds_are_accepted(name):
    golds, sources, prompts = rows_of(name)
    boxes = [rf"Hence \(\boxed{{{final_answer(gold)}}}\)." for gold in golds]
    conversations = [[{"role": "assistant", "content": box}] for box in boxes]
    for completions in (boxes, conversations):
        scores = verifiable_reward(completions, golds, data_source=sources, prompts=prompts)
        assert None not in scores and sum(scores) >= 0.998 * len(scores)
    assert sum(verifiable_reward(boxes, golds)) >= 0.998 * len(golds)  # told by the golds alone


@each_file
def test_golds_of_a_file_can_be_parsed(name):
    assert check_golds([{"solution": gold} for gold in rows_of(name)[0]]).share < 0.002


# ---- golds of other rows ----


def number_or_none(text):
    """Value of an answer by a reader of its own: simple LaTeX turned into Python, evaluated in floats, variables at
    0.73."""
    if re.search(r"text\{,? ?(?:or|and)", text):
        return None
    text = re.sub(r"\\approx.*|\\!|\\left|\\right|[$\s]|\\,|\{,\}|\\\$|\\mathbf", "", text)
    text = re.sub(r"^[A-Za-z]=|\\(?:text|mbox|textnormal)\{[^}]*\}(?:\^2)?|\^\\circ|\^\{\\circ\}|\\?%", "", text)
    text = re.sub(r"^0+(?=\d)", "", re.sub(r"(?<=\d),(?=\d{3})", "", text))
    text = re.sub(r"^(-?)(\d+)\\[dt]?frac\{(\d+)\}\{(\d+)\}$", r"\1(\2+\3/\4)", text)
    text = re.sub(r"\\[dtc]?frac(\d)(\d)", r"((\1)/(\2))", text)
    for _ in range(3):
        text = re.sub(r"\\sqrt\{([^{}]*)\}", r"((\1)**0.5)", text)
        text = re.sub(r"\\[dtc]?frac\{?([^{}\\]*|\d)\}?(?:\{([^{}]*)\}|(\d))", r"((\1)/(\2\3))", text)
    text = re.sub(r"\\sqrt(\d)", r"((\1)**0.5)", text).replace(r"\pi", "(3.14159265358979)")
    text = re.sub(r"(?<![\\a-zA-Z])[a-z](?![a-zA-Z])", "(0.73)", text)
    text = re.sub(r"(?<=[\d)])\(", "*(", text).replace("^", "**").replace("{", "(").replace("}", ")")
    if not re.fullmatch(r"[\d.+\-*/()]+", text) or len(text) > 80 or re.search(r"\*\*\d{3}|\*\*\(?\d+\*\*", text):
        return None
    try:
        return float(eval(text))  # digits and operators only
    except (SyntaxError, TypeError, ZeroDivisionError, OverflowError):
        return None


def same_by_another_reader(a, b):
    x, y = number_or_none(a), number_or_none(b)
    if x is not None and y is not None:
        in_percent = ("%" in a) != ("%" in b)
        return any(x == pytest.approx(y * factor, rel=1e-12) for factor in ((1, 100, 0.01) if in_percent else (1,)))
    bare = [re.sub(r"\\[dt]frac", r"\\frac", text).replace(r"\mbox{four}", "4") for text in (a, b)]
    bare = [
        re.sub(r"\\(?:text|left|right|!|,|;|\$)|\^\\circ|or|and|[\s{}()$.]|^[a-zA-Z]=|,$", "", text) for text in bare
    ]
    return bare[0] == bare[1] or sorted(bare[0].split(",")) == sorted(bare[1].split(","))


def pairs_of(answers, per_answer, seed=0):
    """Ordered pairs: all if they are few, else neighbours in alphabetical order (likely to be alike), and as many
    random ones."""
    if len(answers) <= 150:
        return [(a, b) for a in answers for b in answers if a is not b]
    draw, ordered = random.Random(seed), sorted(answers, key=normal_form)
    near = [
        (ordered[i], ordered[(i + step) % len(ordered)])
        for i in range(len(ordered))
        for step in range(1, per_answer // 2)
    ]
    far = [(a, b) for a in answers for b in draw.sample(answers, per_answer // 2) if a is not b]
    return near + far


@each_file
@pytest.mark.slow
def test_golds_of_other_rows_are_refused_unless_equal_in_value(name):
    accepted = []
    for gold, answer in pairs_of(distinct_answers(name), per_answer=6):
        verdict = quick_verdict(gold, answer)
        if equal_answers(gold, answer, equal_expressions) if verdict is None else verdict:
            accepted.append((gold, answer))
    assert [pair for pair in accepted if not same_by_another_reader(*pair)] == []


@each_file
def test_numbers_equal_by_another_reader_are_accepted(name):
    by_value = {}
    for answer in distinct_answers(name):
        if (value := number_or_none(answer)) is not None:
            by_value.setdefault(round(value, 9), []).append(answer)
    equal = [(a, b) for group in by_value.values() if len(group) > 1 for a in group for b in group]
    # Other than this reader does, the rewards keep apart other things (\$20, 20 hours) and other names (x = 2, k = 2).
    equal = [
        pair for pair in equal if not all(re.search(r"text|mbox|\\\$|%|circ|^[a-zA-Z] ?=", side) for side in pair)
    ]
    equal = [pair for pair in equal if not re.search("[a-z]", re.sub(r"\\\\[a-z]+|^[a-z] ?=", "", "".join(pair)))]
    assert [pair for pair in equal if not equal_answers(*pair, equal_expressions)] == []


@pytest.mark.parametrize("name", [name for name in FILES if any(part in name for part in CHOICE)] or ["none"])
def test_other_letters_and_other_options_are_refused(name):
    golds, sources, prompts = rows_of(name)
    others = [chr(ord("A") + (ord(gold) - ord("A") + 1) % 5) for gold in golds]
    assert sum(verifiable_reward([rf"\boxed{{{other}}}" for other in others], golds, sources, prompts)) == 0
    options = [dict(re.findall(r"(?m)^([A-Z])\. (.*)$", prompt[-1]["content"])) for prompt in prompts]
    texts = [rf"\boxed{{\text{{{row[gold]}}}}}" for gold, row in zip(golds, options, strict=True)]
    assert verifiable_reward(texts, golds, sources, prompts) == [1.0] * len(golds)
    wrong = [
        next(rf"\boxed{{{text}}}" for letter, text in row.items() if text.lower() != row[gold].lower())
        for gold, row in zip(golds, options, strict=True)
    ]
    assert sum(verifiable_reward(wrong, golds, sources, prompts)) == 0


# ---- rewritten golds: each function gives an answer of equal value, or None where it does not apply ----


def kind_of(answer):
    return shape_of(normal_form(answer)).kind


def spaced(answer):
    return re.sub(r"(?<=[\d}])([+\-])", r" \1\\, ", answer) if kind_of(answer) == "expression" else f"  {answer} "


def other_fractions(answer):
    return answer.replace(r"\frac", r"\dfrac") if r"\frac" in answer else None


def short_fractions(answer):
    short = re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", answer)
    return short if short != answer else None


def slashed(answer):
    match = re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", answer)
    return f"{match[1]}{match[2]}/{match[3]}" if match else None


def as_decimal(answer):
    match = re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", answer)
    exact = match and int(match[3]) in (2, 4, 5, 8, 10, 16, 20, 25, 40, 50, 64, 100, 128)
    return f"{match[1]}{int(match[2]) / int(match[3])!r}" if exact else None


def as_fraction(answer):
    match = re.fullmatch(r"(-?)(\d+)\.(\d+)", answer)
    return rf"{match[1]}\frac{{{int(match[2] + match[3])}}}{{{10 ** len(match[3])}}}" if match else None


def without_sizes(answer):
    return re.sub(r"\\(?:left|right)(?![a-z])", "", answer) if "\\left" in answer else None


def with_sizes(answer):
    if "\\left" in answer or kind_of(answer) != "tuple":
        return None
    return rf"\left{answer.strip()[0]} {answer.strip()[1:-1]} \right{answer.strip()[-1]}"


def named(answer):
    return f"x = {answer}" if kind_of(answer) in ("number", "expression") else None


def thousands(answer):
    return f"{int(answer):,}" if re.fullmatch(r"-?\d{4,15}", answer) else None


def thousands_in_latex(answer):
    return f"{int(answer):,}".replace(",", "{,}") if re.fullmatch(r"-?\d{4,15}", answer) else None


def decimal_point(answer):
    return f"{answer}.0" if re.fullmatch(r"-?\d+", answer) else None


def with_unit(answer):
    return rf"{answer}\text{{ units}}" if re.search(r"\d\}?$", answer) and kind_of(answer) == "number" else None


def with_degrees(answer):
    return rf"{answer}^\circ" if re.fullmatch(r"-?\d+", answer) else None


def without_degrees(answer):
    return re.sub(r"\^\\circ|\^\{\\circ\}", "", answer) if "circ" in answer else None


def in_dollars(answer):
    return rf"\${answer}" if re.fullmatch(r"\d+(\.\d+)?", answer) else None


def in_math_mode(answer):
    return f"${answer}$" if "$" not in answer else None


def with_a_full_stop(answer):
    return f"{answer}."


def reversed_list(answer):
    shape = shape_of(normal_form(answer))
    if shape.kind != "list" or any(kind_of(part) == "words" for part in shape.parts):
        return None
    return r"\{" + ", ".join(reversed(shape.parts)) + r"\}"


def reversed_union(answer):
    return r" \cup ".join(reversed(answer.split(r"\cup"))) if kind_of(answer) == "union" else None


def other_matrix(answer):
    return answer.replace("pmatrix", "bmatrix") if "pmatrix" in answer else None


def as_text(answer):
    return rf"\text{{{answer}}}" if re.fullmatch(r"[A-Za-z ]{3,}", answer) else None


def as_plain_words(answer):
    match = re.fullmatch(r"\\text\{([A-Za-z ]+)\}", answer)
    return match[1].lower() if match and len(match[1]) > 1 else None


REWRITINGS = [
    spaced, other_fractions, short_fractions, slashed, as_decimal, as_fraction, without_sizes, with_sizes, named, thousands,
    thousands_in_latex, decimal_point, with_unit, with_degrees, without_degrees, in_dollars, in_math_mode, with_a_full_stop,
    reversed_list, reversed_union, other_matrix, as_text, as_plain_words,
]  # fmt: skip


@pytest.mark.parametrize("rewrite", REWRITINGS, ids=lambda rewrite: rewrite.__name__)
def test_rewritten_golds_are_accepted(rewrite):
    pairs = {(gold, rewrite(gold)) for name in FILES for gold in distinct_answers(name)}
    golds, answers = zip(*sorted((gold, answer) for gold, answer in pairs if answer is not None), strict=True)
    scores = verifiable_reward([rf"\boxed{{{answer}}}" for answer in answers], golds)
    refused = [pair for pair, score in zip(zip(golds, answers, strict=True), scores, strict=True) if score != 1.0]
    assert not refused and len(golds) > 2


# ---- near misses: each function gives an answer of other value, or None where it does not apply ----


def other_sign(answer):
    if kind_of(answer) not in ("number", "expression") or re.fullmatch(r"[0.]+", answer):
        return None
    if answer.lstrip().startswith("-"):
        return answer.lstrip()[1:] if not re.search(r"(?<!^)[+-]", answer.strip()) else f"-({answer})"
    return f"-{answer}" if kind_of(answer) == "number" else f"-({answer})"


def one_more(answer):
    if re.fullmatch(r"-?\d+", answer):
        return str(int(answer) + 1)
    return f"{answer}+1" if kind_of(answer) == "expression" and re.search(r"[\d})a-z]$", answer) else None


def one_less(answer):
    return str(int(answer) - 1) if re.fullmatch(r"-?\d+", answer) else None


def ten_times(answer):
    return f"{answer}0" if re.fullmatch(r"-?[1-9]\d*", answer) else None


def other_interval_end(answer):
    if kind_of(answer) != "tuple" or answer.rstrip()[-1] not in ")]":
        return None
    return answer.rstrip()[:-1] + {")": "]", "]": ")"}[answer.rstrip()[-1]] if answer.count(",") == 1 else None


def swapped_pair(answer):
    shape = shape_of(normal_form(answer))
    if shape.kind != "tuple" or len(set(shape.parts)) == 1:
        return None
    return shape.value[0] + ",".join(shape.parts[::-1]) + shape.value[1] if shape.parts != shape.parts[::-1] else None


def missing_element(answer):
    shape = shape_of(normal_form(answer))
    return ",".join(shape.parts[1:]) if shape.kind == "list" else None


def transposed(answer):
    shape = shape_of(normal_form(answer))
    if shape.kind != "matrix" or [*zip(*shape.parts, strict=True)] == list(shape.parts):
        return None
    return r"\begin{pmatrix}" + r"\\".join("&".join(row) for row in zip(*shape.parts, strict=True)) + r"\end{pmatrix}"


def other_entry(answer):
    return (
        re.sub(r"(?<=[ {])(\d+)(?=[ }&])", lambda m: str(int(m[1]) + 1), answer, count=1)
        if "begin{p" in answer
        else None
    )


def other_base(answer):
    return (
        re.sub(r"_\{?(\d+)\}?", lambda m: f"_{{{int(m[1]) + 1}}}", answer)
        if kind_of(answer) == "place_value"
        else None
    )


def outside_the_box(answer):
    return r"wrong}, that is " + answer + r", or \boxed{wrong"


def other_variable(answer):
    names = set(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", answer)) - set("ei")
    if kind_of(answer) != "expression" or len(names) != 1:
        return None
    return re.sub(r"(?<![\\a-zA-Z])[a-df-hj-zA-Z](?![a-zA-Z])", "w", answer)


NEAR_MISSES = [
    other_sign, one_more, one_less, ten_times, other_interval_end, swapped_pair, missing_element, transposed, other_entry,
    other_base, outside_the_box, other_variable,
]  # fmt: skip


@pytest.mark.parametrize("miss", NEAR_MISSES, ids=lambda miss: miss.__name__)
def test_near_misses_of_golds_are_refused(miss):
    pairs = {(gold, miss(gold)) for name in FILES for gold in distinct_answers(name)}
    pairs = sorted((gold, answer) for gold, answer in pairs if answer not in (None, gold))
    numbers = [pair for pair in pairs if kind_of(pair[0]) == "number"]
    others = [pair for pair in pairs if kind_of(pair[0]) != "number"]  # slower, since parsed: a sample
    golds, answers = zip(*numbers, *random.Random(0).sample(others, min(len(others), 250)), strict=True)
    scores = verifiable_reward([rf"\boxed{{{answer}}}" for answer in answers], golds)
    assert [pair for pair, score in zip(zip(golds, answers, strict=True), scores, strict=True) if score] == []
    assert len(golds) > 5
