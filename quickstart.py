"""CLIPO on a laptop, beside GRPO and the agreement reward, in about three minutes and without a network:
`python quickstart.py`.

A small language model, warm-started on arithmetic that a program checks step by step, is trained three times by `clipo
train` on configs/quickstart.yaml, one after the other: by GRPO alone, with CLIPO, and with the agreement of embeddings
as the reward. Everything goes to runs/quickstart/ and is seeded. Options of `clipo train` may follow: `python
quickstart.py --use_cpu false --bf16 true` trains on a GPU.
"""

import argparse
import contextlib
import io
import json
import os
import random
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import datasets
import matplotlib.pyplot as plt
import numpy as np
import torch
import transformers
from datasets import Dataset
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, ProgressCallback
from trl import GRPOTrainer

import train
from clipo_trl.cli.command_line import usage_errors
from clipo_trl.cli.quiet import CHECKPOINTING, quiet
from clipo_trl.cli.train import parse_arguments
from experiments import chain
from experiments.starting_policy import PHASES, Phase, evaluate_policy, warm_start
from reward_funcs.errors import UsageError


CONFIG = "configs/quickstart.yaml"
FOLDER = Path("runs/quickstart")  # as configs/quickstart.yaml has it
TEST_SETS = {
    "test": "same kind",
    "other_operands": "other numbers",
    "p1": "one more operation",
    "p2": "two more operations",
}
SEED = 0
BLUE, RED, GREY, GREEN = "#2166ac", "#c2452d", "#6b6b6b", "#2a8a57"


class Arm(NamedTuple):
    """A way to train: its name, its color in the picture, and its words for `clipo train`."""

    name: str
    color: str
    words: tuple[str, ...] = ()


ARMS = {
    # CLIPO's policy waits for its head first: all three policies make the same number of steps.
    "grpo": Arm("GRPO", GREY, ("--contrastive", "false", "--max_steps", "100")),
    "clipo": Arm("CLIPO", BLUE),
    "agreement": Arm(
        "agreement", GREEN, ("--contrastive_reward_type", "agreement", "--contrastive_debias", "group_center")
    ),
}
NEXT = (
    ("python examples/odd_one_out.py", "what the trained head is good for"),
    ("clipo train --config configs/quickstart.yaml --seed 1", "CLIPO once more, with another seed"),
    ("clipo doctor --config configs/lora_single_gpu.yaml", "what a run of 3 billion parameters would need here"),
)

console = Console()

Results = dict[str, dict[str, float]]


def main(options: list[str] | None = None) -> None:
    """`options`: words for `clipo train`, over those of the configuration."""
    start = time.perf_counter()
    os.chdir(Path(__file__).parent)
    check_options(CONFIG, options or [], __doc__)
    torch.set_num_threads(1)  # so small a model gains nothing from more, and results do not depend on their number
    plt.switch_backend("agg")  # no window: the picture goes to a file
    # Bars of reading and writing small files would drown those of the stages, and the warning is between two
    # libraries.
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", CHECKPOINTING, FutureWarning)

    ########################################################################
    # Data and starting policy: often right, and often by luck             #
    ########################################################################
    console.rule("[bold]1  Data and starting policy")
    train_set = chain.build_dataset(800, SEED)
    test_sets = {name: chain.build_dataset(200, SEED, split="test", **chain.VARIANTS[name]) for name in TEST_SETS}
    FOLDER.mkdir(parents=True, exist_ok=True)
    train_set.to_json(FOLDER / "train.jsonl")
    problem = train_set[0]["problem"]
    lucky_trace = chain.write_trace(problem, random.Random(SEED), wrong_quotient=0.5)
    console.print(f"{len(train_set)} problems like {problem}", highlight=False)
    console.print(f"  to be worked modulo 7 as  {chain.write_trace(problem)}", highlight=False)
    console.print(f"  right by luck, for one:   {lucky_trace}", highlight=False)

    policy = FOLDER / "starting_policy"
    if (policy / "tokenizer_config.json").exists():  # the last file that the warm start saves
        console.print(f"The starting policy is there already: {policy}", highlight=False)
    else:
        with progress_bar() as progress:
            tasks = {p: progress.add_task(f"Warm start, {p.name} traces", total=p.steps) for p in PHASES}

            def show(phase: Phase, step: int) -> None:
                progress.update(tasks[phase], completed=step)

            warm_start(policy, seed=SEED, on_step=show)

    ########################################################################
    # Evaluate before                                                      #
    ########################################################################
    console.rule("[bold]2  Before training")
    before = evaluate(policy, test_sets)

    ########################################################################
    # Train three times: what `clipo train --config ...` does; evaluate    #
    ########################################################################
    results, logs = {"before": before}, {}
    for number, (key, arm) in enumerate(ARMS.items(), start=3):
        console.rule(f"[bold]{number}  {arm.name}")
        trainer = train_arm(key, options or [])
        logs[key] = [entry for entry in trainer.state.log_history if "reward" in entry]
        results["after" if key == "clipo" else key] = evaluate(FOLDER / key, test_sets)
        if key == "clipo":
            warmup_steps = trainer.args.contrastive_warmup_steps

    ########################################################################
    # Results: a table and a picture                                       #
    ########################################################################
    console.rule(f"[bold]{len(ARMS) + 3}  Results")
    console.print(results_table(results))
    console.print("One seed is an anecdote. What 20 paired seeds measured: docs/faithfulness.md", highlight=False)
    (FOLDER / "results.json").write_text(json.dumps(results, indent=2))
    draw(logs, warmup_steps, results, FOLDER / "quickstart.png")
    console.print(f"Done in {time.perf_counter() - start:.0f} seconds.", highlight=False)
    console.print(f"  models and heads  {FOLDER}/[grpo, clipo, agreement]", highlight=False, markup=False)
    console.print(f"  picture           {FOLDER}/quickstart.png", highlight=False)
    console.print("Next:")
    for command, reason in NEXT:
        console.print(f"  {command:55}  # {reason}", highlight=False, soft_wrap=True)


def check_options(config: str, options: list[str], help_text: str | None) -> None:
    """Tell of a mistake in `options` before minutes of other work, and exit with 2; for `--help` show `help_text`."""
    argparse.ArgumentParser(
        description=help_text, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    ).parse_known_args(options)
    with usage_errors():
        script_args, *_ = parse_arguments(["--config", config, *options])
        if script_args.dry_run:
            raise UsageError(
                f"`dry_run` is of `clipo train`: once this script has written its data, `clipo train --config {config} "
                "--dry_run` shows the run. Leave it out here."
            )


def train_arm(key: str, options: list[str]) -> GRPOTrainer:
    """Train an arm of `ARMS` into its folder; the table at the start of a run is shown for CLIPO alone."""
    transformers.trainer.DEFAULT_PROGRESS_CALLBACK = TrainingBar
    words = ["--config", CONFIG, "--console", "full", *ARMS[key].words, *options]
    with contextlib.nullcontext() if key == "clipo" else contextlib.redirect_stdout(io.StringIO()):
        return train.main([*words, "--output_dir", str(FOLDER / key)])


class TrainingBar(ProgressCallback):
    """The trainer's progress bar, with the two numbers to watch in place of a line of forty for every step."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "reward" in logs:
            right, sound = logs["rewards/answer_reward/mean"], logs["rewards/steps_reward/mean"]
            lucky = f", of which lucky {1 - sound / right:.0%}" if right else ""
            self.training_bar.set_postfix_str(f"right answers {right:.0%}{lucky}")


def progress_bar() -> Progress:
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console)


def evaluate(model_path: Path, test_sets: dict[str, Dataset]) -> Results:
    """Evaluate a saved policy on each test set, four samples a problem at temperature 1."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_path), AutoTokenizer.from_pretrained(model_path)
    with progress_bar() as progress:
        results = {
            name: evaluate_policy(model, tokenizer, test_set, num_samples=4, seed=SEED)
            for name, test_set in progress.track(test_sets.items(), description="Sampling answers to test problems")
        }
    test = results["test"]
    console.print(
        f"Right answers {test['accuracy']:.0%}, of which lucky {test['lucky_share']:.0%} (right answer, wrong step)",
        highlight=False,
    )
    return results


def results_table(results: dict[str, Results]) -> Table:
    table = Table(title="Before and after CLIPO, GRPO and agreement; problems that training never saw, one seed")
    columns = {
        "accuracy": "right answer",
        "lucky_share": "of which lucky",
        "strict_accuracy": "answer and all steps right",
    }
    table.add_column("test problems")
    table.add_column("policy")
    for title in columns.values():
        table.add_column(title, justify="right")
    names = {"before": "before"} | {"after" if key == "clipo" else key: arm.name for key, arm in ARMS.items()}
    for test_set, title in TEST_SETS.items():
        for row, (key, name) in enumerate(names.items()):
            cells = [f"{results[key][test_set][column]:.1%}" for column in columns]
            table.add_row(title if row == 0 else "", name, *cells, end_section=row == len(names) - 1)
    return table


def draw(logs: dict[str, list[dict]], warmup_steps: int, results: dict[str, Results], path: Path) -> None:
    """Draw accuracy and lucky share of the arms, and CLIPO's cosines, over the policy's steps; dots are the test set,
    before and after."""

    def series(key: str, name: str) -> np.ndarray:
        return np.array([entry.get(name, np.nan) for entry in logs[key]], dtype=float)

    def steps(key: str) -> np.ndarray:
        return series(key, "step") - (0 if key == "grpo" else warmup_steps)

    def curve(axis: plt.Axes, key: str, values: np.ndarray, color: str, label: str) -> np.ndarray:
        axis.plot(steps(key), values, color=color, alpha=0.16, linewidth=0.8)
        smooth = moving_mean(values)
        axis.plot(steps(key), smooth, color=color, linewidth=2, label=label)
        return smooth

    def dots(axis: plt.Axes, key: str, column: str, color: str) -> None:
        before, after = (results[when]["test"][column] for when in ("before", "after" if key == "clipo" else key))
        style = {"markeredgecolor": "white", "markersize": 8, "zorder": 5, "clip_on": False}
        axis.plot([steps(key)[-1]], [after], "o", color=color, **style)
        axis.plot([0], [before], "o", color="black", **style)

    plt.rcParams.update(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    )
    figure, (rewards, luck, cosines) = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    rewards.set_title("Right answers (dots: test set)")
    luck.set_title("Lucky share of right answers (a step is wrong)")
    cosines.set_title("CLIPO: cosine of two embeddings of a group")
    for key, arm in ARMS.items():
        right, sound = series(key, "rewards/answer_reward/mean"), series(key, "rewards/steps_reward/mean")
        curve(rewards, key, right, arm.color, arm.name)
        curve(luck, key, 1 - sound / np.where(right > 0, right, np.nan), arm.color, arm.name)
        dots(rewards, key, "accuracy", arm.color)
        dots(luck, key, "lucky_share", arm.color)
    rewards.set_ylim(0, 1.02)
    luck.set_ylim(0, None)
    luck.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    pairs = "contrastive/embedding_cosine_correct_"
    together = curve(cosines, "clipo", series("clipo", f"{pairs}correct"), BLUE, "correct and correct")
    apart = curve(cosines, "clipo", series("clipo", f"{pairs}wrong"), RED, "correct and wrong")
    cosines.fill_between(steps("clipo"), apart, together, color=GREY, alpha=0.10, linewidth=0)

    first, last = steps("clipo")[0] - 1, steps("clipo")[-1]
    for axis in (rewards, luck, cosines):
        if warmup_steps:
            axis.axvspan(first, 0, color=GREY, alpha=0.12, linewidth=0, label="warm-up of the head")
        axis.set_xlabel("step of the policy")
        axis.set_xlim(first, last)
        axis.grid(axis="y", alpha=0.25)
        axis.legend(frameon=False, loc="best")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def moving_mean(values: np.ndarray, window: int = 11) -> np.ndarray:
    """Centred moving mean that skips NaN and narrows at the ends."""
    half = window // 2
    around = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return np.array([near[~np.isnan(near)].mean() if not np.isnan(near).all() else np.nan for near in around])


if __name__ == "__main__":
    with quiet():
        main(sys.argv[1:])
