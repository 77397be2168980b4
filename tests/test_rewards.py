"""Weight, floor, offset and zeros of the contrastive reward."""

import pytest
import torch

from clipo_trl import contrastive_reward


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
