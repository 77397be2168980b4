"""The house rules that a program can check. The others are in CONTRIBUTING.md."""

import ast
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
PACKAGES = ("clipo_trl", "reward_funcs")
MAX_FUNCTION_LINES = 60  # without the docstring, which may be as long as the contract is
MAX_FILE_LINES = 450


def sources(*folders: str) -> dict[str, str]:
    """Text of each Python file under `folders`, by its path from the root."""
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def long_functions(source: str) -> list[str]:
    """Names of the functions of more than `MAX_FUNCTION_LINES` lines, docstrings not counted."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            n_lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                n_lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if n_lines > MAX_FUNCTION_LINES:
                found.append(node.name)
    return found


def prints(source: str) -> list[int]:
    """Lines that call `print`."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]


def test_functions_are_short():
    found = {f"{path}: {name}" for path, source in sources(*PACKAGES).items() for name in long_functions(source)}
    assert found == set(), "split them"


def test_files_are_short():
    n_lines = {path: len(source.splitlines()) for path, source in sources(*PACKAGES).items()}
    assert len(n_lines) > 40
    assert {path: n for path, n in n_lines.items() if n > MAX_FILE_LINES} == {}


def test_packages_log_and_do_not_print():
    assert {path: lines for path, source in sources(*PACKAGES).items() if (lines := prints(source))} == {}


def test_experiments_and_benchmarks_use_what_is_public_of_the_trainer():
    assert [path for path, source in sources("experiments", "benchmarks").items() if "trainer._" in source] == []


@pytest.mark.parametrize("n_lines, docstring, found", [(60, "", []), (61, "", ["f"]), (61, "two\n    lines", [])])
def test_how_functions_are_measured(n_lines, docstring, found):
    body = [f'    """{docstring}"""'] * bool(docstring)
    body += ["    pass"] * (n_lines - 1 - len("\n".join(body).splitlines()))
    assert long_functions("\n".join(["def f():", *body])) == found


def test_how_prints_are_found():
    assert prints("console.print(1)\nfingerprint()\nif True:\n    print(2)  # not print(3)\n") == [4]
