"""
How the parts of CLIPO grow: milliseconds a rollout against the number of rollouts, tokens, hidden size, group size,
processes.

    python -m benchmarks.scaling

    score      all that happens to a generation batch once its states are pooled: embeddings, loss, reward, the head's
               step, metrics; the trainer's own method, run on random states
    decode     sum the states up, token by token
    pass       pool the states of a pass over whole sequences
    layer      one decoder layer of a Qwen2 of that size, forward only: a yardstick
"""

import os
import socket
import tempfile
import warnings
from dataclasses import asdict, dataclass, field, replace

import torch
from datasets import Dataset
from torch import multiprocessing
from transformers import HfArgumentParser, Qwen2Config, Qwen2ForCausalLM, logging
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from clipo_trl import CLIPOConfig, CLIPOTrainer
from clipo_trl.hidden_states import DecodePooler, ForwardPooler, RolloutTokens
from clipo_trl.metrics import batch_metrics

from . import common
from .overhead import every_other, make_tokenizer


PARTS = {"score": common.BLUE, "decode": common.GREEN, "pass": common.ORANGE, "layer": common.GREY}


@dataclass(frozen=True)
class Point:
    """One place on the axes. `pooled` rollouts are pooled at a time, as a micro-batch would be."""

    rollouts: int = 512
    tokens: int = 512
    hidden_size: int = 1024
    group_size: int = 16
    processes: int = 1
    pooled: int = 8
    embedding_dim: int = 512


@dataclass
class Settings:
    rollouts: list[int] = field(default_factory=lambda: [128, 512, 2048, 8192], metadata={"help": "N."})
    tokens: list[int] = field(default_factory=lambda: [128, 512, 2048], metadata={"help": "T."})
    hidden_size: list[int] = field(default_factory=lambda: [256, 512, 1024, 2048], metadata={"help": "H."})
    group_size: list[int] = field(default_factory=lambda: [4, 16, 64], metadata={"help": "G."})
    processes: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "Processes (gloo, on the CPU)."})
    rounds: int = field(default=5, metadata={"help": "Times that everything is measured, after a warm-up."})
    output_dir: str = field(default=common.OUTPUT_DIR, metadata={"help": "Where scaling.json and scaling.png go."})


# What each axis shows; a part that does not depend on a quantity is not measured against it.
AXES = {
    "rollouts": ("rollouts of the generation batch, N", ["score"]),
    "tokens": ("tokens of a rollout, T", ["decode", "pass", "layer"]),
    "hidden_size": ("hidden size, H", ["score", "decode", "pass", "layer"]),
    "group_size": ("rollouts of a group, G", ["score"]),
    "processes": ("processes", ["score"]),
}


# ---------------------------------------------------------------------- the parts


def score(point: Point, output_dir: str, use_cpu: bool):
    """A call that scores a generation batch and measures it; the policy behind it is as small as can be."""
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=point.hidden_size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config)
    model.config._name_or_path = "random-qwen2"
    args = CLIPOConfig(
        output_dir=output_dir,
        use_cpu=use_cpu,
        bf16=False,
        num_generations=point.group_size,
        per_device_train_batch_size=point.group_size,
        contrastive_embedding_dim=point.embedding_dim,
        report_to=[],
    )
    prompts = Dataset.from_dict({"prompt": ["w2"] * point.processes})
    trainer = CLIPOTrainer(model, every_other, args, train_dataset=prompts, processing_class=make_tokenizer(16))
    assert trainer.accelerator.num_processes == point.processes
    device = trainer.accelerator.device
    n_local = point.rollouts // point.processes
    generator = torch.Generator().manual_seed(trainer.accelerator.process_index)
    pooled_BH = torch.randn(n_local, point.hidden_size, generator=generator).to(device)
    correct_PG = (torch.arange(point.rollouts, device=device) % 2 > 0).view(-1, point.group_size)
    has_reward_PG = torch.ones_like(correct_PG)
    learner, accelerator = trainer.head_learner, trainer.accelerator
    return lambda: batch_metrics(learner.score(pooled_BH, correct_PG, has_reward_PG), accelerator)


def decode(point: Point, device: torch.device):
    completions = torch.randint(2, 100, (point.pooled, point.tokens))
    fed = completions.to(device)
    states_BH = torch.randn(point.pooled, point.hidden_size, device=device)
    tokens = RolloutTokens([[2]] * point.pooled, completions.tolist())

    def call():
        pooler = DecodePooler([1], "mean")
        pooler(states_BH.unsqueeze(1).expand(-1, 2, -1), None)
        for t in range(point.tokens - 1):
            pooler(states_BH.unsqueeze(1), fed[:, t : t + 1])
        assert pooler.result(tokens) is not None

    return call


def forward_pass(point: Point, device: torch.device):
    states_BLH = torch.randn(point.pooled, point.tokens, point.hidden_size, device=device)
    reads_BL = torch.ones(point.pooled, point.tokens, dtype=torch.bool, device=device)

    def call():
        pooler = ForwardPooler(reads_BL)
        pooler(states_BLH, None)
        pooler.result()

    return call


def layer(point: Point, device: torch.device):
    config = Qwen2Config(
        hidden_size=point.hidden_size,
        intermediate_size=4 * point.hidden_size,
        num_attention_heads=max(point.hidden_size // 64, 1),
        num_key_value_heads=1,
        attn_implementation="sdpa",
    )
    block = Qwen2DecoderLayer(config, 0).to(device).eval()
    states_BLH = torch.randn(point.pooled, point.tokens, point.hidden_size, device=device)
    position_ids = torch.arange(point.tokens, device=device).unsqueeze(0)
    position_embeddings = Qwen2RotaryEmbedding(config).to(device)(states_BLH, position_ids)
    return torch.no_grad()(lambda: block(states_BLH, position_embeddings=position_embeddings))


# ---------------------------------------------------------------------- measuring and showing


def measure(point: Point, part: str, rounds: int) -> dict[str, float]:
    """Seconds of one part at one point, a rollout."""
    device = common.default_device()
    if part == "score":
        durations = score_in_processes(point, rounds) if point.processes > 1 else score_durations(point, rounds)
        return common.spread(duration / point.rollouts for duration in durations)
    call = {"decode": decode, "pass": forward_pass, "layer": layer}[part](point, device)
    durations = common.alternate({part: call}, rounds, device)[part]
    return common.spread(duration / point.pooled for duration in durations)


def score_durations(point: Point, rounds: int, use_cpu: bool | None = None) -> list[float]:
    device = torch.device("cpu") if use_cpu else common.default_device()
    with tempfile.TemporaryDirectory() as folder:
        call = score(point, folder, device.type == "cpu")
        return common.alternate({"score": call}, rounds, device)["score"]


def score_in_processes(point: Point, rounds: int) -> list[float]:
    """Of the first of several processes that score one generation batch together."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.NamedTemporaryFile() as file:
        multiprocessing.spawn(_one_process, (point, rounds, port, file.name), nprocs=point.processes)
        return torch.load(file.name)


def _one_process(rank: int, point: Point, rounds: int, port: int, path: str) -> None:
    quiet()
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": point.processes, "LOCAL_WORLD_SIZE": point.processes}
    os.environ.update({name: str(value) for name, value in place.items()})
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    durations = score_durations(point, rounds, use_cpu=True)
    if rank == 0:
        torch.save(durations, path)
    torch.distributed.destroy_process_group()


def run(settings: Settings) -> dict:
    """Measure along every axis, through one common point; returns one row a part and point."""
    rows = []
    with common.progress() as bar:
        total = sum(len(getattr(settings, axis)) * len(parts) for axis, (_, parts) in AXES.items())
        task = bar.add_task("scaling", total=total)
        for axis, (_, parts) in AXES.items():
            for value in getattr(settings, axis):
                point = replace(Point(), **{axis: value})
                for part in parts:
                    # One thread where processes are compared, so that more of them do not mean fewer threads each.
                    threads = torch.get_num_threads()
                    torch.set_num_threads(1 if axis == "processes" else threads)
                    seconds = measure(point, part, settings.rounds)
                    torch.set_num_threads(threads)
                    rows.append({"axis": axis, "part": part, **asdict(point), "seconds_per_rollout": seconds})
                    bar.advance(task)
    return {"rows": rows}


def draw(rows: list[dict]):
    """One panel an axis, one line a part, quartiles as a band."""
    picture, axes = common.figure(3, 2, size=(3.9, 3.1), sharey=True)
    panels = dict(zip(AXES, axes.flat, strict=False))
    for axis, panel in panels.items():
        for part, color in PARTS.items():
            points = [row for row in rows if row["axis"] == axis and row["part"] == part]
            if points:
                values = [row[axis] for row in points]
                low, mid, high = (
                    [row["seconds_per_rollout"][name] * 1e3 for row in points] for name in ("q25", "median", "q75")
                )
                panel.plot(values, mid, color=color, marker="o", markersize=4)
                panel.fill_between(values, low, high, color=color, alpha=0.2, linewidth=0)
        panel.set(xscale="log", yscale="log", xlabel=AXES[axis][0])
        ticks = sorted({row[axis] for row in rows if row["axis"] == axis})
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.minorticks_off()
    for panel in axes[:, 0]:
        panel.set_ylabel("ms a rollout")
    legend = {
        "score": "score: embeddings, loss, reward,\nthe head's step, metrics",
        "decode": "pool while decoding",
        "pass": "pool a pass over whole sequences",
        "layer": "yardstick: one decoder layer, forward",
    }
    axes.flat[-1].axis("off")
    axes.flat[-1].legend(
        [common.plt.Line2D([], [], color=PARTS[part], marker="o", markersize=4) for part in legend],
        legend.values(),
        loc="center left",
    )
    base = Point()
    picture.suptitle(
        f"Cost of CLIPO's parts; where not varied: N = {base.rollouts}, T = {base.tokens}, H = {base.hidden_size}, "
        f"G = {base.group_size}, D = {base.embedding_dim}"
    )
    return picture


def quiet() -> None:
    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def main() -> None:
    (settings,) = HfArgumentParser(Settings, description=__doc__).parse_args_into_dataclasses()
    quiet()
    results = run(settings)
    common.show_table(
        "Cost of CLIPO's parts: ms a rollout, medians (quartiles)",
        ["axis", "value", "part", "ms a rollout"],
        [
            (
                AXES[row["axis"]][0],
                row[row["axis"]],
                row["part"],
                "{:.3f} ({:.3f} to {:.3f})".format(
                    *(row["seconds_per_rollout"][name] * 1e3 for name in ("median", "q25", "q75"))
                ),
            )
            for row in results["rows"]
        ],
    )
    common.save("scaling", settings, common.default_device(), results, draw(results["rows"]), settings.output_dir)


if __name__ == "__main__":
    main()
