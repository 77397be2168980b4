"""What a run would choose by itself, and why: for `clipo doctor`, which trains nothing and loads no weights."""

from collections.abc import Callable
from typing import Any

import torch
import transformers
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import ModelConfig, get_peft_config
from trl.trainer.utils import get_callable_name

from reward_funcs import get_reward_func
from reward_funcs.errors import UsageError
from reward_funcs.pool import default_num_workers

from ..algorithms import find_algorithm
from ..capture import choose_capture_mode, rollouts_are_scored, trl_scores_rollouts
from ..environment import ENGINES
from ..head import ContrastiveHead, head_settings
from ..hidden_states import HiddenStateReader
from ..parent_shapes import CLIPOArguments
from ..success import find_success_rule
from .command_line import argument_errors
from .doctor import Row, installed_version, range_of
from .memory import describe_memory, estimate, prompt_length, quantized, shape_of
from .rewards import USE_WORKERS, weights_of
from .run_plan import CAPTURE_MODES, describe_success
from .train import ScriptArguments, parse_arguments


ON_CPU = ["--use_cpu", "true", "--bf16", "false"]
JUDGES = {"named": " (named by contrastive_success_rewards)", "only": " (no other reward judges answers)"}


def run_rows(argv: list[str]) -> list[Row]:
    """What `clipo train` would choose with these words; a run that this machine refuses is explained as one on a
    CPU."""
    rows = []
    try:
        arguments = parse_arguments(argv)
    except UsageError as error:
        rows.append(Row("refused here", str(error), fault=True))
        try:
            arguments = parse_arguments([*argv, *ON_CPU])
        except UsageError:
            return rows
        rows.append(Row("what follows", f"as with `{' '.join(ON_CPU)}`"))
    try:
        return rows + choice_rows(*arguments)
    except UsageError as error:
        return [*rows, Row("refused", str(error), fault=True)]


def choice_rows(script_args: ScriptArguments, args: CLIPOArguments, model_args: ModelConfig) -> list[Row]:
    """The choices, a row each."""
    length = args.max_completion_length
    functions = [get_reward_func(name, max_completion_length=length) for name in script_args.reward_funcs]
    with argument_errors():
        shifts, model, memory = look_at_model(script_args, args, model_args)
        rows = [
            *explain_trainer(script_args),
            Row("model", model),
            *([Row("memory", memory)] if memory else []),
            Row(
                "processes", f"{args.world_size}; passes over a generation batch on each: {args.steps_per_generation}"
            ),
            *([Row("hidden states", explain_capture_mode(args, shifts))] if script_args.contrastive else []),
            Row("success", explain_success(args, functions)),
            Row("answers", explain_checks(functions)),
        ]
    if args.use_vllm and all(installed_version(name) is None for name in ENGINES):
        rows.append(Row("vllm", "not installed, but `use_vllm` is true", True, f"vllm{range_of('vllm')}"))
    return rows


def explain_trainer(script_args: ScriptArguments) -> list[Row]:
    """Which trainer is taken, where that was chosen."""
    name, contrastive = script_args.algorithm, script_args.contrastive
    if name is None and contrastive:
        return []
    algorithm = find_algorithm(name)
    said = f" ({name}, {algorithm.paper})" if name else ""
    return [Row("trainer", algorithm.trainer_class(contrastive).__name__ + said)]


def look_at_model(
    script_args: ScriptArguments, args: CLIPOArguments, model_args: ModelConfig
) -> tuple[bool, str, str | None]:
    """
    Whether padding on the left moves the model's positions, a line about it and one about the memory that the run
    needs; from its configuration, without weights.

    Raises:
        `ValueError`: hidden states cannot be read in this model, or not after this `contrastive_layer`.
    """
    name, trust = model_args.model_name_or_path, {"trust_remote_code": args.trust_remote_code}
    if name is None:
        return False, "not named (`model_name_or_path`): taken as one without learned positions", None
    try:
        config = AutoConfig.from_pretrained(name, revision=model_args.model_revision, **trust)
        model = model_without_weights(config, args)
    except Exception as error:  # whatever a model's own code may raise: nothing is wrong with the run yet
        reason = str(error).partition("\n")[0]
        return False, f"{name} could not be looked at, and is taken as one without learned positions: {reason}", None
    shifts = script_args.contrastive and HiddenStateReader(model, args.contrastive_layer).shifts_with_left_padding
    line = f"{name}, a {type(model).__name__} with hidden size {config.get_text_config().hidden_size}"
    try:
        memory = memory_line(script_args, args, model_args, adapted(model, model_args))
    except (AttributeError, TypeError) as error:  # of a model that describes itself in other words
        memory = f"not estimated: {error}"
    return shifts, line, memory


def model_without_weights(config: Any, args: CLIPOArguments) -> Any:
    """The model on the device `meta`, of the class that TRL would take. ZeRO-3, which would shard what is made, is
    told to transformers no longer: this process trains nothing."""
    model_class: Any = getattr(transformers, (config.architectures or [""])[0], AutoModelForCausalLM)
    trust = {"trust_remote_code": args.trust_remote_code} if model_class is AutoModelForCausalLM else {}
    make = getattr(model_class, "from_config", None) or model_class._from_config
    unset_hf_deepspeed_config()
    with torch.device("meta"):
        return make(config, dtype=dtype_of(args, config), **trust)


def dtype_of(args: CLIPOArguments, config: Any) -> torch.dtype:
    """The dtype that the weights will have."""
    kwargs: Any = args.model_init_kwargs or {}  # `__post_init__` has read them, if they were JSON
    name = kwargs.get("dtype") or "auto"
    name = (config.dtype or "float32") if name == "auto" else name
    return name if isinstance(name, torch.dtype) else getattr(torch, str(name))


def adapted(model: Any, model_args: ModelConfig) -> Any:
    """A policy without weights with the adapter that it will get, which is put into it; itself if there is none."""
    adapter = get_peft_config(model_args)
    with torch.device("meta"):
        return model if adapter is None else get_peft_model(model, adapter)


def memory_line(script_args: ScriptArguments, args: CLIPOArguments, model_args: ModelConfig, model: Any) -> str:
    """The estimate for a policy without weights, adapted if it will be."""
    head = 0
    if script_args.contrastive:
        hidden = model.config.get_text_config().hidden_size
        head = sum(p.numel() for p in ContrastiveHead(hidden, **head_settings(args)).parameters())
    shape = shape_of(model)
    if model_args.load_in_4bit or model_args.load_in_8bit:
        shape = quantized(shape, 4 if model_args.load_in_4bit else 8)
    tokens = prompt_length(script_args)
    return describe_memory(args, estimate(args, shape, head, tokens), tokens)


def explain_capture_mode(args: CLIPOArguments, shifts_with_left_padding: bool) -> str:
    scored = rollouts_are_scored(args)
    plain_generate = not (args.use_vllm or args.use_transformers_continuous_batching or args.dynamic_sampling)
    mode = choose_capture_mode(
        scored_by_trl=scored, shifts_with_left_padding=shifts_with_left_padding, plain_generate=plain_generate
    )
    if mode == "fused":
        reason = "for the steps that reuse a generation batch"
        if args.use_vllm and args.vllm_importance_sampling_correction:
            reason = "for vLLM's importance-sampling correction"
        elif not trl_scores_rollouts(args):
            reason = f"because the reward type `{args.contrastive_reward_type}` asks for it"
        return f"{mode}, {CAPTURE_MODES[mode]}, which it makes {reason}"
    why_not = " (not fused: padding on the left would move the model's learned positions)" if scored else ""
    sampler = "vLLM" if args.use_vllm else "continuous batching"
    reason = "the policy's own loop" if plain_generate else f"{sampler} makes the rollouts, and shows no hidden states"
    if args.dynamic_sampling:
        reason = "which rollouts dynamic sampling keeps is not known while they are decoded"
    return f"{mode}, {CAPTURE_MODES[mode]}: {reason}{why_not}"


def explain_success(args: CLIPOArguments, functions: list[Callable]) -> str:
    names = [get_callable_name(function) for function in functions]
    weights = weights_of(args, names)
    rule = find_success_rule(names, weights, args.contrastive_success_rewards, args.contrastive_step_reward)
    return describe_success(rule, args.contrastive_success_threshold) + JUDGES.get(rule.choice, "")


def explain_checks(functions: list[Callable]) -> str:
    if not any(function in USE_WORKERS for function in functions):
        return "checked in the training process: no reward of this run compares values"
    workers = default_num_workers()
    return f"checked by {workers} worker process{'es' if workers > 1 else ''} beside each training process"
