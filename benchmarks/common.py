"""What the benchmarks share: seconds, peak memory, medians with their spread, and where results go."""

import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch.profiler import ProfilerActivity, profile


matplotlib.use("Agg")  # pictures go to files: no display is needed
import matplotlib.pyplot as plt  # noqa: E402


OUTPUT_DIR = "runs/benchmarks"
# One colour a capture mode, in every picture; readable in grey and for the colour-blind (Okabe and Ito).
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#6B6B6B"
PURPLE = "#CC79A7"
MIB = 2**20

# Tables keep their columns where the output is no terminal.
console = Console() if sys.stdout.isatty() else Console(width=120)


# ---------------------------------------------------------------------- measuring


def default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


def alternate(
    functions: dict[str, Callable[[], object]], rounds: int, device: torch.device, after_each: Callable = lambda: None
) -> dict[str, list[float]]:
    """
    Seconds of each function in each of `rounds` rounds, after one round that is not counted. A round calls all of
    them, in an order that turns, so that what slows the machine for a while slows them alike.
    """
    measured = {name: [] for name in functions}
    names = list(functions)
    for turn in range(rounds + 1):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            duration = seconds(functions[name], device)
            if turn > 0:
                measured[name].append(duration)
            after_each()
    return measured


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """
    Most bytes of tensors alive at once that one call allocated, on top of what was there before.

    Counted exactly, not sampled: on a CPU from every allocation of the profiler's record, on a GPU by the allocator.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        function()
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return int(np.cumsum([0] + [event.nbytes() for event in changes]).max())


class PeakMemory:
    """
    Peak memory of a stretch of a running program: of the whole process on a CPU (Linux: the resident set's high-water
    mark, which can be reset), of the allocator on a GPU. NaN where the system cannot tell.
    """

    _RESET, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def __init__(self, device: torch.device):
        self._device = device

    def reset(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        elif self._RESET.exists():
            self._RESET.write_text("5")

    def read(self) -> float:
        """Bytes."""
        if self._device.type == "cuda":
            return float(torch.cuda.max_memory_allocated(self._device))
        if not self._RESET.exists():
            return float("nan")
        marks = [line.split()[1] for line in self._STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        return float(marks[0]) * 1024


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, quartiles and number of some measurements."""
    values = np.asarray(list(values), dtype=float)
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"median": median, "q25": low, "q75": high, "n": len(values)}


def ratios(measured: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Round by round: what was measured close together is divided."""
    return [a / b for a, b in zip(measured, baseline, strict=True)]


# ---------------------------------------------------------------------- showing


def progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )


def show_table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    console.print(table)


def figure(n_columns: int, n_rows: int = 1, size: tuple[float, float] = (4.2, 3.4), **options):
    """A figure in the benchmarks' common look; `size` is that of one panel, in inches."""
    plt.rcParams.update(
        {
            "font.size": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "grid.color": "#E4E4E4",
            "legend.frameon": False,
        }
    )
    return plt.subplots(
        n_rows, n_columns, figsize=(size[0] * n_columns, size[1] * n_rows), layout="constrained", **options
    )


def machine(device: torch.device) -> dict[str, object]:
    """What the figures depend on, for the record."""
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": list(os.getloadavg()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def save(name: str, settings: object, device: torch.device, results: dict, picture, output_dir: str) -> Path:
    """Write `<name>.json` and `<name>.png` into `output_dir`, and say where. Returns the path of the former."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    settings = asdict(settings) if is_dataclass(settings) else settings
    record = {"benchmark": name, "machine": machine(device), "settings": settings, **results}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(record, indent=1) + "\n")
    picture.savefig(folder / f"{name}.png", dpi=150)
    plt.close(picture)
    console.print(f"Written: {path} and {path.with_suffix('.png')}")
    return path
