"""What makes training on a CPU cheaper changes what is computed how often, and no number."""

import pytest
import torch
import trl.trainer.utils
from tiny_models import tiny_model

from experiments.language_model.fewer_tokens import cheapest_split, score_completions_alone, share_prefixes


G, N_PROMPT, N_COMPLETION = 4, 9, 5


def batch(padding_side: str = "left"):
    """Two groups, shuffled; prompts of 9 and 6 tokens, completions of up to 5. And where a token stands."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.zeros(2 * G, N_PROMPT + N_COMPLETION, dtype=torch.long)
    attention_mask = torch.zeros_like(input_ids)
    for row in range(2 * G):
        n_prompt, n_completion = (9, 6)[row // G], 1 + int(torch.randint(N_COMPLETION, (), generator=generator))
        start = N_PROMPT - n_prompt if padding_side == "left" else 0
        attention_mask[row, start : start + n_prompt + n_completion] = 1
        prompt = torch.arange(n_prompt) + 10 + 10 * (row // G)
        completion = torch.randint(40, (n_completion,), generator=generator)
        input_ids[row, start : start + n_prompt + n_completion] = torch.cat([prompt, completion])
    order = torch.randperm(2 * G, generator=generator)
    return {"input_ids": input_ids[order], "attention_mask": attention_mask[order]}


def states_and_gradients(model, inputs):
    model.zero_grad()
    states = model.base_model(**inputs, use_cache=False).last_hidden_state
    is_seen = inputs["attention_mask"].bool()
    (states[is_seen] ** 3).mean().backward()
    return states.detach()[is_seen], {name: p.grad.clone() for name, p in model.base_model.named_parameters()}


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_states_and_gradients_of_a_prompt_that_is_read_once(padding_side):
    inputs = batch(padding_side)
    model = tiny_model().eval()
    n_read = []
    model.base_model.embed_tokens.register_forward_hook(lambda module, args, output: n_read.append(args[0].numel()))
    states, gradients = states_and_gradients(model, inputs)
    n_plain, n_read[:] = sum(n_read), []
    with share_prefixes(model):
        shared_states, shared_gradients = states_and_gradients(model, inputs)
    assert sum(n_read) < 0.7 * n_plain
    torch.testing.assert_close(shared_states, states, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(shared_gradients[name], gradient, rtol=1e-3, atol=1e-6)
    n_read.clear()
    states_and_gradients(model, inputs)
    assert sum(n_read) == n_plain  # afterwards the decoder is as it was


def test_rows_that_differ_from_the_start_and_passes_with_a_cache_are_the_models_own():
    model = tiny_model().eval()
    inputs = {"input_ids": torch.arange(12).view(2, 6) + 3, "attention_mask": torch.ones(2, 6, dtype=torch.long)}
    wanted = model.generate(**inputs, do_sample=False, max_new_tokens=4)
    with share_prefixes(model):
        assert model.base_model(**inputs, use_cache=False).past_key_values is None
        assert model(**inputs, use_cache=True).past_key_values.get_seq_length() == 6
        torch.testing.assert_close(model.generate(**inputs, do_sample=False, max_new_tokens=4), wanted)
        positions = torch.arange(6).expand(2, 6)  # a tensor beside them: nothing shared, either
        assert model.base_model(**inputs, use_cache=False, position_ids=positions).last_hidden_state.shape[:2] == (
            2,
            6,
        )
        hidden_states = model(**inputs, use_cache=False, output_hidden_states=True).hidden_states
        assert len(hidden_states) == model.config.num_hidden_layers + 1  # asked for more than the last: nothing shared


@pytest.mark.parametrize("seed", range(5))
def test_the_split_that_reads_the_fewest_tokens(seed):
    generator = torch.Generator().manual_seed(seed)
    tree = torch.randint(3, (4, 8), generator=generator).repeat_interleave(3, 0)  # groups may begin alike, too
    keys = torch.cat([tree, torch.randint(100, (12, 4), generator=generator)], 1)[torch.randperm(12)]
    n_read = {n: len(keys[:, :n].unique(dim=0)) * n + len(keys) * (keys.size(1) - n) for n in range(1, keys.size(1))}
    n_read[0] = keys.numel()
    split = cheapest_split(keys)
    assert n_read[split] == min(n_read.values()) and split < keys.size(1)


def test_nothing_in_common():
    assert cheapest_split(torch.arange(12).view(3, 4)) == 0 == cheapest_split(torch.zeros(1, 5))
    assert cheapest_split(torch.zeros(3, 5)) == 4  # at least one column stays


def test_completions_alone_are_scored(monkeypatch):
    """The same log-probabilities, entropies and gradients from fewer rows; and afterwards TRL is as it was."""
    chunked_logprob = pytest.importorskip("trl.kernels.chunked_logprob")  # of later TRLs
    model, inputs = tiny_model(), batch()
    trl.trainer.utils.add_fused_lm_head(model, temperature=0.7, outputs=("log_probs", "entropy"))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    labels[:, :-N_COMPLETION] = -100
    n_rows = []
    apply = trl.trainer.utils._ChunkedLogProbFunction.apply
    monkeypatch.setattr(
        trl.trainer.utils._ChunkedLogProbFunction,
        "apply",
        lambda hidden, *args: n_rows.append(len(hidden)) or apply(hidden, *args),
    )

    def scores():
        model.zero_grad()
        output = model(**inputs, labels=labels, fused_lm_head=True)
        (output.log_probs.sum() + output.entropy.sum()).backward()
        return output.log_probs.detach(), output.entropy.detach(), model.base_model.embed_tokens.weight.grad.clone()

    ours = trl.trainer.utils._use_triton, chunked_logprob._use_triton
    everywhere = scores()
    with score_completions_alone():
        alone = scores()
        assert not chunked_logprob._use_triton(torch.device("cpu"))  # its kernels stay those of a CPU
    assert n_rows == [inputs["input_ids"][:, 1:].numel(), int((labels[:, 1:] != -100).sum())]
    assert (trl.trainer.utils._use_triton, chunked_logprob._use_triton) == ours
    for one, other in zip(alone, everywhere, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_trl_without_such_a_head_stays_as_it_is(monkeypatch):
    monkeypatch.delattr(trl.trainer.utils, "_use_triton", raising=False)
    with score_completions_alone():
        assert not hasattr(trl.trainer.utils, "_use_triton")
