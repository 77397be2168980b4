r"""How often `reward_funcs.equation_steps` errs, both ways, on worked solutions whose calculations are annotated.

    python -m benchmarks.equation_steps FOLDER

FOLDER holds parquet files with a column `answer` or `solution`, in which each calculation is annotated as in GSM8K:
`48/2 = <<48/2=24>>24`. The annotations are taken out; they say where the equations stand and what they come to.

    found           annotated equations that the reader finds in the bare text
    called wrong    those it refuses. Where the annotation holds by another reader (Python's `ast`), either the text
                    says something else than its annotation, or it is a false alarm: the JSON file lists them
    changed         one number of an equation that it accepts is changed, so that by the other reader it is wrong:
                    in the result or on the left, by one in its last digit, in any digit, or tenfold

A change that is called right is a miss.
"""

import argparse
import ast
import json
import operator
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pyarrow.parquet
from rich.console import Console
from rich.table import Table

from reward_funcs import find_equations
from reward_funcs.equation_steps import Equation


OUTPUT = Path("runs/benchmarks/equation_steps.json")
ANNOTATION = re.compile(r"<<([^<>]*)>>")
NUMBER = re.compile(r"(?<![\d.,])(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?![\d,]*\d)")
LEADS = re.compile(r"(?:=|equals?(?: to)?|≈|about|approximately|[\s$£€(])*")  # from `=` to the result
OPERATORS: dict[type, Callable] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv, ast.USub: operator.neg,
}  # fmt: skip


def without_annotations(text: str) -> tuple[str, list[tuple[int, str]]]:
    """A text without annotations, and where in it each of them stood."""
    bare, last, places = "", 0, []
    for match in ANNOTATION.finditer(text):
        bare += text[last : match.start()]
        places.append((len(bare), match[1]))
        last = match.end()
    return bare + text[last:], places


def other_value(expression: str) -> Fraction | None:
    """Value of an annotation's side by Python's own parser, exactly; `None` if it is no plain arithmetic."""

    def value(node: ast.AST) -> Fraction:
        if isinstance(node, ast.BinOp):
            return OPERATORS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.UnaryOp):
            return OPERATORS[type(node.op)](value(node.operand))
        return Fraction(ast.get_source_segment(source, node))

    source = re.sub(r"(?<![\d.])0+(?=\d)", "", expression.replace(",", "").replace("$", "").strip())
    source = re.sub(r"([\d.]+)%", r"(\1/100)", source)
    try:
        return value(ast.parse(source, mode="eval").body)
    except (SyntaxError, KeyError, ValueError, TypeError, ZeroDivisionError):
        return None


def rounds(value: Fraction, literal: str) -> bool:
    """Whether a decimal is a value to within half a unit of its last digit; a whole number must be exact."""
    decimals = len(literal.partition(".")[2])
    return abs(value - Fraction(literal.replace(",", ""))) <= (Fraction(1, 2 * 10**decimals) if decimals else 0)


def equation_at(text: str, place: int, equations: list[Equation]) -> Equation | None:
    """The equation whose result stands at `place`."""
    for equation in equations:
        if equation.equals < place <= equation.end and LEADS.fullmatch(text[equation.equals : place]):
            return equation
    return None


def changed(literal: str, how: str, draw: random.Random) -> str:
    """Another number in the same form."""
    if how == "tenfold":
        whole, _, decimals = literal.partition(".")
        return whole + "0" + ("." + decimals if decimals else "") if "," not in literal else literal
    digits = [place for place, character in enumerate(literal) if character.isdigit()]
    place = digits[-1] if how == "last digit" else draw.choice(digits)
    step = draw.choice([-1, 1]) if how == "last digit" else draw.randrange(1, 10)
    return literal[:place] + str((int(literal[place]) + step) % 10) + literal[place + 1 :]


def is_other(new: str, old: str) -> bool:
    """Whether a changed number is another one, and one that people write (not `05`)."""
    return new != old and not re.match(r"0\d", new)


def changes(text: str, place: int, annotation: str, equation: Equation, draw: random.Random) -> list[tuple]:
    """Wrong versions of an equation: (which side, how, changed text, shift of the result's place)."""
    left, _, result = annotation.rpartition("=")
    value, literal = other_value(left), NUMBER.match(text, place)
    made = []
    for how in ("last digit", "any digit", "tenfold"):
        if literal is not None and value is not None:
            new = changed(literal[0], how, draw)
            if is_other(new, literal[0]) and not rounds(value, new):
                made.append(("result", how, text[: literal.start()] + new + text[literal.end() :], 0))
        numbers = [
            match for match in NUMBER.finditer(text, equation.start, equation.equals) if left.count(match[0]) == 1
        ]
        if numbers and literal is not None:
            number = draw.choice(numbers)
            new = changed(number[0], how, draw)
            now = other_value(re.sub(rf"(?<![\d.]){re.escape(number[0])}(?![\d.])", new, left))
            if now is not None and is_other(new, number[0]) and now != value and not rounds(now, literal[0]):
                shifted = text[: number.start()] + new + text[number.end() :]
                made.append(("left", how, shifted, len(new) - len(number[0])))
    return made


def measure(rows: list[str], seed: int) -> dict:
    """Counts over solutions."""
    draw, counts, false_alarms, missed = random.Random(seed), Counter(), [], []
    seconds = 0.0
    for row in rows:
        text, places = without_annotations(row)
        start = time.process_time()
        equations = find_equations(text)
        seconds += time.process_time() - start
        counts["equations"] += len(equations)
        counts["texts with a wrong one"] += not all(equation.holds for equation in equations)
        counts["texts without equations"] += not equations
        for place, annotation in places:
            counts["annotated"] += 1
            equation = equation_at(text, place, equations)
            if equation is None:
                continue
            counts["found"] += 1
            if not equation.holds:
                left, _, result = annotation.rpartition("=")
                value, literal = other_value(left), NUMBER.match(text, place)
                holds = value is not None and literal is not None and rounds(value, literal[0])
                counts["called wrong"] += 1
                counts["called wrong, hold by the other reader"] += holds
                is_near = (
                    value is not None
                    and literal is not None
                    and abs(value - Fraction(literal[0].replace(",", ""))) < 1
                )
                counts["called wrong, rounded to a whole number"] += is_near and not holds
                if holds:
                    false_alarms.append(text[equation.start : equation.end])
                continue
            for side, how, new, shift in changes(text, place, annotation, equation, draw):
                begin = new.rfind("\n", 0, equation.start) + 1
                line = new[begin:].partition("\n")[0]  # the only one that was changed
                verdict = equation_at(line, place + shift - begin, find_equations(line))
                kind = f"{side}, {how}"
                counts[f"{kind}: changed"] += 1
                counts[f"{kind}: called right"] += verdict is not None and verdict.holds
                counts[f"{kind}: not found"] += verdict is None
                if verdict is not None and verdict.holds:
                    missed.append(line[verdict.start : verdict.end])
    return {
        "rows": len(rows),
        "rows/s": round(len(rows) / max(seconds, 1e-9)),
        **counts,
        "false alarms": false_alarms,
        "missed": missed,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of parquet files with annotated solutions")
    parser.add_argument("--rows", type=int, default=None, help="rows of each file (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=OUTPUT, help="JSON file for the results (default: %(default)s)")
    arguments = parser.parse_args()
    files = sorted(arguments.data.rglob("*.parquet"))
    if not files:
        raise FileNotFoundError(f"No parquet files in '{arguments.data}'. Give the folder of the solutions.")
    results = {}
    for file in files:
        columns = pyarrow.parquet.read_schema(file).names
        column = "solution" if "solution" in columns else "answer"
        rows = pyarrow.parquet.read_table(file, columns=[column]).to_pydict()[column]
        results[file.stem] = measure(rows[: arguments.rows], arguments.seed)
    table = Table("", *results)
    for key in dict.fromkeys(key for of_file in results.values() for key in of_file):
        if key not in ("false alarms", "missed"):
            table.add_row(key, *(str(of_file.get(key, 0)) for of_file in results.values()))
    Console().print(table)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
