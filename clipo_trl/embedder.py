"""Use a trained head: prompts and completions in, the unit embeddings out that the head gave such rollouts in
training.

    text or messages --tokens--> RolloutTokens --hidden_states.py--> pooled_NH --head.py--> embeddings (N, D)
"""

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from huggingface_hub.utils import tqdm
from torch import nn
from transformers import PreTrainedTokenizerBase

from .capture import plan_passes
from .head import ContrastiveHead
from .hidden_states import ForwardPooler, HiddenStateReader, RolloutTokens, right_padded
from .saved_policy import load_policy, load_tokenizer, tokenize_prompt


logger = get_logger(__name__)

Prompt = str | list[dict[str, Any]]
Completion = str | list[dict[str, Any]]


class RolloutEmbedder:
    """
    Embeds completions of prompts as CLIPO did in training: by the policy, its adapter if it has one, and the head that
    was saved beside them, with the head's pooling, layer and debias.

    The cosine of two embeddings, which is their product, says how alike the head finds two completions of a prompt.

    Args:
        model (`PreTrainedModel` or `PeftModel`): the policy.
        tokenizer (`PreTrainedTokenizerBase`): the policy's.
        head (`ContrastiveHead`): trained with this policy.

    Raises:
        `ValueError`: the head is for another hidden size, or the model is none whose states can be read.

    Example:

    ```python
    embedder = RolloutEmbedder.from_pretrained("runs/track1_gsm8k")
    embeddings = embedder(["What is 1 + 1?"] * 3, ["1 + 1 = 2", "It is 2.", "Eleven."])  # (3, D)
    cosines = embeddings @ embeddings.T
    ```
    """

    def __init__(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, head: ContrastiveHead):
        self._reader = HiddenStateReader(model, head.layer)
        if head.hidden_size != self._reader.hidden_size:
            raise ValueError(
                f"`head` was made for hidden size {head.hidden_size}, but the policy's hidden size is "
                f"{self._reader.hidden_size}. Use the head that was trained with this policy."
            )
        self.model, self.tokenizer, self.head = model.eval(), tokenizer, head.eval()

    @classmethod
    def from_pretrained(
        cls,
        path_or_id: str | Path,
        *,
        head: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "auto",
        revision: str | None = None,
        token: str | bool | None = None,
        **model_options,
    ) -> "RolloutEmbedder":
        """
        Load a policy that was trained with CLIPO, and its head.

        Args:
            path_or_id (`str` or `Path`):
                Folder of a saved model (or of a checkpoint), or its Hub id; a PEFT adapter too.
            head (`str` or `Path`, *optional*):
                Folder or Hub id of the head, where it does not lie in `contrastive_head/` of `path_or_id`.
            device (`str` or `torch.device`, *optional*):
                Default: the accelerator if there is one, else the CPU; with `device_map`, where that puts the model.
            dtype (`str` or `torch.dtype`, *optional*, defaults to `"auto"`):
                Of the policy's weights; `"auto"` for that of the checkpoint. The head is float32 in any case.
            revision, token (*optional*):
                As in `huggingface_hub`.
            model_options:
                More arguments of transformers' `from_pretrained`, such as `attn_implementation` or `device_map`.

        Raises:
            `ValueError`: no head there, or a head for another hidden size.
        """
        path = str(path_or_id)
        hub: dict[str, Any] = {} if token is None else {"token": token}
        pinned = hub if revision is None else {**hub, "revision": revision}
        # The head first: it is small, and may not be there.
        if head is None:
            loaded = ContrastiveHead._load("path_or_id", path, **pinned)
        else:
            loaded = ContrastiveHead._load("head", head, **hub)
        model = load_policy(path, dtype=dtype, **pinned, **model_options)
        trusted = {name: model_options[name] for name in ("trust_remote_code",) if name in model_options}
        tokenizer = load_tokenizer(path, **pinned, **trusted)
        embedder = cls(model, tokenizer, loaded)
        if "device_map" in model_options:
            return embedder
        return embedder.to(device or torch.accelerator.current_accelerator() or "cpu")

    def to(self, device: str | torch.device) -> "RolloutEmbedder":
        """Move policy and head to a device, and return the embedder."""
        self.model.to(device)
        return self

    @property
    def device(self) -> torch.device:
        """Where the policy's inputs go."""
        return next(self.model.parameters()).device

    @property
    def embedding_dim(self) -> int:
        """D."""
        return self.head.embedding_dim

    def __call__(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        *,
        truncated: Sequence[bool] | None = None,
        batch_size: int = 16,
        show_progress_bar: bool | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """
        Embed N completions, each with the prompt that stands beside it.

        Args:
            prompts (`Sequence` of `str` or of messages):
                As in training: messages, of text, go through the chat template; text does not. Completions of the same
                prompt are a group, which matters to a head with `debias="group_center"` only.
            completions (`Sequence` of `str` or of messages):
                Text, or one message of the assistant.
            truncated (`Sequence[bool]`, *optional*):
                Which completions were cut off before they came to an end. Default: none was.
            batch_size (`int`, *optional*, defaults to `16`):
                A pass takes as many tokens, padding included, as this many of the longest rollouts have. No part of
                the result.
            show_progress_bar (`bool`, *optional*):
                Default: in a terminal.
            chat_template_kwargs (`dict`, *optional*):
                As in the training's configuration, such as `{"enable_thinking": False}`.

        Returns:
            `torch.Tensor` of shape `(N, D)`: float32, on the CPU, rows of length 1, in the order of the completions.

        Raises:
            `ValueError`: lists of different lengths, or a completion that is neither text nor one message.
        """
        tokens = self.tokenize(prompts, completions, truncated=truncated, chat_template_kwargs=chat_template_kwargs)
        return self.embed_tokens(tokens, batch_size=batch_size, show_progress_bar=show_progress_bar)

    def tokenize(
        self,
        prompts: Sequence[Prompt],
        completions: Sequence[Completion],
        *,
        truncated: Sequence[bool] | None = None,
        chat_template_kwargs: dict[str, Any] | None = None,
    ) -> RolloutTokens:
        """Token ids of rollouts, as training has them: an end token closes a completion that was not cut off.
        Arguments as in [`__call__`]."""
        _check_lists(prompts=prompts, completions=completions, truncated=truncated)
        known: dict[str, list[int]] = {}  # the same prompt comes again and again
        prompt_ids = []
        for prompt in prompts:
            if (key := repr(prompt)) not in known:
                known[key] = list(tokenize_prompt(self.tokenizer, prompt, **(chat_template_kwargs or {})))
            prompt_ids.append(known[key])
        end = self.tokenizer.eos_token_id
        completion_ids = []
        for row, completion in enumerate(completions):
            ids = list(self.tokenizer(_text(completion, row), add_special_tokens=False)["input_ids"])
            is_cut = bool(truncated[row]) if truncated is not None else False
            completion_ids.append(ids if is_cut or end is None else [*ids, end])
        return RolloutTokens(prompt_ids, completion_ids)

    @torch.no_grad()
    def embed_tokens(
        self, tokens: RolloutTokens, *, batch_size: int = 16, show_progress_bar: bool | None = None
    ) -> torch.Tensor:
        """
        Embed rollouts whose token ids are known: sampled ids are exact where text may be split into other tokens, and
        with a `policy_mask` they may hold what tools wrote.

        Args:
            tokens ([`~clipo_trl.hidden_states.RolloutTokens`]): prompts and completions, end tokens included.
            batch_size, show_progress_bar: see [`__call__`].

        Returns:
            `torch.Tensor` of shape `(N, D)`, as [`__call__`].
        """
        if batch_size < 1:
            raise ValueError(f"`batch_size` is {batch_size}, but must be 1 or more.")
        for row in range(len(tokens)):
            if not tokens.reads(row, self.head.pooling).any():
                raise ValueError(
                    f"Completion {row} has no token that the policy wrote, so there is no state to embed. Leave it out."
                )
        if not len(tokens):
            return torch.empty(0, self.embedding_dim)
        pooled_NH = self._pooled(tokens, batch_size, show_progress_bar)
        mean_NH = self._group_means(pooled_NH, tokens) if self.head.debias == "group_center" else None
        if self.head.debias == "mean_subtract" and self.head.mean_H is None:
            logger.warning(
                "The head has `debias='mean_subtract'`, but was saved without the mean of its training: the mean of these "
                f"{len(tokens)} completions is taken off, so embeddings depend on what they are embedded with."
            )
        return self.head(pooled_NH, mean_NH).cpu()

    def _pooled(self, tokens: RolloutTokens, batch_size: int, show_progress_bar: bool | None) -> torch.Tensor:
        """Pooled states `(N, H)`, float32, where the head is."""
        lengths = [tokens.length(row) for row in range(len(tokens))]
        # A token beside the mask, which hides it: any will do.
        pad_token_id = next(
            id for id in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0) if id is not None
        )
        self.head.to(self.device)
        pooled_NH = torch.empty(len(tokens), self._reader.hidden_size, device=self.device)
        # tqdm's own `None`: in a terminal
        disable = None if show_progress_bar is None else not show_progress_bar
        with tqdm(total=len(tokens), desc="Embedding", unit="rollout", disable=disable) as bar:
            for rows in plan_passes(lengths, batch_size * max(lengths)):
                inputs, mask, reads = right_padded(tokens, rows, self.head.pooling, pad_token_id, self.device)
                pooler = ForwardPooler(reads)
                with self._reader.watch(pooler):
                    self._reader.decoder(input_ids=inputs, attention_mask=mask, use_cache=False)
                pooled_NH[rows] = pooler.result().to(self.device)
                bar.update(len(rows))
        return pooled_NH

    @staticmethod
    def _group_means(pooled_NH: torch.Tensor, tokens: RolloutTokens) -> torch.Tensor:
        """The mean over the completions of the same prompt, for each of them: `(N, H)`."""
        groups = group_numbers(map(tuple, tokens.prompt_ids)).to(pooled_NH.device)
        sizes = groups.bincount()
        if (sizes == 1).any():
            logger.warning(
                f"The head has `debias='group_center'`, but {int((sizes == 1).sum())} of the {len(sizes)} prompts have a single "
                "completion, whose embedding is then zero. Embed several completions of a prompt together."
            )
        sums = torch.zeros(len(sizes), pooled_NH.size(1), device=pooled_NH.device).index_add_(0, groups, pooled_NH)
        return (sums / sizes.unsqueeze(1))[groups]


def group_numbers(keys) -> torch.Tensor:
    """Numbers from 0 up, the same for equal keys, in the order in which these first come."""
    seen: dict[Hashable, int] = {}
    return torch.tensor([seen.setdefault(key, len(seen)) for key in keys], dtype=torch.long)


def _check_lists(prompts, completions, truncated) -> None:
    for name, values in (("prompts", prompts), ("completions", completions), ("truncated", truncated)):
        if isinstance(values, str) or (values is not None and not isinstance(values, Sequence)):
            raise ValueError(
                f"`{name}` is a {type(values).__name__}, but must be a list, with one entry for each completion."
            )
    lengths = {name: len(values) for name, values in (("prompts", prompts), ("completions", completions))}
    if truncated is not None:
        lengths["truncated"] = len(truncated)
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"`{name}` has {length} entries" for name, length in lengths.items())
        raise ValueError(f"{said}, but there must be one of each for every completion. Repeat a prompt where needed.")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str) and not (
            isinstance(prompt, list) and prompt and all(isinstance(message, dict) for message in prompt)
        ):
            raise ValueError(f"`prompts[{row}]` is {prompt!r}, but must be text or a list of messages.")
        contents = [] if isinstance(prompt, str) else [message.get("content") for message in prompt]
        if any(
            isinstance(content, list) and any(part.get("type") != "text" for part in content) for content in contents
        ):
            raise ValueError(
                f"`prompts[{row}]` has a part that is not text (an image, for one): {prompt!r}. The embedder reads prompts of "
                "text only."
            )


def _text(completion: Completion, row: int) -> str:
    if isinstance(completion, str):
        return completion
    if isinstance(completion, list) and len(completion) == 1:
        message = completion[0]
        if isinstance(message, dict) and message.get("role") == "assistant" and set(message) <= {"role", "content"}:
            if isinstance(message.get("content"), str):
                return message["content"]
    raise ValueError(
        f"`completions[{row}]` is {completion!r}, but must be text or one message of the assistant with text. For "
        "rollouts with tools, give their token ids to `embed_tokens`, with a `policy_mask`."
    )
