"""A run that stops and goes on as if it had never stopped, whichever step it stopped at.

trl 1.16 and transformers 5.23 resume exactly only in the first epoch, and only where a generation batch has just been
used up and the metrics have just been logged: `_step` and `_buffered_inputs` are not saved, nor the metrics that wait
for a log; a fresh sampler repeats the first epoch's order of prompts; and a finished run takes one step more. Can go
when upstream saves them.
"""

import os
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import broadcast_object_list, gather_object, send_to_device
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..checkpoint import ROLLOUTS_NAME, check_resume, last_whole_checkpoint
from ..parent_shapes import GRPOTrainerShape


logger = get_logger(__name__)


class ExactResumeMixin(GRPOTrainerShape):
    """Over a `GRPOTrainer`-shaped class. Of it, this uses `_step`, `_buffered_inputs` and `_metrics`."""

    _kind_of_batch = "advantages"  # what its rollouts are prepared for; resuming as another kind makes them again
    _train_sampler = None  # there is none for an iterable dataset

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        def find(output_dir: str) -> str | None:  # process 0 decides for all
            found = last_whole_checkpoint(output_dir) if self.accelerator.is_main_process else None
            return broadcast_object_list([found])[0]

        checkpoint = check_resume(resume_from_checkpoint, self.args.output_dir, find)
        self._begin_run(checkpoint)
        return super().train(checkpoint, *args, **kwargs)

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
            written = {ROLLOUTS_NAME.format(index) for index in range(self.accelerator.num_processes)}
            for path in folder.glob(ROLLOUTS_NAME.format("*")):
                if path.name not in written:  # of a run of more processes in the same folder
                    path.unlink()
        super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        os.makedirs(output_dir, exist_ok=True)
        used_up = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        rollouts = {
            "kind": self._kind_of_batch,
            "num_processes": self.accelerator.num_processes,
            "batch": self._batch_settings(),
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

    def _batch_settings(self) -> dict[str, Any]:
        """What waiting rollouts are cut by, and hold."""
        sizes = ("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps")
        names = (*sizes, "steps_per_generation", "num_iterations")
        settings = {name: getattr(self.args, name) for name in names}
        return settings | {
            "vllm_importance_sampling_correction": self.use_vllm and self.args.vllm_importance_sampling_correction
        }

    def _load_rollouts(self, checkpoint: str) -> None:
        files = sorted(Path(checkpoint).glob(ROLLOUTS_NAME.format("*")))
        own = Path(checkpoint, ROLLOUTS_NAME.format(self.accelerator.process_index))
        rollouts = None
        if files:  # else it is of a run of plain TRL
            rollouts = torch.load(own if own in files else files[0], map_location="cpu", weights_only=True)
        reasons = gather_object([None if rollouts is None else self._why_made_again(rollouts, checkpoint, len(files))])
        if reason := next(filter(None, reasons), None):  # for one process is for all
            logger.warning(reason)
        elif rollouts is not None:
            self._step = rollouts["step"]
            self._buffered_inputs = send_to_device(rollouts["buffered_inputs"], self.accelerator.device)
            for name, values in rollouts["metrics"].items():
                self._metrics["train"][name] = values

    def _why_made_again(self, rollouts: dict[str, Any], checkpoint: str, n_files: int) -> str | None:
        """Why the rollouts of a checkpoint that wait to be trained on cannot be, if they cannot."""
        again = "rollouts that were waiting to be trained on are made again."
        n_written, n_processes = rollouts.get("num_processes", n_files), self.accelerator.num_processes  # 0.1.0: none
        if n_written != n_processes:
            return (
                f"{checkpoint} was written by {n_written} processes, and is read by {n_processes}: "
                f"the run goes on, but not bit for bit, and {again}"
            )
        kind = rollouts.get("kind", ExactResumeMixin._kind_of_batch)
        if kind != self._kind_of_batch:
            return f"{checkpoint} is of a trainer that prepares its rollouts in another way ({kind}, here {self._kind_of_batch}): {again}"
        before, now = rollouts.get("batch", {}), self._batch_settings()
        if changed := [f"`{name}` was {old} and is {now[name]}" for name, old in before.items() if now[name] != old]:
            return f"{checkpoint}: {', '.join(changed)}. The run goes on, but not bit for bit, and {again}"
        waiting = rollouts["buffered_inputs"]
        if self.beta and waiting and self._trains_on_waiting() and "ref_per_token_logps" not in waiting[0]:
            return (
                f"`beta` is {self.beta:g}, which needs log-probabilities under the reference, but {checkpoint} was saved where none "
                f"were computed: {again}"
            )
        return None

    def _trains_on_waiting(self) -> bool:
        """Whether the policy's next step is on the rollouts that a checkpoint has."""
        return True
