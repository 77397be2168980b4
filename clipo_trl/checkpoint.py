"""What a checkpoint of CLIPO holds beyond the parent's, and how a run goes on from it as if it had never stopped.

    checkpoint-N/
        contrastive_head/             the head
        contrastive_state.pt          its optimizer, the generator of InfoNCE's draw, the warm-up's progress, the calibration
        contrastive_rollouts_R.pt     of process R: the rollouts that wait to be trained on, the metrics that wait to be logged
        trainer_state.json            written last, once all processes have written the rest: the sign of a whole checkpoint

TRL itself resumes exactly only in the first epoch, and only where a generation batch has just been used up and the metrics
have just been logged. Here every step will do.
"""

import os
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, send_to_device
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from .calibration import Calibration
from .head import HEAD_FOLDER, SETTINGS, load_head


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


class CheckpointMixin:
    """
    Saving and resuming for `CLIPOMixin`. Of it, this uses `contrastive_head`, `_head_optimizer`, `_draw_generator`,
    `_calibration`, `_n_generation_batches`, `_log_contrastive`; of TRL's trainer `_step`, `_buffered_inputs`, `_metrics`.
    """

    _train_sampler = None  # there is none for an iterable dataset

    # ------------------------------------------------------------------ saving

    def _check_heads_agree(self) -> None:
        """
        Compare the heads of all processes, bit for bit. Where they differ by rounding, all go on with that of process 0 and its
        optimizer; otherwise raise a `RuntimeError` on every process.
        """
        fingerprints = self.accelerator.gather(self.contrastive_head.fingerprint().view(1)).tolist()
        if len(set(fingerprints)) == 1:
            return
        own = {"head": self.contrastive_head.state_dict(), "optimizer": self._head_optimizer.state_dict()}
        first = broadcast_object_list([send_to_device(own, "cpu")])[0]
        is_close = torch.tensor(
            [self.contrastive_head.differs_by_rounding(first["head"])], device=self.accelerator.device
        )
        far = [process for process, close in enumerate(self.accelerator.gather(is_close).tolist()) if not close]
        if far:
            raise RuntimeError(
                f"`contrastive_head` on process {far} is not that of process 0. All processes must start from the "
                "same head (`seed`, `contrastive_head_path`, `resume_from_checkpoint`), and nothing but the trainer may "
                "change it. Resume from the last checkpoint, whose heads agreed."
            )
        self.contrastive_head.load_state_dict(first["head"])
        self._head_optimizer.load_state_dict(first["optimizer"])
        different = [process for process, other in enumerate(fingerprints) if other != fingerprints[0]]
        logger.warning(
            f"`contrastive_head` on process {different} differed from that of process 0 by rounding. All go on with that of "
            "process 0 and its optimizer. If it happens again and again, look for processes whose devices or libraries differ."
        )
        self._log_contrastive("heads_differed", 1.0)

    def _save_head(self, folder: str) -> None:
        if self.args.should_save:
            self.contrastive_head.save_into(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        # The head first: the parent may push the folder.
        self._save_head(output_dir or self.args.output_dir)
        super().save_model(output_dir, _internal_call)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:  # what is written over is no longer whole
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        self._check_heads_agree()
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)
        if self.args.should_save:
            state = {
                "optimizer": self._head_optimizer.state_dict(),
                "draw_generator": self._draw_generator.get_state(),
                "calibration": asdict(self._calibration),
                "n_generation_batches": self._n_generation_batches,
                "warmup_start": self._warmup_start,
                "num_processes": self.accelerator.num_processes,
            }
            torch.save(state, os.path.join(output_dir, STATE_NAME))
        used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        rollouts = {
            "step": self._step,
            "buffered_inputs": None if used_up else self._buffered_inputs,
            "metrics": {name: [float(v) for v in values] for name, values in self._metrics["train"].items()},
        }
        torch.save(rollouts, os.path.join(output_dir, ROLLOUTS_NAME.format(self.accelerator.process_index)))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The last that each process writes. Only then comes `trainer_state.json`, and only then are older checkpoints deleted.
        self.accelerator.wait_for_everyone()

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._save_head(self.args.output_dir)  # the parent copies the files that it knows from the checkpoint
        super()._push_from_checkpoint(checkpoint_folder)

    # ------------------------------------------------------------------ resuming

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        output_dir = self.args.output_dir
        if resume_from_checkpoint is True:
            found = last_whole_checkpoint(output_dir) if self.accelerator.is_main_process else None
            resume_from_checkpoint = broadcast_object_list([found])[0]  # process 0 decides for all
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"`resume_from_checkpoint` is True, but there is no whole checkpoint in {output_dir!r} to go on from. "
                    "Leave it out to start afresh, or give the folder of a checkpoint."
                )
        elif resume_from_checkpoint and not is_whole(resume_from_checkpoint):
            raise ValueError(
                f"`resume_from_checkpoint` is {resume_from_checkpoint!r}, which is no checkpoint that was written to its "
                f"end: its {TRAINER_STATE_NAME} is missing or cut off. Give an earlier one, or True for the last whole one."
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step < self.state.max_steps:  # the parent takes one step more than a finished run has
            super()._run_epoch(*args, **kwargs)

    def _load_head(self, checkpoint: str, argument: str) -> None:
        here = {field: getattr(self.contrastive_head, field) for field in SETTINGS}
        head = load_head(checkpoint, self.contrastive_head.hidden_size, argument, fallback=here)
        for field, value in here.items():
            saved = getattr(head, field)
            if saved != value:
                raise ValueError(
                    f"`contrastive_{field}` of this run's head is {value!r}, but the head in the checkpoint {checkpoint!r} "
                    f"(`{argument}`) has {saved!r}. Set `contrastive_{field}` to {saved!r}, or start a run of its own from "
                    "that head with `contrastive_head_path`."
                )
        self.contrastive_head.load_state_dict(head.state_dict())

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if os.path.isdir(os.path.join(self.state.best_model_checkpoint, HEAD_FOLDER)):
            self._load_head(self.state.best_model_checkpoint, "load_best_model_at_end")

    def _get_train_sampler(self, dataset=None):
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    def _skip_past_epochs(self) -> None:
        past_epochs = int(self.state.epoch)
        if self._train_sampler is None and past_epochs:
            logger.warning(
                "`train_dataset` is a stream, and the checkpoint lies after its first pass. transformers finds the place in a "
                "first pass only: the run goes on, with other prompts than it would have had. A dataset with a length resumes "
                "exactly."
            )
        elif self._train_sampler is not None:  # a fresh sampler would repeat the first epoch's order of prompts
            for _ in range(past_epochs):
                next(iter(self._train_sampler), None)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self._skip_past_epochs()
        has_head, has_state = (os.path.exists(os.path.join(checkpoint, name)) for name in (HEAD_FOLDER, STATE_NAME))
        if has_head or has_state:
            self._load_head(checkpoint, "resume_from_checkpoint")
        if not has_state:
            fresh = "The optimizer of the contrastive head" if has_head else "The contrastive head"
            logger.warning(f"{checkpoint} has no {STATE_NAME}. {fresh} and its warm-up start afresh.")
            self._warmup_start = self.state.global_step
            return
        state = torch.load(os.path.join(checkpoint, STATE_NAME), map_location="cpu", weights_only=True)
        self._head_optimizer.load_state_dict(state["optimizer"])
        self._draw_generator.set_state(state["draw_generator"])
        self._calibration = Calibration(**state.get("calibration", {}))  # checkpoints of version 0.1.0 have none
        self._n_generation_batches = state["n_generation_batches"]
        self._warmup_start = state.get("warmup_start", 0)
        self._load_rollouts(checkpoint, state["num_processes"])

    def _load_rollouts(self, checkpoint: str, num_processes: int) -> None:
        if num_processes != self.accelerator.num_processes:
            logger.warning(
                f"{checkpoint} was written by {num_processes} processes, and is read by {self.accelerator.num_processes}: "
                "the run goes on, but not bit for bit, and rollouts that were waiting to be trained on are made again."
            )
            return
        path = os.path.join(checkpoint, ROLLOUTS_NAME.format(self.accelerator.process_index))
        rollouts = torch.load(path, map_location="cpu", weights_only=True)
        self._step = rollouts["step"]
        self._buffered_inputs = send_to_device(rollouts["buffered_inputs"], self.accelerator.device)
        for name, values in rollouts["metrics"].items():
            self._metrics["train"][name] = values
