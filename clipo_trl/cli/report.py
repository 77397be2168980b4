"""Write the page that tells of a training, finished or running.

    clipo report runs/lora_single_gpu

writes `runs/lora_single_gpu/report.html`, which opens from the disk and needs nothing beside it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from reward_funcs.errors import MissingFile


def check_report(argv: Sequence[str] | None = None) -> str:
    """The folder that the command line of `clipo report` names; `argv` defaults to it. A [`MissingFile`] if it is not
    there."""
    parser = argparse.ArgumentParser(
        "clipo report",
        description="Write OUTPUT_DIR/report.html: what ran, curves, embeddings, completions and the health check's findings "
        "of a training, finished or running.",
        allow_abbrev=False,
    )
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="`output_dir` of the training")
    output_dir = parser.parse_args(argv).output_dir
    if not Path(output_dir).expanduser().is_dir():
        raise MissingFile(
            f"`OUTPUT_DIR` is '{output_dir}', but there is no such folder (looked in {Path.cwd()}). Name the `output_dir` of a "
            "training."
        )
    return output_dir


def main(output_dir: str) -> None:
    """Write the page, and say where it is."""
    from rich.console import Console

    from ..report.page import write_report
    from .command_line import argument_errors

    with argument_errors():
        page = write_report(output_dir)
    Console().print(f"Written: {page}", soft_wrap=True, highlight=False, markup=False)
