"""`CLIPOConfig`: defaults of the paper, and wrong values refused where they are given."""

from dataclasses import fields

import pytest
from tiny_models import tiny_config
from trl import GRPOConfig, TrlParser

from clipo_trl import CLIPOConfig, CLIPOConfigMixin


def test_defaults(tmp_path):
    config = CLIPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    expected = {
        "contrastive_loss_type": "infonce",
        "contrastive_similarity": "cosine",
        "contrastive_temperature": 0.05,
        "contrastive_level": "group",
        "contrastive_anchors": "correct",
        "contrastive_reward_type": "loss",
        "contrastive_reward_weight": 0.2,
        "contrastive_reward_offset": 0.0,
        "contrastive_reward_floor": -0.5,
        "contrastive_head_type": "linear",
        "contrastive_embedding_dim": 512,
        "contrastive_learning_rate": 1e-3,
        "contrastive_weight_decay": 0.01,
        "contrastive_debias": None,
        "contrastive_head_path": None,
        "freeze_contrastive_head": False,
        "contrastive_warmup_steps": 0,
        "contrastive_warmup_policy": "frozen",
        "contrastive_success_rewards": None,
        "contrastive_success_threshold": 0.0,
        "contrastive_step_reward": None,
        "contrastive_calibration": False,
        "contrastive_pooling": "mean",
        "contrastive_layer": -1,
    }
    added = {field.name for field in fields(CLIPOConfig)} - {field.name for field in fields(GRPOConfig)}
    assert added == set(expected)
    assert {name: getattr(config, name) for name in added} == expected
    unchanged = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    for field in fields(GRPOConfig):
        if field.name not in ("logging_dir", "deepspeed_plugin"):
            assert getattr(config, field.name) == getattr(unchanged, field.name), field.name


def test_every_field_is_documented():
    for field in fields(CLIPOConfigMixin):
        assert f"{field.name} (`" in CLIPOConfigMixin.__doc__ and field.metadata["help"]


@pytest.mark.parametrize(
    "field, value",
    [
        ("contrastive_temperature", 0.0),
        ("contrastive_temperature", -0.05),
        ("contrastive_temperature", float("nan")),
        ("contrastive_embedding_dim", 0),
        ("contrastive_embedding_dim", -8),
        ("contrastive_learning_rate", 0.0),
        ("contrastive_weight_decay", -0.1),
        ("contrastive_reward_weight", -0.2),
        ("contrastive_reward_weight", float("inf")),
        ("contrastive_reward_offset", float("nan")),
        ("contrastive_reward_offset", -1.0),
        ("contrastive_reward_floor", 0.5),
        ("contrastive_warmup_steps", -1),
        ("contrastive_success_threshold", float("nan")),
        ("contrastive_loss_type", "triplet"),
        ("contrastive_reward_type", "loss_type"),
        ("contrastive_similarity", "dot"),
        ("contrastive_level", "prompt"),
        ("contrastive_anchors", "none"),
        ("contrastive_head_type", "conv"),
        ("contrastive_debias", "pca"),
        ("contrastive_pooling", "max"),
        ("contrastive_warmup_policy", "sft"),
    ],
)
def test_wrong_values_are_named(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        tiny_config(tmp_path, **{field: value})


def test_group_level_needs_three_generations(tmp_path):
    with pytest.raises(ValueError, match="`num_generations` of 3 or more"):
        tiny_config(tmp_path, num_generations=2)
    tiny_config(tmp_path, num_generations=2, contrastive_level="cross")


def test_a_frozen_head_has_no_warm_up(tmp_path):
    with pytest.raises(ValueError, match="freeze_contrastive_head"):
        tiny_config(tmp_path, freeze_contrastive_head=True, contrastive_warmup_steps=2)


def test_a_frozen_head_without_a_saved_one_is_told(tmp_path, caplog):
    tiny_config(tmp_path, freeze_contrastive_head=True, contrastive_head_path="some/head")
    tiny_config(tmp_path)
    assert not caplog.records
    assert tiny_config(tmp_path, freeze_contrastive_head=True).freeze_contrastive_head
    assert "random projection, which nothing trains" in caplog.text
    assert "set `contrastive_head_path` to a saved one" in caplog.text


def test_readouts_are_means_of_cosines(tmp_path):
    with pytest.raises(ValueError, match="`contrastive_similarity` is 'l2'"):
        tiny_config(tmp_path, contrastive_reward_type="agreement", contrastive_similarity="l2")
    tiny_config(tmp_path, contrastive_reward_type="agreement", contrastive_debias="group_center")


def test_calibration_needs_a_step_checker(tmp_path):
    with pytest.raises(ValueError, match="`contrastive_step_reward` is None"):
        tiny_config(tmp_path, contrastive_calibration=True)


def test_settable_from_the_command_line(tmp_path):
    arguments = ["--output_dir", str(tmp_path), "--use_cpu", "--bf16", "false", "--contrastive_temperature", "0.1"]
    arguments += ["--contrastive_success_rewards", "math_accuracy", "format", "--contrastive_debias", "layer_norm"]
    (config,) = TrlParser(CLIPOConfig).parse_args_and_config(arguments)
    assert config.contrastive_temperature == 0.1
    assert config.contrastive_success_rewards == ["math_accuracy", "format"]
    assert config.contrastive_debias == "layer_norm"


def test_a_copy_of_a_plain_configuration(tmp_path):
    plain = tiny_config(tmp_path, GRPOConfig, num_generations=4, beta=0.25)
    config = CLIPOConfig.from_grpo_config(plain)
    assert isinstance(config, CLIPOConfig) and type(plain) is GRPOConfig
    assert (config.beta, config.num_generations, config.contrastive_reward_weight) == (0.25, 4, 0.2)
    best = tiny_config(tmp_path, GRPOConfig, load_best_model_at_end=True, eval_strategy="steps", save_strategy="steps")
    config = CLIPOConfig.from_grpo_config(best)
    assert (config.metric_for_best_model, config.greater_is_better) == ("reward", True)
    with pytest.raises(ValueError, match="num_generations"):
        CLIPOConfig.from_grpo_config(tiny_config(tmp_path, GRPOConfig, num_generations=2))
