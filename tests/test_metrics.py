"""What is logged, against loops over pairs; and that the page on metrics has all of it."""

import re
from pathlib import Path

import torch
from sklearn.metrics import roc_auc_score
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

from clipo_trl import CLIPOTrainer
from clipo_trl.metrics import pair_cosines, rollout_metrics, sound_against_lucky


def test_pair_cosines_against_a_loop():
    rng = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 5, 4, generator=rng)
    correct = torch.rand(3, 5, generator=rng) < 0.6
    valid = torch.rand(3, 5, generator=rng) < 0.8
    expected = torch.zeros(2, 2)
    for p in range(3):
        for i in range(5):
            for j in range(5):
                if i != j and valid[p, i] and valid[p, j] and correct[p, i]:
                    cosine = torch.cosine_similarity(vectors[p, i], vectors[p, j], dim=0)
                    expected[0 if correct[p, j] else 1] += torch.stack([cosine, torch.tensor(1.0)])
    vectors[~valid] = torch.nan
    torch.testing.assert_close(pair_cosines(vectors, correct, valid), expected)


def test_shares_and_statistics():
    correct = torch.tensor([[True, True, False], [True, True, True]])
    anchor = torch.tensor([[True, True, False], [False, False, False]])
    loss = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    reward = torch.tensor([[-0.2, -0.5, 0.0], [0.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    metrics = rollout_metrics(loss, anchor, reward, anchor & correct, reward <= -0.5, correct, valid)
    expected = {
        "head_loss": 2.0, "correct_rollouts": 4 / 5, "anchors": 2 / 5, "trivial_groups": 0.5, "left_out_rollouts": 1 / 6,
        "floor_rewards": 0.5, "loss/mean": 2.0, "loss/min": 1.0, "loss/max": 3.0,
        "reward/mean": -0.35, "reward/min": -0.5, "reward/max": -0.2,
    }  # fmt: skip
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(metrics[name] - value) < 1e-6, name


def test_sound_against_lucky_is_the_auroc_of_each_group():
    rng = torch.Generator().manual_seed(0)
    score = torch.randint(0, 4, (6, 8), generator=rng).float()  # with ties
    sound = torch.rand(6, 8, generator=rng) < 0.5
    lucky = ~sound & (torch.rand(6, 8, generator=rng) < 0.7)
    sound[0], lucky[1] = False, False  # groups without a pair
    ranked = difference = number = 0.0
    for p in range(6):
        n_pairs = int(sound[p].sum() * lucky[p].sum())
        if n_pairs:
            compared = sound[p] | lucky[p]
            ranked += n_pairs * roc_auc_score(sound[p][compared], score[p][compared])
            difference += n_pairs * (score[p][sound[p]].mean() - score[p][lucky[p]].mean()).item()
            number += n_pairs
    torch.testing.assert_close(sound_against_lucky(score, sound, lucky), torch.tensor([ranked, difference, number]))


def steps_reward(completions, **kwargs) -> list[float]:
    """Sound: an even number of characters, the first of them a small one."""
    return [float(completion[0]["content"][:1].islower()) for completion in completions]


def documented() -> dict[str, str]:
    """What docs/metrics.md says of each metric (a pattern of its name): the last cell of its row."""
    found = {}
    text = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
    for names, healthy in re.findall(r"^\| (`.*?`) \|.*\| (.*?) \|$", text, re.MULTILINE):
        first, *others = re.findall(r"`([^`]+)`", names)
        stem = re.match(r"(?:sound_)?[a-z]+", first)[0]
        for name in others:
            name = f"{stem}{name}" if name[0] == "/" else rf"{stem}\w*{name.lstrip('.')}"
            found[name] = healthy
        found[first] = healthy
    return found


def test_every_metric_has_a_row_that_says_what_is_healthy(tmp_path):
    args = tiny_config(
        tmp_path,
        max_steps=2,
        logging_steps=1,
        reward_weights=[1.0, 0.0],
        contrastive_success_rewards=["letters_reward"],
        contrastive_step_reward="steps_reward",
        contrastive_calibration=True,
        contrastive_reward_schedule="linear",
    )
    trainer = CLIPOTrainer(
        tiny_model(), [letters_reward, steps_reward], args, tiny_dataset(), processing_class=tiny_tokenizer()
    )
    trainer.train()
    logged = {name.partition("/")[2] for entry in trainer.state.log_history for name in entry if name[:4] == "cont"}
    rows = documented()
    assert len(logged) > 20
    assert {name for name in logged if not any(re.fullmatch(row, name) for row in rows)} == set()
    assert all(healthy.strip() for healthy in rows.values())
