"""Sample completions of the newest generation batch, from TRL's table, by group: suspicious ones first."""

import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd

from ..completions_table import AGREEMENT, GROUP, LOSS, SUSPICIOUS, farthest_rows
from .embeddings import NUM_SUSPICIOUS, RIGHT, WRONG
from .embeddings import SUSPICIOUS as SUSPICIOUS_ROLLOUT
from .record import TrainingRecord


MAX_GROUPS, MAX_ROLLOUTS, MAX_CHARACTERS = 6, 8, 4000
_TEXTS = ("step", "prompt", "completion")
_OWN = (AGREEMENT, LOSS, "advantage")  # beside the rewards, in this order
_ORDER = {SUSPICIOUS_ROLLOUT: 0, RIGHT: 1, WRONG: 2, "": 3}


@dataclass(frozen=True)
class Rollout:
    """A completion; `verdict`: right, wrong, suspicious (also right), or nothing where that is not known; `values` as
    the columns of [`SampleGroups`]."""

    verdict: str
    completion: str
    values: list[str]


@dataclass(frozen=True)
class SampleGroup:
    """Rollouts of one prompt; `n_left_out` of its rollouts are not among them."""

    number: int
    prompt: str
    rollouts: list[Rollout]
    n_left_out: int


@dataclass(frozen=True)
class SampleGroups:
    """Some groups of the table `path`, of optimizer step `step`; `n_left_out` groups are not among them."""

    path: Path
    step: int
    columns: list[str]
    groups: list[SampleGroup]
    n_left_out: int


def sample_groups(record: TrainingRecord) -> SampleGroups | None:
    """The newest table of training's completions; `None` if none was written."""
    path = newest_table(record)
    if path is None:
        return None
    table = pd.read_parquet(path)
    table["verdict"] = table_verdicts(table, record.facts.get("success"), record.facts.get("rewards", {}))
    if GROUP not in table:  # of plain TRL
        table[GROUP] = (table["prompt"].map(text_of) != table["prompt"].map(text_of).shift()).cumsum()
    own = [name for name in _OWN if name in table]
    columns = [name for name in table if name not in (*_TEXTS, *own, GROUP, SUSPICIOUS, "verdict")] + own
    columns = [name for name in columns if table[name].notna().any()]
    groups = sorted(table.groupby(GROUP, sort=True), key=lambda pair: _interest(pair[1]))
    return SampleGroups(
        path=path,
        step=step_of(path),
        columns=columns,
        groups=[_group(int(number), rows, columns) for number, rows in groups[:MAX_GROUPS]],
        n_left_out=max(0, len(groups) - MAX_GROUPS),
    )


def newest_table(record: TrainingRecord) -> Path | None:
    """That of the latest log: tables of later steps, or from before the run began, are of an earlier run in the same
    folder."""
    steps, starts = {row.get("step") for row in record.logs}, record.facts.get("starts")
    began = datetime.fromisoformat(starts[0]["time"]).timestamp() if starts else 0.0
    tables = (record.folder / "completions").glob("completions_*.parquet")
    paths = [path for path in tables if step_of(path) in steps and path.stat().st_mtime >= began]
    return max(paths, key=step_of, default=None)


def step_of(path: Path) -> int:
    number = path.stem.rpartition("_")[2]
    return int(number) if number.isdigit() else -1


def table_verdicts(table: pd.DataFrame, success: dict[str, Any] | None, weights: dict[str, float]) -> list[str]:
    """What each row is; `success` and `weights` as in the facts of a run."""
    if success is None or not set(success["rewards"]) <= set(table):
        return [""] * len(table)
    rewards = table[success["rewards"]]
    total = (rewards * [weights[name] for name in rewards]).sum(axis=1)
    is_scored = rewards.notna().any(axis=1)
    if SUSPICIOUS in table:
        suspicious = set(table.index[table[SUSPICIOUS].astype(bool)])
    else:
        suspicious = set(farthest_rows(table[AGREEMENT].tolist(), NUM_SUSPICIOUS) if AGREEMENT in table else [])
    words = (total > success["threshold"]).map({True: RIGHT, False: WRONG}).where(is_scored, "")
    return [SUSPICIOUS_ROLLOUT if row in suspicious else word for row, word in words.items()]


def _interest(rows: pd.DataFrame) -> tuple:
    """Lowest first: suspicious rollouts, farthest first; then groups with right and wrong ones; then the others."""
    is_suspicious = rows["verdict"] == SUSPICIOUS_ROLLOUT
    if is_suspicious.any():
        agreement = rows.loc[is_suspicious, AGREEMENT].min() if AGREEMENT in rows else 0.0
        return (0, agreement)
    return (1 if rows["verdict"].nunique() > 1 else 2, 0.0)


def _group(number: int, rows: pd.DataFrame, columns: list[str]) -> SampleGroup:
    ordered = rows.iloc[sorted(range(len(rows)), key=lambda place: _ORDER[rows["verdict"].iloc[place]])]
    rollouts = [
        Rollout(row["verdict"], shortened(text_of(row["completion"])), [cell(row[name]) for name in columns])
        for row in ordered.head(MAX_ROLLOUTS).to_dict("records")
    ]
    prompt = shortened(text_of(rows["prompt"].iloc[0]))
    return SampleGroup(number, prompt, rollouts, max(0, len(rows) - MAX_ROLLOUTS))


# ---------------------------------------------------------------------- what a model wrote, as text


def text_of(messages: Any) -> str:
    """A text, or the messages of a conversation, with their roles if there are several."""
    if messages is None or isinstance(messages, str):
        return messages or ""
    told = [(str(message.get("role", "")), _content(message)) for message in messages]
    return told[0][1] if len(told) == 1 else "\n\n".join(f"{role}: {content}" for role, content in told)


def _content(message: dict[str, Any]) -> str:
    content = message.get("content")
    if content is not None and not isinstance(content, str):  # parts: text, images
        content = "".join(part.get("text") or f"[{part.get('type')}]" for part in content)
    calls: Any = message.get("tool_calls")
    return "\n".join(filter(None, [content, *(f"[calls {call}]" for call in ([] if calls is None else calls))]))


def shortened(text: str) -> str:
    """At most `MAX_CHARACTERS` of it: the end is as telling as the beginning."""
    if len(text) <= MAX_CHARACTERS:
        return text
    half = MAX_CHARACTERS // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half:,} characters are left out ...]\n{text[-half:]}"


def cell(value: Any) -> str:
    """A number in a few digits, nothing for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.3g}" if isinstance(value, int | float) else shortened(str(value))
