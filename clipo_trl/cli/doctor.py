"""What is installed here, what it can do, and what CLIPO would make of a run.

    clipo doctor
    clipo doctor --config configs/lora_single_gpu.yaml --num_iterations 2

Options are those of `clipo train`. Nothing but `packaging` is imported before the versions are looked at, so that a
missing or broken dependency is told and not met. The exit code is 1 if something has to be mended first, else 0.
"""

import argparse
import importlib.util
import os
import platform
import sys
from importlib import metadata
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from ..environment import conflicts, installed_version, range_for, requirements_of


# Optional packages: whose metadata has their range, and under which extra.
OPTIONAL = {"deepspeed": ("clipo_trl", "deepspeed"), "vllm": ("trl", "vllm")}
GIB = 2**30


class Row(NamedTuple):
    """A line of the report. `fault`: a run cannot work; `install`: the requirement that mends it, if pip can."""

    subject: str
    text: str
    fault: bool = False
    install: str | None = None


Sections = dict[str, list[Row]]


def main(argv: list[str] | None = None) -> int:
    """Print the report; `argv` defaults to the command line. Returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    argparse.ArgumentParser(
        "clipo doctor",
        usage="clipo doctor [-h] [--config FILE ...] [--FIELD VALUE ...]",
        description="Tell what is installed and what it can do. With the words of `clipo train`, also what it would choose, and why.",
        allow_abbrev=False,
    ).parse_known_args(argv)
    sections = {"packages": package_rows()}
    if argv and not has_fault(sections):
        from .command_line import read_options, usage_errors

        with usage_errors():  # a file that is not there, before the slow imports
            read_options(argv)
    if not has_fault(sections):
        sections |= {"machine": machine_rows(), "hub": hub_rows()}
    if argv and not has_fault(sections):
        from .run_choices import run_rows

        sections["this run"] = run_rows(argv)
    elif has_fault(sections):
        sections["the rest"] = [Row("not looked at", "first mend what is above")]
    report(sections)
    return int(has_fault(sections))


def has_fault(sections: Sections) -> bool:
    return any(row.fault for rows in sections.values() for row in rows)


def report(sections: Sections) -> None:
    """Print the sections and what pip can mend: a table for a terminal, plain lines for everything else."""
    if os.environ.get("RANK", "0") != "0":  # of several processes, the first speaks
        return
    missing = [f"'{row.install}'" for rows in sections.values() for row in rows if row.install]
    verdict = "" if has_fault(sections) else "Nothing has to be mended."
    if missing:
        verdict = f"To mend it: {sys.executable} -m pip install {' '.join(missing)}"
    if sys.stdout.isatty() and importlib.util.find_spec("rich"):
        _print_table(sections, verdict)
    else:
        _print_lines(sections, verdict)


def _print_table(sections: Sections, verdict: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title="clipo doctor", box=box.ROUNDED, show_header=False)
    table.add_column(style="bold cyan", no_wrap=True)
    table.add_column()
    for title, section in sections.items():
        table.add_row(Text(title.upper(), style="bold"), "")
        for row in section:
            table.add_row(row.subject, Text(row.text, style="bold red" if row.fault else ""))
        table.add_section()
    console = Console()
    console.print(table)
    console.print(Text(verdict), soft_wrap=True)


def _print_lines(sections: Sections, verdict: str) -> None:
    lines = []
    for title, section in sections.items():
        width = max(len(row.subject) for row in section)
        lines += [title, *(f"{'!' if row.fault else ' '} {row.subject:{width}}  {row.text}" for row in section), ""]
    sys.stdout.write("\n".join([*lines, verdict]) + "\n")


# ---------------------------------------------------------------------- packages


def package_rows() -> list[Row]:
    """Versions beside the ranges that the installed package declares: Python, what must be there, what may be."""
    try:
        about = metadata.metadata("clipo_trl")
    except metadata.PackageNotFoundError:
        return [Row("clipo_trl", "not installed, so the tested ranges are not known", True, "clipo_trl")]
    (folder,) = importlib.import_module("clipo_trl").__path__
    return [
        Row("clipo_trl", f"{about['Version']}, in {folder}"),
        check_python(platform.python_version(), about["Requires-Python"]),
        *(check_package(requirement) for requirement in requirements_of("clipo_trl")),
        *map(check_optional, OPTIONAL),
        *conflict_rows(),
    ]


def check_python(version: str, tested: str) -> Row:
    if SpecifierSet(tested).contains(version, prereleases=True):
        return Row("python", f"{version} (tested: {tested})")
    return Row("python", f"{version} is outside of {tested}: make the environment anew with another Python", True)


def check_package(requirement: Requirement) -> Row:
    """A package that must be there, in its range."""
    name, tested = requirement.name, str(requirement.specifier)
    version = installed_version(name)
    if version is None:
        return Row(name, f"not installed (tested: {tested})", True, str(requirement))
    if not requirement.specifier.contains(version, prereleases=True):
        return Row(name, f"{version} is outside of the tested range {tested}", True, str(requirement))
    return Row(name, f"{version} (tested: {tested})")


def check_optional(name: str) -> Row:
    """A package that may be there, in its range."""
    source, _ = OPTIONAL[name]
    tested, version = range_of(name), installed_version(name) or installed_version(f"{name}-cpu")
    told = f"{'tested' if source == 'clipo_trl' else f'supported by {source}'}: {tested}"
    if version is None:
        return Row(name, f"not installed ({told})")
    return Row(
        name, f"{version} ({told})" if tested.contains(version, True) else f"{version} is out of range ({told})"
    )


def conflict_rows() -> list[Row]:
    """Packages that contradict each other: a row for each requirement that mends it."""
    return [
        Row(conflict.package, conflict.text, True, requirement)
        for conflict in conflicts()
        for requirement in conflict.install
    ]


def range_of(optional: str) -> SpecifierSet:
    """Range of an optional package, in the metadata of whoever knows it; any version if that is not installed."""
    package, extra = OPTIONAL[optional]
    return range_for(package, optional, extra)


# ---------------------------------------------------------------------- machine, Hub


def machine_rows() -> list[Row]:
    """The accelerator, its memory and bf16; processors."""
    try:
        import torch
        from transformers.utils import is_torch_bf16_gpu_available
    except (ImportError, OSError) as error:  # OSError: a library of the accelerator's
        return [Row("torch", f"is installed, but cannot be imported: {error}", True)]
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows = [Row("processors", f"{processors} for this process, {os.cpu_count()} in all")]
    device = torch.accelerator.current_accelerator(check_available=True)
    if device is None:
        return [Row("accelerator", "none; on a CPU, train with `use_cpu: true` and `bf16: false`"), *rows]
    count = torch.accelerator.device_count()
    rows.insert(0, Row("accelerator", f"{device.type}, {count} device{'s' if count > 1 else ''}"))
    rows.insert(1, Row("bf16", "supported" if is_torch_bf16_gpu_available() else "not supported: set `bf16: false`"))
    name_of = getattr(torch.get_device_module(device), "get_device_name", lambda index: device.type)
    for index in range(count):
        free, total = torch.accelerator.get_memory_info(index)
        rows.append(Row(f"{device.type}:{index}", f"{name_of(index)}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"))
    return rows


def hub_rows() -> list[Row]:
    """Where models and datasets come from."""
    from huggingface_hub import constants

    access = "off: HF_HUB_OFFLINE is set, only what is in the cache is found" if constants.HF_HUB_OFFLINE else "on"
    return [Row("downloads", access), Row("cache", constants.HF_HUB_CACHE)]
