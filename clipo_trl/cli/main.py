"""The command `clipo`. Each sub-command imports what it needs when it runs: torch and TRL take seconds, and help takes
none.

The words after `train` and `evaluate` are checked before the slow imports, and a mistake in them is told in a
sentence.
"""

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

from .. import __version__


TRAIN_HELP = """
usage: clipo train [--config FILE ...] [--FIELD VALUE ...]

Train a model with CLIPO. Fields stand in YAML files, of which later ones win, or on the command line, which wins over
them. `--dry_run` shows what would run. docs/configuration.md has every field of CLIPO.
"""
EVALUATE_HELP = """
usage: clipo evaluate --model MODEL --datasets NAME=PATH ... --output_dir FOLDER
       clipo evaluate --compare FOLDER FOLDER

Evaluate a model on test sets, or compare two that were evaluated. Fields may stand in a YAML file: `--config FILE`.
"""


@contextmanager
def interrupts(consequence: str) -> Iterator[None]:
    """End on Ctrl-C with a sentence in place of a traceback."""
    try:
        yield
    except KeyboardInterrupt:
        sys.stderr.write(f"\n{Path(sys.argv[0]).name}: stopped at once. {consequence}\n")
        sys.exit(130)


def run_train() -> None:
    """Train as the command line says."""
    from ..environment import explained_imports
    from .command_line import check_training, usage_errors
    from .help import shown_help
    from .options import training_groups
    from .quiet import quiet

    with usage_errors(), quiet(), interrupts("Nothing was saved since the last checkpoint."):
        if shown_help(TRAIN_HELP, training_groups("conspo")):
            return
        check_training()
        with explained_imports():
            from .train import main

        trainer = main()
        if trainer is not None:
            trainer.end()  # finishes the trackers and leaves the process group


def run_evaluate() -> None:
    """Evaluate, or compare, as the command line says."""
    from ..environment import explained_imports
    from .command_line import check_evaluation, usage_errors
    from .help import shown_help
    from .options import EVALUATION
    from .quiet import quiet

    with usage_errors(), quiet(), interrupts("The same command goes on with what was evaluated."):
        if shown_help(EVALUATE_HELP, EVALUATION):
            return
        check_evaluation()
        with explained_imports():
            from .evaluate import main

        main()


def run_doctor() -> None:
    """Look at the environment; the exit code is 1 if training cannot work in it."""
    from .quiet import quiet

    try:
        from .doctor import main
    except ModuleNotFoundError as error:  # the one package that it takes to look at the others
        sys.exit(f"clipo doctor: error: {error.name} is not installed: {sys.executable} -m pip install {error.name}")
    with quiet():
        code = main()
    sys.exit(code)


def run_report() -> None:
    """Write the page that tells of a training."""
    from ..environment import explained_imports
    from .command_line import usage_errors

    with usage_errors():
        from .report import check_report, main

        output_dir = check_report()
        with explained_imports():
            main(output_dir)


COMMANDS = {
    "train": (run_train, "train a model with CLIPO"),
    "evaluate": (run_evaluate, "evaluate a model on test sets, or compare two"),
    "report": (run_report, "write the page that tells of a training, finished or running"),
    "doctor": (run_doctor, "tell what is installed, what it can do, and how a run would read hidden states"),
}


def main(argv: list[str] | None = None) -> None:
    """Run the sub-command that the first word of `argv` names; it defaults to the command line."""
    argv = sys.argv[1:] if argv is None else argv
    listed = "\n".join(f"  {name:10}{text}" for name, (_, text) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "clipo",
        usage="clipo [-h] [--version] command ...",
        description="CLIPO, contrastive learning in policy optimization, as a TRL trainer.",
        epilog=f"commands:\n{listed}\n\n`clipo COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"clipo_trl {__version__}")
    parser.add_argument("command", help=argparse.SUPPRESS)
    if not argv:
        parser.error(
            f"the following arguments are required: a command, one of {', '.join(COMMANDS)}. See `clipo --help`."
        )
    command = parser.parse_args(argv[:1]).command
    if command not in COMMANDS:
        near = get_close_matches(command, COMMANDS, n=1)
        remedy = f"Did you mean `clipo {near[0]}`?" if near else f"Choose one of {', '.join(COMMANDS)}."
        parser.error(f"invalid choice: '{command}', which is no command. {remedy}")
    sys.argv = [f"clipo {command}", *argv[1:]]  # where the sub-command's parser and its errors read
    run, _ = COMMANDS[command]
    run()
