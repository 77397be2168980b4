r"""Whether two answers are equal in value, by their shapes; what is left to computer algebra is passed on.

`equal_answers(gold, answer, equal_expressions)` decides all it can by exact arithmetic and by structure (two pairs are
equal if their elements are), and asks `equal_expressions(gold, answer)` about single expressions, equations and sets.
In the worker processes that is [`symbolic.equal_expressions`]; in the trainer's process it raises, so that nothing
that could hang ever runs there.
"""

import re
from collections.abc import Callable
from functools import partial

from .exact_numbers import Number, same_number
from .formulas import NAME, has_variables, is_formula
from .names import equal_named
from .normal_form import key, normal_form
from .shapes import Shape, shape_of
from .units import same_unit


MAX_CHARACTERS = 2000  # of an answer; the longest gold of the paper's data has 187
MAX_DEPTH = 20  # of nested brackets
SETS = {"tuple", "union", "relation", "expression"}

EqualExpressions = Callable[[str, str], bool]


def is_reasonable(answer: str) -> bool:
    """Whether an answer is short and flat enough to be looked at: longer or deeper ones are wrong without a look."""
    if len(answer) > MAX_CHARACTERS:
        return False
    depth = deepest = 0
    for bracket in re.finditer(r"[({\[]|[)}\]]", answer):
        depth += 1 if bracket.group() in "({[" else -1
        deepest = max(deepest, depth)
    return deepest <= MAX_DEPTH


def equal_answers(gold: str, answer: str, equal_expressions: EqualExpressions) -> bool:
    """
    Whether an answer is equal in value to the gold answer. The two are not exchangeable: the gold sets the form.

    Args:
        gold (`str`): Gold answer, LaTeX or plain.
        answer (`str`): Answer, LaTeX or plain.
        equal_expressions (`Callable[[str, str], bool]`): Decides about normal forms that only computer algebra can
            compare.
    """
    if not is_reasonable(answer) or not is_reasonable(gold):
        return answer.strip() == gold.strip()
    ask = partial(_equal_formulas, equal_expressions)
    return _equal(normal_form(gold), normal_form(answer), ask)


def _equal_formulas(equal_expressions: EqualExpressions, gold: str, answer: str) -> bool:
    """Computer algebra gets formulas alone: words, accents and the like it would drop."""
    return is_formula(gold) and is_formula(answer) and equal_expressions(gold, answer)


def _equal(gold: str, answer: str, equal_expressions: EqualExpressions) -> bool:
    if key(gold).replace("°", "") == key(answer).replace("°", ""):
        return bool(answer)
    g, a = shape_of(gold), shape_of(answer)
    if "empty" in (g.kind, a.kind) or not same_unit(g.unit, a.unit):
        return False
    named = equal_named(g, a, lambda x, y: _equal(x, y, equal_expressions))
    if named is not None:
        return named
    if "equation" in (g.kind, a.kind):
        return _equal_equations(gold, answer, equal_expressions)
    if "member" in (g.kind, a.kind):
        return _equal_members(g, a, equal_expressions)
    if g.kind == a.kind:
        return _equal_of_one_kind(g, a, equal_expressions)
    return _equal_of_two_kinds(g, a, equal_expressions)


def _equal_of_one_kind(g: Shape, a: Shape, equal_expressions: EqualExpressions) -> bool:
    if g.kind == "number":
        return _equal_numbers(g, a)
    if g.kind in ("boolean", "words", "ratio", "place_value"):
        return g.value == a.value
    if g.kind == "letter":
        return g.text == a.text
    if g.kind == "matrix":
        same_form = [len(row) for row in g.parts] == [len(row) for row in a.parts]
        cells = zip(sum(g.parts, ()), sum(a.parts, ()), strict=False)
        return same_form and all(_equal(x, y, equal_expressions) for x, y in cells)
    if g.kind == "tuple":
        # (a,b), (a,b], [a,b) and [a,b] are four intervals, but (1,2,3) and [1,2,3] are one sequence
        same_brackets = g.value == a.value or (len(g.parts) > 2 and {g.value, a.value} <= {"()", "[]"})
        return same_brackets and _equal_in_order(g.parts, a.parts, equal_expressions)
    if g.kind == "list":
        if g.value and a.value and g.value != a.value and any(_is_statement(part) for part in g.parts):
            return False
        if all(shape_of(part).kind == "words" for part in g.parts):
            return _equal_in_order(g.parts, a.parts, equal_expressions)
        return _equal_in_any_order(g.parts, a.parts, equal_expressions)
    if g.kind == "union" and _equal_in_any_order(g.parts, a.parts, equal_expressions):
        return True
    return equal_expressions(g.text, a.text)


def _is_statement(part: str) -> bool:
    """Whether `and` and `or` make a difference after it: to `x<1` and to a proposition `a`, not to values that are
    listed."""
    return "\\neg" in part or shape_of(part).kind in ("letter", "relation", "member")


def _equal_of_two_kinds(g: Shape, a: Shape, equal_expressions: EqualExpressions) -> bool:
    kinds = {g.kind, a.kind}
    for one, other, swapped in ((g, a, False), (a, g, True)):
        if one.kind == "list" and len(one.parts) == 1:  # {5} and 5
            gold, answer = (other.text, one.parts[0]) if swapped else (one.parts[0], other.text)
            return _equal(gold, answer, equal_expressions)
    if g.kind == "tuple" and g.value == "[]" and len(g.parts) == 1:  # [3] and 3
        return _equal(g.parts[0], a.text, equal_expressions)
    if (
        g.kind == "tuple" and g.value == "[]" and len(g.parts) > 2 and a.kind == "list"
    ):  # [4,1,2] and 4,1,2, but not {4,1,2}
        return not a.text.startswith("\\{") and _equal_in_order(g.parts, a.parts, equal_expressions)
    if kinds == {"matrix", "expression"}:
        return "\\begin" in g.text and "\\begin" in a.text and equal_expressions(g.text, a.text)
    if kinds <= {"number", "expression", "letter"}:
        if "number" in kinds and has_variables((a if g.kind == "number" else g).text):
            return False
        return equal_expressions(g.text, a.text)
    if kinds == {"words", "expression"}:  # `\text{two lines}` and `two\ lines`, whatever the markup
        return _plain(g.text) == _plain(a.text)
    if kinds <= SETS:  # an interval and an inequality, a union and \mathbb{R} \setminus ...
        set_like = [shape.kind != "tuple" or len(shape.parts) == 2 for shape in (g, a)]
        formula = [
            shape.kind == "expression" and not re.search(r"\\(?:mathbb|setminus)", shape.text) for shape in (g, a)
        ]
        return all(set_like) and not any(formula) and equal_expressions(g.text, a.text)
    return False


def _equal_numbers(g: Shape, a: Shape) -> bool:
    """Exact. A percentage is worth a hundredth, but may be given, and asked for, without its sign."""
    gold, answer = g.value, a.value
    if same_number(gold, answer):
        return True
    g_percent, a_percent = ("%" in (shape.unit or ()) for shape in (g, a))
    if g_percent == a_percent:
        return False
    percent, plain = (gold, answer) if g_percent else (answer, gold)
    return same_number(Number(percent.value / 100), plain)


def _equal_in_order(golds: tuple, answers: tuple, equal_expressions: EqualExpressions) -> bool:
    if len(golds) != len(answers):
        return False
    return all(_equal(gold, answer, equal_expressions) for gold, answer in zip(golds, answers, strict=True))


def _equal_in_any_order(golds: tuple, answers: tuple, equal_expressions: EqualExpressions) -> bool:
    """One to one, in any order. Being equal is transitive, so the first partner found is as good as any."""
    rest = list(answers)
    if len(golds) != len(answers):
        return False
    for gold in golds:
        partner = next((i for i, answer in enumerate(rest) if _equal(gold, answer, equal_expressions)), None)
        if partner is None:
            return False
        del rest[partner]
    return True


def _equal_members(g: Shape, a: Shape, equal_expressions: EqualExpressions) -> bool:
    r"""`x \in [0,1]` is compared by its set, and by its name if both have one."""
    if g.kind == a.kind:
        return key(g.parts[0]) == key(a.parts[0]) and _equal(g.parts[1], a.parts[1], equal_expressions)
    gold, answer = (shape.parts[1] if shape.kind == "member" else shape.text for shape in (g, a))
    return _equal(gold, answer, equal_expressions)


def _equal_equations(gold: str, answer: str, equal_expressions: EqualExpressions) -> bool:
    g, a = shape_of(gold), shape_of(answer)
    if g.kind != "equation":
        _, values = _assignment(a, named_only=False)
        return bool(values) and all(_equal(gold, value, equal_expressions) for value in values)
    g_name, g_values = _assignment(g)
    if "\\approx" in g.value:
        g_values = g_values + [part for sign, part in zip(g.value, g.parts[1:], strict=True) if sign == "\\approx"]
    if a.kind != "equation":
        return any(_equal(value, answer, equal_expressions) for value in g_values)
    a_name, a_values = _assignment(a)
    other_name = bool(g_name and a_name and key(g_name) != key(a_name))
    if other_name and not any(has_variables(value) for value in (*g_values, *a_values)):
        return False  # x=5 and y=5
    if other_name or not g_values or not a_values:
        return len(g.parts) == len(a.parts) == 2 and equal_expressions(g.text, a.text)
    return any(all(_equal(x, y, equal_expressions) for y in a_values) for x in g_values)


def _assignment(shape: Shape, named_only: bool = True) -> tuple[str | None, list[str]]:
    r"""
    What an equation gives a value to, and the values: `x=5` gives ("x", ["5"]), `0.56=56\%` gives (None, ["0.56",
    "56%"]).

    Approximations after an exact value are left out. An equation that gives no value (`2x+y=3`) gives (None, []). With
    `named_only=False` the left side may be any expression in letters (`a+b=14`), but not of a form equal to zero
    (`x+y=0`).
    """
    sides = [shape.parts[0], *(part for sign, part in zip(shape.value, shape.parts[1:], strict=True) if sign == "=")]
    if len(sides) == 1 and (not sides[0] or NAME.fullmatch(sides[0])):  # `\approx 8.24`, `x \approx 8.24`
        sides = list(shape.parts)
    sides = [side for side in sides if side]
    if len(sides) > 1 and NAME.fullmatch(sides[0]):
        return sides[0], sides[1:]
    if len(sides) == 2 and NAME.fullmatch(sides[1]):
        return sides[1], sides[:1]
    if not any(has_variables(side) for side in sides):
        return None, sides
    if (
        not named_only
        and not re.search(r"\d", re.sub(r"[_^]\{[^{}]*\}|\([^()]*\)", "", sides[0]))
        and sides[-1] != "0"
    ):
        return None, sides[1:]
    return None, []


def is_comparable(gold: str, parses: Callable[[str], bool]) -> bool:
    """
    Whether rewritten answers can be told equal to a gold answer: all of its parts are numbers, words, letters and the
    like, or expressions that `parses`. Otherwise only the very same answer is accepted.
    """
    return is_reasonable(gold) and _is_comparable(normal_form(gold), parses)


def _is_comparable(gold: str, parses: Callable[[str], bool]) -> bool:
    shape = shape_of(gold)
    if shape.kind in ("number", "boolean", "words", "letter", "place_value", "ratio"):
        return True
    if shape.kind in ("list", "tuple", "union", "matrix"):
        parts = sum(shape.parts, ()) if shape.kind == "matrix" else shape.parts
        return all(_is_comparable(part, parses) for part in parts)
    if shape.kind in ("equation", "member"):
        return all(_is_comparable(part, parses) for part in shape.parts if part)
    return shape.kind != "empty" and is_formula(shape.text) and parses(shape.text)


def _plain(text: str) -> str:
    return re.sub(r"\\text|[\s{}.,;:!?'\"]", "", text).lower()
