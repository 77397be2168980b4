"""Train a model with CLIPO.

    clipo train --config configs/lora_single_gpu.yaml --learning_rate 5e-6 --contrastive_reward_weight 0.1
    clipo train --config configs/lora_single_gpu.yaml configs/ablations/temperature_0.1.yaml
    accelerate launch --config_file configs/accelerate/zero2.yaml \\
        -m clipo_trl.cli train --config configs/track1_gsm8k.yaml

Every field of [`ScriptArguments`] (below), [`CLIPOConfig`] (with all of TRL's `GRPOConfig` and transformers'
`TrainingArguments`) and TRL's `ModelConfig` (dtype, attention, PEFT, quantization) can stand in a YAML file or on the
command line, which has the last word. Of several files the later ones win, field by field.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from rich.console import Console
from rich.text import Text
from transformers import AutoTokenizer
from trl import DatasetMixtureConfig, GRPOTrainer, ModelConfig, get_peft_config, get_quantization_config

from reward_funcs.errors import UsageError

from ..algorithms import find_algorithm
from ..callbacks import SuspiciousRolloutsCallback
from ..checkpoint import check_resume
from ..health import HealthCallback
from ..hub import HubError
from ..log_file import LOG_NAME, LogFileCallback
from ..parent_shapes import CLIPOArguments
from ..report.callback import ReportCallback
from ..report.page import write_report
from .command_line import argument_errors, check_training, read_algorithm, unreadable
from .console import show_table
from .data import check_chat_template, drop_long_prompts, load_named_prompts, load_prompts
from .mixture import load_mixture
from .output_folder import check_output_folder, remove_report
from .parsing import parse
from .rewards import load_reward_funcs
from .run_plan import describe_run, earlier_checkpoint, plan_run, start_table
from .stopping import StopCallback, describe_stop


logger = get_logger(__name__)

CONSOLES = ("table", "full")


@dataclass
class ScriptArguments(DatasetMixtureConfig):
    """
    What to train on and what to reward; everything else is in `CLIPOConfig` and `ModelConfig`.

    Parameters:
        dataset_name (`str`):
            Local file or folder, or name on the Hub; `clipo_trl.cli.data` lists the layouts that are understood. Or:
        datasets (`list[DatasetConfig]`), test_split_size (`float` or `int`, *optional*):
            A mixture in place of `dataset_name`, and the share (or number) of its rows that is held out to evaluate
            on, as in TRL's scripts. Each dataset may have a layout of its own. In a YAML file only.
        streaming (`bool`, *optional*, defaults to `False`):
            TRL's, and refused: the rewards read every solution before the training starts.
        dataset_config (`str`, *optional*):
            Configuration of a dataset on the Hub (`main` for `openai/gsm8k`).
        dataset_train_split, dataset_test_split (`str`, *optional*, default to `"train"` and `"test"`):
            Splits to train on and to evaluate on.
        eval_datasets (`list[str]`, *optional*):
            Test sets to evaluate on in place of the test split of `dataset_name`, each a local file or folder or a
            name on the Hub, as `PATH` or `NAME=PATH`. Metrics are called `eval_NAME_...`. Needs an `eval_strategy`.
        instruction (`str`, *optional*):
            Line to end each prompt with, unless the prompt has it already.
        max_prompt_length (`int`, *optional*):
            Leave out training prompts of more tokens than this. Default: keep all.
        max_train_samples, max_eval_samples (`int`, *optional*):
            Only the first rows of the training set and of each test set. Default: all.
        algorithm (`str`, *optional*):
            Base algorithm: `grpo`, `dr_grpo`, `gspo`, `dapo`, `gmpo`, `cispo`, `sapo` or `conspo`. It picks the
            trainer, and gives its published values to fields that are not set; fields that contradict it are refused
            (docs/algorithms.md). Default: GRPO's trainer, with what the fields make of it.
        contrastive (`bool`, *optional*, defaults to `True`):
            Train with CLIPO. If not, the plain algorithm is trained by the same file, and CLIPO's fields have no
            effect on it, but for those that say which rollouts are correct, which ConSPO reads.
        reward_funcs (`list[str]`, *optional*, defaults to `["verifiable"]`):
            Reward functions: names known to `reward_funcs`, or dotted paths to functions of yours, found from the
            working directory.
        suspicious_rollouts (`int`, *optional*, defaults to `0`):
            List so many of the correct rollouts farthest from their group at each log. Needs `log_completions`.
        health_check (`bool`, *optional*, defaults to `True`):
            Warn when the logs show that nothing can be learned; see docs/metrics.md.
        report (`bool`, *optional*, defaults to `True`):
            Keep what a report needs in `output_dir/report/`, and write the page `output_dir/report.html` at the end;
            see docs/report.md.
        dry_run (`bool`, *optional*, defaults to `False`):
            Check configuration, data and gold answers, show what would run, and stop: nothing is trained or written.
        console (`str`, *optional*, defaults to `"table"`):
            What a training prints: a short line a log (`"table"`), or every metric and transformers' bar (`"full"`).
            All metrics are in `OUTPUT_DIR/log.jsonl` either way.
        max_unparsable_share (`float`, *optional*, defaults to `0.01`):
            Largest share of solutions, from 0 to 1, that may be unreadable for the rewards `verifiable`,
            `math_accuracy` and `right_with_sound_equations`; a larger one stops the run before it starts.
    """

    dataset_name: str | None = field(
        default=None, metadata={"help": "Dataset to train on: local file or folder, or name on the Hub."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a dataset on the Hub."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split to evaluate on."})
    eval_datasets: list[str] | None = field(
        default=None, metadata={"help": "Test sets, each PATH or NAME=PATH. Default: the test split of dataset_name."}
    )
    instruction: str | None = field(
        default=None, metadata={"help": "Line to end each prompt with, unless the prompt has it already."}
    )
    max_prompt_length: int | None = field(
        default=None, metadata={"help": "Leave out training prompts of more tokens than this."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Only the first rows of the training set."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Only the first rows of each test set."})
    algorithm: str | None = field(
        default=None,
        metadata={
            "help": "Base algorithm, which picks the trainer. Default: GRPO's, with what the fields make of it."
        },
    )
    contrastive: bool = field(
        default=True, metadata={"help": "Train with CLIPO. If not, CLIPO's fields have no effect on the policy."}
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["verifiable"],
        metadata={"help": "Reward functions: names known to `reward_funcs`, or dotted paths."},
    )
    suspicious_rollouts: int = field(
        default=0,
        metadata={
            "help": "List so many of the correct rollouts farthest from their group at each log. Needs log_completions."
        },
    )
    health_check: bool = field(default=True, metadata={"help": "Warn when the logs show that nothing can be learned."})
    report: bool = field(
        default=True, metadata={"help": "Write report.html at the end, and keep what it takes in report/."}
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Check configuration, data and gold answers, show what would run, and stop."},
    )
    console: str = field(
        default="table",
        metadata={
            "help": "What a training prints: a short line a log (table), or every metric (full). OUTPUT_DIR/log.jsonl has all.",
            "choices": CONSOLES,
        },
    )
    max_unparsable_share: float = field(
        default=0.01, metadata={"help": "Largest share of solutions that the rewards may be unable to read."}
    )

    @property
    def dataset_names(self) -> list[str]:
        """The datasets to train on: those of the mixture, or the one that `dataset_name` names."""
        return [entry.path for entry in self.datasets] or [self.dataset_name or ""]


def main(argv: list[str] | None = None) -> GRPOTrainer | None:
    """Run the whole training; `argv` defaults to the command line. Returns the trainer, trained; `None` after a dry
    run."""
    check_training(argv)
    script_args, training_args, model_args = parse_arguments(argv)
    with argument_errors():
        check_resume(training_args.resume_from_checkpoint, str(training_args.output_dir))
    check_output_folder(str(training_args.output_dir), bool(model_args.use_peft), script_args.contrastive)
    earlier = earlier_checkpoint(training_args)
    train_dataset, eval_datasets = load_data(script_args, training_args, model_args)
    plan = plan_run(training_args, len(train_dataset))
    if script_args.dry_run:
        from .dry_run import dry_run

        dry_run(script_args, training_args, model_args, (train_dataset, eval_datasets), plan)
        return None
    reward_funcs = load_reward_funcs(script_args, training_args, train_dataset)
    with hub_faults(), unreadable("model_name_or_path", model_args.model_name_or_path):
        trainer = find_algorithm(script_args.algorithm).trainer_class(script_args.contrastive)(
            model=model_args.model_name_or_path,
            reward_funcs=reward_funcs,
            args=training_args,
            train_dataset=train_dataset,
            eval_dataset=eval_datasets,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    check_chat_template(trainer.processing_class, train_dataset)
    name_dataset(trainer, script_args)
    trainer.add_callback(LogFileCallback())
    if script_args.console == "table":
        show_table(trainer)
    if script_args.health_check and script_args.contrastive:
        trainer.add_callback(HealthCallback())
    if script_args.suspicious_rollouts:
        trainer.add_callback(SuspiciousRolloutsCallback(trainer, script_args.suspicious_rollouts))
    sections: list[dict[str, str]] = []
    if trainer.accelerator.is_main_process:
        sections = describe_run(trainer, plan, script_args, model_args, earlier)
        Console().print(start_table(trainer, sections))
    if script_args.report:
        description = {subject: text for section in sections for subject, text in section.items()}
        trainer.add_callback(ReportCallback(trainer, description))
    else:
        remove_report(trainer)
    train_until_stopped(trainer, argv)
    with hub_faults():
        save(trainer, script_args)
    if trainer.accelerator.is_main_process:
        Console(soft_wrap=True).print(Text(describe_saved(trainer)))
    return trainer


def train_until_stopped(trainer: Any, argv: list[str] | None) -> None:
    """Train; on a signal, save a checkpoint, tell how to go on, and exit as the signal's default action would."""
    stop = StopCallback(trainer.accelerator)
    trainer.add_callback(stop)
    with stop:
        trainer.train(resume_from_checkpoint=trainer.args.resume_from_checkpoint)
    if stop.stopped:
        if trainer.accelerator.is_main_process:
            Console(stderr=True, soft_wrap=True).print(Text(describe_stop(stop, trainer, argv)))
        trainer.end()
        sys.exit(128 + stop.stopped)


@contextmanager
def hub_faults() -> Iterator[None]:
    """A fault of the Hub in this block is told in its sentence, without a traceback: a [`UsageError`]."""
    try:
        yield
    except HubError as error:
        raise UsageError(str(error)) from error


def name_dataset(trainer: Any, script_args: ScriptArguments) -> None:
    """Have the cards that are written on the way name the training data, too."""
    trainer.dataset_label = ", ".join(
        f"`{Path(name).name}` (a local file)" if Path(name).expanduser().exists() else name
        for name in script_args.dataset_names
    )


def parse_arguments(argv: list[str] | None = None) -> tuple[ScriptArguments, CLIPOArguments, ModelConfig]:
    """Read the files given with `--config` and the command line over them; a [`UsageError`] for what they must not
    hold."""
    with argument_errors():
        name, argv, fields_given = read_algorithm(argv)
        algorithm = find_algorithm(name)
        classes: Any = (ScriptArguments, algorithm.config_class(), ModelConfig)
        script_args, training_args, model_args = parse(classes, argv)
        algorithm.check(str(name), training_args, fields_given)
    if script_args.suspicious_rollouts and not script_args.contrastive:
        raise UsageError(
            f"`suspicious_rollouts` is {script_args.suspicious_rollouts}, but `contrastive` is off, so nothing tells which "
            "rollouts are suspicious. Set `suspicious_rollouts` to 0."
        )
    if script_args.suspicious_rollouts and not training_args.log_completions:
        raise UsageError(
            f"`suspicious_rollouts` is {script_args.suspicious_rollouts}, but `log_completions` is off, so there is no table to list "
            "them in. Add `log_completions: true`, or set `suspicious_rollouts` to 0."
        )
    resume: Any = training_args.resume_from_checkpoint  # True from YAML is a bool, from the command line a word
    training_args.resume_from_checkpoint = {"true": True, "false": None}.get(str(resume).lower(), resume)
    paths = (model_args, "model_name_or_path"), (script_args, "dataset_name"), (training_args, "contrastive_head_path")
    for args, field_name in (*paths, (training_args, "resume_from_checkpoint")):
        if isinstance(given := getattr(args, field_name, None), str):
            setattr(args, field_name, os.path.expanduser(given))
    model_init_kwargs: dict[str, Any] = {
        "revision": model_args.model_revision,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
    }
    own: Any = training_args.model_init_kwargs or {}  # `__post_init__` has read them, if they were JSON
    training_args.model_init_kwargs = model_init_kwargs | own
    return script_args, training_args, model_args


def load_data(script_args: ScriptArguments, training_args: CLIPOArguments, model_args: ModelConfig):
    """Training set, and test sets if there is a schedule for them: columns `prompt` and `solution`."""
    assert model_args.model_name_or_path is not None  # it was checked
    evaluates = training_args.eval_strategy != "no"
    with training_args.main_process_first(desc="reading the datasets"):
        with unreadable("dataset_name", ", ".join(script_args.dataset_names)):
            train_dataset, held_out = load_training_set(script_args, training_args.seed)
        if evaluates and script_args.datasets and held_out is None and script_args.eval_datasets is None:
            raise UsageError(
                f"`eval_strategy` is '{training_args.eval_strategy}', but the mixture `datasets` has no test set. Name test "
                "sets with `eval_datasets`, or hold rows out with `test_split_size`."
            )
        if script_args.max_prompt_length is not None:
            tokenizer = AutoTokenizer.from_pretrained(
                model_args.model_name_or_path,
                revision=model_args.model_revision,
                trust_remote_code=training_args.trust_remote_code,
            )
            options: Any = training_args.chat_template_kwargs or {}
            train_dataset = drop_long_prompts(train_dataset, tokenizer, script_args.max_prompt_length, **options)
        with unreadable("eval_datasets", script_args.eval_datasets):
            return train_dataset, load_eval_datasets(script_args, held_out) if evaluates else None


def load_training_set(script_args: ScriptArguments, seed: int) -> tuple[Dataset, Dataset | None]:
    """What there is to train on, and what `test_split_size` holds out of a mixture."""
    options: dict[str, Any] = {"instruction": script_args.instruction, "max_samples": script_args.max_train_samples}
    if script_args.datasets:
        return load_mixture(script_args, seed=seed, **options)
    [name] = script_args.dataset_names
    return load_prompts(name, script_args.dataset_config, script_args.dataset_train_split, **options), None


def save(trainer: GRPOTrainer, script_args: ScriptArguments) -> None:
    """The model, the head beside it if there is one, what was logged, the model card; and all of it on the Hub if that
    is asked for."""
    args: Any = trainer.args
    names = script_args.dataset_names
    trainer.save_model(args.output_dir)
    trainer.save_state()
    if script_args.report:
        report(trainer)
    card: dict[str, Any] = {
        "model_name": Path(args.hub_model_id or args.output_dir).name,
        "dataset_name": None if script_args.datasets or Path(names[0]).exists() else names[0],
    }
    trainer.create_model_card(**card)
    if args.push_to_hub:
        trainer.push_to_hub(**card)


def report(trainer: GRPOTrainer) -> None:
    """Write the page that tells of the training. It is trained and saved: a page that fails is a warning."""
    if not trainer.accelerator.is_main_process:
        return
    output_dir = str(trainer.args.output_dir)
    try:
        Console().print(f"Report: {write_report(output_dir)}", soft_wrap=True, highlight=False, markup=False)
    except Exception as error:
        logger.warning(
            f"The report of this training was not written ({type(error).__name__}: {error}). The model is saved. To try again: "
            f"clipo report {output_dir}"
        )


def describe_saved(trainer: Any) -> str:
    """A line: where the run's results are."""
    head = ", the head in contrastive_head/" if hasattr(trainer, "contrastive_head") else ""
    return f"Saved in {trainer.args.output_dir}: the model{head}, all that was logged in {LOG_NAME}."


def load_eval_datasets(script_args: ScriptArguments, held_out: Dataset | None = None) -> Dataset | dict[str, Dataset]:
    """Load the test sets that `eval_datasets` names, or what was held out of a mixture, or else the test split of
    `dataset_name`."""
    split = script_args.dataset_test_split
    options: dict[str, Any] = {"instruction": script_args.instruction, "max_samples": script_args.max_eval_samples}
    if script_args.eval_datasets is not None:
        return load_named_prompts(script_args.eval_datasets, split, **options)
    if held_out is not None:
        return held_out.select(range(min(script_args.max_eval_samples or len(held_out), len(held_out))))
    [name] = script_args.dataset_names
    if Path(name).is_file():
        raise UsageError(
            f"`dataset_name` ('{name}') is one file, without a test split. Name test sets with `eval_datasets`, or set "
            "`eval_strategy` to 'no'."
        )
    return load_prompts(name, script_args.dataset_config, split, **options)
