"""What a run of `clipo train` will do: the batch sizes multiplied out, and the table that it shows at its start."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from accelerate.logging import get_logger
from rich import box
from rich.table import Table
from rich.text import Text
from trl import ModelConfig

from reward_funcs.errors import UsageError

from ..checkpoint import last_whole_checkpoint
from ..parent_shapes import CLIPOArguments
from ..policy_loss import describe_policy_loss
from ..report.facts import describe_rewards
from ..success import SuccessRule
from .memory import count_parameters, describe_memory, estimate, prompt_length, shape_of


logger = get_logger(__name__)

CAPTURE_MODES = {
    "fused": "in TRL's own scoring pass",
    "decode": "while `generate` decodes",
    "forward": "in an extra pass over the decoder",
}


class Plan(NamedTuple):
    """What the batch sizes multiply out to. A generation batch: P prompts with G rollouts each, sampled together."""

    prompts: int  # P
    prompts_per_step: float  # for one optimizer step
    optimizer_steps: int
    generation_batches: int


def plan_run(args: CLIPOArguments, num_prompts: int) -> Plan:
    """Multiply the batch sizes out for `num_prompts` training prompts; an error if they do not fill a generation
    batch."""
    prompts = args.generation_batch_size // args.num_generations
    batches_per_epoch = num_prompts // prompts  # TRL leaves out the last prompts of an epoch if they fill no batch
    if batches_per_epoch == 0:
        raise UsageError(
            f"The training set has {num_prompts} prompts, but a generation batch takes {prompts} "
            f"(`generation_batch_size` {args.generation_batch_size} / `num_generations` {args.num_generations}): nothing "
            "would be trained. Use more data, or lower `generation_batch_size`."
        )
    # A pass: forward and backward of `per_device_train_batch_size` rollouts on every process.
    passes_per_batch = args.steps_per_generation * args.num_iterations
    passes_per_epoch = batches_per_epoch * passes_per_batch
    steps_per_epoch = math.ceil(passes_per_epoch / args.gradient_accumulation_steps)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    epochs, steps_left = divmod(steps, steps_per_epoch)
    passes_left = min(steps_left * args.gradient_accumulation_steps, passes_per_epoch)
    rollouts_per_step = args.per_device_train_batch_size * args.world_size * args.gradient_accumulation_steps
    return Plan(
        prompts=prompts,
        prompts_per_step=rollouts_per_step / args.num_generations,
        optimizer_steps=steps,
        generation_batches=epochs * batches_per_epoch + math.ceil(passes_left / passes_per_batch),
    )


def earlier_checkpoint(args: CLIPOArguments) -> str | None:
    """
    The last whole checkpoint of an earlier run in `output_dir`, if this run starts afresh beside it, with a warning
    that says how to go on from it instead; else `None`, and `None` on all processes but the first.
    """
    found = None if args.resume_from_checkpoint or args.process_index else last_whole_checkpoint(args.output_dir)
    if found is not None:
        logger.warning(
            f"`output_dir` is {args.output_dir!r}, which holds checkpoints of an earlier run, the last one {found!r}. This run "
            "starts afresh and writes over them. Add `--resume_from_checkpoint true` to go on from there, or choose another "
            "`output_dir`."
        )
    return found


def describe_run(
    trainer: Any,
    plan: Plan,
    script_args: Any,
    model_args: ModelConfig,
    earlier: str | None = None,
    extra: Mapping[str, str] = MappingProxyType({}),
) -> list[dict[str, str]]:
    """
    What will run, a text for each subject, a section for each question: on what, how much, with which head, where to.
    `earlier`: the checkpoint that [`earlier_checkpoint`] found; `extra`: more lines on how much, or others in their
    place.
    """
    return [
        describe_inputs(trainer, script_args, model_args),
        describe_batches(trainer.args, plan) | describe_needs(trainer, script_args) | dict(extra),
        describe_clipo(trainer, plan) if has_head(trainer) else {},
        describe_policy(trainer.args, script_args.algorithm, earlier),
    ]


def has_head(trainer: Any) -> bool:
    """Whether it trains with CLIPO; also told of what only describes a trainer."""
    return getattr(trainer, "contrastive_head", None) is not None


def start_table(trainer: Any, sections: list[dict[str, str]]) -> Table:
    """The sections of [`describe_run`], a line for each subject."""
    with_clipo = has_head(trainer)
    table = Table(
        title=f"{'CLIPO' if with_clipo else trainer._name}: what will run", box=box.ROUNDED, show_header=False
    )
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    for section in sections:
        for subject, text in section.items():
            table.add_row(subject, Text(text))
        table.add_section()
    return table


def describe_inputs(trainer: Any, script_args: Any, model_args: ModelConfig) -> dict[str, str]:
    trained, total = count_parameters(trainer.model)
    share = "all trained" if trained == total else f"{trained:,} trained ({trained / total:.2%})"
    rows = {
        "model": f"{model_args.model_name_or_path}: {total:,} parameters, {share}, {model_args.dtype}",
        "data": f"{describe_data(script_args)}: {len(trainer.train_dataset):,} prompts",
    }
    if trainer.eval_dataset is not None:
        sets = trainer.eval_dataset
        sets = sets if isinstance(sets, dict) else {script_args.dataset_test_split: sets}
        rows["evaluation"] = ", ".join(f"{name} {len(dataset):,}" for name, dataset in sets.items())
        rows["evaluation"] += f" prompts, {describe_interval(trainer.args.eval_strategy, trainer.args.eval_steps)}"
    rows["rewards"] = describe_rewards(trainer)
    return rows


def describe_data(script_args: Any) -> str:
    """What is trained on, by name."""
    if script_args.datasets:
        return " + ".join(f"{entry.path} ({entry.split})" for entry in script_args.datasets)
    return f"{script_args.dataset_name} ({script_args.dataset_train_split})"


def describe_needs(trainer: Any, script_args: Any) -> dict[str, str]:
    head = getattr(trainer, "contrastive_head", None)
    n_head = sum(p.numel() for p in head.parameters()) if head is not None else 0
    tokens = prompt_length(script_args)
    try:
        parts = estimate(trainer.args, shape_of(trainer.model), n_head, tokens)
    except (AttributeError, TypeError) as error:  # of a model that describes itself in other words: no reason to stop
        return {"memory": f"not estimated: {error}"}
    return {"memory": describe_memory(trainer.args, parts, tokens)}


def describe_batches(args: CLIPOArguments, plan: Plan) -> dict[str, str]:
    G, n_processes = args.num_generations, args.world_size
    processes = "1 process" if n_processes == 1 else f"{n_processes} processes"
    backend = "" if n_processes == 1 else f", {args.distributed_state.distributed_type.value}"
    continuous = " with continuous batching" if args.use_transformers_continuous_batching else ""
    sampler = f"vLLM ({args.vllm_mode})" if args.use_vllm else f"transformers{continuous}"
    return {
        "processes": f"{n_processes} x {args.device.type}{backend}",
        "sampling": f"{sampler}, temperature {args.temperature:g}, up to {args.max_completion_length:,} tokens",
        "generation batch": f"{plan.prompts:,} prompts x {G} rollouts (group size G) = {plan.prompts * G:,}; "
        f"{plan.prompts * G // n_processes:,} a process",
        "optimizer step": f"{plan.prompts_per_step:,g} prompts x {G} rollouts = {processes} x "
        f"{args.per_device_train_batch_size} rollouts x {args.gradient_accumulation_steps} accumulated",
        **describe_dynamic_sampling(args),
        "the run": f"{plan.generation_batches:,} generation batches, {plan.optimizer_steps:,} optimizer steps",
    }


def describe_dynamic_sampling(args: Any) -> dict[str, str]:
    if not getattr(args, "dynamic_sampling", False):
        return {}
    by = args.dynamic_sampling_rewards
    judge = "what decides success" if by is None else " + ".join(by)
    attempts = args.dynamic_sampling_max_attempts
    return {"dynamic sampling": f"up to {attempts} attempts at groups in which {judge} has a spread"}


def _paid_loss(args: Any) -> str:
    return "loss" if args.contrastive_baseline is None else "(loss - log number of positives)"


def describe_clipo(trainer: Any, plan: Plan) -> dict[str, str]:
    args, head = trainer.args, trainer.contrastive_head
    shape = " -> ".join(str(size) for size in [head.hidden_size, *(layer.out_features for layer in head.layers)])
    start = f", from {args.contrastive_head_path}" if args.contrastive_head_path else ""
    learning = f"learning rate {args.contrastive_learning_rate:g}"
    if args.freeze_contrastive_head:
        learning = "frozen" if start else "frozen, random"
    bound = args.contrastive_reward_floor
    if args.contrastive_reward_type == "loss":
        reward = f"{args.contrastive_reward_offset:g} - {args.contrastive_reward_weight:g} (lambda) x {_paid_loss(args)}, at least {bound:g}"
    else:
        score = args.contrastive_reward_type.replace("_", " ")
        if args.contrastive_score_scale is not None:
            score += f" / its standard deviation in the {args.contrastive_score_scale}"
        reward = f"{args.contrastive_reward_offset:g} + {args.contrastive_reward_weight:g} (lambda) x {score}, within {-bound:g}"
    if args.contrastive_reward_schedule != "constant":
        reward += f", lambda to 0 ({args.contrastive_reward_schedule})"
    if args.contrastive_calibration:
        reward += f", calibrated by {args.contrastive_step_reward}"
    warmup = args.contrastive_warmup_steps
    policy = "frozen" if args.contrastive_warmup_policy == "frozen" else "on the verifiable reward"
    if warmup >= plan.generation_batches and policy == "frozen":
        policy = "frozen IN ALL OF THIS RUN: lower contrastive_warmup_steps or train longer"
    return {
        "head": f"{head.head_type} {shape}, {sum(p.numel() for p in head.parameters()):,} parameters, {learning}{start}"
        + (f", states {head.debias}" if head.debias else ""),
        "contrastive loss": f"{args.contrastive_loss_type}, {args.contrastive_similarity} / temperature "
        f"{args.contrastive_temperature:g}, level {args.contrastive_level}, anchors {args.contrastive_anchors}",
        "contrastive reward": reward,
        "success": describe_success(trainer.success_rule, args.contrastive_success_threshold),
        "step checker": args.contrastive_step_reward or "none",
        **_capture(trainer),
        "warm-up": f"first {warmup:,} generation batches: head learns, policy {policy}" if warmup else "none",
    }


def _capture(trainer: Any) -> dict[str, str]:
    """Where hidden states are read; nothing of what only describes a trainer."""
    states = getattr(trainer, "states", None)
    return {} if states is None else {"hidden states": f"{states.mode}, {CAPTURE_MODES[states.mode]}"}


def describe_success(rule: SuccessRule, threshold: float) -> str:
    remarks = {
        "accuracy": " (known to tell right answers; contrastive_success_rewards to choose others)",
        "all": " (ALL REWARDS: one for the format makes wrong answers count as correct; set contrastive_success_rewards)",
    }
    return f"{' + '.join(rule.names)} > {threshold:g}{remarks.get(rule.choice, '')}"


def describe_policy(args: CLIPOArguments, algorithm: str | None = None, earlier: str | None = None) -> dict[str, str]:
    kept = f", the last {args.save_total_limit} kept" if args.save_total_limit else ""
    name = "" if algorithm is None else f"{algorithm}: "
    rows = {
        "policy loss": f"{name}{describe_policy_loss(args)}, "
        f"KL {args.beta:g}, learning rate {args.learning_rate:g} {args.lr_scheduler_type.value}",
        "checkpoints": f"{args.output_dir}, {describe_interval(args.save_strategy, args.save_steps)}{kept}",
    }
    if args.resume_from_checkpoint:
        rows["resume from"] = describe_resume(args)
    if earlier is not None:
        rows["starts afresh"] = f"not from {earlier}: for that, add --resume_from_checkpoint true"
    return rows


def describe_interval(strategy: str, steps: float | None) -> str:
    strategy = getattr(strategy, "value", strategy)
    if strategy == "steps":
        return f"every {steps:g} steps"
    return {"epoch": "every epoch", "no": "only at the end"}.get(strategy, strategy)


def describe_resume(args: CLIPOArguments) -> str:
    """Which checkpoint the run goes on from: the one that is named, or the last whole one in `output_dir`."""
    given = args.resume_from_checkpoint
    found = given if isinstance(given, str) else last_whole_checkpoint(args.output_dir)
    return str(found) if found is not None else f"the last checkpoint in {args.output_dir}, which has no whole one"
