"""Which rewards decide success."""

import pytest

from clipo_trl.success import SuccessRule, check_step_reward, find_success_rule


@pytest.mark.parametrize(
    "weights, wanted, step_reward, expected",
    [
        ({"mine": 1.0}, None, None, (["mine"], "only")),
        ({"accuracy_reward": 1.0}, None, None, (["accuracy_reward"], "only")),
        ({"math_accuracy_reward": 1.0, "verifiable_reward": 1.0}, None, None, (None, "only")),
        ({"format": 1.0, "accuracy_reward": 1.0}, None, None, (["accuracy_reward"], "accuracy")),
        ({"format": 1.0, "reasoning_accuracy_reward": 1.0}, None, None, (["reasoning_accuracy_reward"], "accuracy")),
        ({"format": 1.0, "verifiable_reward": 0.0}, None, None, (None, "all")),  # it weighs nothing
        ({"format": 1.0, "mine": 1.0}, None, None, (["format", "mine"], "all")),
        ({"format": 1.0, "mine": 1.0}, ["mine"], None, (["mine"], "named")),
        ({"accuracy_reward": 1.0, "format": 1.0}, ["format"], None, (["format"], "named")),
        ({"mine": 1.0, "steps": 1.0}, None, "steps", (["mine"], "only")),
        ({"accuracy_reward": 1.0, "steps": 0.0}, None, "steps", (["accuracy_reward"], "only")),
        ({"steps": 1.0}, None, "steps", (["steps"], "only")),
    ],
)
def test_rule(weights, wanted, step_reward, expected):
    names, choice = expected
    assert find_success_rule(list(weights), list(weights.values()), wanted, step_reward) == SuccessRule(
        names or list(weights), choice
    )


@pytest.mark.parametrize("wanted", [[], ["other"], "mine"])
def test_names_that_are_not_there(wanted):
    with pytest.raises(ValueError, match=r"contrastive_success_rewards.*Choose from \['mine'\]"):
        find_success_rule(["mine"], [1.0], wanted, None)


def test_weights_that_decide_nothing():
    with pytest.raises(ValueError, match="weigh 0"):
        find_success_rule(["mine", "format"], [0.0, 1.0], ["mine"], None)


def test_a_name_that_is_nearly_right_is_told():
    with pytest.raises(ValueError, match=r"Choose from \['my_reward', 'short'\]. Did you mean 'my_reward'\?"):
        find_success_rule(["my_reward", "short"], [1.0, 1.0], ["my_rewards"], None)


def test_functions_that_share_a_name_decide_together():
    """Two lambdas, say: they are two, and the second one's weight is not the first one's."""
    rule = find_success_rule(["<lambda>", "<lambda>"], [1.0, 0.0], None, None)
    assert rule == SuccessRule(["<lambda>", "<lambda>"], "all")
    assert find_success_rule(["part", "mine", "part"], [0.0, 1.0, 1.0], ["part"], None).choice == "named"
    with pytest.raises(ValueError, match="weigh 0"):
        find_success_rule(["part", "mine", "part"], [0.0, 1.0, 0.0], ["part"], None)
    with pytest.raises(ValueError, match="`contrastive_step_reward` is 'part', the name of 2 reward functions"):
        check_step_reward("part", ["part", "mine", "part"])
    check_step_reward("mine", ["part", "mine", "part"])
