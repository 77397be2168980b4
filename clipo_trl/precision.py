"""Matrix products in full float32, whatever autocast and TF32 allow the policy.

Cosines are divided by tau = 0.05 before they are exponentiated: rounded to 8 bits (bfloat16) or 11 (TF32), logits
would be off by some hundredths or by a hundredth, and the head's gradient with them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


# The old switch, `torch.backends.cuda.matmul.allow_tf32`, cannot be read where the new one was used.
_TORCH: Any = torch.backends  # makes its attributes while it is imported, where no type checker sees them
_BACKENDS = (_TORCH.cuda.matmul, _TORCH.mkldnn.matmul)


@contextmanager
def _full_precision(device_type: str) -> Iterator[None]:
    precisions = [backend.fp32_precision for backend in _BACKENDS]
    autocast: AbstractContextManager = nullcontext()
    if torch.amp.is_autocast_available(device_type):
        autocast = torch.autocast(device_type, enabled=False)
    try:
        for backend in _BACKENDS:
            backend.fp32_precision = "ieee"
        with autocast:
            yield
    finally:
        for backend, precision in zip(_BACKENDS, precisions, strict=True):
            # "none" follows `torch.backends.fp32_precision`, also when that changes later.
            backend.fp32_precision = "none" if precision == _TORCH.fp32_precision else precision


class _Product(torch.autograd.Function):
    """The backward pass, which runs when the caller's settings are back, is in full precision as well."""

    @staticmethod
    def forward(ctx, left, right):
        ctx.save_for_backward(left, right)
        with _full_precision(left.device.type):
            return left @ right.mT

    @staticmethod
    def backward(ctx, gradient):
        left, right = ctx.saved_tensors
        needs_left, needs_right = ctx.needs_input_grad
        with _full_precision(gradient.device.type):
            return gradient @ right if needs_left else None, gradient.mT @ left if needs_right else None


def full_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """
    `left @ right.mT` in the tensors' own precision, forward and backward: neither autocast nor TF32 acts.

    Args:
        left (`torch.Tensor` of shape `(..., N, K)`): rows.
        right (`torch.Tensor` of shape `(..., M, K)`): rows; the weight of a linear layer, for one. The same leading
            axes.

    Returns:
        `torch.Tensor` of shape `(..., N, M)`.
    """
    return _Product.apply(left, right)
