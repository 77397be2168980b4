"""`clipo train --dry_run`: what the run would be, from configuration and data, without weights, steps or files.

Checked are all fields, the data, every gold that a reward compares, the names of rewards, the batch sizes and the
model's configuration. What only its weights can tell is left to the run.
"""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from rich.console import Console
from transformers import AutoConfig, AutoTokenizer
from trl import ModelConfig
from trl.trainer.utils import get_callable_name

from reward_funcs import check_golds, get_reward_func
from reward_funcs.errors import UsageError
from reward_funcs.gold import GoldReport

from ..algorithms import find_algorithm
from ..head import ContrastiveHead, check_hidden_size, head_settings, resolve_saved_head
from ..hidden_states import HiddenStateReader
from ..parent_shapes import CLIPOArguments
from ..success import SuccessRule, find_success_rule
from .command_line import argument_errors
from .data import check_chat_template
from .rewards import COMPARE_GOLDS, check_rewards, weights_of
from .run_choices import adapted, explain_capture_mode, memory_line, model_without_weights
from .run_plan import Plan, describe_run, start_table
from .train import ScriptArguments


NAMED_ROWS = 3  # golds that cannot be parsed, in the table


@dataclass
class Preview:
    """What the start table reads of a trainer, without one."""

    _name: str
    args: CLIPOArguments
    model: Any  # without weights
    train_dataset: Dataset
    eval_dataset: Any
    reward_func_names: list[str]
    reward_weights: torch.Tensor
    contrastive_head: ContrastiveHead | None
    success_rule: SuccessRule | None


def dry_run(
    script_args: ScriptArguments, args: CLIPOArguments, model_args: ModelConfig, datasets: tuple, plan: Plan
) -> None:
    """
    Print the start table of a run, with how its golds are read and when hidden states are.

    Args:
        script_args, args, model_args: what [`~clipo_trl.cli.train.parse_arguments`] returns.
        datasets (`tuple[Dataset, Dataset | dict | None]`): training set and test sets, with their columns `prompt` and
            `solution`.
        plan (`Plan`): the batch sizes multiplied out.

    Raises:
        `UsageError`: the run would stop before its first step, and why.
    """
    train_dataset, eval_datasets = datasets
    golds = describe_golds(script_args, train_dataset, eval_datasets)
    model, tokenizer = empty_policy(args, model_args)
    check_chat_template(tokenizer, train_dataset)
    extra = {"golds": golds}
    with argument_errors():
        if script_args.contrastive:
            shifts = HiddenStateReader(model, args.contrastive_layer).shifts_with_left_padding
            extra["hidden states"] = explain_capture_mode(args, shifts)
        model = adapted(model, model_args)
        preview = preview_of(script_args, args, model, train_dataset, eval_datasets)
        try:
            extra["memory"] = memory_line(script_args, args, model_args, model)
        except (AttributeError, TypeError) as error:  # of a model that describes itself in other words
            extra["memory"] = f"not estimated: {error}"
    if args.process_index == 0:
        console = Console()
        console.print(start_table(preview, describe_run(preview, plan, script_args, model_args, extra=extra)))
        console.print(
            "Dry run: nothing was trained, nothing was written. Leave out --dry_run to start.", soft_wrap=True
        )


def preview_of(
    script_args: ScriptArguments, args: CLIPOArguments, model: Any, train_dataset: Dataset, eval_datasets: Any
) -> Preview:
    """What the trainer would make of rewards and head; a `ValueError` as the trainer raises it."""
    length = args.max_completion_length
    functions = [get_reward_func(name, max_completion_length=length) for name in script_args.reward_funcs]
    check_rewards(script_args, args, functions)
    names = [get_callable_name(function) for function in functions]
    weights = weights_of(args, names)
    head = rule = None
    if script_args.contrastive:
        rule = find_success_rule(names, weights, args.contrastive_success_rewards, args.contrastive_step_reward)
        hidden = model.config.get_text_config().hidden_size
        resolved, head = resolve_saved_head(args)
        if head is None:
            head = ContrastiveHead(hidden, **head_settings(args))
        check_hidden_size(head, hidden, args.contrastive_head_path)
        args, names, weights = resolved, [*names, "contrastive"], [*weights, 1.0]  # type: ignore[assignment]
    title = find_algorithm(script_args.algorithm).trainer_class(script_args.contrastive)._name
    return Preview(title, args, model, train_dataset, eval_datasets, names, torch.tensor(weights), head, rule)


def empty_policy(args: CLIPOArguments, model_args: ModelConfig) -> tuple[Any, Any]:
    """The policy without weights, and its tokenizer; a [`UsageError`] if either cannot be read."""
    name: Any = model_args.model_name_or_path  # given, as was checked
    options = {"revision": model_args.model_revision, "trust_remote_code": args.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(name, **options)
        return model_without_weights(config, args), AutoTokenizer.from_pretrained(name, **options)
    except Exception as error:  # whatever a model's own code may raise
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"`model_name_or_path` is {name!r}, which cannot be read: {reason}") from error


def describe_golds(script_args: ScriptArguments, train_dataset: Dataset, eval_datasets: Any) -> str:
    """
    How many golds the rewards can parse, in the training set and in each test set; too many of the training set's that
    they cannot are a [`UsageError`].
    """
    functions = [get_reward_func(name) for name in script_args.reward_funcs if name != "soft_overlong"]
    if not any(function in COMPARE_GOLDS for function in functions):
        return "not parsed: no reward of this run compares values"
    share = script_args.max_unparsable_share
    told = [f"train: {_describe(check_golds(train_dataset, share))}"]
    sets = eval_datasets if isinstance(eval_datasets, dict) else {"test": eval_datasets} if eval_datasets else {}
    told += [f"{name}: {_describe(check_golds(dataset, 1.0))}" for name, dataset in sets.items()]
    return "; ".join(told)


def _describe(report: GoldReport) -> str:
    if not report.unparsable:
        return f"all {report.total:,} can be parsed"
    rows = [f"row {row}: {str(gold)[-40:]!r}" for row, gold in list(report.unparsable.items())[:NAMED_ROWS]]
    more = ", ..." if len(report.unparsable) > NAMED_ROWS else ""
    return f"{len(report.unparsable):,} of {report.total:,} cannot be parsed ({', '.join(rows)}{more})"
