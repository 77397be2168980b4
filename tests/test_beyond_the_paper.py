"""Agreement, group-centred states and the metrics of a step checker, in training: against a calculation beside the
trainer."""

import copy

import pytest
import torch
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

from clipo_trl import CLIPOTrainer, contrastive_loss, contrastive_reward
from clipo_trl.agreement import scaled_in_group
from clipo_trl.beyond_the_paper_config import TOKEN_SCORES
from clipo_trl.calibration import MEMORY, PRIOR_PAIRS, Calibration
from clipo_trl.cli.run_plan import describe_clipo, plan_run
from clipo_trl.metrics import sound_against_lucky
from clipo_trl.rewards import agreement_reward


def short_reward(completions, **kwargs) -> list[float | None]:
    """A step checker: sound if short; nothing to say of some."""
    lengths = [len(completion[0]["content"]) for completion in completions]
    return [None if length == 3 else float(length < 8) for length in lengths]


class Recording(CLIPOTrainer):
    """Keeps the rewards, the pooled states, the column, and the embeddings that the head of before the step gives."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def _contrastive_column(self, rewards_per_func, pooled_BH):
        head, states = copy.deepcopy(self.contrastive_head), pooled_BH.clone()
        given = rewards_per_func[:, :2].clone()
        column = super()._contrastive_column(rewards_per_func, pooled_BH)
        groups = states.view(-1, self.num_generations, states.size(1))
        mean = groups.mean(1, keepdim=True).expand_as(groups) if head.debias == "group_center" else None
        with torch.no_grad():
            embeddings = head(groups, mean)
        self.seen.append(
            {"rewards": given, "states": groups, "embeddings": embeddings, "column": column, "head": head}
        )
        return column


def make_trainer(tmp_path, reward_funcs=(letters_reward, short_reward), **settings):
    defaults = {"reward_weights": [1.0, 0.0], "max_steps": 4, "num_generations": 8, "per_device_train_batch_size": 32}
    return Recording(
        tiny_model(),
        list(reward_funcs),
        tiny_config(tmp_path, **(defaults | settings)),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
    )


def train(tmp_path, **settings):
    trainer = make_trainer(tmp_path, **settings)
    trainer.train()
    return trainer


def agreement_by_hand(vectors, correct):
    """Mean cosine to the other correct rollouts of the group; NaN where there is none."""
    score = torch.full(correct.shape, torch.nan)
    for p, i in correct.nonzero().tolist():
        others = [j for j in correct[p].nonzero().flatten().tolist() if j != i]
        if others:
            score[p, i] = torch.cosine_similarity(vectors[p, i], vectors[p, others], dim=-1).mean()
    return score


@pytest.mark.parametrize("debias", [None, "group_center"])
def test_agreement_is_what_is_paid(tmp_path, debias):
    trainer = train(
        tmp_path, contrastive_reward_type="agreement", contrastive_debias=debias, contrastive_reward_weight=1.0
    )
    for seen in trainer.seen:
        correct = seen["rewards"][:, 0].view(-1, 8) > 0
        score = agreement_by_hand(seen["embeddings"], correct)
        score = (score - score.nanmean(1, keepdim=True)).nan_to_num()
        expected = agreement_reward(score, correct, weight=1.0)
        torch.testing.assert_close(seen["column"], expected.flatten(), atol=1e-5, rtol=1e-5)
    assert torch.cat([seen["column"] for seen in trainer.seen]).unique().numel() > 10


def test_agreement_and_debias_change_the_reward_and_the_head_learns_in_each(tmp_path):
    columns, heads = [], []
    for reward_type in ("loss", "agreement", "similarity_gap"):
        for debias in (None, "group_center"):
            trainer = train(tmp_path, contrastive_reward_type=reward_type, contrastive_debias=debias)
            columns.append(trainer.seen[0]["column"])
            heads.append(trainer.contrastive_head.layers[0].weight)
    assert all(not torch.allclose(a, b) for i, a in enumerate(columns) for b in columns[:i])
    fresh = train(tmp_path, freeze_contrastive_head=True).contrastive_head.layers[0].weight
    assert all(not torch.equal(head, fresh) for head in heads)


def test_weight_zero_pays_nothing_whatever_is_scored(tmp_path):
    """So that the policy's training is plain GRPO, which other tests hold bit for bit."""
    settings = {"contrastive_reward_weight": 0.0, "contrastive_debias": "group_center"}
    weights = []
    for reward_type in ("loss", "agreement"):
        trainer = train(tmp_path, contrastive_reward_type=reward_type, **settings)
        assert all(torch.equal(seen["column"], torch.zeros(32)) for seen in trainer.seen)
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]))
    assert torch.equal(*weights)


def test_metrics_of_a_step_checker(tmp_path):
    trainer = train(tmp_path, contrastive_step_reward="short_reward", contrastive_reward_type="agreement")
    logged = [row for row in trainer.state.log_history if "reward" in row]
    assert len(logged) == len(trainer.seen)
    n_compared = 0
    for row, seen in zip(logged, trainer.seen, strict=True):
        answers, steps = (column.view(-1, 8) for column in seen["rewards"].T)
        correct = answers > 0
        scores = {
            "hidden": agreement_by_hand(seen["states"], correct),
            "embedding": agreement_by_hand(seen["embeddings"], correct),
            "reward": seen["column"].view(-1, 8),
        }
        has_score = scores["embedding"].isfinite() & steps.isfinite()
        for name, score in scores.items():
            ranked = difference = n_pairs = 0
            for p in range(len(score)):
                sound = steps[p][has_score[p]] > 0
                pairs = int(sound.sum() * (~sound).sum())
                if pairs:
                    values = score[p][has_score[p]].double()
                    margins = values[sound].unsqueeze(1) - values[~sound]
                    ranked += ((margins > 1e-6).sum() + 0.5 * (margins.abs() <= 1e-6).sum()).item()
                    difference += pairs * (values[sound].mean() - values[~sound].mean()).item()
                    n_pairs += pairs
            n_compared += n_pairs
            if n_pairs:
                assert row[f"contrastive/sound_auroc_{name}"] == pytest.approx(ranked / n_pairs, abs=1e-4)
                assert row[f"contrastive/sound_gap_{name}"] == pytest.approx(difference / n_pairs, abs=1e-4)
        judged = correct & steps.isfinite()
        assert row["contrastive/lucky_share"] == pytest.approx((steps[judged] <= 0).float().mean().item())
    assert n_compared > 30


def test_without_a_step_checker_there_are_no_such_metrics(tmp_path):
    trainer = train(tmp_path, max_steps=1)
    assert not any("sound_" in key or "lucky" in key for row in trainer.state.log_history for key in row)


def test_an_unknown_step_checker_is_named(tmp_path):
    with pytest.raises(ValueError, match="`contrastive_step_reward` is 'steps'.*letters_reward"):
        train(tmp_path, contrastive_step_reward="steps")


@pytest.mark.parametrize("scale, atol", [(None, 1e-5), ("group", 1e-3)])  # rounding in units of 1e-4
def test_calibration_pays_as_far_as_the_checked_rollouts_bear_it_out(tmp_path, scale, atol):
    """The reward is the plain one times a factor that the step checker's rollouts give, batch after batch."""
    settings = {"contrastive_reward_type": "agreement", "contrastive_step_reward": "short_reward"}
    settings |= {"contrastive_score_scale": scale, "contrastive_reward_weight": 1.0}
    trainer = train(tmp_path, contrastive_calibration=True, **settings)
    logged = [row for row in trainer.state.log_history if "reward" in row]
    ranked = pairs = 0.0
    for row, seen in zip(logged, trainer.seen, strict=True):
        answers, steps = (column.view(-1, 8) for column in seen["rewards"].T)
        score = agreement_by_hand(seen["embeddings"], answers > 0)
        is_scored = score.isfinite()
        score = (score - score.nanmean(1, keepdim=True)).nan_to_num()
        if scale == "group":
            score = scaled_in_group(score, is_scored)
        plain = agreement_reward(score, answers > 0, weight=1.0)
        checked = is_scored & steps.isfinite()
        now = sound_against_lucky(plain, checked & (steps > 0), checked & (steps <= 0)).tolist()
        if now[2]:
            ranked, pairs = MEMORY * ranked + now[0], MEMORY * pairs + now[2]
        trust = 2 * (ranked + PRIOR_PAIRS / 2) / (pairs + PRIOR_PAIRS) - 1
        assert row["contrastive/trust"] == pytest.approx(trust, abs=1e-4)
        torch.testing.assert_close(seen["column"], row["contrastive/trust"] * plain.flatten(), atol=atol, rtol=1e-4)
    assert pairs > PRIOR_PAIRS


def test_calibration_turns_a_reward_that_favours_lucky_rollouts():
    reward = torch.tensor([[0.3, 0.1, -0.2, -0.2]])
    first, last = torch.tensor([[1, 1, 0, 0]]).bool(), torch.tensor([[0, 0, 1, 1]]).bool()
    for sound, lucky, sign in ((first, last, 1), (last, first, -1)):
        calibration = Calibration()
        factors = [sign * calibration.update(reward, sound, lucky) for _ in range(100)]
        assert all(0 < a < b for a, b in zip(factors[:20], factors[1:21], strict=True))
        n_pairs = 4 / (1 - MEMORY)  # in the long run
        assert factors[-1] == pytest.approx(n_pairs / (n_pairs + PRIOR_PAIRS), abs=1e-3)
        back = [sign * calibration.update(-reward, sound, lucky) for _ in range(100)]
        assert back[-1] == pytest.approx(-factors[-1], abs=1e-3)  # and turns again when the reward does


def test_calibration_neither_learns_nor_forgets_without_a_pair():
    reward, nothing = torch.tensor([[0.3, -0.2]]), torch.zeros(1, 2, dtype=torch.bool)
    one, other = torch.tensor([[True, False]]), torch.tensor([[False, True]])
    calibration = Calibration()
    assert [calibration.update(reward, nothing, nothing) for _ in range(50)] == [0.0] * 50
    first = calibration.update(reward, one, other)
    assert first == pytest.approx(1 / (1 + PRIOR_PAIRS))  # one pair is little
    assert [calibration.update(reward, one, nothing) for _ in range(50)] == [first] * 50


def test_calibration_is_in_the_checkpoint(tmp_path):
    settings = {"contrastive_step_reward": "short_reward", "contrastive_calibration": True, "max_steps": 4}
    whole = train(tmp_path / "whole", save_strategy="steps", save_steps=2, **settings)
    resumed = make_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert resumed.head_learner.calibration == whole.head_learner.calibration != Calibration()
    assert torch.equal(resumed.seen[-1]["column"], whole.seen[-1]["column"])


def partial_reward(completions, **kwargs) -> list[float | None]:
    """A step checker that has something to say of wrong answers too."""
    return [0.4 if len(completion[0]["content"]) < 8 else -1.0 for completion in completions]


def missing_reward(completions, **kwargs) -> list[float | None]:
    """`letters_reward`, which gives nothing for the shortest completions."""
    rewards = letters_reward(completions)
    return [
        None if len(completion[0]["content"]) < 3 else reward
        for completion, reward in zip(completions, rewards, strict=True)
    ]


def test_a_step_checker_has_no_say_in_what_is_correct(tmp_path):
    """Whatever it weighs, and where the answer could not be judged."""
    for index, weight in enumerate((1.0, 0.0)):
        trainer = train(
            tmp_path / str(index),
            reward_funcs=[missing_reward, partial_reward],
            reward_weights=[1.0, weight],
            contrastive_step_reward="partial_reward",
            contrastive_reward_type="agreement",
            contrastive_debias="group_center",
            contrastive_reward_weight=1.0,
            max_steps=2,
        )
        rows = [row for row in trainer.state.log_history if "reward" in row]
        for row, seen in zip(rows, trainer.seen, strict=True):
            answers = seen["rewards"][:, 0]
            judged = answers[~answers.isnan()]
            assert row["contrastive/correct_rollouts"] == pytest.approx((judged > 0).float().mean().item())
            assert row["contrastive/left_out_rollouts"] == pytest.approx(answers.isnan().float().mean().item())
            assert torch.equal(seen["column"].isnan(), answers.isnan()) and answers.isnan().any()
    # What is left out is not in the mean of its group either.
    groups, answers = seen["states"], answers.view(-1, 8)
    mean = torch.stack([states[~missing].mean(0) for states, missing in zip(groups, answers.isnan(), strict=True)])
    with torch.no_grad():
        embeddings = seen["head"](groups, mean.unsqueeze(1).expand_as(groups))
    score = agreement_by_hand(embeddings, answers.nan_to_num() > 0)
    expected = agreement_reward((score - score.nanmean(1, keepdim=True)).nan_to_num(), answers > 0, weight=1.0)
    kept = ~answers.isnan()
    torch.testing.assert_close(seen["column"].view(-1, 8)[kept], expected[kept], atol=1e-5, rtol=1e-5)


def test_the_gap_of_group_centred_states_is_warned_of(tmp_path, caplog):
    make_trainer(tmp_path, contrastive_reward_type="similarity_gap", contrastive_debias="group_center")
    assert "says little that 'agreement' does not" in caplog.text


# ---------------------------------------------------------------------- baseline, k positives, schedule of lambda


def test_the_baseline_is_taken_off_what_is_paid_and_not_off_what_the_head_learns(tmp_path):
    """Paid is max(b - lambda (L - log |P|), floor); the head is, bit for bit, the one without a baseline."""
    settings = {"contrastive_loss_type": "supcon_out", "learning_rate": 0.0, "max_steps": 3}
    plain = train(tmp_path / "plain", **settings)
    based = train(tmp_path / "based", contrastive_baseline="log_positives", **settings)
    n_paid = 0
    for seen, other in zip(based.seen, plain.seen, strict=True):
        correct = seen["rewards"][:, 0].view(-1, 8) > 0
        assert torch.equal(seen["embeddings"], other["embeddings"])
        loss, is_anchor = contrastive_loss(seen["embeddings"], correct, loss_type="supcon_out")
        baseline = torch.where(is_anchor, correct.sum(1, keepdim=True) - 1.0, 1.0).log()
        torch.testing.assert_close(
            seen["column"].view(-1, 8), contrastive_reward(loss - baseline, correct), atol=1e-5, rtol=0
        )
        n_paid += (baseline > 0).sum().item()
        assert (seen["column"] >= other["column"]).all()
    assert n_paid > 20 and not torch.equal(based.seen[0]["column"], plain.seen[0]["column"])


def test_all_positives_are_supcon_in_training(tmp_path):
    drawn = train(tmp_path / "drawn", contrastive_num_positives=7)
    whole = train(tmp_path / "whole", contrastive_loss_type="supcon_out")
    one = train(tmp_path / "one")
    for seen, other in zip(drawn.seen, whole.seen, strict=True):
        assert torch.equal(seen["column"], other["column"])
    assert torch.equal(drawn.contrastive_head.layers[0].weight, whole.contrastive_head.layers[0].weight)
    assert not torch.equal(drawn.contrastive_head.layers[0].weight, one.contrastive_head.layers[0].weight)


@pytest.mark.parametrize(
    "schedule, factors", [("linear", [1, 0.75, 0.5, 0.25]), ("cosine", [1, 0.85355, 0.5, 0.14645])]
)
@pytest.mark.parametrize("warmup", [0, 2])
def test_lambda_falls_while_the_policy_learns(tmp_path, schedule, factors, warmup):
    """In a frozen warm-up it stays. The column is that of a constant lambda, times the factor."""
    settings = {"contrastive_loss_type": "supcon_out", "contrastive_reward_floor": -100.0}
    settings |= {"contrastive_warmup_steps": warmup, "max_steps": 4 + warmup}
    trainer = train(tmp_path, contrastive_reward_schedule=schedule, **settings)
    logged = [row["contrastive/reward_weight"] for row in trainer.state.log_history if "reward" in row]
    factors = [1] * warmup + factors
    assert logged == pytest.approx([0.2 * factor for factor in factors], abs=1e-5)
    for seen, factor in zip(trainer.seen, factors, strict=True):
        correct = seen["rewards"][:, 0].view(-1, 8) > 0
        loss, _ = contrastive_loss(seen["embeddings"], correct, loss_type="supcon_out")
        torch.testing.assert_close(seen["column"].view(-1, 8), -0.2 * factor * loss * correct, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("reward_type", ["agreement", "similarity_gap", "likelihood", "negative_entropy"])
def test_scores_are_paid_in_standard_deviations(tmp_path, reward_type):
    """lambda times what an unscaled run paid, over its standard deviation in the group, until the bound cuts it."""
    settings = {"contrastive_reward_type": reward_type, "learning_rate": 0.0, "max_steps": 3}
    plain = train(tmp_path / "plain", **settings, contrastive_reward_weight=1.0, contrastive_reward_floor=-100.0)
    scaled = train(tmp_path / "scaled", contrastive_score_scale="group", **settings, contrastive_reward_floor=-0.2)
    n_cut = n_paid = 0
    floor_rewards = [row["contrastive/floor_rewards"] for row in scaled.state.log_history if "reward" in row]
    for seen, other, share in zip(scaled.seen, plain.seen, floor_rewards, strict=True):
        before = n_cut, n_paid
        for paid, score in zip(seen["column"].view(-1, 8), other["column"].view(-1, 8), strict=True):
            is_scored = score != 0
            deviation = score[is_scored].std() if is_scored.sum() > 1 else torch.tensor(1.0)
            expected = (0.2 * score / (deviation + 1e-4)).clamp(-0.2, 0.2)
            torch.testing.assert_close(paid, expected, atol=1e-3, rtol=1e-3)  # 1e-4: rounding
            n_paid, n_cut = n_paid + int(is_scored.sum()), n_cut + int((expected.abs() == 0.2).sum())
        if reward_type in TOKEN_SCORES:  # which are never just 0, as is an embedding that stands alone
            assert share == pytest.approx((n_cut - before[0]) / (n_paid - before[1]), abs=1e-4)
    assert n_paid > 20 and 0 < n_cut < n_paid


@pytest.mark.parametrize(
    "settings",
    [
        {"contrastive_reward_type": "likelihood", "contrastive_score_scale": "group"},
        {"contrastive_reward_schedule": "cosine", "contrastive_warmup_steps": 1},
    ],
    ids=["scale", "schedule"],
)
def test_goes_on_where_the_checkpoint_was(tmp_path, settings):
    whole = train(tmp_path / "whole", save_strategy="steps", save_steps=2, **settings)
    resumed = make_trainer(tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert len(resumed.seen) == 2
    for ours, theirs in zip(resumed.seen, whole.seen[2:], strict=True):
        assert torch.equal(ours["column"], theirs["column"])


def test_a_constant_weight_is_not_logged(tmp_path):
    trainer = train(tmp_path, max_steps=1)
    assert not any("contrastive/reward_weight" in row for row in trainer.state.log_history)


def test_the_table_at_the_start_tells_of_a_scale(tmp_path):
    trainer = make_trainer(tmp_path, contrastive_reward_type="agreement", contrastive_score_scale="group")
    told = " ".join(describe_clipo(trainer, plan_run(trainer.args, 8)).values())
    assert "0 + 0.2 (lambda) x agreement / its standard deviation in the group, within 0.5" in told


def test_the_table_at_the_start_tells_of_them(tmp_path):
    settings = {"contrastive_baseline": "log_positives", "contrastive_reward_schedule": "cosine"}
    trainer = make_trainer(tmp_path, **settings)
    told = " ".join(describe_clipo(trainer, plan_run(trainer.args, 8)).values())
    assert "0.2 (lambda) x (loss - log number of positives), at least -0.5, lambda to 0 (cosine)" in told
