"""vLLM's engine gets the policy's weights whenever they have changed, whatever the number of the step says.

trl 1.16 hands them over where `global_step` is not that of the last time. A second `train()` counts from 0 again, and
`load_best_model_at_end` changes the weights and leaves the step: the engine would go on with others. Can go when TRL
hands weights over at the beginning of a run and after loading the best model.
"""

from ..parent_shapes import GRPOTrainerShape


class VLLMWeightsMixin(GRPOTrainerShape):
    """Over a `GRPOTrainer`-shaped class. Of it, this sets `_last_loaded_step`."""

    _last_loaded_step: int

    def _forget_weights_of_the_engine(self) -> None:
        if self.use_vllm:
            self._last_loaded_step = -1

    def train(self, *args, **kwargs):
        self._forget_weights_of_the_engine()
        return super().train(*args, **kwargs)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self._forget_weights_of_the_engine()
