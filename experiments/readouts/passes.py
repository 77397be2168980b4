"""
Forward passes of a frozen policy over text that it wrote, or that was made of it: log-probabilities, hidden states.

Texts of one group share their prompt, which is passed once and kept (its keys and values, but for its last token's).
The logit of the token that was drawn is computed in float32 whatever the model's dtype: in bfloat16 it would be
rounded to an eighth where it is above 16, and the likelihood with it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from clipo_trl.hidden_states import RolloutTokens, pool, right_padded


TOKENS_PER_BLOCK = 512  # whose distributions over the vocabulary are held at once


@dataclass
class Prompt:
    """A prompt's tokens, and what the model keeps of all but the last of them."""

    last_id: int
    cache: DynamicCache


@dataclass
class TokenFigures:
    """
    Of each token of one text, as float32 tensors of its length T.

    Attributes:
        log_prob_T: log-probability, at temperature 1.
        entropy_T: entropy of the distribution that it was drawn from.
        certainty_T: Kullback-Leibler divergence from the uniform distribution to that one (self-certainty).
    """

    log_prob_T: torch.Tensor
    entropy_T: torch.Tensor
    certainty_T: torch.Tensor


class FrozenPolicy:
    """
    A policy that is read and not trained.

    Args:
        model (`PreTrainedModel`): In evaluation mode.
        tokenizer (`PreTrainedTokenizerBase`): With a chat template.
        layers (`Sequence[int]`, *optional*): Whose states are read, as `contrastive_layer` counts them: -1 after the
            final norm, otherwise a decoder layer, but for the last.
        batch_size (`int`, *optional*, defaults to `64`): Texts a pass.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        layers: Sequence[int] = (-1,),
        batch_size: int = 64,
    ):
        self.model, self.tokenizer, self.layers, self.batch_size = model, tokenizer, tuple(layers), batch_size
        self.decoder = model.get_decoder()
        self.head_weight_VH = model.get_output_embeddings().weight.detach()

    @torch.no_grad()
    def prompt(self, messages: list[dict[str, str]]) -> Prompt:
        """Pass the messages of a prompt, once for all texts after it."""
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        cache = self.decoder(torch.tensor([ids[:-1]]), use_cache=True).past_key_values
        return Prompt(ids[-1], cache)

    def ids_of(self, text: str, ends: bool = False) -> list[int]:
        """Tokens of a text that the policy wrote; with the end-of-sequence token if it `ends`."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids + [self.tokenizer.eos_token_id] if ends else ids

    def log_probs(
        self, prompt: Prompt, texts: Sequence[list[int]], last: Sequence[int] | None = None
    ) -> list[torch.Tensor]:
        """Log-probabilities alone: of all tokens of each text, or of so many at its end."""
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))  # little padding
        found: list[Any] = [None] * len(texts)
        places = iter(order)
        for states, batch in self._batches(prompt, [texts[place] for place in order]):
            for states_TH, ids in zip(self._states_before(states[-1], batch), batch, strict=True):
                place = next(places)
                wanted = slice(-last[place] if last else None, None)
                ids_T = torch.tensor(ids[wanted])
                found[place] = self._log_softmax(states_TH[wanted], ids_T).gather(1, ids_T.unsqueeze(1)).squeeze(1)
        return found

    def figures_and_states(
        self, prompt: Prompt, texts: Sequence[list[int]]
    ) -> tuple[list[TokenFigures], dict[str, torch.Tensor]]:
        """Figures, and pooled states `(texts, H)` by layer and pooling, `"-1/mean"` for one, as CLIPO pools them."""
        figures, pooled = [], {}
        for states, ids in self._batches(prompt, texts, all_layers=True):
            figures += self._figures_of(states, ids)
            tokens = RolloutTokens([[prompt.last_id]] * len(ids), ids)
            for pooling in ("mean", "last"):
                reads_BL = right_padded(tokens, list(range(len(ids))), pooling, 0, torch.device("cpu"))[2]
                for layer in self.layers:
                    states_BLH = states[layer if layer == -1 else layer + 1]
                    pooled.setdefault(f"{layer}/{pooling}", []).append(pool(states_BLH, reads_BL))
        return figures, {name: torch.cat(parts) for name, parts in pooled.items()}

    @torch.no_grad()
    def _batches(self, prompt: Prompt, texts: Sequence[list[int]], all_layers: bool = False):
        """Hidden states of the prompt's last token and of the text's, and the texts: a batch at a time."""
        for start in range(0, len(texts), self.batch_size):
            ids = list(texts[start : start + self.batch_size])
            tokens = RolloutTokens([[prompt.last_id]] * len(ids), ids)
            pad = self.tokenizer.pad_token_id
            input_ids_BL, attention_BL, _ = right_padded(tokens, list(range(len(ids))), "mean", pad, self.model.device)
            cache = copy.deepcopy(prompt.cache)
            cache.batch_repeat_interleave(len(ids))
            before_BL = torch.ones(len(ids), prompt.cache.get_seq_length(), dtype=torch.long)
            output = self.decoder(
                input_ids_BL,
                attention_mask=torch.cat([before_BL, attention_BL], 1),
                past_key_values=cache,
                use_cache=True,
                output_hidden_states=all_layers,
            )
            yield (output.hidden_states if all_layers else (output.last_hidden_state,)), ids

    def _states_before(self, states_BLH: torch.Tensor, ids: list[list[int]]) -> list[torch.Tensor]:
        """Of each text the states that its tokens were drawn from."""
        return [states_LH[: len(text)] for states_LH, text in zip(states_BLH, ids, strict=True)]

    def _log_softmax(self, states_TH: torch.Tensor, ids_T: torch.Tensor) -> torch.Tensor:
        """Log-probabilities `(T, V)`, float32, most exact for the tokens `ids_T`."""
        logits_TV = (states_TH @ self.head_weight_VH.T).float()
        exact_T = (states_TH.float() * self.head_weight_VH[ids_T].float()).sum(1)
        return logits_TV.scatter_(1, ids_T.unsqueeze(1), exact_T.unsqueeze(1)).log_softmax(-1)

    def _figures_of(self, states: Sequence[torch.Tensor], ids: list[list[int]]) -> list[TokenFigures]:
        flat_NH = torch.cat(self._states_before(states[-1], ids))
        flat_ids_N = torch.tensor([token for text in ids for token in text])
        parts = []
        for block_NH, block_ids_N in zip(
            flat_NH.split(TOKENS_PER_BLOCK), flat_ids_N.split(TOKENS_PER_BLOCK), strict=True
        ):
            log_p_NV = self._log_softmax(block_NH, block_ids_N)
            drawn_N = log_p_NV.gather(1, block_ids_N.unsqueeze(1)).squeeze(1)
            entropy_N = -(log_p_NV.exp() * log_p_NV).sum(1)
            certainty_N = -log_p_NV.mean(1) - torch.tensor(float(log_p_NV.size(1))).log()
            parts.append(torch.stack([drawn_N, entropy_N, certainty_N]))
        by_text = torch.cat(parts, 1).split([len(text) for text in ids], 1)
        return [TokenFigures(*figures) for figures in by_text]
