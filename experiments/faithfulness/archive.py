"""
`python -m experiments.faithfulness.archive --study STUDY --archive FILE`: keep the runs of a study in one small file.

Of each run it keeps what reports read: counts and scores of every training step, to six digits, and the evaluations.
Unpacked into a study's `--output_dir` (`tar -xzf FILE -C STUDY`), these runs are finished there and not run again.
The starting policies are not kept: the study makes them again from its first seed.
"""

import gzip
import io
import json
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import HfArgumentParser

from .jobs import RESULT
from .statistics import AUROCS, REWARD


TRAIN_COLUMNS = (
    *("step", "rollouts", "right", "sound", "contrastive/reward/mean", "contrastive/trust"),
    *AUROCS.values(),
    *REWARD.values(),
)


@dataclass
class Settings:
    study: str = field(metadata={"help": "`--output_dir` of the study."})
    archive: str = field(metadata={"help": "File to write: a .tar.gz."})


def pack(study: Path, archive: Path) -> int:
    """Write the finished runs of `study` to `archive`: the same runs give the same bytes. Returns their number."""
    results = sorted(study.glob(f"runs/*/*/[0-9]*/{RESULT}"))
    results = [path for path in results if not path.parent.name.endswith(".partial")]
    archive.parent.mkdir(parents=True, exist_ok=True)
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w") as tar,
    ):
        for path in results:
            content = json.dumps(slim(json.loads(path.read_text()))).encode()
            entry = tarfile.TarInfo(path.relative_to(study).as_posix())  # of no one and of no time
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return len(results)


def slim(written: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run's result.json."""
    result = written["result"]
    train = [{name: rounded(row[name]) for name in TRAIN_COLUMNS if name in row} for row in result["train"]]
    return written | {"result": result | {"train": train}}


def rounded(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float) else value


if __name__ == "__main__":
    parser = HfArgumentParser(Settings, prog="python -m experiments.faithfulness.archive")
    settings = parser.parse_args_into_dataclasses()[0]
    pack(Path(settings.study), Path(settings.archive))
