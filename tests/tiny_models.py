"""Small models, a tokenizer and a task made here: no download, seconds to train."""

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from clipo_trl import CLIPOConfig, CLIPOConfigMixin


CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'][0] + '>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character, with a pad token, an end token and a chat template."""
    special = ["<|pad|>", "<|end|>", "<|unk|>"]
    characters = [chr(code) for code in range(32, 127)]
    tokenizer = Tokenizer(
        models.WordLevel({token: i for i, token in enumerate(special + characters)}, unk_token="<|unk|>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>", unk_token="<|unk|>", padding_side="left"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def tiny_model(seed: int = 0, hidden_size: int = 16, n_layers: int = 2) -> Qwen2ForCausalLM:
    """A random Qwen2 that ends its completions early now and then."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=98,
        hidden_size=hidden_size,
        intermediate_size=32,
        num_hidden_layers=n_layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
        initializer_range=0.3,
    )
    model = Qwen2ForCausalLM(config)
    # A text like any other to `save_pretrained`; the trainer looks it up for names.
    model.config._name_or_path = "tiny-qwen2"
    with torch.no_grad():
        model.lm_head.weight[1] *= 3.0  # the end token is likely where its direction is met
    return model


def tiny_dataset(n_rows: int = 8) -> Dataset:
    """Prompts of different lengths."""
    return Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": "abcdefghij"[: i % 7 + 1]}], "solution": str(i)}
            for i in range(n_rows)
        ]
    )


def letters_reward(completions, **kwargs) -> list[float]:
    """A verifiable reward that a random model meets about every other time: an even number of characters."""
    return [float(len(completion[0]["content"]) % 2 == 0) for completion in completions]


def tiny_config(output_dir, config_class=CLIPOConfig, **settings):
    """8 rollouts a step: 2 prompts, 4 rollouts each."""
    defaults = dict(
        output_dir=str(output_dir),
        use_cpu=True,
        bf16=False,
        report_to=[],
        per_device_train_batch_size=8,
        per_device_eval_batch_size=4,
        num_generations=4,
        max_completion_length=12,
        max_steps=3,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        gradient_checkpointing=False,
    )
    if isinstance(config_class, type) and issubclass(config_class, CLIPOConfigMixin):
        defaults["contrastive_embedding_dim"] = 8
    return config_class(**{**defaults, **settings})
