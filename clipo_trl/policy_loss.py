"""The loss that the policy is trained with, in words: for the table at the start of a run, and for a model's card."""

from typing import Any

from .algorithms import ALGORITHMS, UNNAMED
from .conspo_config import ConSPOConfigMixin


GMPO = "trl.experimental.gmpo"  # not imported for this alone: it warns of being an experiment


def describe_policy_loss(args: Any) -> str:
    """The policy's loss, with the fields that decide it and no others: what its configuration `args` says, whatever
    algorithm was named."""
    if isinstance(args, ConSPOConfigMixin):
        return (
            f"ConSPO, scores / temperature {args.conspo_temperature:g}, margin up to {args.conspo_target_margin:g} in the "
            f"first {args.conspo_margin_warmup_ratio:.0%}"
        )
    high = args.epsilon if args.epsilon_high is None else args.epsilon_high
    if any(base.__module__.startswith(GMPO) for base in type(args).__mro__):
        return f"GMPO, geometric mean of ratios, clip {args.epsilon:g} / {high:g} in log space"
    clips = {"epsilon": args.epsilon, "epsilon_high": high}
    unread = [*clips] if args.loss_type == "vespo" else ALGORITHMS.get(args.loss_type, UNNAMED).unread
    read = " / ".join(f"{value:g}" for name, value in clips.items() if name not in unread)
    return f"{args.loss_type} ({args.importance_sampling_level} level)" + (f", clip {read}" if read else "")
