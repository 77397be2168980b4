"""TRL's mixtures (`datasets:` of a configuration) -> one training set, and a test set held out of it.

Each dataset of a mixture is read in a layout of its own ([`data`]), so the paper's parquet files, GSM8K and MATH mix.
"""

from typing import Any

from datasets import Dataset, concatenate_datasets, load_dataset
from trl import DatasetMixtureConfig

from reward_funcs.errors import UsageError

from .data import load_rows, to_prompt_solution


def load_mixture(
    mixture: DatasetMixtureConfig, *, instruction: str | None = None, max_samples: int | None = None, seed: int = 42
) -> tuple[Dataset, Dataset | None]:
    """
    Load the datasets of a mixture, bring each to the columns `prompt` and `solution`, and put them one after another.

    Args:
        mixture (`DatasetMixtureConfig`): TRL's. An entry's `path` is a local file or folder, or a name on the Hub;
            with `data_files` or `data_dir`, whatever `datasets.load_dataset` understands. `fraction` is the entry's
            share of the mixture, which is as large as it can be without a row taken twice; the first rows are taken.
        instruction (`str`, *optional*): Line to end each prompt with, see [`data.add_instruction`].
        max_samples (`int`, *optional*): Only so many rows of the mixture, in the order of `seed`. Default: all.
        seed (`int`, *optional*, defaults to `42`): Of the rows that are held out.

    Returns:
        `tuple` of the training set and of what `test_split_size` holds out of it, `None` without it.

    Raises:
        UsageError: no rows, columns of which one has several types, some entries with a `fraction` and some without.
    """
    parts = [_load_entry(entry, instruction) for entry in mixture.datasets]
    names = [entry.path for entry in mixture.datasets]
    rows = _concatenate(_take_shares(parts, [entry.fraction for entry in mixture.datasets]), names)
    if max_samples is not None and max_samples < len(rows):
        rows = rows.shuffle(seed=seed).select(range(max_samples))  # of every dataset, not of the first alone
    held_out = mixture.test_split_size
    if held_out is None:
        return rows, None
    try:
        halves = rows.train_test_split(test_size=held_out, seed=seed)
    except ValueError as error:
        raise UsageError(f"`test_split_size` is {held_out!r}, of {len(rows)} rows: {error}") from error
    return halves["train"], halves["test"]


def _load_entry(entry: Any, instruction: str | None) -> Dataset:
    if entry.data_files is None and entry.data_dir is None:
        rows = load_rows(entry.path, entry.name, entry.split)
    else:
        files = {"data_dir": entry.data_dir, "data_files": entry.data_files}
        rows = load_dataset(entry.path, name=entry.name, split=entry.split, **files)
    if entry.columns is not None:
        if missing := set(entry.columns) - set(rows.column_names):
            raise UsageError(
                f"`columns` of the dataset '{entry.path}' names {sorted(missing)}, but it has {rows.column_names}. "
                "Correct the names."
            )
        rows = rows.select_columns(entry.columns)
    return to_prompt_solution(rows, instruction=instruction, name=f"{entry.path} ({entry.split})")


def _take_shares(parts: list[Dataset], shares: list[float | None]) -> list[Dataset]:
    """The first rows of each dataset, so many that they make up its share of the mixture."""
    given = [share for share in shares if share is not None]
    if not given:
        return parts
    if len(given) < len(parts) or min(given) < 0 or sum(given) == 0:
        raise UsageError(
            f"The `fraction`s of `datasets` are {shares}, but must be given for all of them or for none, as numbers of "
            "0 or more that are not all 0. Correct them."
        )
    size = min(len(part) * sum(given) / share for part, share in zip(parts, given, strict=True) if share)
    sizes = [round(size * share / sum(given)) for share in given]
    return [part.select(range(size)) for part, size in zip(parts, sizes, strict=True)]


def _concatenate(parts: list[Dataset], names: list[str]) -> Dataset:
    try:
        return concatenate_datasets(parts)
    except ValueError as error:
        columns: dict[str, dict[str, Any]] = {}
        for part, name in zip(parts, names, strict=True):
            for column, feature in part.features.items():
                columns.setdefault(column, {})[name] = feature
        differ = {name: kinds for name, kinds in columns.items() if len(set(map(repr, kinds.values()))) > 1}
        raise UsageError(
            f"The datasets of the mixture have columns of several types: {differ}. Choose columns that agree with `columns:` in "
            f"each dataset ({error})."
        ) from error
