"""`evaluate.py` end to end: true scores on synthetic completions, runs that are killed and go on, adapters, two
models."""

import asyncio
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM
from trl import TrlParser

import evaluate
from clipo_trl import ContrastiveHead, RolloutEmbedder
from clipo_trl.cli import evaluate as evaluation
from clipo_trl.cli.evaluation_records import read_records
from clipo_trl.cli.evaluation_tables import TRACKS
from clipo_trl.cli.sampling import Completion
from reward_funcs.errors import UsageError


ROOT = Path(__file__).parents[1]


def even_length(completions, **kwargs) -> list[float]:
    """Right about half of the time, for a model that knows nothing."""
    return [float(len(completion[-1]["content"]) % 2 == 0) for completion in completions]


def write_rows(path: Path, rows: dict[str, list]) -> str:
    pd.DataFrame(rows).to_json(path, orient="records", lines=True)
    return str(path)


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory) -> str:
    """Questions of different lengths."""
    questions = [f"{'1 + ' * (i % 5)}{i}?" for i in range(12)]
    return write_rows(
        tmp_path_factory.mktemp("data") / "sums.jsonl",
        {"question": questions, "answer": [f"#### {i}" for i in range(12)]},
    )


@pytest.fixture
def run(model_path, rows_path, tmp_path):
    """`main` on twelve questions with two samples each, of which a generation holds six; later fields override earlier
    ones."""

    def run(*overrides: str) -> dict:
        argv = (
            f"--model {model_path} --datasets {rows_path} --output_dir {tmp_path / 'out'} --max_completion_length 8 "
        )
        sampling = "--num_samples 2 --temperature 1 --batch_size 6 --reward_func test_evaluate_script.even_length"
        return evaluate.main([*argv.split(), *sampling.split(), *" ".join(overrides).split()])

    return run


class Oracle:
    """Stands in for a model: answers question `i` as `script[i]` says, sample by sample."""

    rows_at_a_time = 8
    script: list[list[str]] = []
    calls = 0

    def __init__(self, model, decoding, *, dtype):
        self.tokenizer = tiny_tokenizer()

    def sample(self, prompts, seeds):
        assert len(prompts) == len(seeds) <= self.rows_at_a_time
        completions = []
        for prompt in prompts:
            question = int(self.tokenizer.decode(prompt).partition("Question ")[2].partition(":")[0])
            Oracle.calls += 1
            completions.append(Completion(self.tokenizer(next(self.queues[question]))["input_ids"], False))
        return completions


@pytest.fixture
def oracle(monkeypatch):
    def prepare(script: list[list[str]]) -> None:
        Oracle.queues = [iter(texts) for texts in script]

    Oracle.calls = 0
    monkeypatch.setitem(evaluate.SAMPLERS, "transformers", Oracle)
    return prepare


def box(answer: str) -> str:
    return rf"Some thought. \boxed{{{answer}}}"


# ---------------------------------------------------------------------- true scores


def test_scores_are_those_of_synthetic_completions(oracle, tmp_path):
    """Every score is known: question i has i right ones of four samples, which spell the answer in different ways."""
    right = [r"\frac{1}{2}", "0.5", "1/2", r"\dfrac12"]
    wrong = ["7", "8", "9", "7.0"]
    texts = [[box(answer) for answer in right[:i] + wrong[i:]] for i in range(5)]
    for number, question in enumerate(texts):
        random.Random(number).shuffle(question)
    texts[0][2] = "no box at all, and 1/2"
    oracle(texts)
    rows = {"problem": [f"Question {i}:{'!' * (i % 3)}" for i in range(5)], "solution": [r"so \boxed{1/2}"] * 5}
    argv = f"--model oracle --datasets math_500={write_rows(tmp_path / 'rows.jsonl', rows)} --output_dir {tmp_path / 'out'}"
    results = evaluate.main(f"{argv} --num_samples 4 --temperature 0.6".split())

    values = {metric: score["value"] for metric, score in results["sets"]["math_500"]["scores"].items()}
    assert values == {
        "mean@4": pytest.approx((0 + 1 + 2 + 3 + 4) / 20),
        "pass@1": pytest.approx((0 + 1 + 2 + 3 + 4) / 20),
        "pass@2": pytest.approx((0 + 1 / 2 + 5 / 6 + 1 + 1) / 5),
        "pass@4": pytest.approx(4 / 5),
        # 1 right against 8, 9 and 7.0: a tie of four; 2 right against 9 and 7.0; then clear majorities
        "maj@4": pytest.approx((0 + 1 / 4 + 1 + 1 + 1) / 5),
    }
    assert results["tables"]["Track II"]["columns"]["MATH-500"]["value"] == pytest.approx(0.5)
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == results
    assert "| oracle | 50.0 [" in (tmp_path / "out" / "results.md").read_text()

    records = read_records(tmp_path / "out" / "math_500.jsonl")
    assert list(records) == list(range(5))
    for question, record in records.items():
        assert sum(record["rewards"]) == question
        assert record["completions"] == texts[question]
        assert record["prompt"][0]["content"].startswith(f"Question {question}:")
        assert record["solution"] == r"so \boxed{1/2}"
        assert record["tokens"] == [len(text) for text in texts[question]]
    assert records[0]["answers"].count(None) == 1
    assert len(records[2]["majority_answers"]) == 1 and records[2]["majority_answers"][0] in right


def test_multiple_choice_and_plain_text_prompts(oracle, tmp_path):
    oracle([[box("B"), box("(b)"), box("A")], [box("mall"), box("A"), box("A")]])
    options = "\nOptions:\nA. bank\nB. mall"
    rows = {
        "prompt": [f"Question {i}:{options}" for i in range(2)],
        "solution": ["B", "B"],
        "data_source": ["mmlu"] * 2,
    }
    argv = (
        f"--model oracle --datasets mmlu={write_rows(tmp_path / 'rows.jsonl', rows)} --output_dir {tmp_path / 'out'}"
    )
    results = evaluate.main(f"{argv} --num_samples 3 --temperature 1".split())
    scores = results["sets"]["mmlu"]["scores"]
    assert scores["mean@3"]["value"] == pytest.approx(0.5) and scores["maj@3"]["value"] == 0.5
    assert results["tables"]["Track I"]["columns"]["MMLU"]["value"] == pytest.approx(0.5)


def test_rewards_get_what_trl_gives_them(oracle, tmp_path, monkeypatch):
    seen = {}

    def spy(prompts, completions, completion_ids, solution, level, **kwargs):
        seen.update(prompts=prompts, completions=completions, ids=completion_ids, solution=solution, level=level)
        return [None, 0.0, 1.0, 0.2]

    monkeypatch.setattr(sys.modules[__name__], "spy", spy, raising=False)
    oracle([["a", "b"], ["c", "d"]])
    rows = {"question": ["Question 0:", "Question 1:"], "answer": ["#### 5", "#### 6"], "level": [3, 4]}
    argv = f"--model oracle --datasets {write_rows(tmp_path / 'rows.jsonl', rows)} --output_dir {tmp_path / 'out'}"
    results = evaluate.main(f"{argv} --num_samples 2 --temperature 1 --reward_func test_evaluate_script.spy".split())
    assert [completion[0]["content"] for completion in seen["completions"]] == ["a", "b", "c", "d"]
    assert seen["completions"][0][0]["role"] == "assistant"
    assert seen["solution"] == ["5", "5", "6", "6"] and seen["level"] == [3, 3, 4, 4]
    assert seen["prompts"][2][0]["content"] == "Question 1:" and len(seen["ids"]) == 4
    assert results["sets"]["rows"]["scores"]["mean@2"]["value"] == 0.5
    assert results["sets"]["rows"]["without_reward"] == 1


# ---------------------------------------------------------------------- killed, and resumed


def contents(folder: Path) -> dict[int, dict]:
    return read_records(folder / "sums.jsonl")


def test_a_run_cut_anywhere_ends_as_if_it_had_not_been(run, tmp_path, caplog):
    whole_results = run()
    path = tmp_path / "out" / "sums.jsonl"
    whole, lines = contents(tmp_path / "out"), path.read_bytes()
    assert len(whole) == 12 and len({tuple(record["completions"]) for record in whole.values()}) > 6
    for end in (0, 1, len(lines) // 3, len(lines) // 2, lines.rindex(b"\n"), len(lines) - 20):
        path.write_bytes(lines[:end])
        kept = lines[:end].count(b"\n")
        caplog.clear()
        assert run() == whole_results
        assert (f"{kept} of 12 problems were sampled before, and are kept" in caplog.text) == (kept > 0)
        assert contents(tmp_path / "out") == whole
        assert path.read_bytes().count(b"\n") == 12  # nothing twice


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on(run, model_path, rows_path, tmp_path):
    expected = run("--output_dir", str(tmp_path / "whole"))
    out = tmp_path / "out"
    # The same command in a process of its own, slowed down, killed without warning once a few questions are there.
    slow = (
        "import sys, time, evaluate, clipo_trl.cli.sampling as s\n"
        "sample = s.TransformersSampler.sample\n"
        "s.TransformersSampler.sample = lambda *args: (time.sleep(0.5), sample(*args))[1]\n"
        "evaluate.main(sys.argv[1:])"
    )
    argv = f"--model {model_path} --datasets {rows_path} --output_dir {out} --max_completion_length 8 --num_samples 2"
    argv += " --temperature 1 --batch_size 6 --reward_func test_evaluate_script.even_length"
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *argv.split()], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline and not contents(out):
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, output
    assert 0 < len(contents(out)) < 12, output

    assert run() == expected
    assert contents(out) == contents(tmp_path / "whole")


def test_a_finished_run_needs_no_model(run, monkeypatch):
    expected = run()
    monkeypatch.setitem(evaluate.SAMPLERS, "transformers", None)
    assert run() == expected


def test_another_batch_size_gives_the_same_completions(run, tmp_path):
    run()
    for size in (1, 2, 100):
        run("--batch_size", str(size), "--output_dir", str(tmp_path / f"by_{size}"))
        assert contents(tmp_path / f"by_{size}") == contents(tmp_path / "out")
    run("--seed 1", "--output_dir", str(tmp_path / "seed"))
    assert contents(tmp_path / "seed") != contents(tmp_path / "out")


@pytest.mark.parametrize(
    "override, named",
    [
        ("--temperature 0.9", "temperature: was 1.0, is 0.9"),
        ("--seed 3", "seed: was 0, is 3"),
        ("--num_samples 4", "num_samples: was 2, is 4"),
        ("--max_samples 5", "datasets.sums.questions: was 12, is 5"),
        ("--instruction Think.", "datasets.sums.sha256: was "),
        ("--reward_func verifiable", "reward_func: was 'test_evaluate_script.even_length', is 'verifiable'"),
    ],
)
def test_another_setting_is_refused_and_named(run, override, named):
    run()
    with pytest.raises(ValueError, match=f"(?s)other settings.*{named}"):
        run(override)


def test_a_model_that_was_trained_on_is_refused(run, tmp_path):
    model = tmp_path / "model"
    tiny_model().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    run("--model", str(model))
    tiny_model(seed=1).save_pretrained(model)
    with pytest.raises(ValueError, match="weights: was "):
        run("--model", str(model))


def test_sets_can_be_added_and_unfinished_ones_are_left_out(run, rows_path, tmp_path, caplog, monkeypatch):
    run()
    results = run("--datasets", f"more={rows_path}")
    assert set(results["sets"]) == {"sums", "more"}
    assert results["sets"]["sums"]["scores"] == results["sets"]["more"]["scores"]
    path = tmp_path / "out" / "sums.jsonl"
    path.write_bytes(b"\n".join(path.read_bytes().split(b"\n")[:3]) + b"\n")
    monkeypatch.setattr(evaluate.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        assert set(run("--datasets", f"more={rows_path}")["sets"]) == {"more"}
    assert "sums has 3 of 12 questions" in caplog.text


# ---------------------------------------------------------------------- models


def test_greedy_with_a_lora_adapter(run, model_path, tmp_path):
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(model_path),
        LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False),
    )
    adapted.save_pretrained(tmp_path / "adapter")
    run("--num_samples 1 --temperature 0")
    run(
        "--num_samples 1 --temperature 0", "--model", str(tmp_path / "adapter"), "--output_dir", str(tmp_path / "lora")
    )
    assert contents(tmp_path / "lora") != contents(tmp_path / "out")


def test_two_models_side_by_side(oracle, tmp_path, capsys, caplog, monkeypatch):
    rows = {"question": [f"Question {i}:" for i in range(20)], "answer": ["#### 3"] * 20}
    path = write_rows(tmp_path / "rows.jsonl", rows)

    def evaluated(name: str, n_right: int, *options: str) -> str:
        oracle([[box("3" if i < n_right else "4")] for i in range(20)])
        argv = f"--model {name} --datasets gsm8k={path} --output_dir {tmp_path / name}"
        evaluate.main([*argv.split(), *options])
        return str(tmp_path / name)

    old, new = evaluated("old", 6), evaluated("new", 16)
    results = evaluate.main(["--compare", old, new, "--output_dir", str(tmp_path / "both")])
    difference = results["tables"]["Track I"]["columns"]["GSM8K"]["difference"]
    assert difference["value"] == pytest.approx(0.5)
    assert difference["p_value"] == pytest.approx(2 / 2**10, abs=0.0015)  # McNemar's: 10 questions, all for B
    assert json.loads((tmp_path / "both" / "comparison.json").read_text()) == results
    assert "| B: " in (tmp_path / "both" / "comparison.md").read_text()
    assert "B - A" in capsys.readouterr().out
    assert evaluate.main(["--compare", old, new]) == results  # without a folder it is only shown
    assert results["models"] == ["old", "new"]
    assert evaluate.main(["--compare", old, old])["models"] == [
        old,
        old,
    ]  # one name for both: the folders tell them apart

    other = evaluated("other", 3, "--max_completion_length", "5")
    monkeypatch.setattr(evaluate.logger, "propagate", True)
    with caplog.at_level(logging.WARNING):
        evaluate.main(["--compare", old, other])
    assert "another `max_completion_length`: 2048 and 5" in caplog.text
    shorter = evaluated("shorter", 3, "--max_samples", "5")
    with pytest.raises(ValueError, match="questions of gsm8k"):
        evaluate.main(["--compare", old, shorter])


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    "argv, message",
    [
        ("--datasets a=b --output_dir o", "`model` is missing.*--model"),
        ("--model m --output_dir o", "`datasets` is missing"),
        ("--model m --datasets a=b", "`output_dir` is missing"),
        ("--compare a", "needs two folders"),
        ("--model m --datasets a=b --output_dir o --chat_template_kwargs {x", "is '{x', but must be JSON"),
        ("--model m --datasets a=b --output_dir o --num_samples 0", "`num_samples` is 0"),
        ("--model m --datasets a=b --output_dir o --batch_size 0", "`batch_size` is 0"),
        ("--model m --datasets a=b --output_dir o --num_samples 2", "`temperature` 0 all samples .* the same"),
        ("--model m --datasets a=b a=c --output_dir o", "'a' is there twice"),
        ("--model m --datasets a/b=c --output_dir o", "'a/b' must be of letters"),
        ("--model m --datasets a=none.jsonl --output_dir o", "none.jsonl' does not exist"),
        ("--compare nowhere nothing", "'nowhere' has no settings.json"),
    ],
)
def test_bad_arguments(argv, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        evaluate.main(argv.split())


def test_a_backend_that_does_not_exist(tmp_path):
    (tmp_path / "c.yaml").write_text("{model: m, datasets: [a=b], output_dir: o, backend: jax}")
    with pytest.raises(ValueError, match="`backend` is 'jax'.*'transformers', 'vllm'"):
        evaluate.main(["--config", str(tmp_path / "c.yaml")])


@pytest.mark.parametrize(
    "name, track, expected",
    [
        ("track1", "Track I", {"num_samples": 1, "temperature": 0.0, "max_completion_length": 2048}),
        (
            "track2",
            "Track II",
            {"num_samples": 16, "temperature": 0.6, "top_p": 0.95, "max_completion_length": 4096},
        ),
    ],
)
def test_the_papers_suites(name, track, expected):
    parser = TrlParser((evaluate.EvaluationArguments,))
    config = str(ROOT / "configs" / "eval" / f"{name}.yaml")
    (args,) = parser.parse_args_and_config(["--config", config, "--model", "m", "--output_dir", "o"])
    assert {field: getattr(args, field) for field in expected} == expected
    assert list(evaluate.name_datasets(args.datasets)) == list(TRACKS[track])
    assert "\\boxed{}" in args.instruction and args.reward_func == "verifiable"


def test_a_suite_from_its_file(oracle, tmp_path, capsys):
    """The paper's file of settings, test sets of our own: all columns, and so a whole average."""
    oracle([[box("3")] * 16 * 6, [box("4")] * 16 * 6])
    rows = {"question": ["Question 0:", "Question 1:"], "answer": ["#### 3"] * 2}
    path = write_rows(tmp_path / "rows.jsonl", rows)
    sets = " ".join(f"{name}={path}" for name in TRACKS["Track II"])
    argv = f"--config {ROOT}/configs/eval/track2.yaml --model oracle --output_dir {tmp_path / 'out'} --backend transformers"
    results = evaluate.main(f"{argv} --datasets {sets}".split())
    assert results["tables"]["Track II"]["average"]["value"] == 0.5
    assert results["tables"]["Track II"]["average_of"] == "6 of 6"
    assert Oracle.calls == 2 * 16 * 6
    assert "All scores, %: in" in capsys.readouterr().out  # six columns of intervals do not fit into a terminal
    assert "maj@16" in (tmp_path / "out" / "results.md").read_text()


# ---------------------------------------------------------------------- agreement, lucky


def letters(completions, question=None, **kwargs) -> list[float | None]:
    """Stands for a checker of steps, which gives nothing for one question."""
    texts = [completion[-1]["content"] for completion in completions]
    return [None if i < 4 else float(text[:1].isalpha()) for i, text in enumerate(texts)]


async def asks_for_all(completions, solution, trainer_state, log_extra, log_metric, **kwargs) -> list[float]:
    """A reward, or a checker of steps, that takes what TRL gives one."""
    log_extra("lengths", [len(completion[-1]["content"]) for completion in completions])
    log_metric("mine", 1.0)
    assert trainer_state.global_step == 0 and len(solution) == len(completions)
    await asyncio.sleep(0)
    return even_length(completions)


def test_an_evaluation_that_never_began_binds_nobody(run, model_path, tmp_path):
    folder = shutil.copytree(model_path, tmp_path / "plain")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(UsageError, match="has no `chat_template`"):
        run(f"--model {folder}")
    assert not (tmp_path / "out" / "sums.jsonl").exists()
    assert run()["sets"]["sums"]


def test_a_missing_head_is_told_before_anything_is_sampled(run, model_path, tmp_path):
    with pytest.raises(UsageError, match="head"):
        run("--agreement true")
    assert not (tmp_path / "out" / "sums.jsonl").exists()


def fails(completions, **kwargs):
    raise RuntimeError("a checker of steps that fails")


def test_a_checker_that_fails_leaves_the_results(run, tmp_path):
    with pytest.raises(RuntimeError, match="that fails"):
        run("--step_reward test_evaluate_script.fails")
    assert (tmp_path / "out" / "results.json").exists()


def test_prompts_take_the_templates_options(run, model_path, tmp_path):
    folder = shutil.copytree(model_path, tmp_path / "templated")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if long is defined %}aaaa{% endif %}{{ messages[0].content }}"
    tokenizer.save_pretrained(folder)
    seen = []
    tokenize = evaluation.tokenize_prompt
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluation, "tokenize_prompt", lambda *args, **kw: seen.append(tokenize(*args, **kw)) or seen[-1]
        )
        run(f"--model {folder}")
        run(f"--model {folder} --output_dir {tmp_path / 'long'}", '--chat_template_kwargs {"long":true}')
    assert [len(ids) for ids in seen[12:]] == [len(ids) + 4 for ids in seen[:12]]
    embedded = []
    with pytest.MonkeyPatch.context() as patch:
        embed = RolloutEmbedder.__call__
        patch.setattr(
            RolloutEmbedder, "__call__", lambda self, *args, **kw: embedded.append(kw) or embed(self, *args, **kw)
        )
        ContrastiveHead(16, 8).save_into(str(folder))
        run(
            f"--model {folder} --output_dir {tmp_path / 'long'} --agreement true",
            '--chat_template_kwargs {"long":true}',
        )
    assert [kw["chat_template_kwargs"] for kw in embedded] == [{"long": True}]
    with pytest.raises(UsageError, match="chat_template_kwargs: was None, is"):
        run(f"--model {folder}", '--chat_template_kwargs {"long":true}')


def test_folders_from_home(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    run("--output_dir=~/there")
    assert (tmp_path / "there" / "results.json").exists()


def test_rewards_are_called_as_in_training(run, tmp_path):
    run("--step_reward test_evaluate_script.even_length")
    records = (tmp_path / "out" / "sums.jsonl").read_text()
    told = (tmp_path / "out" / "agreement" / "sums.jsonl").read_text()
    run(f"--output_dir {tmp_path / 'all'} --step_reward test_evaluate_script.asks_for_all "
        "--reward_func test_evaluate_script.asks_for_all")  # fmt: skip
    assert (tmp_path / "all" / "sums.jsonl").read_text() == records
    assert (tmp_path / "all" / "agreement" / "sums.jsonl").read_text() == told


@pytest.fixture
def with_head(model_path, tmp_path):
    folder = shutil.copytree(model_path, tmp_path / "model")
    ContrastiveHead(16, 8).save_into(str(folder))
    return str(folder)


def test_agreement_and_lucky_share(run, with_head, tmp_path):
    looked = f"--model {with_head} --num_samples 4 --agreement true --step_reward test_evaluate_script.letters"
    results = run(looked)
    told = results["sets"]["sums"]["agreement"]
    records = list(read_records(tmp_path / "out" / "sums.jsonl").values())
    lines = [json.loads(line) for line in (tmp_path / "out" / "agreement" / "sums.jsonl").read_text().splitlines()]
    assert [line["question"] for line in lines] == list(range(12))
    # by hand, one question at a time
    embedder = RolloutEmbedder.from_pretrained(with_head, device="cpu")
    agreement, suspicious, lucky, wins, pairs = [], [], [], 0.0, 0
    for record, line in zip(records, lines, strict=True):
        cut = [
            truncated and bool(text)
            for truncated, text in zip(record["truncated"], record["completions"], strict=True)
        ]
        embeddings = embedder([record["prompt"]] * 4, record["completions"], truncated=cut).double()
        right = [i for i in range(4) if record["rewards"][i] > 0]
        wrong = [i for i in range(4) if i not in right]
        for i in range(4):
            others = [j for j in right if j != i]
            if i not in right or not others:
                assert line["agreement"][i] is None and not line["suspicious"][i]
                continue
            mean = sum(embeddings[i] @ embeddings[j] for j in others) / len(others)
            assert line["agreement"][i] == pytest.approx(float(mean), abs=1e-5)
            agreement.append(line["agreement"][i])
            if wrong:
                gap = mean - sum(embeddings[i] @ embeddings[j] for j in wrong) / len(wrong)
                assert line["suspicious"][i] == bool(gap < 0)
                suspicious.append(line["suspicious"][i])
        assert (line["steps"] == [None] * 4) == (record["question"] == 0)
        checked = [i for i in right if line["steps"][i] is not None]
        lucky += [line["steps"][i] == 0 for i in checked]
        for i in checked:
            for j in checked:
                if line["steps"][i] > 0 and line["steps"][j] == 0:
                    difference = line["agreement"][i] - line["agreement"][j]
                    pairs, wins = pairs + 1, wins + (0.5 if abs(difference) < 1e-6 else difference > 0)
    assert pairs and 0 < sum(suspicious) < len(suspicious)
    assert told == {
        "agreement": pytest.approx(sum(agreement) / len(agreement)),
        "suspicious": pytest.approx(sum(suspicious) / len(suspicious)),
        "comparable": len(suspicious),
        "lucky_share": pytest.approx(sum(lucky) / len(lucky)),
        "sound_auroc": pytest.approx(wins / pairs),
        "sound_lucky_pairs": pairs,
    }
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| agreement | suspicious | of right completions | lucky | AUROC sound over lucky | pairs |" in table
    # afterwards, over an evaluation that is there already, and by the checker alone
    again = run(looked.replace("--agreement true", ""))
    assert again["sets"]["sums"]["agreement"] == {"lucky_share": told["lucky_share"]}


def test_agreement_needs_a_head_and_several_samples(run, model_path):
    with pytest.raises(ValueError, match="`agreement` is True, but `num_samples` is 1"):
        run("--agreement true --num_samples 1 --temperature 0")
    with pytest.raises(UsageError, match="no head could be loaded"):
        run("--agreement true")
    with pytest.raises(UsageError, match="nowhere"):
        run("--step_reward nowhere")


def test_results_go_into_the_model_card(run, with_head, tmp_path):
    with pytest.raises(UsageError, match="`model_card` is True, but .* has no README.md"):
        run(f"--model {with_head} --model_card true")
    assert not (tmp_path / "out").exists()  # told before anything was done
    Path(with_head, "README.md").write_text("---\nbase_model: a/b\n---\n# A model\n")
    value = run(f"--model {with_head} --model_card true")["sets"]["sums"]["scores"]["mean@2"]["value"]
    card = ModelCard.load(Path(with_head, "README.md"))
    [mean] = [one for one in card.data.eval_results if one.metric_name == "mean@2"]
    assert (mean.dataset_name, mean.metric_type) == ("sums", "accuracy") and mean.metric_value == pytest.approx(value)
    assert "| sums | 12 | 2 |" in card.text and card.data.base_model == "a/b"
