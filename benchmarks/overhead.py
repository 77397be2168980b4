"""
GRPO against CLIPO: seconds and peak memory of a training step, for each mode of reading the policy's hidden states.

    python -m benchmarks.overhead

One trainer trains one model; its generation batches go by turns to plain GRPO and to the modes of CLIPO, so that all
of them meet the same model, the same optimizer state and the same state of the machine. Rollouts have one length: the
end of sequence is suppressed. A step is everything from the generation of rollouts to the optimizer's last step on
them.

    fused       TRL scores its rollouts anyway (here: two optimizer steps a generation batch); states come from that
                pass
    decode      summed up while `generate` decodes
    forward     an extra pass over the decoder
    likelihood  `contrastive_reward_type="likelihood"` where TRL would not score: it is asked for log-probabilities,
                and states come from that pass
    naive       an extra pass over the whole model with `output_hidden_states=True`, for comparison

`fused` is compared with GRPO in the same setting, the others with GRPO that makes one optimizer step a generation
batch.
"""

import tempfile
import time
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    HfArgumentParser,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Qwen2Config,
    Qwen2ForCausalLM,
    TrainerCallback,
    logging,
)
from trl import GRPOTrainer

from clipo_trl import CLIPOConfig, CLIPOTrainer
from clipo_trl.capture import StateSource
from clipo_trl.hidden_states import pool, right_padded

from . import common


# The modes that are compared with each other need the same setting of TRL: optimizer steps a generation batch serves.
SETTINGS = {1: ("grpo", "decode", "forward", "likelihood", "naive"), 2: ("grpo", "fused")}
GOALS = {"fused": 1.02, "decode": 1.03, "forward": 1.10}
COLORS = {
    "fused": common.BLUE,
    "decode": common.GREEN,
    "forward": common.ORANGE,
    "likelihood": common.PURPLE,
    "naive": common.RED,
}


@dataclass(frozen=True)
class Shape:
    """A random Qwen2, and the rollouts of a generation batch."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    n_rollouts: int
    group_size: int
    n_prompt: int
    n_completion: int


SHAPES = {
    "tiny": Shape(32, 64, 2, 2, 1, 512, n_rollouts=8, group_size=4, n_prompt=6, n_completion=8),
    "39m": Shape(512, 1408, 8, 8, 2, 32768, n_rollouts=8, group_size=4, n_prompt=32, n_completion=64),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 151936, n_rollouts=16, group_size=8, n_prompt=512, n_completion=2048),
}


@dataclass
class Settings:
    shape: str = field(
        default="",
        metadata={"help": f"One of {', '.join(SHAPES)}. Default: qwen2.5-1.5b with a GPU, 39m without."},
    )
    rounds: int = field(default=5, metadata={"help": "Measured steps of each mode and seed, after one that is not."})
    warm_up_tokens: int | None = field(
        default=None,
        metadata={"help": "Completion tokens in the first round, which is not measured. Default: as in the others."},
    )
    seeds: int = field(default=3, metadata={"help": "Times that all is repeated, with another model."})
    output_dir: str = field(default=common.OUTPUT_DIR, metadata={"help": "Where overhead.json and .png go."})

    def __post_init__(self):
        self.shape = self.shape or ("qwen2.5-1.5b" if torch.cuda.is_available() else "39m")
        if self.shape not in SHAPES:
            raise ValueError(f"`shape` is {self.shape!r}. Choose from {list(SHAPES)}.")


# ---------------------------------------------------------------------- the trainer that takes turns


class TurnsTrainer(CLIPOTrainer):
    """`CLIPOTrainer` that reads the states in the mode set from outside; with `"grpo"` none of its methods takes
    part."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        ours = self.states
        self.states = NaiveSource(ours.reader, "grpo", ours.pooling, self.eos_token_ids, self.accelerator)
        self.mode = "grpo"

    def take_turn(self, mode: str):
        """Work in `mode` from here on."""
        self.mode, pays_likelihood = mode, mode == "likelihood"
        self.states.mode = "fused" if pays_likelihood else mode
        self.states.is_scored = self.states.asks_for_scores = pays_likelihood
        self.args.contrastive_reward_type = "likelihood" if pays_likelihood else "loss"

    def latest(self, metric: str) -> float:
        """Of the latest generation batch, whether it has been logged or not."""
        return self._metrics["train"][metric][-1]

    def _trainer(self):
        return GRPOTrainer if self.mode == "grpo" else CLIPOTrainer

    def _generate_and_score_completions(self, inputs):
        return self._trainer()._generate_and_score_completions(self, inputs)

    def _generate(self, prompts):
        return self._trainer()._generate(self, prompts)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        return self._trainer()._get_per_token_logps_and_entropies(self, *args, **kwargs)

    def _calculate_rewards(self, *args):
        return self._trainer()._calculate_rewards(self, *args)


class NaiveSource(StateSource):
    """In the mode `"naive"`, the last hidden states as one would first write it: every layer is kept alive, and logits
    are made."""

    @torch.no_grad()
    def pooled(self, model_wrapped, rows_per_pass: int, pad_token_id: int, image_inputs=None) -> torch.Tensor:
        if self.mode != "naive":
            return super().pooled(model_wrapped, rows_per_pass, pad_token_id, image_inputs)
        pooled, device = [], next(model_wrapped.parameters()).device
        for start in range(0, len(self.tokens), rows_per_pass):
            rows = list(range(start, min(start + rows_per_pass, len(self.tokens))))
            input_ids, attention_mask, reads = right_padded(self.tokens, rows, "mean", pad_token_id, device)
            with self._accelerator.autocast():
                output = model_wrapped(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
            pooled.append(pool(output.hidden_states[-1], reads.to(device)))
        return torch.cat(pooled)


class Turns(TrainerCallback):
    """Gives the generation batches to the modes by turns, and measures each."""

    def __init__(
        self,
        trainer: TurnsTrainer,
        modes: tuple[str, ...],
        steps_per_generation: int,
        on_step,
        warm_up_tokens: int | None = None,
    ):
        self._warm_up_tokens = warm_up_tokens or trainer.max_completion_length
        self.measured = defaultdict(list)  # (mode, quantity) -> one value a round
        self._trainer, self._modes, self._window, self._on_step = trainer, modes, steps_per_generation, on_step
        self._memory = common.PeakMemory(trainer.accelerator.device)
        # All modes run beside the head and its optimizer; plain GRPO would not hold their weights, gradient and
        # moments.
        n_head = sum(parameter.numel() for parameter in trainer.contrastive_head.parameters())
        self._head_bytes = 4 * 4 * n_head

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step % self._window == 0:
            turn, place = divmod(state.global_step // self._window, len(self._modes))
            self._trainer.take_turn(self._modes[(turn + place) % len(self._modes)])  # an order that turns
            n_tokens = self._trainer.max_completion_length if turn > 0 else self._warm_up_tokens
            self._trainer.generation_config.update(min_new_tokens=n_tokens, max_new_tokens=n_tokens)
            self._memory.reset()
            common.synchronize(args.device)
            self._start, self._processor_start = time.perf_counter(), time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._window != 0:
            return
        common.synchronize(args.device)
        mode, duration = self._trainer.mode, time.perf_counter() - self._start
        processor_duration = time.process_time() - self._processor_start
        memory = self._memory.read() - (self._head_bytes if mode == "grpo" else 0)
        if state.global_step > len(self._modes) * self._window:  # the first round warms up
            self.measured[mode, "seconds"].append(duration)
            self.measured[mode, "processor_seconds"].append(processor_duration)
            self.measured[mode, "peak_bytes"].append(memory)
            if mode != "grpo":
                own = self._trainer.latest("contrastive/seconds")
                self.measured[mode, "own_share"].append(own / duration)
        self._on_step()


# ---------------------------------------------------------------------- a random policy and its task


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """One token a word: `w2 w3 ...`."""
    words = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, vocab_size))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def make_model(shape: Shape, seed: int, device: torch.device) -> Qwen2ForCausalLM:
    """Random weights, bf16 on a GPU."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        max_position_embeddings=shape.n_prompt + shape.n_completion,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with device:
        model = Qwen2ForCausalLM(config)
    model.config._name_or_path = "random-qwen2"
    return model.bfloat16() if device.type == "cuda" else model


def every_other(completions, **kwargs) -> list[float]:
    """A reward with right and wrong rollouts in every group."""
    return [float(i % 2) for i in range(len(completions))]


def make_trainer(shape: Shape, seed: int, window: int, max_steps: int, output_dir: str) -> TurnsTrainer:
    device = common.default_device()
    words = " ".join(f"w{2 + i % (shape.vocab_size - 2)}" for i in range(shape.n_prompt))
    args = CLIPOConfig(
        output_dir=output_dir,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda",
        seed=seed,
        max_steps=max_steps,
        per_device_train_batch_size=shape.n_rollouts // window,
        steps_per_generation=window,
        gradient_accumulation_steps=1,
        num_generations=shape.group_size,
        max_completion_length=shape.n_completion,
        generation_kwargs={"min_new_tokens": shape.n_completion},
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    trainer = TurnsTrainer(
        make_model(shape, seed, device),
        every_other,
        args,
        train_dataset=Dataset.from_dict({"prompt": [words] * (shape.n_rollouts // shape.group_size)}),
        processing_class=make_tokenizer(shape.vocab_size),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


# ---------------------------------------------------------------------- measuring and showing


def measure(
    shape: Shape, seed: int, window: int, rounds: int, on_step, warm_up_tokens: int | None = None
) -> tuple[dict[tuple[str, str], list[float]], int]:
    """Train one model in one setting; returns what `Turns` measured, and the model's number of parameters."""
    modes = SETTINGS[window]
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(shape, seed, window, (rounds + 1) * len(modes) * window, folder)
        turns = Turns(trainer, modes, window, on_step, warm_up_tokens)
        trainer.add_callback(turns)
        trainer.train()
    return turns.measured, trainer.model.num_parameters()


def run(settings: Settings) -> dict:
    """Train and measure; returns one row of figures a mode, and the measurements themselves."""
    shape, ratios, values = SHAPES[settings.shape], defaultdict(list), defaultdict(list)
    with common.progress() as bar:
        total = settings.seeds * (settings.rounds + 1) * sum(map(len, SETTINGS.values()))
        task = bar.add_task("GRPO and CLIPO by turns", total=total)
        for seed in range(settings.seeds):
            for window, modes in SETTINGS.items():
                measured, n_parameters = measure(
                    shape, seed, window, settings.rounds, partial(bar.advance, task), settings.warm_up_tokens
                )
                for mode in modes[1:]:
                    for quantity in ("seconds", "processor_seconds", "peak_bytes"):
                        baseline = measured["grpo", quantity]
                        ratios[mode, quantity] += common.ratios(measured[mode, quantity], baseline)
                        values[mode, quantity] += measured[mode, quantity]
                        values[mode, f"grpo_{quantity}"] += baseline
                    values[mode, "own_share"] += measured[mode, "own_share"]
    rows = [
        {
            "mode": mode,
            "step_time_ratio": common.spread(ratios[mode, "seconds"]),
            "processor_time_ratio": common.spread(ratios[mode, "processor_seconds"]),
            "peak_memory_ratio": common.spread(ratios[mode, "peak_bytes"]),
            "seconds": common.spread(values[mode, "seconds"]),
            "grpo_seconds": common.spread(values[mode, "grpo_seconds"]),
            "peak_bytes": common.spread(values[mode, "peak_bytes"]),
            "own_share": common.spread(values[mode, "own_share"]),
            "measured": {
                "step_time_ratio": ratios[mode, "seconds"],
                "processor_time_ratio": ratios[mode, "processor_seconds"],
                "peak_memory_ratio": ratios[mode, "peak_bytes"],
                "seconds": values[mode, "seconds"],
                "grpo_seconds": values[mode, "grpo_seconds"],
            },
        }
        for mode in COLORS
    ]
    return {"n_parameters": n_parameters, "rows": rows}


def draw(settings: Settings, results: dict):
    """Every round as a dot, its median as a bar, by mode."""
    rows, generator = results["rows"][::-1], torch.Generator().manual_seed(0)
    titles = {
        "step_time_ratio": "step time",
        "processor_time_ratio": "processor time",
        "peak_memory_ratio": "peak memory",
    }
    picture, axes = common.figure(len(titles), size=(4.0, 3.2), sharey=True)
    for axis, (quantity, title) in zip(axes, titles.items(), strict=True):
        for place, row in enumerate(rows):
            dots, median = row["measured"][quantity], row[quantity]["median"]
            jitter = (torch.rand(len(dots), generator=generator) - 0.5) * 0.4
            axis.scatter(dots, place + jitter.numpy(), s=14, color=COLORS[row["mode"]], alpha=0.45, linewidths=0)
            axis.vlines(median, place - 0.34, place + 0.34, color=COLORS[row["mode"]], linewidth=3)
            axis.annotate(
                f"{median:.3f}", (median, place + 0.34), ha="center", va="bottom", fontsize=9, annotation_clip=False
            )
        axis.axvline(1.0, color="black", linewidth=1)
        axis.set(yticks=range(len(rows)), yticklabels=[row["mode"] for row in rows], ylim=(-0.6, len(rows) - 0.3))
        axis.grid(visible=False, axis="y")
        axis.ticklabel_format(axis="x", useOffset=False)
        axis.set(xlabel="CLIPO / GRPO", title=title)
    shape = SHAPES[settings.shape]
    picture.suptitle(
        f"A training step, {results['n_parameters'] / 1e6:.0f} M parameters, {shape.n_rollouts} rollouts of "
        f"{shape.n_prompt} + {shape.n_completion} tokens"
    )
    return picture


def main() -> None:
    (settings,) = HfArgumentParser(Settings, description=__doc__).parse_args_into_dataclasses()
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    results = run(settings)
    spread = "{median:.3f} ({q25:.3f} to {q75:.3f})".format
    common.show_table(
        f"CLIPO / GRPO, {results['n_parameters'] / 1e6:.0f} M parameters: medians (quartiles) of "
        f"{results['rows'][0]['step_time_ratio']['n']} rounds",
        ["mode", "step time", "goal", "processor time", "peak memory", "GRPO s", "CLIPO s", "own"],
        [
            (
                row["mode"],
                spread(**row["step_time_ratio"]),
                GOALS.get(row["mode"], ""),
                "{median:.3f}".format(**row["processor_time_ratio"]),
                "{median:.3f}".format(**row["peak_memory_ratio"]),
                f"{row['grpo_seconds']['median']:.2f}",
                f"{row['seconds']['median']:.2f}",
                f"{row['own_share']['median']:.1%}",
            )
            for row in results["rows"]
        ],
    )
    common.save("overhead", settings, common.default_device(), results, draw(settings, results), settings.output_dir)


if __name__ == "__main__":
    main()
