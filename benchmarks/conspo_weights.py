"""
What the temperature of ConSPO does: the weights of the rollouts of one group, over tau.

    python -m benchmarks.conspo_weights
"""

from dataclasses import dataclass, field

import torch
from transformers import HfArgumentParser

from clipo_trl import conspo_weights

from . import common


PAPER = 10.0


@dataclass
class Settings:
    right: list[float] = field(
        default_factory=lambda: [-0.25, -0.55], metadata={"help": "Scores of right rollouts, nats a token."}
    )
    wrong: list[float] = field(
        default_factory=lambda: [-0.2, -0.35, -0.5, -0.7], metadata={"help": "Scores of wrong rollouts, nats a token."}
    )
    output_dir: str = field(
        default=common.OUTPUT_DIR, metadata={"help": "Where conspo_weights.json and conspo_weights.png go."}
    )


def weights_over_tau(right: list[float], wrong: list[float]) -> dict[float, list[float]]:
    """Weights of the right rollouts and then of the wrong ones, for temperatures from 0.03 to 30 nats a token."""
    score_1G = torch.tensor([[*right, *wrong]], dtype=torch.float64)
    correct_1G = torch.tensor([[True] * len(right) + [False] * len(wrong)])
    temperatures = torch.logspace(-1.5, 1.5, 61, dtype=torch.float64).tolist()
    return {
        tau: conspo_weights(score_1G, correct_1G, temperature=tau)[0].squeeze(0).tolist()
        for tau in [*temperatures, PAPER]
    }


def draw(settings: Settings, weights: dict[float, list[float]]):
    """One panel for the right rollouts, one for the wrong ones."""
    picture, panels = common.figure(2, size=(4.6, 3.4), sharex=True)
    taus = sorted(weights)
    colors = (common.BLUE, common.ORANGE, common.GREEN, common.RED)
    first = 0
    for panel, title, scores in zip(panels, ("right", "wrong"), (settings.right, settings.wrong), strict=True):
        for place, score in enumerate(scores):
            values = [abs(weights[tau][first + place]) for tau in taus]
            panel.plot(taus, values, color=colors[place % len(colors)], label=f"score {score:g}")
        panel.axvline(PAPER, color=common.GREY, linestyle=":", linewidth=1)
        panel.annotate("paper", (PAPER, 0), xytext=(3, 3), textcoords="offset points", color=common.GREY)
        panel.set(title=f"{title} rollouts", xscale="log", xlabel="temperature tau (nats a token)", ylim=0)
        panel.legend()
        first += len(scores)
    panels[0].set_ylabel("weight, pushed up")
    panels[1].set_ylabel("weight, pushed down")
    return picture


def main() -> None:
    (settings,) = HfArgumentParser(Settings).parse_args_into_dataclasses()
    weights = weights_over_tau(settings.right, settings.wrong)
    results = {"weights": {f"{tau:.4g}": values for tau, values in weights.items()}}
    picture = draw(settings, weights)
    common.save("conspo_weights", settings, torch.device("cpu"), results, picture, settings.output_dir)


if __name__ == "__main__":
    main()
