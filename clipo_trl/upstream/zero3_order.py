"""ZeRO-3 fetches parameters ahead in the order of the last passes. Decoding layer by layer, or a pass over the decoder
alone, leaves an order that does not fit training.

With `ds3_gather_for_generation=False` and an LM head of its own, the backward pass of plain trl 1.16 with deepspeed
0.19 then fails ("size of tensor a (0)"); after other passes nothing is fetched ahead in training. Can go when
DeepSpeed keeps one order for each kind of pass.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from ..parent_shapes import GRPOTrainerShape


class ZeRO3OrderMixin(GRPOTrainerShape):
    """Over a `GRPOTrainer`-shaped class: what generating leaves does not disturb training."""

    def _generate(self, prompts):
        try:
            return super()._generate(prompts)
        finally:
            forget_order_of_layers(self)


def forget_order_of_layers(trainer: GRPOTrainerShape) -> None:
    """After generating: have DeepSpeed trace the order anew. Does nothing where there is none."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3 or trainer.args.ds3_gather_for_generation or trainer.deepspeed is None:
        return
    coordinator = _offload(trainer.model_wrapped).param_coordinator
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()


def _offload(model_wrapped: nn.Module) -> Any:
    """What fetches the parameters of a model under ZeRO-3, before training and in it; `None` elsewhere."""
    optimizer = getattr(model_wrapped, "optimizer", None)  # before training it is the offload itself
    offload = getattr(optimizer, "parameter_offload", optimizer)
    return offload if hasattr(offload, "param_coordinator") else None


@contextmanager
def order_of_its_own(model_wrapped: nn.Module) -> Iterator[None]:
    """
    While open, passes that are not training's leave its order of layers as it was, so that training goes on fetching
    ahead. They begin an order of their own, followed from the second pass on. Does nothing where there is none.
    """
    offload = _offload(model_wrapped)
    if offload is None:
        yield
        return
    of_training = offload.param_coordinator
    offload.param_coordinator = own = copy.copy(of_training)  # the same settings, parameters and what is on its way
    own._clear_trace_structures()  # new lists: the copy shares the old ones
    if not own.is_invalid_trace():
        own._invalidate_trace()
    try:
        yield
    finally:
        offload.param_coordinator = of_training
