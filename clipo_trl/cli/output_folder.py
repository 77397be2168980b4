"""A folder that an earlier run wrote into: what would be taken for this run's is not left in it."""

import shutil
from pathlib import Path
from typing import Any

from reward_funcs.errors import UsageError

from ..head import HEAD_FOLDER
from ..report.page import REPORT
from ..report.record import FOLDER


def check_output_folder(output_dir: str, has_adapter: bool, has_head: bool) -> None:
    """
    Raise a [`UsageError`] if `output_dir` holds something of an earlier run that would be loaded in place of what this
    one saves, or with it: an adapter beside a whole model, a head beside a policy that was trained without it.
    """
    folder = Path(output_dir)
    for name, is_ours, what in (
        (
            "adapter_config.json",
            has_adapter,
            "an adapter, which would be loaded in place of the model that this run saves",
        ),
        (HEAD_FOLDER, has_head, "a contrastive head, which would be taken for this policy's"),
    ):
        if not is_ours and (folder / name).exists():
            raise UsageError(
                f"`output_dir` is {output_dir!r}, where an earlier run has left {what} ({name}). Choose another `output_dir`, or "
                "move that away."
            )


def remove_report(trainer: Any) -> None:
    """Remove an earlier run's report from `output_dir`, for a run that starts afresh and writes none."""
    if trainer.accelerator.is_main_process and not trainer.args.resume_from_checkpoint:
        folder = Path(trainer.args.output_dir)
        shutil.rmtree(folder / FOLDER, ignore_errors=True)
        (folder / REPORT).unlink(missing_ok=True)
