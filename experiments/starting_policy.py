"""A starting policy for the quotient-remainder chains: a small language model that is often right, and often by luck.

Nothing is downloaded: the tokenizer has one token a character, the model is a Qwen2 of about 0.16 million parameters,
and a supervised warm start on traces of the task teaches it the format and the arithmetic. Its first phase is clean;
the second one mixes wrong quotients and wrong remainders into the traces, which leaves the policy unsure of both: it
gets about half of the problems right, and a quarter of those with a wrong step. What is saved is an ordinary model
folder that `AutoTokenizer` and `AutoModelForCausalLM` load.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    DataCollatorForSeq2Seq,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from . import chain


CHARACTERS = "0123456789+*=r;#"
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
TURN_TOKENS = ["<user>", "<assistant>"]
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<' + message['role'] + '>' + message['content'] }}"
    "{%- if message['role'] == 'assistant' %}{{- eos_token }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<assistant>' }}{%- endif %}"
)
MAX_COMPLETION_TOKENS = 64  # the longest right trace, of five operations, has 43 and an end


@dataclass(frozen=True)
class Phase:
    """
    One phase of the warm start.

    Attributes:
        name (`str`): What to call it.
        steps (`int`): Optimizer steps.
        learning_rate (`float`): Peak learning rate; it falls to 0 along a cosine.
        wrong_quotient (`float`): Rate of steps that are written with a wrong quotient.
        wrong_remainder (`float`): Rate of steps that are written with a wrong remainder.
        lazy (`float`): Rate of traces whose quotients are all written as 0.
        shortcut (`float`): Rate of traces that hardly divide, see [`chain.write_trace`].
    """

    name: str
    steps: int
    learning_rate: float
    wrong_quotient: float = 0.0
    wrong_remainder: float = 0.0
    lazy: float = 0.0
    shortcut: float = 0.0


PHASES = (Phase("clean", 200, 3e-3), Phase("noisy", 250, 2e-3, wrong_quotient=0.10, wrong_remainder=0.17))


def make_tokenizer() -> Qwen2Tokenizer:
    """Return a tokenizer with one token a character and a chat template
    (`<user>3*4+2=<assistant>3*4=1r5;...#0<eos>`)."""
    tokens = [*SPECIAL_TOKENS.values(), *TURN_TOKENS, *CHARACTERS]
    return Qwen2Tokenizer(
        vocab={token: index for index, token in enumerate(tokens)},
        merges=[],  # none: every character stays a token
        additional_special_tokens=TURN_TOKENS,
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        **SPECIAL_TOKENS,
    )


def make_model(tokenizer: PreTrainedTokenizerBase, hidden_size: int = 64, num_layers: int = 3) -> Qwen2ForCausalLM:
    """Return a Qwen2 with weights drawn from torch's global random state; 0.16 million parameters by default."""
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.1,  # 0.02, the default for wide models, more than doubles the steps that this narrow one needs
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def encode_example(tokenizer: PreTrainedTokenizerBase, problem: str, trace: str) -> dict[str, list[int]]:
    """Return `input_ids` and `labels` of one conversation as a rollout would hold it; the prompt has no label
    (-100)."""
    prompt = [{"role": "user", "content": problem}]
    prompt_text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    prompt_ids = tokenizer(prompt_text)["input_ids"]
    completion_ids = tokenizer(trace)["input_ids"] + [tokenizer.eos_token_id]
    return {"input_ids": prompt_ids + completion_ids, "labels": [-100] * len(prompt_ids) + completion_ids}


def warm_start_examples(
    tokenizer: PreTrainedTokenizerBase, phase: Phase, size: int, rng: random.Random
) -> list[dict[str, list[int]]]:
    """
    Draw `size` examples for `phase`: train-split problems of one to five operations on all numbers from 1 to 6, with
    30 % of the steps written the other way round.
    """
    examples = []
    while len(examples) < size:
        problem = chain.make_problem(rng, rng.randint(1, 5), range(1, chain.MODULUS))
        if chain.split_of(problem) == "train":
            trace = chain.write_trace(
                problem,
                rng,
                commuted=0.3,
                wrong_quotient=phase.wrong_quotient,
                wrong_remainder=phase.wrong_remainder,
                lazy=phase.lazy,
                shortcut=phase.shortcut,
            )
            examples.append(encode_example(tokenizer, problem, trace))
    return examples


class _ProgressCallback(TrainerCallback):
    """Calls `on_step(phase, step)` after each optimizer step."""

    def __init__(self, phase: Phase, on_step: Callable[[Phase, int], Any]):
        self.phase, self.on_step = phase, on_step

    def on_step_end(self, args, state, control, **kwargs):
        self.on_step(self.phase, state.global_step)


def warm_start(
    output_dir: str | Path,
    *,
    seed: int = 0,
    phases: tuple[Phase, ...] = PHASES,
    batch_size: int = 64,
    hidden_size: int = 64,
    num_layers: int = 3,
    on_step: Callable[[Phase, int], Any] | None = None,
) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    """
    Train a starting policy and save it to `output_dir`.

    Args:
        output_dir (`str` or `Path`): Folder for model and tokenizer, as `AutoModelForCausalLM` and `AutoTokenizer`
            read it.
        seed (`int`, *optional*, defaults to `0`): Decides weights, problems and mistakes. Sets the global random
            states.
        phases (`tuple[Phase, ...]`, *optional*, defaults to `PHASES`): What to train on, one after the other.
        batch_size (`int`, *optional*, defaults to `64`): Traces an optimizer step.
        hidden_size (`int`, *optional*, defaults to `64`): Hidden size H, a multiple of 8.
        num_layers (`int`, *optional*, defaults to `3`): Decoder layers.
        on_step (`Callable[[Phase, int], Any]`, *optional*):
            Called after each optimizer step with the phase and its steps done, to show progress.

    Returns:
        Model (in evaluation mode) and tokenizer.
    """
    set_seed(seed)
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, hidden_size, num_layers)
    rng = random.Random(seed)
    for phase in phases:
        args = TrainingArguments(
            output_dir=str(output_dir),
            max_steps=phase.steps,
            per_device_train_batch_size=batch_size,
            learning_rate=phase.learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=20,
            seed=seed,
            use_cpu=True,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model,
            args,
            train_dataset=warm_start_examples(tokenizer, phase, phase.steps * batch_size, rng),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
            callbacks=[_ProgressCallback(phase, on_step)] if on_step else None,
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()
    model.save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    return model, tokenizer


@torch.no_grad()
def sample_completions(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    num_samples: int = 4,
    seed: int = 0,
    batch_size: int = 512,
    temperature: float = 1.0,
) -> list[list[str]]:
    """
    Sample completions. The global random state is left as it was.

    Args:
        model (`PreTrainedModel`): Policy. Its training mode is left as it was.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, with a chat template.
        dataset (`Dataset`): See [`chain.build_dataset`].
        num_samples (`int`, *optional*, defaults to `4`): Completions a problem.
        seed (`int`, *optional*, defaults to `0`): Seed of the sampling.
        batch_size (`int`, *optional*, defaults to `512`): Completions that are sampled together.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits.

    Returns:
        `list[list[str]]`: For each row its completions.
    """
    was_training = model.training
    model.eval()
    prompts = [prompt for prompt in dataset["prompt"] for _ in range(num_samples)]
    completions: list[str] = []
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(prompts), batch_size):
            inputs = tokenizer.apply_chat_template(
                prompts[start : start + batch_size],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
                padding=True,
            ).to(model.device)
            output_ids = model.generate(
                **inputs, do_sample=True, temperature=temperature, top_k=0, max_new_tokens=MAX_COMPLETION_TOKENS
            )
            completion_ids = output_ids[:, inputs["input_ids"].shape[1] :]
            completions += tokenizer.batch_decode(completion_ids, skip_special_tokens=True)
    model.train(was_training)
    return [completions[start : start + num_samples] for start in range(0, len(completions), num_samples)]


def evaluate_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    num_samples: int = 4,
    seed: int = 0,
    batch_size: int = 512,
) -> dict[str, float]:
    """
    Return `accuracy`, `strict_accuracy` and `lucky_share` (see [`chain`]) of completions sampled at temperature 1.
    Arguments: [`sample_completions`].
    """
    samples = sample_completions(model, tokenizer, dataset, num_samples=num_samples, seed=seed, batch_size=batch_size)
    checks = [
        checked
        for problem, completions in zip(dataset["problem"], samples, strict=True)
        for checked in chain.check_completions([problem] * len(completions), completions)
    ]
    return {
        "accuracy": chain.accuracy(checks),
        "strict_accuracy": chain.strict_accuracy(checks),
        "lucky_share": chain.lucky_share(checks),
    }
