"""ConSPO: weights against golden vectors and autograd, the trainer's gradient against eq. 13, and what stays."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import assert_same_run
from test_vllm import stand_in
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from transformers import TrainerCallback
from trl import GRPOConfig

from clipo_trl import (
    CLIPOConSPOConfig,
    CLIPOConSPOTrainer,
    ConSPOConfig,
    ConSPOTrainer,
    conspo_weights,
    scheduled_margin,
)


__all__ = ["stand_in"]  # a fixture

GOLDEN = Path(__file__).parent / "golden"
CASES = json.loads((GOLDEN / "conspo.json").read_text())


def objective(score_G, correct_G, valid_G, temperature, margin, share_G=None):
    """Eq. 13 word by word, for autograd; `None` where there is no pair."""
    right = [i for i in range(len(score_G)) if valid_G[i] and correct_G[i]]
    wrong = [j for j in range(len(score_G)) if valid_G[j] and not correct_G[j]]
    if not right or not wrong:
        return None
    shares = [1.0 if share_G is None else float(share_G[i]) for i in right]
    total = 0.0
    for share, i in zip(shares, right, strict=True):
        own = ((score_G[i] - margin) / temperature).exp()
        z = own + sum((score_G[j] / temperature).exp() for j in wrong)
        total = total + share / sum(shares) * temperature * (own / z).log()
    return total


# ---------------------------------------------------------------------- the pure functions


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["case"])
def test_golden(case):
    with np.load(GOLDEN / "conspo.npz") as arrays:
        given = {
            name: torch.from_numpy(arrays[f"{case['case']}/{name}"])
            for name in ("score_PG", "correct_PG", "valid_PG", "weight_PG", "objective_P")
        }
    margin = scheduled_margin(
        case["progress"], target_margin=case["target_margin"], margin_warmup_ratio=case["margin_warmup_ratio"]
    )
    assert margin == pytest.approx(case["margin"], abs=1e-15)
    weight, value = conspo_weights(
        given["score_PG"],
        given["correct_PG"],
        valid_PG=given["valid_PG"],
        temperature=case["temperature"],
        margin=margin,
    )
    assert weight.dtype == torch.float64
    torch.testing.assert_close(weight, given["weight_PG"], atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(value, given["objective_P"], atol=1e-12, rtol=1e-9, equal_nan=True)


@pytest.mark.parametrize("shares", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 1.0, 10.0])
def test_weights_are_the_gradient_of_the_objective(temperature, shares):
    rng = torch.Generator().manual_seed(1)
    score = (-torch.rand(6, 8, generator=rng, dtype=torch.float64)).requires_grad_()
    correct, valid = torch.rand(6, 8, generator=rng) < 0.5, torch.rand(6, 8, generator=rng) < 0.8
    share = torch.rand(6, 8, generator=rng, dtype=torch.float64) + 0.1 if shares else None
    settings = {"valid_PG": valid, "temperature": temperature, "margin": 0.2, "share_PG": share}
    weight, value = conspo_weights(score, correct, **settings)
    assert not weight.requires_grad and not value.requires_grad
    values = [
        objective(score[p], correct[p], valid[p], temperature, 0.2, None if share is None else share[p])
        for p in range(6)
    ]
    (gradient,) = torch.autograd.grad(sum(v for v in values if v is not None), score)
    torch.testing.assert_close(weight, gradient)
    expected = torch.tensor([math.nan if v is None else v.item() for v in values], dtype=torch.float64)
    torch.testing.assert_close(value, expected, equal_nan=True)


def test_what_is_not_valid_may_be_anything_and_a_group_without_a_pair_counts_for_nothing():
    nan, inf = math.nan, math.inf
    score = torch.tensor([[-1.0, -2.0, nan, -inf], [-1.0, -2.0, -3.0, -4.0], [-1.0, -2.0, -3.0, nan]])
    correct = torch.tensor([[True, False, True, False], [True] * 4, [False] * 3 + [True]])
    weight, value = conspo_weights(score, correct, valid_PG=score.isfinite(), temperature=1.0)
    assert weight[0, 2:].eq(0).all() and weight[1:].eq(0).all()
    assert value.isnan().tolist() == [False, True, True]
    torch.testing.assert_close(weight[0, :2], torch.tensor([1.0, -1.0]) * torch.tensor(-1.0).sigmoid())


def test_scores_that_lie_far_apart_overflow_nothing():
    score = torch.tensor([[0.0, -1000.0], [-1000.0, 0.0]])
    weight, value = conspo_weights(score, torch.tensor([[True, False]] * 2), temperature=0.1)
    torch.testing.assert_close(weight, torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
    torch.testing.assert_close(value, torch.tensor([0.0, -1000.0]))


def test_at_the_papers_temperature_it_is_nearly_linear():
    """Wrong rollouts 0.2 nat a token apart weigh the same to 2 percent; at tau 0.1 one has 7 times the weight."""
    score = torch.tensor([[-0.3, -0.4, -0.6]])
    correct = torch.tensor([[True, False, False]])
    weight, _ = conspo_weights(score, correct, temperature=10.0)
    assert weight[0, 0].item() == pytest.approx(2 / 3, rel=0.01)  # N- / (1 + N-)
    assert (weight[0, 1] / weight[0, 2]).item() == pytest.approx(math.exp(0.02), rel=1e-4)
    sharp, _ = conspo_weights(score, correct, temperature=0.1)
    assert (sharp[0, 1] / sharp[0, 2]).item() == pytest.approx(math.exp(2), rel=1e-4)


def test_the_margin_grows_along_half_a_cosine():
    assert [scheduled_margin(p) for p in (0.0, 0.15, 0.3, 1.0)] == pytest.approx([0.0, 0.005, 0.01, 0.01])
    assert scheduled_margin(0.0, target_margin=0.5, margin_warmup_ratio=0.0) == 0.5


def test_the_margin_waits_for_the_warm_up(tmp_path):
    """It grows over the policy's updates, of which a frozen warm-up has none."""
    trainer = make(tmp_path, CLIPOConSPOTrainer, max_steps=6, contrastive_warmup_steps=2)
    trainer.train()
    margins = [row["conspo/margin"] for row in trainer.state.log_history if "conspo/margin" in row]
    assert margins == [scheduled_margin(updates / 4) for updates in (0, 0, 0, 1, 2, 3)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"temperature": 0.0}, "`temperature` is 0.0, but must be greater than 0"),
        ({"margin": math.nan}, "`margin` is nan, but must be a finite number"),
        ({"correct_PG": torch.ones(2, 3, dtype=torch.bool)}, r"'score_PG': \(2, 4\), 'correct_PG': \(2, 3\)"),
        ({"share_PG": torch.ones(2, 1)}, r"'share_PG': \(2, 1\)"),
    ],
)
def test_bad_weights_are_refused(change, message):
    given = {"score_PG": torch.zeros(2, 4), "correct_PG": torch.ones(2, 4, dtype=torch.bool)} | change
    with pytest.raises(ValueError, match=message):
        conspo_weights(given.pop("score_PG"), given.pop("correct_PG"), **given)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"progress": 1.1}, "`progress` is 1.1, but must be from 0 to 1"),
        ({"target_margin": -0.1}, "`target_margin` is -0.1, but must be 0 or greater"),
        ({"margin_warmup_ratio": 2.0}, "`margin_warmup_ratio` is 2.0, but must be from 0 to 1"),
    ],
)
def test_bad_margins_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        scheduled_margin(**{"progress": 0.5, **change})


# ---------------------------------------------------------------------- the trainer's gradient


class Gradients(TrainerCallback):
    """Keeps the gradient of each optimizer step."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})


class Recording(ConSPOTrainer):
    """Keeps each generation batch, its rewards, and the policy that it was made with."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = []

    def _generate_and_score_completions(self, inputs):
        batch = super()._generate_and_score_completions(inputs)
        if not self._evaluating:
            with torch.random.fork_rng():
                policy = tiny_model()  # a copy would have the forward method that TRL gave the original
            policy.load_state_dict(self.model.state_dict())
            self.batches.append((dict(batch), self._rewards_per_func.clone(), policy))
        return batch


class CLIPORecording(Recording, CLIPOConSPOTrainer):
    pass


def make(
    tmp_path, trainer_class=ConSPOTrainer, reward_funcs=letters_reward, policy=None, trainer_kwargs=None, **settings
):
    with_head = issubclass(trainer_class, CLIPOConSPOTrainer)
    if with_head:
        settings = {"contrastive_embedding_dim": 8, **settings}
    config_class = CLIPOConSPOConfig if with_head else ConSPOConfig
    return trainer_class(
        policy or tiny_model(),
        reward_funcs,
        tiny_config(tmp_path, config_class, **{"max_grad_norm": 0.0, **settings}),
        **{"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer(), **(trainer_kwargs or {})},
    )


def rows(trainer):
    return [row for row in trainer.state.log_history if "loss" in row]


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def scores(policy, batch):
    """Mean log-probability a token, by a plain forward of the whole generation batch, with gradient."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    n = batch["completion_ids"].size(1)
    logits = policy(input_ids=ids, attention_mask=mask).logits[:, -n - 1 : -1].float()
    logps = logits.log_softmax(-1).gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    return (logps * batch["completion_mask"]).sum(1) / batch["completion_mask"].sum(1).clamp(min=1)


def gradient_of_eq_13(trainer, batch, rewards, policy, margin=0.0, shares=None):
    """Of minus its mean over live groups, by autograd through the whole generation batch at once."""
    G, tau = trainer.num_generations, trainer.args.conspo_temperature
    score, correct = scores(policy, batch).view(-1, G), (rewards[:, 0] > 0).view(-1, G)
    valid = batch["completion_mask"].any(1).view(-1, G)
    values = [
        objective(score[p], correct[p], valid[p], tau, margin, None if shares is None else shares[p])
        for p in range(len(score))
    ]
    values = [value for value in values if value is not None]
    assert values, "no live group: the test shows nothing"
    policy.zero_grad()
    (-sum(values) / len(values)).backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


def assert_gradients_close(found, expected):
    assert found.keys() == expected.keys()
    scale = max(gradient.abs().max() for gradient in expected.values())
    assert scale > 1e-4
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=2e-5 * scale.item(), rtol=1e-3)


SPLITS = {
    "whole": {},
    "micro_batches": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "three_groups": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 3},
    "truncated": {"mask_truncated_completions": True, "max_completion_length": 8, "per_device_train_batch_size": 16},
    "checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("temperature", [0.2, 10.0])
@pytest.mark.parametrize("split", SPLITS)
def test_the_gradient_is_that_of_eq_13(tmp_path, split, temperature):
    settings = {"conspo_temperature": temperature, "conspo_target_margin": 0.3, "conspo_margin_warmup_ratio": 0.0}
    trainer = make(tmp_path, Recording, max_steps=2, seed=1, **SPLITS[split], **settings)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    assert len(trainer.batches) == len(gradients.steps) == 2
    for (batch, rewards, policy), found in zip(trainer.batches, gradients.steps, strict=True):
        assert "old_per_token_logps" not in batch
        assert_gradients_close(found, gradient_of_eq_13(trainer, batch, rewards, policy, margin=0.3))
    if split == "truncated":
        n_tokens = torch.cat([batch["completion_mask"].sum(1) for batch, _, _ in trainer.batches])
        assert 0 < n_tokens.eq(0).sum() < len(n_tokens)


def test_in_parts_of_a_generation_batch_the_gradients_average_to_it(tmp_path):
    """Two optimizer steps a generation batch, of a policy that stands still."""
    settings = {"per_device_train_batch_size": 4, "steps_per_generation": 2, "learning_rate": 0.0, "max_steps": 2}
    trainer = make(tmp_path, Recording, conspo_temperature=0.5, **settings)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    (batch,) = trainer.batches
    mean = {name: (gradient + gradients.steps[1][name]) / 2 for name, gradient in gradients.steps[0].items()}
    assert_gradients_close(mean, gradient_of_eq_13(trainer, *batch))
    assert not same(*gradients.steps)
    assert [row["conspo/score_staleness"] for row in rows(trainer)] == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.parametrize(
    "settings", [{"num_iterations": 3}, {"per_device_train_batch_size": 4, "steps_per_generation": 2}], ids=str
)
def test_scores_are_held_and_a_metric_says_how_stale_they_are(tmp_path, settings):
    trainer = make(tmp_path, Recording, max_steps=6, **settings)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    every = settings.get("num_iterations", 1) * settings.get("steps_per_generation", 1)
    assert len(trainer.batches) == 6 // every
    staleness = [row["conspo/score_staleness"] for row in rows(trainer)]
    assert all(moved < 1e-5 for moved in staleness[::every])
    assert all(moved > 1e-3 for i, moved in enumerate(staleness) if i % every)
    # The weights are the first policy's and the ratio is 1: the loss is minus the sum of the weights, which is 0.
    if "num_iterations" in settings:
        assert [row["loss"] for row in rows(trainer)] == pytest.approx([0] * 6, abs=1e-4)


@pytest.mark.parametrize("corrected", [False, True])
def test_kl_is_trls(tmp_path, model_path, corrected):
    """On top: the gradient is eq. 13's plus beta times that of the mean over rollouts of the mean k3 a token."""
    policy = tiny_model()
    policy.config._name_or_path = model_path  # where TRL takes the reference from
    trainer = make(tmp_path, Recording, policy=policy, max_steps=2, beta=0.5, use_bias_correction_kl=corrected)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    batch, rewards, policy = trainer.batches[1]
    expected = {
        name: gradient.clone()
        for name, gradient in gradient_of_eq_13(
            trainer, batch, rewards, policy, margin=rows(trainer)[1]["conspo/margin"]
        ).items()
    }
    policy.zero_grad()
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
    mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
    n = batch["completion_ids"].size(1)
    logits = policy(input_ids=ids, attention_mask=mask).logits[:, -n - 1 : -1]
    logps = logits.log_softmax(-1).gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
    apart = batch["ref_per_token_logps"] - logps
    k3 = (apart.exp() - apart - 1) * batch["completion_mask"]
    if corrected:
        k3 = k3 * (logps - logps.detach()).exp()
    (0.5 * (k3.sum(1) / batch["completion_mask"].sum(1)).mean()).backward()
    assert_gradients_close(
        gradients.steps[1],
        {name: gradient + policy.get_parameter(name).grad for name, gradient in expected.items()},
    )
    assert rows(trainer)[1]["kl"] > 0


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_groups_that_are_all_right_or_all_wrong_teach_nothing(tmp_path, reward):
    def constant(completions, **kwargs):
        return [reward] * len(completions)

    trainer = make(tmp_path, max_steps=2, reward_funcs=constant)
    before = weights(trainer)
    trainer.train()
    assert same(before, weights(trainer))
    for row in rows(trainer):
        assert row["conspo/live_groups"] == 0 and row["conspo/objective"] is None and row["grad_norm"] == 0


def test_a_rollout_without_a_reward_is_left_out(tmp_path):
    def sometimes(completions, **kwargs):
        rewards = letters_reward(completions)
        return [None if i % 4 == 0 else reward for i, reward in enumerate(rewards)]

    trainer = make(tmp_path, max_steps=1, reward_funcs=sometimes)
    trainer.train()
    advantages = torch.tensor(list(trainer._logs["advantages"])).view(-1, 4)
    assert advantages[:, 0].eq(0).all() and advantages.ne(0).any()


def test_metrics(tmp_path):
    trainer = make(tmp_path, Recording, max_steps=4, conspo_temperature=0.5, conspo_margin_warmup_ratio=1.0)
    trainer.train()
    assert [row["conspo/margin"] for row in rows(trainer)] == pytest.approx(
        [scheduled_margin(step / 4, margin_warmup_ratio=1.0) for step in range(4)]
    )
    for row, (batch, rewards, policy) in zip(rows(trainer), trainer.batches, strict=True):
        score, correct = scores(policy, batch).detach().view(-1, 4), (rewards[:, 0] > 0).view(-1, 4)
        live = [p for p in range(len(score)) if 0 < correct[p].sum() < 4]
        assert row["conspo/live_groups"] == len(live) / len(score)
        shares, gaps, values = [], [], []
        for p in live:
            wrong = (score[p][~correct[p]] / 0.5).exp().sum()
            own = ((score[p][correct[p]] - row["conspo/margin"]) / 0.5).exp()
            shares.append((own / (own + wrong)).mean())
            gaps.append(score[p][correct[p]].mean() - score[p][~correct[p]].mean())
            values.append(objective(score[p], correct[p], [True] * 4, 0.5, row["conspo/margin"]))
        for name, expected in (("p_correct", shares), ("score_gap", gaps), ("objective", values)):
            expected = torch.stack(expected).mean().item() if expected else None
            assert row[f"conspo/{name}"] == pytest.approx(expected, abs=1e-5)
    assert any(row["conspo/live_groups"] > 0 for row in rows(trainer))


def test_the_completions_table_has_the_weights(tmp_path):
    trainer = make(tmp_path, Recording, max_steps=1)
    trainer.train()
    batch = trainer.batches[0][0]
    assert list(trainer._logs["advantages"]) == pytest.approx(batch["advantages"].tolist())
    assert batch["advantages"].view(-1, 4).sum(1).tolist() == pytest.approx([0, 0], abs=1e-5)


# ---------------------------------------------------------------------- with the rest of TRL


def test_vllm(tmp_path, stand_in):
    trainer = make(tmp_path, Recording, max_steps=2, use_vllm=True, seed=3)
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    for (batch, rewards, policy), found, row in zip(trainer.batches, gradients.steps, rows(trainer), strict=True):
        expected = gradient_of_eq_13(trainer, batch, rewards, policy, margin=row["conspo/margin"])
        assert_gradients_close(found, expected)


def test_lora(tmp_path):
    from peft import LoraConfig

    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = make(tmp_path, max_steps=2, beta=0.1, trainer_kwargs={"peft_config": adapter})
    before = weights(trainer)
    trainer.train()
    moved = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert moved and all("lora" in name for name in moved)


@pytest.mark.parametrize("trainer_class", [ConSPOTrainer, CLIPOConSPOTrainer])
def test_resumed_runs_are_the_uninterrupted_run(tmp_path, trainer_class):
    """From the middle and the end of a generation batch, whose scores are held over the stop."""
    settings = {"max_steps": 4, "num_iterations": 2, "save_strategy": "steps", "save_steps": 1}
    if trainer_class is CLIPOConSPOTrainer:
        settings["conspo_contrastive_scale"] = 2.0
    whole = make(tmp_path, trainer_class, **settings)
    whole.train()
    for step in (1, 2):
        resumed = make(tmp_path, trainer_class, **settings)
        resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert same(weights(whole), weights(resumed))
        for here, there in zip(rows(resumed), rows(whole), strict=True):
            names = {name for name in there if name.startswith("conspo/")}
            assert len(names) in (1, 6)  # what is told of a generation batch, and of each step
            assert {name: here[name] for name in names} == {name: there[name] for name in names}
        if trainer_class is CLIPOConSPOTrainer:
            assert_same_run(resumed, whole)


def test_evaluation_is_trls_and_leaves_no_trace(tmp_path):
    settings = {"max_steps": 2, "num_generations_eval": 1}
    plain, watched = make(tmp_path, **settings), None
    plain.train()
    watched = make(
        tmp_path, eval_strategy="steps", eval_steps=1, trainer_kwargs={"eval_dataset": tiny_dataset(4)}, **settings
    )
    watched.train()
    evaluations = [row for row in watched.state.log_history if "eval_reward" in row]
    assert len(evaluations) == 2 and not any("conspo" in name for row in evaluations for name in row)
    assert len(rows(plain)) == len(rows(watched)) == 2
    assert all("conspo/objective" in row for row in rows(watched))


# ---------------------------------------------------------------------- configuration


def test_defaults_are_the_papers(tmp_path):
    args = tiny_config(
        tmp_path,
        ConSPOConfig,
        load_best_model_at_end=True,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
    )
    assert (args.conspo_temperature, args.conspo_target_margin, args.conspo_margin_warmup_ratio) == (10.0, 0.01, 0.3)
    assert (args.loss_type, args.vllm_importance_sampling_correction) == ("grpo", False)
    assert (args.metric_for_best_model, args.greater_is_better) == ("reward", True)
    assert "conspo_temperature (`float`, *optional*, defaults to `10.0`)" in ConSPOConfig.__doc__
    assert (
        "contrastive_success_threshold" in ConSPOConfig.__doc__ and "contrastive_head_type" not in ConSPOConfig.__doc__
    )


@pytest.mark.parametrize(
    "field, value",
    [
        ("conspo_temperature", 0.0),
        ("conspo_target_margin", -1.0),
        ("conspo_margin_warmup_ratio", 1.5),
        ("loss_type", "dapo"),
        ("vllm_importance_sampling_correction", True),
        ("top_entropy_quantile", 0.5),
        ("off_policy_mask_threshold", 0.1),
        ("delta", 2.0),
    ],
)
def test_fields_that_cannot_work_are_refused(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}` is {value!r}, but must be"):
        tiny_config(tmp_path, ConSPOConfig, **{field: value})


def test_the_scale_is_checked(tmp_path):
    with pytest.raises(ValueError, match="`conspo_contrastive_scale` is -1.0, but must be 0 or greater"):
        tiny_config(tmp_path, CLIPOConSPOConfig, conspo_contrastive_scale=-1.0)


def test_a_configuration_without_its_fields_is_refused(tmp_path):
    with pytest.raises(
        TypeError, match="`args` is a `GRPOConfig`, which has no fields of ConSPO.*Pass a `ConSPOConfig`"
    ):
        ConSPOTrainer(tiny_model(), letters_reward, tiny_config(tmp_path, GRPOConfig), train_dataset=tiny_dataset())


def test_without_a_configuration_the_defaults_are_used(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        ConSPOTrainer,
        "_config_class",
        staticmethod(lambda folder: tiny_config(folder, ConSPOConfig)),
    )
    trainer = ConSPOTrainer(
        tiny_model(), letters_reward, train_dataset=tiny_dataset(), processing_class=tiny_tokenizer()
    )
    assert trainer.args.output_dir == "tiny-qwen2-ConSPO"


def test_other_rewards_do_not_decide(tmp_path):
    def long_reward(completions, **kwargs):
        return [100.0] * len(completions)

    trainer = make(
        tmp_path, Recording, reward_funcs=[letters_reward, long_reward], contrastive_success_rewards=["letters_reward"],
        max_steps=1, seed=1,
    )  # fmt: skip
    trainer.train()
    assert trainer.success_rule.names == ["letters_reward"]
    assert rows(trainer)[0]["conspo/live_groups"] > 0


def test_rewards_that_share_a_name_all_decide(tmp_path):
    rewards = [lambda completions, **kwargs: [1.0] * len(completions), lambda completions, **kwargs: [0.0]]
    assert make(tmp_path, reward_funcs=rewards)._success_columns == [0, 1]


# ---------------------------------------------------------------------- with CLIPO


def test_a_large_scale_pays_the_best_right_rollout_alone(tmp_path):
    """Whatever the scale, a group's right rollouts share one weight: exp(-150) is 0 in float32, for all of them."""
    trainer = make(tmp_path, CLIPOConSPOTrainer, conspo_contrastive_scale=3.0)
    reward = torch.tensor([[-0.5, -0.4, 0.0, -0.3], [0.0, 0.0, 0.0, 0.0]])
    right = torch.tensor([[True, True, False, False], [False] * 4])
    columns = torch.zeros(8, trainer._column + 1)
    columns[:, trainer._column] = reward.flatten()
    share = trainer._shares(columns, right)
    exact = (3.0 * reward.double()).exp() * right
    torch.testing.assert_close(
        share.double(), exact / exact.sum(1, keepdim=True).clamp(min=1e-9), atol=1e-6, rtol=1e-6
    )
    trainer.args.conspo_contrastive_scale = 3000.0
    assert torch.equal(trainer._shares(columns, right), torch.tensor([[0.0, 1, 0, 0], [0] * 4]))


def test_without_a_scale_or_a_weight_it_is_conspo_bit_for_bit(tmp_path, caplog):
    runs = {}
    for name, trainer_class, settings in (
        ("conspo", ConSPOTrainer, {}),
        ("scale_0", CLIPOConSPOTrainer, {}),
        ("weight_0", CLIPOConSPOTrainer, {"conspo_contrastive_scale": 4.0, "contrastive_reward_weight": 0.0}),
        ("both", CLIPOConSPOTrainer, {"conspo_contrastive_scale": 4.0}),
    ):
        caplog.clear()
        runs[name] = make(tmp_path, trainer_class, max_steps=4, **settings)
        assert ("`conspo_contrastive_scale` is 0, so the contrastive reward has no effect" in caplog.text) is (
            name == "scale_0"
        )
        runs[name].train()
    assert same(weights(runs["conspo"]), weights(runs["scale_0"]))
    assert same(weights(runs["conspo"]), weights(runs["weight_0"]))
    assert not same(weights(runs["conspo"]), weights(runs["both"]))
    assert runs["both"].head_learner.n_batches == 4


def test_right_rollouts_count_by_their_contrastive_reward(tmp_path):
    trainer = make(
        tmp_path,
        CLIPORecording,
        max_steps=2,
        conspo_contrastive_scale=3.0,
        conspo_temperature=0.5,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=4,
        contrastive_learning_rate=0.1,
    )
    gradients = Gradients()
    trainer.add_callback(gradients)
    trainer.train()
    for (batch, rewards, policy), found, row in zip(trainer.batches, gradients.steps, rows(trainer), strict=True):
        shares = (3.0 * rewards[:, 1]).exp().view(-1, 4)
        expected = gradient_of_eq_13(trainer, batch, rewards, policy, margin=row["conspo/margin"], shares=shares)
        assert_gradients_close(found, expected)
        right = (rewards[:, 0] > 0).view(-1, 4)
        assert (rewards[:, 1] < -0.01).any() and right.sum(1).ge(2).any()
