"""What is known of a training -> one HTML page that needs nothing beside it: no script, no network, no other file."""

import os
import re
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import jinja2
from markupsafe import Markup, escape

from .. import __version__
from ..health import Finding, HealthCallback
from ..log_file import LOG_NAME, SUMMARY
from .completions import sample_groups
from .curves import Panel, draw_panel, first_and_last, panels, table_of
from .embeddings import METHODS, draw_embeddings
from .pictures import COLOURS, drawing, to_svg
from .record import TrainingRecord, read_record


REPORT = "report.html"
TEMPLATE = "page.html"
# Control characters as signs that can be seen: NUL would be lost, escape sequences mislead.
_VISIBLE = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}


class Picture(NamedTuple):
    """`svg`: an element of the page, or a sentence that says why there is none."""

    title: str
    svg: str
    panel: Panel | None = None


class Tile(NamedTuple):
    """A figure at the top of the page, and what it was at the beginning."""

    label: str
    value: str
    before: str = ""


def write_report(output_dir: str | Path) -> Path:
    """
    Write `OUTPUT_DIR/report.html`: what is known of the training in `output_dir`, which may still be running. It is at
    its best where a [`ReportCallback`] has kept what it needs, as it does in `clipo train`.

    Args:
        output_dir (`str` or `Path`): that of the training.

    Returns:
        `Path`: the page.

    Raises:
        `FileNotFoundError`, `ValueError`: no such folder, or no training in it.
    """
    record = read_record(output_dir)
    path = record.folder / REPORT
    waiting = path.with_suffix(".part")
    waiting.write_text(render(record), encoding="utf-8", errors="replace")  # a lone surrogate is no text
    os.replace(waiting, path)
    return path


def render(record: TrainingRecord) -> str:
    """The page as text."""
    facts, shown = record.facts, panels(record)
    html = template().render(
        colours=COLOURS,
        name=record.folder.absolute().name,
        method=facts.get("method", "Training"),
        status=status(record),
        starts=facts.get("starts", []),
        tiles=tiles(record, shown),
        findings=findings(record),
        curves=curve_pictures(record, shown),
        numbers=table_of(shown, record.logs),
        embeddings=embedding_pictures(record),
        snapshots=[record.before, record.after],
        samples=sample_groups(record),
        facts=facts,
        written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=__version__,
    )
    return html.translate(_VISIBLE)


@cache
def template() -> jinja2.Template:
    # Everything that is put in is escaped: completions, names of models and data come from anywhere.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["code_spans"] = code_spans
    return environment.get_template(TEMPLATE)


def code_spans(text: str) -> Markup:
    """Escaped, with what stands between backticks as code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


# ---------------------------------------------------------------------- in words and figures


def status(record: TrainingRecord) -> str:
    """How far the training has come, in a sentence."""
    if not record.logs:
        return "Begun; nothing has been logged yet. Make this page again once the first step is done."
    max_steps = record.facts.get("max_steps", 0)
    of = f" of {max_steps:,}" if max_steps else ""
    seconds = [row[SUMMARY] for row in record.logs if SUMMARY in row]
    if seconds:
        how = (
            f"Finished after {record.step:,} steps"
            if record.is_finished
            else f"Stopped after step {record.step:,}{of}"
        )
        return f"{how}. The last start took {duration(seconds[-1])}."
    path = record.folder / LOG_NAME
    when = f", last heard of {moment(path.stat().st_mtime)}" if path.is_file() else ""
    return f"Step {record.step:,}{of}: still running, or stopped{when}."


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:,} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def moment(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M UTC")


def tiles(record: TrainingRecord, shown: list[Panel]) -> list[Tile]:
    """The figures to see first, each beside what it was at the beginning; of test sets, those in `shown`."""
    max_steps = record.facts.get("max_steps", 0)
    found = [Tile("steps", f"{record.step:,}", f"of {max_steps:,}" if max_steps else "")]
    wanted = [("reward", "reward", False), ("contrastive/correct_rollouts", "right rollouts", True)]
    for panel in shown:
        if panel.title.startswith("Test sets: "):
            wanted += [(line.metric, f"right on {line.label}", True) for line in panel.lines]
    for what in ("correct", "wrong"):
        label = f"cosine right–{what.replace('correct', 'right')}"
        wanted.append((f"contrastive/embedding_cosine_correct_{what}", label, False))
    for metric, label, is_share in wanted:
        share = 0.0 if metric.startswith("eval_") else 0.1  # of an evaluation, the first and the last alone
        ends = first_and_last(record.logs, metric, share)
        if ends is not None:
            first, last = (f"{value:.0%}" if is_share and 0 <= value <= 1 else f"{value:.2f}" for value in ends)
            found.append(Tile(label, last, f"from {first}"))
    return found


def findings(record: TrainingRecord) -> list[Finding] | None:
    """What the health check finds in the logs; `None` if it cannot be asked, without the settings of a CLIPO run."""
    settings = record.facts.get("settings", {})
    if "contrastive_reward_weight" not in settings or record.facts.get("success") is None:
        return None
    callback, args = HealthCallback(), SimpleNamespace(**settings)
    for row in record.logs:
        state = SimpleNamespace(global_step=row.get("step", 0), is_world_process_zero=False)  # it says nothing aloud
        try:
            callback.on_log(args, state, None, logs=row)
        except AttributeError:  # a setting that the version which ran did not have
            return None
    return callback.findings


# ---------------------------------------------------------------------- pictures


def curve_pictures(record: TrainingRecord, shown: list[Panel]) -> list[Picture]:
    frozen = [record.facts.get(name, 0) for name in ("frozen_steps", "frozen_from")]

    def draw(place: int, panel: Panel) -> Markup:
        figure = draw_panel(panel, record.logs, *frozen)
        return Markup(to_svg(figure, f"curve{place}", f"{panel.title}, by training step"))

    return [Picture(panel.title, drawing(draw, place, panel), panel) for place, panel in enumerate(shown)]


def embedding_pictures(record: TrainingRecord) -> list[Picture]:
    """Nothing if no embeddings were kept."""
    before, after = record.before, record.after
    if before is None or after is None:
        return []

    def draw(place: int, method: str) -> Markup:
        figure = draw_embeddings(method, before, after)
        return Markup(to_svg(figure, f"embeddings{place}", f"{method} of embeddings, first and newest batch"))

    return [Picture(method, drawing(draw, place, method)) for place, method in enumerate(METHODS)]
