"""The health check: each rule on logs that show it, on healthy logs, in the modes where it must be silent; and real
runs."""

import math
import re
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from trl import GRPOConfig, GRPOTrainer

import train
from clipo_trl import CLIPOTrainer, HealthCallback
from clipo_trl.health import PAGE, RULES, _policy_is_frozen
from clipo_trl.report.curves import Line, Panel, draw_panel
from clipo_trl.report.facts import run_facts


ROOT = Path(__file__).parents[1]
BY_NAME = {rule.name: rule for rule in RULES}
LATE = 1000  # an optimizer step at which the head has had its time

HEALTHY = {
    "loss": -0.08,
    "grad_norm": 0.7,
    "completions/clipped_ratio": 0.25,
    "contrastive/head_grad_norm": 3.1,
    "contrastive/head_loss": 2.0,
    "contrastive/correct_rollouts": 0.5,
    "contrastive/anchors": 0.4,
    "contrastive/left_out_rollouts": 0.0,
    "contrastive/floor_rewards": 0.2,
    "contrastive/reward/mean": -0.3,
    "contrastive/embedding_cosine_correct_correct": 0.8,
    "contrastive/embedding_cosine_correct_wrong": 0.3,
    "rewards/accuracy_reward/mean": 0.5,
    "rewards/accuracy_reward/std": 0.5,
    "rewards/format_reward/mean": 0.0,
    "rewards/format_reward/std": 0.0,
    "rewards/contrastive/mean": -0.15,
    "rewards/contrastive/std": 0.2,
    "reward": 0.35,
    "reward_std": 0.4,
    "frac_reward_zero_std": 0.3,
    "epoch": 0.1,
}
# What TRL logs of the contrastive side when there is no anchor.
NO_ANCHORS = {
    "contrastive/anchors": 0.0,
    "contrastive/head_loss": None,
    "contrastive/floor_rewards": None,
    "contrastive/reward/mean": None,
    "contrastive/embedding_cosine_correct_correct": None,
    "contrastive/embedding_cosine_correct_wrong": None,
}
NO_CORRECT = {**NO_ANCHORS, "contrastive/correct_rollouts": 0.0, "rewards/accuracy_reward/mean": 0.0}
ALL_CORRECT = {**NO_ANCHORS, "contrastive/correct_rollouts": 1.0, "rewards/accuracy_reward/mean": 1.0}
UNSPREAD = {"frac_reward_zero_std": 1.0, "reward_std": 0.0, "grad_norm": 0.0, "rewards/accuracy_reward/std": 0.0}
LEFT_OUT = {**NO_ANCHORS, "contrastive/left_out_rollouts": 1.0, "contrastive/correct_rollouts": 0.0}
COLLAPSED = {
    "contrastive/embedding_cosine_correct_correct": 0.9995,
    "contrastive/embedding_cosine_correct_wrong": 0.9993,
}
NO_ANSWER = {
    "rewards/accuracy_reward/mean": 0.0,
    "rewards/accuracy_reward/std": 0.0,
    "rewards/format_reward/mean": 0.5,
}

# What the logs say in place of the healthy values, settings, and all that must be found, nothing else.
SICK = {
    "no rollout has a reward": (
        {**LEFT_OUT, "reward": None, "reward_std": None, "frac_reward_zero_std": 0.0, "grad_norm": 0.0},
        {},
        ["no_rewards"],
    ),
    "dynamic sampling found nothing": (
        {**LEFT_OUT, "reward": None, "dynamic_sampling/unfilled": 1.0, "dynamic_sampling/dropped_no_reward": 0.0},
        {"dynamic_sampling": True},
        ["no_group_has_a_spread"],
    ),
    "no rollout has a state": (LEFT_OUT, {}, ["no_states"]),
    "none correct": (NO_CORRECT, {}, ["no_correct_rollouts"]),
    "none correct, one reward": ({**NO_CORRECT, **UNSPREAD}, {}, ["no_correct_rollouts", "no_reward_spread"]),
    "all correct": (ALL_CORRECT, {}, ["all_rollouts_correct"]),
    "single correct ones": (NO_ANCHORS, {}, ["no_mixed_groups"]),
    "single correct ones, frozen head": (NO_ANCHORS, {"freeze_contrastive_head": True}, ["no_mixed_groups"]),
    "format decides": (NO_ANSWER, {}, ["correct_without_answer"]),
    "format decides, two rewards of answers": (
        {**NO_ANSWER, "rewards/exact_match/mean": 0.0, "rewards/exact_match/std": 0.0},
        {},
        ["correct_without_answer"],
    ),
    "groups without spread": ({**UNSPREAD, "reward_std": 0.3}, {}, ["no_reward_spread"]),
    "one reward": ({"reward_std": 0.0, "grad_norm": 0.0}, {}, ["no_reward_spread"]),
    "all truncated": ({"completions/clipped_ratio": 1.0}, {}, ["all_truncated"]),
    "all truncated and masked": (
        {"completions/clipped_ratio": 1.0, "grad_norm": 0.0},
        {"mask_truncated_completions": True},
        ["all_truncated"],
    ),
    "all on the floor": ({"contrastive/floor_rewards": 1.0}, {}, ["all_rewards_on_the_floor"]),
    "dead head": ({"contrastive/head_grad_norm": 0.0}, {}, ["head_gradient_zero"]),
    "head overflows": ({"contrastive/head_grad_norm": math.inf}, {}, ["head_gradient_not_finite"]),
    "policy gradient NaN, as a file has it": ({"grad_norm": None}, {}, ["policy_gradient_not_finite"]),
    "head gradient NaN": ({"contrastive/head_grad_norm": None}, {}, ["head_gradient_not_finite"]),
    "collapsed": (COLLAPSED, {}, ["embeddings_collapsed"]),
    "turned round": (
        {"contrastive/embedding_cosine_correct_wrong": 0.6, "contrastive/embedding_cosine_correct_correct": 0.4},
        {},
        ["embeddings_collapsed"],
    ),
    "nothing trainable": ({"grad_norm": 0.0}, {}, ["policy_gradient_zero"]),
    "policy gradient NaN": ({"grad_norm": math.nan}, {}, ["policy_gradient_not_finite"]),
    "policy gradient infinite": ({"grad_norm": math.inf}, {}, ["policy_gradient_not_finite"]),
}

WARMING = {"contrastive/in_warmup": 1.0}
FROZEN_POLICY = {"contrastive_warmup_steps": LATE}
OTHER_WARMUP = {**FROZEN_POLICY, "contrastive_warmup_policy": "verifiable_reward"}
FROZEN_HEAD = {"freeze_contrastive_head": True}
# Rule, what the logs say, settings, step: to be expected, so nothing must be said.
SILENT = [
    ("no_reward_spread", UNSPREAD | WARMING, FROZEN_POLICY, LATE),
    ("no_reward_spread", UNSPREAD, FROZEN_POLICY, LATE),  # a log of before that metric, read again for the report
    ("policy_gradient_zero", {"grad_norm": 0.0} | WARMING, FROZEN_POLICY, LATE),
    ("policy_gradient_not_finite", {"grad_norm": math.nan} | WARMING, FROZEN_POLICY, LATE),
    ("all_rewards_on_the_floor", {"contrastive/floor_rewards": 1.0} | WARMING, FROZEN_POLICY, LATE),
    ("all_rewards_on_the_floor", {"contrastive/floor_rewards": 1.0} | WARMING, OTHER_WARMUP, LATE),
    ("all_rewards_on_the_floor", {"contrastive/floor_rewards": 1.0}, {"contrastive_reward_weight": 0.0}, LATE),
    ("head_gradient_zero", {"contrastive/head_grad_norm": 0.0}, FROZEN_HEAD, LATE),
    ("head_gradient_not_finite", {"contrastive/head_grad_norm": None}, FROZEN_HEAD, LATE),
    ("embeddings_collapsed", COLLAPSED, FROZEN_HEAD, LATE),
    ("embeddings_collapsed", COLLAPSED, {"contrastive_anchors": "incorrect"}, LATE),
    ("embeddings_collapsed", COLLAPSED, {"contrastive_similarity": "negative_cosine"}, LATE),
    ("embeddings_collapsed", COLLAPSED, {}, 49),
]
# The same rules there, when the mode is over or does not concern them.
NOT_SILENT = [
    ("no_reward_spread", UNSPREAD, FROZEN_POLICY, LATE + 1),
    ("no_reward_spread", UNSPREAD, OTHER_WARMUP, LATE),
    ("policy_gradient_zero", {"grad_norm": 0.0}, FROZEN_POLICY, LATE + 1),
    ("policy_gradient_zero", {"grad_norm": 0.0}, OTHER_WARMUP, LATE),
    ("all_rewards_on_the_floor", {"contrastive/floor_rewards": 1.0}, OTHER_WARMUP, LATE + 1),
    ("no_correct_rollouts", NO_CORRECT, FROZEN_POLICY, LATE),
    ("head_gradient_zero", {"contrastive/head_grad_norm": 0.0}, FROZEN_POLICY, LATE),
    ("embeddings_collapsed", COLLAPSED, {}, 50),
]
# A frozen head that is paid for agreement needs no wrong rollout; no reward of format, no checker of steps judges
# answers.
HARMLESS = {
    "agreement of a frozen head": (
        {**ALL_CORRECT, "contrastive/reward/mean": 0.0},
        {**FROZEN_HEAD, "contrastive_reward_type": "agreement"},
    ),
    "no paid rollout in this log": (NO_ANCHORS | {"contrastive/anchors": 0.1}, {}),
    "wrong answers cost 1, half of them": (NO_ANSWER | {"rewards/accuracy_reward/std": 1.0}, {}),
    "one of two kinds of answers is never right": (
        {"rewards/choice_reward/mean": 0.0, "rewards/choice_reward/std": 0.0},
        {},
    ),
    "a kind of answers that is not in the batch": (
        {"rewards/choice_reward/mean": None, "rewards/choice_reward/std": None},
        {},
    ),
    "a last step without spread by chance": ({"grad_norm": 0.0, "frac_reward_zero_std": 0.9}, {}),
    "the step checker finds nothing": (NO_ANSWER, {"contrastive_step_reward": "accuracy_reward"}),
    # Of these, the reward named here is the only one.
    "nothing is penalised": (
        {
            "rewards/accuracy_reward/mean": None,
            "rewards/incorrect_penalty/mean": 0.0,
            "rewards/incorrect_penalty/std": 0.0,
        },
        {},
    ),
    "no answer has the format": (
        {
            "rewards/accuracy_reward/mean": None,
            "rewards/answer_format/mean": 0.0,
            "rewards/answer_format/std": 0.0,
        },
        {},
    ),
}


def feed(callback, args, logs, step, is_first=True):
    state = SimpleNamespace(global_step=step, is_world_process_zero=is_first)
    callback.on_log(args, state, None, logs=logs)


def names(callback):
    return [finding.name for finding in callback.findings]


# ---------------------------------------------------------------------- rules


def test_every_rule_has_a_case_and_every_mode_is_tried():
    assert {name for _, _, found in SICK.values() for name in found} == set(BY_NAME)
    assert {name for name, *_ in SILENT} == {rule.name for rule in RULES if rule.silent}


@pytest.mark.parametrize("case", SICK)
def test_what_is_wrong_is_found_and_nothing_else(tmp_path, caplog, case):
    changes, settings, expected = SICK[case]
    callback, args = HealthCallback(patience=2), tiny_config(tmp_path, **settings)
    caplog.clear()  # a configuration may warn, too
    for step in (LATE, LATE + 1):
        feed(callback, args, {**HEALTHY, **changes}, step)
    assert names(callback) == expected
    for finding, record in zip(callback.findings, caplog.records, strict=True):
        assert (finding.first_step, finding.last_step) == (LATE, LATE + 1)
        assert finding.message in record.getMessage() and record.levelname == "WARNING"
        assert f"steps {LATE} to {LATE + 1}" in record.getMessage() and record.getMessage().endswith(finding.page)
        assert "\n" not in record.getMessage() and "{" not in finding.message


@pytest.mark.parametrize(
    "settings",
    [{}, FROZEN_POLICY, OTHER_WARMUP, FROZEN_HEAD, {"contrastive_reward_weight": 0.0}, {"num_iterations": 3}],
    ids=str,
)
def test_healthy_logs(tmp_path, settings):
    args = tiny_config(tmp_path, **settings)
    assert not [rule.name for rule in RULES for step in (1, LATE) if rule.verdict(HEALTHY, args, step)]


@pytest.mark.parametrize("case", HARMLESS)
def test_what_only_looks_wrong(tmp_path, case):
    changes, settings = HARMLESS[case]
    callback = HealthCallback(patience=1)
    feed(callback, tiny_config(tmp_path, **settings), {**HEALTHY, **changes}, LATE)
    assert not callback.findings


@pytest.mark.parametrize(
    "name, changes, settings, step", SILENT, ids=lambda value: value if type(value) is str else ""
)
def test_silent_where_it_is_to_be_expected(tmp_path, name, changes, settings, step):
    assert BY_NAME[name].verdict({**HEALTHY, **changes}, tiny_config(tmp_path, **settings), step) is None


@pytest.mark.parametrize(
    "name, changes, settings, step", NOT_SILENT, ids=lambda value: value if type(value) is str else ""
)
def test_not_silent_beyond_that(tmp_path, name, changes, settings, step):
    assert BY_NAME[name].verdict({**HEALTHY, **changes}, tiny_config(tmp_path, **settings), step) is True


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_log_without_the_metric_cannot_tell(tmp_path, rule):
    args = tiny_config(tmp_path)
    assert rule.verdict({"loss": 0.0}, args, LATE) is None
    for key in rule.needs:
        assert rule.verdict({**HEALTHY, key: None}, args, LATE) is None


def test_pages_and_anchors_exist():
    text = (ROOT / PAGE).read_text()
    section = text.split("\n## When nothing is learned\n")[1].split("\n## ")[0]
    # An anchor is the heading in small letters, spaces as dashes and other signs left out.
    anchors = [
        re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall("(?m)^### (.*)", section)
    ]
    assert [f"{PAGE}#{anchor}" for anchor in anchors] == [rule.page for rule in RULES]


# ---------------------------------------------------------------------- callback


def test_patience_counts_logs_that_can_tell(tmp_path):
    callback, args, sick = HealthCallback(), tiny_config(tmp_path), {**HEALTHY, **NO_CORRECT}
    for step in (10, 20, 30, 40):
        feed(callback, args, sick, step)
    feed(callback, args, HEALTHY, 50)
    assert not callback.findings
    for step in (60, 70, 80, 90):
        feed(callback, args, sick, step)
        feed(callback, args, {"loss": 0.0, "grad_norm": 0.1}, step + 5)  # between two generation batches
    assert not callback.findings
    feed(callback, args, sick, 100)
    assert [(finding.first_step, finding.last_step) for finding in callback.findings] == [(60, 100)]


def test_a_finding_is_said_once_until_it_has_been_away(tmp_path, caplog):
    callback, args = HealthCallback(patience=2), tiny_config(tmp_path)
    sick = {**HEALTHY, "contrastive/floor_rewards": 1.0}
    for step, logs in enumerate([sick, sick, sick, HEALTHY, sick, sick], start=1):
        feed(callback, args, logs, step)
    assert len(caplog.records) == 1 and callback.findings[0].last_step == 6
    for step, logs in enumerate([HEALTHY, HEALTHY, sick, sick], start=7):
        feed(callback, args, logs, step)
    assert len(caplog.records) == 2
    assert [(finding.first_step, finding.last_step) for finding in callback.findings] == [(1, 6), (9, 10)]


def test_no_anchors_for_another_reason_in_each_log(tmp_path):
    callback, args = HealthCallback(patience=3), tiny_config(tmp_path)
    for step, share in enumerate([0.0, 1.0, 0.0, 1.0]):
        feed(callback, args, {**HEALTHY, **NO_ANCHORS, "contrastive/correct_rollouts": share}, step)
    assert names(callback) == ["no_mixed_groups"]


def test_evaluations_and_the_summary_are_left_alone(tmp_path):
    callback, args, sick = HealthCallback(patience=1), tiny_config(tmp_path), {**HEALTHY, **UNSPREAD}
    feed(callback, args, {f"eval_{key}": value for key, value in sick.items()}, 1)
    feed(callback, args, {"epoch": 1.0, "eval_gsm8k_reward": 0.0, "grad_norm": 0.0, **UNSPREAD, "reward": 0.0}, 1)
    feed(callback, args, {"train_runtime": 1.0, "train_loss": 0.0, **sick}, 1)
    assert not callback.findings
    feed(callback, args, sick, 1)
    assert names(callback) == ["no_reward_spread"]


def test_one_process_speaks_and_all_know(tmp_path, caplog):
    callback = HealthCallback(patience=1)
    feed(callback, tiny_config(tmp_path), {**HEALTHY, **NO_CORRECT}, 1, is_first=False)
    assert names(callback) == ["no_correct_rollouts"] and not caplog.records


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="`patience` is 0"):
        HealthCallback(patience=0)
    with pytest.raises(TypeError, match="`args` is a `GRPOConfig`.*Add it to a `CLIPOTrainer`"):
        HealthCallback().on_train_begin(tiny_config(tmp_path, GRPOConfig), None, None)


# ---------------------------------------------------------------------- real runs


def always_zero(completions, **kwargs):
    return [0.0] * len(completions)


def always_one(completions, **kwargs):
    return [1.0] * len(completions)


def every_other(completions, **kwargs):
    return [float(row % 2) for row in range(len(completions))]


def make(tmp_path, reward_funcs=letters_reward, **settings):
    return CLIPOTrainer(
        tiny_model(),
        reward_funcs,
        tiny_config(tmp_path, **settings),
        train_dataset=tiny_dataset(),
        eval_dataset=tiny_dataset(3),
        processing_class=tiny_tokenizer(),
    )


def trained(tmp_path, reward_funcs=letters_reward, patience=5, **settings):
    trainer, callback = make(tmp_path, reward_funcs, **settings), HealthCallback(patience)
    trainer.add_callback(callback)
    trainer.train()
    return trainer, callback


@pytest.mark.parametrize("logging_steps", [1, 2])
@pytest.mark.parametrize(
    "reward, expected",
    [
        (always_zero, ["no_correct_rollouts", "no_reward_spread"]),
        (always_one, ["all_rollouts_correct", "no_reward_spread"]),
    ],
)
def test_a_sick_run(tmp_path, caplog, reward, expected, logging_steps):
    trainer, callback = trained(tmp_path, reward, max_steps=6 * logging_steps, logging_steps=logging_steps)
    assert names(callback) == expected
    assert {finding.first_step for finding in callback.findings} == {logging_steps}
    assert {finding.last_step for finding in callback.findings} == {trainer.args.max_steps}
    said = [record.getMessage() for record in caplog.records if record.name == "clipo_trl.health"]
    assert [message for message in said if expected[0] in message] == said[:1] and len(said) == 2
    trainer.train()  # once more, afresh
    assert names(callback) == expected


def test_a_sick_run_whose_batches_serve_several_steps(tmp_path):
    """Every other log has no metrics of rollouts."""
    _, callback = trained(
        tmp_path, always_zero, max_steps=10, steps_per_generation=2, per_device_train_batch_size=4, patience=4
    )
    assert names(callback) == ["no_correct_rollouts", "no_reward_spread"]


def test_a_healthy_run(tmp_path):
    trainer, callback = trained(tmp_path, max_steps=8, eval_strategy="steps", eval_steps=4)
    assert not callback.findings
    logs = [row for row in trainer.state.log_history if "grad_norm" in row]
    assert len(logs) == 8
    read = {key for rule in RULES for key in rule.needs} | {"reward_std", "contrastive/reward/mean"}
    read = {key for key in read if not key.startswith("dynamic_sampling/")}  # see the run below
    gone = {key for key in read for row in logs if row.get(key) is None}
    assert not gone, f"{gone} are no longer logged: mend the rules of clipo_trl.health that read them."


def test_dynamic_sampling_that_finds_no_group(tmp_path):
    """All is right: that is said, and not that no reward function gave a reward."""
    trainer, callback = trained(
        tmp_path, lambda completions, **kwargs: [1.0] * len(completions), max_steps=8, dynamic_sampling=True
    )
    assert names(callback) == ["no_group_has_a_spread"]
    assert "contrastive/correct_rollouts" in trainer.state.log_history[0]


def test_a_frozen_warmup_is_no_finding(tmp_path):
    _, callback = trained(tmp_path, every_other, max_steps=6, contrastive_warmup_steps=6, patience=1)
    assert not callback.findings


def test_a_frozen_warmup_in_mid_run_is_no_finding(tmp_path):
    """A run of plain GRPO that goes on with CLIPO: the policy waits then, not in the steps before."""
    config = tiny_config(tmp_path, GRPOConfig, max_steps=4, save_strategy="steps", save_steps=4)
    data = {"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer()}
    GRPOTrainer(tiny_model(), every_other, config, **data).train()
    trainer, callback = make(tmp_path, every_other, max_steps=10, contrastive_warmup_steps=4), HealthCallback(1)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=True)
    assert not callback.findings
    told = run_facts(trainer, None, [])
    assert (told["frozen_from"], told["frozen_steps"]) == (4, 8)
    panel = Panel("Reward", (Line("reward", "mean", "blue", ""),))
    shaded = draw_panel(panel, trainer.state.log_history, told["frozen_steps"], told["frozen_from"]).axes[0].patches
    assert [(patch.get_x(), patch.get_width()) for patch in shaded] == [(4, 4)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"steps_per_generation": 2},
        {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
        {"num_iterations": 2},
        {"gradient_accumulation_steps": 2, "num_iterations": 2},
    ],
    ids=str,
)
def test_the_end_of_the_warmup_is_where_the_policy_moves(tmp_path, settings):
    trainer = make(tmp_path, every_other, max_steps=10, contrastive_warmup_steps=3, **settings)
    trainer.train()
    logs = [row for row in trainer.state.log_history if "contrastive/in_warmup" in row]  # those with a new batch
    frozen = [_policy_is_frozen(row, trainer.args, row["step"]) for row in logs]
    assert frozen == [row["grad_norm"] == 0 for row in logs] and len(set(frozen)) == 2


def test_the_script_has_it_unless_told_otherwise(tmp_path, model_path):
    path = tmp_path / "rows.jsonl"
    pd.DataFrame({"question": ["1 + 1?", "2 + 2?"], "answer": ["#### 2", "#### 4"]}).to_json(
        path, orient="records", lines=True
    )
    argv = (
        f"--model_name_or_path {model_path} --dataset_name {path} --output_dir {tmp_path / 'out'} --use_cpu true --bf16 false "
        "--report_to none --disable_tqdm true --max_completion_length 4 --num_generations 4 --per_device_train_batch_size 4 "
        "--gradient_accumulation_steps 1 --max_steps 5 --logging_steps 1 --save_strategy no "
        "--report false --reward_funcs test_health.always_zero"
    ).split()
    for options, expected in (([], 1), (["--health_check", "false"], 0)):
        callbacks = train.main([*argv, *options]).callback_handler.callbacks
        found = [callback for callback in callbacks if isinstance(callback, HealthCallback)]
        assert len(found) == expected
        assert all("no_correct_rollouts" in names(callback) for callback in found)
