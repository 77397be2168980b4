"""Where the pooled hidden states of the rollouts come from during training: one of three ways, chosen once for a run."""

from contextlib import contextmanager, nullcontext

import torch
from trl import GRPOConfig

from .hidden_states import (
    DecodePooler,
    ForwardPooler,
    RolloutTokens,
    left_padded_reads,
    right_padded,
    shown_to_themselves,
)


def trl_scores_rollouts(args: GRPOConfig) -> bool:
    """Whether TRL computes the log-probabilities of the rollouts in a pass of its own, before it trains on them."""
    several_steps = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) != 0
    return several_steps or (args.use_vllm and args.vllm_importance_sampling_correction)


def choose_way(*, scored_by_trl: bool, shifts_with_left_padding: bool, plain_generate: bool) -> str:
    """
    The cheapest way that there is: `"fused"`, `"decode"` or `"forward"`, see [`CaptureMixin._choose_way`].

    Args:
        scored_by_trl (`bool`): TRL makes a pass over the rollouts anyway ([`trl_scores_rollouts`]).
        shifts_with_left_padding (`bool`): the model has learned positions, which the padding in that pass would move.
        plain_generate (`bool`): rollouts come from the policy's own `generate`.
    """
    if scored_by_trl and not shifts_with_left_padding:
        return "fused"
    return "decode" if plain_generate else "forward"


class CaptureMixin:
    """
    Reads hidden states for `CLIPOMixin`, which makes `_reader` (a [`HiddenStateReader`]), `_way` and `_forward_redirection`.
    After generation `_tokens` holds the rollouts of this process; by the time rewards are calculated `_pooled_BH` holds
    their pooled states, unless `_forward_pooled` is still to read them.
    """

    def _choose_way(self) -> str:
        """
        Where the states are read; fixed for the run, so that all processes make the same forward passes.

        `"fused"`: in TRL's own pass for old log-probabilities. `"decode"`: while `generate` decodes. `"forward"`: in a pass
        of our own over the decoder.
        """
        return choose_way(
            scored_by_trl=trl_scores_rollouts(self.args),
            shifts_with_left_padding=self._reader.shifts_with_left_padding,
            plain_generate=not (
                self.use_vllm or self.use_transformers_continuous_batching or self.rollout_func or self.tools
            ),
        )

    def _generate(self, prompts):
        pooler = None
        if not self._evaluating and self._way == "decode":
            pooler = DecodePooler(self.eos_token_ids, self.args.contrastive_pooling)
        with self._reader.watch(pooler) if pooler is not None else nullcontext():
            output = super()._generate(prompts)
        self._forget_order_of_layers()
        if self._evaluating:
            return output
        prompt_ids, completion_ids, tool_mask, _, _, _, images = output[:7]
        if any(images or []):  # inside messages, from a tool or from an environment: no column told of them
            raise ValueError(
                "A rollout has an image in its messages, but CLIPO reads the hidden states of text rollouts only. Take the "
                "images out of the prompts, tools and environments, or train with `GRPOTrainer`."
            )
        self._tokens = RolloutTokens(prompt_ids, completion_ids, tool_mask)
        if pooler is not None:
            self._pooled_BH = self._agreed(pooler.result(self._tokens))
        return output

    def _forget_order_of_layers(self) -> None:
        """
        ZeRO-3 fetches parameters ahead in the order of the last passes. Decoding layer by layer leaves an order that does
        not fit the training pass: with an LM head of its own the backward pass would fail ("size of tensor a (0)").
        """
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is None or plugin.zero_stage != 3 or self.args.ds3_gather_for_generation or self.deepspeed is None:
            return
        coordinator = self.model_wrapped.optimizer.parameter_offload.get_param_coordinator()
        if not coordinator.is_invalid_trace():
            coordinator._invalidate_trace()

    def _agreed(self, pooled_BH: torch.Tensor | None) -> torch.Tensor | None:
        """`None` on every process if it is `None` on one: all of them then make the forward pass."""
        missing = torch.tensor([pooled_BH is None], dtype=torch.float32, device=self.accelerator.device)
        return None if self.accelerator.gather(missing).any() else pooled_BH

    def _get_per_token_logps_and_entropies(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        # The first pass after generation is that of the policy; the one of a reference adapter may follow.
        if self._tokens is None or self._way != "fused" or self._pooled_BH is not None:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, *args, **kwargs
            )
        n_prompt = input_ids.size(1) - logits_to_keep
        reads_BL = left_padded_reads(self._tokens, self.args.contrastive_pooling, n_prompt, logits_to_keep)
        pooler = ForwardPooler(reads_BL.to(input_ids.device))
        shown = attention_mask
        if self.mask_truncated_completions:
            shown = shown_to_themselves(attention_mask, self._tokens, n_prompt)
        with self._reader.watch(pooler):
            logps, *others = super()._get_per_token_logps_and_entropies(
                model, input_ids, shown, logits_to_keep, *args, **kwargs
            )
        self._pooled_BH = pooler.result()
        if shown is not attention_mask:  # 0, as TRL has it for tokens that are masked
            logps = logps.masked_fill(attention_mask[:, n_prompt:] == 0, 0.0)
        return logps, *others

    @torch.no_grad()
    def _forward_pooled(self) -> torch.Tensor:
        """Pooled states (B, H) by a pass over the decoder alone, in micro-batches of sequences of similar length."""
        tokens, pooling = self._tokens, self.args.contrastive_pooling
        by_length = sorted(range(len(tokens)), key=tokens.length, reverse=True)
        pooled_BH = torch.empty(len(tokens), self._reader.hidden_size, device=self.accelerator.device)
        n_rows = self.args.per_device_train_batch_size  # the same number of passes on every process, as ZeRO-3 needs
        with self._passing_through_the_decoder() as decoder:
            for start in range(0, len(tokens), n_rows):
                rows = by_length[start : start + n_rows]
                input_ids, attention_mask, reads = right_padded(
                    tokens, rows, pooling, self._tokenizer.pad_token_id, self.accelerator.device
                )
                pooler = ForwardPooler(reads)
                with self._reader.watch(pooler), self.accelerator.autocast():
                    decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
                pooled_BH[rows] = pooler.result().to(pooled_BH.device)
                self._log_contrastive("extra_forward_passes", 1.0)
        return pooled_BH

    @contextmanager
    def _passing_through_the_decoder(self):
        """
        Calls of the decoder through its distributed wrapper, in evaluation mode: states without dropout, and without a draw from
        the global random state. Mode and methods are the policy's own again afterwards, also after a fault.
        """
        policy = self.accelerator.unwrap_model(self.model_wrapped)
        was_training, own_forward = policy.training, policy.__dict__.get("forward")
        policy.eval()
        try:
            yield lambda **inputs: self._forward_redirection(
                self.model_wrapped, policy, self._reader.decoder, **inputs
            )
        finally:
            policy.train(was_training)
            if own_forward is None:  # TRL's redirection puts one there
                policy.__dict__.pop("forward", None)
            else:
                policy.forward = own_forward
