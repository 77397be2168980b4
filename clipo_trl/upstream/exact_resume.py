"""A run that stops and goes on as if it had never stopped, whichever step it stopped at.

trl 1.16 and transformers 5.23 resume exactly only in the first epoch, and only where a generation batch has just been
used up and the metrics have just been logged: `_step` and `_buffered_inputs` are not saved, nor the metrics that wait
for a log; a fresh sampler repeats the first epoch's order of prompts; and a finished run takes one step more. Can go
when upstream saves them.
"""

import os
from pathlib import Path

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, send_to_device
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoint import ROLLOUTS_NAME, is_whole, last_whole_checkpoint
from ..parent_shapes import GRPOTrainerShape


logger = get_logger(__name__)


class ExactResumeMixin(GRPOTrainerShape):
    """Over a `GRPOTrainer`-shaped class. Of it, this uses `_step`, `_buffered_inputs` and `_metrics`."""

    _kind_of_batch = "advantages"  # what its rollouts are prepared for; resuming as another kind makes them again
    _train_sampler = None  # there is none for an iterable dataset

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
        self._begin_run(str(resume_from_checkpoint) if resume_from_checkpoint else None)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _begin_run(self, checkpoint: str | None) -> None:
        """What a subclass has to do before a run that goes on from a checkpoint, a whole one, or begins afresh."""

    def _run_epoch(self, *args, **kwargs) -> None:
        if self.state.global_step < self.state.max_steps:
            super()._run_epoch(*args, **kwargs)
        else:  # the parent takes one step more than a finished run has, and a stream has no last epoch
            self.control.should_training_stop = True

    def _get_train_sampler(self, dataset=None):
        self._train_sampler = super()._get_train_sampler(dataset)
        return self._train_sampler

    # ------------------------------------------------------------------ saving

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self._get_output_dir(trial=trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        if self.args.should_save:  # what is written over is no longer whole
            (folder / TRAINER_STATE_NAME).unlink(missing_ok=True)
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)
        used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        rollouts = {
            "kind": self._kind_of_batch,
            "num_processes": self.accelerator.num_processes,
            "step": self._step,
            "buffered_inputs": None if used_up else self._buffered_inputs,
            "metrics": {name: [float(v) for v in values] for name, values in self._metrics["train"].items()},
        }
        torch.save(rollouts, os.path.join(output_dir, ROLLOUTS_NAME.format(self.accelerator.process_index)))

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The last that each process writes. Only then comes `trainer_state.json`, and only then are older checkpoints
        # deleted.
        self.accelerator.wait_for_everyone()

    # ------------------------------------------------------------------ resuming

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            self._skip_past_epochs()
            self._load_rollouts(checkpoint)

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

    def _load_rollouts(self, checkpoint: str) -> None:
        index, n_processes = self.accelerator.process_index, self.accelerator.num_processes
        files = {path.name: path for path in Path(checkpoint).glob(ROLLOUTS_NAME.format("*"))}
        if not files:
            return  # of a run of plain TRL
        first = torch.load(next(iter(files.values())), map_location="cpu", weights_only=True)
        n_written = first.get("num_processes", len(files))  # version 0.1.0 did not say
        if n_written != n_processes:
            logger.warning(
                f"{checkpoint} was written by {n_written} processes, and is read by {n_processes}: "
                "the run goes on, but not bit for bit, and rollouts that were waiting to be trained on are made again."
            )
            return
        kind = first.get("kind", ExactResumeMixin._kind_of_batch)
        if kind != self._kind_of_batch:
            logger.warning(
                f"{checkpoint} is of a trainer that prepares its rollouts in another way ({kind}, here {self._kind_of_batch}): "
                "rollouts that were waiting to be trained on are made again."
            )
            return
        rollouts = torch.load(files[ROLLOUTS_NAME.format(index)], map_location="cpu", weights_only=True)
        self._step = rollouts["step"]
        self._buffered_inputs = send_to_device(rollouts["buffered_inputs"], self.accelerator.device)
        for name, values in rollouts["metrics"].items():
            self._metrics["train"][name] = values
