"""`CLIPOConfig`: defaults of the paper, and wrong values refused where they are given."""

import pickle
from dataclasses import fields

import pytest
from tiny_models import tiny_config
from trl import GRPOConfig, ModelConfig, TrlParser

from clipo_trl import CLIPOConfig, CLIPOConfigMixin
from clipo_trl.cli.train import ScriptArguments
from clipo_trl.config import FIELD_GROUPS, BeyondThePaperFields


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
        "contrastive_score_scale": None,
        "contrastive_baseline": None,
        "contrastive_num_positives": 1,
        "contrastive_reward_schedule": "constant",
        "contrastive_step_reward": None,
        "contrastive_calibration": False,
        "contrastive_pooling": "mean",
        "contrastive_layer": -1,
        "dynamic_sampling": False,
        "dynamic_sampling_max_attempts": 10,
        "dynamic_sampling_rewards": None,
    }
    added = {field.name for field in fields(CLIPOConfig)} - {field.name for field in fields(GRPOConfig)}
    assert added == set(expected)
    assert {name: getattr(config, name) for name in added} == expected
    unchanged = GRPOConfig(str(tmp_path), use_cpu=True, bf16=False)
    for field in fields(GRPOConfig):
        if field.name not in ("logging_dir", "deepspeed_plugin"):
            assert getattr(config, field.name) == getattr(unchanged, field.name), field.name


def without_space(text: str) -> str:
    """`text` however it is wrapped."""
    return "".join(text.split())


@pytest.mark.parametrize("config", [CLIPOConfigMixin, CLIPOConfig])
def test_every_field_is_described_in_the_docstring(config):
    described = without_space(config.__doc__)
    for field in fields(CLIPOConfigMixin):
        text = field.metadata["help"]
        assert text.endswith(".") and f"):{without_space(text)}" in described, field.name
        assert config.__doc__.count(f"\n    {field.name} (`") == 1


def test_the_docstring_is_written_as_transformers_writes_them():
    assert CLIPOConfigMixin.__doc__.startswith("The fields that CLIPO adds")
    assert CLIPOConfig.__doc__.startswith("Configuration class for the [`CLIPOTrainer`]")
    assert all(len(line) < 120 for line in CLIPOConfig.__doc__.splitlines())
    for entry in (
        "    > Warm-up: batches in which the head learns first.\n\n    contrastive_warmup_steps (",
        "    contrastive_temperature (`float`, *optional*, defaults to `0.05`):\n        Temperature tau > 0 that similarities",
        '    contrastive_loss_type (`str`, *optional*, defaults to `"infonce"`):\n        Loss',
        "    freeze_contrastive_head (`bool`, *optional*, defaults to `False`):\n        Never",
        "    contrastive_layer (`int`, *optional*, defaults to `-1`):\n        -1 reads",
        "    contrastive_debias (`str`, *optional*):\n        What",
        "    contrastive_success_rewards (`list[str]`, *optional*):\n        Names",
    ):
        assert f"\n{entry}" in CLIPOConfig.__doc__, entry


def test_every_field_is_described_on_the_command_line():
    """Whole, with its default: argparse formats help with `%`."""
    shown = without_space(TrlParser((ScriptArguments, CLIPOConfig, ModelConfig)).format_help())
    for field in fields(CLIPOConfigMixin):
        assert without_space(f"{field.metadata['help']} (default: {field.default})") in shown, field.name


def test_every_field_is_in_one_group():
    names = [field.name for group in FIELD_GROUPS for field in fields(group)]
    assert len(set(names)) == len(names)
    assert names == [field.name for field in fields(CLIPOConfigMixin)]
    assert names == [field.name for field in fields(CLIPOConfig)][-len(names) :]
    headings = [line.removeprefix("    > ") for line in CLIPOConfigMixin.__doc__.splitlines() if line[4:5] == ">"]
    assert headings == [group.__doc__ for group in FIELD_GROUPS]


def test_what_is_beyond_the_paper_stands_apart():
    beyond = {field.name: field.metadata["help"] for field in fields(BeyondThePaperFields)}
    assert list(beyond) == [
        "contrastive_reward_type",
        "contrastive_score_scale",
        "contrastive_baseline",
        "contrastive_num_positives",
        "contrastive_reward_schedule",
        "contrastive_step_reward",
        "contrastive_calibration",
    ]
    assert all("beyond the paper" in text.lower() for text in beyond.values())


def test_a_configuration_travels_between_processes(tmp_path):
    config = tiny_config(tmp_path, contrastive_temperature=0.1, contrastive_success_rewards=["verifiable_reward"])
    copied = pickle.loads(pickle.dumps(config))
    assert type(copied) is CLIPOConfig
    for field in fields(CLIPOConfigMixin):
        assert getattr(copied, field.name) == getattr(config, field.name)


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
        ("contrastive_score_scale", "batch"),
        ("contrastive_baseline", "mean"),
        ("contrastive_num_positives", 0),
        ("contrastive_reward_schedule", "exponential"),
        ("contrastive_similarity", "dot"),
        ("contrastive_level", "prompt"),
        ("contrastive_anchors", "none"),
        ("contrastive_head_type", "conv"),
        ("contrastive_debias", "pca"),
        ("contrastive_pooling", "max"),
        ("contrastive_warmup_policy", "sft"),
        ("dynamic_sampling_max_attempts", 0),
    ],
)
def test_wrong_values_are_named(tmp_path, field, value):
    with pytest.raises(ValueError, match=f"`{field}`"):
        tiny_config(tmp_path, **{field: value})


def test_of_several_wrong_values_the_first_check_speaks(tmp_path):
    """Choices, numbers, the reward, the size of the group, head and warm-up."""
    mistakes = [
        ("contrastive_loss_type", "triplet", "`contrastive_loss_type` is 'triplet'"),
        ("contrastive_pooling", "max", "`contrastive_pooling` is 'max'"),
        ("contrastive_temperature", 0.0, "`contrastive_temperature` is 0.0"),
        ("contrastive_reward_floor", 0.5, "`contrastive_reward_floor` is 0.5"),
        ("contrastive_reward_offset", -1.0, "`contrastive_reward_offset` .-1.0. is below"),
        ("contrastive_similarity", "l2", "`contrastive_similarity` is 'l2'"),
        ("contrastive_calibration", True, "`contrastive_step_reward` is None"),
        ("num_generations", 2, "`num_generations` of 3 or more"),
        ("freeze_contrastive_head", True, "while `freeze_contrastive_head` is True"),
    ]
    fields_given = {name: value for name, value, _ in mistakes}
    fields_given |= {"contrastive_reward_type": "agreement", "contrastive_warmup_steps": 2}
    for name, _, message in mistakes:
        with pytest.raises(ValueError, match=message):
            tiny_config(tmp_path, **fields_given)
        del fields_given[name]
    tiny_config(tmp_path, **fields_given)


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


def test_scores_are_means_of_cosines(tmp_path):
    with pytest.raises(ValueError, match="`contrastive_similarity` is 'l2'"):
        tiny_config(tmp_path, contrastive_reward_type="agreement", contrastive_similarity="l2")
    tiny_config(tmp_path, contrastive_reward_type="agreement", contrastive_debias="group_center")


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"contrastive_baseline": "log_positives", "contrastive_reward_type": "agreement"}, "pays no loss"),
        ({"contrastive_baseline": "log_positives", "contrastive_loss_type": "soft_nn"}, "nothing to take off"),
        ({"contrastive_num_positives": 2, "contrastive_loss_type": "supcon_out"}, "uses all positives"),
    ],
)
def test_a_baseline_and_drawn_positives_belong_to_a_loss(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(tmp_path, **settings)
    for name in settings:  # each goes with the defaults
        if name not in ("contrastive_reward_type", "contrastive_loss_type"):
            tiny_config(tmp_path, **{name: settings[name]})


def test_the_loss_has_no_score_to_scale(tmp_path):
    with pytest.raises(ValueError, match="`contrastive_score_scale` is 'group', but `contrastive_reward_type='loss'`"):
        tiny_config(tmp_path, contrastive_score_scale="group")
    tiny_config(tmp_path, contrastive_score_scale="group", contrastive_reward_type="similarity_gap")


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
