"""Where making a policy surer would lead: its rollouts at temperature 1, and almost without chance.

Rewards for likelihood, low entropy or agreement make a policy surer of what it does most often (arXiv 2603.08660). How
many of its right rollouts are lucky then can be seen before anything is trained, by sampling at a low temperature.

python -m experiments.sharpening --names choices choices_again
"""

import csv
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from . import chain
from .command import console, run_command
from .language_model import (
    WARM_STARTS,
    held_out_problems,
    load_policy,
    read_rollouts,
    sample_problems,
    sample_rollouts,
)
from .starting_policy import sample_completions


DESCRIPTION = "Right, sound and lucky rollouts of frozen policies, at temperature 1 and almost without chance."
TEMPERATURES = (1.0, 0.05)  # the second is greedy but for near ties
NUM_SAMPLES = 8  # a problem at temperature 1; those of the language model are kept in its `rollouts.jsonl`
PUBLISHED = Path(__file__).parent / "results" / "sharpening.csv"
FIGURES = ("right", "sound", "lucky_share", "ratio")
N_RESAMPLES = 10_000


@dataclass
class Settings:
    output: str = field(
        default="runs/sharpening.csv",
        metadata={"help": "File of the figures; policies that are in it are not sampled again."},
    )
    policies: str = field(
        default="runs/likelihood_study/policies", metadata={"help": "Folder of toy policies; each one in it is taken."}
    )
    models: str = field(
        default="runs/language_model", metadata={"help": "Folder of the language model's warm starts."}
    )
    names: list[str] = field(
        default_factory=list, metadata={"help": f"Warm starts of the language model, of {list(WARM_STARTS)}."}
    )
    problems: int = field(default=400, metadata={"help": "Held-out problems of each policy."})
    num_threads: int = field(default=1, metadata={"help": "Threads of matrix products."})

    def __post_init__(self):
        if unknown := sorted(set(self.names) - set(WARM_STARTS)):
            raise ValueError(f"`names` has {unknown}, but must be some of {list(WARM_STARTS)}.")
        for name in ("problems", "num_threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}, but must be 1 or more.")


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 1 where a policy is not there, 130 if it was stopped."""
    return run_command("sharpening", DESCRIPTION, Settings, experiment, argv, (OSError, ValueError))


def experiment(settings: Settings) -> int:
    logging.disable_progress_bar()
    torch.set_num_threads(settings.num_threads)
    path = Path(settings.output)
    rows = read_rows(path) if path.exists() else []
    if differing := {row["problems"] for row in rows} - {str(settings.problems)}:
        raise ValueError(
            f"{path} has figures of {', '.join(differing)} problems. Ask for as many, or name another `--output`."
        )
    toys = sorted(folder.parent for folder in Path(settings.policies).glob("*/config.json"))
    if not toys:
        console.print(f"There is no toy policy in {settings.policies}: the language model alone.", highlight=False)
    for folder in [*toys, *(Path(settings.models, name) for name in settings.names)]:
        if any(row["policy"] == folder.name for row in rows):
            continue
        with console.status(f"Sampling {folder.name}"):
            rows += figures_of(folder.name, checks_of(settings, folder))
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
    if not rows:
        console.print("`--names` has none either: nothing to sample.")
        return 1
    console.print(table(rows), highlight=False)
    return 0


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What the file holds, a line a policy and temperature."""
    return list(csv.DictReader(path.read_text().splitlines()))


def checks_of(settings: Settings, folder: Path) -> dict[float, np.ndarray]:
    """Rollouts of one policy by temperature, checked: right and sound, `(problems, samples, 2)`. Almost without chance
    one sample says all."""
    sampled = _of_words(folder, settings) if folder.name in WARM_STARTS else _of_chains(folder, settings)
    return {temperature: np.array(checks) for temperature, checks in zip(TEMPERATURES, sampled, strict=True)}


def _of_chains(folder: Path, settings: Settings) -> Iterator[list]:
    problems = chain.build_dataset(settings.problems, seed=0, split="test", **chain.VARIANTS["test"])
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    for temperature, num_samples in zip(TEMPERATURES, (NUM_SAMPLES, 1), strict=True):
        sampled = sample_completions(model, tokenizer, problems, num_samples=num_samples, temperature=temperature)
        checks = (
            chain.check_completions([problem] * num_samples, completions)
            for problem, completions in zip(problems["problem"], sampled, strict=True)
        )
        yield [[(each.answer_correct, each.strictly_correct) for each in of_problem] for of_problem in checks]


def _of_words(folder: Path, settings: Settings) -> Iterator[list]:
    problems = held_out_problems(folder.name, settings.problems)
    kept = read_rollouts(sample_rollouts(folder, problems, num_samples=NUM_SAMPLES))[: NUM_SAMPLES * len(problems)]
    checks = [(rollout.right, rollout.sound) for rollout in kept]
    yield [checks[start : start + NUM_SAMPLES] for start in range(0, len(checks), NUM_SAMPLES)]
    policy = load_policy(folder / "model")
    batches = sample_problems(*policy, problems, num_samples=1, batch_size=128, temperature=TEMPERATURES[1])
    yield [[(rollout.right, rollout.sound)] for batch in batches for rollout in batch]


def figures_of(policy: str, checks: dict[float, np.ndarray]) -> list[dict[str, Any]]:
    """
    A row a temperature, each figure with its 95 % bootstrap interval over problems: the shares of right and of sound
    rollouts, the share of right ones that are lucky, and its ratio to that at temperature 1. NaN where there is no
    right rollout, or none that is lucky to compare with.

    Args:
        policy (`str`): Its name.
        checks (`dict[float, np.ndarray]`): By temperature, 1 the first; see [`checks_of`].
    """
    n_problems = len(next(iter(checks.values())))
    chosen = np.random.default_rng(0).integers(n_problems, size=(N_RESAMPLES, n_problems))
    chosen[0] = np.arange(n_problems)  # the problems themselves
    at_one = _figures(checks[TEMPERATURES[0]], chosen)
    rows = []
    for temperature, found in checks.items():
        figures = _figures(found, chosen)
        with np.errstate(divide="ignore", invalid="ignore"):
            figures["ratio"] = figures["lucky_share"] / at_one["lucky_share"]
        row: dict[str, Any] = {"policy": policy, "temperature": temperature, "problems": n_problems}
        row["rollouts"] = found.shape[0] * found.shape[1]
        for name in FIGURES:
            known = figures[name][1:][np.isfinite(figures[name][1:])]  # all but resamples without a right rollout
            low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
            row |= {name: round(float(figures[name][0]), 4), f"{name}_low": round(float(low), 4)}
            row[f"{name}_high"] = round(float(high), 4)
        rows.append(row)
    return rows


def _figures(checks_PS2: np.ndarray, chosen_RP: np.ndarray) -> dict[str, np.ndarray]:
    """Figures `(R,)` of each resample."""
    right_R, sound_R = checks_PS2.mean(1)[chosen_RP].mean(1).T
    with np.errstate(divide="ignore", invalid="ignore"):
        return {"right": right_R, "sound": sound_R, "lucky_share": 1 - sound_R / right_R}


def table(rows: list[dict[str, Any]]) -> str:
    """The figures as Markdown, percent."""

    def cell(row, name: str) -> str:
        value, low, high = (100 * float(row[key]) for key in (name, f"{name}_low", f"{name}_high"))
        return f"{value:.1f} [{low:.1f}, {high:.1f}]"

    lines = ["| policy | temperature | right | sound | lucky share of the right |", "|---|---:|---:|---:|---:|"]
    lines += [
        f"| `{row['policy']}` | {float(row['temperature']):g} | "
        + " | ".join(cell(row, name) for name in ("right", "sound", "lucky_share"))
        + " |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
