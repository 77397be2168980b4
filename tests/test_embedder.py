"""`RolloutEmbedder`: the numbers of training, from a saved model and its head."""

import pytest
import torch
from peft import LoraConfig
from recording import full_forward_states
from test_trainer import make
from tiny_models import tiny_dataset, tiny_model, tiny_tokenizer

from clipo_trl import CLIPOTrainer, ContrastiveHead, RolloutEmbedder
from clipo_trl.hidden_states import RolloutTokens
from clipo_trl.saved_policy import tokenize_prompt


LORA = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
# Nothing moves, so what is saved at the end is what scored the last batch.
STILL = {"max_steps": 2, "learning_rate": 0.0, "freeze_contrastive_head": True, "max_completion_length": 4}


class Recording(CLIPOTrainer):
    """Keeps the last batch: tokens as they were sampled, and embeddings as they were scored."""

    def reward_to_pay(self, batch):
        self.tokens, self.embeddings = self.states.tokens, batch.embeddings_PGD.flatten(0, 1)
        return super().reward_to_pay(batch)


def saved_run(folder, trainer_kwargs=None, **settings):
    """A run's last batch as text, and its model's folder."""
    seen = {}

    def even(prompts, completions, completion_ids, **kwargs):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids)
        texts = (text if isinstance(text, str) else text[0]["content"] for text in completions)
        return [float(len(text) % 2 == 0) for text in texts]

    data = {"train_dataset": tiny_dataset(7)}  # no prompt comes twice
    trainer = make(folder / "run", Recording, even, {**data, **(trainer_kwargs or {})}, **{**STILL, **settings})
    trainer.train()
    trainer.save_model(str(folder / "model"))
    return trainer, seen


def assert_as_in_training(trainer, seen, folder, **options):
    embedder = RolloutEmbedder.from_pretrained(folder / "model", device="cpu", **options)
    torch.testing.assert_close(embedder.embed_tokens(trainer.tokens), trainer.embeddings, atol=2e-5, rtol=1e-4)
    truncated = [ids[-1] != embedder.tokenizer.eos_token_id for ids in seen["ids"]]
    tokens = embedder.tokenize(seen["prompts"], seen["completions"], truncated=truncated)
    assert tokens.prompt_ids == trainer.tokens.prompt_ids
    # Special tokens in the middle are lost in the text.
    kept = [row for row, ids in enumerate(tokens.completion_ids) if ids == list(seen["ids"][row])]
    assert len(kept) >= 5 and len({truncated[row] for row in kept}) == 2
    if embedder.head.debias != "group_center":  # whose mean is over the whole group
        embeddings = embedder(
            [seen["prompts"][row] for row in kept],
            [seen["completions"][row] for row in kept],
            truncated=[truncated[row] for row in kept],
            batch_size=2,
        )
        torch.testing.assert_close(embeddings, trainer.embeddings[kept], atol=2e-5, rtol=1e-4)
    return embedder


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"contrastive_pooling": "last", "contrastive_layer": 0, "contrastive_head_type": "mlp"},
        {"contrastive_debias": "layer_norm"},
        {"contrastive_debias": "mean_subtract"},
        {"contrastive_debias": "group_center", "contrastive_layer": -2},
    ],
    ids=str,
)
def test_the_numbers_are_those_of_training(settings, tmp_path):
    embedder = assert_as_in_training(*saved_run(tmp_path, **settings), tmp_path)
    for name, value in settings.items():
        assert getattr(embedder.head, name.removeprefix("contrastive_")) == value


def test_plain_prompts_go_without_the_chat_template(tmp_path):
    plain = tiny_dataset(7).map(lambda row: {"prompt": row["prompt"][0]["content"]})
    trainer, seen = saved_run(tmp_path, {"train_dataset": plain})
    assert isinstance(seen["prompts"][0], str)
    assert_as_in_training(trainer, seen, tmp_path)


def test_an_adapter_is_on(tmp_path, model_path):
    trainer, seen = saved_run(tmp_path, {"peft_config": LORA})
    trainer.model.peft_config["default"].base_model_name_or_path = model_path
    trainer.save_model(str(tmp_path / "model"))
    embedder = assert_as_in_training(trainer, seen, tmp_path)
    with embedder.model.disable_adapter():
        without = embedder.embed_tokens(trainer.tokens)
    assert not torch.allclose(without, trainer.embeddings, atol=1e-2)


def test_tokens_of_tools_are_left_out():
    tokens = RolloutTokens([[5, 6], [7]], [[8, 9, 10, 11], [12, 13]], [[1, 0, 1, 1], [1, 1]])
    model, head = tiny_model(), ContrastiveHead(16, 8)
    embedder = RolloutEmbedder(model, tiny_tokenizer(), head)
    torch.testing.assert_close(embedder.embed_tokens(tokens), head(full_forward_states(model, tokens)))


def embedder_of(**settings):
    return RolloutEmbedder(tiny_model(), tiny_tokenizer(), ContrastiveHead(16, 8, **settings))


TEXTS = ["abc", "a", "", "hello there", "no"]


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_order_and_batches_are_no_part_of_the_result(batch_size):
    embedder = embedder_of()
    whole = embedder(["hi"] * 5, TEXTS, batch_size=3)
    assert whole.shape == (5, 8) and whole.dtype == torch.float32 and not whole.requires_grad
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(5))
    torch.testing.assert_close(embedder(["hi"] * 5, TEXTS, batch_size=batch_size), whole)
    torch.testing.assert_close(embedder(["hi"] * 5, TEXTS[::-1]), whole.flip(0))
    assert embedder([], []).shape == (0, 8)


def test_messages_and_text_of_a_completion_are_the_same():
    embedder, prompt = embedder_of(), [{"role": "user", "content": "hi"}]
    as_messages = [[{"role": "assistant", "content": text}] for text in TEXTS]
    torch.testing.assert_close(embedder([prompt] * 5, as_messages), embedder([prompt] * 5, TEXTS))
    assert not torch.allclose(embedder([prompt] * 5, TEXTS), embedder(["hi"] * 5, TEXTS), atol=1e-3)
    assert embedder.tokenize([prompt], ["x"]).prompt_ids == [tokenize_prompt(tiny_tokenizer(), prompt)]


def test_a_completion_that_was_cut_off_has_no_end():
    embedder = embedder_of()
    ended, cut = embedder.tokenize(["hi"] * 2, ["abc"] * 2, truncated=[False, True]).completion_ids
    assert ended == [*cut, embedder.tokenizer.eos_token_id]


def test_groups_are_the_completions_of_a_prompt(caplog):
    embedder = embedder_of(debias="group_center")
    together = embedder(["hi", "ho", "hi", "ho"], TEXTS[:4])
    torch.testing.assert_close(together[[0, 2]], embedder(["hi"] * 2, TEXTS[0:3:2]))
    torch.testing.assert_close(together[[1, 3]], embedder(["ho"] * 2, TEXTS[1:4:2]))
    assert not caplog.messages
    assert not embedder(["hi"], ["abc"]).any() and "1 of the 1 prompts have a single completion" in caplog.text


def test_a_missing_mean_is_said(caplog):
    embedder_of(debias="mean_subtract")(["hi"] * 2, ["a", "b"])
    assert "saved without the mean of its training" in caplog.text


def test_the_progress_bar(capfd):
    embedder = embedder_of()
    embedder(["hi"] * 5, TEXTS)  # no terminal here
    assert "Embedding" not in capfd.readouterr().err
    embedder(["hi"] * 5, TEXTS, show_progress_bar=True)
    assert "5/5" in capfd.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("hi", ["a"]), "`prompts` is a str"),
        ((["hi"], "a"), "`completions` is a str"),
        ((["hi"], ["a", "b"]), "`prompts` has 1 entries, `completions` has 2"),
        ((["hi"], [5]), r"`completions\[0\]` is 5"),
        (([7], ["a"]), r"`prompts\[0\]` is 7"),
        (([[{"role": "user", "content": [{"type": "image"}]}]], ["a"]), r"`prompts\[0\]` has .*not text.*an image"),
        ((["hi"], [[{"role": "user", "content": "a"}]]), r"`completions\[0\]`.*message of the assistant"),
        ((["hi"], [[{"role": "assistant", "content": "a", "tool_calls": []}]]), "`embed_tokens`"),
    ],
    ids=str,
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        embedder_of()(*arguments)


def test_bad_options_are_named(model_path, tmp_path):
    embedder = embedder_of()
    with pytest.raises(ValueError, match="`batch_size` is 0"):
        embedder(["hi"], ["a"], batch_size=0)
    with pytest.raises(ValueError, match="`truncated` has 2"):
        embedder(["hi"], ["a"], truncated=[True, False])
    with pytest.raises(ValueError, match="Completion 0 has no token"):
        embedder(["hi"], [""], truncated=[True])
    with pytest.raises(ValueError, match="hidden size 12.*hidden size is 16"):
        RolloutEmbedder(tiny_model(), tiny_tokenizer(), ContrastiveHead(12, 8))
    with pytest.raises(ValueError, match="`path_or_id` is .*no head could be loaded"):
        RolloutEmbedder.from_pretrained(model_path)
    with pytest.raises(ValueError, match="`head` is .*no head could be loaded"):
        RolloutEmbedder.from_pretrained(model_path, head=tmp_path)


def test_a_head_that_lies_elsewhere(model_path, tmp_path):
    head = ContrastiveHead(16, 8, seed=3)
    head.save_pretrained(tmp_path)
    embedder = RolloutEmbedder.from_pretrained(model_path, head=tmp_path, dtype=torch.bfloat16, device="cpu")
    assert embedder.model.dtype == torch.bfloat16 and embedder.embedding_dim == 8
    assert embedder(["hi"], ["abc"]).dtype == torch.float32
    assert torch.equal(embedder.head.layers[0].weight, head.layers[0].weight)


@pytest.mark.gpu
@pytest.mark.parametrize("debias", [None, "group_center"])
def test_a_gpu_gives_the_same_numbers(debias):
    embedder = embedder_of(debias=debias)
    expected = embedder(["hi"] * 5, TEXTS)
    embedder.to("cuda")
    embeddings = embedder(["hi"] * 5, TEXTS)
    assert embedder.device.type == "cuda" and embeddings.device.type == "cpu"
    torch.testing.assert_close(embeddings, expected, atol=1e-4, rtol=1e-4)
