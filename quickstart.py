"""CLIPO on a laptop, in a few minutes and without a network: `python quickstart.py`.

A small language model, warm-started on arithmetic that a program checks step by step, is trained with CLIPO by `clipo
train` on configs/quickstart.yaml. Everything goes to runs/quickstart/ and is seeded. Options of `clipo train` may
follow: `python quickstart.py --use_cpu false --bf16 true` trains on a GPU.
"""

import json
import os
import random
import sys
import time
import warnings
from pathlib import Path

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

import train
from experiments import chain
from experiments.starting_policy import PHASES, Phase, evaluate_policy, warm_start


FOLDER = Path("runs/quickstart")  # as configs/quickstart.yaml has it
TEST_SETS = {
    "test": "same kind",
    "other_operands": "other numbers",
    "p1": "one more operation",
    "p2": "two more operations",
}
SEED = 0
BLUE, RED, GREY = "#2166ac", "#c2452d", "#6b6b6b"

console = Console()

Results = dict[str, dict[str, float]]


def main(options: list[str] | None = None) -> None:
    """`options`: words for `clipo train`, over those of the configuration."""
    start = time.perf_counter()
    os.chdir(Path(__file__).parent)
    torch.set_num_threads(1)  # so small a model gains nothing from more, and results do not depend on their number
    plt.switch_backend("agg")  # no window: the picture goes to a file
    # Bars of reading and writing small files would drown those of the stages, and the warning is between two
    # libraries.
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)

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
    console.rule("[bold]2  Before CLIPO")
    before = evaluate(policy, test_sets)

    ########################################################################
    # Train with CLIPO: what `clipo train --config ...` does               #
    ########################################################################
    console.rule("[bold]3  CLIPO")
    transformers.trainer.DEFAULT_PROGRESS_CALLBACK = TrainingBar
    trainer = train.main(["--config", "configs/quickstart.yaml", *(options or [])])
    output_dir = Path(trainer.args.output_dir)

    ########################################################################
    # Evaluate after                                                       #
    ########################################################################
    console.rule("[bold]4  After CLIPO")
    after = evaluate(output_dir, test_sets)

    ########################################################################
    # Results: a table and a picture                                       #
    ########################################################################
    console.rule("[bold]5  Results")
    console.print(results_table(before, after))
    (FOLDER / "results.json").write_text(json.dumps({"before": before, "after": after}, indent=2))
    logs = [entry for entry in trainer.state.log_history if "reward" in entry]
    draw(logs, trainer.args.contrastive_warmup_steps, before["test"], after["test"], FOLDER / "quickstart.png")
    console.print(f"Done in {time.perf_counter() - start:.0f} seconds.", highlight=False)
    console.print(f"  model    {output_dir}\n  head     {output_dir}/contrastive_head", highlight=False)
    console.print(f"  picture  {FOLDER}/quickstart.png", highlight=False)


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


def results_table(before: Results, after: Results) -> Table:
    table = Table(title="Before and after CLIPO, on problems that training never saw")
    table.add_column("test problems")
    columns = {
        "accuracy": "right answer",
        "lucky_share": "of which lucky",
        "strict_accuracy": "answer and all steps right",
    }
    for title in columns.values():
        table.add_column(title, justify="right")
    for name, title in TEST_SETS.items():
        cells = [f"{before[name][key]:.1%} -> [bold]{after[name][key]:.1%}[/]" for key in columns]
        table.add_row(title, *cells)
    return table


def draw(logs: list[dict], warmup_steps: int, before: dict, after: dict, path: Path) -> None:
    """Draw reward and accuracy, lucky share and cosines over the steps of training; dots are the test set, before and
    after."""

    def series(name: str) -> np.ndarray:
        return np.array([entry.get(name, np.nan) for entry in logs], dtype=float)

    def curve(axis: plt.Axes, values: np.ndarray, color: str, label: str) -> np.ndarray:
        axis.plot(steps, values, color=color, alpha=0.22, linewidth=0.8)
        smooth = moving_mean(values)
        axis.plot(steps, smooth, color=color, linewidth=2, label=label)
        return smooth

    def dots(axis: plt.Axes, key: str, color: str) -> None:
        x, y = [steps[0] - 1, steps[-1]], [before[key], after[key]]
        axis.plot(
            x, y, "o", color=color, markeredgecolor="white", markersize=8, zorder=5, clip_on=False, label="test set"
        )

    steps = series("step")
    right, sound = series("rewards/answer_reward/mean"), series("rewards/steps_reward/mean")
    plt.rcParams.update(
        {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    )
    figure, (rewards, luck, cosines) = plt.subplots(1, 3, figsize=(13.5, 4), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)

    rewards.set_title("Accuracy and reward")
    curve(rewards, right, BLUE, "right answers")
    dots(rewards, "accuracy", BLUE)
    curve(rewards, series("reward"), GREY, "reward, contrastive part included")
    rewards.set_ylim(0, 1.02)

    luck.set_title("Lucky share of right answers (a step is wrong)")
    curve(luck, 1 - sound / np.where(right > 0, right, np.nan), RED, "rollouts")
    dots(luck, "lucky_share", RED)
    luck.set_ylim(0, None)
    luck.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))

    cosines.set_title("Cosine of two embeddings of a group")
    together = curve(cosines, series("contrastive/embedding_cosine_correct_correct"), BLUE, "correct and correct")
    apart = curve(cosines, series("contrastive/embedding_cosine_correct_wrong"), RED, "correct and wrong")
    cosines.fill_between(steps, apart, together, color=GREY, alpha=0.10, linewidth=0)

    for axis in (rewards, luck, cosines):
        if warmup_steps:
            axis.axvspan(steps[0] - 1, warmup_steps, color=GREY, alpha=0.12, linewidth=0, label="warm-up of the head")
        axis.set_xlabel("step")
        axis.set_xlim(steps[0] - 1, steps[-1])
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
    main(sys.argv[1:])
