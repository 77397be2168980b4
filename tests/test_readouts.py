"""Scores of frozen policies: each against a computation by hand or a loop in float64, and what they are worth."""

import json
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_models import tiny_model, tiny_tokenizer

from clipo_trl.agreement import agreement_score
from clipo_trl.metrics import sound_against_lucky
from experiments import word_problems
from experiments.chain import write_trace
from experiments.readouts import embedding_scores as embed
from experiments.readouts import report, token_scores
from experiments.readouts.passes import FrozenPolicy, TokenFigures
from experiments.readouts.rollouts import Rollouts
from experiments.readouts.statistics import BesideLikelihood, Bootstrap, make_pairs, ranked, table_row
from experiments.readouts.study import layers_to_read
from experiments.readouts.tasks import TASKS


CHAIN, WORDS = TASKS["chain"], TASKS["word_problems"]
TRACE = "3*4=1r5;5+2=1r0;#0"
STORY = "17 - 9 = 8\n8 * 3 = 24\n24 is more than 20\nAnswer: yes"


def planted(n_groups: int = 6, group_size: int = 6) -> Rollouts:
    """Rollouts of chains, of all kinds in each group: sound, lucky by another quotient each time, wrong."""
    rng = random.Random(0)
    problems = [f"{place % 4 + 1}*{place % 3 + 2}+{place % 2 + 1}=" for place in range(n_groups)]
    mistakes = [{"wrong_quotient": 1.0}, {}, {"commuted": 1.0}, {"wrong_quotient": 1.0}, {"commuted": 0.5}]
    completions = [
        [write_trace(problem, rng, **mistakes[place % len(mistakes)]) for place in range(group_size - 1)]
        for problem in problems
    ]
    for row in completions:
        row.append(row[0][:-1] + str((int(row[0][-1]) + 1) % 7))  # a wrong answer
    prompts = [[{"role": "user", "content": problem}] for problem in problems]
    return Rollouts("chain", prompts, problems, completions)


@pytest.fixture(scope="module")
def policy() -> FrozenPolicy:
    return FrozenPolicy(tiny_model(n_layers=3).eval(), tiny_tokenizer(), layers=(0, -1), batch_size=4)


def units(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return vectors / vectors.norm(dim=-1, keepdim=True)


# ---------------------------------------------------------------------- what a score has to know of the text


def test_steps_and_numbers_of_a_chain():
    assert [TRACE[slice(*span)] for span in CHAIN.steps_of(TRACE)] == ["3*4=1r5;", "5+2=1r0;"]
    assert [TRACE[slice(*span)] for span in CHAIN.stated_of(TRACE)] == ["1", "5", "1", "0"]
    assert [CHAIN.cut(TRACE, n) for n in range(3)] == ["#", "3*4=1r5;#", "3*4=1r5;5+2=1r0;#"]
    assert CHAIN.answer_of(TRACE) == "0"


def test_steps_and_numbers_of_a_word_problem():
    assert [STORY[slice(*span)] for span in WORDS.steps_of(STORY)] == STORY.splitlines(keepends=True)[:-1]
    assert [STORY[slice(*span)] for span in WORDS.stated_of(STORY)] == ["8", "24"]
    assert WORDS.cut(STORY, 1) == "17 - 9 = 8\nAnswer:" and WORDS.answer_of(STORY) == " yes"


def test_one_number_is_changed_and_nothing_else():
    first, last = WORDS.stated_of(STORY)
    changed = WORDS.changed(STORY, first, random.Random(0))
    assert changed != STORY[: len(changed)] and changed[9].isdigit()
    assert changed[:9] + "8" + changed[10:] == STORY.removesuffix(" yes")
    assert len(WORDS.changed(STORY, last, random.Random(0))) == len(STORY.removesuffix(" yes"))
    cut = WORDS.changed_last(STORY, random.Random(0))
    assert cut.startswith("17 - 9 = 8\n8 * 3 = ") and cut.endswith("\nAnswer:") and "24" not in cut
    assert CHAIN.changed_last("no steps", random.Random(0)) is None


def test_groups_that_count():
    rollouts = planted()
    assert rollouts.compared_P.all() and rollouts.figures()["pairs"] > 0
    few = Rollouts("chain", rollouts.prompts[:1], rollouts.problems[:1], [rollouts.completions_PG[0][:2]])
    assert few.lucky_PG.tolist() == [[True, False]] and few.sound_PG.tolist() == [[False, True]]
    assert not few.compared_P.any()  # of two right ones each is the other's only peer


def test_rollouts_are_read_from_lines_and_kept(tmp_path):
    row = word_problems.build_dataset(1, seed=0)[0]
    completion = word_problems.write_trace(word_problems.Problem.from_json(row["problem"]))
    line = {"group": 0, "problem": row["problem"], "completion": completion, "token_ids": [1, 2], "more": 0}
    lines = [line, line, line | {"group": 1}]  # the last group is not whole
    (tmp_path / "rollouts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    rollouts = Rollouts.read_word_problems(tmp_path / "rollouts.jsonl")
    assert rollouts.prompts == [row["prompt"]] and rollouts.sound_PG.tolist() == [[True, True]]
    assert rollouts.part([0]).completions_PG == [[completion] * 2] and rollouts.part([]).right_PG.size == 0
    rollouts.save(tmp_path)
    assert Rollouts.load(tmp_path).token_ids_PG == [[[1, 2], [1, 2]]]


# ---------------------------------------------------------------------- forward passes


def whole_pass(policy: FrozenPolicy, messages, ids: list[int]):
    """Log-softmax before each token of a text and all hidden states of its tokens, by one plain pass."""
    prompt_ids = policy.tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    with torch.no_grad():
        output = policy.model(torch.tensor([prompt_ids + ids]), output_hidden_states=True)
    first = len(prompt_ids)
    return output.logits[0, first - 1 : -1].log_softmax(-1), [states[0, first:] for states in output.hidden_states]


def test_figures_and_states_are_those_of_a_plain_pass(policy):
    messages, texts = [{"role": "user", "content": "3*4+2="}], [TRACE, "3*4", TRACE[:9], "#", "1r2"]
    ids = [policy.ids_of(text, ends=True) for text in texts]
    prompt = policy.prompt(messages)
    figures, states = policy.figures_and_states(prompt, ids)
    log_probs = policy.log_probs(prompt, ids)
    lasts = policy.log_probs(prompt, ids, [1, 2, 3, 1, 2])
    for n, text in enumerate(ids):
        log_p, hidden = whole_pass(policy, messages, text)
        drawn = log_p.gather(1, torch.tensor(text)[:, None])[:, 0]
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(figures[n].log_prob_T, drawn, **close)
        torch.testing.assert_close(log_probs[n], drawn, **close)
        torch.testing.assert_close(lasts[n], drawn[-len(lasts[n]) :], **close)
        torch.testing.assert_close(
            figures[n].entropy_T, torch.distributions.Categorical(logits=log_p).entropy(), **close
        )
        uniform = torch.full_like(log_p, 1 / log_p.size(1))
        divergence = torch.nn.functional.kl_div(log_p, uniform, reduction="none").sum(1)
        torch.testing.assert_close(figures[n].certainty_T, divergence, **close)
        for layer, place in ((0, 1), (-1, -1)):
            torch.testing.assert_close(states[f"{layer}/mean"][n], hidden[place][:-1].mean(0), **close)
            torch.testing.assert_close(states[f"{layer}/last"][n], hidden[place][-2], **close)
    assert len(lasts[2]) == 3


def test_layers_to_read():
    assert layers_to_read(3) == [0, 1, -1] and layers_to_read(1) == [-1]
    assert layers_to_read(30)[0] == 0 and layers_to_read(30)[-2:] == [28, -1] and len(layers_to_read(30)) == 7


# ---------------------------------------------------------------------- scores without embeddings


def test_likelihood_scores_by_hand():
    figures = TokenFigures(torch.tensor([-1.0, -3.0]), torch.tensor([0.5, 1.5]), torch.tensor([2.0, 4.0]))
    assert token_scores.likelihood_scores(figures) == {
        "likelihood/mean": -2.0, "likelihood/sum": -4.0, "likelihood/lowest": -3.0, "certainty/minus_entropy": -1.0,
        "certainty/self_certainty": 3.0, "length": 2.0,
    }  # fmt: skip


def test_own_prompt_scores_by_hand():
    own, others = torch.tensor([-1.0, -1.0, -2.0]), torch.tensor([[-2.0, -1.0, -5.0], [-4.0, -1.0, -1.0]])
    found = token_scores.own_prompt_scores(own, others, [[0, 1], [2], []])
    assert found == {"own_prompt/sum": 3.0, "own_prompt/mean_step": 1.5, "own_prompt/lowest_step": 1.0}
    habit = token_scores.own_prompt_scores(own, own.expand(2, 3), [[0]])  # looks at no problem
    assert set(habit.values()) == {0.0}


def test_prefix_and_changed_scores_by_hand():
    found = token_scores.prefix_scores([0.2, 0.1, 0.9])
    assert found == pytest.approx({"prefix/gain": 0.7, "prefix/lowest_gain": -0.1, "cut/lost": 0.85})
    assert all(math.isnan(value) for value in token_scores.prefix_scores([0.2]).values())
    found = token_scores.changed_scores([0.25, 0.75], 1.0)
    assert found == {"changed/mean": 0.5, "changed/least": 0.25, "changed/last": 0.0}


def test_tokens_of_steps():
    assert token_scores.token_places(["17", " -", " 9", "\n", "8"], [(0, 4), (4, 7), (7, 8)]) == [[0, 1], [2, 3], [4]]


def test_scores_of_all_groups_are_those_of_a_loop(policy):
    rollouts = planted(3)
    scores, states = token_scores.read_all(policy, rollouts)
    cuts = token_scores.cut_and_change(policy, rollouts, range(3), seed=0)
    prompts = token_scores.compare_prompts(policy, rollouts, range(3), n_others=2, seed=0)
    group = 1
    right = np.flatnonzero(rollouts.right_PG[group])
    for rollout in right[:2]:
        completion, messages = rollouts.completions_PG[group][rollout], rollouts.prompts[group]
        ids = policy.ids_of(completion, ends=True)

        def log_prob(text, messages=messages, last=None):
            log_p = whole_pass(policy, messages, text)[0]
            return log_p.gather(1, torch.tensor(text)[:, None]).flatten()[-last if last else None :]

        own = log_prob(ids)
        assert scores["likelihood/mean"][group, rollout] == pytest.approx(own.mean().item(), rel=1e-4)
        others = [log_prob(ids, rollouts.prompts[other]).sum() for other in range(3) if other != group]
        assert prompts["own_prompt/sum"][group, rollout] == pytest.approx(
            (own.sum() - sum(others) / 2).item(), abs=1e-3
        )
        answer = policy.ids_of(completion[-1])
        p = [log_prob(policy.ids_of(CHAIN.cut(completion, n)) + answer, last=1).exp().item() for n in range(3)]
        assert cuts["prefix/gain"][group, rollout] == pytest.approx(p[2] - p[0], abs=1e-5)
        assert cuts["cut/lost"][group, rollout] == pytest.approx(1 - (p[0] + p[1]) / 2, abs=1e-5)
    wrong = np.flatnonzero(~rollouts.right_PG[group])
    assert np.isnan(cuts["cut/lost"][group, wrong]).all() and np.isfinite(cuts["changed/mean"][group, right]).all()
    assert states["-1/mean"].shape == (3, 6, 16)


# ---------------------------------------------------------------------- scores from embeddings


def loop_scores(unit_GD: np.ndarray, right: list[int], wrong: list[int], i: int) -> dict[str, float]:
    """Scores of rollout i by the definitions, in float64."""
    tau = embed.TEMPERATURE
    cosine = [float(unit_GD[i] @ other) for other in unit_GD]
    peers = [a for a in right if a != i]
    others = peers + wrong

    def soft_max(members):
        return tau * math.log(sum(math.exp(cosine[a] / tau) for a in members))

    def mean(members):
        return sum(cosine[a] for a in members) / len(members)

    return {
        "alignment": mean(peers),
        "minus_uniformity": -soft_max(others),
        "minus_nearness_to_wrong": -soft_max(wrong),
        "decoupled": mean(peers) - soft_max(wrong),
        "gap": mean(peers) - mean(wrong),
        "agreement_with_all": mean(others),
        "minus_supcon": (mean(peers) - soft_max(others)) / tau,
        "minus_softnn": (soft_max(peers) - soft_max(others)) / tau,
    }


def test_embedding_scores_are_those_of_a_loop():
    unit_PGD, right_PG = units((2, 6, 4)), torch.tensor([[1, 1, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]]).bool()
    scores = embed.embedding_scores(unit_PGD, right_PG)
    for group in range(2):
        right, wrong = (torch.nonzero(kind).flatten().tolist() for kind in (right_PG[group], ~right_PG[group]))
        possible = set()
        for i in right:
            for name, value in loop_scores(unit_PGD[group].numpy(), right, wrong, i).items():
                assert scores[name][group, i].item() == pytest.approx(value, rel=1e-5), name
            logits = unit_PGD[group] @ unit_PGD[group, i] / embed.TEMPERATURE
            denominator = torch.cat([logits[:i], logits[i + 1 :]]).logsumexp(0)
            possible = [(logits[p] - denominator).item() for p in right if p != i]
            assert min(abs(scores["minus_infonce"][group, i].item() - value) for value in possible) < 1e-5
    agreement_PG, is_scored_PG = agreement_score(unit_PGD, right_PG)
    n_right_P1 = right_PG.sum(1, keepdim=True)
    centred_PG = scores["alignment"] - (scores["alignment"] * right_PG).sum(1, keepdim=True) / n_right_P1
    torch.testing.assert_close(centred_PG[is_scored_PG], agreement_PG[is_scored_PG])


def test_a_robust_centroid_forgets_the_outlier():
    near = torch.tensor([[1.0, 0.02], [1.0, -0.02], [1.0, 0.0], [-0.2, 1.0]])
    unit_PGD = torch.nn.functional.normalize(near, dim=1)[None]
    plain = torch.nn.functional.normalize(unit_PGD.mean(1), dim=1) @ unit_PGD[0, 2]
    found = embed.nearness_to_centroid(unit_PGD, torch.ones(1, 4).bool())
    assert found[0, 2] > plain + 0.02 and found[0, 3] < found[0, :3].min()
    alone = embed.nearness_to_centroid(unit_PGD, torch.tensor([[1, 1, 1, 0]]).bool())
    assert alone[0, 2].item() == pytest.approx(1.0) and alone[0, 3].item() == pytest.approx(-0.2 / math.hypot(0.2, 1))


def test_states_less_the_mean_of_their_group():
    states_PGH = torch.tensor([[[1.0, 5.0], [3.0, 5.0]]])
    assert embed.of_states(states_PGH, centred=True).tolist() == [[[-1.0, 0.0], [1.0, 0.0]]]


@pytest.mark.parametrize("debias", [None, "group_center"])
def test_a_head_is_scored_on_groups_that_it_was_not_trained_on(debias):
    states_PGH, right_PG = units((12, 4, 8)).float(), torch.tensor([[1, 1, 1, 0]]).bool().repeat(12, 1)
    settings = {"debias": debias, "n_steps": 3, "seed": 0}
    before = embed.head_embeddings(states_PGH, right_PG, debias=debias, n_steps=0, seed=0)
    found = embed.head_embeddings(states_PGH, right_PG, **settings)
    own = np.random.default_rng(0).permutation(12) % 2 == 0
    turned_PG = right_PG.clone()
    turned_PG[own] = turned_PG[own].flip(1)
    other = embed.head_embeddings(states_PGH, turned_PG, **settings)
    assert not torch.allclose(found, before, atol=1e-3)
    torch.testing.assert_close(found[own], other[own])  # its own labels change nothing,
    assert not torch.allclose(found[~own], other[~own], atol=1e-3)  # but they train the other head
    if debias is None:
        torch.testing.assert_close(before.norm(dim=2), torch.ones(12, 4))


def test_all_spaces_are_scored():
    states = {
        name: units((6, 5, 8), seed).float().numpy() for seed, name in enumerate(["0/mean", "-1/mean", "-1/last"])
    }
    right_PG = np.array([[1, 1, 1, 0, 0]], dtype=bool).repeat(6, 0)
    scores = embed.all_embedding_scores(states, right_PG, head_steps=1)
    spaces = {name.rpartition("/")[0] for name in scores}
    assert spaces == {f"{kind}/{name}" for kind in ("states", "centred") for name in states} | {
        f"{kind}{head}" for kind in ("untrained_", "") for head in ("head", "centred_head")
    }
    assert all(score_PG.shape == (6, 5) for score_PG in scores.values())


# ---------------------------------------------------------------------- what a score is worth


def world(n_groups: int = 150, seed: int = 0) -> SimpleNamespace:
    """Sound rollouts are likelier, and higher in a second signal that has nothing to do with likelihood."""
    rng = np.random.default_rng(seed)
    sound_PG = rng.random((n_groups, 8)) < 0.5
    likelihood_PG = rng.normal(size=sound_PG.shape) + 1.0 * sound_PG - 3
    other_PG = rng.normal(size=sound_PG.shape) + 1.0 * sound_PG
    pairs = make_pairs(sound_PG, ~sound_PG, np.ones(n_groups, dtype=bool))
    beside = BesideLikelihood(likelihood_PG, pairs)
    return SimpleNamespace(
        likelihood_PG=likelihood_PG, other_PG=other_PG, sound_PG=sound_PG, pairs=pairs, beside=beside, rng=rng,
        row=lambda score_PG: table_row(score_PG, pairs, beside, Bootstrap(pairs)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def some_world() -> SimpleNamespace:
    return world()


def test_auroc_is_that_of_the_library(some_world):
    score_PG = some_world.other_PG.round()  # with ties
    sums = sound_against_lucky(*map(torch.tensor, (score_PG, some_world.sound_PG, ~some_world.sound_PG)))
    expected = (sums[0] / sums[2]).item()
    assert some_world.row(score_PG)["auroc"] == pytest.approx(expected, abs=1e-6)


def test_pairs_are_of_groups_that_count():
    sound_PG, lucky_PG = (
        np.array([[1, 0, 0], [1, 1, 0], [1, 0, 0]], bool),
        np.array([[0, 1, 0], [0, 0, 1], [0, 0, 0]], bool),
    )
    pairs = make_pairs(sound_PG, lucky_PG, np.array([False, True, True]))
    assert pairs.groups.tolist() == [1] and pairs.group_N.tolist() == [0, 0]
    assert pairs.values(np.arange(9).reshape(3, 3)).tolist() == [[3, 5], [4, 5]]


def test_ties_and_missing_scores_count_a_half():
    assert ranked(np.array([[1, 0], [0, 1], [1, 1], [np.nan, 1], [1, np.nan]])).tolist() == [1, 0, 0.5, 0.5, 0.5]
    assert ranked(np.full((2, 2), np.nan)).tolist() == [0.5, 0.5]


def test_bootstrap_is_over_groups(some_world):
    ranked_N = ranked(some_world.pairs.values(some_world.other_PG))
    mean, low, high = Bootstrap(some_world.pairs).mean(ranked_N)
    rng, resampled = np.random.default_rng(1), []
    by_group = [ranked_N[some_world.pairs.group_N == group] for group in range(some_world.pairs.n_groups)]
    for _ in range(1000):
        resampled.append(np.concatenate([by_group[g] for g in rng.integers(len(by_group), size=len(by_group))]).mean())
    assert mean == pytest.approx(ranked_N.mean())
    assert (low, high) == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.01)
    assert Bootstrap(some_world.pairs).mean(ranked_N) == (mean, low, high)  # seeded
    assert all(map(math.isnan, Bootstrap(some_world.pairs).mean(ranked_N, np.zeros(len(ranked_N), dtype=bool))))


@pytest.mark.parametrize(
    "function", [np.exp, np.negative, lambda x: -(x**2), np.arctan], ids=["exp", "negative", "square", "arctan"]
)
def test_a_function_of_likelihood_adds_nothing(some_world, function):
    row = some_world.row(function(some_world.likelihood_PG))
    assert abs(row["gain"]) < 0.01 and row["gain_low"] <= 0.005
    assert 0.70 < row["combined"] < 0.80


def test_another_signal_adds_in_either_sign(some_world):
    for sign in (1, -1):
        row = some_world.row(sign * some_world.other_PG)
        assert row["gain_low"] > 0.05 and row["gain"] < 0.15
        assert row["combined"] == pytest.approx(row["gain"] + some_world.row(some_world.other_PG * 0)["combined"])
    assert (some_world.row(some_world.other_PG)["matched"] - 0.75) < 0.05  # as if there were no likelihood
    assert some_world.row(-some_world.other_PG)["auroc"] < 0.3


def test_noise_and_gaps_add_nothing(some_world):
    noise_PG = some_world.rng.normal(size=some_world.likelihood_PG.shape)
    assert some_world.row(noise_PG)["gain_high"] < 0.02
    assert all(map(math.isnan, some_world.row(np.full_like(noise_PG, np.nan)).values()))


def test_groups_without_the_score_are_left_out(some_world):
    some_PG = some_world.other_PG.copy()
    some_PG[75:] = np.nan
    few = world(75)
    sums = sound_against_lucky(*map(torch.tensor, (some_PG[:75], some_world.sound_PG[:75], ~some_world.sound_PG[:75])))
    assert some_world.row(some_PG)["auroc"] == pytest.approx((sums[0] / sums[2]).item(), abs=1e-6)
    assert some_world.row(some_PG)["gain_low"] > 0.03 and few.row(few.other_PG)["gain_low"] > 0.03


def test_no_pairs_no_figures():
    none = np.zeros((3, 4), dtype=bool)
    pairs = make_pairs(none, none, none.any(1))
    row = table_row(np.zeros((3, 4)), pairs, BesideLikelihood(np.zeros((3, 4)), pairs), Bootstrap(pairs))
    assert all(map(math.isnan, row.values()))


# ---------------------------------------------------------------------- the page


def test_a_table_is_written_and_read(tmp_path):
    row = {
        "score": "length",
        "auroc": 0.71234,
        "auroc_low": 0.6,
        "auroc_high": 0.8,
        "gain": float("nan"),
        "gain_low": None,
    }
    report.write_table({"some": [row]}, tmp_path / "results.csv")
    assert report.read_table(tmp_path / "results.csv") == {
        "some": {"length": {"auroc": 0.712, "auroc_low": 0.6, "auroc_high": 0.8}}
    }


def test_figures_away_from_chance_are_bold():
    row = {"auroc": 0.2, "auroc_low": 0.1, "auroc_high": 0.3, "gain": 0.01, "gain_low": -0.01, "gain_high": 0.03}
    assert report.interval(row, "auroc") == "**0.20** [0.10, 0.30]"
    assert report.interval(row, "gain", signed=True) == "+0.01 [−0.01, +0.03]"
    assert report.interval(row, "matched") == "–"


def test_the_page_is_that_of_the_results():
    assert (report.DOCS / report.PAGE).read_text() == report.make_page(report.HERE), (
        "run `python -m experiments.readouts --report_only --publish`, or `report.make_page`"
    )
