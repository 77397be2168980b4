"""Completions for an evaluation, from transformers or from vLLM.

A sampler takes prompts and one seed a completion, and the same seed gives the same completion: a killed evaluation
that goes on later ends with the result it would have had. transformers draws all rows of a batch from one random
state, so that a row would depend on its neighbours; here each row has a generator of its own, and is drawn by the
Gumbel-max trick: the argmax of logits plus Gumbel noise is a draw from their softmax (Maddison, Tarlow and Minka 2014,
https://huggingface.co/papers/1411.0030).
"""

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import PeftConfig
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from ..saved_policy import base_model_of, load_policy, load_tokenizer


VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # of LoRA adapters that vLLM has kernels for


@dataclass(frozen=True)
class Decoding:
    """
    How completions are sampled. Nothing is taken from the model's `generation_config.json` but its end tokens:
    Qwen2.5's asks for a repetition penalty and top-k 20, which are no part of the paper's settings.

    Parameters:
        temperature (`float`, defaults to `0.0`): 0 is greedy.
        top_p (`float`, defaults to `1.0`): Share of the probability mass to sample from.
        max_completion_length (`int`, defaults to `2048`): Tokens.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_completion_length: int = 2048

    def __post_init__(self):
        if self.temperature < 0:
            raise ValueError(f"`temperature` is {self.temperature}, but must be 0 (greedy) or more.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` is {self.top_p}, but must be above 0 and at most 1.")
        if self.max_completion_length < 1:
            raise ValueError(f"`max_completion_length` is {self.max_completion_length}, but must be 1 or more tokens.")


class Completion(NamedTuple):
    """Token ids of a completion, end token included, and whether it was cut off at the maximal length before one."""

    ids: list[int]
    truncated: bool


def completion_seed(seed: int, question: int, sample: int, prompt_ids: list[int]) -> int:
    """
    Seed of one completion, 32 bits: of the run's seed, the question's place in its set, the sample's number, and the
    prompt (so that questions of different sets differ). The model is not in it: two models are compared on the same
    draws.
    """
    digest = hashlib.sha256(f"{seed} {question} {sample} {prompt_ids}".encode()).digest()
    return int.from_bytes(digest[:4], "little")


class GumbelDraw(LogitsProcessor):
    """Add Gumbel noise to the scores, row by row from a generator of its own: their argmax is then a draw."""

    def __init__(self, seeds: list[int], device: torch.device):
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:  # a tensor
        noise = torch.empty_like(scores, dtype=torch.float32)
        for row, generator in zip(noise, self.generators, strict=True):
            row.exponential_(generator=generator)
        return scores.float() - noise.log()  # -log of an exponential variable is a Gumbel variable


class TransformersSampler:
    """
    Samples with `generate`, on the accelerator if there is one, else on the CPU.

    Args:
        model (`str`): Local folder or name on the Hub, of a model or of a PEFT adapter.
        dtype (`str`): `"bfloat16"`, `"float32"`, or `"auto"` for that of the checkpoint.
    """

    rows_at_a_time = 32

    def __init__(self, model: str, decoding: Decoding, *, dtype: str = "auto"):
        self.device = torch.accelerator.current_accelerator() or torch.device("cpu")
        self.model = load_policy(model, dtype=dtype).to(self.device).eval()
        self.tokenizer = load_tokenizer(model)
        self.decoding = decoding

        own = self.model.generation_config
        ends = self.tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
        self.end_ids = ends if isinstance(ends, list) else [ends]
        self.model.generation_config = GenerationConfig(
            do_sample=False,  # the draw is ours, see `GumbelDraw`
            max_new_tokens=decoding.max_completion_length,
            eos_token_id=self.end_ids,
            pad_token_id=self.end_ids[0],
            bos_token_id=own.bos_token_id,
        )

    @torch.inference_mode()
    def sample(self, prompts: list[list[int]], seeds: list[int]) -> list[Completion]:
        """One completion for each prompt (token ids), with the seed that stands beside it."""
        tokens = [torch.tensor(ids, device=self.device) for ids in prompts]
        masks = [torch.ones_like(ids) for ids in tokens]
        input_ids = pad_sequence(tokens, batch_first=True, padding_value=self.end_ids[0], padding_side="left")
        output = self.model.generate(
            input_ids=input_ids,
            attention_mask=pad_sequence(masks, batch_first=True, padding_side="left"),
            logits_processor=self._processors(seeds),
        )
        return [self._until_end(row) for row in output[:, input_ids.size(1) :].tolist()]

    def _processors(self, seeds: list[int]) -> LogitsProcessorList:
        if self.decoding.temperature == 0:
            return LogitsProcessorList()
        processors: list[LogitsProcessor] = [TemperatureLogitsWarper(self.decoding.temperature)]
        if self.decoding.top_p < 1:
            processors.append(TopPLogitsWarper(self.decoding.top_p))
        return LogitsProcessorList([*processors, GumbelDraw(seeds, self.device)])

    def _until_end(self, ids: list[int]) -> Completion:
        end = next((i for i, token in enumerate(ids) if token in self.end_ids), None)
        return Completion(ids if end is None else ids[: end + 1], end is None)


class VLLMSampler:
    """
    Samples with vLLM, which has to be installed. Arguments as in [`TransformersSampler`], and

    Args:
        tensor_parallel_size (`int`): GPUs to split the model over.
    """

    rows_at_a_time = 2048

    def __init__(self, model: str, decoding: Decoding, *, dtype: str = "auto", tensor_parallel_size: int = 1):
        try:
            from vllm import LLM, SamplingParams
            from vllm.lora.request import LoRARequest
        except ImportError as error:
            raise ImportError("`backend` is 'vllm', which is not installed: `pip install vllm`.") from error
        base, options = base_model_of(model), {}
        self.lora_request = None
        if base is not None:
            rank = PeftConfig.from_pretrained(model).r
            options = {
                "enable_lora": True,
                "max_lora_rank": min((size for size in VLLM_RANKS if size >= rank), default=rank),
            }
            self.lora_request = LoRARequest("adapter", 1, model)
        self.tokenizer = load_tokenizer(model)
        self.llm = LLM(
            model=base or model,
            dtype=dtype,
            tensor_parallel_size=tensor_parallel_size,
            generation_config="vllm",  # not the checkpoint's
            **options,
        )
        self.decoding, self._params = decoding, SamplingParams

    def sample(self, prompts: list[list[int]], seeds: list[int]) -> list[Completion]:
        """One completion for each prompt (token ids), with the seed that stands beside it."""
        params = [
            self._params(
                temperature=self.decoding.temperature,
                top_p=self.decoding.top_p,
                max_tokens=self.decoding.max_completion_length,
                seed=seed,
            )
            for seed in seeds
        ]
        requests = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self.llm.generate(requests, params, use_tqdm=False, lora_request=self.lora_request)
        return [
            Completion(list(row.outputs[0].token_ids), row.outputs[0].finish_reason == "length") for row in outputs
        ]


SAMPLERS = {"transformers": TransformersSampler, "vllm": VLLMSampler}
