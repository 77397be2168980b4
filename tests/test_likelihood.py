"""Likelihood, or minus the entropy, in agreement's place: against a plain forward pass of each rollout alone, in
float64, and a loop."""

import copy

import pytest
import torch
from recording import FUSED
from test_modes import CONTINUOUS, Watched, make, scripted, stand_in
from test_resume import assert_same_run
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from trl import GRPOConfig, GRPOTrainer

from clipo_trl import CLIPOTrainer
from clipo_trl.agreement import likelihood_score
from clipo_trl.beyond_the_paper_config import TOKEN_SCORES
from clipo_trl.metrics import sound_against_lucky


__all__ = ["make", "scripted", "stand_in"]  # fixtures
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning"),
]
LIKELIHOOD = {"contrastive_reward_type": "likelihood", "contrastive_reward_weight": 1.0}
ENTROPY = {"contrastive_reward_type": "negative_entropy", "contrastive_reward_weight": 1.0}
SCALED = {**LIKELIHOOD, "contrastive_score_scale": "group"}
each_paid = pytest.mark.parametrize(
    "paid", [LIKELIHOOD, ENTROPY, SCALED], ids=["likelihood", "negative_entropy", "scaled"]
)
either_paid = pytest.mark.parametrize("paid", [LIKELIHOOD, ENTROPY], ids=["likelihood", "negative_entropy"])


def short_reward(completions, **kwargs) -> list[float]:
    """A step checker."""
    return [float(len(completion[0]["content"]) < 8) for completion in completions]


@torch.no_grad()
def token_score_by_hand(model, tokens, temperature=1.0, hidden=(), of="likelihood"):
    """Mean log-probability of the tokens that the policy wrote, or minus the mean entropy before them; NaN where there
    is none, and in `hidden` rows."""
    model, scores = copy.deepcopy(model).double().eval(), []
    for row, ids in enumerate(tokens.completion_ids):
        prompt = tokens.prompt_ids[row]
        written = tokens.policy_mask[row] if tokens.policy_mask is not None else [1] * len(ids)
        logits = model(input_ids=torch.tensor([prompt + ids], device=model.device)).logits[0] / temperature
        values = []
        for t, token in enumerate(ids):
            logps = logits[len(prompt) + t - 1].log_softmax(-1)
            if written[t] and row not in hidden:
                values.append(logps[token].item() if of == "likelihood" else sum(p.exp() * p for p in logps).item())
        scores.append(sum(values) / len(values) if values else float("nan"))
    return torch.tensor(scores, dtype=torch.float64)


def score_by_hand(likelihood, correct):
    """In a loop: less the mean over the group's correct rollouts that have one; NaN where there is no other."""
    score = torch.full(correct.shape, torch.nan, dtype=torch.float64)
    for p in range(len(correct)):
        right = [i for i in range(correct.size(1)) if correct[p, i] and likelihood[p, i].isfinite()]
        for i in right if len(right) > 1 else []:
            score[p, i] = likelihood[p, i] - sum(likelihood[p, j] for j in right) / len(right)
    return score


class Recording(CLIPOTrainer):
    """Keeps likelihoods, or entropies, and rewards, beside what a plain pass with the same weights gives."""

    kind = None  # what is kept; else what is paid

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def _contrastive_column(self, rewards_per_func, pooled_BH):
        tokens, ends = self.states.tokens, {self._tokenizer.eos_token_id}
        hidden = set()
        if self.mask_truncated_completions:
            hidden = {row for row, ids in enumerate(tokens.completion_ids) if ids[-1] not in ends}
        paid = self.args.contrastive_reward_type
        kind = self.kind or (paid if paid in TOKEN_SCORES else "likelihood")
        expected = token_score_by_hand(self.model, tokens, self.temperature, hidden, kind)
        column = super()._contrastive_column(rewards_per_func, pooled_BH)
        G, first = self.num_generations, rewards_per_func[:, 0]
        self.seen.append(
            {
                "found": self.states.token_scores[kind].clone(),
                "expected": expected,
                "correct": (first > 0).view(-1, G),
                "column": column.view(-1, G),
                "pooled": pooled_BH.clone(),
                "rewards": rewards_per_func.clone(),
            }
        )
        return column


def recording(tmp_path):
    args = tiny_config(tmp_path, **LIKELIHOOD)
    return Recording(tiny_model(), letters_reward, args, tiny_dataset(), processing_class=tiny_tokenizer())


def train(tmp_path, trainer_class=Recording, reward_funcs=letters_reward, model=None, trainer_kwargs=None, **settings):
    config_class = {} if issubclass(trainer_class, CLIPOTrainer) else {"config_class": GRPOConfig}
    trainer = trainer_class(
        model or tiny_model(),
        reward_funcs,
        tiny_config(tmp_path, **config_class, **settings),
        **{"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer(), **(trainer_kwargs or {})},
    )
    trainer.train()
    return trainer


def reloadable(model_path):
    """A policy of which TRL can load a reference."""
    model = tiny_model()
    model.config._name_or_path = model_path
    return model


def assert_paid(trainer, atol=5e-5):
    """Every likelihood, and every reward made of them, of the run."""
    assert trainer.seen
    args = trainer.args
    for seen in trainer.seen:
        torch.testing.assert_close(seen["found"].double(), seen["expected"], atol=atol, rtol=atol, equal_nan=True)
        score = score_by_hand(seen["expected"].view_as(seen["correct"]), seen["correct"]).nan_to_num()
        bound = -args.contrastive_reward_floor
        reward = args.contrastive_reward_offset + (args.contrastive_reward_weight * score).clamp(-bound, bound)
        torch.testing.assert_close(seen["column"].double(), reward, atol=atol, rtol=atol)
    everything = torch.cat([seen["column"].flatten() for seen in trainer.seen])
    assert everything.min() < 0 < everything.max() and len(everything.unique()) > 3


# ---------------------------------------------------------------------- the score


def test_the_score_is_that_of_a_loop_and_adds_up_to_zero():
    generator = torch.Generator().manual_seed(0)
    likelihood = -torch.rand(6, 8, generator=generator) * 2
    likelihood[0, 0], likelihood[1, 3] = torch.nan, -torch.inf
    correct = torch.rand(6, 8, generator=generator) < 0.5
    correct[2], correct[3] = False, torch.arange(8) == 1  # nobody, and one alone
    valid = torch.rand(6, 8, generator=generator) < 0.9
    score, is_scored = likelihood_score(likelihood, correct, valid_PG=valid)
    expected = score_by_hand(likelihood.double(), correct & valid)
    assert torch.equal(is_scored, expected.isfinite()) and is_scored.any() and not is_scored[2:4].any()
    torch.testing.assert_close(score.double(), expected.nan_to_num(), atol=1e-6, rtol=0)
    torch.testing.assert_close(score.sum(1), torch.zeros(6), atol=1e-6, rtol=0)


def test_two_correct_rollouts_are_told_apart():
    """Of two embeddings neither is closer to the other; of two rollouts one is likelier."""
    score, is_scored = likelihood_score(torch.tensor([[-1.0, -2.0, -9.0]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(score, torch.tensor([[0.5, -0.5, 0.0]]))
    assert is_scored.tolist() == [[True, True, False]]


# ---------------------------------------------------------------------- what is paid, whoever makes the pass


TRUNCATED = {"mask_truncated_completions": True, "max_completion_length": 9, "per_device_train_batch_size": 16}
CASES = {
    "asked": {},
    "asked_accumulated": {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 4},
    "asked_tempered": {"temperature": 0.6},
    "asked_truncated": TRUNCATED,
    "asked_padded": {"pad_to_multiple_of": 8},
    "by_trl": FUSED,
    "by_trl_again": {"num_iterations": 2, "temperature": 0.6},
    "by_trl_truncated": TRUNCATED | {**FUSED, "per_device_train_batch_size": 8},
    "dynamic": {"dynamic_sampling": True},
}


@either_paid
@pytest.mark.parametrize("case", CASES)
def test_the_reward_is_that_of_a_plain_forward_pass(tmp_path, case, paid):
    trainer = train(tmp_path, max_steps=4, **paid, **CASES[case])
    asked = not case.startswith("by_trl")
    assert trainer.states.mode == "fused" and trainer.states.asks_for_scores is asked
    assert_paid(trainer)
    assert any(seen["expected"].isnan().any() for seen in trainer.seen) is ("truncated" in case)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    passes = 4.0 if case == "asked_accumulated" else 1.0
    assert {row.get("contrastive/extra_forward_passes") for row in logged} == {passes if asked else None}
    assert all(row["contrastive/seconds"] > 0 for row in logged)


def test_a_reference_is_scored_after_the_policy(tmp_path, model_path):
    trainer = train(tmp_path, model=reloadable(model_path), beta=0.1, max_steps=4, **LIKELIHOOD)
    assert trainer.ref_model is not None
    assert_paid(trainer)


def test_both_passes_give_the_same(tmp_path):
    """The same policy and rollouts: asked for by CLIPO, or made by TRL for the steps that reuse them."""
    asked = train(
        tmp_path / "asked", max_steps=1, per_device_train_batch_size=4, gradient_accumulation_steps=2, **LIKELIHOOD
    )
    by_trl = train(tmp_path / "by_trl", max_steps=1, **FUSED, **LIKELIHOOD)
    for name in ("found", "column", "pooled"):
        assert torch.equal(asked.seen[0][name], by_trl.seen[0][name])


def test_an_adapter_and_its_reference(tmp_path):
    from peft import LoraConfig

    adapter = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer = train(tmp_path, trainer_kwargs={"peft_config": adapter}, beta=0.1, **LIKELIHOOD)
    assert_paid(trainer)


def test_learned_positions_that_padding_would_move(tmp_path):
    """The states are then read while decoding; the log-probabilities are TRL's, as it trains on them."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=98, eos_token_id=1, bos_token_id=1, initializer_range=0.3,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    same_length = tiny_dataset().map(lambda row: {"prompt": [{"role": "user", "content": "abc"}]})
    trainer = train(
        tmp_path, model=GPT2LMHeadModel(config), trainer_kwargs={"train_dataset": same_length}, **LIKELIHOOD
    )
    assert trainer.states.mode == "decode" and trainer.states.asks_for_scores
    assert_paid(trainer)


@either_paid
@pytest.mark.parametrize("generates", ["vllm", "tools", "rollout_func", "environment"])
def test_every_way_of_generating(make, generates, paid):
    """Tokens that a tool or an environment wrote do not count."""
    settings = {} if generates != "vllm" else {"vllm_importance_sampling_correction": False}
    trainer = make(generates, "fp32", Recording, max_steps=3, **paid, **settings)
    trainer.train()
    assert trainer.states.mode == "fused" and trainer.states.asks_for_scores
    for seen in trainer.seen:
        torch.testing.assert_close(seen["found"].double(), seen["expected"], atol=1e-5, rtol=1e-5)
        assert len(seen["found"].unique()) > 1


@either_paid
@pytest.mark.parametrize("precision", ["bf16_autocast", "bf16_weights"])
def test_in_half_precision(make, precision, paid):
    trainer = make("generate", precision, Recording, max_steps=2, **paid)
    trainer.train()
    for seen in trainer.seen:
        assert seen["found"].dtype == torch.float32
        torch.testing.assert_close(seen["found"].double(), seen["expected"], atol=0.05, rtol=0.05)


# ---------------------------------------------------------------------- what stays as it is


@pytest.mark.parametrize("settings", [{}, {"beta": 0.1}, FUSED], ids=str)
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_weight_zero_is_grpo_bit_for_bit(tmp_path, model_path, settings, dropout):
    """With dropout too: the pass that is asked for draws nothing."""
    weights = []
    for trainer_class, extra in ((GRPOTrainer, {}), (CLIPOTrainer, LIKELIHOOD | {"contrastive_reward_weight": 0.0})):
        model = reloadable(model_path)
        for layer in model.model.layers:
            layer.self_attn.attention_dropout = dropout
        trainer = train(tmp_path, trainer_class, model=model, max_steps=4, **settings, **extra)
        assert trainer.num_iterations == 1
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]))
    assert torch.equal(*weights)
    other = train(tmp_path, model=reloadable(model_path), max_steps=4, **settings, **LIKELIHOOD)
    assert not torch.equal(weights[0], torch.cat([parameter.flatten() for parameter in other.model.parameters()]))


def test_a_ratio_is_there_only_where_it_was(tmp_path):
    """What TRL was asked for does not stay in the batch; what it needs does."""
    for settings, stays in (({}, False), (FUSED, True)):
        trainer = train(tmp_path, max_steps=1, **settings, **LIKELIHOOD)
        assert ("old_per_token_logps" in trainer._buffered_inputs[0]) is stays


def test_a_fault_in_the_middle_leaves_no_trace(tmp_path):
    trainer = recording(tmp_path)
    grade = trainer.reward_funcs[0]

    def failing(completions, **kwargs):
        raise ConnectionError("the judge is away")

    trainer.reward_funcs[0] = failing
    with pytest.raises(ConnectionError):
        trainer.train()
    assert trainer.num_iterations == 1 and not trainer._is_asked_pass and trainer.model.training
    assert not trainer.states.token_scores and trainer.states.tokens is None
    trainer.reward_funcs[0] = grade
    trainer.train()
    assert_paid(trainer)


@each_paid
@pytest.mark.parametrize("generates", ["generate", pytest.param("continuous_batching", marks=pytest.mark.slow)])
def test_evaluation_leaves_no_trace_and_pays_nothing(make, generates, paid):
    trainer = make(generates, "fp32", Watched, max_steps=2, eval_strategy="steps", eval_steps=1, **paid)
    assert 0 <= trainer.evaluate()["eval_reward"] <= 1
    trainer.train()
    assert trainer.n_watched == 3
    evaluations = [row for row in trainer.state.log_history if "eval_reward" in row]
    assert not any("contrastive" in name for row in evaluations for name in row)
    assert (
        generates == "generate"
        or trainer.args.use_transformers_continuous_batching is CONTINUOUS["use_transformers_continuous_batching"]
    )


@pytest.mark.slow
@each_paid
@pytest.mark.parametrize("settings", [{}, FUSED], ids=str)
def test_a_run_with_a_warm_up_resumes_bit_for_bit(make, settings, paid):
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 1, "contrastive_warmup_steps": 2} | settings
    whole = make("generate", "fp32", **settings, **paid)
    whole.train()
    for step in (1, 5):
        resumed = make("generate", "fp32", **settings, **paid)
        resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-{step}")
        assert_same_run(resumed, whole)


def test_the_head_learns_as_ever(tmp_path):
    """From the same loss, on the same states: what is paid does not reach it (the policy stands still)."""
    settings = {"learning_rate": 0.0, **FUSED}
    heads = [
        train(tmp_path / reward_type, CLIPOTrainer, contrastive_reward_type=reward_type, **settings).contrastive_head
        for reward_type in ("loss", "likelihood")
    ]
    assert torch.equal(*(head.layers[0].weight for head in heads))


# ---------------------------------------------------------------------- metrics


@pytest.mark.parametrize(
    "settings, known",
    [(LIKELIHOOD, True), (FUSED, True), ({}, False), ({"beta": 0.1}, False), ({"beta": 0.1} | FUSED, True)],
    ids=str,
)
@pytest.mark.parametrize("kind", ["likelihood", "negative_entropy"])
def test_metrics_where_log_probabilities_are_at_hand(tmp_path, model_path, settings, known, kind, monkeypatch):
    """With a reference and no pass for the policy, the first pass is the reference's."""
    settings = {"num_generations": 8, "per_device_train_batch_size": 32, "max_steps": 2} | settings
    if "steps_per_generation" in settings:
        settings["per_device_train_batch_size"] = 16
    monkeypatch.setattr(Recording, "kind", kind)
    checked = {"reward_weights": [1.0, 0.0], "contrastive_step_reward": "short_reward"}
    trainer_class = Recording if known else CLIPOTrainer
    trainer = train(
        tmp_path, trainer_class, [letters_reward, short_reward], reloadable(model_path), **settings, **checked
    )
    rows = [row for row in trainer.state.log_history if "reward" in row]
    names = [f"contrastive/{kind}_{name}" for name in ("correct", "wrong")]
    names += [f"contrastive/sound_{name}_{kind}" for name in ("auroc", "gap")]
    if not known:
        assert not any(name in row for row in rows for name in names)
        return
    n_pairs = 0
    for row, seen in zip(rows, trainer.seen, strict=False):
        expected, correct = seen["expected"].view_as(seen["correct"]), seen["correct"]
        assert row[names[0]] == pytest.approx(expected[correct].mean().item(), abs=1e-4)
        assert row[names[1]] == pytest.approx(expected[~correct].mean().item(), abs=1e-4)
        scored = correct & (correct.sum(1, keepdim=True) > 1)
        sound = seen["rewards"][:, 1].view_as(correct) > 0
        ranked, gap, number = sound_against_lucky(expected, scored & sound, scored & ~sound).tolist()
        n_pairs += number
        if number:
            assert row[names[2]] == pytest.approx(ranked / number, abs=1e-3)
            assert row[names[3]] == pytest.approx(gap / number, abs=1e-4)
    assert n_pairs >= 10


# ---------------------------------------------------------------------- configuration


def test_what_it_reads_and_what_it_does_not(tmp_path):
    with pytest.raises(ValueError, match="pays no loss"):
        tiny_config(tmp_path, contrastive_baseline="log_positives", **LIKELIHOOD)
    tiny_config(
        tmp_path, contrastive_similarity="l2", **LIKELIHOOD
    )  # of the head's loss, which has a say in nothing else
    tiny_config(tmp_path, contrastive_calibration=True, contrastive_step_reward="short_reward", **LIKELIHOOD)


def test_a_trainer_that_does_not_score_is_told(tmp_path):
    trainer = recording(tmp_path)
    right = torch.ones(2, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="'likelihood', but there are no log-probabilities"):
        trainer.head_learner.score(torch.rand(8, 16), right, right)
