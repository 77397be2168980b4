"""Local paths and names on the Hub, told apart; missing and empty files, told without reading them. Imports nothing
slow."""

from pathlib import Path

from reward_funcs.errors import MissingFile, UsageError


FILE_BUILDERS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}
LOOKED_AT = 2**16  # bytes at the start of a file, to tell whether there is anything in it


def looks_local(name: str) -> bool:
    """
    Whether a name must be a path and not a name on the Hub: it starts with `/`, `.`, `..` or `~`, or with a folder
    that is there (`runs/...`).
    """
    first, *rest = Path(name).parts or ("",)
    return (
        Path(name).is_absolute()
        or first == ".."
        or name.startswith(("./", "~"))
        or bool(rest and Path(first).is_dir())
    )


def check_model(name: str, argument: str) -> None:
    """Raise a [`MissingFile`] if `name`, given as `argument`, is the path of a model folder that is not there."""
    if looks_local(name) and not Path(name).expanduser().is_dir():
        raise MissingFile(
            f"`{argument}` is '{name}', but there is no such folder (looked in {Path.cwd()}). Correct the path; a name on the Hub "
            "is written like 'Qwen/Qwen2.5-3B-Instruct', and must not begin with a folder that is here."
        )


def check_dataset(name: str) -> None:
    """Raise a [`MissingFile`] or a [`UsageError`] if `name` is a local dataset that is missing, unreadable or
    empty."""
    path = Path(name).expanduser()
    known = path.suffix.lower() in FILE_BUILDERS
    if path.is_file():
        if not known:
            raise UsageError(f"Dataset file '{name}' has an unknown ending. Known: {', '.join(FILE_BUILDERS)}.")
        if not has_rows(path):
            raise UsageError(
                f"Dataset file '{name}' is empty: it has no rows ({path.stat().st_size} bytes). Write it again, or name another."
            )
    elif known:
        raise MissingFile(f"Dataset file '{name}' does not exist (looked in {Path.cwd()}). Correct the path.")
    elif looks_local(name) and not path.is_dir():
        raise MissingFile(f"Dataset folder '{name}' does not exist (looked in {Path.cwd()}). Correct the path.")


def has_rows(path: Path) -> bool:
    """Whether a dataset file has a row, as far as can be told at a glance: if in doubt, yes."""
    if path.stat().st_size == 0:
        return False
    if path.suffix.lower() == ".parquet":
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_metadata(path).num_rows > 0
        except pyarrow.ArrowInvalid:  # damaged, which is not for here to say
            return True
    with path.open("rb") as file:
        start = file.read(LOOKED_AT)
    if len(start) == LOOKED_AT:
        return True
    if path.suffix.lower() == ".csv":
        return len(start.split()) > 0 and len(start.strip().splitlines()) > 1  # more than a header
    return b"".join(start.split()) not in (b"", b"[]", b"{}")
