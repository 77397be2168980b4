"""The numbers of an evaluation against enumeration, its files against damage, its samplers against `generate`."""

import itertools
import json
import math
import sys
import types

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from tiny_models import tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from clipo_trl.cli.evaluation_records import (
    append_records,
    describe_dataset,
    describe_weights,
    differing,
    drop_unfinished_line,
    read_records,
    read_settings,
    settle,
)
from clipo_trl.cli.evaluation_scores import (
    RESAMPLES,
    answer_classes,
    bootstrap_means,
    estimate,
    majority_answers,
    majority_at_k,
    mean_at_k,
    paired_difference,
    pass_at_k,
    sign_flip_means,
)
from clipo_trl.cli.evaluation_tables import TRACKS, compare, comparison_tables, result_tables, summarise
from clipo_trl.cli.sampling import (
    Decoding,
    GumbelDraw,
    TransformersSampler,
    VLLMSampler,
    completion_seed,
    load_tokenizer,
)
from clipo_trl.saved_policy import tokenize_prompt


CORRECT_QK = np.array([[0, 0, 0, 0, 0], [1, 0, 0, 0, 0], [1, 1, 0, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 1]])


# ---------------------------------------------------------------------- scores of questions


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(k):
    expected = [np.mean([any(subset) for subset in itertools.combinations(row, k)]) for row in CORRECT_QK]
    np.testing.assert_allclose(pass_at_k(CORRECT_QK, k), expected)


def test_pass_at_1_is_mean_at_k():
    np.testing.assert_allclose(pass_at_k(CORRECT_QK, 1), mean_at_k(CORRECT_QK))
    assert mean_at_k(CORRECT_QK).tolist() == [0, 0.2, 0.6, 1, 0.4]


def test_pass_at_k_needs_k_samples():
    for k in (0, 6):
        with pytest.raises(ValueError, match=f"`k` is {k}.*5"):
            pass_at_k(CORRECT_QK, k)


@pytest.mark.parametrize(
    "classes, correct, expected",
    [
        ([0, 0, 1], [1, 1, 0], 1.0),
        ([0, 1, 1], [1, 0, 0], 0.0),
        ([0, 1, 1, 0], [1, 0, 0, 1], 0.5),  # a tie of a right and a wrong answer
        ([0, 1, 2], [0, 1, 0], 1 / 3),
        ([0, 1, 2, 2], [0, 1, 0, 0], 0.0),
        ([None, None, 0], [0, 0, 1], 1.0),  # no answer, no vote
        ([None, None, None], [0, 0, 0], 0.0),
    ],
    ids=str,
)
def test_majority(classes, correct, expected):
    assert majority_at_k([classes], np.array([correct])).tolist() == [pytest.approx(expected)]


def test_a_tie_is_worth_what_a_drawn_answer_is_on_average():
    rng = np.random.default_rng(0)
    for _ in range(50):
        classes = rng.integers(0, 3, 6).tolist()
        right_class = rng.integers(0, 3)
        winners = [label for label in range(3) if classes.count(label) == max(map(classes.count, range(3)))]
        expected = np.mean([winner == right_class for winner in winners])
        correct = np.array([[label == right_class for label in classes]])
        assert majority_at_k([classes], correct)[0] == pytest.approx(expected)
        assert sorted(majority_answers(classes)) == winners


def test_classes_of_mathematical_answers():
    answers = ["0.5", None, r"\frac12", "1/2", "2", "0.50", "(1, 2)", r"\left(1,2\right)", r"\dfrac{1}{2}"]
    assert answer_classes(answers, {}) == [0, None, 0, 0, 1, 0, 2, 2, 0]


def test_classes_of_options():
    options = {"A": "bank", "B": "library", "C": "mall"}
    answers = ["A", "(a)", "B", "bank", r"\text{B. library}", None, "harbour", "C"]
    assert answer_classes(answers, options) == [0, 0, 1, 0, 1, None, 2, 3]


# ---------------------------------------------------------------------- uncertainty


def test_bootstrap_is_that_of_drawing_questions():
    rng = np.random.default_rng(1)
    scores = rng.choice([0, 0.25, 1], size=40, p=[0.5, 0.2, 0.3])
    drawn = rng.choice(scores, size=(20_000, 40)).mean(1)
    ours = bootstrap_means(scores, np.random.default_rng(2), 20_000)
    assert ours.shape == (20_000,)
    quantiles = [0.025, 0.25, 0.5, 0.75, 0.975]
    np.testing.assert_allclose(np.quantile(ours, quantiles), np.quantile(drawn, quantiles), atol=0.01)
    assert ours.std() == pytest.approx(scores.std() / math.sqrt(40), rel=0.03)


def test_intervals_cover_the_truth_about_95_times_in_100():
    rng = np.random.default_rng(3)
    covered = [low <= 0.3 <= high for _, low, high in (estimate([rng.random(200) < 0.3]) for _ in range(300))]
    assert 0.91 < np.mean(covered) < 0.98


def test_an_average_weighs_sets_not_questions():
    large, small = np.ones(900), np.array([0.0, 1.0] * 5)
    average = estimate([large, small])
    assert average.value == 0.75
    alone = estimate([small])
    assert average.low == pytest.approx((1 + alone.low) / 2, abs=0.03)  # only the small set is uncertain
    assert estimate([large]) == (1.0, 1.0, 1.0)
    assert estimate([small], seed=1) == estimate([small], seed=1)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided p-value: the binomial test of the discordant questions."""
    n, fewer = only_a + only_b, min(only_a, only_b)
    return min(1.0, 2 * sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n)


@pytest.mark.parametrize("only_a, only_b", [(3, 12), (5, 5), (0, 6), (10, 25), (0, 0)])
def test_with_one_sample_the_test_is_mcnemars(only_a, only_b):
    a = np.array([1] * only_a + [0] * only_b + [1] * 30 + [0] * 20)
    b = np.array([0] * only_a + [1] * only_b + [1] * 30 + [0] * 20)
    found = paired_difference([(a, b)])
    assert found.value == pytest.approx((only_b - only_a) / len(a))
    assert found.p_value == pytest.approx(mcnemar(only_a, only_b), abs=0.015)
    assert found.low <= found.value <= found.high


def test_with_several_samples_and_sets_the_test_enumerates_signs():
    a1, b1 = np.array([0.25, 0.5, 1.0, 0.0, 0.75]), np.array([0.75, 0.5, 1.0, 0.5, 1.0])
    a2, b2 = np.array([0.0, 1.0, 0.5]), np.array([1.0, 0.75, 0.5])
    observed = ((b1 - a1).mean() + (b2 - a2).mean()) / 2
    null = [
        ((b1 - a1) @ signs[:5] / 5 + (b2 - a2) @ signs[5:] / 3) / 2 for signs in itertools.product([-1, 1], repeat=8)
    ]
    exact = np.mean(np.abs(null) >= observed - 1e-9)
    found = paired_difference([(a1, b1), (a2, b2)])
    assert found.value == pytest.approx(observed)
    assert found.p_value == pytest.approx(exact, abs=0.015)
    draws = sign_flip_means(b1 - a1, np.random.default_rng(0), 20_000)
    expected = [(b1 - a1) @ signs / 5 for signs in itertools.product([-1, 1], repeat=5)]
    assert draws.std() == pytest.approx(np.std(expected), rel=0.03) and abs(draws.mean()) < 0.01


def test_equal_models_are_told_apart_one_time_in_twenty():
    rng = np.random.default_rng(4)
    p_values = []
    for _ in range(200):
        ability = rng.random(60)[:, None]
        a, b = ((rng.random((60, 4)) < ability).mean(1) for _ in range(2))
        p_values.append(paired_difference([(a, b)]).p_value)
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09
    assert min(p_values) >= 1 / (1 + RESAMPLES)


# ---------------------------------------------------------------------- tables


def records(rewards_QK, classes_QK=None):
    return [
        {
            "question": question,
            "rewards": rewards,
            "classes": classes_QK[question] if classes_QK else [int(not reward) for reward in rewards],
            "tokens": [10 * (question + 1)] * len(rewards),
            "truncated": [question == 0] * len(rewards),
        }
        for question, rewards in enumerate(rewards_QK)
    ]


def test_the_tables_are_the_papers():
    half = records([[1.0], [0.0]])
    results = summarise("ours", {"aime_2025": half, "gsm8k": records([[1.0]]), "mmlu": half, "mine": half})
    track1, track2, others, details = result_tables(results)
    assert track1.to_markdown() == (
        "## Track I, mean@1, %\n\n"
        "| model | GSM8K | GSM-Symbolic | P1 | P2 | TheoremQA | MMLU | TruthfulQA | CommonsenseQA | Average (2 of 8) |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| ours | 100.0 [100.0, 100.0] | – | – | – | – | 50.0 [0.0, 100.0] | – | – | 75.0 [50.0, 100.0] |\n"
    )
    assert (
        track2.header
        == "model,MATH-500,AIME24,AIME25,AMC,MATH-Perturb simple,MATH-Perturb hard,Average (1 of 6)".split(",")
    )
    assert others.title.startswith("Other test sets") and others.header == ["model", "mine", "Average"]
    assert details.header[:4] == ["test set", "questions", "samples", "mean@1"]
    assert results["tables"]["Track I"]["columns"]["GSM8K"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert results["tables"]["Track I"]["columns"]["P2"] is None
    assert results["tables"]["Track I"]["average"]["value"] == 0.75
    json.dumps(results)


def test_a_whole_track_has_a_plain_average():
    sets = {name: records([[float(i % 2)]]) for i, name in enumerate(TRACKS["Track II"])}
    (table, _) = result_tables(summarise("m", sets))
    assert table.header[-1] == "Average" and table.rows[0][-1].startswith("50.0")


def test_all_scores_of_a_set():
    rewards = [[1.0, 0.0, None], [0.0, 0.0, 0.0], [1.0, 1.0, 0.5]]
    details = summarise("m", {"s": records(rewards, [[0, 1, 1], [0, 0, None], [0, 0, 1]])})["sets"]["s"]
    values = {metric: score["value"] for metric, score in details["scores"].items()}
    assert values == {
        "mean@3": pytest.approx((1 / 3 + 0 + 1) / 3),  # any reward above 0 is right, no reward is wrong
        "pass@1": pytest.approx((1 / 3 + 0 + 1) / 3),
        "pass@2": pytest.approx((2 / 3 + 0 + 1) / 3),
        "pass@3": pytest.approx(2 / 3),
        "maj@3": pytest.approx((0 + 0 + 1) / 3),
    }
    assert details["without_reward"] == 1
    assert details["mean_tokens"] == 20 and details["truncated"] == pytest.approx(1 / 3)


def test_a_set_without_any_vote_has_no_majority():
    rewards, none, one = [[1.0, 0.0], [1.0, 1.0]], [[None, None]] * 2, [[None, None], [0, None]]
    results = summarise("m", {"silent": records(rewards, none), "spoken": records(rewards, one)})
    silent, spoken = (results["sets"][name] for name in ("silent", "spoken"))
    assert silent["scores"]["maj@2"] is None and silent["questions_with_votes"] == 0
    # A question without a vote is lost where others have votes: the mean is over all questions.
    assert spoken["scores"]["maj@2"]["value"] == 0.5 and (spoken["questions_with_votes"], spoken["questions"]) == (
        1,
        2,
    )
    assert silent["scores"]["mean@2"] == spoken["scores"]["mean@2"]
    assert '"maj@2": null' in json.dumps(results)
    details = result_tables(results)[-1]
    cells = [dict(zip(details.header, row, strict=True)) for row in details.rows]
    assert cells[0]["maj@2"] == "–" and cells[1]["maj@2"].startswith("50.0 [")
    assert [cell["questions with votes"] for cell in cells] == ["0", "1"]


def test_comparison_tables():
    a, b = records([[0.0]] * 12 + [[1.0]] * 8), records([[1.0]] * 12 + [[1.0]] * 8)
    results = compare(("old", "new"), {"gsm8k": (a, b), "mmlu": (b, b)})
    entry = results["tables"]["Track I"]["columns"]["GSM8K"]
    assert (entry["A"]["value"], entry["B"]["value"], entry["difference"]["value"]) == (0.4, 1.0, 0.6)
    assert entry["difference"]["p_value"] < 0.01
    assert results["tables"]["Track I"]["columns"]["MMLU"]["difference"]["p_value"] == 1.0
    assert results["tables"]["Track I"]["average"]["difference"]["value"] == pytest.approx(0.3)
    (table,) = comparison_tables(results)
    assert [row[0] for row in table.rows] == ["A: old", "B: new", "B - A", "p"]
    assert table.rows[2][1].startswith("+60.0 [+") and table.rows[3][2] == "–"


# ---------------------------------------------------------------------- files


def test_records_come_back_in_order(tmp_path):
    path = tmp_path / "set.jsonl"
    assert read_records(path) == {}
    append_records(path, [{"question": 2, "completions": ["é\n\u2028 \ud83d"]}])  # line ends and half a character
    append_records(path, [{"question": 0, "completions": []}])
    assert list(read_records(path)) == [0, 2]
    assert read_records(path)[2]["completions"][0].startswith("é\n\u2028 ")


def test_a_line_cut_anywhere_costs_that_question_only(tmp_path, caplog):
    path = tmp_path / "set.jsonl"
    append_records(path, [{"question": 0, "completions": ["ü"]}, {"question": 1, "completions": ["ü"]}])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        assert list(read_records(path)) == [0]
        drop_unfinished_line(path)
        assert path.read_bytes() == whole[:first]
        append_records(path, [{"question": 1, "completions": ["ü"]}])
        assert path.read_bytes() == whole
    drop_unfinished_line(path)
    assert path.read_bytes() == whole
    drop_unfinished_line(tmp_path / "none.jsonl")


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_bytes(b'{"question": 0}\n{"quest\n{"question": 2}\n')
    with pytest.raises(ValueError, match="set.jsonl, line 2"):
        read_records(path)


def test_settings_of_a_resumed_run(tmp_path):
    data = {"path": "a", "questions": 2, "sha256": "1"}
    settings = {"model": "m", "temperature": 0.6, "datasets": {"a": data}}
    settle(tmp_path / "e", {**settings, "model": "of which nothing came"})
    settle(tmp_path / "e", settings)
    append_records(tmp_path / "e" / "a.jsonl", [{"question": 0}])
    settle(tmp_path / "e", settings)
    settle(tmp_path / "e", {**settings, "datasets": {"b": data}})  # a set more
    assert set(read_settings(tmp_path / "e")["datasets"]) == {"a", "b"}
    changed = {**settings, "temperature": 0.7, "datasets": {"a": {**data, "sha256": "2"}}}
    with pytest.raises(
        ValueError, match=r"(?s)temperature: was 0.6, is 0.7.*datasets.a.sha256: was '1', is '2'.*output_dir"
    ):
        settle(tmp_path / "e", changed)
    assert read_settings(tmp_path / "e")["temperature"] == 0.6
    append_records(tmp_path / "a.jsonl", [{"question": 0}])
    with pytest.raises(ValueError, match="a.jsonl, but no settings.json"):
        settle(tmp_path, settings)
    with pytest.raises(FileNotFoundError, match="settings.json"):
        read_settings(tmp_path)


def test_differences_are_named():
    assert differing({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}, "d": 4}) == {"b.c": (2, 3), "d": (None, 4)}


def test_digests_tell_datasets_and_weights_apart(tmp_path):
    rows = {"prompt": ["1", "2"], "solution": ["3", "4"]}
    one, same = (describe_dataset("p", Dataset.from_dict(rows)) for _ in range(2))
    other = describe_dataset("p", Dataset.from_dict({**rows, "solution": ["3", "5"]}))
    assert one == same != other and one["questions"] == 2
    assert describe_weights("some/name-on-the-hub") is None
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = describe_weights(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert before != describe_weights(str(tmp_path))


# ---------------------------------------------------------------------- sampling


def save_model(path, **generation):
    model = tiny_model()
    model.generation_config.update(eos_token_id=1, **generation)
    model.save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """With a generation_config.json that asks for things that are no part of an evaluation's settings."""
    path = tmp_path_factory.mktemp("model")
    return save_model(path, repetition_penalty=5.0, do_sample=True, top_k=1, temperature=0.1)


PROMPTS = [[40, 41, 42, 43, 44, 45], [50], [60, 61, 62]]


def test_greedy_is_generate_without_the_models_own_settings(model_path):
    sampler = TransformersSampler(model_path, Decoding(max_completion_length=12))
    found = sampler.sample(PROMPTS, [0, 1, 2])
    plain = tiny_model()
    for prompt, completion in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        expected = plain.generate(ids, max_new_tokens=12, do_sample=False, attention_mask=torch.ones_like(ids))
        assert completion.ids == expected[0, len(prompt) :].tolist()
        assert completion.truncated == (1 not in completion.ids)
    assert len({completion.truncated for completion in sampler.sample([[n] for n in range(40, 60)], [0] * 20)}) == 2


def test_a_completion_depends_on_its_seed_and_on_nothing_else(model_path):
    sampler = TransformersSampler(model_path, Decoding(temperature=1.0, top_p=0.9, max_completion_length=12))
    together = sampler.sample(PROMPTS, [7, 8, 9])
    torch.manual_seed(123)
    assert [sampler.sample([prompt], [seed])[0] for prompt, seed in zip(PROMPTS, (7, 8, 9), strict=True)] == together
    assert sampler.sample(PROMPTS[::-1], [9, 8, 7]) == together[::-1]
    assert sampler.sample(PROMPTS, [1, 2, 3]) != together
    assert len({tuple(one.ids) for one in sampler.sample([PROMPTS[0]] * 20, list(range(20)))}) > 10


def test_draws_are_from_the_softmax():
    probabilities = torch.tensor([0.5, 0.3, 0.2, 0.0])
    draws = 4000
    processor = GumbelDraw(list(range(draws)), torch.device("cpu"))
    scores = probabilities.log().expand(draws, 4)
    for _ in range(2):  # a second step goes on in the same streams
        counts = torch.bincount(processor(None, scores).argmax(1), minlength=4) / draws
        torch.testing.assert_close(counts, probabilities, atol=0.03, rtol=0)
        assert counts[3] == 0


def test_top_p_and_temperature_reach_the_sampler(model_path):
    greedy = TransformersSampler(model_path, Decoding(max_completion_length=8)).sample(PROMPTS, [0, 0, 0])
    for decoding in (Decoding(1.0, top_p=1e-6, max_completion_length=8), Decoding(1e-6, max_completion_length=8)):
        assert TransformersSampler(model_path, decoding).sample(PROMPTS, [1, 2, 3]) == greedy
    warm = Decoding(1.0, max_completion_length=8)
    assert TransformersSampler(model_path, warm).sample(PROMPTS, [1, 2, 3]) != greedy


def test_seeds_differ_by_question_sample_and_run():
    seeds = {
        completion_seed(*where, prompt) for where in itertools.product(range(3), repeat=3) for prompt in ([1], [2])
    }
    assert len(seeds) == 54 and all(0 <= seed < 2**32 for seed in seeds)


def test_prompts_go_through_the_chat_template():
    tokenizer = tiny_tokenizer()
    assert tokenizer.decode(tokenize_prompt(tokenizer, [{"role": "user", "content": "hi"}])).startswith(
        "<u>hi<|end|><a>"
    )
    assert tokenizer.decode(tokenize_prompt(tokenizer, "hi")) == "hi"


@pytest.fixture(scope="module")
def adapter_path(model_path, tmp_path_factory):
    """A LoRA adapter that changes what the model says, saved without a tokenizer."""
    path = tmp_path_factory.mktemp("adapter")
    base = AutoModelForCausalLM.from_pretrained(model_path)
    torch.manual_seed(0)
    adapted = get_peft_model(
        base, LoraConfig(r=4, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)
    )
    adapted.save_pretrained(path)
    return str(path)


def test_an_adapter_is_loaded_over_its_base(model_path, adapter_path):
    decoding = Decoding(max_completion_length=8)
    adapted = TransformersSampler(adapter_path, decoding)
    found = adapted.sample(PROMPTS, [0, 0, 0])
    assert found != TransformersSampler(model_path, decoding).sample(PROMPTS, [0, 0, 0])
    adapted.model.merge_and_unload().save_pretrained(f"{adapter_path}/merged")
    tiny_tokenizer().save_pretrained(f"{adapter_path}/merged")
    assert found == TransformersSampler(f"{adapter_path}/merged", decoding).sample(PROMPTS, [0, 0, 0])
    assert load_tokenizer(adapter_path).get_vocab() == tiny_tokenizer().get_vocab()


@pytest.mark.parametrize(
    "settings", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"max_completion_length": 0}], ids=str
)
def test_decoding_refuses(settings):
    (name,) = settings
    with pytest.raises(ValueError, match=f"`{name}` is {settings[name]}"):
        Decoding(**settings)


def test_vllm_that_is_not_installed(model_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="pip install vllm"):
        VLLMSampler(model_path, Decoding())


@pytest.fixture
def vllm(monkeypatch):
    """Stands in for vLLM: keeps what it is asked, answers with the seed; odd seeds are cut off."""
    asked = types.SimpleNamespace()

    class LLM:
        def __init__(self, **kwargs):
            asked.model = kwargs

        def generate(self, requests, params, use_tqdm, lora_request):
            asked.requests, asked.params, asked.lora_request = requests, params, lora_request
            outputs = [
                types.SimpleNamespace(token_ids=(one["seed"],), finish_reason="length" if one["seed"] % 2 else "stop")
                for one in params
            ]
            return [types.SimpleNamespace(outputs=[output]) for output in outputs]

    module, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    module.LLM, module.SamplingParams, request.LoRARequest = LLM, dict, lambda *args: args
    for name, one in {"vllm": module, "vllm.lora": lora, "vllm.lora.request": request}.items():
        monkeypatch.setitem(sys.modules, name, one)
    return asked


def test_vllm_is_asked_for_each_completion_with_its_seed(model_path, vllm):
    sampler = VLLMSampler(model_path, Decoding(0.6, 0.95, 99), dtype="bfloat16", tensor_parallel_size=2)
    assert sampler.sample([[5, 6], [7]], [10, 11]) == [([10], False), ([11], True)]
    assert vllm.requests == [{"prompt_token_ids": [5, 6]}, {"prompt_token_ids": [7]}]
    assert vllm.params[1] == {"temperature": 0.6, "top_p": 0.95, "max_tokens": 99, "seed": 11}
    assert vllm.model == {
        "model": model_path, "dtype": "bfloat16", "tensor_parallel_size": 2, "generation_config": "vllm"
    }  # fmt: skip
    assert vllm.lora_request is None


def test_vllm_gets_an_adapter_over_its_base(model_path, adapter_path, vllm):
    VLLMSampler(adapter_path, Decoding()).sample([[5]], [0])
    assert vllm.model["model"] == model_path and vllm.model["enable_lora"] and vllm.model["max_lora_rank"] == 8
    assert vllm.lora_request == ("adapter", 1, adapter_path)


def test_questions_that_stand_twice_are_resampled_once():
    """Every row twice: the mean stays, and intervals and p-values are those of the rows once, not narrower."""
    rng = np.random.default_rng(0)
    a, b = (rng.random(60) < share for share in (0.4, 0.6))
    labels, twice = np.arange(60), np.concatenate([np.arange(60)] * 2)
    a2, b2 = (np.concatenate([side, side]).astype(float) for side in (a, b))
    once = estimate([a.astype(float)], questions=[labels])
    assert once == estimate([a.astype(float)])
    assert estimate([a2], questions=[twice]) == pytest.approx(once)
    assert estimate([a2]).high - estimate([a2]).low < 0.8 * (once.high - once.low)
    pair = (a.astype(float), b.astype(float))
    assert paired_difference([(a2, b2)], questions=[twice]) == pytest.approx(paired_difference([pair]))
    assert paired_difference([(a2, b2)]).p_value < paired_difference([pair]).p_value


def test_some_questions_twice_weigh_by_their_rows():
    draws = bootstrap_means(
        np.array([1.0, 1.0, 0.0]), np.random.default_rng(0), 20_000, questions_Q=np.array([0, 0, 1])
    )
    values, counts = np.unique(draws.round(9), return_counts=True)
    assert values == pytest.approx([0.0, 2 / 3, 1.0]) and counts / 20_000 == pytest.approx([0.25, 0.5, 0.25], abs=0.02)


def test_tables_say_how_many_questions_are_different():
    rows = [row | {"prompt": f"question {number % 2}"} for number, row in enumerate(records([[1.0]] * 4))]
    results = summarise("m", {"truthfulqa": rows})
    assert (results["sets"]["truthfulqa"]["questions"], results["sets"]["truthfulqa"]["different_questions"]) == (4, 2)
    assert "4 (2 different)" in result_tables(results)[-1].to_markdown()
    assert "different" not in result_tables(summarise("m", {"s": rows[:2]}))[-1].to_markdown()
