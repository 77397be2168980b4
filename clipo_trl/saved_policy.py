"""A policy that was saved, whole or as an adapter, read the way it was trained: its model, its tokenizer, its
prompts."""

from pathlib import Path
from typing import Any

from peft import AutoPeftModelForCausalLM, PeftConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils.peft_utils import find_adapter_config_file


def base_model_of(model: str, **download) -> str | None:
    """
    Name of the model under a PEFT adapter, or `None` if `model` (local folder or name on the Hub) is no adapter.
    `download`: `revision` and `token`, for the Hub.
    """
    if Path(model).exists():
        is_adapter = (Path(model) / "adapter_config.json").is_file()
    else:
        is_adapter = find_adapter_config_file(model, **download) is not None
    return PeftConfig.from_pretrained(model, **download).base_model_name_or_path if is_adapter else None


def load_policy(model: str, **options) -> Any:
    """The model, with its adapter where it has one; `options` are those of transformers' `from_pretrained`."""
    download = {name: options[name] for name in ("revision", "token") if options.get(name) is not None}
    auto_class: Any = AutoModelForCausalLM if base_model_of(model, **download) is None else AutoPeftModelForCausalLM
    return auto_class.from_pretrained(model, **options)


def load_tokenizer(model: str, **options) -> PreTrainedTokenizerBase:
    """
    Tokenizer of a model, or of the model under an adapter that was saved without one. `options`: `revision` and
    `token`, for the Hub, and `trust_remote_code`.
    """
    download = {name: options[name] for name in ("revision", "token") if options.get(name) is not None}
    base = base_model_of(model, **download)
    has_own = base is None or not Path(model).exists() or (Path(model) / "tokenizer_config.json").is_file()
    if not has_own:
        options.pop("revision", None)  # the adapter's, not the base's
    return AutoTokenizer.from_pretrained(model if has_own else base, **options)


def tokenize_prompt(
    tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict[str, Any]], **template_options
) -> list[int]:
    """
    Token ids of a prompt, messages through the chat template, as TRL does in training; `template_options` are its
    `chat_template_kwargs`.
    """
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    encoded: Any = tokenizer.apply_chat_template(
        prompt, add_generation_prompt=True, tokenize=True, return_dict=True, **template_options
    )
    return encoded["input_ids"]
