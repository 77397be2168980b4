"""A trainer's way to the Hub: its model's card, and pushes whose faults are told."""

from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from huggingface_hub import ModelCard

from .hub import explain, hub_errors
from .model_card import base_model, trainer_card
from .parent_shapes import GRPOTrainerShape


logger = get_logger(__name__)


class SharingMixin(GRPOTrainerShape):
    """
    Model card and pushes of a [`CLIPOMixin`] trainer.

    Attributes:
        dataset_label (`str`, *optional*):
            What the card calls training data that have no name on the Hub, such as the name of a local file.
    """

    dataset_label: str | None = None
    _dataset_name: str | None = None

    def create_model_card(  # type: ignore[override]  # TRL's, which has other arguments than transformers'
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """
        Write `README.md` to `output_dir`: what CLIPO did to the model. Arguments as in TRL; a `dataset_name` is
        remembered for later cards of this trainer.
        """
        if not self.is_world_process_zero():
            return
        trainer: Any = self
        self._dataset_name = dataset_name or self._dataset_name
        super().create_model_card(model_name, self._dataset_name, tags)
        path = Path(self.args.output_dir, "README.md")
        name = model_name or Path(self.hub_model_id or self.args.output_dir).name
        trainer_card(trainer, ModelCard.load(path), name, self._dataset_name).save(path)

    def _trained_with(self) -> dict[str, str]:
        """What the head's card says of its policy."""
        model: Any = self.model
        facts = {
            "policy": getattr(self, "hub_model_id", None),
            "base_model": base_model(self.accelerator.unwrap_model(model)).name,
        }
        return {name: value for name, value in facts.items() if value}

    def init_hf_repo(self, token: str | None = None, *args, **kwargs) -> None:
        repo_id = self.args.hub_model_id or Path(self.args.output_dir).absolute().name
        safe = "Nothing has been pushed. To train without the Hub, leave out `push_to_hub`."
        with hub_errors(f"Making the repository '{repo_id}' on the Hub", token or self.args.hub_token, safe):
            super().init_hf_repo(token, *args, **kwargs)

    def push_to_hub(self, *args, **kwargs):
        token = kwargs.get("token") or self.args.hub_token
        folder = self.args.output_dir
        with hub_errors(f"Pushing '{folder}' to the Hub", token, self._where_it_is()):
            return super().push_to_hub(*args, **kwargs)

    def _where_it_is(self) -> str:
        folder, repo_id = self.args.output_dir, getattr(self, "hub_model_id", None) or "USER/NAME"
        return (
            f"The model, its head and its card are whole in '{folder}'; to push them later: "
            f"hf upload {repo_id} {folder} . --exclude 'checkpoint-*' '_*'"
        )

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        self._warn_of_failed_pushes()
        super()._push_from_checkpoint(checkpoint_folder)

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        self._warn_of_failed_pushes()

    def _warn_of_failed_pushes(self) -> None:
        """Of pushes in the background, which training does not wait for: their errors would be lost."""
        in_progress = getattr(self, "push_in_progress", None)
        if in_progress is None or not in_progress.is_done():
            return
        failed = [error for job in in_progress.jobs if (error := job.exception()) is not None]
        in_progress.jobs = []
        for error in failed:
            logger.warning(
                f"A push in the background to '{self.hub_model_id}' failed: {explain(error, self.args.hub_token)} Training goes "
                f"on, and the checkpoint is whole in '{self.args.output_dir}'; the next push takes it along."
            )
