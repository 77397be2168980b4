"""Trainings whose report is kept: what `ReportCallback` writes in every mode, the page in a browser, the trackers."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from peft import LoraConfig
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

import train
from clipo_trl import CLIPOTrainer, ReportCallback, write_report
from clipo_trl.plain import MendedGRPOTrainer
from clipo_trl.report.record import FIRST, NEWEST, EmbeddingSnapshot, read_record


pytestmark = pytest.mark.slow  # whole runs

CONTINUOUS_BATCHING = {
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"block_size": 32, "num_blocks": 16, "max_batch_tokens": 64},
}


class Batches(TrainerCallback):
    """Keeps every batch that was scored."""

    def __init__(self):
        self.batches = []

    def on_batch_scored(self, args, state, control, batch, **kwargs):
        self.batches.append((state.global_step, batch))


def make_trainer(
    output_dir, num_groups=16, peft_config=None, eval_dataset=None, trainer_class=CLIPOTrainer, **settings
):
    """A trainer with a `ReportCallback`, and the batches that it will have scored."""
    config = tiny_config(output_dir, **settings)
    seen = Batches()
    trainer = trainer_class(
        tiny_model(), letters_reward, config, train_dataset=tiny_dataset(), eval_dataset=eval_dataset,
        processing_class=tiny_tokenizer(), peft_config=peft_config, callbacks=[seen],
    )  # fmt: skip
    trainer.add_callback(ReportCallback(trainer, num_groups=num_groups))
    return trainer, seen.batches


def assert_kept(snapshot: EmbeddingSnapshot, step_and_batch, num_groups: int = 16) -> None:
    step, batch = step_and_batch
    assert snapshot.step == step and len(snapshot.embeddings_PGD) <= num_groups
    expected = batch.embeddings_PGD[:num_groups].half().cpu().numpy()
    np.testing.assert_array_equal(snapshot.embeddings_PGD, expected)
    np.testing.assert_array_equal(snapshot.correct_PG, batch.correct_PG[:num_groups].cpu().numpy())
    np.testing.assert_array_equal(np.isnan(snapshot.agreement_PG), ~batch.is_scored_PG[:num_groups].cpu().numpy())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with two test sets, its trainer and the batches that were scored."""
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    settings = {
        "log_completions": True,
        "num_completions_to_print": 0,
        "max_steps": 6,
        "per_device_train_batch_size": 16,
        "num_generations": 8,
        "seed": 1,
        "num_generations_eval": 2,
    }
    trainer, batches = make_trainer(
        folder,
        eval_strategy="steps",
        eval_steps=2,
        eval_dataset={"easy": tiny_dataset(2), "hard": tiny_dataset(4)},
        **settings,
    )
    trainer.train()
    write_report(folder)
    return trainer, batches, folder


# ---------------------------------------------------------------------- what is kept


def test_the_first_and_the_newest_batch_of_training_are_kept(trained):
    trainer, batches, folder = trained
    record = read_record(folder)
    assert len(batches) == 6  # evaluation feeds nothing
    assert_kept(record.before, batches[0])
    assert_kept(record.after, batches[-1])
    assert record.is_finished and len(record.logs) == len(trainer.state.log_history)
    for row, logged in zip(record.logs, json.loads(json.dumps(trainer.state.log_history)), strict=True):
        assert row.pop("time") > 0 and row.items() <= logged.items()
    seconds = [row["contrastive/report_seconds"] for row in record.logs if "contrastive/report_seconds" in row]
    assert len(seconds) == 6 and all(0 < value < 5 for value in seconds)
    assert {path.name for path in (folder / "report").iterdir()} == {"run.json", FIRST, NEWEST}
    facts = record.facts
    assert facts["method"] == "CLIPO" and facts["description"]["data"] == "8 prompts" and "seed" in facts["changed"]
    assert facts["success"] == {"rewards": ["letters_reward"], "threshold": 0.0} and facts["max_steps"] == 6
    assert [start["step"] for start in facts["starts"]] == [0] and "max_grad_norm" not in facts["changed"]
    text = (folder / "report.html").read_text()
    assert "Finished after 6 steps" in text and "Test sets: letters_reward" in text and "▲ suspicious" in text


def test_a_run_that_goes_on_keeps_its_beginning(tmp_path):
    trainer, before = make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=5)
    trainer.train()
    resumed, after = make_trainer(tmp_path, save_strategy="steps", save_steps=2, max_steps=6)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    record = read_record(tmp_path)
    assert_kept(record.before, before[0])
    assert_kept(record.after, after[-1])
    assert [row["step"] for row in record.logs if "reward" in row] == [1, 2, 3, 4, 5, 6]  # step 5 once
    assert [start["step"] for start in record.facts["starts"]] == [0, 4]
    assert "at step 4." in write_report(tmp_path).read_text()
    again, batches = make_trainer(tmp_path, max_steps=1, seed=3)  # starts afresh in the same folder
    again.train()
    record = read_record(tmp_path)
    assert_kept(record.before, batches[0])
    assert len(record.facts["starts"]) == 1 and record.step == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"peft_config": LoraConfig(r=4, target_modules=["q_proj"]), "bf16": True},
        {"contrastive_warmup_steps": 2, "contrastive_warmup_policy": "frozen"},
        {"steps_per_generation": 2, "per_device_train_batch_size": 4, "max_steps": 4, "num_groups": 1},
        CONTINUOUS_BATCHING,
    ],
    ids=["LoRA in bf16", "frozen warm-up", "several steps a batch", "continuous batching"],
)
def test_modes(tmp_path, settings):
    num_groups = settings.get("num_groups", 16)
    trainer, batches = make_trainer(tmp_path, **settings)
    trainer.train()
    record = read_record(tmp_path)
    assert_kept(record.before, batches[0], num_groups)
    assert_kept(record.after, batches[-1], num_groups)
    assert record.before.step == 0 < record.after.step
    assert record.facts["frozen_steps"] == settings.get("contrastive_warmup_steps", 0)
    assert "PCA, " in write_report(tmp_path).read_text()


def test_a_trainer_without_a_head_has_a_report_without_embeddings(tmp_path):
    trainer, batches = make_trainer(tmp_path, trainer_class=MendedGRPOTrainer)
    trainer.train()
    text = write_report(tmp_path).read_text()
    assert not batches and "Finished after 3 steps" in text and "GRPO" in text and "None were kept" in text


def test_an_evaluation_is_no_training(tmp_path):
    trainer, batches = make_trainer(tmp_path, eval_dataset=tiny_dataset(2), num_generations_eval=2, max_steps=1)
    trainer.evaluate()
    assert not batches and not (tmp_path / "report").exists()
    trainer.train()
    trainer.evaluate()
    logs = read_record(tmp_path).logs
    assert len(batches) == 1 and ["eval_loss" in row for row in logs] == [False, False, True]


def test_it_needs_a_positive_number_of_groups(tmp_path):
    with pytest.raises(ValueError, match="`num_groups` is 0"):
        make_trainer(tmp_path, num_groups=0)


def test_the_script_writes_it_unless_told_otherwise(tmp_path, model_path):
    path = tmp_path / "rows.jsonl"
    pd.DataFrame({"question": ["1 + 1?", "2 + 2?"], "answer": ["#### 2", "#### 4"]}).to_json(
        path, orient="records", lines=True
    )
    argv = (
        f"--model_name_or_path {model_path} --dataset_name {path} --use_cpu true --bf16 false "
        "--report_to none --disable_tqdm true --max_completion_length 4 --num_generations 4 --per_device_train_batch_size 4 "
        "--gradient_accumulation_steps 1 --max_steps 2 --save_strategy no --reward_funcs test_train_script.even_length"
    ).split()
    train.main([*argv, "--output_dir", str(tmp_path / "with")])
    page = (tmp_path / "with" / "report.html").read_text()
    assert "rows.jsonl (train): 2 prompts" in page and "contrastive loss" in page  # the table of the start
    train.main([*argv, "--output_dir", str(tmp_path / "without"), "--report", "false"])
    train.main([*argv, "--output_dir", str(tmp_path / "grpo"), "--contrastive", "false"])
    assert not list((tmp_path / "without").glob("report*"))
    assert "<h1>GRPO: grpo</h1>" in (tmp_path / "grpo" / "report.html").read_text()


# ---------------------------------------------------------------------- trackers


def test_tensorboard_gets_pictures_and_its_projector(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "logs"))
    trainer, _ = make_trainer(tmp_path / "out", report_to="tensorboard")
    trainer.train()
    events = EventAccumulator(str(tmp_path / "logs"))
    events.Reload()
    assert events.Tags()["images"] == ["embeddings/t-SNE", "embeddings/PCA"]
    picture = events.Images("embeddings/PCA")[0]
    assert picture.step == 3 and picture.encoded_image_string.startswith(b"\x89PNG") and picture.width > 500
    config = (tmp_path / "logs" / "projector_config.pbtxt").read_text()
    for name, kept in (("before", FIRST), ("after", NEWEST)):
        assert f"{name}/tensors.tsv" in config and f"{name}/metadata.tsv" in config
        (tensors,) = (tmp_path / "logs").glob(f"*/{name}/tensors.tsv")
        snapshot = EmbeddingSnapshot.load(tmp_path / "out" / "report" / kept)
        np.testing.assert_allclose(np.loadtxt(tensors), snapshot.embeddings_PGD.reshape(8, -1), atol=1e-4)
        header, *rows = tensors.with_name("metadata.tsv").read_text().splitlines()
        assert header.split("\t") == ["rollout", "group", "agreement"] and len(rows) == 8
        assert {row.split("\t")[1] for row in rows} == {"0", "1"}


def test_wandb_gets_pictures(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    trainer, _ = make_trainer(tmp_path / "out", report_to="wandb")
    try:
        trainer.train()
        logged = dict(wandb.run.summary)
    finally:
        wandb.finish()
    for name in ("embeddings/t-SNE", "embeddings/PCA"):
        assert logged[name]["_type"] == "image-file" and logged[name]["width"] > 500
    assert len(list(tmp_path.glob("wandb/offline-run-*/files/media/images/**/*.png"))) == 2


def test_trackio_gets_pictures(tmp_path):
    """In a process of its own: where Trackio writes is settled when it is imported."""
    pytest.importorskip("trackio")
    settings = "report_to='trackio', project='report-test', trackio_space_id=None"
    code = f"from test_report_of_a_run import make_trainer\nmake_trainer({str(tmp_path / 'out')!r}, {settings})[0].train()"
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "TRACKIO_DIR": str(tmp_path / "trackio")}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "trackio").glob("media/report-test/**/*.png"))) == 2


def test_a_tracker_that_fails_is_a_warning(tmp_path, monkeypatch):
    from clipo_trl.report import trackers

    def fail(callback, images, record):
        raise ConnectionError("no route")

    said = []
    monkeypatch.setattr(trackers, "SENDERS", ((Batches, fail),))
    monkeypatch.setattr(trackers.logger, "warning", said.append)
    trainer, _ = make_trainer(tmp_path / "out", max_steps=1)
    trainer.train()
    assert len(said) == 1 and "Batches did not take the pictures" in said[0] and "ConnectionError: no route" in said[0]


# ---------------------------------------------------------------------- in a browser


@contextlib.contextmanager
def chromium():
    """A headless Chromium that keeps what its console says and what it asks for."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver_path = shutil.which("chromedriver")
    if driver_path is None:
        pytest.skip("needs chromedriver and Chromium")
    words = (
        "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
        "--disable-component-update --disable-sync --window-size=1200,900"
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = webdriver.ChromeOptions()
        for word in [*words.split(), f"--user-data-dir={profile}"]:
            options.add_argument(word)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver_path))
        try:
            browser.get("about:blank")
            browser.get_log("performance")  # what the browser asked for at its start
            yield browser
        finally:
            browser.quit()


# Contrast of each text with the page, as the WCAG define it: the least one, and whose it is.
LEAST_CONTRAST = """
const luminance = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const paper = luminance(getComputedStyle(document.body).backgroundColor);
let least = [99, ""];
for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some(child => child.nodeType === 3 && child.textContent.trim());
    if (!own || ["STYLE", "style"].includes(node.tagName)) continue;
    const style = getComputedStyle(node), ink = luminance(node instanceof SVGElement ? style.fill : style.color);
    const value = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (value < least[0]) least = [value, node.outerHTML.slice(0, 200)];
}
return least;
"""
SIZES = "return [...document.querySelectorAll('figure > svg')].map(e => e.getBoundingClientRect()).map(r => [r.width, r.height])"


def test_the_page_in_a_browser(trained):
    _, _, folder = trained
    address = (folder / "report.html").as_uri()
    with chromium() as browser:
        papers = set()
        for scheme in ("light", "dark"):
            features = [{"name": "prefers-color-scheme", "value": scheme}]
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            browser.get(address)
            least, whose = browser.execute_script(LEAST_CONTRAST)
            assert least >= 4.5, (scheme, whose)
            papers.add(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
            sizes = browser.execute_script(SIZES)
            assert len(sizes) > 8 and all(width > 200 and height > 100 for width, height in sizes)
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        assert len(papers) == 2
        pdf = browser.execute_cdp_cmd("Page.printToPDF", {})["data"]
        assert len(pdf) > 50_000
        assert browser.get_log("browser") == []
        sent = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = {m["params"]["request"]["url"] for m in sent if m["method"] == "Network.requestWillBeSent"}
        assert asked == {address}
        # On a telephone nothing but tables is wider than the screen, and those scroll by themselves.
        metrics = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_nothing_that_a_model_writes_runs(trained, tmp_path):
    """The escaping, and behind it the page's own rule that nothing may run."""
    folder = shutil.copytree(trained[2], tmp_path / "hostile")
    (path,) = (folder / "completions").glob("completions_00006.parquet")
    table = pd.read_parquet(path)
    attack = "</pre><script>document.title='run'</script><img src=x onerror=\"document.title='run'\"><svg onload=\"document.title='run'\">"
    table["completion"] = [attack] * len(table)
    table.to_parquet(path)
    page = write_report(folder)
    with chromium() as browser:
        browser.get(page.as_uri())
        assert browser.title == "CLIPO: hostile" and browser.get_log("browser") == []
        assert attack in browser.execute_script("return document.querySelector('td.last pre').textContent")
        unescaped = tmp_path / "unescaped.html"
        unescaped.write_text(Path(page).read_text().replace("</h1>", f"</h1>{attack}"))
        browser.get(unescaped.as_uri())
        assert browser.title == "CLIPO: hostile"
