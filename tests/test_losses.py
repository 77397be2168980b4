"""The contrastive loss against measured vectors of the reference, a float64 double loop, and its properties."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipo_trl import ContrastiveHead, agreement_score, contrastive_loss, contrastive_reward
from clipo_trl.config import ANCHORS, LEVELS, LOSS_TYPES, SIMILARITIES
from clipo_trl.losses import _draw, _share_of, log_positives


GOLDEN = Path(__file__).parent / "golden"
GOLDEN_NAMES = {
    "infonce_loss": "infonce",
    "supcon_loss_out": "supcon_out",
    "supcon_loss_in": "supcon_in",
    "soft_nn_loss": "soft_nn",
    "cosine_distance": "cosine",  # the reference's "distance" is a similarity
    "l2_distance": "l2",
    "-cosine_distance": "negative_cosine",
    0: "correct",
    1: "incorrect",
    -1: "all",
}
GOLDEN_CASES = json.loads((GOLDEN / "contrastive_loss.json").read_text())


def make_batch(n_groups=4, group_size=6, dim=8, seed=0, spread=0.3, p_correct=0.6):
    """Unit embeddings (P, G, D) with cosines where real ones lie, float64, and labels (P, G)."""
    rng = torch.Generator().manual_seed(seed)
    center = torch.randn(dim, generator=rng, dtype=torch.float64)
    noise = torch.randn(n_groups, group_size, dim, generator=rng, dtype=torch.float64)
    embeddings = torch.nn.functional.normalize(center / center.norm() + spread * noise, dim=-1)
    return embeddings, torch.rand(n_groups, group_size, generator=rng) < p_correct


def loop_loss(embeddings, correct, valid, loss_type, similarity, temperature, level, anchors):
    """The table of the method, pair by pair. Returns {(p, g): loss}, and for infonce {(p, g): [loss per positive]}."""
    P, G = correct.shape
    rollouts = [(p, g) for p in range(P) for g in range(G) if valid[p, g]]

    def logit(i, a):
        cosine = float(np.dot(embeddings[i].numpy(), embeddings[a].numpy()))
        value = {"cosine": cosine, "negative_cosine": -cosine, "l2": 1 - math.sqrt(max(2 - 2 * cosine, 0))}
        return value[similarity] / temperature

    losses = {}
    for i in rollouts:
        if anchors != "all" and bool(correct[i]) != (anchors == "correct"):
            continue
        others = [a for a in rollouts if a != i and (level != "group" or a[0] == i[0])]
        positives = [a for a in others if correct[a] == correct[i] and (level == "batch" or a[0] == i[0])]
        if not positives or len(positives) == len(others):
            continue
        total = sum(math.exp(logit(i, a)) for a in others)
        shares = [math.exp(logit(i, p)) / total for p in positives]
        if loss_type == "infonce":
            losses[i] = [-math.log(share) for share in shares]
        elif loss_type == "supcon_out":
            losses[i] = -sum(math.log(share) for share in shares) / len(shares)
        else:
            losses[i] = -math.log(sum(shares) / (len(shares) if loss_type == "supcon_in" else 1))
    return losses


@pytest.mark.parametrize("case", GOLDEN_CASES, ids=lambda case: str(case["case"]))
def test_golden(case):
    with np.load(GOLDEN / "contrastive_loss.npz") as arrays:
        expected = {
            name: torch.from_numpy(arrays[f"{case['case']}/{name}"])
            for name in ("embeddings", "labels", "group_ids", "per_sample_loss", "loss", "grad", "contrastive_rewards")
        }
    P, G = case["n_groups"], case["G"]
    assert expected["group_ids"].view(P, G).eq(expected["group_ids"].view(P, G)[:, :1]).all()
    embeddings = expected["embeddings"].float().view(P, G, -1).requires_grad_()
    correct = expected["labels"].view(P, G) > 0

    loss, is_anchor = contrastive_loss(
        embeddings,
        correct,
        loss_type=GOLDEN_NAMES[case["loss"]],
        similarity=GOLDEN_NAMES[case["dist"]],
        temperature=case["tau"],
        level=case["level"],
        anchors=GOLDEN_NAMES[case["masked"]],
    )
    head_loss = loss.sum() / is_anchor.sum().clamp(min=1)
    head_loss.backward()
    reward = contrastive_reward(loss, correct, weight=case["lam"], offset=case["constant"])

    torch.testing.assert_close(loss.flatten(), expected["per_sample_loss"].float(), atol=5e-4, rtol=0)
    torch.testing.assert_close(head_loss, expected["loss"].float(), atol=5e-4, rtol=0)
    torch.testing.assert_close(reward.flatten(), expected["contrastive_rewards"].float(), atol=5e-4, rtol=0)
    gradient = expected["grad"].float()
    error = (embeddings.grad.flatten(0, 1) - gradient).abs().max()
    assert error <= 1e-3 * gradient.abs().max()


@pytest.mark.parametrize("anchors", ANCHORS)
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_agrees_with_a_double_loop(loss_type, similarity, level, anchors, monkeypatch):
    monkeypatch.setattr("clipo_trl.losses._ROWS_PER_BLOCK", 7)  # several blocks, the last one smaller
    embeddings, correct = make_batch()
    valid = torch.rand(correct.shape, generator=torch.Generator().manual_seed(5)) < 0.85
    settings = {"loss_type": loss_type, "similarity": similarity, "level": level, "anchors": anchors}
    loss, is_anchor = contrastive_loss(embeddings, correct, valid_PG=valid, temperature=0.1, **settings)
    expected = loop_loss(embeddings, correct, valid, temperature=0.1, **settings)

    assert {tuple(index) for index in is_anchor.nonzero().tolist()} == set(expected)
    assert loss[~is_anchor].eq(0).all()
    for index, value in expected.items():
        if loss_type == "infonce":  # one of the positives, whichever was drawn
            assert min(abs(loss[index].item() - one) for one in value) < 1e-9
        else:
            assert loss[index].item() == pytest.approx(value, abs=1e-9)


@pytest.mark.parametrize("level", LEVELS)
def test_infonce_is_supcon_out_on_average(level):
    embeddings, correct = make_batch(n_groups=3, group_size=5)
    generator = torch.Generator().manual_seed(0)
    n_draws = 4000
    total = torch.zeros_like(correct, dtype=torch.float64)
    for _ in range(n_draws):
        total += contrastive_loss(
            embeddings, correct, temperature=0.5, level=level, anchors="all", generator=generator
        )[0]
    expected, is_anchor = contrastive_loss(
        embeddings, correct, loss_type="supcon_out", temperature=0.5, level=level, anchors="all"
    )
    assert is_anchor.any()
    torch.testing.assert_close(total / n_draws, expected, atol=0.03, rtol=0)


def test_infonce_draws_every_positive_equally_often():
    embeddings, correct = make_batch(n_groups=1, group_size=6, p_correct=1.0)
    correct[0, 5] = False
    positives = loop_loss(embeddings, correct, correct | True, "infonce", "cosine", 0.5, "group", "correct")[0, 0]
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(len(positives))
    for _ in range(2000):
        loss, _ = contrastive_loss(embeddings, correct, temperature=0.5, generator=generator)
        counts[int(np.argmin([abs(loss[0, 0].item() - one) for one in positives]))] += 1
    assert (counts / 2000 - 1 / len(positives)).abs().max() < 0.04


def test_infonce_draw_uses_only_its_generator():
    embeddings, correct = make_batch(group_size=16)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = contrastive_loss(embeddings, correct, generator=torch.Generator().manual_seed(3))[0]
    again = contrastive_loss(embeddings, correct, generator=torch.Generator().manual_seed(3))[0]
    other = contrastive_loss(embeddings, correct, generator=torch.Generator().manual_seed(4))[0]
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("loss_type", ["supcon_out", "supcon_in", "soft_nn"])
def test_order_inside_a_group_does_not_matter(loss_type):
    embeddings, correct = make_batch()
    order = torch.randperm(correct.size(1), generator=torch.Generator().manual_seed(0))
    loss, is_anchor = contrastive_loss(embeddings, correct, loss_type=loss_type)
    shuffled, shuffled_anchor = contrastive_loss(embeddings[:, order], correct[:, order], loss_type=loss_type)
    torch.testing.assert_close(shuffled, loss[:, order])
    assert torch.equal(shuffled_anchor, is_anchor[:, order])


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
@pytest.mark.parametrize("case", ["all_right", "all_wrong", "single_right", "all_invalid"])
def test_degenerate_batches_give_zero_and_a_working_backward(case, loss_type, similarity, level):
    embeddings, correct = make_batch(n_groups=1)  # with several, other groups are negatives at level cross
    correct[:] = case in ("all_right", "all_invalid")
    if case == "single_right":
        correct[0, 2] = True
    valid = torch.full_like(correct, case != "all_invalid")
    embeddings.requires_grad_()
    loss, is_anchor = contrastive_loss(
        embeddings, correct, valid_PG=valid, loss_type=loss_type, similarity=similarity, level=level
    )
    assert not is_anchor.any() and loss.eq(0).all()
    loss.sum().backward()
    assert embeddings.grad.eq(0).all()


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_identical_embeddings_have_finite_gradients(loss_type, similarity):
    embeddings, correct = make_batch()
    embeddings = embeddings[:, :1].expand_as(embeddings).clone().requires_grad_()
    loss, _ = contrastive_loss(embeddings, correct, loss_type=loss_type, similarity=similarity)
    loss.sum().backward()
    assert loss.isfinite().all() and embeddings.grad.isfinite().all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 7.0])
def test_an_invalid_rollout_has_no_influence(bad, level):
    embeddings, correct = make_batch()
    valid = torch.ones_like(correct)
    valid[0, 0] = valid[2, 3] = False
    settings = {"valid_PG": valid, "loss_type": "supcon_out", "level": level}
    clean = embeddings.clone().requires_grad_()
    expected, _ = contrastive_loss(clean, correct, **settings)
    expected.sum().backward()
    dirty = embeddings.clone()
    dirty[0, 0] = dirty[2, 3] = bad
    dirty.requires_grad_()
    loss, is_anchor = contrastive_loss(dirty, correct, **settings)
    loss.sum().backward()
    assert not is_anchor[0, 0] and not is_anchor[2, 3]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(dirty.grad, clean.grad)
    assert dirty.grad[0, 0].eq(0).all()


def test_positives_in_one_point_cost_log_of_their_number_but_not_in_soft_nn():
    correct = torch.tensor([[True] * 5 + [False]])
    embeddings = torch.zeros(1, 6, 3, dtype=torch.float64)
    embeddings[0, :5, 0] = 1.0
    embeddings[0, 5, 0] = -1.0  # far away: exp(-2 / tau) is nothing
    for loss_type in ("infonce", "supcon_out", "supcon_in"):
        loss, _ = contrastive_loss(embeddings, correct, loss_type=loss_type)
        torch.testing.assert_close(loss[0, :5], torch.full((5,), math.log(4), dtype=torch.float64))
    loss, _ = contrastive_loss(embeddings, correct, loss_type="soft_nn")
    torch.testing.assert_close(loss[0, :5], torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize("level", ["cross", "batch"])
def test_blocks_of_rows_change_nothing(level, monkeypatch):
    embeddings, correct = make_batch(n_groups=8)
    results = []
    for rows in (5, 10_000):
        monkeypatch.setattr("clipo_trl.losses._ROWS_PER_BLOCK", rows)
        leaf = embeddings.clone().requires_grad_()
        loss, _ = contrastive_loss(leaf, correct, level=level, generator=torch.Generator().manual_seed(0))
        loss.sum().backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0},
        {"temperature": -1.0},
        {"loss_type": "triplet"},
        {"similarity": "dot"},
        {"level": "prompt"},
        {"anchors": "none"},
    ],
    ids=str,
)
def test_wrong_arguments_are_named(settings):
    embeddings, correct = make_batch()
    with pytest.raises(ValueError, match=next(iter(settings))):
        contrastive_loss(embeddings, correct, **settings)


def test_wrong_shapes_are_named():
    embeddings, correct = make_batch()
    with pytest.raises(ValueError, match="embeddings_PGD"):
        contrastive_loss(embeddings.flatten(0, 1), correct)
    with pytest.raises(ValueError, match="embeddings_PGD"):
        contrastive_loss(embeddings, correct[:, 1:])


# ---------------------------------------------------------------------- devices


class Watch(TorchDispatchMode):
    """Calls `look(operation, results)` at each operation, those of a backward pass included."""

    def __init__(self, look):
        super().__init__()
        self._look = look

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        self._look(func, [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)])
        return results


def refuse_float64(func, results):
    for tensor in results:
        assert tensor.device.type == "cpu" or tensor.dtype != torch.float64, f"{func}: this device has no float64"


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_device_without_float64_will_do(loss_type, level):
    """`meta` stands in for it: head, loss, agreement and reward, and back."""
    head = ContrastiveHead(12, 7, debias="mean_subtract").to("meta")
    correct = torch.ones(3, 4, dtype=torch.bool, device="meta")
    with Watch(refuse_float64):
        embeddings = head(torch.empty(12, 12, device="meta")).view(3, 4, 7)
        loss, _ = contrastive_loss(embeddings, correct, loss_type=loss_type, level=level)
        agreement_score(embeddings, correct)
        contrastive_reward(loss, correct)
        loss.sum().backward()
        head.fingerprint()
    assert loss.device.type == "meta"
    with pytest.raises(AssertionError, match="no float64"), Watch(refuse_float64):
        torch.zeros(1, dtype=torch.float64).to("meta")


def test_the_positive_is_the_one_that_float64_would_draw():
    draws = torch.rand(2000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws[:2] = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)  # the ends of the range
    as_integers = (draws * 2**53).long()
    for n in range(1, 3000):
        n_positives = torch.full((len(draws),), n)
        expected = (draws * n_positives).long().clamp(max=n_positives - 1)
        assert torch.equal(_share_of(n_positives, as_integers), expected)


@pytest.mark.parametrize("n", [1, 3, 16, 4095, 10**6])
def test_the_draw_is_exact_at_the_edges(n):
    edges = [-(-i * 2**53 // n) + step for i in (1, n // 2, n) for step in (-1, 0)]
    draws = [edge for edge in edges if 0 <= edge < 2**53]
    assert _share_of(torch.full((len(draws),), n), torch.tensor(draws)).tolist() == [d * n >> 53 for d in draws]


@pytest.fixture
def tf32():
    """TF32 (on a CPU: bfloat16) allowed, as `torch.set_float32_matmul_precision("medium")` does."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("level", LEVELS)
def test_tf32_reaches_neither_head_nor_loss(level, tf32):
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    seen = []

    def look(func, results):
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
            seen.append([backend.fp32_precision for backend in backends])

    head = ContrastiveHead(12, 7, "mlp")
    correct = torch.arange(12).view(3, 4) % 4 > 1
    with Watch(look):
        embeddings = head(torch.randn(12, 12)).view(3, 4, 7)
        contrastive_loss(embeddings, correct, level=level)[0].sum().backward()
    assert len(seen) >= 8 and all(precisions == ["ieee", "ieee"] for precisions in seen)
    assert [backend.fp32_precision for backend in backends] == ["tf32", "bf16"]
    assert torch.get_float32_matmul_precision() == "medium" and torch.backends.cuda.matmul.allow_tf32


def test_the_switches_of_float32_are_left_as_they_were():
    """Also the new one above them all, which a matrix product follows: transformers' `tf32=True` turns that."""
    matmul, everything = torch.backends.cuda.matmul, torch.backends
    before = matmul.fp32_precision, everything.fp32_precision
    try:
        matmul.fp32_precision, everything.fp32_precision = "none", "tf32"
        ContrastiveHead(12, 7)(torch.randn(2, 12))
        assert matmul.fp32_precision == "tf32"
        everything.fp32_precision = "ieee"
        assert matmul.fp32_precision == "ieee"
    finally:
        matmul.fp32_precision, everything.fp32_precision = before


def test_autocast_does_not_reach_the_loss():
    embeddings, correct = make_batch()
    results = []
    for enabled in (False, True):
        leaf = embeddings.float().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss, _ = contrastive_loss(leaf, correct, loss_type="supcon_out")
            loss.sum().backward()
        results.append((loss.detach(), leaf.grad))
    assert all(torch.equal(here, there) for here, there in zip(*results, strict=True))


# ---------------------------------------------------------------------- beyond the paper: baseline, k positives


def one_point(n_correct, group_size, cosine=0.0):
    """A group whose correct rollouts are in one point, the wrong ones in another, at this cosine (1, G, 2)."""
    correct = torch.arange(group_size).unsqueeze(0) < n_correct
    apart = torch.tensor([cosine, math.sqrt(1 - cosine**2)])
    return torch.where(correct.unsqueeze(-1), torch.tensor([1.0, 0.0]), apart), correct


@pytest.mark.parametrize("loss_type", ["infonce", "supcon_out", "supcon_in"])
@pytest.mark.parametrize("n_correct", range(2, 16))
def test_a_group_in_one_point_pays_nothing_above_the_baseline(loss_type, n_correct):
    """Whatever its size; without the baseline its reward sinks with the size, down to the floor."""
    embeddings, correct = one_point(n_correct, 16)
    loss, is_anchor = contrastive_loss(embeddings, correct, loss_type=loss_type)
    baseline = log_positives(correct, is_anchor, torch.ones_like(correct))
    torch.testing.assert_close(loss - baseline, torch.zeros(1, 16), atol=1e-5, rtol=0)
    reward = contrastive_reward(loss - baseline, correct)
    torch.testing.assert_close(reward, torch.zeros(1, 16), atol=1e-5, rtol=0)
    on_floor = contrastive_reward(loss, correct)[correct] == -0.5
    assert on_floor.all() if n_correct >= 14 else not on_floor.any()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("anchors", ANCHORS)
def test_the_baseline_is_the_least_that_supcon_costs(level, anchors):
    embeddings, correct = make_batch()
    valid = torch.rand(correct.shape, generator=torch.Generator().manual_seed(5)) < 0.85
    settings = {"valid_PG": valid, "level": level, "anchors": anchors, "temperature": 0.1}
    losses = {
        name: contrastive_loss(embeddings, correct, loss_type=name, **settings)
        for name in ("supcon_out", "supcon_in", "soft_nn")
    }
    is_anchor = losses["soft_nn"][1]
    baseline = log_positives(correct, is_anchor, valid, level)
    assert baseline[~is_anchor].eq(0).all()
    assert (losses["supcon_out"][0] - baseline)[is_anchor].min() > 0
    # SupCon with the mean inside differs from SoftNN by the baseline alone.
    torch.testing.assert_close(losses["supcon_in"][0] - baseline, losses["soft_nn"][0], atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="`level` is 'prompt'"):
        log_positives(correct, is_anchor, valid, "prompt")


@pytest.mark.parametrize("level", LEVELS)
def test_from_one_drawn_positive_to_supcon(level):
    """All: SupCon, bit for bit, whatever is drawn. One: the loss of the paper, draw by draw."""
    embeddings, correct = make_batch()

    def loss(seed=0, **settings):
        generator = torch.Generator().manual_seed(seed)
        return contrastive_loss(embeddings, correct, level=level, generator=generator, **settings)[0]

    for k in (correct.numel() - 1, 10**9):
        assert torch.equal(loss(num_positives=k), loss(loss_type="supcon_out"))
    assert torch.equal(loss(num_positives=1), loss())
    assert not torch.equal(loss(num_positives=2), loss()) and not torch.equal(
        loss(2, num_positives=2), loss(num_positives=2)
    )
    with pytest.raises(ValueError, match="`num_positives` is 0"):
        loss(num_positives=0)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 12])
def test_k_different_positives_each_with_the_same_chance(n, k):
    """Counted over evenly spread draws: each of the n positives is chosen in k of n, never twice."""
    positive = torch.zeros(n, 20, dtype=torch.bool)
    positive[:, torch.randperm(20, generator=torch.Generator().manual_seed(n))[:n]] = True
    draws = (torch.arange(n) * 2**53 + 2**52) // n  # one in the middle of each n-th
    chosen = _draw(positive, positive.sum(-1), draws, k)
    assert not (chosen & ~positive).any()
    assert chosen.sum(-1).tolist() == [min(k, n)] * n
    assert chosen.sum(0)[positive[0]].tolist() == [min(k, n)] * n


def test_the_loss_of_k_positives_is_supcon_on_average_and_less_noisy():
    embeddings, correct = make_batch(n_groups=3, group_size=12)
    expected, is_anchor = contrastive_loss(embeddings, correct, loss_type="supcon_out", temperature=0.2)
    spreads = []
    for k in (1, 3, 6):
        generator = torch.Generator().manual_seed(0)
        draws = torch.stack(
            [
                contrastive_loss(embeddings, correct, num_positives=k, temperature=0.2, generator=generator)[0]
                for _ in range(400)
            ]
        )
        torch.testing.assert_close(draws.mean(0), expected, atol=0.2, rtol=0)
        spreads.append(draws.std(0)[is_anchor].mean().item())
    assert spreads[0] > 1.5 * spreads[1] > 1.5 * spreads[2]
