"""What is wrong with the words after `clipo train` or `clipo evaluate`, as far as that can be told before anything
slow is imported.

The commands check first and import torch, transformers and TRL afterwards, so that a mistyped path costs no minute.
What needs those (values of `CLIPOConfig`, rows of a dataset) is checked by them, later; all of it is a [`UsageError`],
which [`usage_errors`] shows as a sentence.
"""

import sys
from collections import ChainMap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from reward_funcs import TRL_REWARDS, get_reward_func
from reward_funcs.errors import MissingFile, UsageError

from ..algorithms import ALGORITHMS, find_algorithm
from ..value_checks import check_choice, check_number
from .options import CLIPO, EVALUATION, Group, Option, option_names, training_groups
from .paths import check_dataset, check_model


ENVIRONMENT = "env"  # of a file: variables to set, as TRL has it
NUMBERS = {"float": float, "int": int}
# What the paper calls a field of ours, for hints.
SYMBOLS = {
    "lambda": "contrastive_reward_weight",
    "lamda": "contrastive_reward_weight",
    "tau": "contrastive_temperature",
}
MIXTURE_FIELDS = ("path", "name", "data_dir", "data_files", "split", "columns", "fraction")  # of TRL's `DatasetConfig`
Options = ChainMap[str, Any]  # the command line's, as lists of words, over the YAML file's, as they are


@contextmanager
def usage_errors() -> Iterator[None]:
    """Show a [`UsageError`] as argparse does, and exit with 2. Anything else is unexpected and keeps its traceback."""
    try:
        yield
    except UsageError as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {error}\n")
        sys.exit(2)


@contextmanager
def argument_errors() -> Iterator[None]:
    """Every `ValueError` in this block, whichever library's, is about arguments: a [`UsageError`]."""
    try:
        yield
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error


@contextmanager
def unreadable(argument: str, name: Any) -> Iterator[None]:
    """What transformers and datasets say of a name that leads nowhere, in a sentence: a [`UsageError`]."""
    try:
        yield
    except OSError as error:
        told_already, is_the_systems = isinstance(error, UsageError), error.errno is not None  # a full disk, say
        if told_already or is_the_systems:
            raise
        reason = " ".join(str(error).split())
        raise UsageError(
            f"`{argument}` is {name!r}, which cannot be read: {reason} Correct the name, or download it first."
        ) from error


def check_training(argv: Sequence[str] | None = None, names: bool = True) -> None:
    """Raise a [`UsageError`] for the first mistake in the command line of `clipo train`; `argv` defaults to it.
    `names`: a name that is no field is one; not so for another script's."""
    options = read_options(argv)
    if options is None:
        return
    if names:
        _check_all_names(argv, training_groups(_one(options, "algorithm")))
    with argument_errors():
        _check_clipo_values(options)
    _check_training_data(options)
    _check_given(options, "model_name_or_path")
    _check_counts(options, "max_train_samples", "max_eval_samples")
    check_model(_one(options, "model_name_or_path"), "model_name_or_path")
    _check_eval_datasets(options)
    _check_resume(options)
    if _given(options, "reward_funcs") is None and any("reward_funcs" in given for given in options.maps):
        raise UsageError(
            "`reward_funcs` is empty, so nothing would be rewarded. Name at least one, such as [verifiable]."
        )
    _check_reward_funcs(_many(options, "reward_funcs"))
    with argument_errors():
        find_algorithm(_one(options, "algorithm"))


def check_evaluation(argv: Sequence[str] | None = None) -> None:
    """Raise a [`UsageError`] for the first mistake in the command line of `clipo evaluate`; `argv` defaults to it."""
    options = read_options(argv)
    if options is None:
        return
    _check_all_names(argv, EVALUATION)
    if _given(options, "compare"):
        return
    _check_given(options, "model", "datasets", "output_dir")
    _check_counts(options, "max_samples")
    check_model(_one(options, "model"), "model")
    _check_named_datasets(_many(options, "datasets"))
    _check_reward_funcs([_one(options, "reward_func") or "verifiable"])
    if step_reward := _one(options, "step_reward"):
        _check_reward_funcs([step_reward])


# ---------------------------------------------------------------------- reading


def read_options(argv: Sequence[str] | None = None) -> Options | None:
    """Options of the files given with `--config`, under those of the command line; `None` if help is asked for."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(argv):
        return None
    files, words = split_configs(argv)
    return ChainMap(_read_words(words), read_configs(files))


def split_configs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files that follow `--config`, up to the next option, and all other words."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if "--config" not in words:
        return [], words
    place = words.index("--config")
    end = next((i for i in range(place + 1, len(words)) if words[i].startswith("--")), len(words))
    files, rest = words[place + 1 : end], words[:place] + words[end:]
    if not files:
        last = "is the last word" if end == len(words) else f"is followed by '{words[end]}'"
        raise UsageError(f"`--config` {last}, but needs the path of a YAML file, or of several, after it.")
    if "--config" in rest:
        raise UsageError("`--config` is given twice. Give it once, with all files after it; later ones win.")
    return files, rest


def read_configs(paths: Sequence[str]) -> dict[str, Any]:
    """Fields of YAML files: where two files have the same field, the later file's value, whole, is taken."""
    return {name: value for path in paths for name, value in read_config(path).items()}


def read_algorithm(argv: Sequence[str] | None = None) -> tuple[str | None, list[str], set[str]]:
    """
    The algorithm that is named; the command line with its values added for fields that are not given; and those of its
    fields that are given.
    """
    words, options = list(sys.argv[1:] if argv is None else argv), read_options(argv)
    if options is None:  # help is asked for
        return None, words, set()
    name = _one(options, "algorithm")
    algorithm = find_algorithm(name)
    given = {field for field in algorithm.fields() if _is_set(options, field)}
    added = (word for field, value in algorithm.defaults(given).items() for word in (f"--{field}", str(value)))
    return name, [*words, *added], given


def _is_set(options: Options, name: str) -> bool:
    """As [`_given`] has it, but that `--epsilon` is no abbreviation of `epsilon_high`."""
    words, config = options.maps
    others = {field for algorithm in ALGORITHMS.values() for field in algorithm.fields()} - {name}
    return name in config or any(word and name.startswith(word) and word not in others for word in words)


def read_config(path: str) -> dict[str, Any]:
    """Fields of a YAML file."""
    if not Path(path).is_file():
        raise MissingFile(
            f"Config file '{path}' does not exist (looked in {Path.cwd()}). Correct the path given with --config."
        )
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"Config file '{path}' is no YAML. Correct it here:\n{error}") from error
    if not isinstance(config, dict):
        raise UsageError(
            f"Config file '{path}' must hold a YAML mapping, but holds {'nothing' if config is None else repr(config)[:80]}. Write a "
            "line `field: value` for each field."
        )
    return config


def _read_words(argv: list[str]) -> dict[str, list[str]]:
    options: dict[str, list[str]] = {}
    words: list[str] = []
    for word in argv:
        if word.startswith("--"):
            name, has_value, value = word[2:].partition("=")
            words = options[name.replace("-", "_")] = [value] if has_value else []
        else:
            words.append(word)
    return options


def _given(options: Options, name: str) -> Any:
    """Value of an option under its name, or under an abbreviation of it, which argparse takes too; `None` if it is not
    given."""
    words, config = options.maps
    option = next(
        (option for option in (name, *words) if option in words and option and name.startswith(option)), None
    )
    value = words[option] if option else config.get(name)
    return None if value in ([], "") else value


def _one(options: Options, name: str) -> Any:
    value = _given(options, name)
    return value[-1] if isinstance(value, list) else value


def _many(options: Options, name: str) -> list:
    value = _given(options, name)
    if value is not None and not isinstance(value, list):
        raise UsageError(f"`{name}` is {value!r}, but must be a list. Write [{value}].")
    return value or []


# ---------------------------------------------------------------------- checking


def check_names(given: Iterable[str], known: Sequence[str], place: str) -> None:
    """Raise a [`UsageError`] for the first name in `place` that is not `known`, with the nearest one that is."""
    for name in given:
        if name not in known:
            symbol = [field for word, field in SYMBOLS.items() if word in str(name).split("_") and field in known]
            near = symbol or get_close_matches(str(name), known, n=1)
            remedy = f"Did you mean `{near[0]}`?" if near else "`--help` lists the fields."
            raise UsageError(f"{place} has `{name}`, which is no field. {remedy}")


def _check_all_names(argv: Sequence[str] | None, groups: Sequence[Group]) -> None:
    known = option_names(groups)
    if known is None:  # for the parser to say
        return
    files, words = split_configs(sys.argv[1:] if argv is None else argv)
    for path in files:
        check_names(read_config(path), [*known, ENVIRONMENT], f"Config file '{path}'")
    known = [*known, *(f"no_{name}" for name in known)]
    given = [name for name in _read_words(words) if not any(full.startswith(name) for full in known)]  # abbreviated
    check_names(given, known, "The command line")


def _check_clipo_values(options: Options) -> None:
    for option in _described(CLIPO):
        if option.name in options:
            _check_value(option, options[option.name])


def _described(groups: Iterable[Group]) -> list[Option]:
    try:
        return [option for group in groups for option in group.options()]
    except (OSError, SyntaxError, LookupError):  # for the parser to say
        return []


def _check_value(option: Option, value: Any) -> None:
    """`value`: as a file has it, or the words after the option."""
    if isinstance(value, list) and not option.kind.startswith("list"):
        if not value:  # for the parser to say
            return
        value = value[-1]
    number = NUMBERS.get(option.kind)
    if number is not None:
        try:
            value = number(value) if isinstance(value, str) else value + 0
        except (TypeError, ValueError):
            kind = "a whole number" if number is int else "a number"
            raise UsageError(f"`{option.name}` is {value!r}, but must be {kind}.") from None
        check_number(option.name, value)
    elif option.choices is not None:
        check_choice(option.name, value, option.choices)


def _check_given(options: Options, *names: str) -> None:
    for name in names:
        if _given(options, name) is None:
            raise UsageError(f"`{name}` is missing: put it into the file given with --config, or add --{name} ...")


def _check_counts(options: Options, *names: str) -> None:
    for name in names:
        try:
            count = int(_one(options, name))
        except (TypeError, ValueError):  # not given, or no number, which the parser refuses
            continue
        if count < 1:
            raise UsageError(f"`{name}` is {count}, but must be 1 or more. Leave it out to take all rows.")


def _check_resume(options: Options) -> None:
    given = _one(options, "resume_from_checkpoint")
    if given is None or str(given).lower() in ("true", "false"):
        return
    if not Path(str(given)).expanduser().is_dir():
        raise MissingFile(
            f"`resume_from_checkpoint` is '{given}', but there is no such folder (looked in {Path.cwd()}). Name a checkpoint's "
            "folder, or `true` for the last one in `output_dir`."
        )


def _check_training_data(options: Options) -> None:
    """Either `dataset_name`, or a mixture as TRL's scripts have it."""
    entries = _many(options, "datasets")
    if _one(options, "streaming") in (True, "true", "True"):
        raise UsageError(
            "`streaming` is true, but the rewards read every solution before the training starts. Leave it out."
        )
    if not entries:
        if (size := _one(options, "test_split_size")) is not None:
            raise UsageError(
                f"`test_split_size` is {size}, which is for a mixture (`datasets`). With `dataset_name`, test sets are those of "
                "`eval_datasets` or `dataset_test_split`."
            )
        _check_given(options, "dataset_name")
        check_dataset(_one(options, "dataset_name"))
        return
    if name := _one(options, "dataset_name"):
        raise UsageError(
            f"`dataset_name` is {name!r}, but there is a mixture, `datasets`, too. Leave one of them out."
        )
    for entry in entries:
        if not isinstance(entry, dict) or not entry.get("path"):
            raise UsageError(
                f"`datasets` holds {entry!r}, but must be a list of mappings with a `path` each, in a file given with --config."
            )
        if unknown := set(entry) - set(MIXTURE_FIELDS):
            raise UsageError(
                f"A dataset of the mixture has {sorted(unknown)}, which are no fields. Choose from {list(MIXTURE_FIELDS)}."
            )
        if entry.get("data_files") is None and entry.get("data_dir") is None:
            check_dataset(entry["path"])


def _check_named_datasets(entries: list[str]) -> None:
    for entry in entries:
        check_dataset(entry.rpartition("=")[2])


def _check_eval_datasets(options: Options) -> None:
    eval_datasets = _many(options, "eval_datasets")
    if _one(options, "eval_strategy") not in (None, False, "no"):
        _check_named_datasets(eval_datasets)
        return
    words = options.maps[0]
    switched_off = "eval_strategy" in words and "eval_datasets" not in words  # on purpose, those of the file
    if eval_datasets and not switched_off:
        raise UsageError(
            f"`eval_datasets` is {eval_datasets}, but `eval_strategy` is 'no', so they would never be evaluated on. Set "
            "`eval_strategy` to 'steps' (with `eval_steps`) or 'epoch', or leave out `eval_datasets`."
        )


def _check_reward_funcs(names: list[str]) -> None:
    for name in names:
        if name not in ("soft_overlong", *TRL_REWARDS):  # which take time to import, and are there
            get_reward_func(name)
