"""What runs, told in words and figures that JSON can hold: the contents of `run.json`."""

import platform
from dataclasses import MISSING, fields
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from .. import __version__
from ..model_card import VERSIONS_OF
from ..trainer import CLIPOMixin


# Of the run's place and of its bookkeeping: they say nothing of what is learned.
_NOT_TOLD = {
    *("output_dir", "logging_dir", "run_name", "report_to", "disable_tqdm", "hub_token", "resume_from_checkpoint"),
    *("accelerator_config", "debug", "do_eval", "dataloader_pin_memory", "logging_nan_inf_filter"),
}


def run_facts(trainer: Any, description: dict[str, str] | None, starts: list[dict[str, Any]]) -> dict[str, Any]:
    """
    Args:
        trainer (`GRPOTrainer`): about to train.
        description (`dict[str, str]`, *optional*): what runs, a text for each subject; default: model, data, rewards.
        starts (`list[dict]`): earlier starts of this run, which it goes on from.

    Returns:
        `dict`, ready for JSON: `method`, `description`, `settings` (all of them), `changed` (names of those that
        differ from their default), `max_steps`, `frozen_from` and `frozen_steps` (of a frozen warm-up: its first
        optimizer step and the one after its last), `rewards` (weights by name), `success` (the rule and its
        threshold), `versions`, `device`, `processes`, `starts` (time and step of each).
    """
    args, state = trainer.args, trainer.state
    with_clipo = isinstance(trainer, CLIPOMixin)
    start = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "step": state.global_step}
    return {
        "method": trainer._name,
        "description": description or describe(trainer),
        "settings": without_tokens(args.to_dict()),
        "changed": changed_settings(args),
        "max_steps": state.max_steps,
        "frozen_from": trainer.warmup.start if with_clipo else 0,
        "frozen_steps": trainer.warmup.start + trainer.warmup.frozen_steps if with_clipo else 0,
        "rewards": dict(zip(trainer.reward_func_names, trainer.reward_weights.tolist(), strict=True)),
        "success": {"rewards": trainer.success_rule.names, "threshold": args.contrastive_success_threshold}
        if with_clipo
        else None,
        "versions": {"clipo_trl": __version__, "python": platform.python_version()}
        | {name: metadata.version(name) for name in VERSIONS_OF},
        "device": device_name(args.device),
        "processes": args.world_size,
        "starts": [*starts, start],
    }


def describe(trainer: Any) -> dict[str, str]:
    """Model, data and rewards, for a run that was not started by `clipo train`."""
    size = f"{len(trainer.train_dataset):,} prompts" if hasattr(trainer.train_dataset, "__len__") else "a stream"
    label = getattr(trainer, "dataset_label", None)
    return {
        "model": getattr(trainer.model.config, "_name_or_path", "") or type(trainer.model).__name__,
        "data": f"{label}: {size}" if label else size,
        "rewards": describe_rewards(trainer),
    }


def describe_rewards(trainer: Any) -> str:
    """The reward functions with their weights, as a sum."""
    weighted = zip(trainer.reward_weights.tolist(), trainer.reward_func_names, strict=True)
    return " + ".join(name if weight == 1 else f"{weight:g} x {name}" for weight, name in weighted)


def changed_settings(args: Any) -> list[str]:
    """Names of the fields whose value is not their default, in their order."""
    names = []
    for entry in fields(args):
        factory = entry.default_factory
        default = entry.default if factory is MISSING else factory()
        if entry.init and entry.name not in _NOT_TOLD and getattr(args, entry.name) not in (default, None):
            names.append(entry.name)
    return names


def without_tokens(settings: Any) -> Any:
    """Settings, however deep, in which no token or password is told."""
    if isinstance(settings, list | tuple):
        return [without_tokens(value) for value in settings]
    if not isinstance(settings, dict):
        return settings
    return {
        name: "<hidden>"
        if value is not None and str(name).lower().endswith(("token", "password", "api_key"))
        else without_tokens(value)
        for name, value in settings.items()
    }


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
