"""
The contrastive loss of this package against its dense form, which masks an N x N matrix of logits: seconds and peak
memory, forward and backward, measured in turn in one process.

    python -m benchmarks.loss
"""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch.nn.functional import normalize
from transformers import HfArgumentParser

from clipo_trl import contrastive_loss

from . import common


TEMPERATURE = 0.05
LEVELS = ("group", "cross", "batch")


@dataclass
class Settings:
    n_rollouts: int = field(default=8192, metadata={"help": "N: rollouts of the generation batch."})
    group_size: int = field(default=16, metadata={"help": "G: rollouts of a prompt."})
    embedding_dim: int = field(default=512, metadata={"help": "D: size of an embedding."})
    rounds: int = field(default=3, metadata={"help": "Times that everything is measured, after a warm-up."})
    seed: int = field(default=0, metadata={"help": "Seed of embeddings and labels."})
    output_dir: str = field(default=common.OUTPUT_DIR, metadata={"help": "Where loss.json and loss.png go."})


def dense_loss(embeddings_PGD: torch.Tensor, correct_PG: torch.Tensor, level: str) -> torch.Tensor:
    """
    The loss `"supcon_out"` the way it is commonly written: all pairs of the batch, and masks that say which of them
    count.

    Returns `loss_PG`; correct rollouts are the anchors.
    """
    P, G, D = embeddings_PGD.shape
    embeddings_ND, correct_N = embeddings_PGD.reshape(P * G, D), correct_PG.flatten()
    group_N = torch.arange(P * G, device=correct_N.device) // G
    itself_NN = torch.eye(P * G, dtype=torch.bool, device=correct_N.device)
    same_group_NN = group_N.unsqueeze(1) == group_N
    positive_NN = (correct_N.unsqueeze(1) == correct_N) & ~itself_NN
    positive_NN = positive_NN if level == "batch" else positive_NN & same_group_NN
    other_NN = same_group_NN & ~itself_NN if level == "group" else ~itself_NN

    logits_NN = embeddings_ND @ embeddings_ND.T / TEMPERATURE
    log_probs_NN = logits_NN - logits_NN.masked_fill(~other_NN, -torch.inf).logsumexp(1, keepdim=True)
    n_positives_N = positive_NN.sum(1)
    loss_N = -(log_probs_NN * positive_NN).sum(1) / n_positives_N.clamp(min=1)
    is_anchor_N = correct_N & (n_positives_N > 0) & (other_NN & ~positive_NN).any(1)
    return loss_N.masked_fill(~is_anchor_N, 0.0).view(P, G)


def our_loss(embeddings_PGD: torch.Tensor, correct_PG: torch.Tensor, level: str, loss_type: str) -> torch.Tensor:
    return contrastive_loss(embeddings_PGD, correct_PG, loss_type=loss_type, temperature=TEMPERATURE, level=level)[0]


def forward_and_backward(loss_function, embeddings_PGD: torch.Tensor) -> None:
    embeddings_PGD.grad = None
    loss_function(embeddings_PGD).sum().backward()


def run(settings: Settings) -> dict:
    """Measure; returns rows of figures, by level."""
    device = common.default_device()
    generator = torch.Generator().manual_seed(settings.seed)
    shape = (settings.n_rollouts // settings.group_size, settings.group_size)
    embeddings_PGD = normalize(torch.randn(*shape, settings.embedding_dim, generator=generator), dim=-1).to(device)
    embeddings_PGD.requires_grad_()
    correct_PG = (torch.rand(shape, generator=generator) < 0.5).to(device)

    rows = []
    with common.progress() as bar:
        task = bar.add_task("loss, forward and backward", total=(2 * len(LEVELS) + 1) * (settings.rounds + 2))
        for level in LEVELS:
            losses = {
                "dense": partial(dense_loss, correct_PG=correct_PG, level=level),
                "supcon_out": partial(our_loss, correct_PG=correct_PG, level=level, loss_type="supcon_out"),
            }
            if level == "group":  # the trainer's default, against the same dense form
                losses["infonce"] = partial(our_loss, correct_PG=correct_PG, level=level, loss_type="infonce")
            with torch.no_grad():
                difference = losses["dense"](embeddings_PGD) - losses["supcon_out"](embeddings_PGD)
            calls = {name: partial(forward_and_backward, loss, embeddings_PGD) for name, loss in losses.items()}
            durations = common.alternate(calls, settings.rounds, device, partial(bar.advance, task))
            peaks = {}
            for name, call in calls.items():
                embeddings_PGD.grad = None
                peaks[name] = common.peak_bytes(call, device)
                bar.advance(task)
            rows += [
                {
                    "level": level,
                    "loss_type": name,
                    "seconds": common.spread(durations[name]),
                    "dense_seconds": common.spread(durations["dense"]),
                    "times_faster": common.spread(common.ratios(durations["dense"], durations[name])),
                    "peak_bytes": peaks[name],
                    "dense_peak_bytes": peaks["dense"],
                    "times_smaller": peaks["dense"] / peaks[name],
                    "largest_difference": difference.abs().max().item() if name == "supcon_out" else None,
                }
                for name in losses
                if name != "dense"
            ]
    return {"rows": rows}


def draw(settings: Settings, rows: list[dict]):
    """Seconds and peak memory by level, ours beside the dense form."""
    picture, axes = common.figure(2)
    rows = [row for row in rows if row["loss_type"] == "supcon_out"]
    panels = (
        ("seconds", lambda row, of: row[f"{of}seconds"]["median"]),
        ("peak memory, MiB", lambda row, of: row[f"{of}peak_bytes"] / common.MIB),
    )
    for axis, (unit, value) in zip(axes, panels, strict=True):
        for shift, of, label, color in (
            (-0.2, "dense_", "dense N×N", common.GREY),
            (0.2, "", "clipo_trl", common.BLUE),
        ):
            heights = [value(row, of) for row in rows]
            bars = axis.bar([i + shift for i in range(len(rows))], heights, 0.38, color=color, label=label)
            axis.bar_label(
                bars,
                [f"{height:,.0f}" if height > 100 else f"{height:.3g}" for height in heights],
                padding=2,
                fontsize=9,
            )
        axis.set(yscale="log", title=unit, xticks=range(len(rows)), xticklabels=[row["level"] for row in rows])
        axis.set_xlabel("contrastive_level")
        axis.margins(y=0.15)
        axis.grid(visible=False, axis="x")
        axis.minorticks_off()
    picture.suptitle(
        f"The loss, forward and backward: N = {settings.n_rollouts}, G = {settings.group_size}, "
        f"D = {settings.embedding_dim}"
    )
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return picture


def main() -> None:
    (settings,) = HfArgumentParser(Settings, description=__doc__).parse_args_into_dataclasses()
    results = run(settings)
    common.show_table(
        f"Contrastive loss, forward and backward: N = {settings.n_rollouts}, G = {settings.group_size}, "
        f"D = {settings.embedding_dim}",
        ["level", "loss", "ms", "dense ms", "times faster (quartiles)", "peak MiB", "dense MiB", "times smaller"],
        [
            (
                row["level"],
                row["loss_type"],
                f"{row['seconds']['median'] * 1e3:.1f}",
                f"{row['dense_seconds']['median'] * 1e3:.0f}",
                "{median:.1f} ({q25:.1f} to {q75:.1f})".format(**row["times_faster"]),
                f"{row['peak_bytes'] / common.MIB:.1f}",
                f"{row['dense_peak_bytes'] / common.MIB:.0f}",
                f"{row['times_smaller']:.1f}",
            )
            for row in results["rows"]
        ],
    )
    picture = draw(settings, results["rows"])
    common.save("loss", settings, common.default_device(), results, picture, settings.output_dir)


if __name__ == "__main__":
    main()
