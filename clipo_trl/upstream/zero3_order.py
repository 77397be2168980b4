"""ZeRO-3 fetches parameters ahead in the order of the last passes. Decoding layer by layer leaves an order that does
not fit training.

With `ds3_gather_for_generation=False` and an LM head of its own, the backward pass of plain trl 1.16 with deepspeed
0.19 then fails ("size of tensor a (0)"). Can go when DeepSpeed notices by itself.
"""

from ..parent_shapes import GRPOTrainerShape


def forget_order_of_layers(trainer: GRPOTrainerShape) -> None:
    """After generating: have DeepSpeed trace the order anew. Does nothing where there is none."""
    plugin = trainer.accelerator.state.deepspeed_plugin
    if plugin is None or plugin.zero_stage != 3 or trainer.args.ds3_gather_for_generation or trainer.deepspeed is None:
        return
    optimizer = trainer.model_wrapped.optimizer  # before training it is the offload itself
    coordinator = getattr(optimizer, "parameter_offload", optimizer).get_param_coordinator()
    if not coordinator.is_invalid_trace():
        coordinator._invalidate_trace()
