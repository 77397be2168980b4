"""A function of the user's by its dotted path, `package.module.function`; if there is none, which of the names is
wrong."""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from .errors import NotImportable, UsageError


def import_function(path: str) -> Callable:
    """
    Import a function by its dotted path. The working directory is searched too, after everything else, so that no file
    in it takes the place of a library's; it stays in `sys.path`.

    Raises:
        NotImportable: A package, a module, something the module imports, or the function is missing. The message says
        which,
            and where it was looked for. Other errors of the module's own code are passed on.
        UsageError: What stands there cannot be called.
    """
    module_name, _, name = path.rpartition(".")
    working_directory = str(Path.cwd())
    if not {working_directory, ""} & set(sys.path):
        sys.path.append(working_directory)
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise NotImportable(f"Reward function '{path}': {_what_is_missing(module_name, error)}") from error
    if not hasattr(module, name):
        raise NotImportable(
            f"Reward function '{path}': module '{module_name}' ({_places(module)}) has no '{name}'. It has: "
            f"{', '.join(_functions(module)) or 'no function'}."
        )
    function = getattr(module, name)
    if not callable(function):
        raise UsageError(
            f"Reward function '{path}' is a {type(function).__name__}, which cannot be called. Name a function."
        )
    return function


def _what_is_missing(module_name: str, error: ImportError) -> str:
    missing = error.name if isinstance(error, ModuleNotFoundError) and error.name else ""
    parent, _, child = missing.rpartition(".")
    on_the_path = bool(missing) and f"{module_name}.".startswith(f"{missing}.")
    if not on_the_path or (parent and parent not in sys.modules):  # the names are right, but what they lead to is not
        place = _first_line_outside_importlib(error)
        return (
            f"'{module_name}' was found, but an import inside it failed ({place}): {error}. Install or correct that."
        )
    if not parent:
        return (
            f"there is no package or module '{child}'. Looked in {_search_path()}. Correct the name, start from the folder that "
            "holds it, or add that folder to PYTHONPATH."
        )
    found = sys.modules[parent]
    if not hasattr(found, "__path__"):
        return (
            f"'{parent}' ({_places(found)}) is a module and no package, so there is no '{child}' in it to import from. A dotted "
            "path is 'package.module.function', or 'module.function'."
        )
    return f"package '{parent}' has no module '{child}'. Looked in {_places(found)}. Correct the name{_hidden_package(found)}."


def _hidden_package(found: ModuleType) -> str:
    """What to add if the working directory has a package of the same name, which is not the one that was found."""
    own = Path.cwd() / found.__name__.partition(".")[0]
    top = sys.modules[own.name]
    if not own.is_dir() or str(own) in map(str, top.__path__):
        return ""
    return f"; or rename '{own}': an installed package of that name comes before it"


def _first_line_outside_importlib(error: ImportError) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    return f"{outside[0].filename}, line {outside[0].lineno}" if outside else "in compiled code"


def _places(module: ModuleType) -> str:
    return ", ".join(getattr(module, "__path__", None) or [getattr(module, "__file__", None) or "built in"])


def _search_path() -> str:
    working_directory = str(Path.cwd())
    others = [place for place in dict.fromkeys(sys.path) if place not in ("", working_directory)]
    return ", ".join([f"the working directory '{working_directory}'", *others])


def _functions(module: ModuleType) -> list[str]:
    return [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
