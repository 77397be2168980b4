"""The command `clipo`. Each sub-command imports what it needs when it runs: torch and TRL take seconds, and help takes
none.

The words after `train` and `evaluate` are checked before the slow imports, and a mistake in them is told in a
sentence.
"""

import argparse
import sys

from .. import __version__


def run_train() -> None:
    """Train as the command line says."""
    from ..environment import explained_imports
    from .command_line import check_training, usage_errors

    with usage_errors():
        check_training()
        with explained_imports():
            from .train import main

        trainer = main()
    trainer.end()  # finishes the trackers and leaves the process group


def run_evaluate() -> None:
    """Evaluate, or compare, as the command line says."""
    from ..environment import explained_imports
    from .command_line import check_evaluation, usage_errors

    with usage_errors():
        check_evaluation()
        with explained_imports():
            from .evaluate import main

        main()


def run_doctor() -> None:
    """Look at the environment; the exit code is 1 if training cannot work in it."""
    try:
        from .doctor import main
    except ModuleNotFoundError as error:  # the one package that it takes to look at the others
        sys.exit(f"clipo doctor: error: {error.name} is not installed: {sys.executable} -m pip install {error.name}")
    sys.exit(main())


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
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    command = parser.parse_args(argv[:1]).command
    sys.argv = [f"clipo {command}", *argv[1:]]  # where the sub-command's parser and its errors read
    run, _ = COMMANDS[command]
    run()
