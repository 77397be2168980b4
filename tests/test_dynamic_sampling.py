"""Dynamic sampling: groups without a spread in their verifiable reward make room for others."""

import json
from dataclasses import dataclass

import distributed_worker
import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from recording import RecordingTrainer, assert_right
from test_distributed import assert_same_run as assert_same_report
from test_distributed import launch
from test_modes import GENERATES, make, scripted, stand_in
from test_resume import EVERY_STEP, SPLITS
from test_resume import assert_same_run as assert_same_clipo_run
from test_trainer import rows, same, weights
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from clipo_trl import (
    CLIPOConfig,
    CLIPOTrainer,
    DAPOConfig,
    DAPOTrainer,
    DynamicSamplingConfigMixin,
    DynamicSamplingMixin,
)
from clipo_trl.dynamic_sampling import (
    STATE_NAME,
    Tally,
    has_spread,
    n_groups_to_draw,
    prompts_in_order,
    taken_groups,
    total_reward,
)


__all__ = ["make", "scripted", "stand_in"]  # fixtures

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning"),
]
NAN = float("nan")
TWO_STEPS = {"steps_per_generation": 2, "per_device_train_batch_size": 4}


# ---------------------------------------------------------------------- what is decided, of tensors and numbers alone


def test_a_group_has_a_spread_where_its_rollouts_differ():
    total = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0], [NAN, 1.0, 0.0], [NAN, 1.0, 1.0], [NAN, NAN, NAN]])
    assert has_spread(total).tolist() == [True, False, True, False, False]


def test_the_total_is_of_the_rewards_that_there_are():
    rewards = torch.tensor([[1.0, 0.5], [NAN, 0.5], [NAN, NAN], [1.0, NAN]])
    total = total_reward(rewards, torch.tensor([2.0, 1.0]), 2)
    torch.testing.assert_close(total, torch.tensor([[2.5, 0.5], [NAN, 2.0]]), equal_nan=True)


@pytest.mark.parametrize(
    "missing, kept, seen, full, processes, drawn",
    [
        (8, 0, 8, 8, 1, 8),  # nothing known: a full batch
        (4, 4, 8, 8, 1, 8),  # every other group is kept: twice what is missing
        (1, 7, 8, 8, 1, 2),
        (6, 2, 8, 8, 1, 8),  # never more than a full batch
        (1, 7, 8, 8, 8, 2),  # groups of 4 on 8 processes: by twos
        (1, 9, 10, 12, 3, 3),  # on 3 processes: by threes
    ],
)
def test_how_many_groups_are_drawn(missing, kept, seen, full, processes, drawn):
    assert n_groups_to_draw(missing, kept, seen, full, processes, group_size=4) == drawn


def test_the_order_of_prompts_has_each_as_often_and_is_the_same_in_parts():
    whole = prompts_in_order(7, 5, 0, 15)
    assert all(sorted(whole[start : start + 5]) == list(range(5)) for start in (0, 5, 10))
    assert whole[:5] != whole[5:10]
    assert prompts_in_order(7, 5, 0, 4) + prompts_in_order(7, 5, 4, 8) + prompts_in_order(7, 5, 12, 3) == whole
    assert prompts_in_order(8, 5, 0, 15) != whole
    assert prompts_in_order(7, 100, 0, 100) != torch.randperm(100, generator=torch.Generator().manual_seed(7)).tolist()


@pytest.mark.parametrize(
    "missing, fill, taken", [(1, False, [1]), (3, False, [1, 3]), (3, True, [0, 1, 3]), (2, True, [1, 3])]
)
def test_groups_are_taken_in_order_and_others_only_to_fill_up(missing, fill, taken):
    alive = torch.tensor([False, True, False, True])
    assert taken_groups(alive, missing, fill).nonzero().flatten().tolist() == taken


def test_the_tally():
    tally = Tally()
    tally.add(torch.tensor([[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [NAN, NAN]]), n_missing=4, threshold=0.0)
    tally.add(torch.tensor([[0.0, 1.0]] * 4), n_missing=3, threshold=0.0)
    assert tally == Tally(attempts=2, seen=8, kept=4, surplus=1, all_right=1, all_wrong=1, no_reward=1)
    figures = tally.metrics(n_full=4)
    assert figures["generated_per_trained"] == 2.0 and figures["unfilled"] == 0.0 and figures["surplus"] == 1 / 8


# ---------------------------------------------------------------------- runs


def alternating(completions, **kwargs):
    """Every group has a spread."""
    return [float(i % 2) for i in range(len(completions))]


def never(completions, **kwargs):
    return [0.0] * len(completions)


def by_prompt(completions, solution, log_extra=None, log_metric=None, **kwargs):
    """Prompts 0, 3, 6 are always right, 1 and 4 always wrong, 2 and 5 every other time."""
    log_extra("number", solution)
    log_metric("rollouts", len(solution))
    return [(1.0, 0.0, float(i % 2))[int(number) % 3] for i, number in enumerate(solution)]


SOME_DEAD = tiny_dataset(7)  # seven prompts of 1 to 7 characters
LIVE_LENGTHS = {3, 6}
AROUND = len("<u>" + "<a>") + 1  # tokens of a prompt besides its question: these, and the end of the turn


def train(
    tmp_path, trainer_class=DAPOTrainer, reward=letters_reward, resume=None, dataset=None, more=None, **settings
):
    config_class = settings.pop("config_class", None)
    if config_class is None:
        kinds = ((CLIPOTrainer, CLIPOConfig), (DynamicSamplingMixin, DAPOConfig), (GRPOTrainer, GRPOConfig))
        config_class = next(config for kind, config in kinds if issubclass(trainer_class, kind))
    if config_class is CLIPOConfig:
        settings = {"dynamic_sampling": True, **settings}
    if config_class is GRPOConfig:
        settings = {"epsilon_high": 0.28, **settings}
    trainer = trainer_class(
        tiny_model(),
        reward,
        tiny_config(tmp_path, config_class, **settings),
        train_dataset=tiny_dataset() if dataset is None else dataset,
        processing_class=tiny_tokenizer(),
        **(more or {}),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def adapter():
    """With it there is a reference (`beta`) without a model on disk."""
    return {"peft_config": LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"])}


def figures(trainer, name):
    """Of each generation batch."""
    return [row[f"dynamic_sampling/{name}"] for row in rows(trainer) if f"dynamic_sampling/{name}" in row]


def apart_from_sampling(trainer):
    """What was logged, but for times and for what dynamic sampling says of itself."""
    return [
        {name: value for name, value in row.items() if "time" not in name and not name.startswith("dynamic_sampling")}
        for row in rows(trainer)
    ]


class Watched(DAPOTrainer):
    """Keeps what it is trained on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.trained = []

    def _compute_loss(self, model, inputs):
        if not self._evaluating:
            self.trained.append(inputs)
        return super()._compute_loss(model, inputs)

    def characters(self):
        """Characters of the question, and number of tokens that are trained on, of each rollout."""
        lengths = [n - AROUND for batch in self.trained for n in batch["prompt_mask"].sum(1).tolist()]
        return lengths, [n for batch in self.trained for n in batch["completion_mask"].sum(1).tolist()]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {**TWO_STEPS, "beta": 0.1, "scale_rewards": "batch"},
        {"mask_truncated_completions": True, "max_completion_length": 6},
        {"use_vllm": True},
        {"log_completions": True, "num_iterations": 2},
    ],
    ids=str,
)
def test_where_all_groups_have_a_spread_it_is_grpo_bit_for_bit(settings, tmp_path, stand_in):
    more = adapter() if "beta" in settings else {}
    grpo = train(tmp_path / "grpo", GRPOTrainer, alternating, more=more, **settings)
    dapo = train(tmp_path / "dapo", DAPOTrainer, alternating, more=more, **settings)
    assert same(weights(grpo.model), weights(dapo.model))
    assert more or not same(weights(tiny_model()), weights(dapo.model))
    assert apart_from_sampling(grpo) == apart_from_sampling(dapo)
    assert set(figures(dapo, "attempts")) == set(figures(dapo, "generated_per_trained")) == {1.0}
    if "log_completions" in settings:
        tables = [
            pd.read_parquet(tmp_path / name / "completions" / "completions_00001.parquet") for name in ("grpo", "dapo")
        ]
        assert tables[0].astype(str).equals(tables[1].astype(str))


def test_clipo_too(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(CLIPOTrainer, "_choose_capture_mode", lambda self, reader: "forward")
        without = train(tmp_path, CLIPOTrainer, alternating, dynamic_sampling=False)
    dynamic = train(tmp_path, CLIPOTrainer, alternating)
    assert dynamic.states.mode == "forward"
    assert same(weights(without.model), weights(dynamic.model))
    assert same(weights(without.contrastive_head), weights(dynamic.contrastive_head))


def test_rewards_that_share_a_name_all_decide(tmp_path):
    rewards = [lambda completions, **kwargs: [1.0, 0.0] * (len(completions) // 2)] * 2
    trainer = train(tmp_path, reward=rewards, max_steps=1)
    assert trainer._find_spread_columns() == [0, 1]


def test_off_it_is_not_there(tmp_path):
    grpo, dapo = train(tmp_path, GRPOTrainer), train(tmp_path, dynamic_sampling=False)
    assert same(weights(grpo.model), weights(dapo.model))
    assert not any(name.startswith("dynamic_sampling") for row in rows(dapo) for name in row)


@pytest.mark.parametrize("settings", [{}, TWO_STEPS], ids=str)
def test_dropped_groups_are_never_trained(settings, tmp_path):
    trainer = train(tmp_path, Watched, by_prompt, dataset=SOME_DEAD, max_steps=6, log_completions=True, **settings)
    lengths, n_tokens = trainer.characters()
    assert set(lengths) == LIVE_LENGTHS and min(n_tokens) > 0
    assert len(lengths) == 6 * settings.get("per_device_train_batch_size", 8)
    logged = [row for row in rows(trainer) if "reward" in row]
    assert all(row["rewards/by_prompt/mean"] == 0.5 and row["frac_reward_zero_std"] == 0 for row in logged)
    # num_tokens: of what is trained on.
    trained_on = sum(batch["prompt_mask"].sum() + batch["completion_mask"].sum() for batch in trainer.trained).item()
    assert logged[-1]["num_tokens"] == trained_on
    # The table: columns of the reward function's own stay with their rollouts.
    tables = [pd.read_parquet(path) for path in sorted((tmp_path / "completions").glob("*.parquet"))]
    for table in tables:
        assert set(table.number) <= {"2", "5"}
        assert [len(prompt[0]["content"]) - 1 for prompt in table.prompt] == table.number.astype(int).tolist()
    consumed = [row["dynamic_sampling/prompts_consumed"] for row in logged]
    per_batch = [row["dynamic_sampling/generated_per_trained"] * 2 for row in logged]
    assert consumed == torch.tensor(per_batch).cumsum(0).tolist()
    assert max(row["dynamic_sampling/attempts"] for row in logged) > 1
    assert all(
        row["dynamic_sampling/dropped_all_right"] + row["dynamic_sampling/dropped_all_wrong"] + row["dynamic_sampling/surplus"]
        == pytest.approx(1 - 1 / row["dynamic_sampling/generated_per_trained"])
        for row in logged
    )  # fmt: skip


def test_the_head_sees_each_kept_group_once_and_nothing_else(tmp_path):
    class Recording(RecordingTrainer):
        def _contrastive_column(self, rewards_per_func, pooled_BH):
            self.head_saw = [*getattr(self, "head_saw", []), rewards_per_func[:, 0].view(-1, 4).sum(1).tolist()]
            return super()._contrastive_column(rewards_per_func, pooled_BH)

    trainer = train(tmp_path, Recording, by_prompt, dataset=SOME_DEAD, max_steps=5)
    assert trainer.head_learner.n_batches == 5 and trainer.head_saw == [[2.0, 2.0]] * 5
    assert max(figures(trainer, "attempts")) > 1
    assert_right(trainer)
    for tokens, _, _ in trainer.records:
        assert {len(ids) - AROUND for ids in tokens.prompt_ids} <= LIVE_LENGTHS
    assert [row["contrastive/left_out_rollouts"] for row in rows(trainer)] == [0.0] * 5


@pytest.mark.parametrize(
    "loss_type", ["dapo", *(pytest.param(name, marks=pytest.mark.slow) for name in ("grpo", "bnpo", "cispo"))]
)
@pytest.mark.parametrize("settings", [{"beta": 0.1}, {**TWO_STEPS, "beta": 0.1}], ids=str)
def test_when_the_attempts_are_used_up_what_there_is_is_trained(settings, loss_type, tmp_path, caplog):
    trainer = train(
        tmp_path,
        Watched,
        by_prompt,
        dataset=SOME_DEAD,
        max_steps=6,
        dynamic_sampling_max_attempts=1,
        loss_type=loss_type,
        log_completions=True,
        more=adapter(),
        **settings,
    )
    lengths, n_tokens = trainer.characters()
    live = [length in LIVE_LENGTHS for length in lengths]
    assert any(live) and not all(live)
    assert [n > 0 for n in n_tokens] == live
    for batch in trainer.trained:
        assert batch["advantages"].isfinite().all()
        dead = batch["completion_mask"].sum(1) == 0
        assert (batch["advantages"][dead] == 0).all()
    if not settings.get("steps_per_generation"):
        assert all(batch["num_items_in_batch"] == batch["completion_mask"].sum() for batch in trainer.trained)
    logged = [row for row in rows(trainer) if "reward" in row]
    assert all(row["reward"] in (0.5, None) for row in logged)
    assert {row["dynamic_sampling/unfilled"] for row in logged} <= {0.0, 0.5, 1.0}
    assert all(torch.isfinite(parameter).all() for parameter in trainer.model.parameters())
    assert "`dynamic_sampling_max_attempts` = 1 attempts" in caplog.text


@pytest.mark.parametrize("trainer_class", [Watched, CLIPOTrainer])
def test_where_all_groups_are_dead_nothing_is_learned(trainer_class, tmp_path):
    trainer = train(tmp_path, trainer_class, never, dynamic_sampling_max_attempts=3, logging_nan_inf_filter=False)
    assert trainer.state.global_step == 3
    assert same(weights(trainer.model), weights(tiny_model()))
    assert figures(trainer, "attempts") == [3.0] * 3 and figures(trainer, "unfilled") == [1.0] * 3
    assert figures(trainer, "generated_per_trained") == [None] * 3
    assert figures(trainer, "prompts_consumed") == [6.0, 12.0, 18.0]
    assert figures(trainer, "dropped_all_wrong") == [1.0] * 3
    assert [(row["loss"], row["grad_norm"], row["reward"]) for row in rows(trainer)] == [(0.0, 0.0, None)] * 3
    if trainer_class is CLIPOTrainer:
        assert (
            not trainer.head_learner.optimizer.state
            and [row["contrastive/left_out_rollouts"] for row in rows(trainer)] == [1.0] * 3
        )


@pytest.mark.parametrize("generates", GENERATES)
@pytest.mark.slow
def test_every_way_of_generating(generates, make):
    trainer = make(generates, "fp32", RecordingTrainer, dynamic_sampling=True, max_steps=3, **TWO_STEPS)
    trainer.args.dynamic_sampling_max_attempts = 4
    saw = []
    column = trainer._contrastive_column
    trainer._contrastive_column = lambda rewards, pooled: (
        saw.append(rewards[:, trainer._spread_columns].sum(1).view(-1, 4)) or column(rewards, pooled)
    )
    trainer.train()
    assert saw and all((group.amax(1) > group.amin(1)).logical_or(group.isnan().all(1)).all() for group in saw)
    assert any(not group.isnan().any() for group in saw)
    assert_right(trainer)
    assert (trainer.rollout_func is not None) == (generates == "rollout_func")
    assert bool(trainer.tools) == (generates in ("tools", "environment"))
    assert trainer.evaluate()["eval_reward"] is not None


def test_continuous_batching_and_vllm_give_what_was_generated(tmp_path, stand_in):
    """The log-probabilities of the engine stay with their rollouts."""
    trainer = train(tmp_path, Watched, by_prompt, dataset=SOME_DEAD, use_vllm=True, max_steps=4)
    assert max(figures(trainer, "attempts")) > 1
    assert trainer.vllm_generation.syncs == 4  # once a step, however many attempts
    for row in rows(trainer):
        assert row["sampling/sampling_logp_difference/mean"] == pytest.approx(0.01, abs=1e-4)


def test_with_an_adapter(tmp_path):
    trainer = train(tmp_path, Watched, by_prompt, dataset=SOME_DEAD, more=adapter(), beta=0.1)
    assert set(trainer.characters()[0]) == LIVE_LENGTHS
    assert max(parameter.abs().max() for name, parameter in trainer.model.named_parameters() if "lora_B" in name) > 0


def test_over_another_trainer(tmp_path):
    @dataclass
    class Config(DynamicSamplingConfigMixin, GMPOConfig):
        pass

    class Trainer(DynamicSamplingMixin, GMPOTrainer):
        pass

    dynamic = train(tmp_path, Trainer, alternating, config_class=Config, dynamic_sampling=True)
    plain = train(tmp_path, GMPOTrainer, alternating, config_class=GMPOConfig)
    assert same(weights(dynamic.model), weights(plain.model)) and figures(dynamic, "attempts") == [1.0] * 3


def test_rows_are_as_the_sampler_gives_them(tmp_path):
    class Seen(DAPOTrainer):
        def _attempt(self, inputs):
            self.seen = [*getattr(self, "seen", []), [dict(row) for row in inputs]]
            return super()._attempt(inputs)

    for unused in (True, False):
        trainer = train(
            tmp_path, Seen, never, remove_unused_columns=unused, max_steps=1, dynamic_sampling_max_attempts=2
        )
        first, second = trainer.seen
        assert [set(row) for row in first] == [set(row) for row in second]
        assert [row == before for before, row in zip(second, second[1:], strict=False)] == [True] * 3 + [False] + [
            True
        ] * 3


# ---------------------------------------------------------------------- which rewards decide


def short_reward(completions, **kwargs):
    return [float(i % 2) for i in range(len(completions))]


def test_a_spread_in_another_reward_keeps_no_group(tmp_path, caplog):
    settings = {"max_steps": 1, "dynamic_sampling_max_attempts": 2}
    named = train(tmp_path, reward=[never, short_reward], dynamic_sampling_rewards=["never"], **settings)
    assert figures(named, "unfilled") == [1.0] and "ALL rewards" not in caplog.text
    by_all = train(tmp_path, reward=[never, short_reward], **settings)
    assert figures(by_all, "unfilled") == [0.0] and "weighted sum of ALL rewards, never + short_reward" in caplog.text
    success = {"contrastive_success_rewards": ["never"]}
    clipo = train(tmp_path, CLIPOTrainer, [never, short_reward], **success, **settings)
    assert figures(clipo, "unfilled") == [1.0]
    both = {**success, "dynamic_sampling_rewards": ["short_reward"]}
    clipo = train(tmp_path, CLIPOTrainer, [never, short_reward], **both, **settings)
    assert figures(clipo, "unfilled") == [0.0]


@pytest.mark.parametrize("trainer_class", [DAPOTrainer, CLIPOTrainer])
@pytest.mark.parametrize("names", [["lettres_reward"], [], "letters_reward", ["contrastive"]])
def test_rewards_that_are_not_there_are_named(names, trainer_class, tmp_path):
    with pytest.raises(ValueError, match=r"`dynamic_sampling_rewards` is .*Choose from \['letters_reward'\]"):
        train(tmp_path, trainer_class, dynamic_sampling_rewards=names)


def test_what_it_cannot_work_with_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`train_dataset` is a `IterableDataset`, without a length"):
        train(tmp_path, dataset=tiny_dataset().to_iterable_dataset())
    with pytest.raises(
        TypeError, match="`args` is a `GRPOConfig`, which has no field `dynamic_sampling`. Pass a `DAPOConfig`"
    ):
        train(tmp_path, DAPOTrainer, config_class=GRPOConfig)
    trainer = DAPOTrainer(
        tiny_model(), never, tiny_config(tmp_path, DAPOConfig), tiny_dataset(), processing_class=tiny_tokenizer()
    )
    trainer.train_dataset = Dataset.from_list([{"prompt": "a", "image": "b"}])
    with pytest.raises(ValueError, match="`train_dataset` has the column 'image'"):
        trainer.train()


def test_a_column_of_another_length_is_named(tmp_path):
    def reward(completions, log_extra, **kwargs):
        log_extra("first", [1])
        return letters_reward(completions)

    with pytest.raises(ValueError, match="logs 1 values in the column 'first' for 8 rollouts"):
        train(tmp_path, reward=reward)


# ---------------------------------------------------------------------- evaluation


def test_evaluation_is_untouched(tmp_path):
    logs = {}
    for name, settings in (("dynamic", {}), ("plain", {"dynamic_sampling": False})):
        trainer = train(
            tmp_path,
            reward=by_prompt,
            dataset=SOME_DEAD,
            more={"eval_dataset": tiny_dataset(6)},
            eval_strategy="steps",
            eval_steps=1,
            eval_on_start=True,
            **settings,
        )
        logs[name] = [row for row in trainer.state.log_history if "eval_loss" in row]
        drawn = trainer._prompts_drawn, trainer._prompts_consumed
        trainer.evaluate()
        assert (trainer._prompts_drawn, trainer._prompts_consumed) == drawn
    assert not any("dynamic_sampling" in name for row in logs["dynamic"] for name in row)
    timed = ("time", "per_second")
    first, plain = (
        {name: value for name, value in log[0].items() if not any(word in name for word in timed)}
        for log in logs.values()
    )
    assert first == plain and len(logs["dynamic"]) == 4
    assert {row["eval_rewards/by_prompt/mean"] for row in logs["dynamic"]} == {0.5}  # as many all right as all wrong


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize(
    "split", ["two steps a generation batch", pytest.param("two iterations", marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_any_step_will_do(split, tmp_path):
    settings = {"reward": by_prompt, "dataset": SOME_DEAD, "max_steps": 7, "dynamic_sampling_max_attempts": 3}
    settings |= {**EVERY_STEP, **SPLITS[split]}
    whole = train(tmp_path, **settings)
    assert max(row.get("dynamic_sampling/attempts", 0) for row in rows(whole)) > 1
    for step in (2, 3, 5):
        resumed = train(tmp_path / "again", resume=str(tmp_path / f"checkpoint-{step}"), **settings)
        assert same(weights(resumed.model), weights(whole.model))
        assert (resumed._prompts_drawn, resumed._prompts_consumed) == (whole._prompts_drawn, whole._prompts_consumed)
        for here, there in zip(apart_from_time(resumed), apart_from_time(whole), strict=True):
            assert here == {**there, "loss": here["loss"]}


def apart_from_time(trainer):
    return [{name: value for name, value in row.items() if "time" not in name} for row in rows(trainer)]


@pytest.mark.slow
def test_clipo_resumes_at_any_step(tmp_path):
    settings = {"max_steps": 6, "trainer_class": CLIPOTrainer, **EVERY_STEP, **SPLITS["warm-up"]}
    settings |= {"reward": by_prompt, "dataset": SOME_DEAD}
    whole = train(tmp_path, **settings)
    for step in (1, 2, 4):
        resumed = train(tmp_path / "again", resume=str(tmp_path / f"checkpoint-{step}"), **settings)
        assert_same_clipo_run(resumed, whole)


def test_what_the_checkpoint_says_matters(tmp_path):
    settings = {"reward": by_prompt, "dataset": SOME_DEAD, "max_steps": 6, **EVERY_STEP}
    whole = train(tmp_path, **settings)
    path = tmp_path / "checkpoint-3" / STATE_NAME
    state = json.loads(path.read_text())
    assert 0 < state["prompts_drawn"] < state["prompts_consumed"] == state["prompts_drawn"] + 6
    path.unlink()  # as of a run without dynamic sampling
    resumed = train(tmp_path / "again", resume=str(tmp_path / "checkpoint-3"), **settings)
    assert resumed.state.global_step == 6 and not same(weights(resumed.model), weights(whole.model))


def test_a_fault_in_an_attempt_leaves_no_trace(tmp_path):
    class Faulty(DAPOTrainer):
        def _gather_taken(self, made, taken):
            if self.state.global_step == 1:
                raise KeyboardInterrupt
            return super()._gather_taken(made, taken)

    trainer = DAPOTrainer(
        tiny_model(), never, tiny_config(tmp_path, DAPOConfig), tiny_dataset(), processing_class=tiny_tokenizer()
    )
    trainer.__class__ = Faulty
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    first = [step for step in trainer.state.log_history if "num_tokens" in step]
    assert trainer._prompts_drawn == 2 * 9 and trainer._prompts_consumed == 2 * 10  # of the batch that was finished
    assert trainer.state.num_input_tokens_seen == first[-1]["num_tokens"]
    assert not trainer._in_attempt and trainer._kept is None and not trainer._pending_extra_logs


# ---------------------------------------------------------------------- several processes


DYNAMIC = ["dynamic", "dynamic_lora", "dynamic_one_side", "dynamic_none", "dynamic_long"]
RESUMED = ["dynamic_long@dynamic_long/checkpoint-3"]


@pytest.fixture(scope="module", params=["ddp", pytest.param("zero3", marks=pytest.mark.slow)])
def two(request, tmp_path_factory):
    """Reports of two processes by case, and of one."""
    if request.param == "zero3":
        pytest.importorskip("deepspeed")
    folder = tmp_path_factory.mktemp(request.param)
    cases = [*DYNAMIC, *RESUMED] if request.param == "ddp" else ["dynamic", "dynamic_one_side", "dynamic_none"]
    done = launch(request.param, folder, *cases)
    assert done.returncode == 0, done.stdout[-5000:]
    files = {case: [folder / f"{case.replace('/', '_')}.{process}.pt" for process in (0, 1)] for case in cases}
    reports = {case: [torch.load(file, map_location="cpu") for file in both] for case, both in files.items()}
    alone = tmp_path_factory.mktemp("alone")
    return reports, {case: distributed_worker.run("alone", alone, case) for case in cases if "@" not in case}


@pytest.mark.slow
def test_two_processes_are_one(two):
    reports, alone = two
    for case, one in alone.items():
        first, second = reports[case]
        assert first["world_size"] == 2 and len(first["seen"]) == len(one["seen"])
        for here, there, reference in zip(first["seen"], second["seen"], one["seen"], strict=True):
            for name in ("rewards", "column", "head"):
                assert torch.equal(here[name].nan_to_num(9), there[name].nan_to_num(9))
            if case != "dynamic_long":  # whose rollouts are drawn anew
                assert torch.equal(here["rewards"].nan_to_num(9), reference["rewards"].nan_to_num(9))
                torch.testing.assert_close(here["column"], reference["column"], atol=2e-5, rtol=0, equal_nan=True)
                torch.testing.assert_close(here["head"], reference["head"], atol=2e-6, rtol=0)
        if case != "dynamic_long":
            for row, reference in zip(first["log"], one["log"], strict=True):
                names = {name for name in row if name.startswith("dynamic_sampling/")} | {"reward", "num_tokens"}
                assert {name: row[name] for name in names} == pytest.approx({name: reference[name] for name in names})
                assert row["loss"] == pytest.approx(reference["loss"], abs=2e-5)


def test_more_than_one_attempt_was_needed(two):
    reports, _ = two
    attempts = {case: [row["dynamic_sampling/attempts"] for row in both[0]["log"]] for case, both in reports.items()}
    assert max(attempts["dynamic"]) > 1 and max(attempts["dynamic_one_side"]) > 1
    assert attempts["dynamic_none"] == [3.0] * 4


def test_several_processes_resume_bit_for_bit(two):
    reports, _ = two
    for case in set(RESUMED) & set(reports):
        for here, there in zip(reports[case], reports["dynamic_long"], strict=True):
            assert_same_report(here, there)
