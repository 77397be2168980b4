"""The experiments' command lines: options from a dataclass, a sentence for a fault, and Ctrl-C that loses nothing."""

import sys
from collections.abc import Callable
from typing import Any

from rich.console import Console
from transformers import HfArgumentParser


console = Console() if sys.stdout.isatty() else Console(width=120)


def run_command(
    name: str,
    description: str,
    settings_class: type,
    experiment: Callable[[Any], int],
    argv: list[str] | None = None,
    faults: tuple[type[Exception], ...] = (),
    refusals: tuple[type[Exception], ...] = (),
) -> int:
    """
    Read the settings and run the experiment, which goes on with what an earlier run has not finished.

    Args:
        name (`str`): of the package, as in `python -m experiments.NAME`.
        description (`str`): for `--help`.
        settings_class (`type`): dataclass whose fields are the options; a `ValueError` of its own is about them.
        experiment (`Callable`): settings -> exit status.
        argv (`list[str]`, *optional*): words; default: the command line.
        faults (`tuple[type[Exception], ...]`, *optional*): those that are a sentence, not a traceback.
        refusals (`tuple[type[Exception], ...]`, *optional*): those that the experiment finds in its settings, told as
            the parser tells its own: exit status 2. `faults` come first.

    Returns:
        `int`: the exit status: the experiment's, 1 after a fault, 130 if it was stopped.
    """
    description = f"{description} The same command goes on with what is not finished."
    parser: Any = HfArgumentParser(settings_class, prog=f"python -m experiments.{name}", description=description)
    try:
        settings = parser.parse_args_into_dataclasses(argv)[0]
    except ValueError as error:
        parser.error(str(error))
    try:
        return experiment(settings)
    except KeyboardInterrupt:
        console.print("Stopped. What is finished is kept; the same command goes on.")
        return 130
    except faults as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    except refusals as error:
        return parser.error(str(error))
