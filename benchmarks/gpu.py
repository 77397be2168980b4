"""
Everything that needs a GPU, in one go: `make gpu`, or `python -m benchmarks.gpu`. No network; one GPU.

1. the tests that are marked `gpu`;
2. GRPO against CLIPO in each capture mode, on a random model of 1.5 billion parameters in bf16, 16 rollouts of
   512 + 2048 tokens ([`benchmarks.overhead`]);
3. the quickstart's task, trained in bf16 on the GPU.

What came out goes to `gpu.json`, and to `gpu.md` as the tables that docs/cost.md takes. The exit code is 1 if a part
failed; the others are run all the same.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import torch
from transformers import HfArgumentParser

from . import common, overhead


ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "transformers", "trl", "accelerate", "peft")


@dataclass
class Settings:
    shape: str = field(default="", metadata={"help": "As in benchmarks.overhead."})
    rounds: int = field(default=1, metadata={"help": "Measured steps of each capture mode."})
    output_dir: str = field(default="runs/gpu", metadata={"help": "Where gpu.json and gpu.md go."})


def run_tests() -> dict:
    """The tests marked `gpu`; the summary is pytest's last line."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--no-header", "-W", "default"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines() or [done.stderr[-500:]]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    if done.returncode:
        common.console.print(done.stdout[-6000:], done.stderr[-2000:], highlight=False, markup=False)
        raise RuntimeError("\n".join([lines[-1], *failed]))
    return {"summary": lines[-1]}


def run_overhead(settings: Settings) -> dict:
    return overhead.run(overhead.Settings(shape=settings.shape, rounds=settings.rounds, seeds=1, warm_up_tokens=32))


def run_quickstart() -> dict:
    """Accuracy and lucky share on new problems, before and after CLIPO in bf16."""
    on_gpu = ["--use_cpu", "false", "--bf16", "true"] if torch.cuda.is_available() else []
    done = subprocess.run([sys.executable, "quickstart.py", *on_gpu], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stdout[-1000:] + done.stderr[-3000:])
    results = json.loads((ROOT / "runs/quickstart/results.json").read_text())
    return {when: {name: results[when]["test"][name] for name in ("accuracy", "lucky_share")} for when in results}


def run_parts(parts: dict[str, Callable[[], dict]]) -> dict[str, dict]:
    """Every part's results and seconds; an error is noted, and does not keep the others from running."""
    results = {}
    for name, part in parts.items():
        common.console.rule(name)
        start = time.perf_counter()
        try:
            results[name] = part()
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
            common.console.print(results[name]["error"], style="red", markup=False)
        results[name]["seconds"] = time.perf_counter() - start
    return results


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"


def markdown(results: dict[str, dict]) -> str:
    """The tables of docs/cost.md."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lines = [f"{device_name()}; Python {sys.version.split()[0]}, {versions}.", ""]
    lines += ["| part | result | seconds |", "|---|---|---|"]
    for name, result in results.items():
        text = result.get("error", "").splitlines()[:1] or [result.get("summary", "done")]
        lines.append(f"| {name} | {'FAILED: ' if 'error' in result else ''}{text[0]} | {result['seconds']:.0f} |")
    rows = results["overhead"].get("rows", [])
    if rows:
        lines += [
            "",
            "| capture mode | step time, CLIPO / GRPO | peak memory, CLIPO / GRPO | GRPO s | CLIPO s | own |",
        ]
        lines += ["|---|---|---|---|---|---|"]
    for row in rows:
        time_ratio, memory_ratio = row["step_time_ratio"]["median"], row["peak_memory_ratio"]["median"]
        seconds = f"{row['grpo_seconds']['median']:.2f} | {row['seconds']['median']:.2f}"
        own = f"{row['own_share']['median']:.1%}"
        lines.append(f"| `{row['mode']}` | {time_ratio:.3f} | {memory_ratio:.3f} | {seconds} | {own} |")
    task = results["quickstart"]
    if "before" in task:
        lines += ["", "| quickstart, new problems | before | after |", "|---|---|---|"]
        for name in task["before"]:
            lines.append(f"| {name.replace('_', ' ')} | {task['before'][name]:.1%} | {task['after'][name]:.1%} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    (settings,) = HfArgumentParser(Settings, description=__doc__).parse_args_into_dataclasses()
    if not torch.cuda.is_available():
        common.console.print("No GPU is found: its tests are skipped, and the rest is measured on a CPU.", style="red")
    os.environ["HF_HUB_OFFLINE"] = "1"
    results = run_parts({"tests": run_tests, "overhead": lambda: run_overhead(settings), "quickstart": run_quickstart})
    folder = Path(settings.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps({"device": device_name(), **results}, indent=2))
    (folder / "gpu.md").write_text(markdown(results))
    common.console.print(markdown(results), highlight=False, markup=False)
    return int(any("error" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
