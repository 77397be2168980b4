"""Pooled states against a plain full forward of each rollout alone, in whichever capture mode they are read."""

import pytest
import torch
from recording import CAPTURE_MODES, FUSED, assert_right, positions_by_hand, record, settings_of
from tiny_models import tiny_model, tiny_tokenizer

from clipo_trl import CLIPOTrainer, contrastive_loss, contrastive_reward
from clipo_trl.hidden_states import DecodePooler, ForwardPooler, HiddenStateReader, RolloutTokens, pool, right_padded


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("layer", [-1, 0, -2])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_pooled_states_are_those_of_a_full_forward(tmp_path, mode, layer, pooling):
    settings = settings_of(mode)
    trainer = record(tmp_path, mode, contrastive_layer=layer, contrastive_pooling=pooling, max_steps=2, **settings)
    assert trainer.states.mode == mode
    lengths = [len(ids) for tokens, _, _ in trainer.records for ids in tokens.completion_ids]
    prompt_lengths = [len(ids) for tokens, _, _ in trainer.records for ids in tokens.prompt_ids]
    assert len(set(lengths)) > 3 and len(set(prompt_lengths)) > 1
    assert_right(trainer)


@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_completions_of_one_token(tmp_path, mode):
    settings = settings_of(mode)
    trainer = record(tmp_path, mode, max_completion_length=1, max_steps=2, **settings)
    assert all(len(ids) == 1 for tokens, _, _ in trainer.records for ids in tokens.completion_ids)
    assert_right(trainer)


def test_ways_are_chosen_from_the_configuration(tmp_path):
    assert record(tmp_path).states.mode == "decode"
    assert record(tmp_path, **FUSED).states.mode == "fused"
    assert record(tmp_path, num_iterations=2).states.mode == "fused"
    assert record(tmp_path, mask_truncated_completions=True, **FUSED).states.mode == "fused"


@pytest.mark.parametrize("mode", ["decode", "fused"])
def test_truncated_completions_that_are_masked_keep_their_states(tmp_path, mode):
    settings = settings_of(mode)
    assert_right(record(tmp_path, mask_truncated_completions=True, max_completion_length=4, **settings))


@pytest.mark.parametrize("pad_to_multiple_of", [None, 8])
def test_extra_passes_are_counted_and_only_made_where_needed(tmp_path, pad_to_multiple_of):
    for mode, expected in (("decode", None), ("forward", 1.0)):
        trainer = record(tmp_path, mode, pad_to_multiple_of=pad_to_multiple_of)
        logged = [row.get("contrastive/extra_forward_passes") for row in trainer.state.log_history if "loss" in row]
        assert logged == [expected] * 3
        assert_right(trainer)


@pytest.mark.parametrize("precision", ["autocast over fp32 weights", "bf16 weights", "both"])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_bf16(tmp_path, mode, precision):
    """States as a forward pass in that precision has them; from there on, all in float32."""
    settings = {
        **settings_of(mode),
        "contrastive_loss_type": "supcon_out",
        "bf16": precision != "bf16 weights",
    }
    model = tiny_model() if precision == "autocast over fp32 weights" else tiny_model().bfloat16()
    columns, score = [], CLIPOTrainer._contrastive_column

    def in_float64(self, rewards_per_func, pooled_BH):
        """The reward by hand, of the states at hand and the head before its step."""
        correct = (rewards_per_func[:, 0] > 0).view(-1, 4)
        with torch.no_grad():
            embeddings = pooled_BH.double() @ self.contrastive_head.layers[0].weight.double().T
        embeddings = torch.nn.functional.normalize(embeddings, dim=-1).view(*correct.shape, -1)
        loss, _ = contrastive_loss(embeddings, correct, loss_type="supcon_out")
        columns.append((score(self, rewards_per_func, pooled_BH), contrastive_reward(loss, correct).flatten().float()))
        return columns[-1][0]

    with pytest.MonkeyPatch.context() as patch, torch.autocast("cpu", dtype=torch.bfloat16):  # a user's, around it all
        patch.setattr(CLIPOTrainer, "_contrastive_column", in_float64)
        trainer = record(tmp_path, mode, model=model, max_steps=3, **settings)
    assert_right(trainer, atol=0.1)
    for _, pooled, expected in trainer.records:
        assert torch.nn.functional.cosine_similarity(pooled, expected).min() > 0.998
        assert not torch.equal(pooled, pooled.bfloat16().float())  # means of bf16 states, not rounded to bf16
    for column, expected in columns:
        torch.testing.assert_close(column, expected, atol=2e-5, rtol=2e-5)
    assert torch.cat([column for column, _ in columns]).unique().numel() > 3
    assert all(parameter.dtype == torch.float32 for parameter in trainer.contrastive_head.parameters())


def bytes_kept_alive(thing):
    """By the tensors that an object holds: all of their storages, of which a view keeps the whole."""
    tensors = [t for value in vars(thing).values() for t in (value if isinstance(value, list) else [value])]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors if isinstance(t, torch.Tensor)
    }
    return sum(storages.values())


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_decoding_keeps_no_states_of_the_prompts_alive(dtype, pooling):
    B, P, H = 4, 500, 64
    pooler = DecodePooler([1], pooling)
    pooler(torch.randn(B, P, H).to(dtype), torch.full((B, P), 5))
    for _ in range(3):
        pooler(torch.randn(B, 1, H).to(dtype), torch.full((B, 1), 5))
    assert bytes_kept_alive(pooler) <= 2 * B * H * 4 + 1000  # two (B, H) in float32, and counters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_keeps_no_states_of_its_tokens_alive(dtype):
    B, L, H = 4, 500, 64
    reads = torch.ones(B, L, dtype=torch.bool)
    pooler = ForwardPooler(reads)
    for _ in range(2):
        pooler(torch.randn(B // 2, L, H).to(dtype), None)
    assert bytes_kept_alive(pooler) <= B * H * 4 + reads.nbytes


@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_what_reaches_the_head_keeps_nothing_else_alive(tmp_path, mode, monkeypatch):
    sizes, score = [], CLIPOTrainer._contrastive_column
    monkeypatch.setattr(
        CLIPOTrainer,
        "_contrastive_column",
        lambda self, rewards, pooled: (
            sizes.append((pooled.untyped_storage().nbytes(), self)) or score(self, rewards, pooled)
        ),
    )
    trainer = record(tmp_path, mode, **settings_of(mode))
    assert {size for size, _ in sizes} == {8 * 16 * 4}  # (B, H) in float32
    assert trainer.states.tokens is None and trainer.states._pooled_BH is None


def test_a_pass_that_fails_leaves_the_policy_as_it_was(tmp_path):
    trainer = record(tmp_path, "forward", max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2)
    policy, decoder = trainer.model, trainer.states.reader.decoder
    before = (dict(policy.__dict__), len(decoder._forward_hooks), len(decoder._forward_pre_hooks))
    passes = []

    def fails(module, args, kwargs):
        passes.append(module.training)
        if len(passes) == 2:
            raise torch.OutOfMemoryError("in the second micro-batch")

    handle = decoder.register_forward_pre_hook(fails, with_kwargs=True)
    trainer.states.tokens = trainer.records[0][0]
    with pytest.raises(torch.OutOfMemoryError):
        trainer.states.pooled(trainer.model_wrapped, 4, 0)
    handle.remove()
    assert passes == [False, False] and policy.training and decoder.training
    after = (dict(policy.__dict__), len(decoder._forward_hooks), len(decoder._forward_pre_hooks))
    assert before[0].keys() == after[0].keys() and before[1:] == after[1:]
    assert before[0].get("forward") is after[0].get("forward")


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
def test_rollout_func_with_tokens_of_an_environment(tmp_path):
    tokenizer = tiny_tokenizer()

    def rollout(prompts, trainer):
        prompt_ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
        completions = ["abc[42]de<|end|>", "x[7]<|end|>", "no tools<|end|>", "[]y"] * (len(prompts) // 4)
        completion_ids = [tokenizer(text)["input_ids"] for text in completions]
        env_mask, outside = [], 1
        for text_ids in completion_ids:
            mask = []
            for token in text_ids:
                outside = 0 if token == tokenizer.convert_tokens_to_ids("[") else outside
                mask.append(outside)
                outside = 1 if token == tokenizer.convert_tokens_to_ids("]") else outside
            env_mask.append(mask)
        logprobs = [[-1.0] * len(ids) for ids in completion_ids]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs, "env_mask": env_mask}

    trainer = record(tmp_path, trainer_kwargs={"rollout_func": rollout})
    assert trainer.states.mode == "forward"
    assert any(0 in mask for mask in trainer.records[0][0].policy_mask)
    assert_right(trainer)
    # the fused mode sees the same mask
    trainer = record(tmp_path, trainer_kwargs={"rollout_func": rollout}, **FUSED)
    assert trainer.states.mode == "fused"
    assert_right(trainer)


def test_continuous_batching(tmp_path):
    trainer = record(
        tmp_path,
        model=tiny_model(),
        use_transformers_continuous_batching=True,
        transformers_continuous_batching_config={"block_size": 32, "num_blocks": 16, "max_batch_tokens": 64},
    )
    assert trainer.states.mode == "forward"
    assert_right(trainer)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize(
    "policy_mask", [[1, 1, 1], [1], [0, 0, 1], [1, 0, 0], [1, 0, 1, 1], [0, 0], [1, 1, 0, 0, 1]], ids=str
)
def test_positions(policy_mask, pooling):
    tokens = RolloutTokens([[5, 6]], [[7] * len(policy_mask)], [policy_mask])
    reads = tokens.reads(0, pooling)
    assert reads.nonzero().flatten().tolist() == positions_by_hand(2, policy_mask, pooling)


def test_pooling_leaves_garbage_at_padded_positions_out():
    states = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0))
    reads = torch.tensor([[True, True, False, False], [False, False, False, True]])
    expected = torch.stack([states[0, :2].mean(0), states[1, 3]])
    states[0, 2:] = torch.nan
    states[1, :3] = torch.inf
    torch.testing.assert_close(pool(states, reads), expected)


def test_pooling_accumulates_in_float32():
    states = torch.ones(1, 4096, 1, dtype=torch.bfloat16)  # a bf16 sum would stop at 256
    assert pool(states, torch.ones(1, 4096, dtype=torch.bool)).item() == 1.0


def test_chunks_of_rows_are_taken_in_order():
    states = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(0))
    reads = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) < 0.7
    pooler = ForwardPooler(reads)
    for chunk in states.split(2):
        pooler(chunk, None)
    torch.testing.assert_close(pooler.result(), pool(states, reads))


def test_right_padding_keeps_positions():
    tokens = RolloutTokens([[5, 6, 7], [8]], [[9, 10], [11, 12, 13]])
    input_ids, attention_mask, reads = right_padded(tokens, [1, 0], "mean", 0, torch.device("cpu"))
    assert input_ids.tolist() == [[8, 11, 12, 13, 0], [5, 6, 7, 9, 10]]
    assert attention_mask.tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert reads.int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 1, 0]]


def test_decoding_that_does_not_match_the_completions_is_noticed():
    def decoded(ids):
        pooler = DecodePooler([1], "mean")
        pooler(torch.zeros(1, 3, 4), torch.tensor([[2, 3, 4]]))
        for token in ids:
            pooler(torch.ones(1, 1, 4), torch.tensor([[token]]))
        return pooler

    completion = RolloutTokens([[5]], [[7, 8, 9, 1]])
    assert decoded([7, 8, 9, 1, 0]).result(completion) is not None
    assert decoded([7, 9, 8, 1, 0]).result(completion) is None  # another order, as beams have it
    assert decoded([7, 8]).result(completion) is None
    assert DecodePooler([1], "mean").result(completion) is None  # nothing was decoded


def test_beams_fall_back_to_a_forward_pass(tmp_path):
    trainer = record(tmp_path, generation_kwargs={"num_beams": 2})
    assert trainer.states.mode == "decode"
    assert [row["contrastive/extra_forward_passes"] for row in trainer.state.log_history if "loss" in row] == [1.0] * 3
    assert_right(trainer)


def test_the_hook_does_not_stay(tmp_path):
    for mode in CAPTURE_MODES:
        trainer = record(tmp_path, mode, **settings_of(mode))
        hooks = [hook for module in trainer.states.reader.decoder.modules() for hook in module._forward_hooks.values()]
        assert not any(
            "HiddenStateReader" in hook.__qualname__ for hook in hooks
        )  # transformers leaves some of its own


def test_an_unknown_structure_says_what_was_looked_for():
    with pytest.raises(ValueError, match="base_model_prefix"):
        HiddenStateReader(tiny_model().model)


@pytest.mark.parametrize("layer", [2, -3])
def test_a_layer_that_does_not_exist_is_named(layer):
    with pytest.raises(ValueError, match=f"`contrastive_layer` is {layer}"):
        HiddenStateReader(tiny_model(), layer)
