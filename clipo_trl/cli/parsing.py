"""Words and YAML files -> dataclasses, by TRL's parser. A name that is not known is answered with the nearest one."""

import os
import sys
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, NoReturn

from trl import TrlParser

from reward_funcs.errors import UsageError

from ..value_checks import check_choice
from .command_line import ENVIRONMENT, check_names, read_config, read_configs, split_configs


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"{message}. `--help NAME` tells what it takes.")


def parse(classes: Sequence[Any], argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """
    Read the files given with `--config`, of which later ones win, and the command line over them.

    Args:
        classes (`Sequence[type]`): dataclasses whose fields are the options.
        argv (`Sequence[str]`, *optional*): words; default: the command line.

    Returns:
        `tuple`: one instance of each class.

    Raises:
        `UsageError`: a file or a word names no field. `ValueError`: a class refuses a value.
    """
    files, words = split_configs(sys.argv[1:] if argv is None else argv)
    names = [field.name for dataclass in classes for field in fields(dataclass) if field.init]
    for path in files:
        check_names(read_config(path), [*names, ENVIRONMENT], f"Config file '{path}'")
    config = read_configs(files)
    variables = config.pop(ENVIRONMENT, {})
    if not isinstance(variables, dict):
        raise UsageError(f"`{ENVIRONMENT}` is {variables!r}, but must be a mapping of names of variables to values.")
    parser = TrlParser(classes)
    parser.error = _refuse  # type: ignore[method-assign]  # without 250 lines of usage
    os.environ.update({name: str(value) for name, value in variables.items()})
    parser.set_defaults_with_config(**config)
    *parsed, surplus = parser.parse_args_into_dataclasses(words, return_remaining_strings=True)
    given = [word[2:].partition("=")[0].replace("-", "_") for word in surplus if word.startswith("--")]
    check_names(given, names, "The command line")
    if surplus:
        raise UsageError(
            f"The command line has {surplus}, which belong to no option. Remove them, or name their option."
        )
    for instance in parsed:
        for one in fields(instance):  # the parser checks those of words alone, not those of a file
            value, choices = getattr(instance, one.name), one.metadata.get("choices")
            if choices and isinstance(value, str):
                check_choice(one.name, value, tuple(choices))
    return tuple(parsed)
