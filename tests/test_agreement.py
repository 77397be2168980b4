"""The scores beside the loss: against loops in float64, and the properties that make them safe to pay."""

import statistics

import pytest
import torch

from clipo_trl import agreement_score, contrastive_loss
from clipo_trl.agreement import scaled_in_group
from clipo_trl.rewards import agreement_reward


P, G, D = 4, 6, 5
EMBEDDINGS = torch.nn.functional.normalize(
    torch.randn(P, G, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64), dim=-1
)
CORRECT = torch.tensor([[1, 1, 0, 1, 0, 1], [1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 1]]).bool()
VALID = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0]]).bool()
TYPES = ["agreement", "similarity_gap"]
LEVELS = ["group", "cross", "batch"]


def by_hand(reward_type, level):
    """Score and whether there is one, pair by pair."""
    rollouts = [(p, g) for p in range(P) for g in range(G) if VALID[p, g]]
    score, scored = torch.zeros(P, G, dtype=torch.float64), torch.zeros(P, G, dtype=torch.bool)
    for i in rollouts:
        if not CORRECT[i]:
            continue
        others = [j for j in rollouts if j != i and (level != "group" or j[0] == i[0])]
        positives = [j for j in others if CORRECT[j] and (level == "batch" or j[0] == i[0])]
        negatives = [j for j in others if j not in positives]
        if not positives or (reward_type == "similarity_gap" and not negatives):
            continue
        score[i] = sum(EMBEDDINGS[i] @ EMBEDDINGS[j] for j in positives) / len(positives)
        if reward_type == "similarity_gap":
            score[i] -= sum(EMBEDDINGS[i] @ EMBEDDINGS[j] for j in negatives) / len(negatives)
        scored[i] = True
    for p in range(P):
        if scored[p].any():
            score[p, scored[p]] -= score[p, scored[p]].mean()
    return score, scored


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("reward_type", TYPES)
def test_is_what_a_loop_over_pairs_gives(reward_type, level):
    embeddings = EMBEDDINGS.masked_fill(~VALID.unsqueeze(-1), torch.nan)  # what does not count may be anything
    score, scored = agreement_score(embeddings, CORRECT, valid_PG=VALID, reward_type=reward_type, level=level)
    expected, expected_scored = by_hand(reward_type, level)
    assert torch.equal(scored, expected_scored) and scored.any()
    torch.testing.assert_close(score, expected)
    assert not score.requires_grad


def test_agreement_needs_no_wrong_rollout_and_the_gap_does():
    assert agreement_score(EMBEDDINGS, CORRECT)[1][1].all()
    assert not agreement_score(EMBEDDINGS, CORRECT, reward_type="similarity_gap")[1][1].any()
    assert not agreement_score(EMBEDDINGS, CORRECT)[1][2].any()  # one correct rollout has nobody to agree with


@pytest.mark.parametrize("reward_type", TYPES)
def test_adds_up_to_zero_in_each_group(reward_type):
    score, _ = agreement_score(EMBEDDINGS, CORRECT, reward_type=reward_type, level="batch")
    torch.testing.assert_close(score.sum(1), torch.zeros(P, dtype=torch.float64))


@pytest.mark.parametrize("reward_type", TYPES)
def test_follows_rollouts_wherever_they_stand(reward_type):
    order = torch.randperm(G, generator=torch.Generator().manual_seed(1))
    score, _ = agreement_score(EMBEDDINGS, CORRECT, reward_type=reward_type)
    moved, _ = agreement_score(EMBEDDINGS[:, order], CORRECT[:, order], reward_type=reward_type)
    torch.testing.assert_close(moved, score[:, order])


def test_the_odd_one_out_scores_lowest_and_twins_score_alike():
    embeddings = torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [0.0, 1.0]]])
    correct = torch.tensor([[True, True, True, True, False]])
    score, _ = agreement_score(embeddings, correct)
    torch.testing.assert_close(score[0, 0], score[0, 1])
    assert score[0, 3] < score[0, 2] < 0.31 and score[0, 3] == score.min()
    assert score[0, 4] == 0


@pytest.mark.parametrize("reward_type", TYPES)
@pytest.mark.parametrize("weight", [0.2, 1.0, 1000.0])
@pytest.mark.parametrize("offset", [0.0, 0.3, -0.3])
def test_a_correct_rollout_stays_above_a_wrong_one(reward_type, weight, offset):
    generator = torch.Generator().manual_seed(2)
    embeddings = torch.nn.functional.normalize(torch.randn(200, 8, 3, generator=generator), dim=-1)
    correct = torch.rand(200, 8, generator=generator) < 0.5
    score, _ = agreement_score(embeddings, correct, reward_type=reward_type)
    reward = agreement_reward(score, correct, weight=weight, offset=offset, floor=-0.49)
    total = reward + correct.float()  # a verifiable reward of 1
    assert total[correct].min() > total[~correct].max()
    assert (reward - offset).abs().max() <= 0.49 + 1e-6  # bounded on both sides
    assert (reward[~correct] == offset).all()


def test_agreement_reward_by_hand_and_its_arguments():
    score, correct = torch.tensor([[0.5, -0.1, 9.0, -9.0, 1.0]]), torch.tensor([[True, True, True, True, False]])
    expected = torch.tensor([[0.2, 0.08, 0.6, -0.4, 0.1]])
    torch.testing.assert_close(agreement_reward(score, correct, weight=0.2, offset=0.1), expected)
    for settings in ({"weight": -0.1}, {"floor": 0.1}):
        with pytest.raises(ValueError, match=next(iter(settings))):
            agreement_reward(score, correct, **settings)
    with pytest.raises(ValueError, match="`score_PG` has shape"):
        agreement_reward(score, correct[:, :2])


def test_two_correct_rollouts_agree_with_each_other_alike():
    correct = torch.tensor([[True, False, True, False, False, False]])
    score, scored = agreement_score(EMBEDDINGS[:1], correct)
    assert scored.sum() == 2
    torch.testing.assert_close(score, torch.zeros(1, 6, dtype=torch.float64))


def test_agreement_is_the_numerator_of_the_loss_without_its_denominator():
    """For SupCon, minus the loss is agreement / tau (before centring) less a log-sum that is not the same for all."""
    loss, anchors = contrastive_loss(EMBEDDINGS, CORRECT, loss_type="supcon_out", temperature=0.5)
    score, _ = agreement_score(EMBEDDINGS, CORRECT)
    numerator = torch.zeros(P, G, dtype=torch.float64)
    for p, g in anchors.nonzero().tolist():
        others = [a for a in range(G) if a != g]
        log_sum = (EMBEDDINGS[p, others] @ EMBEDDINGS[p, g] / 0.5).logsumexp(0)
        numerator[p, g] = 0.5 * (log_sum - loss[p, g])
    for p in range(P):
        if anchors[p].any():
            torch.testing.assert_close(
                numerator[p, anchors[p]] - numerator[p, anchors[p]].mean(), score[p, anchors[p]]
            )


def test_unknown_type():
    with pytest.raises(ValueError, match="`reward_type` is 'loss'"):
        agreement_score(EMBEDDINGS, CORRECT, reward_type="loss")


def test_scores_in_standard_deviations_of_their_group():
    """In a loop, unbiased as GRPO's are, whatever their size; but where there is nothing but rounding."""
    generator = torch.Generator().manual_seed(0)
    is_scored = torch.rand(6, 8, generator=generator) < 0.6
    for row, n_scored in enumerate((0, 2, 1)):
        is_scored[row] = torch.arange(8) < n_scored
    score = torch.randn(6, 8, generator=generator) * torch.logspace(-2, 1, 6).unsqueeze(1)
    for row, kept in zip(score, is_scored, strict=True):
        row -= row[kept].mean() if kept.any() else 0.0
    score = score.masked_fill(~is_scored, 0.0)
    scaled = scaled_in_group(score, is_scored)
    for row, kept, found in zip(score, is_scored, scaled, strict=True):
        values = [value.item() for value in row[kept]]
        deviation = statistics.stdev(values) if len(values) > 1 else 1.0
        expected = [value / (deviation + 1e-4) for value in values]
        torch.testing.assert_close(found[kept], torch.tensor(expected), rtol=1e-4, atol=1e-6)
        assert (found[~kept] == 0).all() and found.abs().max() <= 7 / 8**0.5
    assert scaled_in_group(score * 1e-8, is_scored).abs().max() < 1e-2
