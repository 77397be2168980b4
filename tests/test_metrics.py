"""What is logged, against loops over pairs."""

import torch

from clipo_trl.metrics import in_groups, pair_cosines, rollout_metrics


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


def test_rows_of_one_process_in_groups():
    rows = torch.arange(1.0, 6.0).unsqueeze(1)  # five rows, the first at place 6 of groups of 4
    groups, present = in_groups(rows, 4, 6)
    assert groups.squeeze(-1).tolist() == [[0, 0, 1, 2], [3, 4, 5, 0]]
    assert present.tolist() == [[False, False, True, True], [True, True, True, False]]
    whole, present = in_groups(torch.arange(8.0).unsqueeze(1), 4, 8)
    assert whole.shape == (2, 4, 1) and present.all()


def test_shares_and_statistics():
    correct = torch.tensor([[True, True, False], [True, True, True]])
    anchor = torch.tensor([[True, True, False], [False, False, False]])
    loss = torch.tensor([[1.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    reward = torch.tensor([[-0.2, -0.5, 0.0], [0.0, 0.0, 0.0]])
    valid = torch.tensor([[True, True, True], [True, True, False]])
    metrics = rollout_metrics(loss, anchor, reward, correct, valid, floor=-0.5)
    expected = {
        "head_loss": 2.0, "correct_rollouts": 5 / 6, "anchors": 2 / 6, "trivial_groups": 0.5, "left_out_rollouts": 1 / 6,
        "floor_rewards": 0.5, "loss/mean": 2.0, "loss/min": 1.0, "loss/max": 3.0,
        "reward/mean": -0.35, "reward/min": -0.5, "reward/max": -0.2,
    }  # fmt: skip
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert abs(metrics[name] - value) < 1e-6, name
