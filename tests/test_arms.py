"""The arms of the faithfulness experiment: what each one is paid, on a tiny policy."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from experiments import chain
from experiments.faithfulness import arms
from experiments.faithfulness.tasks import CHAINS
from experiments.starting_policy import Phase, make_model, make_tokenizer, warm_start


pytestmark = pytest.mark.slow  # whole trainings


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """A policy that is right now and then, and lucky now and then."""
    folder = tmp_path_factory.mktemp("policy")
    warm_start(folder, phases=(Phase("clean", 60, 3e-3), Phase("noisy", 20, 1e-3, lazy=0.5)), hidden_size=32)
    return folder


def problems():
    return chain.build_dataset(20, 0, num_operations=1)


def run(policy, arm, folder, steps=2, **settings):
    return arms.run(
        policy,
        arm,
        seed=0,
        steps=steps,
        eval_every=1,
        train_set=problems(),
        eval_sets={"test": chain.build_dataset(5, 0, split="test", num_operations=1)},
        output_dir=folder,
        **settings,
    )


def test_what_a_run_tells(policy, tmp_path):
    calls = []
    result = run(policy, "clipo", tmp_path, on_step=calls.append)
    warmup = arms.ARMS["clipo"].config["contrastive_warmup_steps"]
    assert [row["step"] for row in result["train"]] == list(range(1 - warmup, 3)) and calls[-1] == warmup + 2
    assert all(0 <= row["sound"] <= row["right"] <= row["rollouts"] == 64 for row in result["train"])
    assert any(0 < row["right"] < 64 for row in result["train"])
    assert {"contrastive/sound_auroc_reward", "contrastive/floor_rewards"} <= result["train"][-1].keys()
    assert [row["step"] for row in result["eval"]] == [1, 2] and 0 <= result["eval"][-1]["test"]["accuracy"] <= 1
    kept = np.load(tmp_path / "embeddings.npz")
    for when in ("before", "after"):
        np.testing.assert_allclose(np.linalg.norm(kept[when], axis=1), 1, rtol=1e-5)
        counts = result["train"][0 if when == "before" else -1]
        assert (kept[f"label_{when}"] == 2).sum() == counts["sound"]
        assert (kept[f"label_{when}"] >= 1).sum() == counts["right"]
        assert kept[f"group_{when}"].tolist() == sorted(list(range(8)) * 8)


@pytest.mark.parametrize("arm", [arm for arm in arms.ARMS if arms.suits(arm, CHAINS)])
def test_every_arm_runs(policy, tmp_path, arm, caplog):
    result = run(policy, arm, tmp_path, steps=1)
    assert not [record for record in caplog.records if record.levelname == "WARNING" and "correct" in record.message]
    assert result["arm"] == arm and result["train"][-1]["step"] == 1


def test_the_first_arm_is_plain_grpo(policy, tmp_path):
    """`GRPOTrainer` itself, on the same settings, makes the same rollouts step after step."""
    result = run(policy, "grpo", tmp_path, steps=4)
    settings = {
        name: value for name, value in arms.config_of("grpo", CHAINS).items() if not name.startswith("contrastive_")
    }
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(policy),
        [chain.answer_reward, chain.steps_reward, chain.spot_checked_steps_reward],
        GRPOConfig(
            str(tmp_path), max_steps=4, seed=0, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
            save_strategy="no", logging_steps=1, **settings,
        ),
        train_dataset=problems(),
        processing_class=AutoTokenizer.from_pretrained(policy),
    )  # fmt: skip
    trainer.train()
    rewards = [row["rewards/answer_reward/mean"] for row in trainer.state.log_history if "reward" in row]
    assert [row["right"] / 64 for row in result["train"]] == pytest.approx(rewards)
    assert len(set(rewards)) > 1


class Bare(arms.ControlledTrainer):
    """The controls alone, over a given column."""

    def __init__(self, control, column):
        self.reward_control, self.column = control, column
        self.head_learner = SimpleNamespace(draw_generator=torch.Generator().manual_seed(0))
        self.soundness = []

    def pay(self, rewards):
        """`rewards`: two columns, answers and steps."""
        names = (chain.answer_reward.__name__, chain.steps_reward.__name__)
        columns = dict(zip(names, rewards.T.reshape(2, -1, 4), strict=True))
        return self.reward_to_pay(SimpleNamespace(rewards=columns, reward_PG=self.column.view(-1, 4))).flatten()

    def _keep_embeddings(self, *args):
        pass


@pytest.fixture
def paid():
    rewards = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0], [1, 0], [0, 0], [1, 1], [1, 1]], dtype=torch.float32)
    column = torch.tensor([-0.5, -0.1, -0.3, 0.0, -0.2, 0.0, -0.4, -0.6])

    def of_control(control):
        trainer = Bare(control, column)
        return trainer.pay(rewards), trainer

    return column, of_control


def test_sorted_rewards_go_to_sound_rollouts(paid):
    column, of_control = paid
    got, trainer = of_control("sorted")
    assert sorted(got[[0, 2]].tolist()) == pytest.approx([-0.3, -0.1]) and got[1] == -0.5  # the lucky one gets least
    assert sorted(got[[6, 7]].tolist()) == pytest.approx([-0.4, -0.2]) and got[4] == pytest.approx(-0.6)
    assert got[3] == got[5] == 0
    assert [figures["contrastive/sound_auroc_reward"] for figures in trainer.soundness] == [1.0]


def test_permuted_rewards_are_the_same_ones_elsewhere(paid):
    column, of_control = paid
    seen = set()
    got, trainer = of_control("permuted")
    for _ in range(20):
        got = trainer.pay(torch.tensor([[1.0, 1.0]] * 3 + [[0.0, 0.0]] + [[1.0, 0.0]] * 4))
        for group in (slice(0, 4), slice(4, 8)):
            assert sorted(got[group].tolist()) == sorted(column[group].tolist())
        assert got[3] == 0  # a wrong rollout keeps its own
        seen.add(tuple(got.tolist()))
    assert len(seen) > 5


def test_without_a_control_the_column_is_paid_as_it_is(paid):
    column, of_control = paid
    assert torch.equal(of_control(None)[0], column)


def test_policies_differ_in_their_luck():
    assert make_model(make_tokenizer()).num_parameters() < 200_000
    assert len(set(arms.POLICIES.values())) == len(arms.POLICIES)
    assert list(arms.POLICIES) == ["rare_slips", "frequent_slips", "habit", "shortcut"]
    assert set(arms.CORE) < set(arms.ARMS) and next(iter(arms.ARMS)) == "grpo"
