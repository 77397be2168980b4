"""The head: shapes, unit length, debias, saving, and that it leaves the global random state alone."""

import os

import pytest
import torch

from clipo_trl import ContrastiveHead
from clipo_trl.head import HEAD_FOLDER, load_head


POOLED = torch.randn(5, 12, generator=torch.Generator().manual_seed(0)) + 3.0


@pytest.mark.parametrize("head_type, n_parameters", [("linear", 12 * 7), ("mlp", 12 * 12 + 12 * 7)])
def test_unit_embeddings_without_bias(head_type, n_parameters):
    head = ContrastiveHead(12, 7, head_type)
    embeddings = head(POOLED.bfloat16())
    assert embeddings.shape == (5, 7) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(5))
    assert sum(parameter.numel() for parameter in head.parameters()) == n_parameters


def test_computes_what_it_says():
    linear, mlp = ContrastiveHead(12, 7), ContrastiveHead(12, 7, "mlp")
    expected = POOLED @ linear.layers[0].weight.T
    torch.testing.assert_close(linear(POOLED), expected / expected.norm(dim=-1, keepdim=True))
    expected = (POOLED @ mlp.layers[0].weight.T).clamp(min=0) @ mlp.layers[1].weight.T
    torch.testing.assert_close(mlp(POOLED), expected / expected.norm(dim=-1, keepdim=True))


def test_debias():
    head = ContrastiveHead(12, 7)
    layer_norm, mean_subtract = (
        ContrastiveHead(12, 7, debias="layer_norm"),
        ContrastiveHead(12, 7, debias="mean_subtract"),
    )
    centered = POOLED - POOLED.mean(1, keepdim=True)
    torch.testing.assert_close(
        layer_norm(POOLED), head(centered / (centered.pow(2).mean(1, keepdim=True) + 1e-5).sqrt())
    )
    torch.testing.assert_close(mean_subtract(POOLED), head(POOLED - POOLED.mean(0)))
    torch.testing.assert_close(mean_subtract(POOLED, mean_H=torch.ones(12)), head(POOLED - 1.0))
    assert not torch.allclose(head(POOLED), mean_subtract(POOLED))
    group_center = ContrastiveHead(12, 7, debias="group_center")
    torch.testing.assert_close(group_center(POOLED), head(POOLED - POOLED.mean(0)))  # these rows are the group
    each = torch.arange(60.0).view(5, 12)
    torch.testing.assert_close(group_center(POOLED, mean_H=each), head(POOLED - each))


def test_initial_weights_follow_the_seed_and_not_the_global_generator():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = ContrastiveHead(12, 7), ContrastiveHead(12, 7), ContrastiveHead(12, 7, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.layers[0].weight, again.layers[0].weight)
    assert not torch.equal(first.layers[0].weight, other.layers[0].weight)
    assert first.layers[0].weight.abs().max() <= 12**-0.5  # as `nn.Linear` draws them


def test_a_zero_state_has_finite_gradients():
    head = ContrastiveHead(12, 7)
    head(torch.zeros(2, 12)).sum().backward()
    assert head.layers[0].weight.grad.isfinite().all()


@pytest.mark.parametrize("settings", [{"head_type": "mlp"}, {"debias": "mean_subtract"}, {}], ids=str)
def test_saved_and_loaded_heads_are_the_same(tmp_path, settings):
    head = ContrastiveHead(12, 7, seed=3, **settings)
    head.save_pretrained(tmp_path / HEAD_FOLDER)
    assert {path.name for path in (tmp_path / HEAD_FOLDER).iterdir()} >= {"config.json", "model.safetensors"}
    for path in (tmp_path, tmp_path / HEAD_FOLDER):  # the model's folder, or the head's own
        loaded = load_head(str(path), hidden_size=12)
        assert torch.equal(loaded(POOLED), head(POOLED))
        assert (loaded.head_type, loaded.debias) == (head.head_type, head.debias)


@pytest.mark.parametrize("in_a_policy", [True, False])
def test_a_head_on_the_hub_is_found(tmp_path, monkeypatch, in_a_policy):
    head = ContrastiveHead(12, 7, seed=3)
    head.save_pretrained(tmp_path / HEAD_FOLDER if in_a_policy else tmp_path / "elsewhere")
    monkeypatch.setattr("clipo_trl.head.snapshot_download", lambda *args, **kwargs: str(tmp_path))
    from_pretrained = ContrastiveHead.from_pretrained
    monkeypatch.setattr(
        ContrastiveHead,
        "from_pretrained",
        lambda path, **kwargs: from_pretrained(tmp_path / "elsewhere" if path == "user/head" else path, **kwargs),
    )
    assert torch.equal(load_head("user/head", hidden_size=12)(POOLED), head(POOLED))


def test_a_head_that_was_not_written_to_its_end_does_not_load(tmp_path, monkeypatch):
    ContrastiveHead(12, 7).save_into(tmp_path)
    replace, calls = os.replace, []

    def stops(source, target):
        if calls:
            raise OSError("stopped")
        calls.append(replace(source, target))

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(OSError, match="stopped"):
        ContrastiveHead(12, 7, debias="layer_norm").save_into(tmp_path)  # other numbers, the same shapes
    with pytest.raises(ValueError, match="no head could be loaded"):
        load_head(str(tmp_path), hidden_size=12)


def test_wrong_width_is_named(tmp_path):
    ContrastiveHead(12, 7).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="hidden size 12.*hidden size is 16"):
        load_head(str(tmp_path), hidden_size=16)
    with pytest.raises(ValueError, match="pooled_BH"):
        ContrastiveHead(16)(POOLED)


def test_a_missing_head_is_named(tmp_path):
    with pytest.raises(ValueError, match="contrastive_head_path"):
        load_head(str(tmp_path), hidden_size=12)


@pytest.mark.parametrize(
    "settings", [{"embedding_dim": 0}, {"hidden_size": -1}, {"head_type": "conv"}, {"debias": "pca"}], ids=str
)
def test_wrong_arguments_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ContrastiveHead(**{"hidden_size": 12, **settings})
