"""What an evaluation leaves on disk while it runs, so that a killed one goes on where it was.

    settings.json    how completions were sampled and scored, and which questions; a resumed run must agree
    NAME.jsonl       of each test set, a line a question: prompt, solution, completions, rewards, answers, lengths

Lines are appended as they come. A kill in the middle of one leaves a line without an end, which the next run drops.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from reward_funcs.errors import MissingFile, UsageError


logger = logging.get_logger(__name__)

SETTINGS_NAME = "settings.json"
Record = dict[str, Any]  # of a question, a line of NAME.jsonl


def records_path(folder: str | Path, name: str) -> Path:
    return Path(folder) / f"{name}.jsonl"


def append_records(path: Path, records: list[Record]) -> None:
    """Append lines, and return when they are on the disk."""
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    with open(path, "ab") as file:
        file.write(lines.encode("utf-8", "replace"))  # a sampled token may be half a character
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> dict[int, Record]:
    """Records by question, in the order of the test set; none if there is no file. An unfinished last line is left
    out."""
    if not path.exists():
        return {}
    records = {}
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            record = json.loads(line)
            records[record["question"]] = record
        except (ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path}, line {number}, is no record of a question. Remove the line to evaluate that question again."
            ) from error
    return dict(sorted(records.items()))


def question_labels(records: list[Record]) -> list[int]:
    """Which question each record asks, a number for each distinct prompt: some of the paper's files have questions
    twice."""
    seen: dict[str, int] = {}
    prompts = (
        json.dumps(record["prompt"]) if "prompt" in record else f"no prompt {row}"
        for row, record in enumerate(records)
    )
    return [seen.setdefault(prompt, len(seen)) for prompt in prompts]


def drop_unfinished_line(path: Path) -> None:
    """Cut off what follows the last line's end, if a run was killed while it wrote."""
    if not path.exists():
        return
    content = path.read_bytes()
    end = content.rfind(b"\n") + 1
    if end < len(content):
        logger.warning(f"{path} ends in the middle of a line: that question is evaluated again.")
        os.truncate(path, end)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write all of a JSON file, or nothing."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write all of a text file, or nothing."""
    scratch = path.with_name(path.name + ".part")
    scratch.write_text(text, encoding="utf-8")
    os.replace(scratch, path)


def read_settings(folder: str | Path) -> dict[str, Any]:
    path = Path(folder) / SETTINGS_NAME
    if not path.is_file():
        raise MissingFile(f"'{folder}' has no {SETTINGS_NAME}: it is no folder of an evaluation. Correct the path.")
    return json.loads(path.read_text(encoding="utf-8"))


def settle(folder: Path, settings: dict[str, Any]) -> None:
    """
    Write the settings of a new evaluation, or check that those of a resumed one are the same. Test sets may be added.

    Args:
        folder (`Path`): Of the evaluation; made if it does not exist.
        settings (`dict`): JSON values; `settings["datasets"]` has an entry for each test set.

    Raises:
        UsageError: Settings differ (each difference is named), or there are records without settings.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted(path for path in folder.glob("*.jsonl") if path.stat().st_size)
    if not (folder / SETTINGS_NAME).is_file() and files:
        raise UsageError(
            f"'{folder}' has {', '.join(path.name for path in files)}, but no {SETTINGS_NAME}. Choose another `output_dir`."
        )
    if not files:  # a new one, or one that never came as far as its first record, which binds nobody
        write_json(folder / SETTINGS_NAME, settings)
        return
    before = read_settings(folder)
    shared = {name: before["datasets"][name] for name in settings["datasets"] if name in before["datasets"]}
    now = {**settings, "datasets": {name: settings["datasets"][name] for name in shared}}
    if differences := differing({**before, "datasets": shared}, now):
        listed = "\n".join(f"  {name}: was {old!r}, is {new!r}" for name, (old, new) in differences.items())
        raise UsageError(
            f"The evaluation in '{folder}' was made with other settings:\n{listed}\n"
            "Resume with the same settings, or choose another `output_dir`."
        )
    write_json(folder / SETTINGS_NAME, {**settings, "datasets": {**before["datasets"], **settings["datasets"]}})


def differing(first: dict[str, Any], second: dict[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Entries whose values differ, by dotted name, with both values; `None` where one side has no such entry."""
    found = {}
    for key in {**first, **second}:
        old, new = first.get(key), second.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found.update(differing(old, new, f"{prefix}{key}."))
        elif old != new:
            found[prefix + key] = (old, new)
    return found


def describe_dataset(path: str, dataset: Dataset) -> dict[str, Any]:
    """Settings of one test set: where it came from, and a digest of its prompts and solutions."""
    digest = hashlib.sha256()
    for prompt, solution in zip(dataset["prompt"], dataset["solution"], strict=True):
        digest.update(json.dumps([prompt, solution]).encode())
    return {"path": path, "questions": len(dataset), "sha256": digest.hexdigest()}


def describe_weights(model: str) -> str | None:
    """Digest of names, sizes and times of a local model's weights, to tell a model that was trained on; else
    `None`."""
    files = sorted(path for pattern in ("*.safetensors", "*.bin") for path in Path(model).glob(pattern))
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(stats).encode()).hexdigest() if stats else None
