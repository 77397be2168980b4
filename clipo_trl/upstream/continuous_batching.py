"""A repair of TRL's continuous batching, which turns the policy's weights into bf16 (or fp16) for good when mixed
precision is on.

trl 1.16, `GRPOTrainer._generate_single_turn`: `unwrapped_model.to(torch.bfloat16)`, with no way back. Training then
updates bf16 weights without float32 masters, and the rotary tables lose their digits. Can go when TRL generates from a
copy.
"""

from contextlib import contextmanager

import torch
from torch.distributed.tensor import DTensor

from ..parent_shapes import GRPOTrainerShape


class ContinuousBatchingMixin(GRPOTrainerShape):
    """Over a `GRPOTrainer`-shaped class: the engine decodes in the low precision that TRL means, and the policy keeps
    its own weights."""

    def _generate_single_turn(self, *args, **kwargs):
        low = torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else None
        if not self.use_transformers_continuous_batching or low is None:
            return super()._generate_single_turn(*args, **kwargs)
        bf16, fp16 = self.args.bf16, self.args.fp16
        with lowered_weights(self.accelerator.unwrap_model(self.model_wrapped), low):
            self.args.bf16 = self.args.fp16 = False  # TRL then casts nothing
            try:
                return super()._generate_single_turn(*args, **kwargs)
            finally:
                self.args.bf16, self.args.fp16 = bf16, fp16


@contextmanager
def lowered_weights(model: torch.nn.Module, dtype: torch.dtype):
    """
    While open, copies in `dtype` stand in the places of the float32 parameters of `model`. Afterwards parameters and
    buffers are the very tensors that they were, whoever cast them meanwhile. Sharded parameters (FSDP2, ZeRO-3) are
    left alone: there the wrapper says what dtype is computed in.

    The parameters themselves are not touched: one whose `data` gets another dtype loses its gradient accumulator, and
    with it the hook by which DDP averages gradients.
    """
    places = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
        and parameter.dtype == torch.float32
        and not isinstance(parameter, DTensor)
        and not hasattr(parameter, "ds_id")
    ]
    buffers = [(module, name, buffer) for module in model.modules() for name, buffer in module._buffers.items()]
    copies: dict[torch.nn.Parameter, torch.nn.Parameter] = {}  # of tied parameters one
    try:
        for module, name, parameter in places:
            if parameter not in copies:
                copies[parameter] = torch.nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
            module._parameters[name] = copies[parameter]
        yield
    finally:
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, name, parameter in places:
            module._parameters[name] = parameter
