r"""What each part of the comparison of answers earns: what is lost without it, and if math-verify decides in its
place.

    python -m benchmarks.answer_parts [DATA_FOLDER]

The cases are the tests' own tables of answers (`tests/test_reward_funcs_math.py`, `tests/reward_cases.py`) and, with a
folder of parquet files in the layout of the paper's data, their golds in the tests' rewritings and near misses
(`tests/test_reward_funcs_data.py`), in every other spelling that the normal form knows, and in the rewritings here;
the golds themselves, and the golds of other rows. Each says whether its answer is right. Each part is then switched
off, by patching its module, in two ways:

    without      the part does nothing, and the rest goes on as it can
    math-verify  rows in which the part changed the verdict, or what computer algebra was asked, are decided by
                 math-verify alone

A right answer that is refused then, and was not before, is lost; a wrong one that is accepted then is a wrong accept.
"""

import argparse
import ast
import importlib.util
import json
import logging
import random
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pyarrow.parquet
from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.math_normalization import normalize_latex
from math_verify import parse, verify
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from reward_funcs import final_answer
from reward_funcs.answers import load_algebra
from reward_funcs.verifiable import is_multiple_choice


ROOT = Path(__file__).parents[1]
OUTPUT = Path("runs/benchmarks/answer_parts.json")
FILES = (
    "comparison", "counted_nouns", "dress", "exact_numbers", "formulas", "names", "normal_form", "shapes", "symbolic", "units",
)  # fmt: skip
MODULES = {name: import_module(f"reward_funcs.answers.{name}") for name in FILES}
COLUMNS = (
    "part", "file", "lines", "rows", "lost without", "wrong accepts without", "lost to math-verify", "wrong accepts of math-verify",
    "rows/s without",
)  # fmt: skip
NEVER = re.compile(r"(?!)()")  # with the one group that replacements name
SECONDS = 5.0  # for one question to computer algebra
EVERYTHING = "all ten files"


@dataclass(frozen=True)
class Case:
    """A gold, an answer to it, and whether that is right."""

    gold: str
    answer: str
    right: bool


@dataclass(frozen=True)
class Part:
    """
    A part that can be switched off.

    Attributes:
        name (`str`): What it does.
        file (`str`): Module of `reward_funcs.answers`.
        off (`dict`): "module.name" -> what stands there while the part is off.
        code (`tuple` of `str` or `int`): Names whose definitions are the part, or a number of lines. Default: the
            whole file.
        asks (`Callable`): Of a question to computer algebra, whether the part may change its answer. Default: no.
    """

    name: str
    file: str
    off: dict[str, Any]
    code: tuple[str | int, ...] = ()
    asks: Callable[[str], Any] = field(default=lambda text: False)

    @property
    def lines(self) -> int:
        text = Path(MODULES[self.file].__file__).read_text()
        if not self.code:
            return len(text.splitlines())
        spans = {}
        for node in ast.parse(text).body:
            targets = [node] if isinstance(node, ast.FunctionDef) else getattr(node, "targets", [])
            spans |= {getattr(t, "name", getattr(t, "id", "")): node.end_lineno - node.lineno + 1 for t in targets}
        return sum(one if isinstance(one, int) else spans[one] for one in self.code)


@dataclass(frozen=True)
class Verdict:
    """Of one case: equal or not, what computer algebra was asked, and the processor seconds of both."""

    equal: bool
    questions: tuple[tuple[str, str], ...]
    seconds: float


# ---------------------------------------------------------------------- the parts


def nothing(*_) -> None:
    return None


def without_rewrites(*samples: str) -> list:
    """The rewrites of the normal form but, for each sample, the first that applies to it."""
    rewrites = MODULES["normal_form"].REWRITES
    left_out = [next(pattern for pattern, _ in rewrites if pattern.search(sample)) for sample in samples]
    return [rewrite for rewrite in rewrites if rewrite[0] not in left_out]


def unless(pattern: str) -> Callable:
    """A reader of numbers that reads none with the pattern."""
    read, found = MODULES["exact_numbers"].parse_number, re.compile(pattern)
    return lambda normal: None if found.search(normal) else read(normal)


def reader_off(pattern: str) -> dict[str, Any]:
    return dict.fromkeys(("shapes.parse_number", "symbolic.parse_number"), unless(pattern))


def pattern_off(*names: str) -> tuple[re.Pattern, ...]:
    """What finds units, but for the patterns of these names."""
    units = MODULES["units"]
    return tuple(pattern for pattern in units.PATTERNS if pattern not in [getattr(units, name) for name in names])


def same_value(gold, answer) -> bool:
    return MODULES["exact_numbers"].same_number(gold.value, answer.value)


def upstream_normal_form(text: str) -> str:
    config = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    return normalize_latex(text, config)


def by_verify(gold: str, answer: str) -> bool:
    """What upstream says about two equations or expressions that our reader has parsed."""
    g, a = map(MODULES["symbolic"].parse_expression, (gold, answer))
    return None not in (g, a) and verify(g, a, timeout_seconds=None, allow_set_relation_comp=True)


def to_algebra(gold, answer, equal_expressions) -> bool:
    texts = [side if isinstance(side, str) else side.text for side in (gold, answer)]
    return texts[0] == texts[1] or equal_expressions(*texts)


def parts() -> list[Part]:
    shape = MODULES["shapes"].Shape
    algebra = MODULES["symbolic"]
    always = lambda text: True  # noqa: E731
    return [
        Part("structure: pairs, lists, names, units", "comparison", {"comparison._equal": to_algebra}),
        Part("percent", "comparison", {"comparison._equal_numbers": same_value}, ("_equal_numbers",)),
        Part("equations and names", "comparison", {"comparison._equal_equations": to_algebra}, ("_equal_equations", "_assignment")),
        Part("membership", "comparison", {"comparison._equal_members": to_algebra}, ("_equal_members",)),
        Part("order: sets and sequences", "comparison", {"comparison._equal_in_any_order": MODULES["comparison"]._equal_in_order}, ("_equal_in_any_order",)),
        Part("intervals as inequalities", "comparison", {"comparison.SETS": set()}, (6, "SETS")),
        Part("`and` and `or`", "comparison", {"comparison._is_statement": lambda part: False}, ("_is_statement", 2)),
        Part("counted nouns", "counted_nouns", {"units.is_counted_noun": lambda word: False}),
        Part("dress", "dress", {"normal_form.undress": MODULES["dress"].strip_delimiters}, ("REWRITES", "undress", 7)),
        Part("dollars, Markdown and quotes around", "dress", {"dress.strip_delimiters": str.strip}, ("AROUND", "LOOSE_END", "strip_delimiters")),
        Part("formulas alone to algebra", "formulas", {"comparison.is_formula": always}, ("COMMANDS", "NOT_FORMULAS", "is_formula")),
        Part("bound letters", "formulas", {"formulas.BOUND": {}}, ("BOUND", 5)),
        Part("named values", "names", {"comparison.equal_named": nothing}),
        Part("exact rationals", "exact_numbers", reader_off("")),
        Part("number words", "exact_numbers", {"exact_numbers.WORDS": ()}, ("WORDS", 3)),
        Part("millions", "exact_numbers", {"exact_numbers.SCALED": NEVER}, ("SCALES", "SCALED", 2)),
        Part("mixed numbers", "exact_numbers", reader_off(r"\d\s*\\frac|\d \d+/\d"), (1,)),
        Part("powers of ten", "exact_numbers", reader_off(r"\de[+-]?\d|10\^"), (6,)),
        Part("repeating decimals", "exact_numbers", reader_off("overline|bar"), (5,)),
        Part("rounded decimals", "exact_numbers", {"exact_numbers.is_rounding_of": lambda *_: False}, ("is_rounding_of", 3)),
        Part("one spelling of LaTeX", "normal_form", {"comparison.normal_form": str.strip}),
        Part("one spelling, by math-verify's `normalize_latex`", "normal_form", {"comparison.normal_form": upstream_normal_form}),
        Part("characters for commands", "normal_form", {"normal_form.CHARACTERS": {}}, ("CHARACTERS",)),
        Part("commands for commands", "normal_form", {"normal_form.SYNONYMS": {}}, ("SYNONYMS", "_one_spelling")),
        Part("thousands separators", "normal_form", {"normal_form.THOUSANDS": NEVER, "normal_form.REWRITES": without_rewrites(r"10,\!080", r"10\,080")} | reader_off(r"\d \d{3}"), ("THOUSANDS", 5)),
        Part("sizes and spaces", "normal_form", {"normal_form.REWRITES": without_rewrites(r"\left(", r"\phantom x", r"\!", r"x\,y")}, ("SIZES", "NOTHING", 4)),
        Part("plain words for commands", "normal_form", {"normal_form.REWRITES": without_rewrites("√2", "√", "2**3", "infinity", "pi")}, (5,)),
        Part("fonts and function names", "normal_form", {"normal_form.REWRITES": without_rewrites(r"\mathrm{e}", r"\mathbf{x}", r"\text{sin}")}, ("FUNCTIONS", 3)),
        Part("degree signs", "normal_form", {"normal_form.REWRITES": without_rewrites(r"9^\circ")}, (1,)),
        Part("braces for arguments", "normal_form", {"normal_form._brace_arguments": str}, ("_brace_arguments", "_closing_parenthesis")),
        Part("blanks", "normal_form", {"normal_form.TIGHT": NEVER, "comparison.key": str}, ("TIGHT", "key")),
        Part("shapes", "shapes", {"comparison.shape_of": lambda text: shape("expression" if text else "empty", text)}),
        Part("lists and sets", "shapes", {"shapes._list": nothing}, ("_list", "SEPARATORS")),
        Part("plus or minus", "shapes", {"shapes._both_signs": lambda element: [element]}, ("_both_signs",)),
        Part("tuples and intervals", "shapes", {"shapes._delimited": nothing}, ("_delimited", "_closes_at_end")),
        Part("sets by a condition", "shapes", {"shapes.SET_BUILDER": NEVER}, ("SET_BUILDER", "_set_builder", 2)),
        Part("unions", "shapes", {"shapes._union": nothing}, ("_union", "UNION")),
        Part("matrices", "shapes", {"shapes._matrix": nothing}, ("_matrix", "MATRIX")),
        Part("relations", "shapes", {"shapes._relation": nothing}, ("_relation", "RELATIONS")),
        Part("truth values", "shapes", {"shapes.BOOLEANS": {}}, ("BOOLEANS", 2)),
        Part("words", "shapes", {"shapes.WORDS": NEVER, "shapes._shape_of_words": nothing}, ("WORDS", "MATH_WORDS", "_words", "_shape_of_words")),
        Part("other bases", "shapes", {"shapes.PLACE_VALUE": NEVER}, ("PLACE_VALUE", 3)),
        Part("ratios and times", "shapes", {"shapes.RATIO": NEVER}, ("RATIO", 2)),
        Part("computer algebra of our own", "symbolic", {"symbolic.equal_expressions": math_verify_alone}, asks=always),
        Part("values to forty digits", "symbolic", {"symbolic.values": nothing, "symbolic._equal_equations": by_verify, "symbolic._is_rounded": lambda *_: False}, ("values", "_coordinate", "_number", "_same_values", "_same_number"), asks=always),
        Part("rounded surds", "symbolic", {"symbolic._is_rounded": lambda *_: False}, ("_is_rounded", "_rational"), asks=MODULES["exact_numbers"].parse_number),
        Part("multiples of equations", "symbolic", {"symbolic._equal_equations": by_verify}, ("_equal_equations",), asks=lambda text: "=" in text),
        Part("degrees", "symbolic", {"symbolic.DEGREES": NEVER}, ("DEGREES", 1), asks=algebra.DEGREES.search),
        Part("products with brackets", "symbolic", {"symbolic.PRODUCT": NEVER}, ("PRODUCT", 1), asks=algebra.PRODUCT.search),
        Part("matrices worked out", "symbolic", {"symbolic._is_matrix": lambda parsed: False}, ("_is_matrix", "_equal_matrices", 2), asks=lambda text: "begin{" in text),
        Part("primes", "symbolic", {"symbolic.with_named_primes": str}, (1,), asks=lambda text: "'" in text),
        Part("capitals", "symbolic", {"symbolic.CAPITAL": NEVER}, ("CAPITAL", 1), asks=algebra.CAPITAL.search),
        Part("units", "units", {"shapes.split_unit": lambda normal: (normal, None)}),
        Part("contradicting units", "units", {"comparison.same_unit": lambda *_: True}, ("same_unit",)),
        Part("unknown words", "units", {"units._is_harmless": always}, ("_is_harmless", 2)),
        Part("currencies", "units", {"units.CURRENCY": NEVER}, ("CURRENCY", 3)),
        Part("signs (%, °)", "units", {"units.PATTERNS": pattern_off("SYMBOL")}, ("SYMBOL", 2)),
        Part("quotients of units", "units", {"units.PATTERNS": pattern_off("QUOTIENT", "OVER", "GREEK")}, ("JOINT", "UNIT", "QUOTIENT", "OVER", "GREEK")),
        Part("units as text", "units", {"units.PATTERNS": pattern_off("TEXT")}, ("TEXT", "NOT_TEXT_UNITS", 4)),
        Part("plain units and nouns", "units", {"units.PATTERNS": pattern_off("PLAIN")}, ("PLAIN", "SCALE", "NOT_NOUNS", 5)),
        Part("names of units", "units", {"units.CANONICAL": {}}, ("SPELLINGS", "CANONICAL", "COMPOUNDS", "_canonical", "_singular")),
    ]  # fmt: skip


# ---------------------------------------------------------------------- cases


@cache
def tests(name: str) -> ModuleType:
    """A file of tests, whose tables are the cases."""
    spec = importlib.util.spec_from_file_location(f"{name}_cases", ROOT / "tests" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases_of_the_tests() -> list[Case]:
    tables, more = tests("test_reward_funcs_math"), tests("reward_cases")
    return [
        Case(gold, answer, right)
        for table, right in ((tables.EQUAL, True), (tables.DIFFERENT, False), (more.RIGHT, True), (more.WRONG, False))
        for rows in table.values()
        for gold, answers in rows
        for answer in answers
    ]


def cases_of_the_data(folder: Path, rows: int) -> list[Case]:
    """
    Golds of a folder's files that are no options of multiple choice: as they are, in each of the rewritings and near
    misses, in other spellings, and beside other golds of their file. At most `rows` of each of these, drawn with a
    fixed seed.
    """
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"No parquet files in '{folder}'. Give the folder of the data, or no folder.")
    made = tests("test_reward_funcs_data")
    golds = [golds_of(file) for file in files]
    distinct = sorted({gold for of_file in golds for gold in of_file})
    kinds = [[Case(gold, gold, True) for gold in distinct]]
    for right, changes in ((True, [*made.REWRITINGS, doubled, as_member]), (False, [*made.NEAR_MISSES, one_off])):
        for change in changes:
            pairs = [(gold, change(gold)) for gold in distinct if change is not made.outside_the_box]
            kinds.append([Case(*pair, right) for pair in pairs if pair[1] not in (None, pair[0])])
    others = {
        pair for of_file in golds for pair in made.pairs_of(of_file, 6) if not made.same_by_another_reader(*pair)
    }
    kinds.append([Case(*pair, False) for pair in sorted(others)])
    draw = random.Random(0)
    kinds.append(
        [case for spelling in other_spellings(distinct) for case in draw.sample(spelling, min(len(spelling), 3))]
    )
    return [case for kind in kinds for case in draw.sample(kind, min(len(kind), rows))]


def shape_of(gold: str) -> Any:
    return MODULES["shapes"].shape_of(MODULES["normal_form"].normal_form(gold))


def equation(gold: str) -> list[str] | None:
    """The two sides of an equation in formulas."""
    shape = shape_of(gold)
    plain = shape.kind == "equation" and shape.value == ("=",) and not re.search(r"text|%|\$", gold)
    return list(shape.parts) if plain and all(shape.parts) else None


def doubled(gold: str) -> str | None:
    sides = equation(gold)
    return f"2({sides[0]})=2({sides[1]})" if sides else None


def one_off(gold: str) -> str | None:
    sides = equation(gold)
    return f"{sides[0]}={sides[1]}+1" if sides else None


def as_member(gold: str) -> str | None:
    """An interval that no pair is, or a union."""
    interval = gold.strip()[0] + gold.strip()[-1] in ("[)", "(]") or "infty" in gold
    return rf"x \in {gold}" if interval and shape_of(gold).kind in ("tuple", "union") else None


def other_spellings(golds: list[str]) -> Iterator[list[Case]]:
    """For each command and character that the normal form replaces: the golds that have what it is replaced by, with
    it."""
    normal = MODULES["normal_form"]
    forms = {gold: normal.normal_form(gold) for gold in golds}
    commands = {
        rf"\{name} ": rf"\{to}" if to[0].isalpha() or to in "{}" else to for name, to in normal.SYNONYMS.items()
    }
    for spelling, to in (commands | {chr(code): to.strip() for code, to in normal.CHARACTERS.items()}).items():
        to = re.sub(r"\^(\d)", r"^{\1}", to)
        pattern = re.compile(re.escape(to) + r"(?![a-zA-Z])" * to[-1:].isalpha())
        found = ((gold, pattern.sub(lambda _: spelling, form)) for gold, form in forms.items() if to)  # noqa: B023
        yield [Case(gold, answer, True) for gold, answer in found if answer != forms[gold]]


def golds_of(file: Path, every_kind: bool = False) -> list[str]:
    """Distinct golds of a file; options of multiple choice only if `every_kind`."""
    table = pyarrow.parquet.read_table(file, columns=["reward_model", "data_source"]).to_pydict()
    answers = [
        (final_answer(row["ground_truth"]), source)
        for row, source in zip(table["reward_model"], table["data_source"], strict=True)
    ]
    return sorted({gold for gold, source in answers if gold and (every_kind or not is_multiple_choice(gold, source))})


# ---------------------------------------------------------------------- verdicts


@contextmanager
def switched_off(part: Part | None) -> Iterator[None]:
    """The part's names patched, and no verdict remembered from before or kept for after."""
    patches = [patch.object(MODULES[where], name, value) for where, name, value in targets(part)] if part else []
    forget()
    for one in patches:
        one.start()
    try:
        yield
    finally:
        for one in patches:
            one.stop()
        forget()


def targets(part: Part) -> Iterator[tuple[str, str, Any]]:
    for target, value in part.off.items():
        yield *target.split("."), value


def forget(*names: str) -> None:
    for module in [MODULES[name] for name in names or FILES]:
        for function in vars(module).values():
            getattr(function, "cache_clear", nothing)()


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def late(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def timed(decide: Callable[[str, str], bool], gold: str, answer: str) -> tuple[bool, float]:
    """A verdict within the time limit, `False` where there is none, and its processor seconds."""
    start = time.process_time()
    try:
        with time_limit(SECONDS):
            verdict = bool(decide(gold, answer))
    except Exception:
        verdict = False
    return verdict, time.process_time() - start


def math_verify_alone(gold: str, answer: str) -> bool:
    g, a = (parse(rf"\boxed{{{text}}}", parsing_timeout=None) for text in (gold, answer))
    return verify(g, a, timeout_seconds=None)


class Algebra:
    """Answers to questions, each worked out once, without help from the ones before it."""

    def __init__(self):
        self._known: dict[tuple, tuple[bool, float]] = {}

    def __call__(self, part: Part | None, gold: str, answer: str) -> tuple[bool, float]:
        touched = part is not None and any(part.asks(text) for text in (gold, answer))
        question = (part.name if touched else None, gold, answer)
        if question not in self._known:
            forget("symbolic")
            self._known[question] = timed(MODULES["symbolic"].equal_expressions, gold, answer)
        return self._known[question]


def verdicts(
    part: Part | None, cases: list[Case], algebra: Algebra, advance: Callable[[], Any] = nothing
) -> list[Verdict]:
    """Of all cases, with a part switched off."""
    found = []
    with switched_off(part):
        for case in cases:
            questions, waited = [], 0.0

            def ask(gold: str, answer: str) -> bool:
                nonlocal waited
                own = part and any(part.asks(text) for text in (gold, answer))
                questions.append((part.name if own else "", gold, answer))  # noqa: B023
                start = time.process_time()
                verdict, seconds = algebra(part, gold, answer)
                waited += seconds - (time.process_time() - start)
                return verdict

            start = time.process_time()
            equal = MODULES["comparison"].equal_answers(case.gold, case.answer, ask)
            found.append(Verdict(equal, tuple(questions), time.process_time() - start + waited))
            advance()
    return found


# ---------------------------------------------------------------------- results


def compare(
    name: str, file: str, lines: int, cases: list[Case], whole: list[Verdict], off: list[Verdict], alone: list
) -> dict:
    """What is lost on the cases that a part has to do with: without it (`off`), and with math-verify in its place
    (`alone`)."""
    touched = [
        row for row, (a, b) in enumerate(zip(whole, off, strict=True)) if (a.equal, a.questions) != (b.equal, b.questions)
    ]  # fmt: skip

    def changed(right: bool, verdict: Callable[[int], bool]) -> int:
        return sum(cases[row].right is right is whole[row].equal and verdict(row) is not right for row in touched)

    return {
        "part": name,
        "file": file,
        "lines": lines,
        "rows": len(touched),
        "lost without": changed(True, lambda row: off[row].equal),
        "wrong accepts without": changed(False, lambda row: off[row].equal),
        "lost to math-verify": changed(True, lambda row: alone[row].equal),
        "wrong accepts of math-verify": changed(False, lambda row: alone[row].equal),
        "rows/s without": round(len(off) / sum(verdict.seconds for verdict in off)),
    }


def measure(cases: list[Case], progress: Progress) -> dict:
    """The figures of all parts."""
    chosen, algebra = parts(), Algebra()
    task = progress.add_task("math-verify alone", total=len(cases) * (len(chosen) + 2))
    advance = lambda: progress.advance(task)  # noqa: E731
    alone = []
    for case in cases:
        equal, seconds = timed(math_verify_alone, case.gold, case.answer)
        alone.append(Verdict(equal, ("alone",), seconds))
        advance()
    progress.update(task, description="all parts")
    whole = verdicts(None, cases, algebra, advance)
    rows = [
        compare(EVERYTHING, "", sum(len(Path(m.__file__).read_text().splitlines()) for m in MODULES.values()), cases, whole, alone, alone)
    ]  # fmt: skip
    for part in chosen:
        progress.update(task, description=part.name)
        rows.append(
            compare(part.name, part.file, part.lines, cases, whole, verdicts(part, cases, algebra, advance), alone)
        )
    return {
        "cases": len(cases),
        "right": sum(case.right for case in cases),
        "refused": [[c.gold, c.answer] for c, v in zip(cases, whole, strict=True) if c.right and not v.equal],
        "accepted": [[c.gold, c.answer] for c, v in zip(cases, whole, strict=True) if v.equal and not c.right],
        "rows/s": round(len(cases) / sum(verdict.seconds for verdict in whole)),
        "parts": rows,
    }


def markdown(results: dict) -> str:
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---" + "|--:" * (len(COLUMNS) - 2) + "|"]
    return "\n".join(
        [*lines, *("| " + " | ".join(f"{row[name]}" for name in COLUMNS) + " |" for row in results["parts"])]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", help="folder of parquet files in the layout of the paper's data")
    parser.add_argument(
        "--rows", type=int, default=150, help="cases of each kind from the data (default: %(default)s)"
    )
    parser.add_argument("--cases", type=int, default=None, help="take a sample of so many cases (default: all)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file for the results (default: %(default)s)")
    arguments = parser.parse_args()
    logging.getLogger("math_verify").setLevel(logging.CRITICAL)
    load_algebra()
    cases = cases_of_the_tests() + (cases_of_the_data(arguments.data, arguments.rows) if arguments.data else [])
    cases = list(dict.fromkeys(cases))
    if arguments.cases is not None:
        cases = random.Random(0).sample(cases, min(arguments.cases, len(cases)))
    console = Console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        results = measure(cases, progress)
    table = Table(*COLUMNS, title=f"{results['cases']} cases, {results['right']} of them right")
    for row in results["parts"]:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    console.print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")
    arguments.output.with_suffix(".md").write_text(markdown(results) + "\n")
    console.print(f"Written: {arguments.output} and {arguments.output.with_suffix('.md')}")


if __name__ == "__main__":
    main()
