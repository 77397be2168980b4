"""Where the pooled hidden states of the rollouts come from during training: one of three capture modes, chosen once
for a run."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from accelerate import Accelerator
from torch import nn
from trl.models.utils import _ForwardRedirection

from .beyond_the_paper_config import TOKEN_SCORES
from .hidden_states import (
    DecodePooler,
    ForwardPooler,
    HiddenStateReader,
    RolloutTokens,
    left_padded_reads,
    mean_over_tokens,
    right_padded,
    shown_to_themselves,
    written_tokens,
)
from .images import check_tool_images
from .parent_shapes import CLIPOArguments, GRPOArguments
from .upstream.zero3_order import order_of_its_own


ImageInputs = Callable[[RolloutTokens, list[int], int], dict[str, torch.Tensor]]


def trl_scores_rollouts(args: GRPOArguments) -> bool:
    """Whether TRL computes the log-probabilities of the rollouts in a pass of its own, before it trains on them."""
    several_steps = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) != 0
    return several_steps or (args.use_vllm and args.vllm_importance_sampling_correction)


def rollouts_are_scored(args: CLIPOArguments) -> bool:
    """Whether the first pass over the rollouts is one for the policy's log-probabilities: TRL's, or asked of it."""
    return trl_scores_rollouts(args) or args.contrastive_reward_type in TOKEN_SCORES


def choose_capture_mode(*, scored_by_trl: bool, shifts_with_left_padding: bool, plain_generate: bool) -> str:
    """
    The cheapest capture mode that there is: `"fused"`, `"decode"` or `"forward"`, see [`StateSource`].

    Args:
        scored_by_trl (`bool`): TRL makes a pass over the rollouts anyway ([`rollouts_are_scored`]).
        shifts_with_left_padding (`bool`): the model has learned positions, which the padding in that pass would move.
        plain_generate (`bool`): rollouts come from the policy's own `generate`.
    """
    if scored_by_trl and not shifts_with_left_padding:
        return "fused"
    return "decode" if plain_generate else "forward"


def plan_passes(lengths: list[int], max_tokens: int) -> list[list[int]]:
    """
    Rows in as few passes as there can be if none takes more than `max_tokens` tokens, padding included: rows of
    similar length together, the longest first.
    """
    passes: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if not passes or lengths[passes[-1][0]] * (len(passes[-1]) + 1) > max_tokens:
            passes.append([])
        passes[-1].append(row)
    return passes


def split_passes(passes: list[list[int]], n: int) -> list[list[int]]:
    """The same rows in `n` passes, at most one a row: the one of most rows is halved, again and again."""
    passes = list(passes)
    while len(passes) < n:
        i = max(range(len(passes)), key=lambda i: len(passes[i]))
        middle = len(passes[i]) // 2
        passes[i : i + 1] = passes[i][:middle], passes[i][middle:]
    return passes


class StateSource:
    """
    Pooled hidden states of the rollouts of this process, and their log-probabilities where a pass gives them, one
    generation batch after the other.

    Args:
        reader (`HiddenStateReader`): knows where the policy's states come out.
        mode (`str`): the capture mode, fixed for the run, so that all processes make the same forward passes.
            `"fused"`: in TRL's own pass for old log-probabilities. `"decode"`: while `generate` decodes. `"forward"`:
            in a pass of our own over the decoder; of a vision-language model that is all but the LM head, and it is
            fed the images, too.
        pooling (`str`): `"mean"` or `"last"`.
        eos_token_ids (`list[int]`): tokens that end a completion.
        accelerator (`Accelerator`): knows the other processes.

    Attributes:
        is_scored (`bool`): the first pass over the rollouts is one for the policy's log-probabilities
            ([`rollouts_are_scored`]), as with `"fused"` it has to be. False until it is set.
        asks_for_scores (`bool`): TRL makes that pass for CLIPO alone. False until it is set.
        reads_entropy (`bool`): that pass gives the policy's entropies, too. False until it is set.
        tokens (`RolloutTokens`, *optional*): the rollouts at hand; `None` outside of [`rollouts`] and in evaluation.
        token_scores (`dict[str, torch.Tensor]`): what that pass tells of them, each of shape `(B,)`, NaN where no
            token counts: `"likelihood"`, the mean log-probability of their tokens, and `"negative_entropy"`, minus
            the mean entropy before them. Empty where there is no such pass.
        n_extra_passes (`int`): passes over the decoder made for CLIPO alone, for the rollouts at hand.
        seconds (`float`): time that a pass asked of TRL took for them.
    """

    is_scored = asks_for_scores = reads_entropy = False

    def __init__(
        self, reader: HiddenStateReader, mode: str, pooling: str, eos_token_ids: list[int], accelerator: Accelerator
    ):
        self.reader, self.mode, self.pooling = reader, mode, pooling
        self._eos_token_ids, self._accelerator = eos_token_ids, accelerator
        self._redirection = _ForwardRedirection()
        self._forget()

    def _forget(self) -> None:
        self.tokens: RolloutTokens | None = None
        self._pooled_BH: torch.Tensor | None = None
        self.token_scores: dict[str, torch.Tensor] = {}
        self.n_extra_passes, self.seconds = 0, 0.0

    @contextmanager
    def rollouts(self) -> Iterator[None]:
        """The life of a generation batch: whatever happens in it, nothing of it is left afterwards."""
        try:
            yield
        finally:
            self._forget()

    def generate(self, generate: Callable[[], tuple], evaluating: bool) -> tuple:
        """Call TRL's `_generate`, and keep what its rollouts tell; nothing in evaluation."""
        if evaluating:
            return generate()
        pooler = DecodePooler(self._eos_token_ids, self.pooling) if self.mode == "decode" else None
        with self.reader.watch(pooler) if pooler is not None else nullcontext():
            output = generate()
        prompt_ids, completion_ids, tool_mask, _, _, _, _, tool_images = output[:8]
        check_tool_images(self.mode, tool_images)
        self.tokens = RolloutTokens(prompt_ids, completion_ids, tool_mask)
        if pooler is not None:
            self._pooled_BH = self._agreed(pooler.result(self.tokens))
        return output

    def _agreed(self, pooled_BH: torch.Tensor | None) -> torch.Tensor | None:
        """`None` on every process if it is `None` on one: all of them then make the forward pass."""
        missing = torch.tensor([pooled_BH is None], dtype=torch.float32, device=self._accelerator.device)
        return None if self._accelerator.gather(missing).any() else pooled_BH

    def score(
        self,
        score: Callable[..., tuple],
        attention_mask_BL: torch.Tensor,
        n_completion: int,
        hides_truncated: bool,
    ) -> tuple:
        """
        Call TRL's pass for log-probabilities with an attention mask, and read the states in it if this is the place.
        The first pass after generation is that of the policy, if it is scored at all; that of a reference may follow.

        Args:
            score (`Callable`): the pass, `(attention_mask, **settings) -> (logps, entropies, ...)`, with TRL's
                `settings`.
            attention_mask_BL (`torch.Tensor` of shape `(B, L)`): TRL's, completions in the last `n_completion`
                columns.
            hides_truncated (`bool`): the mask hides truncated completions from themselves
                (`mask_truncated_completions`).
        """
        is_policys = self.mode == "fused" or self.is_scored
        if self.tokens is None or not is_policys or self.token_scores:
            return score(attention_mask_BL)
        if self.reads_entropy:
            score = partial(score, compute_entropy=True)
        n_prompt = attention_mask_BL.size(1) - n_completion
        is_seen_BC = attention_mask_BL[:, n_prompt:] != 0
        if self.mode == "fused":
            logps, *others = self._read_while(score, attention_mask_BL, n_prompt, hides_truncated)
            if hides_truncated:  # 0, as TRL has it for tokens that are masked
                logps = logps.masked_fill(~is_seen_BC, 0.0)
        else:
            logps, *others = score(attention_mask_BL)
        counts_BC = is_seen_BC & written_tokens(self.tokens, n_completion).to(is_seen_BC.device)
        self.token_scores["likelihood"] = mean_over_tokens(logps, counts_BC)
        if self.reads_entropy:
            self.token_scores["negative_entropy"] = -mean_over_tokens(others[0], counts_BC)
        return logps, *others

    def _read_while(self, score: Callable, attention_mask_BL: torch.Tensor, n_prompt: int, hides_truncated: bool):
        """The pass with the states read in it; with `hides_truncated` it shows truncated completions to themselves."""
        assert self.tokens is not None  # inside `rollouts`
        n_completion = attention_mask_BL.size(1) - n_prompt
        pooler = ForwardPooler(left_padded_reads(self.tokens, self.pooling, n_prompt, n_completion))
        shown_BL = attention_mask_BL
        if hides_truncated:
            shown_BL = shown_to_themselves(attention_mask_BL, self.tokens, n_prompt)
        with self.reader.watch(pooler):
            output = score(shown_BL)
        self._pooled_BH = pooler.result()
        return output

    def pooled(
        self, model_wrapped: nn.Module, rows_per_pass: int, pad_token_id: int, image_inputs: ImageInputs | None = None
    ) -> torch.Tensor:
        """
        Pooled states `(B, H)`, float32; by passes over the decoder where nothing has read them yet.

        Args:
            model_wrapped (`nn.Module`): the policy in its distributed wrapper.
            rows_per_pass (`int`): rows of a training micro-batch. A pass takes no more tokens, padding included, than
                that many of the longest rollouts have.
            pad_token_id (`int`): fills shorter rows.
            image_inputs (`Callable`, *optional*): of the tokens, the rows of a pass and its width: what the decoder
                takes beside the tokens of rollouts about images.
        """
        if self._pooled_BH is None:
            self._pooled_BH = self._by_passes(model_wrapped, rows_per_pass, pad_token_id, image_inputs)
        return self._pooled_BH.to(self._accelerator.device)

    @torch.no_grad()
    def _by_passes(
        self, model_wrapped: nn.Module, rows_per_pass: int, pad_token_id: int, image_inputs: ImageInputs | None
    ) -> torch.Tensor:
        """Over the decoder alone. Nothing waits for the device: its work is queued, and the host can go on."""
        tokens, device = self.tokens, self._accelerator.device
        assert tokens is not None  # inside `rollouts`
        lengths = [tokens.length(row) for row in range(len(tokens))]
        passes = plan_passes(lengths, rows_per_pass * max(lengths))
        if self._accelerator.num_processes > 1:  # all make the same number of passes, as ZeRO-3 needs
            counts = self._accelerator.gather(torch.tensor([len(passes)], device=device))
            passes = split_passes(passes, int(counts.max()))
        pooled_BH = torch.empty(len(tokens), self.reader.hidden_size, device=device)
        with self._passing_through_the_decoder(model_wrapped) as decoder:
            for rows in passes:
                input_ids, attention_mask, reads = right_padded(tokens, rows, self.pooling, pad_token_id, device)
                images = {} if image_inputs is None else image_inputs(tokens, rows, input_ids.size(1))
                pooler = ForwardPooler(reads)
                with self.reader.watch(pooler), self._accelerator.autocast():
                    decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **images)
                pooled_BH[rows] = pooler.result().to(device)
                self.n_extra_passes += 1
        return pooled_BH

    @contextmanager
    def _passing_through_the_decoder(self, model_wrapped: nn.Module) -> Iterator[Callable]:
        """
        Calls of the decoder through its distributed wrapper, in evaluation mode: states without dropout, and without a
        draw from the global random state. Mode and methods are the policy's own again afterwards, also after a fault.
        """
        policy = self._accelerator.unwrap_model(model_wrapped)
        was_training, own_forward = policy.training, policy.__dict__.get("forward")
        policy.eval()
        try:
            with order_of_its_own(model_wrapped):
                yield lambda **inputs: self._redirection(model_wrapped, policy, self.reader.decoder, **inputs)
        finally:
            policy.train(was_training)
            if own_forward is None:  # TRL's redirection puts one there
                policy.__dict__.pop("forward", None)
            else:
                policy.forward = own_forward
