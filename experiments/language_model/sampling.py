"""Many rollouts of the language model on a CPU, with the log-probability of each token.

`generate` reads the prompt once for every rollout, and the prompt is three quarters of the tokens here. This reads it
once for a group, and then decodes hundreds of rows together: what a CPU is good at are large matrix products.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .. import chain, word_problems
from .warm_starts import WARM_STARTS, bf16_is_faster


MAX_COMPLETION_TOKENS = 64  # the longest right trace of three operations has 52


@dataclass(frozen=True)
class Rollout:
    """
    A rollout of a word problem.

    Attributes:
        group (`int`): Place of its problem among those that were sampled together.
        problem (`str`): The problem's JSON, see [`word_problems.Problem`].
        completion (`str`): What was written, without special tokens.
        token_ids (`list[int]`): Its tokens, the end among them unless it was cut off.
        logprobs (`list[float]`): Log-probability of each token.
        right (`bool`): Right answer.
        sound (`bool`): Right answer, and every step right.
    """

    group: int
    problem: str
    completion: str
    token_ids: list[int]
    logprobs: list[float]
    right: bool
    sound: bool


def load_policy(folder: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a model folder for sampling, in bfloat16 where this CPU is faster with it, and its tokenizer."""
    dtype = torch.bfloat16 if bf16_is_faster() else torch.float32
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model, AutoTokenizer.from_pretrained(folder, padding_side="left")


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[dict[str, str]]],
    *,
    num_samples: int = 8,
    max_new_tokens: int = MAX_COMPLETION_TOKENS,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> list[tuple[list[int], list[float]]]:
    """
    Sample `num_samples` completions of each prompt, all of them together.

    Args:
        model (`PreTrainedModel`): Policy.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, padding on the left, with a chat template.
        prompts (`list`): P conversations. 32 of them x 8 samples take 1.5 GB.
        num_samples (`int`, *optional*, defaults to `8`): Completions a prompt, G.
        max_new_tokens (`int`, *optional*, defaults to `MAX_COMPLETION_TOKENS`): Longest completion T.
        temperature (`float`, *optional*, defaults to `1.0`): Divides the logits; log-probabilities are those sampled
            from.
        generator (`torch.Generator`, *optional*): Source of every draw; else torch's global one.

    Returns:
        Token ids, the end among them, and their log-probabilities, of P x G completions, those of a prompt in a row.
    """
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
    ).to(model.device)
    mask = inputs["attention_mask"]
    read = model(**inputs, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=True, logits_to_keep=1)
    cache, mask = read.past_key_values, mask.repeat_interleave(num_samples, 0)
    cache.batch_repeat_interleave(num_samples)
    logits = read.logits[:, -1].repeat_interleave(num_samples, 0)
    rows = torch.arange(len(mask))  # which completion each row of the cache belongs to
    completions: list[tuple[list[int], list[float]]] = [([], []) for _ in rows]
    for place in range(max_new_tokens):
        token, logprob = draw(logits.float() / temperature, generator)
        for row, token_id, value in zip(rows.tolist(), token.tolist(), logprob.tolist(), strict=True):
            if not completions[row][0] or completions[row][0][-1] != tokenizer.eos_token_id:
                completions[row][0].append(token_id)
                completions[row][1].append(value)
        goes_on = torch.tensor([completions[row][0][-1] != tokenizer.eos_token_id for row in rows.tolist()])
        if place + 1 == max_new_tokens or not goes_on.any():
            break
        if goes_on.sum() <= len(rows) // 2:  # a copy of the cache, so not at every end
            kept = goes_on.nonzero().flatten()
            rows, kept = rows[kept], kept.to(mask.device)
            cache.batch_select_indices(kept)
            mask, token = mask[kept], token[kept]
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        output = model(
            input_ids=token[:, None],
            attention_mask=mask,
            position_ids=mask.sum(1, keepdim=True) - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits = output.logits[:, -1]
    return completions


def draw(logits_BV: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Draw a token (B,) from each row of logits, and return its log-probability (B,) too. By the cumulative
    distribution: `torch.multinomial` draws a random number for every word of the vocabulary."""
    logprobs = logits_BV.log_softmax(-1)
    cumulated = logprobs.exp().cumsum(-1)
    drawn = torch.rand(len(logprobs), 1, generator=generator).to(logprobs.device)  # on the CPU: the same on any device
    threshold = drawn * cumulated[:, -1:]
    token = torch.searchsorted(cumulated, threshold, right=True).clamp(max=logprobs.shape[1] - 1)
    return token[:, 0], logprobs.gather(1, token)[:, 0]


def sample_problems(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    num_samples: int = 8,
    batch_size: int = 256,
    seed: int = 0,
    first: int = 0,
    temperature: float = 1.0,
) -> Iterator[list[Rollout]]:
    """
    Sample word problems, and check every rollout.

    Args:
        model, tokenizer: See [`load_policy`].
        dataset (`Dataset`): See [`word_problems.build_dataset`].
        num_samples (`int`, *optional*, defaults to `8`): Rollouts a problem.
        batch_size (`int`, *optional*, defaults to `256`): Rollouts that are decoded together.
        seed (`int`, *optional*, defaults to `0`): With the place of a batch, decides its draws.
        first (`int`, *optional*, defaults to `0`): Problem to begin with, a multiple of `batch_size // num_samples`.
        temperature (`float`, *optional*, defaults to `1.0`): See [`sample`].

    Yields:
        The rollouts of one batch, those of a problem in a row.
    """
    n_problems = max(1, batch_size // num_samples)
    for start in range(first, len(dataset), n_problems):
        part = dataset[start : start + n_problems]
        generator = torch.Generator().manual_seed(seed * 1_000_003 + start)
        settings = {"num_samples": num_samples, "temperature": temperature, "generator": generator}
        sampled = sample(model, tokenizer, part["prompt"], **settings)
        texts = tokenizer.batch_decode([token_ids for token_ids, _ in sampled], skip_special_tokens=True)
        problems = [problem for problem in part["problem"] for _ in range(num_samples)]
        checks = word_problems.check_completions(problems, texts)
        yield [
            Rollout(
                start + place // num_samples,
                problems[place],
                texts[place],
                token_ids,
                [round(value, 4) for value in logprobs],
                checks[place].answer_correct,
                checks[place].strictly_correct,
            )
            for place, (token_ids, logprobs) in enumerate(sampled)
        ]


def evaluate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, **kwargs
) -> dict[str, float]:
    """Return `accuracy`, `strict_accuracy` and `lucky_share` (see [`chain`]) of sampled rollouts; `kwargs`:
    [`sample_problems`]."""
    rollouts = [rollout for batch in sample_problems(model, tokenizer, dataset, **kwargs) for rollout in batch]
    return figures(rollouts)


def figures(rollouts: list[Rollout]) -> dict[str, float]:
    """`accuracy`, `strict_accuracy` and `lucky_share` of rollouts."""
    checks = [word_problems.check(rollout.problem, rollout.completion) for rollout in rollouts]
    return {
        "accuracy": chain.accuracy(checks),
        "strict_accuracy": chain.strict_accuracy(checks),
        "lucky_share": chain.lucky_share(checks),
    }


def measure(
    folder: str | Path, name: str, n_problems: int = 64, *, on_batch: Callable[[int], Any] | None = None
) -> dict[str, float]:
    """
    [`figures`] of a warm start on problems of the test split, 4 rollouts each. Kept in `folder/<name>/figures.json`:
    they are sampled once.

    Args:
        folder (`str` or `Path`): See [`warm_start`].
        name (`str`): Of `WARM_STARTS`.
        n_problems (`int`, *optional*, defaults to `64`): Problems.
        on_batch (`Callable[[int], Any]`, *optional*): Called after each batch with the number of problems done.
    """
    path = Path(folder, name, "figures.json")
    found = json.loads(path.read_text()) if path.exists() else {}
    if found.pop("problems", None) != n_problems:
        problems = word_problems.build_dataset(n_problems, seed=0, split="test", **WARM_STARTS[name].problems)
        rollouts: list[Rollout] = []
        for batch in sample_problems(*load_policy(Path(folder, name, "model")), problems, num_samples=4):
            rollouts += batch
            if on_batch is not None:
                on_batch(batch[-1].group + 1)
        found = figures(rollouts)
        path.write_text(json.dumps({"problems": n_problems, **found}, indent=1))
    return found


def held_out_problems(name: str, n_problems: int) -> Dataset:
    """The problems that rollouts of the warm start `name` are kept of: of the test split, the same for all uses."""
    return word_problems.build_dataset(n_problems, seed=1_000, split="test", **WARM_STARTS[name].problems)


def sample_rollouts(
    folder: str | Path,
    dataset: Dataset,
    *,
    num_samples: int = 8,
    batch_size: int = 256,
    seed: int = 0,
    on_batch: Callable[[int], Any] | None = None,
) -> Path:
    """
    Sample a set of rollouts from `folder/model` into `folder/rollouts.jsonl`, one a line with the fields of
    [`Rollout`]; what is there already is kept, and gone on with.

    Args:
        folder (`str` or `Path`): Of a warm start.
        dataset (`Dataset`): Problems.
        num_samples, batch_size, seed: See [`sample_problems`]. To go on, they and the problems must stay.
        on_batch (`Callable[[int], Any]`, *optional*): Called after each batch with the number of problems done.

    Returns:
        `Path`: The file.

    Raises:
        ValueError: The file holds rollouts of other problems.
    """
    path = Path(folder, "rollouts.jsonl")
    n_problems = max(1, batch_size // num_samples)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    lines = [line for line in lines if line.endswith("\n")]  # the last one may have been cut off
    problems = dataset["problem"][:]
    for place, line in enumerate(lines[: len(problems) * num_samples]):
        if json.loads(line)["problem"] != problems[place // num_samples]:
            raise ValueError(f"{path} holds rollouts of other problems (line {place + 1}). Delete it to sample these.")
    if len(lines) >= len(dataset) * num_samples:
        return path
    n_done = len(lines) // (n_problems * num_samples) * n_problems  # whole batches
    path.write_text("".join(lines[: n_done * num_samples]))
    model, tokenizer = load_policy(Path(folder, "model"))
    for batch in sample_problems(
        model, tokenizer, dataset, num_samples=num_samples, batch_size=batch_size, seed=seed, first=n_done
    ):
        with path.open("a") as file:
            file.writelines(json.dumps(asdict(rollout)) + "\n" for rollout in batch)
        n_done = batch[-1].group + 1
        if on_batch is not None:
            on_batch(n_done)
    return path


def read_rollouts(path: str | Path) -> list[Rollout]:
    """The rollouts of a file that [`sample_rollouts`] wrote."""
    with open(path) as file:
        return [Rollout(**json.loads(line)) for line in file]
