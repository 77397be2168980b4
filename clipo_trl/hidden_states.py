"""Rollout tokens in, one pooled hidden state per rollout out (CLIPO, arXiv 2603.10101, section 3).

The state of a rollout is the mean of the policy's hidden states at its completion's tokens, without the last one:
sampled but never fed back, it has no state while decoding. A completion of one token is read where that token was
sampled. Padding and tokens that the policy did not write (tool or environment output) are left out.

States are read by a forward hook and pooled at once, in float32. There are three capture modes that give the same
numbers:
    - `DecodePooler` sums them while `generate` decodes, token by token;
    - `ForwardPooler` pools them in a forward pass over whole sequences that the trainer makes anyway;
    - or in one over the decoder alone (no LM head), fed by `right_padded`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass
class RolloutTokens:
    """
    Token ids of the B rollouts of one process.

    Args:
        prompt_ids (`list[list[int]]`): one list a rollout, without padding.
        completion_ids (`list[list[int]]`): likewise.
        policy_mask (`list[list[int]]`, *optional*):
            For each completion token 1 if the policy wrote it, 0 if a tool or an environment did. Default: all 1.
    """

    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    policy_mask: list[list[int]] | None = None

    def __len__(self) -> int:
        return len(self.completion_ids)

    def length(self, row: int) -> int:
        """Tokens of prompt and completion of a rollout."""
        return len(self.prompt_ids[row]) + len(self.completion_ids[row])

    def reads(self, row: int, pooling: str) -> torch.Tensor:
        """
        The positions of a rollout whose states are pooled, as a bool mask over its prompt and completion without
        padding.

        All False if the policy wrote nothing: such a rollout has no state.
        """
        n_prompt, n_completion = len(self.prompt_ids[row]), len(self.completion_ids[row])
        written = torch.ones(n_completion, dtype=torch.bool)
        if self.policy_mask is not None:
            written = torch.tensor(self.policy_mask[row], dtype=torch.bool)
        reads = torch.zeros(n_prompt + n_completion, dtype=torch.bool)
        reads[n_prompt:-1] = written[:-1]
        if not reads.any() and written.any():
            reads[n_prompt + written.nonzero()[-1] - 1] = True  # the state that sampled the only token
        if pooling == "last" and reads.any():
            last = reads.nonzero()[-1]
            reads.zero_()
            reads[last] = True
        return reads


def right_padded(tokens: RolloutTokens, rows: list[int], pooling: str, pad_token_id: int, device: torch.device):
    """
    Whole sequences of some rollouts, padded on the right: positions are then right for every causal model, also for
    one with absolute positions or a recurrent state.

    Returns:
        `input_ids_BL`, `attention_mask_BL` (long, on `device`), `reads_BL` (bool, on the CPU); B = `len(rows)`.
    """
    width = max(tokens.length(row) for row in rows)
    input_ids_BL = torch.full((len(rows), width), pad_token_id)
    attention_mask_BL = torch.zeros(len(rows), width, dtype=torch.long)
    reads_BL = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        length = tokens.length(row)
        input_ids_BL[i, :length] = torch.tensor(tokens.prompt_ids[row] + tokens.completion_ids[row])
        attention_mask_BL[i, :length] = 1
        reads_BL[i, :length] = tokens.reads(row, pooling)
    return input_ids_BL.to(device), attention_mask_BL.to(device), reads_BL


def left_padded_reads(tokens: RolloutTokens, pooling: str, n_prompt: int, n_completion: int) -> torch.Tensor:
    """The mask `reads_BL` for TRL's layout: prompts padded left to `n_prompt`, completions right to `n_completion`."""
    reads_BL = torch.zeros(len(tokens), n_prompt + n_completion, dtype=torch.bool)
    for row in range(len(tokens)):
        start = n_prompt - len(tokens.prompt_ids[row])
        reads_BL[row, start : start + tokens.length(row)] = tokens.reads(row, pooling)
    return reads_BL


def shown_to_themselves(attention_mask_BL: torch.Tensor, tokens: RolloutTokens, n_prompt: int) -> torch.Tensor:
    """
    TRL's attention mask with `mask_truncated_completions`, in which truncated completions are hidden altogether, from
    themselves too: here they see themselves. Their last token stays hidden: nothing sees it, its state is not read,
    and the mask keeps a zero wherever it had one (transformers computes differently, in the last digits, without).
    """
    n_completion = attention_mask_BL.size(1) - n_prompt
    device = attention_mask_BL.device
    n_seen_B = torch.tensor([len(ids) - 1 for ids in tokens.completion_ids], device=device)
    hidden_B1 = attention_mask_BL[:, n_prompt:].sum(1, keepdim=True) == 0
    seen_BC = hidden_B1 & (torch.arange(n_completion, device=device) < n_seen_B.unsqueeze(1))
    shown_BL = attention_mask_BL.clone()
    shown_BL[:, n_prompt:][seen_BC] = 1
    return shown_BL


def written_tokens(tokens: RolloutTokens, n_completion: int) -> torch.Tensor:
    """
    Tokens that the policy wrote, its end token included: a bool mask `(B, C)` over completions that TRL padded on the
    right to `n_completion` (C).
    """
    written_BC = torch.zeros(len(tokens), n_completion, dtype=torch.bool)
    for row, ids in enumerate(tokens.completion_ids):
        mask = tokens.policy_mask[row] if tokens.policy_mask is not None else [1] * len(ids)
        written_BC[row, : len(ids)] = torch.tensor(mask, dtype=torch.bool)
    return written_BC


def mean_over_tokens(values_BC: torch.Tensor, is_counted_BC: torch.Tensor) -> torch.Tensor:
    """Mean of values `(B, C)`, log-probabilities say, over each rollout's tokens that count: `(B,)`, float32; NaN
    where none does."""
    sums_B = values_BC.detach().float().masked_fill(~is_counted_BC, 0.0).sum(1)
    return sums_B / is_counted_BC.sum(1)  # 0 / 0 = NaN


def pool(states_BLH: torch.Tensor, reads_BL: torch.Tensor) -> torch.Tensor:
    """Mean over the positions where `reads_BL` is True: (B, H), float32; zeros where a row reads nothing."""
    # Not a product with the mask: NaN at a padded position must not leak into the mean.
    summed_BH = states_BLH.masked_fill(~reads_BL.unsqueeze(-1), 0.0).sum(dim=1, dtype=torch.float32)
    return summed_BH / reads_BL.sum(dim=1, keepdim=True).clamp(min=1)


def _columns_read(reads_BL: torch.Tensor) -> slice:
    """From the first to the last column that any row reads."""
    columns = reads_BL.any(0).nonzero().flatten().tolist()
    return slice(columns[0], columns[-1] + 1) if columns else slice(0, 0)


class HiddenStateReader:
    """
    Knows where a policy's hidden states come out, and watches that place.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the policy, unwrapped.
        layer (`int`): -1 for the states after the final norm, otherwise a decoder layer.

    Raises:
        `ValueError`:
            a structure in which the decoder is not found, a layer that does not exist, or an adapter that acts outside
            the decoder.
    """

    def __init__(self, model: nn.Module, layer: int = -1):
        self._refuse_adapters_outside_the_decoder(model)
        policy: Any = model
        base = policy.get_base_model() if hasattr(policy, "get_base_model") else policy
        self.decoder = base.base_model if isinstance(base, PreTrainedModel) else base
        if self.decoder is base:
            raise ValueError(
                f"CLIPO reads hidden states where the decoder hands them to the LM head, but in {type(base).__name__} no "
                f"decoder was found: looked for the attribute named by `base_model_prefix` "
                f"({getattr(base, 'base_model_prefix', None)!r}). Use a causal language model of transformers."
            )
        config = base.config.get_text_config()
        projected = getattr(config, "word_embed_proj_dim", None) if layer == -1 else None  # OPT's way to its LM head
        self.hidden_size = projected or config.hidden_size
        self._watched = self.decoder if layer == -1 else self._find_layer(base, layer)
        # Learned absolute positions (GPT-2 and its kin) that are counted from the left, padding included.
        self.shifts_with_left_padding = hasattr(self.decoder, "wpe")

    @staticmethod
    def _refuse_adapters_outside_the_decoder(model: nn.Module) -> None:
        """Virtual tokens and the start of an activated LoRA come from `PeftModel.forward`, not from the decoder."""
        for name, config in getattr(model, "peft_config", {}).items():
            if config.is_prompt_learning or getattr(config, "alora_invocation_tokens", None):
                raise ValueError(
                    f"The adapter {name!r} is a `{type(config).__name__}` that adds virtual tokens or waits for an "
                    "invocation, so hidden states cannot be matched to the completion's tokens. Use an adapter of the "
                    "decoder's own layers, such as `LoraConfig` without `alora_invocation_tokens`."
                )

    @staticmethod
    def _find_layer(model: PreTrainedModel, layer: int) -> nn.Module:
        n_layers = model.config.get_text_config().num_hidden_layers
        text_decoder = model.get_decoder()
        stacks = [m for m in text_decoder.children() if isinstance(m, nn.ModuleList) and len(m) == n_layers]
        if len(stacks) != 1:
            raise ValueError(
                f"`contrastive_layer` is {layer}, but in {type(text_decoder).__name__} no list of {n_layers} decoder layers "
                "was found. Use `contrastive_layer=-1`."
            )
        if not -n_layers <= layer < n_layers:
            raise ValueError(
                f"`contrastive_layer` is {layer}, but the model has {n_layers} layers. Choose -1 (after the final norm), 0 "
                f"to {n_layers - 1}, or -2 to {-n_layers}."
            )
        return stacks[0][layer]

    @contextmanager
    def watch(self, on_states: Callable[[torch.Tensor, torch.Tensor | None], None]) -> Iterator[None]:
        """
        While open, call `on_states(states_BLH, input_ids_BL)` at every forward pass of the decoder. `input_ids_BL` is
        `None` where the decoder was given something else.
        """
        fed = {}

        def remember_input(module, args, kwargs):
            fed["input_ids"] = kwargs.get("input_ids", args[0] if args else None)

        def hand_over(module, args, output):
            # Some models call a part of their decoder directly: no input is seen then.
            on_states(output if isinstance(output, torch.Tensor) else output[0], fed.get("input_ids"))

        handles = [
            self.decoder.register_forward_pre_hook(remember_input, with_kwargs=True),
            self._watched.register_forward_hook(hand_over),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class ForwardPooler:
    """
    Pools forward passes over whole sequences, whose rows may come in several chunks, in order.

    Args:
        reads_BL (`torch.Tensor`, bool): the positions to pool in all B rows, on the CPU: what the device is asked
            to do then depends on nothing that it has to tell.
    """

    def __init__(self, reads_BL: torch.Tensor):
        self._reads_BL = reads_BL
        self._chunks: list[torch.Tensor] = []
        self._n_rows = 0

    def __call__(self, states_BLH: torch.Tensor, input_ids_BL: torch.Tensor | None) -> None:
        reads_BL = self._reads_BL[self._n_rows : self._n_rows + len(states_BLH)]
        read = _columns_read(reads_BL)  # prompts and padding, most of a long batch, are not copied
        self._chunks.append(pool(states_BLH.detach()[:, read], reads_BL[:, read].to(states_BLH.device)))
        self._n_rows += len(states_BLH)

    def result(self) -> torch.Tensor:
        """Pooled states (B, H), float32."""
        return torch.cat(self._chunks)


class DecodePooler:
    """
    Pools the states of `generate` while it decodes: one call with the prompts, then one a token.

    Holds two (B, H) tensors. Finished sequences, which `generate` feeds padding, are left out. The states are those
    that sampled the rollouts: whatever `generate` computes, dropout and dtype included.

    Args:
        eos_token_ids (`list[int]`): tokens that end a completion.
        pooling (`str`): `"mean"` or `"last"`.
    """

    def __init__(self, eos_token_ids: list[int], pooling: str):
        self._eos_token_ids = eos_token_ids
        self._pooling = pooling
        self._states_BH: torch.Tensor | None = None

    def __call__(self, states_BLH: torch.Tensor, input_ids_BL: torch.Tensor | None) -> None:
        # A copy: a view would keep the states of all prompts alive.
        states_BH = states_BLH[:, -1].to(torch.float32, copy=True)
        if self._states_BH is None or states_BLH.size(1) > 1:  # the prompts: the state that samples the first token
            self._first_BH = states_BH
            self._states_BH = states_BH if self._pooling == "last" else torch.zeros_like(states_BH)
            self._eos = torch.tensor(self._eos_token_ids, device=states_BH.device)
            self._running_B = torch.ones(len(states_BH), dtype=torch.bool, device=states_BH.device)
            self._count_B = torch.zeros(len(states_BH), dtype=torch.long, device=states_BH.device)
            self._checksum_B = torch.zeros_like(self._count_B)
            return
        if input_ids_BL is None:  # cannot tell what was fed: count nothing, and `result` will not match
            return
        fed_B = input_ids_BL[:, -1].to(states_BH.device)  # a model may be split over devices
        self._running_B &= ~torch.isin(fed_B, self._eos)
        if self._pooling == "last":
            self._states_BH = torch.where(self._running_B.unsqueeze(1), states_BH, self._states_BH)
        else:
            self._states_BH += states_BH.masked_fill(~self._running_B.unsqueeze(1), 0.0)
        self._count_B += self._running_B
        self._checksum_B += self._count_B * fed_B * self._running_B

    def result(self, tokens: RolloutTokens) -> torch.Tensor | None:
        """
        Pooled states (B, H), float32, of the completions in `tokens`. `None` if these are not the sequences that were
        fed one token at a time (beams reordered, several tokens a step, ...): number and checksum of the tokens tell.
        """
        completions = [torch.tensor(ids[:-1], dtype=torch.long) for ids in tokens.completion_ids]
        checksums = [(ids * torch.arange(1, len(ids) + 1)).sum().item() for ids in completions]
        if (
            self._states_BH is None
            or self._count_B.tolist() != [len(ids) for ids in completions]
            or self._checksum_B.tolist() != checksums
        ):
            return None
        if self._pooling == "last":
            return self._states_BH
        mean_BH = self._states_BH / self._count_B.unsqueeze(1).clamp(min=1)
        return torch.where(self._count_B.unsqueeze(1) > 0, mean_BH, self._first_BH)
