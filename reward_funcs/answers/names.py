r"""Values that are given by name: `x=2, y=3`, `(x,y)=(2,3)`, `S_1:S_2=7:32`, beside the bare `(2,3)` and `7:32`.

With names on both sides the order is free; with names in the gold alone the answer has the gold's order; with names in
the
answer alone the values are in the order of the alphabet, where the names are neighbours in it (`x, y`; `a_1, a_2`; not
    `r, \theta`).
"""

import re
from collections.abc import Callable

from .formulas import NAME
from .normal_form import key
from .shapes import Shape, shape_of


Names = dict[str, str]  # name -> value, in the order they are given


def equal_named(gold: Shape, answer: Shape, equal: Callable[[str, str], bool]) -> bool | None:
    """Whether several named values are those of the other side; `None` if neither side names several."""
    g, a = named_values(gold), named_values(answer)
    if g and a:
        return g.keys() == a.keys() and all(equal(g[name], a[name]) for name in g)
    if g:
        return _is_sequence(answer) and _equal_in_order(list(g.values()), _parts(answer), equal)
    if a and (gold.kind == "ratio" or (gold.kind == "tuple" and gold.value == "()")):
        return _equal_in_order(_parts(gold), _alphabetical(a), equal)
    return None


def named_values(shape: Shape) -> Names | None:
    """Several values by their names; `None` if a name stands twice (`x=1, x=2`), or for anything else."""
    pairs: list[tuple[str, str]] = []
    if shape.kind == "list":
        sides = [shape_of(part) for part in shape.parts]
        if all(side.kind == "equation" and len(side.parts) == 2 and side.value == ("=",) for side in sides):
            pairs = [(side.parts[0], side.parts[1]) for side in sides]
    elif shape.kind == "equation" and len(shape.parts) == 2:
        left, right = (shape_of(side) for side in shape.parts)
        names = left.parts if left.kind == "tuple" else tuple(left.text.split(":"))
        if (
            right.kind in ("tuple", "ratio")
            and (right.kind == "ratio") == (":" in left.text)
            and len(names) == len(_parts(right))
        ):
            pairs = list(zip(names, _parts(right), strict=True))
    found = {key(name): value for name, value in pairs if NAME.fullmatch(name)}
    return found if len(found) == len(pairs) > 1 else None


def _is_sequence(shape: Shape) -> bool:
    braces = shape.text.startswith("\\{")
    return (
        shape.kind == "ratio"
        or (shape.kind == "list" and not braces)
        or (shape.kind == "tuple" and shape.value == "()")
    )


def _parts(shape: Shape) -> list[str]:
    return shape.text.split(":") if shape.kind == "ratio" else list(shape.parts)


def _equal_in_order(golds: list[str], answers: list[str], equal: Callable[[str, str], bool]) -> bool:
    return len(golds) == len(answers) and all(equal(g, a) for g, a in zip(golds, answers, strict=True))


def _alphabetical(named: Names) -> list[str]:
    """Values by their names' order in the alphabet if those are neighbours in it, else as they are given."""
    parts = [re.fullmatch(r"([A-Za-z])(?:_\{(\d+)\})?", name) for name in named]
    if not all(parts):
        return list(named.values())
    places = [(ord(part[1]), int(part[2] or 0)) for part in parts if part]
    letters = {letter for letter, _ in places}
    if max(letters) - min(letters) >= len(letters):
        return list(named.values())
    return [value for _, value in sorted(zip(places, named.values(), strict=True))]
