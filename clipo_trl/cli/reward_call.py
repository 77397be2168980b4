"""A reward function called as a TRL trainer calls it, outside of a training."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from datasets import Dataset
from transformers import TrainerState


def call_reward(
    function: Callable[..., Any],
    rows: Dataset,
    texts: Sequence[str],
    *,
    log_metric: Callable[[str, float], None] | None = None,
    **more: Any,
) -> list[float | None]:
    """
    Rewards of completions, one each. An asynchronous function is waited for.

    Args:
        function (`Callable`): as TRL takes it. What it logs with `log_extra` goes nowhere; `trainer_state` is that of
            before the first step.
        rows (`datasets.Dataset`): the questions, with `prompt` and other columns.
        texts (`list[str]`): the completions, as many for the first row as for each other one, in their order.
        log_metric (`Callable`, *optional*): gets what it logs as a number. Default: nowhere, either.
        more (*optional*): what else it is given, `completion_ids`, say.
    """
    n_samples = len(texts) // len(rows)
    columns = {name: [value for value in rows[name] for _ in range(n_samples)] for name in rows.column_names}
    prompts = columns.pop("prompt")
    completions = [
        text if isinstance(prompt, str) else [{"role": "assistant", "content": text}]
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    from_trl = {"trainer_state": TrainerState(), "log_extra": _nowhere, "log_metric": log_metric or _nowhere}
    rewards = function(prompts=prompts, completions=completions, **from_trl, **more, **columns)
    return asyncio.run(_wait_for(rewards)) if inspect.isawaitable(rewards) else rewards


def _nowhere(name: str, value: Any) -> None:
    pass


async def _wait_for(rewards: Awaitable[list[float | None]]) -> list[float | None]:
    return await rewards
