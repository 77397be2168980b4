"""The starting policy: tokenizer, warm start, saving, evaluation; all on tiny sizes."""

import hashlib
import json
import random

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments import chain, starting_policy
from experiments.faithfulness import arms
from experiments.starting_policy import (
    PHASES,
    Phase,
    encode_example,
    evaluate_policy,
    make_model,
    make_tokenizer,
    sample_completions,
    warm_start,
    warm_start_examples,
)


PROBLEM, TRACE = "3*4+2=", "3*4=1r5;5+2=1r0;#0"
MESSAGES = [{"role": "user", "content": PROBLEM}, {"role": "assistant", "content": TRACE}]
TINY = {"batch_size": 4, "hidden_size": 16, "num_layers": 1}
TINY_PHASES = (Phase("clean", 3, 1e-3), Phase("noisy", 2, 1e-3, wrong_quotient=0.5))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder, model, tokenizer and the calls of `on_step` of a tiny warm start."""
    folder, calls = tmp_path_factory.mktemp("policy"), []
    model, tokenizer = warm_start(
        folder, seed=0, phases=TINY_PHASES, on_step=lambda phase, step: calls.append((phase.name, step)), **TINY
    )
    return folder, model, tokenizer, calls


class TestTokenizer:
    def test_one_token_a_character(self, tokenizer):
        ids = tokenizer(TRACE)["input_ids"]
        assert len(ids) == len(TRACE)
        assert tokenizer.decode(ids) == TRACE
        assert len(set(tokenizer(starting_policy.CHARACTERS)["input_ids"])) == len(starting_policy.CHARACTERS)

    def test_any_trace_survives(self, tokenizer):
        rng = random.Random(0)
        texts = ["".join(rng.choices(starting_policy.CHARACTERS, k=rng.randint(1, 60))) for _ in range(300)]
        assert tokenizer.batch_decode([tokenizer(text)["input_ids"] for text in texts]) == texts

    def test_special_tokens_are_apart(self, tokenizer):
        ids = {tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
        ids |= set(tokenizer.convert_tokens_to_ids(starting_policy.TURN_TOKENS))
        assert ids == set(range(5))
        assert tokenizer.decode(sorted(ids), skip_special_tokens=True) == ""
        assert tokenizer.padding_side == "left"  # as generation needs it

    def test_the_prompt_is_a_prefix_of_the_conversation(self, tokenizer):
        prompt = tokenizer.apply_chat_template(MESSAGES[:1], add_generation_prompt=True, tokenize=False)
        conversation = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
        assert prompt == f"<user>{PROBLEM}<assistant>"
        assert conversation == f"{prompt}{TRACE}<eos>"

    def test_the_warm_start_sees_what_rollouts_see(self, tokenizer):
        # As `GRPOTrainer` tokenizes prompts; a finished rollout is that, and the trace, and the end.
        prompt_ids = tokenizer.apply_chat_template(
            conversation=[MESSAGES[:1]], add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"][0]
        conversation_ids = tokenizer.apply_chat_template(MESSAGES, tokenize=True, return_dict=True)["input_ids"]
        example = encode_example(tokenizer, PROBLEM, TRACE)
        assert example["input_ids"] == conversation_ids
        assert example["input_ids"][: len(prompt_ids)] == prompt_ids
        assert example["labels"] == [-100] * len(prompt_ids) + conversation_ids[len(prompt_ids) :]
        assert example["labels"][-1] == tokenizer.eos_token_id

    def test_the_longest_trace_fits(self, tokenizer):
        problem = chain.make_problem(random.Random(0), 5)
        assert len(tokenizer(chain.write_trace(problem))["input_ids"]) + 1 <= starting_policy.MAX_COMPLETION_TOKENS


class TestWarmStart:
    def test_size_of_the_model(self, tokenizer):
        assert make_model(tokenizer).num_parameters() == pytest.approx(0.16e6, rel=0.05)

    def test_examples_have_the_mistakes_of_their_phase(self, tokenizer):
        shares = {}
        for phase in PHASES:
            checks = []
            for example in warm_start_examples(tokenizer, phase, 1000, random.Random(0)):
                text = tokenizer.decode(example["input_ids"])
                problem, _, trace = text.removeprefix("<user>").removesuffix("<eos>").partition("<assistant>")
                assert chain.split_of(problem) == "train"
                checks.append(chain.check(problem, trace))
            shares[phase.name] = [not right for checked in checks for right in checked.steps_correct]
            assert {len(checked.steps_correct) for checked in checks} == {1, 2, 3, 4, 5}
        noisy = PHASES[1]
        expected = 1 - (1 - noisy.wrong_quotient) * (1 - noisy.wrong_remainder)
        assert not any(shares["clean"])
        assert sum(shares["noisy"]) / len(shares["noisy"]) == pytest.approx(expected, abs=0.03)

    @pytest.mark.parametrize("policy", ["rare_slips", "frequent_slips", "habit"])
    def test_examples_of_finished_studies_stay_as_they_are(self, tokenizer, policy):
        """Byte for byte those that version 0.1.0 drew: its results stand for these policies."""
        rng = random.Random(0)
        drawn = [warm_start_examples(tokenizer, phase, 200, rng) for phase in arms.POLICIES[policy]]
        digest = hashlib.sha256("".join(map(json.dumps, drawn)).encode()).hexdigest()
        assert (
            digest[:16]
            == {
                "rare_slips": "74f323973aa14e95",
                "frequent_slips": "6dd511f2acd0b373",
                "habit": "7a901b46aebe17d4",
            }[policy]
        )

    def test_a_phase_with_the_shortcut(self, tokenizer):
        checks = []
        for example in warm_start_examples(tokenizer, Phase("noisy", 1, 1e-3, shortcut=1.0), 500, random.Random(0)):
            text = tokenizer.decode(example["input_ids"]).removeprefix("<user>").removesuffix("<eos>")
            problem, _, trace = text.partition("<assistant>")
            checks.append(chain.check(problem, trace))
        assert 0.3 < chain.accuracy(checks) < 0.7 and chain.lucky_share(checks) > 0.5

    def test_every_step_is_reported(self, saved):
        assert saved[3] == [("clean", 1), ("clean", 2), ("clean", 3), ("noisy", 1), ("noisy", 2)]

    def test_the_seed_decides(self, saved, tmp_path):
        same, _ = warm_start(tmp_path / "same", seed=0, phases=TINY_PHASES, **TINY)
        other, _ = warm_start(tmp_path / "other", seed=1, phases=TINY_PHASES, **TINY)
        for name, tensor in saved[1].state_dict().items():
            assert torch.equal(tensor, same.state_dict()[name])
        name = "model.embed_tokens.weight"
        assert not torch.equal(saved[1].state_dict()[name], other.state_dict()[name])

    def test_it_learns(self, tokenizer, tmp_path):
        def loss_of(model):
            ids = [encode_example(tokenizer, problem, chain.write_trace(problem)) for problem in ("3*4=", "2+6*5=")]
            with torch.no_grad():
                return sum(model(**{k: torch.tensor([v]) for k, v in example.items()}).loss.item() for example in ids)

        torch.manual_seed(0)
        before = loss_of(make_model(tokenizer, 16, 1))
        model, _ = warm_start(tmp_path, phases=(Phase("clean", 40, 1e-2),), **TINY)
        assert not model.training
        assert loss_of(model) < 0.8 * before

    def test_the_saved_folder_loads(self, saved):
        folder, model, tokenizer, _ = saved
        loaded, loaded_tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        for name, tensor in model.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name])
        assert loaded.config.eos_token_id == loaded_tokenizer.eos_token_id == tokenizer.eos_token_id
        assert loaded.config.pad_token_id == loaded_tokenizer.pad_token_id == tokenizer.pad_token_id
        assert loaded_tokenizer.padding_side == "left"
        for text in (TRACE, "<user>3*4=<assistant>", "3x4"):
            assert loaded_tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
            assert loaded_tokenizer.decode(tokenizer(text)["input_ids"]) == tokenizer.decode(
                tokenizer(text)["input_ids"]
            )
        for messages in (MESSAGES, MESSAGES[:1]):
            assert loaded_tokenizer.apply_chat_template(messages, tokenize=False) == tokenizer.apply_chat_template(
                messages, tokenize=False
            )


class TestEvaluate:
    def test_the_seed_decides_and_nothing_else_changes(self, saved):
        _, model, tokenizer, _ = saved
        dataset = chain.build_dataset(3, seed=0, split="test")
        model.train()
        torch.manual_seed(5)
        state = torch.get_rng_state()
        first = sample_completions(model, tokenizer, dataset, num_samples=2, seed=1)
        assert model.training
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(6)
        assert sample_completions(model, tokenizer, dataset, num_samples=2, seed=1) == first
        assert sample_completions(model, tokenizer, dataset, num_samples=2, seed=2) != first
        assert [len(samples) for samples in first] == [2, 2, 2]

    @pytest.mark.parametrize("batch_size", [2, 512])
    def test_completions_belong_to_their_problems(self, tokenizer, batch_size, monkeypatch):
        dataset = chain.build_dataset(3, seed=0, split="test")
        model = make_model(tokenizer, 16, 1)

        def generate(input_ids, attention_mask, **kwargs):
            """Complete each prompt with its right trace, as a perfect policy would."""
            problems = tokenizer.batch_decode(input_ids, skip_special_tokens=True)
            examples = [{"input_ids": tokenizer(chain.write_trace(p))["input_ids"]} for p in problems]
            completions = tokenizer.pad(examples, padding_side="right", return_tensors="pt")["input_ids"]
            return torch.cat([input_ids, completions], dim=1)

        monkeypatch.setattr(model, "generate", generate)
        samples = sample_completions(model, tokenizer, dataset, num_samples=3, batch_size=batch_size)
        assert samples == [[chain.write_trace(problem)] * 3 for problem in dataset["problem"]]
        assert evaluate_policy(model, tokenizer, dataset, batch_size=batch_size) == {
            "accuracy": 1.0,
            "strict_accuracy": 1.0,
            "lucky_share": 0.0,
        }

    def test_metrics_by_hand(self, saved, monkeypatch):
        _, model, tokenizer, _ = saved
        dataset = chain.build_dataset(2, seed=0, split="test")
        rng = random.Random(0)
        samples = [
            [chain.write_trace(p), chain.write_trace(p, rng, wrong_quotient=1.0), "#", ""] for p in dataset["problem"]
        ]
        monkeypatch.setattr(starting_policy, "sample_completions", lambda *args, **kwargs: samples)
        metrics = evaluate_policy(model, tokenizer, dataset)
        assert metrics == {"accuracy": 0.5, "strict_accuracy": 0.25, "lucky_share": 0.5}
