"""What the policies of a study are trained on: quotient-remainder chains, or word problems in English."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

import reward_funcs
from reward_funcs import sound_equations_reward

from .. import chain, word_problems
from ..language_model import evaluate, fewer_tokens, sample
from ..starting_policy import evaluate_policy


@dataclass(frozen=True)
class Task:
    """
    A task, and how its policies are loaded, trained and measured.

    Attributes:
        rewards (`tuple[Callable, ...]`): Reward functions: the answer, all steps, and what arms may use beside them.
        config (`dict[str, Any]`): Fields of [`CLIPOConfig`] of all arms, but for the weights of the rewards.
        warmup_steps (`int`): Steps of the head's warm-up, in arms that have one.
        build (`Callable`): `build(size, seed, **variant)`: a dataset of different problems.
        variants (`dict[str, dict]`): Arguments of `build` for each test set.
        train (`dict[str, Any]`): Those for the problems to train on.
        evaluate (`Callable`): `evaluate(model, tokenizer, rows, num_samples=, seed=)`: figures of sampled rollouts.
        rollout_func (`Callable`, *optional*): Makes the rollouts, as TRL lets a caller do it; else `generate`.
        lora_layers (`int`, *optional*): The policy's own weights are frozen, and in bfloat16; adapters of so many of
            its last layers learn, and no backward pass goes further.
        while_training (`Callable`): `while_training(model)`: the context that training takes place in.
    """

    rewards: tuple[Callable, ...]
    config: dict[str, Any]
    warmup_steps: int
    build: Callable[..., Dataset]
    variants: dict[str, dict[str, Any]]
    evaluate: Callable[..., dict[str, float]]
    train: dict[str, Any] = field(default_factory=dict)
    rollout_func: Callable[..., dict[str, Any]] | None = None
    lora_layers: int | None = None
    while_training: Callable[[PreTrainedModel], AbstractContextManager] = nullcontext

    def peft_config(self, model: PreTrainedModel) -> LoraConfig | None:
        """Adapters for `model`, if the task trains those alone."""
        if self.lora_layers is None:
            return None
        n_layers = model.config.num_hidden_layers
        layers = list(range(max(0, n_layers - self.lora_layers), n_layers))
        return LoraConfig(r=16, lora_alpha=32, target_modules=list(LINEAR), layers_to_transform=layers)

    def load(self, folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Load a starting policy and its tokenizer."""
        dtype = torch.float32 if self.lora_layers is None else torch.bfloat16
        tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype), tokenizer

    @property
    def settings(self) -> dict[str, Any]:
        """What a run depends on beside its `config`, as JSON can hold it; nothing for a policy that learns as a
        whole."""
        if self.lora_layers is None:
            return {}
        sampler = None if self.rollout_func is None else self.rollout_func.__name__
        return {"lora_layers": self.lora_layers, "rollout_func": sampler, "train": self.train, "test": self.variants}

    def train_set(self, size: int, seed: int) -> Dataset:
        return self.build(size, seed, **self.train)

    def test_sets(self, size: int, seed: int) -> dict[str, Dataset]:
        return {name: self.build(size, seed, split="test", **variant) for name, variant in self.variants.items()}


def right_with_sound_equations_reward(completions: list, problem: list[str], **kwargs) -> list[float | None]:
    """[`reward_funcs.right_with_sound_equations_reward`] of word problems."""
    return reward_funcs.right_with_sound_equations_reward(
        completions, accuracy_reward=word_problems.answer_reward, problem=problem
    )


def sample_groups(prompts: list[Any], trainer: Any) -> dict[str, Any]:
    """A `rollout_func` of TRL's that reads the prompt once for a group. Draws are from torch's global random state."""
    tokenizer, G = trainer.processing_class, trainer.num_generations
    model = trainer.accelerator.unwrap_model(trainer.model)
    settings = {"max_new_tokens": trainer.max_completion_length, "temperature": trainer.temperature}
    completion_ids, logprobs = zip(*sample(model, tokenizer, prompts[::G], num_samples=G, **settings), strict=True)
    prompt_ids = tokenizer.apply_chat_template(prompts, add_generation_prompt=True)["input_ids"]
    return {"prompt_ids": prompt_ids, "completion_ids": list(completion_ids), "logprobs": list(logprobs)}


LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SHARED: dict[str, Any] = {
    "num_generations": 8,
    "max_completion_length": 48,
    "learning_rate": 2e-4,
    "lr_scheduler_type": "constant",
    "loss_type": "dapo",
    "beta": 0.0,
    "temperature": 1.0,
    "contrastive_step_reward": chain.steps_reward.__name__,  # of each task
    "contrastive_reward_weight": 0.0,
    "contrastive_embedding_dim": 64,
}
CHAINS = Task(
    rewards=(chain.answer_reward, chain.steps_reward, chain.spot_checked_steps_reward),
    config=SHARED | {"per_device_train_batch_size": 64},  # 8 problems a step
    warmup_steps=10,
    build=chain.build_dataset,
    variants=chain.VARIANTS,
    evaluate=evaluate_policy,
)


def word_problems_task(problems: dict[str, Any]) -> Task:
    """
    Word problems for the language model, of the kind that its warm start knows.

    Args:
        problems (`dict[str, Any]`): Arguments of [`word_problems.make_problem`], `num_operations` among them.
    """
    return Task(
        rewards=(
            word_problems.answer_reward,
            word_problems.steps_reward,
            word_problems.spot_checked_steps_reward,
            sound_equations_reward,
            right_with_sound_equations_reward,
        ),
        config=SHARED
        | {
            "per_device_train_batch_size": 32,  # 4 problems a step
            "learning_rate": 1e-3,
            "lr_scheduler_type": "linear",
            "bf16": True,
            "contrastive_embedding_dim": 144,
        },
        warmup_steps=2,
        build=word_problems.build_dataset,
        variants={
            "test": problems,
            "other_operands": problems | {"numbers": "other"},
            "p1": problems | {"num_operations": problems["num_operations"] + 1},
        },
        evaluate=evaluate,
        train=problems,
        rollout_func=sample_groups,
        lora_layers=10,  # of 30: no backward pass through the others
        while_training=fewer_tokens,
    )
