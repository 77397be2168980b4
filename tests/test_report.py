"""The report of a training: what is kept for it, and the page, from folders that are written here by hand. Whole
trainings, browsers and trackers are in test_report_of_a_run.py."""

import json
import os
import re
import sys
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_models import tiny_config

from clipo_trl import write_report
from clipo_trl.cli import main as command
from clipo_trl.cli import train as train_command
from clipo_trl.completions_table import farthest_rows
from clipo_trl.report import completions, curves, embeddings, facts, page, pictures
from clipo_trl.report.record import (
    FIRST,
    NEWEST,
    EmbeddingSnapshot,
    TrainingRecord,
    read_logs,
    read_record,
)


HOSTILE = "<script>alert('0wned')</script></pre></td><img src=http://evil.example/x onerror=alert(1)><!-- \x00\x1b[31m \ud800"
COSINES = ("contrastive/embedding_cosine_correct_correct", "contrastive/embedding_cosine_correct_wrong")


def some_facts(**others) -> dict:
    return {
        "method": "CLIPO",
        "description": {"model": "tiny", "data": "8 prompts"},
        "settings": {"max_steps": 40, "learning_rate": 1e-3},
        "changed": ["learning_rate"],
        "max_steps": 40,
        "frozen_steps": 2,
        "rewards": {"answer_reward": 1.0, "contrastive": 1.0},
        "success": {"rewards": ["answer_reward"], "threshold": 0.0},
        "versions": {"clipo_trl": "0", "trl": "1"},
        "device": "cpu",
        "processes": 1,
        "starts": [{"time": "2026-01-02T03:04:05+00:00", "step": 0}],
    } | others


def some_logs(n_steps: int) -> list[dict]:
    rows = []
    for step in range(1, n_steps + 1):
        rows.append(
            {"step": step, "reward": 0.01 * step, "contrastive/head_loss": 2.0 - 0.01 * step, "grad_norm": 0.5}
            | {"rewards/answer_reward/mean": 0.5, "rewards/contrastive/mean": -0.1}
            | dict.fromkeys(COSINES, 0.5)
        )
        if step % 10 == 0:
            rows.append({"step": step, "eval_gsm_rewards/answer_reward/mean": step / 100})
    return rows


def snapshot(step: int = 0, n_groups: int = 3, G: int = 4, seed: int = 0) -> EmbeddingSnapshot:
    draw = np.random.default_rng(seed)
    points = draw.normal(size=(n_groups, G, 6))
    correct = np.tile(np.arange(G) < G // 2, (n_groups, 1))
    agreement = np.where(correct, draw.normal(size=(n_groups, G)), np.nan)
    return EmbeddingSnapshot(
        step=step,
        embeddings_PGD=(points / np.linalg.norm(points, axis=-1, keepdims=True)).astype(np.float16),
        correct_PG=correct,
        valid_PG=np.ones((n_groups, G), dtype=bool),
        agreement_PG=agreement,
    )


def some_table(step: int, **others) -> pd.DataFrame:
    """Two groups of four; of the second, one rollout is far."""
    columns = {
        "step": [step] * 8,
        "prompt": [[{"role": "user", "content": f"what is {row // 4}?"}] for row in range(8)],
        "completion": [[{"role": "assistant", "content": f"completion {row}"}] for row in range(8)],
        "answer_reward": [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0],
        "contrastive": [-0.1] * 8,
        "group": [0] * 4 + [1] * 4,
        "agreement": [0.0, 0.0, None, None, 0.1, 0.1, -0.2, None],
        "contrastive_loss": [0.5, 0.5, None, None, 0.5, 0.5, 0.7, None],
        "advantage": [0.1] * 8,
    }
    return pd.DataFrame(columns | others)


def write_run(
    folder: Path, logs: list[dict], table: pd.DataFrame | None = None, with_embeddings=True, **others
) -> Path:
    (folder / "report").mkdir(parents=True)
    (folder / "report" / "run.json").write_text(json.dumps(some_facts(**others)))
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in logs))
    if with_embeddings:
        snapshot().save(folder / "report" / FIRST)
        snapshot(step=39, seed=1).save(folder / "report" / NEWEST)
    if table is not None:
        (folder / "completions").mkdir()
        table.to_parquet(folder / "completions" / f"completions_{table.step[0]:05d}.parquet")
    return folder


class Page(HTMLParser):
    """Tags, attributes, ids and text of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data

    def ids(self) -> list[str]:
        return [value for name, value in self.attributes if name == "id"]


# ---------------------------------------------------------------------- folders


def test_a_folder_that_is_no_training_is_refused(tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match=r"`output_dir` is '.*none', but there is no such folder"):
        write_report(tmp_path / "none")
    with pytest.raises(
        ValueError, match="no training was begun there.*Name the `output_dir` of a run of `clipo train`"
    ):
        write_report(tmp_path)
    for words, said in (("none", "`OUTPUT_DIR` is 'none'"), (str(tmp_path), "no training was begun there")):
        with pytest.raises(SystemExit) as stopped:
            command.main(["report", words])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_command_says_where_the_page_is(tmp_path, capsys):
    command.main(["report", str(write_run(tmp_path / "out", some_logs(3)))])
    assert capsys.readouterr().out == f"Written: {tmp_path / 'out' / 'report.html'}\n"
    assert [path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".part"] == []


def test_a_training_that_has_only_begun(tmp_path):
    nothing = Page(write_report(write_run(tmp_path / "a", [], with_embeddings=False)).read_text())
    assert "Begun; nothing has been logged yet" in nothing.text and "svg" not in nothing.tags
    assert "Set log_completions: true" in nothing.text and "None were kept" in nothing.text
    one = Page(write_report(write_run(tmp_path / "b", some_logs(1))).read_text())
    assert "Step 1 of 40: still running, or stopped, last heard of" in one.text and "Loss of the head" in one.text


def test_a_run_without_the_callback(tmp_path):
    """Of plain TRL, or of an earlier version: the newest state that transformers saved tells what there is."""
    for step in (2, 10):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": some_logs(step)}))
    (tmp_path / "checkpoint-20").mkdir()
    (tmp_path / "checkpoint-20" / "trainer_state.json").write_text('{"global_step": 2')  # cut off
    text = Page(write_report(tmp_path).read_text()).text
    assert "Step 10: still running, or stopped." in text and "Reward" in text
    assert text.count("report/run.json") == 2  # health and settings are not known


def test_what_the_callback_kept_is_read_first(tmp_path):
    write_run(tmp_path, some_logs(3))
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 9, "log_history": some_logs(9)}))
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 4, "rew')  # being written
    assert [row["step"] for row in read_logs(tmp_path)] == [1, 2, 3]
    assert not read_record(tmp_path).is_finished


def test_finished_and_stopped(tmp_path):
    logs = [*some_logs(40), {"step": 40, "train_runtime": 3725.0}]
    text = Page(write_report(write_run(tmp_path / "out", logs)).read_text()).text
    assert "Finished after 40 steps. The last start took 1 h 2 min." in text
    logs = [*some_logs(31), {"step": 31, "train_runtime": 60.0}]
    text = Page(write_report(write_run(tmp_path / "stopped", logs)).read_text()).text
    assert "Stopped after step 31 of 40. The last start took 1 min 0 s." in text


def test_when_a_training_was_started(tmp_path):
    starts = [{"time": "2026-01-02T03:04:05+00:00", "step": 0}, {"time": "2026-01-03T03:04:05+00:00", "step": 20}]
    text = Page(write_report(write_run(tmp_path, some_logs(40), starts=starts)).read_text()).text
    assert "Started 2026-01-02 03:04:05 UTC. Resumed 2026-01-03 03:04:05 UTC at step 20." in text


# ---------------------------------------------------------------------- nothing from outside


def test_what_a_model_writes_is_text(tmp_path):
    table = some_table(10, completion=[HOSTILE.replace("\ud800", "")] * 8, prompt=[HOSTILE.replace("\ud800", "")] * 8)
    table = table.assign(**{"<b>note</b>": ["<script>" + "&" * 3] * 8})
    name = "<script>set"
    logs = [
        *some_logs(10),
        {"step": 10, f"eval_{name}_rewards/answer_reward/mean": 0.5, f"rewards/{HOSTILE}/mean": 1.0},
    ]
    folder = write_run(tmp_path / "<i>out", logs, table, description={HOSTILE: HOSTILE}, changed=[])
    html = write_report(folder).read_text(encoding="utf-8")
    seen = Page(html)
    assert not {"script", "img", "iframe", "object", "link", "base", "form", "i", "b"} & set(seen.tags)
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    assert seen.text.count("alert('0wned')") > 8 and "\x00" not in html and "␀␛[31m ?" in html


def test_nothing_is_fetched(tmp_path):
    html = write_report(write_run(tmp_path / "out", some_logs(40), some_table(40))).read_text()
    assert "default-src 'none'" in html  # and the browser is told so
    addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s\"'<]*", html))
    assert addresses == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not addresses
    assert not re.search(r"@import|url\((?!#)|\bsrc=", html)


def test_pictures_share_no_id_and_take_the_colours_of_the_page(tmp_path):
    html = write_report(write_run(tmp_path / "out", some_logs(40), some_table(40))).read_text()
    ids = Page(html).ids()
    assert len(ids) == len(set(ids)) > 50
    assert set(re.findall(r"(?:href=\"|url\()#([^\")]+)", html)) <= set(ids)
    drawings = "".join(re.findall(r"<svg role.*?</svg>", html, re.DOTALL))
    assert not re.search(r"#[0-9a-f]{6}\b", drawings)  # every colour is a variable
    assert set(re.findall(r"var\(--(\w+)\)", html)) <= set(pictures.COLOURS)


def contrast(one: str, other: str) -> float:
    """As the WCAG define it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_can_be_read(scheme):
    colours = {name: both[scheme] for name, both in pictures.COLOURS.items()}
    paper = colours.pop("paper")
    assert len(set(pictures.LIGHT.values())) == len(pictures.LIGHT)  # told apart when they become variables
    for name, colour in colours.items():
        least = {"rule": 1.3, "grey": 3.0}.get(name, 4.5)  # lines; marks; text
        assert contrast(colour, paper) >= least, name


# ---------------------------------------------------------------------- curves


def test_series():
    logs = [
        {"step": 1, "x": 1},
        {"step": 2, "y": 0.0},
        {"step": 3, "x": None},
        {"step": 4, "x": float("inf")},
        {"step": 5, "x": 2.0},
        {"step": 5, "x": 3.0},
    ]
    steps, values = curves.series(logs, "x")
    assert steps.tolist() == [1, 3, 4, 5]
    np.testing.assert_equal(values, [1.0, np.nan, np.nan, 3.0])
    assert len(curves.series([{"step": 1, "x": None}, {"step": 2, "x": "text"}], "x")[0]) == 0


def test_many_steps_and_gaps_stay_small_and_readable(tmp_path):
    logs = some_logs(20_000)
    for row in logs[::3]:
        row |= {"reward": float("nan"), "contrastive/head_loss": None, "grad_norm": float("inf")}
    path = write_report(write_run(tmp_path / "out", logs))
    assert path.stat().st_size < 1_500_000 and "nan" not in "".join(re.findall(r'\bd="[^"]*"', path.read_text()))
    steps, values = curves.binned(np.arange(1000.0), np.where(np.arange(1000) < 500, np.nan, 1.0))
    assert len(steps) == len(values) == curves.MAX_POINTS
    assert np.isnan(values[:200]).all() and (values[200:] == 1.0).all() and (np.diff(steps) > 0).all()


def test_running_mean():
    values = np.array([1.0, 2.0, np.nan, 4.0, 5.0])
    np.testing.assert_allclose(curves.running_mean(values, 2), [1.5, 1.5, np.nan, 4.5, 4.5])


def test_panels_are_those_that_have_values():
    record = TrainingRecord(Path("out"), some_facts(), some_logs(10), None, None)
    found = {panel.title: [line.label for line in panel.lines] for panel in curves.panels(record)}
    assert found["Parts of the reward"] == ["answer_reward", "contrastive"]
    assert found["Test sets: answer_reward"] == ["gsm"] and "Entropy" not in found
    assert len(found["Cosine of embeddings in a group"]) == 2
    lines = [line for panel in curves.panels(record) if len(panel.lines) > 1 for line in panel.lines[:2]]
    assert {line.dash for line in lines} == {"", "6 2"}  # told apart without colour
    # A single test set has no name, and without a rule of success all rewards are shown.
    record = TrainingRecord(
        Path("out"), {}, [{"step": 1, "eval_rewards/a/mean": 0.1, "eval_rewards/b/mean": 1}], None, None
    )
    assert [(panel.title, panel.lines[0].label) for panel in curves.panels(record)] == [
        ("Test sets: a", "test set"),
        ("Test sets: b", "test set"),
    ]


def test_whatever_ranks_sound_before_lucky_is_in_one_panel():
    names = ("reward", "embedding", "hidden", "likelihood", "negative_entropy")
    logs = [{"step": 1} | {f"contrastive/sound_auroc_{name}": 0.5 for name in names}]
    (panel,) = curves.panels(TrainingRecord(Path("out"), {}, logs, None, None))
    assert [line.label for line in panel.lines] == [
        "reward", "embedding", "hidden state", "likelihood", "minus entropy"
    ]  # fmt: skip


def test_first_and_last():
    logs = [{"step": step, "x": float(step)} for step in range(100)]
    assert curves.first_and_last(logs, "x") == (4.5, 94.5) and curves.first_and_last(logs, "x", 0.0) == (0.0, 99.0)
    assert curves.first_and_last(logs, "y") is None


# ---------------------------------------------------------------------- embeddings


def test_snapshots_are_saved_as_they_are(tmp_path):
    kept = snapshot(step=7)
    kept.save(tmp_path / FIRST)
    read = EmbeddingSnapshot.load(tmp_path / FIRST)
    assert read.step == 7 and [path.name for path in tmp_path.iterdir()] == [FIRST]
    for name in ("embeddings_PGD", "correct_PG", "valid_PG", "agreement_PG"):
        np.testing.assert_array_equal(getattr(read, name), getattr(kept, name))
    assert EmbeddingSnapshot.load(tmp_path / NEWEST) is None


def test_verdicts():
    kept = snapshot(n_groups=2)
    kept.agreement_PG[:] = [[0.1, -0.1, np.nan, np.nan], [0.0, 0.0, np.nan, np.nan]]
    kept.valid_PG[1, 3] = False
    assert embeddings.verdicts(kept).tolist() == [
        "right",
        "suspicious",
        "wrong",
        "wrong",
        "right",
        "right",
        "wrong",
        "",
    ]
    assert farthest_rows([-3.0, None, float("nan"), -1.0, -1e-9, 0.5, -2.0], 2) == [0, 6]


def test_places():
    points = snapshot(n_groups=5).embeddings_PGD.reshape(20, 6).astype(np.float32)
    for method, place in embeddings.METHODS.items():
        places = place(points)
        assert places.shape == (20, 2) and np.isfinite(places).all(), method
        np.testing.assert_array_equal(places, place(points))
        assert (place(np.ones((20, 6), dtype=np.float32)) == 0).all()  # a head that gives all the same
        assert np.isfinite(place(points[:, :1])).all()  # embeddings of a single entry
    expected = np.linalg.svd(points - points.mean(0), compute_uv=False)[:2]
    np.testing.assert_allclose(np.linalg.norm(embeddings.principal_components(points), axis=0), expected, rtol=1e-4)


def test_few_rollouts_have_a_sentence_in_place_of_a_picture(tmp_path):
    few = snapshot(n_groups=1)
    few.valid_PG[0, :2] = False
    figure = embeddings.draw_embeddings("t-SNE", few, snapshot())
    assert [text.get_text() for text in figure.axes[0].texts] == ["too few rollouts"] and not figure.axes[1].texts


@pytest.mark.parametrize("package, module", [("matplotlib", "matplotlib"), ("scikit-learn", "sklearn.manifold")])
def test_a_missing_package_is_a_sentence(tmp_path, monkeypatch, package, module):
    monkeypatch.setitem(sys.modules, module, None)
    html = write_report(write_run(tmp_path / "out", some_logs(5), some_table(5))).read_text()
    sentence = f"This picture takes {package}, which is not installed: pip install {package}"
    assert html.count(sentence) == (2 if package == "matplotlib" else 1)  # of curves, of embeddings
    n_curves = len(curves.panels(read_record(tmp_path / "out")))
    assert html.count('aria-label="') == (0 if package == "matplotlib" else n_curves + 1)
    assert ("<details open>" in html) is (package == "matplotlib")
    assert "completion 6" in html and "In numbers" in html


# ---------------------------------------------------------------------- completions


def test_suspicious_completions_come_first(tmp_path):
    record = read_record(write_run(tmp_path / "out", some_logs(10), some_table(10)))
    samples = completions.sample_groups(record)
    assert [group.number for group in samples.groups] == [1, 0] and samples.step == 10 and samples.n_left_out == 0
    assert [rollout.verdict for rollout in samples.groups[0].rollouts] == ["suspicious", "right", "right", "wrong"]
    assert samples.groups[0].rollouts[0].completion == "completion 6" and samples.groups[0].prompt == "what is 1?"
    assert samples.columns == ["answer_reward", "contrastive", "agreement", "contrastive_loss", "advantage"]
    assert samples.groups[0].rollouts[0].values == ["1", "-0.1", "-0.2", "0.7", "0.1"]
    assert samples.groups[0].rollouts[3].values[2:4] == ["", ""]


def test_rollouts_that_were_marked_are_the_suspicious_ones():
    table = some_table(10, suspicious=[False, True] + [False] * 6)
    verdicts = completions.table_verdicts(table, some_facts()["success"], some_facts()["rewards"])
    assert verdicts == ["right", "suspicious", "wrong", "wrong", "right", "right", "right", "wrong"]
    assert completions.table_verdicts(table, None, {}) == [""] * 8


def test_tables_of_plain_trl_and_of_earlier_runs(tmp_path):
    table = some_table(3).drop(columns=["group", "agreement", "contrastive_loss", "contrastive"])
    folder = write_run(tmp_path / "out", some_logs(5), table)
    some_table(90).to_parquet(folder / "completions" / "completions_00090.parquet")  # of an earlier, longer run
    some_table(5).to_parquet(folder / "completions" / "eval_completions_00005.parquet")
    samples = completions.sample_groups(read_record(folder))
    assert samples.step == 3 and [len(group.rollouts) for group in samples.groups] == [4, 4]


def test_tables_from_before_the_run_began_are_not_its_own(tmp_path):
    """Of an earlier run in the same folder, which logged its completions at the same steps."""
    folder = write_run(tmp_path / "out", some_logs(5), some_table(3))
    record = read_record(folder)
    began = datetime.fromisoformat(record.facts["starts"][0]["time"]).timestamp()
    [table] = (folder / "completions").glob("*.parquet")
    for moment, found in ((began + 1, table), (began - 1, None)):
        os.utime(table, (moment, moment))
        assert completions.newest_table(record) == found


def test_large_batches_and_long_completions_are_cut(tmp_path):
    n = 20 * 12
    rows = {"answer_reward": 1.0, "step": 2, "completion": "x" * 10_000, "prompt": "p", "agreement": 0.0}
    table = pd.DataFrame([rows | {"group": row // 12, "prompt": f"p{row // 12}"} for row in range(n)])
    samples = completions.sample_groups(read_record(write_run(tmp_path / "out", some_logs(2), table)))
    assert (len(samples.groups), samples.n_left_out) == (completions.MAX_GROUPS, 20 - completions.MAX_GROUPS)
    assert (len(samples.groups[0].rollouts), samples.groups[0].n_left_out) == (completions.MAX_ROLLOUTS, 4)
    text = samples.groups[0].rollouts[0].completion
    assert len(text) < 4100 and "[... 6,000 characters are left out ...]" in text


def test_messages_as_text():
    assert completions.text_of("plain") == "plain" and completions.text_of(None) == ""
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}]
    assert completions.text_of(np.array(talk)) == "system: be brief\n\nuser: [image]what?"
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    assert completions.text_of([call]) == "[calls {'name': 'add'}]"


# ---------------------------------------------------------------------- health and facts


def test_the_health_check_is_asked_again(tmp_path):
    args = json.loads(json.dumps(tiny_config(tmp_path).to_dict(), default=str))
    logs = [{"step": step, "completions/clipped_ratio": 1.0, "reward": 0.5} for step in range(1, 8)]
    text = Page(write_report(write_run(tmp_path / "out", logs, settings=args, changed=[])).read_text()).text
    assert "All truncated, steps 1 to 7" in " ".join(text.split()) and "docs/metrics.md#all-truncated" in text
    healthy = read_record(write_run(tmp_path / "well", some_logs(3), settings=args))
    assert page.findings(healthy) == []
    del args["gradient_accumulation_steps"]  # of a version that had it not
    assert page.findings(read_record(write_run(tmp_path / "old", some_logs(3), settings=args))) is None


def test_facts_tell_no_token():
    secret = {"hub_token": "hf_x", "nested": [{"wandb_api_key": "y", "token": None}], "max_new_tokens": 3}
    assert facts.without_tokens(secret) == {
        "hub_token": "<hidden>",
        "nested": [{"wandb_api_key": "<hidden>", "token": None}],
        "max_new_tokens": 3,
    }
    assert facts.device_name(torch.device("cpu")) == "cpu"


def test_a_page_that_fails_is_a_warning(monkeypatch, caplog):
    def fail(output_dir):
        raise OSError("disk full")

    class Trainer:
        accelerator = type("Accelerator", (), {"is_main_process": True})
        args = type("Args", (), {"output_dir": "runs/mine"})

    monkeypatch.setattr(train_command, "write_report", fail)
    warnings = []
    monkeypatch.setattr(train_command.logger, "warning", warnings.append)
    train_command.report(Trainer)
    assert len(warnings) == 1 and "(OSError: disk full)" in warnings[0] and "clipo report runs/mine" in warnings[0]


def test_code_in_findings():
    assert page.code_spans("`beta` is <b>0</b>") == "<code>beta</code> is &lt;b&gt;0&lt;/b&gt;"


def test_durations():
    assert [page.duration(seconds) for seconds in (3.2, 75, 7325)] == ["3 s", "1 min 15 s", "2 h 2 min"]
