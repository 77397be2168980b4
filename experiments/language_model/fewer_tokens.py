"""Training on a CPU, where every token costs: a group's prompt is read once, and the LM head scores completions alone.

Of a rollout of a word problem three quarters are its prompt, which the whole group has in common.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from unittest.mock import patch

import torch
import trl.trainer.utils
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast


@contextmanager
def fewer_tokens(model: PreTrainedModel) -> Iterator[None]:
    """Training of `model` inside it makes fewer tokens do: [`share_prefixes`] and [`score_completions_alone`]."""
    with share_prefixes(model), score_completions_alone():
        yield


def share_prefixes(model: PreTrainedModel) -> AbstractContextManager:
    """
    While it lasts, the decoder of `model` reads common beginnings of a batch once. The states that it returns, and
    gradients, are the same but for rounding: every row attends to the keys and values of its own beginning. Its layers
    run twice, on other rows and columns, so that a hook cannot read theirs (`contrastive_layer` must be the last).

    Args:
        model (`PreTrainedModel`): A causal model, whose decoder is `base_model`. Passes that keep a cache, as
            generation's, stay what they are.
    """
    decoder = model.base_model
    forward = decoder.forward

    @wraps(forward)
    def shared(
        input_ids: Tensor | None = None, attention_mask: Tensor | None = None, use_cache: bool | None = None, **kwargs
    ):
        plain = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": use_cache, **kwargs}
        if (
            input_ids is None
            or attention_mask is None
            or use_cache is not False
            or any(value is not None for value in kwargs.values())
        ):
            return forward(**plain)
        keys_BL = input_ids * 2 + attention_mask.bool()
        n_shared = cheapest_split(keys_BL)
        if n_shared == 0:
            return forward(**plain)
        beginnings, first_of_B = keys_BL[:, :n_shared].unique(dim=0, return_inverse=True)
        rows = first_of_B.new_empty(len(beginnings))  # one of each
        rows.scatter_(0, first_of_B, torch.arange(len(first_of_B), device=rows.device))
        cache = DynamicCache(config=decoder.config)
        prefix = forward(
            input_ids=input_ids[rows, :n_shared],
            attention_mask=attention_mask[rows, :n_shared],
            past_key_values=cache,
            use_cache=True,
        )
        cache.batch_select_indices(first_of_B)
        rest = forward(
            input_ids=input_ids[:, n_shared:], attention_mask=attention_mask, past_key_values=cache, use_cache=True
        )
        states = torch.cat([prefix.last_hidden_state[first_of_B], rest.last_hidden_state], 1)
        return BaseModelOutputWithPast(last_hidden_state=states)

    return patch.object(decoder, "forward", shared)


def score_completions_alone() -> AbstractContextManager:
    """
    While it lasts, TRL's LM head scores the tokens that have a label, and no others, as it does on a GPU. On a CPU it
    scores every position, prompts and padding too, and then drops those.

    With a TRL that has no such head there is nothing to change.
    """
    if not hasattr(trl.trainer.utils, "_use_triton"):
        return nullcontext()
    return patch.object(trl.trainer.utils, "_use_triton", lambda device: True)  # of the head, not of its kernels


def cheapest_split(keys_BL: Tensor) -> int:
    """
    How many columns to read once for all rows that have them in common, so that the fewest tokens are read in all.

    Args:
        keys_BL (`torch.Tensor` of shape `(B, L)`): What makes a token the same as another. At least one column stays.
    """
    keys_BL = keys_BL.cpu()
    n_rows, width = keys_BL.shape
    prefix_of_B = torch.zeros(n_rows, dtype=torch.long)  # which beginning a row has
    best, fewest = 0, n_rows * width
    for column in range(width - 1):
        pairs = torch.stack([prefix_of_B, keys_BL[:, column]], 1)
        _, prefix_of_B = pairs.unique(dim=0, return_inverse=True)
        n_read = (int(prefix_of_B.max()) + 1) * (column + 1) + n_rows * (width - column - 1)
        if n_read < fewest:
            best, fewest = column + 1, n_read
        if int(prefix_of_B.max()) + 1 == n_rows:
            break  # from here on each has its own
    return best
