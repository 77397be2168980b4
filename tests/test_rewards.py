"""Weight, floor, offset and zeros of the contrastive reward."""

import pytest
import torch

from clipo_trl import contrastive_reward
from clipo_trl.config import SCHEDULES
from clipo_trl.rewards import scheduled_weight


LOSS = torch.tensor([[0.0, 1.0, 2.0, 10.0]])


def test_by_hand():
    correct = torch.tensor([[True, True, True, True]])
    torch.testing.assert_close(contrastive_reward(LOSS, correct), torch.tensor([[0.0, -0.2, -0.4, -0.5]]))


def test_incorrect_rollouts_get_the_offset():
    correct = torch.tensor([[False, True, False, False]])
    reward = contrastive_reward(LOSS, correct, weight=0.1, offset=0.25)
    torch.testing.assert_close(reward, torch.tensor([[0.25, 0.15, 0.25, 0.25]]))


def test_the_floor_does_not_move_with_the_weight():
    correct = torch.ones(1, 4, dtype=torch.bool)
    for weight in (1.0, 100.0):
        assert contrastive_reward(LOSS, correct, weight=weight, floor=-0.3).min() == pytest.approx(-0.3)


def test_weight_zero_gives_exact_zeros():
    reward = contrastive_reward(LOSS, torch.ones(1, 4, dtype=torch.bool), weight=0.0)
    assert torch.equal(reward, torch.zeros(1, 4))


def test_no_gradient():
    loss = LOSS.clone().requires_grad_()
    assert not contrastive_reward(loss, torch.ones(1, 4, dtype=torch.bool)).requires_grad


@pytest.mark.parametrize("settings", [{"weight": -0.1}, {"floor": 0.1}, {"weight": float("nan")}], ids=str)
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        contrastive_reward(LOSS, torch.ones(1, 4, dtype=torch.bool), **settings)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="loss_PG"):
        contrastive_reward(LOSS, torch.ones(4, dtype=torch.bool))


def test_schedules_of_the_weight():
    """From lambda to 0, but for the constant one: the same at the ends, and never rising between."""
    places = [i / 20 for i in range(21)]
    constant, linear, cosine = ([scheduled_weight(0.2, name, t) for t in places] for name in SCHEDULES)
    assert constant == [0.2] * 21
    assert linear == pytest.approx([0.2 * (1 - t) for t in places])
    for weights in (linear, cosine):
        assert weights[0] == 0.2 and weights[10] == pytest.approx(0.1) and weights[-1] == pytest.approx(0.0, abs=1e-12)
        assert weights == sorted(weights, reverse=True)
        assert [a + b for a, b in zip(weights, reversed(weights), strict=True)] == pytest.approx([0.2] * 21)
    assert cosine[5] > linear[5] and cosine[15] < linear[15]
    assert scheduled_weight(0.2, "linear", 1.5) == 0.0 and scheduled_weight(0.2, "linear", -1.0) == 0.2
    with pytest.raises(ValueError, match="`schedule` is 'step'"):
        scheduled_weight(0.2, "step")
