"""What dynamic sampling costs and buys: rollouts generated for rollouts trained, on the quickstart's task.

    python -m benchmarks.dynamic_sampling        # some ten minutes on a CPU

It writes runs/benchmarks/dynamic_sampling.{json,png}. The quickstart's starting policy and problems, trained by DAPO
with dynamic sampling and by the same without it, from the same seeds.
"""

import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser
from transformers.utils import logging

from benchmarks import common
from clipo_trl import DAPOConfig, DAPOTrainer
from experiments import chain
from experiments.starting_policy import warm_start


WAYS = {"without": False, "with": True}
COLORS = {"without": common.GREY, "with": common.BLUE}
FIGURES = ("attempts", "generated_per_trained", "dropped_all_right", "dropped_all_wrong", "surplus", "unfilled")


@dataclass
class Settings:
    """Sizes of the benchmark."""

    steps: int = field(default=100, metadata={"help": "Optimizer steps of each run, with a generation batch each."})
    seeds: int = field(default=3, metadata={"help": "Runs of each kind."})
    n_prompts: int = field(default=8, metadata={"help": "Prompts of a generation batch, 8 rollouts each."})
    eval_steps: int = field(default=10, metadata={"help": "Steps between evaluations on 200 problems."})
    policy: str = field(
        default="runs/quickstart/starting_policy", metadata={"help": "Starting policy; made where there is none."}
    )
    output_dir: str = common.OUTPUT_DIR


def make_trainer(settings: Settings, dynamic: bool, seed: int) -> DAPOTrainer:
    args = DAPOConfig(
        output_dir=f"{settings.output_dir}/dynamic_sampling",
        dynamic_sampling=dynamic,
        per_device_train_batch_size=8 * settings.n_prompts,
        num_generations=8,
        max_completion_length=48,
        max_steps=settings.steps,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        eval_strategy="steps",
        eval_steps=settings.eval_steps,
        eval_on_start=True,
        per_device_eval_batch_size=200,
        num_generations_eval=1,
        logging_steps=1,
        save_strategy="no",
        seed=seed,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        disable_tqdm=True,
    )
    return DAPOTrainer(
        AutoModelForCausalLM.from_pretrained(settings.policy),
        chain.answer_reward,
        args,
        train_dataset=problems(800, "train"),
        eval_dataset=problems(200, "test"),
        processing_class=AutoTokenizer.from_pretrained(settings.policy),
    )


def problems(n: int, split: str) -> Dataset:
    return chain.build_dataset(n, 0, split=split)


def measure(settings: Settings, way: str, seed: int) -> dict:
    """One run: its figures at each step, its accuracy at each evaluation, and rollouts and seconds up to there."""
    trainer = make_trainer(settings, WAYS[way], seed)
    duration = common.seconds(trainer.train, torch.device("cpu"))
    history = trainer.state.log_history
    steps = [row for row in history if "reward" in row]
    per_step = 8 * settings.n_prompts
    generated = [8 * row["dynamic_sampling/prompts_consumed"] for row in steps] if WAYS[way] else None
    generated = [0, *(generated or [per_step * (n + 1) for n in range(len(steps))])]
    evaluations = [row for row in history if "eval_reward" in row]
    return {
        "way": way,
        "seed": seed,
        "seconds": duration,
        "step_time": common.spread(row["step_time"] for row in steps),
        "zero_spread": common.spread(row["frac_reward_zero_std"] for row in steps),
        "figures": {name: [row.get(f"dynamic_sampling/{name}") for row in steps] for name in FIGURES},
        "generated": generated,
        "eval_step": [row["step"] for row in evaluations],
        "accuracy": [row["eval_reward"] for row in evaluations],
    }


def run(settings: Settings) -> dict:
    if not Path(settings.policy, "tokenizer_config.json").exists():
        warm_start(Path(settings.policy), seed=0)
    jobs = [(way, seed) for seed in range(settings.seeds) for way in WAYS]
    with common.progress() as progress:
        return {"rows": [measure(settings, *job) for job in progress.track(jobs, description="Training")]}


def draw(results: dict):
    """Rollouts generated for one that is trained, step by step; accuracy over steps, and over rollouts generated."""
    picture, axes = common.figure(3)
    for row in results["rows"]:
        style = {
            "color": COLORS[row["way"]],
            "alpha": 0.8,
            "label": f"{row['way']} dynamic sampling" if not row["seed"] else None,
        }
        if WAYS[row["way"]]:
            axes[0].plot(range(1, len(row["generated"])), row["figures"]["generated_per_trained"], **style)
        axes[1].plot(row["eval_step"], row["accuracy"], **style)
        axes[2].plot([row["generated"][step] for step in row["eval_step"]], row["accuracy"], **style)
    axes[0].set(xlabel="step", title="rollouts generated for one trained", ylim=(1, None))
    axes[1].set(xlabel="step", title="right answers on test problems")
    axes[2].set(xlabel="rollouts generated", title="right answers on test problems")
    axes[1].legend()
    return picture


def mean(values: list) -> float:
    there = [value for value in values if value is not None]
    return sum(there) / len(there)


def main() -> None:
    (settings,) = HfArgumentParser(Settings, description=__doc__).parse_args_into_dataclasses()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    results = run(settings)
    common.show_table(
        "Means over the run; accuracy as the mean of the last three evaluations",
        ["way", "seed", "attempts", "generated / trained", "all right", "all wrong", "surplus", "step s", "accuracy"],
        [
            (
                row["way"],
                row["seed"],
                *(
                    f"{mean(row['figures'][name]):.2f}" if WAYS[row["way"]] else ""
                    for name in (
                        "attempts",
                        "generated_per_trained",
                        "dropped_all_right",
                        "dropped_all_wrong",
                        "surplus",
                    )
                ),
                f"{row['step_time']['median']:.2f}",
                f"{mean(row['accuracy'][-3:]):.3f}",
            )
            for row in results["rows"]
        ],
    )
    common.save("dynamic_sampling", asdict(settings), torch.device("cpu"), results, draw(results), settings.output_dir)


if __name__ == "__main__":
    main()
