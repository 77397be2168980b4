"""Evaluate a model on any number of test sets, or compare two models that were evaluated.

    clipo evaluate --model runs/track1_gsm8k --datasets gsm8k=data/gsm8k.parquet --output_dir evals/clipo
    clipo evaluate --config configs/eval/track1.yaml --model runs/track1_gsm8k --output_dir evals/clipo
    clipo evaluate --compare evals/grpo evals/clipo

A killed evaluation goes on where it was when the same command is given again. Every field of [`EvaluationArguments`]
can stand in the YAML file or on the command line, which has the last word.
"""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table as RichTable
from rich.text import Text
from transformers.utils import logging

from reward_funcs import check_golds, get_reward_func
from reward_funcs.completions import last_boxed
from reward_funcs.errors import UsageError
from reward_funcs.multiple_choice import options_of

from ..head import ContrastiveHead
from ..model_card import add_evaluation, check_card
from ..saved_policy import tokenize_prompt
from .command_line import argument_errors, check_evaluation, unreadable
from .data import check_chat_template, load_prompts
from .evaluation_agreement import look_closer
from .evaluation_records import (
    Record,
    append_records,
    describe_dataset,
    describe_weights,
    differing,
    drop_unfinished_line,
    read_records,
    read_settings,
    records_path,
    settle,
    write_json,
    write_text,
)
from .evaluation_scores import answer_classes, majority_answers
from .evaluation_tables import (
    Table,
    card_entries,
    compare,
    comparison_tables,
    correct_samples,
    result_tables,
    summarise,
)
from .parsing import parse
from .reward_call import call_reward
from .rewards import COMPARE_GOLDS
from .sampling import SAMPLERS, Completion, Decoding, completion_seed


logger = logging.get_logger(__name__)

# What a resumed run may not change. The batch size and the number of GPUs are no part of the result.
FIXED_SETTINGS = (
    "model split instruction max_samples reward_func num_samples temperature top_p max_completion_length seed backend dtype chat_template_kwargs"
).split()


@dataclass
class EvaluationArguments:
    """
    What to evaluate, and how.

    Parameters:
        model (`str`):
            Local folder or name on the Hub: a model, or a PEFT adapter.
        datasets (`list[str]`):
            Test sets, each a local file or folder or a name on the Hub, as `PATH` or `NAME=PATH`. The names in
            `clipo_trl.cli.evaluation_tables.TRACKS` put a set into the paper's tables.
        output_dir (`str`):
            Folder for settings, records, results and tables. With `compare`, where to write the comparison, if
            anywhere.
        compare (`list[str]`, *optional*):
            Folders of two finished evaluations to compare, instead of evaluating.
        split (`str`, defaults to `"test"`):
            Split of the test sets.
        instruction (`str`, *optional*):
            Line to end each prompt with, unless the prompt has it already.
        max_samples (`int`, *optional*):
            Only the first questions of each set. Default: all.
        reward_func (`str`, defaults to `"verifiable"`):
            What decides whether a completion is right (a reward above 0): a name known to `reward_funcs`, or a dotted
            path, found from the working directory.
        num_samples (`int`, defaults to `1`):
            Samples a question, K.
        temperature (`float`, defaults to `0.0`), top_p (`float`, defaults to `1.0`), max_completion_length (`int`,
            defaults to `2048`): How completions are sampled, see [`~clipo_trl.cli.sampling.Decoding`]. Temperature 0
            is greedy.
        seed (`int`, defaults to `0`):
            Each completion's own seed is made from it, the question and the number of the sample.
        backend (`str`, defaults to `"transformers"`):
            `"transformers"` or `"vllm"`.
        dtype (`str`, defaults to `"auto"`):
            Of the weights: `"bfloat16"`, `"float16"`, `"float32"`, or `"auto"` for that of the checkpoint.
        batch_size (`int`, *optional*):
            Completions generated at a time; no more than these are lost when a run is killed. Default: 32, with vLLM
            2048.
        tensor_parallel_size (`int`, defaults to `1`):
            GPUs to split the model over. Read by vLLM only.
        agreement (`bool`, defaults to `False`):
            Embed the completions by the head that was saved with the model: how well the right ones agree, and which
            are suspicious. Needs several samples a question.
        step_reward (`str`, *optional*):
            A checker of steps, by name or dotted path: a right completion is sound if its reward is above 0, else
            lucky.
        chat_template_kwargs (`dict`, *optional*):
            What the chat template takes besides the messages, as in training (`{"enable_thinking": false}`).
        model_card (`bool`, defaults to `False`):
            Write the results into the model card of a local model.
    """

    model: str | None = field(default=None, metadata={"help": "Local folder or name on the Hub; a PEFT adapter too."})
    datasets: list[str] | None = field(default=None, metadata={"help": "Test sets, each PATH or NAME=PATH."})
    output_dir: str | None = field(default=None, metadata={"help": "Folder for records, results and tables."})
    compare: list[str] | None = field(default=None, metadata={"help": "Two folders of evaluations to compare."})
    split: str = field(default="test", metadata={"help": "Split of the test sets."})
    instruction: str | None = field(
        default=None, metadata={"help": "Line to end each prompt with, unless the prompt has it already."}
    )
    max_samples: int | None = field(default=None, metadata={"help": "Only the first questions of each set."})
    reward_func: str = field(default="verifiable", metadata={"help": "Name known to `reward_funcs`, or dotted path."})
    num_samples: int = field(default=1, metadata={"help": "Samples a question."})
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy."})
    top_p: float = field(default=1.0, metadata={"help": "Share of the probability mass to sample from."})
    max_completion_length: int = field(default=2048, metadata={"help": "Tokens."})
    seed: int = field(default=0, metadata={"help": "Seed of the sampling."})
    backend: str = field(default="transformers", metadata={"help": "How to generate.", "choices": list(SAMPLERS)})
    dtype: str = field(default="auto", metadata={"help": "Of the weights; 'auto' for that of the checkpoint."})
    batch_size: int | None = field(default=None, metadata={"help": "Completions generated at a time."})
    tensor_parallel_size: int = field(default=1, metadata={"help": "GPUs to split the model over, with vLLM."})
    agreement: bool = field(
        default=False, metadata={"help": "Embed completions by the model's head: agreement, and share of suspicious."}
    )
    step_reward: str | None = field(
        default=None, metadata={"help": "Name or dotted path of a reward that checks the steps: lucky share, AUROC."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None, metadata={"help": "What the chat template takes besides the messages, as in training: JSON."}
    )
    model_card: bool = field(default=False, metadata={"help": "Write the results into a local model's card."})

    def __post_init__(self):
        if isinstance(self.chat_template_kwargs, str):
            try:
                self.chat_template_kwargs = json.loads(self.chat_template_kwargs)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f'`chat_template_kwargs` is {error.doc!r}, but must be JSON: {{"enable_thinking": false}}.'
                ) from error
        if self.compare is not None:
            if len(self.compare) != 2:
                raise ValueError(f"`compare` is {self.compare}, but needs two folders of evaluations.")
            return
        if self.num_samples < 1:
            raise ValueError(f"`num_samples` is {self.num_samples}, but must be 1 or more.")
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"`batch_size` is {self.batch_size}, but must be 1 or more.")
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(
                f"`num_samples` is {self.num_samples}, but at `temperature` 0 all samples of a question would be the same. "
                "Set a temperature (paper: 0.6), or `num_samples` to 1."
            )
        if self.agreement and self.num_samples < 2:
            raise ValueError(
                f"`agreement` is True, but `num_samples` is {self.num_samples}: a completion agrees with others of its question. "
                "Set `num_samples` to 2 or more (8, say), with a `temperature`."
            )


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the evaluation, or the comparison; `argv` defaults to the command line. Returns the results."""
    ##############################################################
    # Parse: YAML files (--config), the command line over them  #
    ##############################################################
    check_evaluation(argv)
    with argument_errors():
        classes: Any = (EvaluationArguments,)  # transformers' name for such a type means nothing to a checker
        (args,) = parse(classes, argv)
        decoding = Decoding(args.temperature, args.top_p, args.max_completion_length)
    args.output_dir = os.path.expanduser(args.output_dir) if args.output_dir else None
    if args.compare is not None:
        args.compare = [os.path.expanduser(folder) for folder in args.compare]
        return compare_folders(args)
    args.model = os.path.expanduser(args.model)
    if args.agreement:
        with argument_errors(), unreadable("model", args.model):
            ContrastiveHead.from_pretrained(args.model)  # before anything is sampled
    if args.model_card:
        with argument_errors():
            check_card(args.model)
    folder = Path(args.output_dir)

    #########################################
    # Data: columns `prompt` and `solution` #
    #########################################
    paths = name_datasets(args.datasets)
    datasets = load_test_sets(paths, args)

    ##########
    # Reward #
    ##########
    reward_func = get_reward_func(args.reward_func, max_completion_length=args.max_completion_length)
    if reward_func in COMPARE_GOLDS:
        for dataset in datasets.values():
            check_golds(dataset, max_unparsable_share=1.0)  # lists them; the records show what became of their answers

    ###################################################
    # Settings: new, or those of the run to resume    #
    ###################################################
    settings = {name: getattr(args, name) for name in FIXED_SETTINGS}
    settings["weights"] = describe_weights(args.model)
    settings["datasets"] = {name: describe_dataset(paths[name], dataset) for name, dataset in datasets.items()}
    settle(folder, settings)

    ###########################################
    # Sample and score what is not there yet  #
    ###########################################
    sample_missing(datasets, reward_func, decoding, args)

    ##################
    # Report: tables #
    ##################
    results = report_finished(folder, datasets, args)
    if args.model_card:
        add_evaluation(args.model, *card_entries(results))
    return results


def load_test_sets(paths: dict[str, str], args: EvaluationArguments) -> dict[str, Dataset]:
    """The test sets by name; a [`UsageError`] for one that cannot be read."""
    options = {name: getattr(args, name) for name in ("split", "instruction", "max_samples")}
    datasets = {}
    for name, path in paths.items():
        with unreadable("datasets", path):
            datasets[name] = load_prompts(path, **options)
    return datasets


def report_finished(folder: Path, datasets: dict[str, Dataset], args: EvaluationArguments) -> dict[str, Any]:
    """Results of the test sets that are finished, shown and written; also where a closer look fails."""
    sets = {name: finished_records(folder, name) for name in read_settings(folder)["datasets"]}
    finished = {name: records for name, records in sets.items() if records}
    results = summarise(str(args.model), finished)
    try:
        if args.agreement or args.step_reward is not None:
            for name, told in look_closer(finished, datasets, args).items():
                results["sets"][name]["agreement"] = told
    finally:
        report(results, result_tables(results), folder, "results")
    return results


def sample_missing(
    datasets: dict[str, Dataset], reward_func: Callable, decoding: Decoding, args: EvaluationArguments
) -> None:
    """Complete the records of each test set; a model is loaded only if there is something to do."""
    folder = Path(str(args.output_dir))
    for name in datasets:
        drop_unfinished_line(records_path(folder, name))
    missing = {
        name: len(dataset) - len(read_records(records_path(folder, name))) for name, dataset in datasets.items()
    }
    for name, dataset in datasets.items():
        if 0 < missing[name] < len(dataset):
            logger.warning(
                f"{name}: {len(dataset) - missing[name]} of {len(dataset)} problems were sampled before, and are kept."
            )
    if any(missing.values()):
        options = {"tensor_parallel_size": args.tensor_parallel_size} if args.backend == "vllm" else {}
        with unreadable("model", args.model):
            sampler = SAMPLERS[args.backend](str(args.model), decoding, dtype=args.dtype, **options)
        with progress_bars() as progress:
            for name, dataset in datasets.items():
                evaluate_set(name, dataset, sampler, reward_func, args, progress)


def name_datasets(entries: list[str]) -> dict[str, str]:
    """`NAME=PATH` or `PATH` (whose name is the file's) -> path by name."""
    paths: dict[str, str] = {}
    for entry in entries:
        name, _, path = entry.rpartition("=")
        name = name or Path(path).stem
        if name in paths or not re.fullmatch(r"[\w.-]+", name):
            problem = "is there twice" if name in paths else "must be of letters, digits, '_', '-' and '.'"
            raise UsageError(f"`datasets`: the name '{name}' {problem}. Write NAME=PATH to choose another.")
        paths[name] = path
    return paths


def progress_bars() -> Progress:
    return Progress(
        TextColumn("[bold cyan]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[accuracy]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def evaluate_set(
    name: str, dataset: Dataset, sampler, reward_func: Callable, args: EvaluationArguments, progress: Progress
) -> None:
    """
    Sample and score the questions of one test set that have no record yet.

    Questions go longest first, in groups that depend on the test set and the batch size alone: a group that was cut
    short is made again as it was, so that not even the padding differs, and what is missing of it is added.
    """
    assert args.output_dir is not None  # the command line was checked
    path = records_path(args.output_dir, name)
    done = read_records(path)
    task = progress.add_task(name, total=len(dataset), completed=len(done), accuracy="")
    check_chat_template(sampler.tokenizer, dataset)
    options: Any = args.chat_template_kwargs or {}
    prompt_ids = [tokenize_prompt(sampler.tokenizer, prompt, **options) for prompt in dataset["prompt"]]
    order = sorted(range(len(dataset)), key=lambda question: (-len(prompt_ids[question]), question))
    batch_size = args.batch_size or sampler.rows_at_a_time
    n_questions = max(1, batch_size // args.num_samples)
    for start in range(0, len(order), n_questions):
        group = order[start : start + n_questions]
        if done.keys() >= set(group):
            continue
        requests = [
            (prompt_ids[question], completion_seed(args.seed, question, sample, prompt_ids[question]))
            for question in group
            for sample in range(args.num_samples)
        ]
        completions: list[Completion] = []
        for first in range(0, len(requests), batch_size):
            completions += sampler.sample(*map(list, zip(*requests[first : first + batch_size], strict=True)))
        records = score(dataset.select(group), group, completions, sampler.tokenizer, reward_func)
        records = [record for record in records if record["question"] not in done]
        append_records(path, records)
        done |= {record["question"]: record for record in records}
        right = correct_samples(list(done.values())).mean()
        progress.update(task, completed=len(done), accuracy=f"{right:.1%} right")


def score(
    rows: Dataset, questions: list[int], completions: list[Completion], tokenizer, reward_func: Callable
) -> list[Record]:
    """Records of a group of questions; `completions` are K for the first row, K for the second, and so on."""
    n_samples = len(completions) // len(questions)
    texts = tokenizer.batch_decode([completion.ids for completion in completions], skip_special_tokens=True)
    rewards = call_reward(
        reward_func,
        rows,
        texts,
        log_metric=lambda name, value: logger.warning(f"{name}: {value:g}") if value else None,
        completion_ids=[completion.ids for completion in completions],
    )
    records = []
    for row, question in enumerate(questions):
        samples = slice(row * n_samples, (row + 1) * n_samples)
        prompt, solution = rows[row]["prompt"], rows[row]["solution"]
        answers = [last_boxed(text) for text in texts[samples]]
        classes = answer_classes(answers, options_of(prompt))
        records.append(
            {
                "question": question,
                "prompt": prompt,
                "solution": solution,
                "completions": texts[samples],
                "rewards": rewards[samples],
                "answers": answers,
                "classes": classes,
                "majority_answers": [answers[classes.index(label)] for label in majority_answers(classes)],
                "tokens": [len(completion.ids) for completion in completions[samples]],
                "truncated": [completion.truncated for completion in completions[samples]],
            }
        )
    return records


def finished_records(folder: str | Path, name: str) -> list[Record] | None:
    """Records of a test set in the order of its questions, or `None` if it is not finished."""
    records = read_records(records_path(folder, name))
    wanted = read_settings(folder)["datasets"][name]["questions"]
    if len(records) < wanted:
        logger.warning(f"'{folder}': {name} has {len(records)} of {wanted} questions and is left out. Resume it.")
        return None
    return list(records.values())


def compare_folders(args: EvaluationArguments) -> dict[str, Any]:
    """Compare two evaluations, A and B, on the test sets that both have finished."""
    assert args.compare is not None
    folders = (args.compare[0], args.compare[1])
    settings = [read_settings(folder) for folder in folders]
    sets: dict[str, tuple[list[Record], list[Record]]] = {}
    for name in settings[0]["datasets"]:
        if name in settings[1]["datasets"]:
            if settings[0]["datasets"][name]["sha256"] != settings[1]["datasets"][name]["sha256"]:
                raise UsageError(
                    f"The questions of {name} in '{folders[0]}' are others than in '{folders[1]}': a paired test needs "
                    "the same prompts and solutions. Evaluate one of them again."
                )
            records_a, records_b = (finished_records(folder, name) for folder in folders)
            if records_a and records_b:
                sets[name] = (records_a, records_b)
    if not sets:
        raise UsageError(f"'{folders[0]}' and '{folders[1]}' have no test set in common that both finished.")
    for name, (first, second) in differing(settings[0], settings[1]).items():
        if name.partition(".")[0] not in ("model", "weights", "datasets"):
            logger.warning(f"The two were evaluated with another `{name}`: {first!r} and {second!r}.")
    models = (settings[0]["model"], settings[1]["model"])
    results = compare(models if models[0] != models[1] else folders, sets)
    report(results, comparison_tables(results), Path(args.output_dir) if args.output_dir else None, "comparison")
    return results


def report(results: dict[str, Any], tables: list[Table], folder: Path | None, name: str) -> None:
    """Show the tables (turned on their side: terminals are narrow), and write them as Markdown beside the results as
    JSON."""
    console = Console()
    for table in tables:
        if folder is not None and len(table.rows) > 4:
            console.print(f"{table.title}: in {folder / name}.md")
            continue
        header, *rows = zip(table.header, *table.rows, strict=True)
        shown = RichTable(title=table.title, box=box.ROUNDED)
        for label in header:
            shown.add_column(Text(label))
        for row in rows:
            shown.add_row(*map(Text, row))
        console.print(shown)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{name}.json", results)
        write_text(folder / f"{name}.md", "\n".join(table.to_markdown() for table in tables))
