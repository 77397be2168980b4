"""What a run needs of each device's memory, estimated from shapes alone: for `clipo doctor`, and for the start table.

Weights, gradients, optimizer and head are exact up to what libraries add; the key-value cache and the logits are those
of rollouts of full length; activations follow Korthikanti et al. (arXiv 2205.05198, table 2) without the attention
matrix. Allocators, CUDA and its libraries take some GiB more.
"""

import os
from typing import Any, NamedTuple

from accelerate.utils import str_to_bool
from torch import nn
from trl.trainer import utils as trl_utils

from ..parent_shapes import CLIPOArguments


GIB = 2**30
PROMPT_TOKENS = 512  # where nothing says how long prompts are
# Bytes that a layer keeps for its backward pass, for each number of its input and each byte of that number's dtype.
ACTIVATIONS = 17


class PolicyShape(NamedTuple):
    """What the estimate has to know of a policy. Sizes in numbers, not bytes."""

    n_parameters: int
    n_trained: int
    weight_bytes: int  # of all of them, as they are held
    trained_bytes: int  # of those that are trained
    n_layers: int
    hidden_size: int
    cache_size: int  # keys and values of a token, over all layers
    vocab_size: int
    is_adapted: bool  # the reference is the policy without its adapter


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """How many parameters are trained, and how many there are; right for quantized ones under PEFT, and under ZeRO-3,
    where they are empty shells whose size stands in `ds_numel`."""
    policy: Any = model
    if hasattr(policy, "get_nb_trainable_parameters"):
        return policy.get_nb_trainable_parameters()
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in policy.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def shape_of(model: nn.Module) -> PolicyShape:
    """The shape of a policy of transformers or PEFT; its weights may be elsewhere (`meta`, ZeRO-3)."""
    policy: Any = model
    parameters = [(getattr(p, "ds_numel", p.numel()), p) for p in policy.parameters()]
    n_trained, n_parameters = count_parameters(policy)
    config = policy.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)  # none in a recurrent model, whose state does not grow
    kv_heads = getattr(config, "num_key_value_heads", None) or heads or 0
    head_dim = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return PolicyShape(
        n_parameters=n_parameters,
        n_trained=n_trained,
        weight_bytes=sum(size * p.element_size() for size, p in parameters),
        trained_bytes=sum(size * p.element_size() for size, p in parameters if p.requires_grad),
        n_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        cache_size=2 * config.num_hidden_layers * kv_heads * head_dim,
        vocab_size=config.vocab_size,
        is_adapted=hasattr(policy, "peft_config"),
    )


def quantized(shape: PolicyShape, bits: int) -> PolicyShape:
    """The same policy, what is not trained of it held in so many bits."""
    held = (shape.n_parameters - shape.n_trained) * bits // 8
    return shape._replace(weight_bytes=held + shape.trained_bytes)


def estimate(args: CLIPOArguments, shape: PolicyShape, head_parameters: int, prompt_tokens: int) -> dict[str, int]:
    """
    Bytes that a process needs, by what needs them. What stands under "rollouts" and under "training pass" is not
    needed at the same time.

    Args:
        args (`CLIPOConfig`): batch sizes, lengths, precision and sharding.
        shape (`PolicyShape`): of the policy.
        head_parameters (`int`): parameters of the contrastive head; 0 without one.
        prompt_tokens (`int`): length of a prompt.
    """
    stage, plugin, n_processes = sharding_stage(args), getattr(args, "deepspeed_plugin", None), args.world_size
    half: bool = bool(args.bf16 or args.fp16)
    number = 2 if half or shape.weight_bytes <= 2 * shape.n_parameters else 4
    copies = 0
    if plugin is not None and number == 2:  # DeepSpeed casts the weights, and trains float32 copies of them
        low = min(shape.weight_bytes - shape.trained_bytes, 2 * (shape.n_parameters - shape.n_trained))
        shape = shape._replace(weight_bytes=low + 2 * shape.n_trained, trained_bytes=2 * shape.n_trained)
        copies = 4 * shape.n_trained
    moments = 2 * shape.n_trained if "8bit" in str(args.optim) else 2 * max(shape.trained_bytes, copies)
    off_device = offloaded(args)
    tokens = prompt_tokens + (args.max_completion_length or 0)
    rows, length = args.per_device_train_batch_size, args.max_completion_length or 0
    layer = ACTIVATIONS * number * rows * tokens * shape.hidden_size
    kept = number * rows * tokens * shape.hidden_size  # a layer's input, where the rest is computed again
    again = args.gradient_checkpointing or getattr(args, "activation_checkpointing", False)
    activations = shape.n_layers * kept + layer if again else shape.n_layers * layer
    # From 1.15 on TRL scores tokens in tiles of the LM head; before, logits and their gradient stand there whole.
    whole = not args.use_liger_kernel and not hasattr(trl_utils, "add_fused_lm_head")
    logits = 2 * number * rows * length * shape.vocab_size if whole else 0
    needs_reference = bool(args.beta) and not shape.is_adapted
    parts = {
        "weights": 0 if "weights" in off_device else shape.weight_bytes // (n_processes if stage == 3 else 1),
        "gradients": shape.trained_bytes // (n_processes if stage >= 2 else 1),
        "optimizer": 0 if "optimizer" in off_device else (copies + moments) // (n_processes if stage >= 1 else 1),
        "reference": shape.weight_bytes // (n_processes if stage == 3 else 1) if needs_reference else 0,
        "head": 4 * 4 * head_parameters,  # weights, gradient and two moments, float32
        "rollouts": 0,
        "training pass": activations + logits,
    }
    if not args.use_vllm:
        rollouts = args.generation_batch_size // n_processes
        parts["rollouts"] = number * rollouts * tokens * shape.cache_size
        if plugin is not None and stage == 3 and args.ds3_gather_for_generation:
            parts["rollouts"] += shape.weight_bytes - parts["weights"]  # all weights are gathered while it generates
    return parts


def sharding_stage(args: CLIPOArguments) -> int:
    """What the processes share out: 0 nothing, 1 the optimizer, 2 gradients too, 3 weights too (ZeRO-3, FSDP)."""
    plugin = getattr(args, "deepspeed_plugin", None)
    if plugin is not None:
        return plugin.zero_stage
    by_launcher = str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false"))
    return 3 if by_launcher or getattr(args, "fsdp_plugin_args", None) else 0


def offloaded(args: CLIPOArguments) -> set[str]:
    """Parts that stay in the host's memory."""
    plugin = getattr(args, "deepspeed_plugin", None)
    config = {} if plugin is None else getattr(plugin, "deepspeed_config", {}).get("zero_optimization", {})
    found = set()
    for part, name in (("optimizer", "offload_optimizer"), ("weights", "offload_param")):
        if (config.get(name) or {}).get("device", "none") not in ("none", None):
            found.add(part)
    if (getattr(args, "fsdp_plugin_args", None) or {}).get("cpu_offload"):
        found |= {"optimizer", "weights"}
    return found


def prompt_length(script_args: Any) -> int:
    """Tokens of a prompt, as far as it is known: the longest that is allowed."""
    return script_args.max_prompt_length or PROMPT_TOKENS


def describe_memory(args: CLIPOArguments, parts: dict[str, int], prompt_tokens: int) -> str:
    """A line: the most that is needed at once, what needs it, and on what it rests."""
    most = sum(parts.values()) - min(parts["rollouts"], parts["training pass"])
    unit, size_of = ("GiB", GIB) if most >= GIB else ("MiB", 2**20)
    named = ", ".join(f"{name} {size / size_of:.2f}" for name, size in parts.items() if size)
    engine = ""
    if args.use_vllm and args.vllm_mode == "colocate":
        engine = f"; vLLM takes {args.vllm_gpu_memory_utilization:.0%} of the device beside it"
    return (
        f"about {most / size_of:.2f} {unit} a process ({named}) for prompts of {prompt_tokens:,} tokens and completions of "
        f"{args.max_completion_length:,}, without the libraries' own{engine}"
    )
