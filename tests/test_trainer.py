"""The trainer: what it adds to GRPO, and what it leaves as it was."""

import inspect
import json
import logging
import os
from dataclasses import dataclass, field

import pytest
import torch
from recording import FUSED, settings_of
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from clipo_trl import CLIPOConfig, CLIPOConfigMixin, CLIPOMixin, CLIPOTrainer, ContrastiveHead
from clipo_trl.head import HEAD_FOLDER


# TRL scores its rollouts itself when a generation serves several optimizer steps.


def length_reward(completions, **kwargs):
    return [-0.01 * len(completion[0]["content"]) for completion in completions]


def make(tmp_path, trainer_class=CLIPOTrainer, reward_funcs=letters_reward, trainer_kwargs=None, **settings):
    config_class = settings.pop("config_class", CLIPOConfig if issubclass(trainer_class, CLIPOTrainer) else GRPOConfig)
    return trainer_class(
        tiny_model(),
        reward_funcs,
        tiny_config(tmp_path, config_class, **settings),
        **{"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer(), **(trainer_kwargs or {})},
    )


def trained(*args, **kwargs):
    """Made and trained in one go: making a trainer sets the global seed."""
    trainer = make(*args, **kwargs)
    trainer.train()
    return trainer


def weights(module):
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def rows(trainer, prefix=""):
    """What was logged at each training step."""
    logs = [row for row in trainer.state.log_history if "loss" in row]
    return [{key: value for key, value in row.items() if key.startswith(prefix)} for row in logs]


def advantages_and_columns(trainer):
    return torch.tensor(list(trainer._logs["advantages"])), {
        name: torch.tensor(list(column)) for name, column in trainer._logs["rewards"].items()
    }


# ---------------------------------------------------------------------- what stays GRPO


@pytest.mark.parametrize("mode", ["decode", "forward", "fused"])
@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_weight_zero_is_grpo_bit_for_bit(tmp_path, mode, aggregation, monkeypatch):
    settings = {"max_steps": 4, "multi_objective_aggregation": aggregation, **settings_of(mode)}
    if mode == "forward":
        monkeypatch.setattr(CLIPOTrainer, "_choose_capture_mode", lambda self, reader: "forward")
    grpo = trained(tmp_path, GRPOTrainer, **settings)
    clipo = trained(tmp_path, contrastive_reward_weight=0.0, **settings)
    other = trained(tmp_path, contrastive_reward_weight=0.2, **settings)
    assert clipo.states.mode == mode
    assert not same(weights(ContrastiveHead(16, 8, seed=42)), weights(clipo.contrastive_head))  # it learned beside
    assert same(weights(grpo.model), weights(clipo.model))
    assert torch.equal(advantages_and_columns(grpo)[0], advantages_and_columns(clipo)[0])
    keys = ["loss", "reward", "reward_std", "grad_norm", "completions/mean_length"]
    for first, second in zip(rows(grpo), rows(clipo), strict=True):
        assert {key: first[key] for key in keys if key in first} == {key: second[key] for key in keys if key in second}
    assert not same(weights(grpo.model), weights(other.model))
    assert not torch.equal(advantages_and_columns(grpo)[0], advantages_and_columns(other)[0])


def test_a_pass_over_the_decoder_draws_nothing_when_there_is_dropout(tmp_path, monkeypatch):
    monkeypatch.setattr(CLIPOTrainer, "_choose_capture_mode", lambda self, reader: "forward")
    results = []
    for trainer_class, extra in ((GRPOTrainer, {}), (CLIPOTrainer, {"contrastive_reward_weight": 0.0})):
        trainer = make(tmp_path, trainer_class, **extra)
        for layer in trainer.model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        trainer.train()
        results.append(weights(trainer.model))
    assert same(*results)


def test_advantages_are_the_normalised_sum_of_the_columns(tmp_path):
    trainer = make(tmp_path, max_steps=1, reward_funcs=[letters_reward, length_reward], reward_weights=[1.0, 2.0])
    trainer.train()
    advantages, columns = advantages_and_columns(trainer)
    assert list(columns) == ["letters_reward", "length_reward", "contrastive"]
    assert columns["contrastive"].min() < 0
    total = (columns["letters_reward"] + 2.0 * columns["length_reward"] + columns["contrastive"]).view(2, 4)
    expected = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(advantages, expected.flatten())


def test_the_callers_lists_and_configuration_are_left_alone(tmp_path):
    reward_funcs, reward_weights, processing_classes = [letters_reward, length_reward], [1.0, 0.5], [None, None]
    args = tiny_config(tmp_path, reward_weights=reward_weights)
    trainer = CLIPOTrainer(
        tiny_model(),
        reward_funcs,
        args,
        tiny_dataset(),  # by place, as `GRPOTrainer` allows
        processing_class=tiny_tokenizer(),
        reward_processing_classes=processing_classes,
    )
    assert reward_funcs == [letters_reward, length_reward] and args.reward_weights is reward_weights
    assert reward_weights == [1.0, 0.5] and processing_classes == [None, None]
    assert trainer.args.reward_weights == [1.0, 0.5]
    assert trainer.reward_weights.tolist() == [1.0, 0.5, 1.0]


# ---------------------------------------------------------------------- configurations it takes


def test_a_plain_grpo_config_gets_the_defaults(tmp_path, caplog):
    args = tiny_config(tmp_path, GRPOConfig)
    with caplog.at_level(logging.INFO, logger="clipo_trl.trainer"):
        trainer = CLIPOTrainer(
            tiny_model(), letters_reward, args, train_dataset=tiny_dataset(), processing_class=tiny_tokenizer()
        )
    assert "CLIPO's fields take their defaults" in caplog.text
    assert type(args) is GRPOConfig and not hasattr(args, "contrastive_temperature")
    assert isinstance(trainer.args, CLIPOConfig) and trainer.args.contrastive_temperature == 0.05
    assert trainer.args.steps_per_generation == args.steps_per_generation
    trainer.train()
    assert rows(trainer)[0]["contrastive/reward/mean"] < 0


def test_no_configuration_at_all(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    defaults = CLIPOConfig

    def on_cpu(output_dir):
        return defaults(output_dir, bf16=False, use_cpu=True, report_to=[])

    monkeypatch.setattr(CLIPOTrainer, "_config_class", staticmethod(on_cpu))
    trainer = CLIPOTrainer(
        tiny_model(), letters_reward, train_dataset=tiny_dataset(), processing_class=tiny_tokenizer()
    )
    assert trainer.args.output_dir.endswith("-CLIPO")
    assert trainer.contrastive_head.embedding_dim == 512


@dataclass
class CLIPOGMPOConfig(CLIPOConfigMixin, GMPOConfig):
    """CLIPO's fields on GMPO's configuration."""


class CLIPOGMPOTrainer(CLIPOMixin, GMPOTrainer):
    """CLIPO's column in GMPO."""

    _config_class = CLIPOGMPOConfig


def test_the_mixin_serves_gmpo(tmp_path):
    settings = {"max_steps": 4, "epsilon": 0.4}
    gmpo = trained(tmp_path, GMPOTrainer, config_class=GMPOConfig, **settings)
    zero = trained(tmp_path, CLIPOGMPOTrainer, config_class=CLIPOGMPOConfig, contrastive_reward_weight=0.0, **settings)
    clipo = trained(tmp_path, CLIPOGMPOTrainer, config_class=CLIPOGMPOConfig, **settings)
    assert same(weights(gmpo.model), weights(zero.model))
    assert not same(weights(gmpo.model), weights(clipo.model))
    with pytest.raises(TypeError, match="CLIPOConfigMixin, GMPOConfig"):  # it has fields that `CLIPOConfig` lacks
        make(tmp_path, config_class=GMPOConfig)
    plain = make(tmp_path, CLIPOGMPOTrainer, config_class=GMPOConfig)
    assert type(plain.args) is CLIPOGMPOConfig and plain.args.contrastive_temperature == 0.05


@dataclass
class OtherConfig(GRPOConfig):
    note: str = "none"
    words: list = field(default_factory=list)


class OtherTrainer(GRPOTrainer):
    """A trainer of somebody's: its own places, names and configuration."""

    def __init__(self, note, args, train_dataset, model, reward_funcs, *, shout=False, **rest):
        super().__init__(model, reward_funcs, args, train_dataset=train_dataset, **rest)
        self.note, self.shout = note, shout


@dataclass
class CLIPOOtherConfig(CLIPOConfigMixin, OtherConfig):
    more: dict = field(default_factory=dict)


class CLIPOOtherTrainer(CLIPOMixin, OtherTrainer):
    _config_class = CLIPOOtherConfig


@pytest.mark.parametrize("config_class", [CLIPOOtherConfig, OtherConfig, GRPOConfig])
def test_the_mixin_serves_a_trainer_with_other_arguments(tmp_path, config_class):
    args = tiny_config(tmp_path, config_class, max_steps=2, reward_weights=[2.0])
    trainer = CLIPOOtherTrainer(
        "hello", args, tiny_dataset(), tiny_model(), letters_reward, shout=True, processing_class=tiny_tokenizer()
    )
    assert (trainer.note, trainer.shout) == ("hello", True)
    assert type(trainer.args) is CLIPOOtherConfig and type(args) is config_class
    assert (trainer.args.note, trainer.args.words, trainer.args.more) == ("none", [], {})
    trainer.train()
    assert trainer.reward_weights.tolist() == [2.0, 1.0]
    assert rows(trainer)[0]["contrastive/reward/mean"] < 0
    with pytest.raises(TypeError, match="missing a required argument: 'model'"):
        CLIPOOtherTrainer("hello", args, tiny_dataset())


class ShoutingTrainer(GRPOTrainer):
    """Names its own argument, and hands on the rest."""

    def __init__(self, *args, shout=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.shout = shout


def test_the_mixin_serves_a_trainer_that_hands_arguments_on(tmp_path):
    class Shouting(CLIPOMixin, ShoutingTrainer):
        _name = "CLIPO"

    args = tiny_config(tmp_path, max_steps=1)
    trainer = Shouting(
        tiny_model(), letters_reward, args, tiny_dataset(), shout=True, processing_class=tiny_tokenizer()
    )
    assert trainer.shout and trainer.reward_func_names == ["letters_reward", "contrastive"]


def test_an_editor_can_show_the_arguments():
    ours, theirs = (inspect.signature(cls).parameters for cls in (CLIPOTrainer, GRPOTrainer))
    assert list(ours) == list(theirs)
    assert {name: p.default for name, p in ours.items()} == {name: p.default for name, p in theirs.items()}


@pytest.mark.parametrize(
    "settings, kwargs, message",
    [
        ({"reward_weights": [1.0, 2.0]}, {}, "`reward_weights` has 2 entries, but `reward_funcs` has 1"),
        ({}, {"reward_processing_classes": [None, None, None]}, "classes` has 3 entries, but `reward_funcs` has 1"),
    ],
)
def test_errors_count_rewards_as_the_user_does(tmp_path, settings, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path, trainer_kwargs=kwargs, **settings)


# ---------------------------------------------------------------------- success label, rows left out


def accuracy_reward(completions, **kwargs):
    return letters_reward(completions)


def format_reward(completions, **kwargs):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    "rewards, settings, decide, said",
    [
        ([letters_reward], {}, ["letters_reward"], None),
        ([accuracy_reward], {}, ["accuracy_reward"], None),
        ([format_reward, accuracy_reward], {}, ["accuracy_reward"], "correct if accuracy_reward > 0"),
        ([format_reward, letters_reward], {}, ["format_reward", "letters_reward"], "weighted sum of ALL rewards"),
        (  # one that weighs nothing decides nothing
            [format_reward, accuracy_reward],
            {"reward_weights": [1.0, 0.0]},
            ["format_reward", "accuracy_reward"],
            "weighted sum of ALL rewards",
        ),
        (
            [format_reward, letters_reward],
            {"contrastive_success_rewards": ["letters_reward"]},
            ["letters_reward"],
            None,
        ),
        ([accuracy_reward, format_reward], {"contrastive_step_reward": "format_reward"}, ["accuracy_reward"], None),
    ],
)
def test_which_rewards_decide_success_is_told(tmp_path, caplog, rewards, settings, decide, said):
    trainer = make(tmp_path, reward_funcs=rewards, **settings)
    assert [trainer.reward_func_names[column] for column in trainer._success_columns] == decide
    assert ("success_rewards" in caplog.text) == (said is not None) and (said or "") in caplog.text


def test_a_format_reward_does_not_make_wrong_answers_correct(tmp_path):
    def wrong_reward(completions, **kwargs):
        return [0.0] * len(completions)

    wrong_reward.__name__ = "accuracy_reward"
    trainer = trained(tmp_path, reward_funcs=[format_reward, wrong_reward], max_steps=1)
    assert rows(trainer)[0]["contrastive/correct_rollouts"] == 0


def test_success_is_the_weighted_sum_of_the_chosen_rewards(tmp_path):
    def labels(**settings):
        trainer = make(tmp_path, reward_funcs=[letters_reward, length_reward], max_steps=1, **settings)
        trainer.train()
        columns = advantages_and_columns(trainer)[1]
        return rows(trainer)[0]["contrastive/correct_rollouts"], columns["letters_reward"], columns["length_reward"]

    share, letters, length = labels()
    assert share == pytest.approx((letters + length > 0).float().mean().item())
    share, letters, length = labels(contrastive_success_rewards=["letters_reward"])
    assert share == pytest.approx((letters > 0).float().mean().item())
    share, letters, length = labels(
        contrastive_success_rewards=["length_reward"], contrastive_success_threshold=-0.04, reward_weights=[1.0, 2.0]
    )
    assert 0 < share < 1 and share == pytest.approx((2 * length > -0.04).float().mean().item())


@pytest.mark.parametrize("wanted", [["nobody"], "letters_reward", []], ids=str)
def test_a_success_reward_that_does_not_exist(tmp_path, wanted):
    with pytest.raises(ValueError, match=r"contrastive_success_rewards.*\['letters_reward'\]"):
        make(tmp_path, contrastive_success_rewards=wanted)


def test_success_rewards_that_all_weigh_nothing(tmp_path):
    settings = {"reward_weights": [0.0, 1.0], "contrastive_success_rewards": ["letters_reward"]}
    with pytest.raises(ValueError, match=r"contrastive_success_rewards.*\[0.0, 1.0\]"):
        make(tmp_path, reward_funcs=[letters_reward, length_reward], **settings)


def test_a_weight_that_the_aggregation_takes_out_is_warned_of(tmp_path, caplog):
    make(tmp_path, multi_objective_aggregation="normalize_then_sum", contrastive_reward_weight=0.0)
    assert "normalize_then_sum" not in caplog.text
    make(tmp_path, multi_objective_aggregation="normalize_then_sum")
    assert "normalize_then_sum" in caplog.text


def test_a_row_without_reward_stays_unscorable(tmp_path):
    def sometimes_none(completions, **kwargs):
        return [None if i % 4 == 1 else float(i % 4 > 1) for i in range(len(completions))]

    trainer = make(tmp_path, reward_funcs=sometimes_none, max_steps=2)
    trainer.train()
    advantages, columns = advantages_and_columns(trainer)
    missing = columns["sometimes_none"].isnan()
    assert missing.any() and torch.equal(columns["contrastive"].isnan(), missing)
    assert advantages[missing].eq(0).all() and advantages[~missing].ne(0).all()
    assert rows(trainer)[0]["contrastive/left_out_rollouts"] == 0.25


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_states_that_are_not_finite_are_left_out_and_counted(tmp_path, bad, monkeypatch):
    class Spoiled(CLIPOTrainer):
        def _contrastive_column(self, rewards_per_func, pooled_BH):
            pooled_BH[2, 5] = bad
            return super()._contrastive_column(rewards_per_func, pooled_BH)

    trainer = make(tmp_path, Spoiled, max_steps=4)
    head = weights(trainer.contrastive_head)
    trainer.train()
    assert [row["contrastive/left_out_rollouts"] for row in rows(trainer)] == [1 / 8] * 4
    assert all(parameter.isfinite().all() for parameter in trainer.contrastive_head.parameters())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
    assert not same(head, weights(trainer.contrastive_head))
    columns = advantages_and_columns(trainer)[1]
    assert columns["contrastive"].isnan().sum() == 1


def test_a_projection_that_overflows_does_not_reach_the_head(tmp_path):
    class Huge(CLIPOTrainer):
        def _contrastive_column(self, rewards_per_func, pooled_BH):
            pooled_BH[1] = 3e38
            return super()._contrastive_column(rewards_per_func, pooled_BH)

    trainer = make(tmp_path, Huge, max_steps=3)
    trainer.train()
    assert all(parameter.isfinite().all() for parameter in trainer.contrastive_head.parameters())
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


# ---------------------------------------------------------------------- the head


def test_the_head_learns_in_training_only(tmp_path):
    trainer = make(tmp_path, trainer_kwargs={"eval_dataset": tiny_dataset(2)})
    before = weights(trainer.contrastive_head)
    metrics = trainer.evaluate()
    assert same(before, weights(trainer.contrastive_head))
    assert not any("contrastive" in key for key in metrics)
    assert metrics["eval_reward"] == metrics["eval_rewards/letters_reward/mean"]
    trainer.train()
    assert not same(before, weights(trainer.contrastive_head))


def even_prompt_reward(completions, prompts, **kwargs) -> list[float]:
    """Known in advance: right where the prompt has an even number of characters."""
    return [float(len(prompt[-1]["content"]) % 2 == 0) for prompt in prompts]


def test_several_test_sets_keep_their_metrics_apart(tmp_path):
    sets = {"three": tiny_dataset(3), "math_500": tiny_dataset(2)}  # prompts of 1, 2, 3 characters, and of 1, 2
    trainer = make(
        tmp_path,
        reward_funcs=even_prompt_reward,
        num_generations_eval=2,
        eval_strategy="steps",
        eval_steps=1,
        per_device_eval_batch_size=6,
        save_strategy="best",
        metric_for_best_model="eval_math_500_rewards/even_prompt_reward/mean",
        trainer_kwargs={"eval_dataset": sets},
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if any(key.startswith("eval_") for key in row)]
    assert len(logged) == 6  # two sets, three times
    for row, (name, accuracy) in zip(logged, [("three", 1 / 3), ("math_500", 1 / 2)] * 3, strict=True):
        assert row[f"eval_{name}_rewards/even_prompt_reward/mean"] == row[f"eval_{name}_reward"]
        assert row[f"eval_{name}_reward"] == pytest.approx(accuracy)
        assert all(key.startswith(f"eval_{name}_") for key in row if key not in ("epoch", "step"))
        assert not any("contrastive" in key for key in row)
    assert trainer.state.best_metric == 0.5

    returned = trainer.evaluate()
    assert returned["eval_three_reward"] == pytest.approx(1 / 3) and returned["eval_math_500_reward"] == 0.5
    assert trainer.evaluate(sets["three"])["eval_reward"] == pytest.approx(1 / 3)  # a single set has no name


def test_evaluation_with_another_group_size(tmp_path):
    trainer = make(
        tmp_path,
        num_generations_eval=1,
        eval_strategy="steps",
        eval_steps=1,
        trainer_kwargs={"eval_dataset": tiny_dataset(3)},
    )
    trainer.train()
    logged = [row for row in trainer.state.log_history if "eval_reward" in row]
    assert len(logged) == 3
    for row in logged:
        assert row["eval_reward"] == row["eval_rewards/letters_reward/mean"]
        assert not any("contrastive" in key for key in row)


@pytest.mark.parametrize("n_rows, k", [(3, 1), (6, 1), (5, 2)])
def test_accuracy_is_the_mean_over_all_samples(tmp_path, n_rows, k):
    seen = []

    def recorded(completions, **kwargs):
        rewards = letters_reward(completions)
        seen.extend(rewards)
        return rewards

    trainer = make(
        tmp_path,
        reward_funcs=[recorded, length_reward],
        per_device_eval_batch_size=4,  # the last batch is smaller
        num_generations_eval=k,
        trainer_kwargs={"eval_dataset": {"few": tiny_dataset(n_rows)}},
    )
    metrics = trainer.evaluate()
    assert len(seen) == n_rows * k
    assert metrics["eval_few_rewards/recorded/mean"] == pytest.approx(sum(seen) / len(seen))
    both = metrics["eval_few_rewards/recorded/mean"] + metrics["eval_few_rewards/length_reward/mean"]
    assert metrics["eval_few_reward"] == pytest.approx(both)
    assert trainer.evaluate()["eval_few_rewards/recorded/mean"] == pytest.approx(
        sum(seen[n_rows * k :]) / (n_rows * k)
    )


def test_a_frozen_head_does_not_move(tmp_path):
    trainer = make(tmp_path, freeze_contrastive_head=True)
    before = weights(trainer.contrastive_head)
    trainer.train()
    assert same(before, weights(trainer.contrastive_head))
    assert rows(trainer)[0]["contrastive/reward/mean"] < 0
    assert "contrastive/head_grad_norm" not in rows(trainer)[0]


def test_the_head_takes_one_adamw_step_on_the_loss_before_the_reward_counts(tmp_path):
    """One step, by hand: gradient of the anchors' mean loss, AdamW, and rewards from the head as it was before."""
    from clipo_trl import contrastive_loss, contrastive_reward

    class Recording(CLIPOTrainer):
        def _contrastive_column(self, rewards_per_func, pooled_BH):
            self.seen = (rewards_per_func[:, 0].clone(), pooled_BH.clone())
            self.column = super()._contrastive_column(rewards_per_func, pooled_BH)
            return self.column

    trainer = make(tmp_path, Recording, max_steps=1, contrastive_loss_type="supcon_out")
    head = ContrastiveHead(16, 8, seed=trainer.args.seed)
    assert same(weights(head), weights(trainer.contrastive_head))
    trainer.train()

    reward, pooled = trainer.seen
    correct = (reward > 0).view(2, 4)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    loss, is_anchor = contrastive_loss(head(pooled).view(2, 4, 8), correct, loss_type="supcon_out")
    torch.testing.assert_close(trainer.column, contrastive_reward(loss, correct).flatten())
    (loss.sum() / is_anchor.sum()).backward()
    optimizer.step()
    torch.testing.assert_close(weights(trainer.contrastive_head), weights(head))


def test_a_batch_without_anchors_leaves_the_head_alone(tmp_path):
    def all_right(completions, **kwargs):
        return [1.0] * len(completions)

    trainer = make(tmp_path, reward_funcs=all_right)
    before = weights(trainer.contrastive_head)
    trainer.train()
    assert same(before, weights(trainer.contrastive_head))
    assert rows(trainer)[0]["contrastive/trivial_groups"] == 1.0
    assert rows(trainer)[0]["contrastive/head_loss"] is None
    assert advantages_and_columns(trainer)[1]["contrastive"].eq(0).all()


def test_starting_from_a_saved_head(tmp_path):
    saved = ContrastiveHead(16, 24, "mlp", "layer_norm", seed=9)
    saved.save_pretrained(tmp_path / "head")
    trainer = make(tmp_path, contrastive_head_path=str(tmp_path / "head"))
    assert same(weights(saved), weights(trainer.contrastive_head))
    assert trainer.contrastive_head.debias == "layer_norm"
    trainer.train()
    with pytest.raises(ValueError, match="contrastive_head_path.*hidden size 12"):
        ContrastiveHead(12, 8).save_pretrained(tmp_path / "narrow")
        make(tmp_path, contrastive_head_path=str(tmp_path / "narrow"))


@pytest.mark.parametrize(
    "settings",
    [
        {"contrastive_head_type": "mlp"},
        {"contrastive_debias": "mean_subtract"},
        {"contrastive_debias": "layer_norm"},
        {"contrastive_loss_type": "soft_nn", "contrastive_similarity": "l2"},
        {"contrastive_loss_type": "supcon_in", "contrastive_level": "cross"},
        {"contrastive_level": "batch", "contrastive_anchors": "all"},
    ],
    ids=str,
)
def test_every_option_reaches_the_reward(tmp_path, settings):
    plain, changed = trained(tmp_path, max_steps=1), trained(tmp_path, max_steps=1, **settings)
    before, after = (advantages_and_columns(trainer)[1]["contrastive"] for trainer in (plain, changed))
    assert not torch.allclose(before, after)


def test_rewards_that_share_a_name_all_decide(tmp_path, caplog):
    def named_alike(reward):
        reward.__name__ = "part"
        return reward

    rewards = [
        named_alike(lambda completions, **kwargs: [0.0] * len(completions)),
        named_alike(lambda completions, **kwargs: [1.0] * len(completions)),
    ]
    trainer = make(tmp_path, reward_funcs=rewards)
    assert trainer._success_columns == [0, 1] and trainer.success_rule.choice == "all"
    assert "Some share a name" in caplog.text
    make(tmp_path, reward_funcs=rewards, reward_weights=[1.0, 0.0])  # the first one decides


def test_offset_and_floor_reach_the_reward(tmp_path):
    trainer = make(tmp_path, max_steps=1, contrastive_reward_offset=0.1, contrastive_reward_floor=-0.05)
    trainer.train()
    column = advantages_and_columns(trainer)[1]["contrastive"]
    assert column.max() == pytest.approx(0.1) and column.min() == pytest.approx(-0.05)
    assert rows(trainer)[0]["contrastive/floor_rewards"] > 0


def test_learning_rate_and_weight_decay_reach_the_head(tmp_path):
    trainer = make(tmp_path, contrastive_learning_rate=0.5, contrastive_weight_decay=0.25)
    group = trainer.head_learner.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.5, 0.25)


# ---------------------------------------------------------------------- warm-up


@pytest.mark.parametrize(
    "settings", [{}, FUSED, {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}], ids=str
)
def test_a_frozen_policy_is_not_touched_during_warm_up(tmp_path, settings, monkeypatch):
    trainer = make(tmp_path, contrastive_warmup_steps=2, max_steps=5, weight_decay=0.1, **settings)
    batches_at_loss, weights_at_step = [], {}
    compute_loss = CLIPOTrainer._compute_loss
    monkeypatch.setattr(
        CLIPOTrainer,
        "_compute_loss",
        lambda self, *args: batches_at_loss.append(self.head_learner.n_batches) or compute_loss(self, *args),
    )
    column = CLIPOTrainer._contrastive_column

    def snapshot(self, *args):
        weights_at_step[self.head_learner.n_batches] = weights(self.model)
        return column(self, *args)

    monkeypatch.setattr(CLIPOTrainer, "_contrastive_column", snapshot)
    start, head = weights(trainer.model), weights(trainer.contrastive_head)
    trainer.train()
    assert batches_at_loss and min(batches_at_loss) == 3  # never for the first two generation batches
    assert same(start, weights_at_step[1]) and same(start, weights_at_step[2])
    assert not same(start, weights(trainer.model))
    assert not same(head, weights(trainer.contrastive_head))
    assert trainer.state.global_step == 5


def test_a_warm_up_on_the_verifiable_reward_is_grpo_until_it_ends(tmp_path):
    warmup = {"contrastive_warmup_steps": 2, "contrastive_warmup_policy": "verifiable_reward"}
    grpo, warm = trained(tmp_path, GRPOTrainer, max_steps=2), trained(tmp_path, max_steps=2, **warmup)
    assert same(weights(grpo.model), weights(warm.model))
    assert not same(weights(ContrastiveHead(16, 8, seed=42)), weights(warm.contrastive_head))
    grpo, warm = trained(tmp_path, GRPOTrainer, max_steps=3), trained(tmp_path, max_steps=3, **warmup)
    assert not same(weights(grpo.model), weights(warm.model))


# ---------------------------------------------------------------------- metrics, saving


def test_metrics(tmp_path):
    trainer = make(tmp_path, max_steps=1)
    trainer.train()
    logged = rows(trainer, "contrastive/")[0]
    assert set(logged) == {
        f"contrastive/{name}"
        for name in (
            "head_loss", "head_grad_norm", "seconds",
            "correct_rollouts", "anchors", "trivial_groups", "left_out_rollouts", "floor_rewards",
            "loss/mean", "loss/min", "loss/max", "reward/mean", "reward/min", "reward/max",
            "hidden_cosine_correct_correct", "hidden_cosine_correct_wrong",
            "embedding_cosine_correct_correct", "embedding_cosine_correct_wrong",
        )
    }  # fmt: skip
    assert all(value == value for value in logged.values())
    assert logged["contrastive/head_loss"] == pytest.approx(logged["contrastive/loss/mean"])
    columns = advantages_and_columns(trainer)[1]
    assert logged["contrastive/reward/min"] == pytest.approx(columns["contrastive"].min().item())


def test_model_head_card_and_checkpoint_are_written(tmp_path):
    trainer = make(tmp_path, save_strategy="steps", save_steps=2)
    trainer.train()
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        head = ContrastiveHead.from_pretrained(folder / HEAD_FOLDER)
        assert head.hidden_size == 16
        assert same(weights(head), weights(trainer.contrastive_head)) == (folder == tmp_path)
        assert json.loads((folder / HEAD_FOLDER / "config.json").read_text())["embedding_dim"] == 8
    assert not [name for name in os.listdir(tmp_path / HEAD_FOLDER) if name.endswith((".bin", ".pt", ".pkl"))]
    card = (tmp_path / "README.md").read_text()
    assert "CLIPO" in card and "2603.10101" in card


def test_resuming_goes_on_where_the_run_was(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "contrastive_warmup_steps": 3}
    whole = trained(tmp_path / "whole", **settings)
    resumed = make(tmp_path / "whole", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(whole.model), weights(resumed.model))
    assert same(weights(whole.contrastive_head), weights(resumed.contrastive_head))
    assert rows(whole)[-1]["reward"] == rows(resumed)[-1]["reward"]


def test_images_and_missing_rewards_are_refused(tmp_path):
    images = tiny_dataset().add_column("image", ["x"] * 8)
    with pytest.raises(ValueError, match="train_dataset.*image"):
        make(tmp_path, trainer_kwargs={"train_dataset": images})
    with pytest.raises(ValueError, match="reward_funcs"):
        make(tmp_path, reward_funcs=None)


def test_a_reward_that_bears_the_columns_name_is_refused(tmp_path):
    def contrastive(completions, **kwargs):
        return [1.0] * len(completions)

    with pytest.raises(ValueError, match="Rename"):
        make(tmp_path, reward_funcs=contrastive)


def test_the_best_model_of_test_sets_with_names(tmp_path):
    """They have no plain `eval_reward`, which the run would end for at its first evaluation."""
    settings = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    settings |= {"save_steps": 1, "max_steps": 1}
    two = {"easy": tiny_dataset(4), "hard": tiny_dataset(4)}
    trainer = make(tmp_path, trainer_kwargs={"eval_dataset": two}, **settings)
    with pytest.raises(ValueError, match="`metric_for_best_model` is 'reward'.*eval_easy_reward, eval_hard_reward"):
        trainer.train()
    trainer = make(tmp_path, trainer_kwargs={"eval_dataset": {"easy": two["easy"]}}, **settings)
    trainer.train()
    assert trainer.state.best_metric is not None and trainer.args.metric_for_best_model == "eval_easy_reward"
    for metric in ("eval_hard_reward", "hard_reward", "eval_easy_rewards/letters_reward/mean"):
        trainer = make(tmp_path, trainer_kwargs={"eval_dataset": two}, metric_for_best_model=metric, **settings)
        trainer.train()
        assert trainer.state.best_metric is not None


def test_anchors_that_pay_nothing_are_told(tmp_path, caplog):
    told = "`contrastive_anchors='incorrect'` gives correct rollouts no loss"
    make(tmp_path, contrastive_anchors="incorrect", contrastive_reward_type="agreement")
    make(tmp_path, contrastive_anchors="incorrect", contrastive_reward_weight=0.0)
    make(tmp_path, contrastive_anchors="all")
    assert told not in caplog.text
    trainer = make(tmp_path, contrastive_anchors="incorrect", max_steps=1)
    assert told in caplog.text
    trainer.train()
    assert advantages_and_columns(trainer)[1]["contrastive"].abs().max() == 0
