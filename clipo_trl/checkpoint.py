"""What a checkpoint of CLIPO holds beyond the parent's, and how a run goes on from it as if it had never stopped.

    checkpoint-N/
        contrastive_head/             the head
        contrastive_state.pt          its optimizer, the generator of InfoNCE's draw, the warm-up's progress, the
                                      calibration
        contrastive_rollouts_R.pt     of process R: the rollouts that wait to be trained on, the metrics that wait to
                                      be logged
        dynamic_sampling.json         how many prompts dynamic sampling has drawn and consumed
        trainer_state.json            written last, once all processes have written the rest: the sign of a whole
                                      checkpoint

The third is `upstream/exact_resume.py`'s: with it every step will do.
"""

import os
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.logging import get_logger
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .head import HEAD_FOLDER, SETTINGS, ContrastiveHead, load_head
from .learner import HeadLearner
from .warmup import Warmup


logger = get_logger(__name__)

STATE_NAME = "contrastive_state.pt"
ROLLOUTS_NAME = "contrastive_rollouts_{}.pt"


def is_whole(checkpoint: str) -> bool:
    """Whether a checkpoint was written to its end."""
    try:
        TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):  # not there, or cut off
        return False
    return True


def last_whole_checkpoint(output_dir: str) -> str | None:
    """The folder of the latest checkpoint in `output_dir` that was written to its end; `None` if there is none."""
    steps = {}
    for folder in Path(output_dir).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        number = folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if folder.is_dir() and number.isdigit():
            steps[int(number)] = str(folder)
    for step in sorted(steps, reverse=True):
        if is_whole(steps[step]):
            return steps[step]
        logger.warning(f"{steps[step]} is passed over: it was not written to its end.")
    return None


def check_resume(
    resume_from_checkpoint: str | bool | None,
    output_dir: str,
    find: Callable[[str], str | None] = last_whole_checkpoint,
) -> str | None:
    """
    The folder of the checkpoint that a run goes on from, if it does; of `True` it is the one to `find` in
    `output_dir`.

    Raises:
        `ValueError`: there is none, or it was not written to its end.
    """
    if resume_from_checkpoint is True:
        found = find(output_dir)
        if found is None:
            raise ValueError(
                f"`resume_from_checkpoint` is True, but there is no whole checkpoint in {output_dir!r} to go on from. "
                "Leave it out to start afresh, or give the folder of a checkpoint."
            )
        return found
    if resume_from_checkpoint and not is_whole(resume_from_checkpoint):
        raise ValueError(
            f"`resume_from_checkpoint` is {resume_from_checkpoint!r}, which is no checkpoint that was written to its "
            f"end: its {TRAINER_STATE_NAME} is missing or cut off. Give an earlier one, or True for the last whole one."
        )
    return resume_from_checkpoint or None


def load_checked(head: ContrastiveHead, path: str, argument: str) -> None:
    """
    Load the weights of a saved head into the head of a run.

    Args:
        path (`str`): folder of a checkpoint.
        argument (`str`): what it was given as, for the error.

    Raises:
        `ValueError`: no head there, or one with other settings than this run's.
    """
    here = {setting: getattr(head, setting) for setting in SETTINGS}
    saved_head = load_head(path, head.hidden_size, argument, fallback=here)
    for setting, value in here.items():
        saved = getattr(saved_head, setting)
        if saved != value:
            raise ValueError(
                f"`contrastive_{setting}` of this run's head is {value!r}, but the head in the checkpoint {path!r} "
                f"(`{argument}`) has {saved!r}. Set `contrastive_{setting}` to {saved!r}, or start a run of its own from "
                "that head with `contrastive_head_path`."
            )
    head.load_state_dict(saved_head.state_dict())


def save_state(checkpoint: str, learner: HeadLearner, warmup: Warmup) -> None:
    """What belongs to the head's learning, besides the head."""
    state = {**learner.state_dict(), "warmup_start": warmup.start, "warmup_is_over": warmup.is_over}
    torch.save(state, os.path.join(checkpoint, STATE_NAME))


def began_with_a_warm_head(checkpoint: str) -> bool:
    """Whether a checkpoint is of a run that left its warm-up out, told before it is loaded."""
    path = os.path.join(checkpoint, STATE_NAME)
    return os.path.exists(path) and torch.load(path, map_location="cpu", weights_only=True).get(
        "warmup_is_over", False
    )


def load_state(checkpoint: str, learner: HeadLearner, warmup: Warmup, step: int) -> bool:
    """
    Have the head go on from a checkpoint of optimizer step `step`, or begin there if the checkpoint has none. Returns
    whether it begins.
    """
    has_head, has_state = (os.path.exists(os.path.join(checkpoint, name)) for name in (HEAD_FOLDER, STATE_NAME))
    if has_head or has_state:
        load_checked(learner.head, checkpoint, "resume_from_checkpoint")
    if not has_state:
        fresh = "The optimizer of the contrastive head" if has_head else "The contrastive head"
        logger.warning(f"{checkpoint} has no {STATE_NAME}. {fresh} and its warm-up start afresh.")
        warmup.start = step
        return True
    state = torch.load(os.path.join(checkpoint, STATE_NAME), map_location="cpu", weights_only=True)
    learner.load_state_dict(state)
    warmup.start = state.get("warmup_start", 0)
    return False
