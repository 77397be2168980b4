"""Datasets -> the two columns that training reads: `prompt` and `solution`.

A dataset is a local file (parquet, json, jsonl, csv), a folder (saved by `datasets`, or holding data files) or a name
on the Hub. Its layout is told by its columns, the first that fits:

| layout | columns | `prompt` | `solution` |
|---|---|---|---|
| TRL | `prompt`, `solution` | as it is: messages, or plain text | as it is |
| verl (the CLIPO paper's files) | `prompt`, `reward_model` | as it is | `reward_model["ground_truth"]` |
| GSM8K | `question`, `answer` | one user message | what follows the last `####`, without thousands separators |
| MATH | `problem`, `solution` | one user message | the worked solution, which has the answer in its last `\\boxed{}` |

A worked solution is kept whole: the rewards read its last `\\boxed{}` themselves (as math-verify does), so that
nothing is parsed in two places, and what LaTeX means is decided where answers are compared. All other columns are
kept, since reward functions receive them (`data_source`, for one).
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset, DatasetDict, Value, load_dataset, load_from_disk
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from reward_funcs.errors import UsageError, WrongType

from ..saved_policy import tokenize_prompt
from .paths import FILE_BUILDERS, check_dataset


logger = logging.get_logger(__name__)

Prompt = str | list[dict[str, Any]]
CSV_OPTIONS = {"keep_default_na": False, "na_values": [""]}  # an answer may be "None", or "NA"


class Layout(NamedTuple):
    """Columns that a dataset must have, and how one of its rows becomes `(prompt, answer)`; answer None: there is
    none."""

    name: str
    columns: tuple[str, ...]
    example: str
    read_row: Callable[[dict[str, Any]], tuple[Prompt, Any]]


def _user_message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _read_gsm8k(row: dict[str, Any]) -> tuple[Prompt, str | None]:
    _, mark, answer = _text(row["answer"]).rpartition("####")
    return _user_message(row["question"]), re.sub(r"(?<=\d),(?=\d)", "", answer) if mark else None


def _read_math(row: dict[str, Any]) -> tuple[Prompt, str | None]:
    has_answer = re.search(r"\\f?boxed\b|\\fbox\b", _text(row["solution"]))
    return _user_message(row["problem"]), row["solution"] if has_answer else None


LAYOUTS = (
    Layout("TRL", ("prompt", "solution"), "prompt, solution", lambda row: (row["prompt"], row["solution"])),
    Layout(
        "verl",
        ("prompt", "reward_model"),
        "prompt (messages), reward_model.ground_truth",
        lambda row: (row["prompt"], (row["reward_model"] or {}).get("ground_truth")),
    ),
    Layout("GSM8K", ("question", "answer"), "question, answer with '####'", _read_gsm8k),
    Layout("MATH", ("problem", "solution"), "problem, solution with '\\boxed{}'", _read_math),
)


def load_prompts(
    name: str,
    config: str | None = None,
    split: str = "train",
    *,
    instruction: str | None = None,
    max_samples: int | None = None,
) -> Dataset:
    r"""
    Load a dataset and bring it to the columns `prompt` and `solution`: [`load_rows`], then [`to_prompt_solution`].

    Args:
        name (`str`): Local file or folder, or name on the Hub.
        config (`str`, *optional*): Configuration of a dataset on the Hub (`"main"` of `openai/gsm8k`).
        split (`str`, *optional*, defaults to `"train"`): Split, in the notation of `datasets` (`"train[:10%]"`). A
            single file is its only split, whatever its name.
        instruction (`str`, *optional*): Line to end each prompt with, see [`add_instruction`].
        max_samples (`int`, *optional*): Only the first rows of the dataset, at most this many. Default: all.

    Returns:
        `Dataset` with `prompt` (messages or text), `solution` (`str`) and the other columns of the dataset.
    """
    return to_prompt_solution(
        load_rows(name, config, split), instruction=instruction, max_samples=max_samples, name=f"{name} ({split})"
    )


def load_named_prompts(entries: list[str], split: str = "test", **options: Any) -> dict[str, Dataset]:
    """
    Load several datasets by name: each entry is `PATH` or `NAME=PATH`, where `PATH` is a local file or folder or a
    name on the Hub, and gives the name where there is none. `options` are those of [`load_prompts`].
    """
    datasets = {}
    for entry in entries:
        name, _, path = entry.rpartition("=")
        name = name or Path(path).stem
        if name in datasets:
            raise UsageError(f"Two datasets are called '{name}' in {entries}. Write NAME=PATH to tell them apart.")
        datasets[name] = load_prompts(path, split=split, **options)
    return datasets


def load_rows(name: str, config: str | None = None, split: str = "train") -> Dataset:
    """Load the rows of a local file or folder, or of a dataset on the Hub, as they are. Arguments:
    [`load_prompts`]."""
    check_dataset(name)
    path = Path(name).expanduser()
    if path.is_file():
        builder = FILE_BUILDERS[path.suffix.lower()]
        options = CSV_OPTIONS if builder == "csv" else {}
        return load_dataset(builder, data_files={re.split(r"\W", split)[0]: str(path)}, split=split, **options)
    if not any((path / marker).is_file() for marker in ("dataset_dict.json", "dataset_info.json")):
        try:
            return load_dataset(str(path) if path.is_dir() else name, name=config, split=split)
        except ValueError as error:  # of a split or a configuration that is not there
            raise UsageError(f"Dataset '{name}', split '{split}': {error}") from error
    saved = load_from_disk(path)
    if isinstance(saved, DatasetDict) and split not in saved:
        raise UsageError(f"Dataset folder '{name}' has no split '{split}'. Its splits: {list(saved)}.")
    return saved[split] if isinstance(saved, DatasetDict) else saved


def to_prompt_solution(
    dataset: Dataset, *, instruction: str | None = None, max_samples: int | None = None, name: str = "The dataset"
) -> Dataset:
    """
    Bring a dataset to the columns `prompt` and `solution`, which replace the columns that they are made from.

    Rows without an answer are left out with a warning that counts them: no reward could be given for their rollouts,
    and one gap in a large file is no reason to stop. If no row has an answer, the dataset was misread, and that is an
    error.

    Args:
        dataset (`Dataset`): Rows in one of the layouts of this module.
        instruction (`str`, *optional*): Line to end each prompt with, see [`add_instruction`].
        max_samples (`int`, *optional*): Only the first rows, at most this many. Default: all.
        name (`str`, *optional*): What to call the dataset in messages.

    Raises:
        UsageError: Empty dataset, unknown columns, an empty question, no row with an answer, `max_samples` below 1. A
            `ValueError`.
        WrongType: A prompt that is neither text nor messages, an answer that is neither text nor a number. A
            `TypeError`.
    """
    if max_samples is not None and max_samples < 1:
        raise UsageError(f"`max_samples` is {max_samples}, but must be 1 or more, or None for all rows.")
    if len(dataset) == 0:
        raise UsageError(f"{name} is empty. Check the path and the split.")
    layout = find_layout(dataset, name)
    if max_samples is not None:
        dataset = dataset.select(range(min(max_samples, len(dataset))))

    dataset = dataset.map(
        _convert_row,
        with_indices=True,
        fn_kwargs={
            "read_row": layout.read_row,
            "instruction": instruction,
            "name": name,
            "is_text": isinstance(layout.read_row(dataset[0])[0], str),
        },
        remove_columns=list(layout.columns),
        desc=f"Reading {name} as {layout.name}",
    )
    for column, feature in dataset.features.items():
        # `map` keeps a column of numbers as it was; CSV gives large strings, which no other file's would join.
        if feature == Value("large_string") or (column == "solution" and feature != Value("string")):
            dataset = dataset.cast_column(column, Value("string"))
    answered = [index for index, solution in enumerate(dataset["solution"]) if solution is not None]
    missing = len(dataset) - len(answered)
    if not answered:
        raise UsageError(
            f"{name}: none of {missing} rows has an answer. Expected {layout.name}'s: {layout.example}. A file of "
            "prompts and bare answers has the columns `prompt` and `solution`."
        )
    if missing:
        logger.warning(f"{name}: {missing} of {len(dataset)} rows have no answer and are left out.")
        dataset = dataset.select(answered)
    return dataset


def find_layout(dataset: Dataset, name: str = "The dataset") -> Layout:
    """Return the first layout whose columns `dataset` has; a `ValueError` lists both sides if there is none."""
    for layout in LAYOUTS:
        if set(layout.columns) <= set(dataset.column_names):
            if layout.name != "verl" or _holds_ground_truth(dataset.features["reward_model"]):
                return layout
    understood = "\n".join(f"  {layout.name}: {layout.example}" for layout in LAYOUTS)
    raise UsageError(
        f"{name} has the columns {dataset.column_names}, which are no known layout. Rename columns to one of:\n{understood}"
    )


def _holds_ground_truth(feature: Any) -> bool:
    return isinstance(feature, dict) and "ground_truth" in feature


def _convert_row(
    row: dict[str, Any], index: int, read_row: Callable, instruction: str | None, name: str, is_text: bool
) -> dict[str, Any]:
    prompt, answer = read_row(row)
    where = f"{name}, row {index}"
    if any(isinstance(text, str) and not text.strip() for text in _questions(prompt)):
        raise UsageError(f"{where}: the question is empty. Write one, or leave the row out.")
    readable = isinstance(prompt, str) or (bool(prompt) and all(_questions(prompt)))
    if not readable:
        raise WrongType(f"{where}: the prompt is {prompt!r}, but must be text, or messages with `role` and `content`.")
    if isinstance(prompt, str) != is_text:
        raise WrongType(f"{where}: some prompts are text and some are messages. Write all of them in one way.")
    if not (answer is None or isinstance(answer, (str, int, float))):
        raise WrongType(f"{where}: the answer is a {type(answer).__name__}, but must be text or a number.")
    solution = None if answer is None else str(answer).strip() or None
    return {"prompt": add_instruction(prompt, instruction) if instruction else prompt, "solution": solution}


def _questions(prompt: Any) -> list[Any]:
    """The text of a prompt, or the contents of its user messages, `None` in place of what is no message."""
    if not isinstance(prompt, list):
        return [prompt if isinstance(prompt, str) else None]
    messages = [message if isinstance(message, dict) and "role" in message else {"role": "user"} for message in prompt]
    return [message.get("content") for message in messages if message["role"] == "user"]


def add_instruction(prompt: Prompt, instruction: str) -> Prompt:
    r"""
    Return `prompt` with `instruction` as the last line of its last user message (of the text, if it is plain text).

    Nothing is added if the message holds the instruction already, or asks for a `\boxed{}` just as the instruction
    does: the paper's files word that line for each task, and two of them would contradict each other.
    """
    if isinstance(prompt, str):
        asks_already = instruction.strip() in prompt or ("\\boxed{}" in instruction and "\\boxed{}" in prompt)
        return prompt if asks_already else f"{prompt.rstrip()}\n{instruction.strip()}"
    last_user = max((index for index, message in enumerate(prompt) if message["role"] == "user"), default=None)
    if last_user is None or not isinstance(prompt[last_user]["content"], str):
        raise UsageError(f"The instruction {instruction!r} needs a user message with text to end, but got {prompt!r}.")
    message = {**prompt[last_user], "content": add_instruction(prompt[last_user]["content"], instruction)}
    return [*prompt[:last_user], message, *prompt[last_user + 1 :]]


def check_chat_template(tokenizer: Any, dataset: Dataset) -> None:
    """Raise a [`UsageError`] if prompts are messages and the model's tokenizer (or processor) has no template for
    them."""
    if not isinstance(dataset[0]["prompt"], str) and getattr(tokenizer, "chat_template", None) is None:
        raise UsageError(
            "The prompts are messages, but the model's tokenizer has no `chat_template`. Take an instruction-tuned model, or "
            "a dataset whose `prompt` is text."
        )


def drop_long_prompts(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_tokens: int, **template_options: Any
) -> Dataset:
    """
    Leave out prompts of more than `max_tokens` tokens, chat template included, with a warning that counts them. TRL
    does not shorten prompts, and a shortened question would have another answer. `template_options`: TRL's
    `chat_template_kwargs`.
    """
    check_chat_template(tokenizer, dataset)

    def fits(prompt: Prompt) -> bool:
        return len(tokenize_prompt(tokenizer, prompt, **template_options)) <= max_tokens

    kept = dataset.filter(fits, input_columns="prompt", desc=f"Leaving out prompts of more than {max_tokens} tokens")
    if len(kept) == 0:
        raise UsageError(f"No prompt has at most {max_tokens} tokens. Raise `max_prompt_length`.")
    if len(kept) < len(dataset):
        logger.warning(
            f"{len(dataset) - len(kept)} of {len(dataset)} prompts have more than {max_tokens} tokens: left out."
        )
    return kept
