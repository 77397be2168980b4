"""`python -m experiments.readouts` from end to end, on a random policy with planted rollouts."""

import json

import pytest
from test_readouts import planted
from tiny_models import tiny_model, tiny_tokenizer

from experiments.faithfulness import study as faithfulness
from experiments.faithfulness.jobs import write_json
from experiments.readouts import __main__ as command
from experiments.readouts import pictures, report, study
from experiments.readouts.study import MODELS, STAGES, Settings


class OneProcess:
    """Does jobs here, in the place of `JobPool` (see test_faithfulness_jobs.py)."""

    done: list[str] = []

    def __init__(self, *arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, jobs, title):
        for job in jobs:
            if job.result() is None:
                job.folder.mkdir(parents=True, exist_ok=True)
                result = job.work(job.folder, lambda *_: None)
                write_json(job.folder / "result.json", {"settings": job.settings, "result": result})
                self.done.append(job.name)
        return []


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command on one toy policy, a stub, of which planted rollouts are sampled."""

    def stub_warm_start(folder, **settings):
        model, tokenizer = tiny_model(), tiny_tokenizer()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return model, tokenizer

    monkeypatch.setattr(faithfulness, "warm_start", stub_warm_start)
    monkeypatch.setattr(faithfulness, "evaluations_of", lambda *arguments: {})
    monkeypatch.setattr(study, "sample", lambda folder, task, *size: planted(*size[:2]))
    monkeypatch.setattr(command, "JobPool", OneProcess)
    monkeypatch.setattr(OneProcess, "done", [])
    asked = f"--output_dir {tmp_path} --policies habit --groups 8 --group_size 6 --head_steps 1".split()
    return lambda *words: command.main([*asked, *words])


def test_a_policy_from_end_to_end_and_on_from_where_it_stopped(run, tmp_path, monkeypatch):
    with monkeypatch.context() as stopped:
        stopped.setitem(study.WORK, "embeddings", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert run() == 130
    assert OneProcess.done == ["starting policy habit", *(f"habit: {stage}" for stage in STAGES[:4])]
    assert run() == 0
    assert OneProcess.done[5:] == [
        "habit: embeddings",
        "habit: table",
        "habit: models",
    ]  # the others were not done again
    results = report.read_table(tmp_path / "report" / report.TABLE)["habit"]
    assert set(report.TITLES) <= results.keys() and set(MODELS["model/together"]) <= results.keys()
    assert report.MODELS.keys() == MODELS.keys() <= results.keys()
    assert all(0 <= results[name]["auroc_low"] <= results[name]["auroc_high"] <= 1 for name in report.TITLES)
    page = (tmp_path / "report" / report.PAGE).read_text()
    assert "head: alignment" in page and "<!--" not in page
    for picture in (pictures.MECHANISM, pictures.FOREST):
        assert (tmp_path / "report" / "images" / picture).stat().st_size > 10_000
    assert run("--report_only") == 0 and len(OneProcess.done) == 8
    assert run("--head_steps", "2") == 1  # other settings than those of what is there


def test_nothing_finished_is_told(run, capsys):
    assert run("--report_only") == 1
    assert "nothing to report" in capsys.readouterr().out


def test_settings_that_cannot_be_are_told(tmp_path):
    with pytest.raises(ValueError, match="`policies` has nobody"):
        Settings(policies=["nobody"])
    with pytest.raises(ValueError, match="`groups` is 0"):
        Settings(groups=0)
    with pytest.raises(ValueError, match="must be NAME=FOLDER"):
        Settings(language_models=[f"smol={tmp_path}"])
    (tmp_path / "rollouts.jsonl").write_text(json.dumps({}))
    settings = Settings(policies=["none"], language_models=[f"smol={tmp_path}"])
    (source,) = study.sources(settings)
    assert (source.name, source.policy_folder, source.given) == (
        "smol",
        tmp_path / "model",
        tmp_path / "rollouts.jsonl",
    )
