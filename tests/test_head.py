"""The head: shapes, unit length, debias, saving and loading, and that it leaves the global random state alone."""

import json
import os
import shutil

import pytest
import torch
from huggingface_hub.utils import filter_repo_objects
from recording import assert_right, record
from safetensors.torch import load_file, save_file
from test_trainer import make
from tiny_models import tiny_config, tiny_model

from clipo_trl import ContrastiveHead
from clipo_trl.head import HEAD_FOLDER, load_head, resolve_saved_head


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


class Hub:
    """Stands in for the Hub: one repository, and the names of the files that were downloaded."""

    def __init__(self, folder):
        self.repository, self.cache, self.fetched = folder / "repository", folder / "cache", set()

    def snapshot_download(self, repo_id, *, allow_patterns, revision=None):
        assert (repo_id, revision) == ("user/policy", "main")
        files = [str(path.relative_to(self.repository)) for path in self.repository.rglob("*") if path.is_file()]
        for name in filter_repo_objects(files, allow_patterns=allow_patterns):
            (self.cache / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.repository / name, self.cache / name)
            self.fetched.add(name)
        return str(self.cache)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    hub = Hub(tmp_path)
    monkeypatch.setattr("clipo_trl.head.snapshot_download", hub.snapshot_download)
    return hub


POLICY_AND_HEAD = {"config.json", f"{HEAD_FOLDER}/config.json", f"{HEAD_FOLDER}/model.safetensors"}


@pytest.mark.parametrize(
    "place, subfolder, fetched",
    [
        (HEAD_FOLDER, "", POLICY_AND_HEAD),
        (HEAD_FOLDER, HEAD_FOLDER, POLICY_AND_HEAD - {"config.json"}),
        ("", "", {"config.json", "model.safetensors"}),
        (f"checkpoint-5/{HEAD_FOLDER}", "checkpoint-5", {f"checkpoint-5/{name}" for name in POLICY_AND_HEAD}),
    ],
)
def test_a_head_is_found_in_a_folder_and_on_the_hub(place, subfolder, fetched, hub):
    """The files of a policy are beside it; of them only the configuration travels."""
    head = ContrastiveHead(12, 7, seed=3)
    if place:
        tiny_model().save_pretrained((hub.repository / place).parent)
    head.save_pretrained(hub.repository / place)
    local = ContrastiveHead.from_pretrained(hub.repository, subfolder=subfolder)
    remote = ContrastiveHead.from_pretrained("user/policy", subfolder=subfolder, revision="main")
    assert torch.equal(local(POOLED), head(POOLED)) and torch.equal(remote(POOLED), head(POOLED))
    assert {name for name in hub.fetched if not name.endswith("README.md")} == fetched


@pytest.mark.parametrize("on_the_hub", [True, False])
def test_a_policy_without_a_head_is_refused(on_the_hub, hub):
    """Its configuration names a hidden size, too."""
    tiny_model().save_pretrained(hub.repository)
    path, options = ("user/policy", {"revision": "main"}) if on_the_hub else (hub.repository, {})
    with pytest.raises(
        ValueError, match="`pretrained_model_name_or_path` is .*no head .*it has no .*'embedding_dim'.* Give"
    ):
        ContrastiveHead.from_pretrained(path, **options)
    assert hub.fetched <= {"config.json"}  # not its weights


def test_an_unknown_place_is_refused(tmp_path):
    for path in (tmp_path / "nowhere", "no such/id/at all", ""):
        with pytest.raises(ValueError, match="`pretrained_model_name_or_path` is .*no head could be loaded"):
            ContrastiveHead.from_pretrained(path)
    ContrastiveHead(12, 7).save_into(tmp_path)
    with pytest.raises(ValueError, match="subfolder='checkpoint-5'"):
        ContrastiveHead.from_pretrained(tmp_path, subfolder="checkpoint-5")


@pytest.mark.parametrize(
    "damage", ["missing", "surplus", "misshapen", "surplus mean", "misshapen mean", "later version"]
)
def test_a_head_is_loaded_whole_or_not_at_all(damage, tmp_path):
    head = ContrastiveHead(12, 7, "mlp", debias=None if damage == "surplus mean" else "mean_subtract")
    head.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    if damage == "missing":
        del weights["layers.0.weight"]
    elif damage == "surplus":
        weights["layers.2.weight"] = torch.zeros(7, 12)
    elif damage == "misshapen":
        weights["layers.1.weight"] = torch.zeros(8, 12)
    elif "mean" in damage:
        weights["mean_H"] = torch.zeros(12 if damage == "surplus mean" else 13)
    else:
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "whiten": True}))
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="no head could be loaded"):
        ContrastiveHead.from_pretrained(tmp_path)


def save_as_version_0_1_0(head, folder):
    """As that version wrote it: without `pooling`, `layer` and a mean."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("hidden_size", "embedding_dim", "head_type", "debias")
    config = {**{name: getattr(head, name) for name in names}, "seed": 0}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(head.named_parameters()), folder / "model.safetensors")


@pytest.mark.parametrize("debias", [None, "mean_subtract"])
def test_a_head_of_version_0_1_0_loads(debias, tmp_path):
    head = ContrastiveHead(12, 7, "mlp", debias, seed=3)
    save_as_version_0_1_0(head, tmp_path / HEAD_FOLDER)
    loaded = ContrastiveHead.from_pretrained(tmp_path)
    assert torch.equal(loaded(POOLED), head(POOLED)) and loaded.mean_H is None
    assert (loaded.pooling, loaded.layer) == ("mean", -1)
    told = ContrastiveHead.from_pretrained(tmp_path, pooling="last", layer=3)  # what the file does not say
    told.save_pretrained(tmp_path / "again")
    again = ContrastiveHead.from_pretrained(tmp_path / "again")
    assert (again.pooling, again.layer) == ("last", 3)
    with pytest.raises(ValueError, match="`pooling` was given as 'mean', but the head was saved with 'last'"):
        ContrastiveHead.from_pretrained(tmp_path / "again", pooling="mean")


# ---------------------------------------------------------------------- the mean of `mean_subtract`


def test_the_mean_of_training_is_kept_for_rollouts_that_come_alone(tmp_path):
    head = ContrastiveHead(12, 7, debias="mean_subtract")
    mean_H = torch.arange(12.0)
    in_training = head(POOLED, mean_H)
    assert torch.equal(head.mean_H, mean_H) and not list(head.buffers())[0].requires_grad
    head.eval()
    head(POOLED, mean_H + 1)  # what is embedded later leaves it alone
    head.save_pretrained(tmp_path)
    loaded = ContrastiveHead.from_pretrained(tmp_path)
    alone = torch.cat([loaded(row) for row in POOLED.split(1)])
    torch.testing.assert_close(alone, in_training)
    assert torch.equal(loaded.fingerprint(), head.fingerprint())
    assert loaded.train()(POOLED[:2]).isfinite().all() and torch.equal(loaded.mean_H, POOLED[:2].mean(0))


def test_without_a_mean_that_was_kept_it_is_that_of_the_batch():
    head = ContrastiveHead(12, 7, debias="mean_subtract").eval()
    torch.testing.assert_close(head(POOLED), head(POOLED, POOLED.mean(0)))
    assert head.mean_H is None and "mean_H" not in head.state_dict()
    for debias in (None, "layer_norm", "group_center"):
        head = ContrastiveHead(12, 7, debias=debias)
        head(POOLED, POOLED.mean(0))
        assert head.mean_H is None


def test_what_counts_as_rounding():
    head = ContrastiveHead(12, 7, "mlp", "mean_subtract")
    head(POOLED)

    def is_rounding(name, change):
        other = {key: tensor.clone() for key, tensor in head.state_dict().items()}
        change(other[name])
        there = ContrastiveHead(12, 7, "mlp", "mean_subtract")
        there.load_state_dict(other)
        return head.differs_by_rounding(other), there.differs_by_rounding(head.state_dict())

    for name in ("layers.0.weight", "layers.1.weight", "mean_H"):
        assert is_rounding(name, lambda tensor: None) == (True, True)
        assert is_rounding(name, lambda tensor: tensor.mul_(1 + 1e-5)) == (True, True)
        assert is_rounding(name, lambda tensor: tensor.mul_(1 + 1e-3)) == (False, False)
        for bad in (torch.nan, torch.inf):
            assert is_rounding(name, lambda tensor, bad=bad: tensor.view(-1)[0].fill_(bad)) == (False, False)
    for other in (ContrastiveHead(12, 7, "mlp"), ContrastiveHead(12, 8, "mlp"), ContrastiveHead(12, 7)):
        assert not head.differs_by_rounding(other.state_dict())


# ---------------------------------------------------------------------- full float32


def gradient_and_embeddings(head, pooled):
    head.zero_grad()
    embeddings = head(pooled)
    embeddings[:, 0].sum().backward()
    return embeddings.detach(), *(weight.grad.clone() for weight in head.parameters())


@pytest.mark.parametrize("head_type", ["linear", "mlp"])
def test_autocast_does_not_reach_the_head(head_type):
    head = ContrastiveHead(12, 7, head_type)
    expected = gradient_and_embeddings(head, POOLED)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradient_and_embeddings(head, POOLED)
    assert all(torch.equal(here, there) for here, there in zip(inside, expected, strict=True))


# ---------------------------------------------------------------------- loading


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


@pytest.mark.parametrize("settings", [{"pooling": "max"}, {"layer": 1.5}, {"layer": None}], ids=str)
def test_wrong_settings_of_what_it_reads_are_named(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        ContrastiveHead(12, **settings)


# ---------------------------------------------------------------------- a run that starts from a saved head


def test_what_a_head_reads_comes_with_it(tmp_path):
    """Pooling and layer of the saved head are used where the configuration has its defaults, and saved again."""
    head = ContrastiveHead(16, 8, pooling="last", layer=0)
    head.save_pretrained(tmp_path / "head")
    trainer = record(tmp_path / "out", contrastive_head_path=str(tmp_path / "head"), max_steps=1)
    assert (trainer.args.contrastive_pooling, trainer.args.contrastive_layer) == ("last", 0)
    assert_right(trainer)  # against a forward pass, read as the arguments say
    trainer.save_model(str(tmp_path / "model"))
    saved = ContrastiveHead.from_pretrained(tmp_path / "model")
    assert (saved.pooling, saved.layer) == ("last", 0)


def test_the_callers_configuration_stays_as_it_is(tmp_path):
    ContrastiveHead(16, 24, "mlp", pooling="last").save_pretrained(tmp_path)
    args = tiny_config(tmp_path, contrastive_head_path=str(tmp_path))
    before = args.to_dict()
    resolved, head = resolve_saved_head(args)
    assert args.to_dict() == before
    assert (resolved.contrastive_embedding_dim, resolved.contrastive_head_type) == (24, "mlp")
    assert resolved.contrastive_pooling == head.pooling == "last"
    plain = tiny_config(tmp_path)
    assert resolve_saved_head(plain) == (plain, None)


@pytest.mark.parametrize(
    "field, value, saved",
    [("embedding_dim", 24, 8), ("head_type", "mlp", "linear"), ("debias", "layer_norm", "mean_subtract")],
)
def test_a_shape_that_the_saved_head_does_not_have_is_warned_of(field, value, saved, tmp_path, caplog):
    ContrastiveHead(16, 8, debias="mean_subtract").save_pretrained(tmp_path)
    trainer = make(tmp_path, contrastive_head_path=str(tmp_path), **{f"contrastive_{field}": value})
    assert f"`contrastive_{field}` is {value!r}" in caplog.text and f"was saved with {saved!r}" in caplog.text
    assert len([line for line in caplog.messages if "contrastive_head_path" in line]) == 1
    assert getattr(trainer.contrastive_head, field) == getattr(trainer.args, f"contrastive_{field}") == saved


@pytest.mark.parametrize("field, value, saved", [("pooling", "last", "mean"), ("layer", 0, 1)])
def test_other_states_than_the_saved_head_knows_are_refused(field, value, saved, tmp_path):
    ContrastiveHead(16, 8, **{field: saved}).save_pretrained(tmp_path)
    settings = {f"contrastive_{field}": value, "contrastive_head_path": str(tmp_path)}
    message = f"`contrastive_{field}` is {value!r}, .*trained with {saved!r}.* Set `contrastive_{field}` to {saved!r}"
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **settings)


def test_a_head_of_version_0_1_0_is_taken_at_the_configurations_word(tmp_path):
    save_as_version_0_1_0(ContrastiveHead(16, 8), tmp_path)
    trainer = make(tmp_path, contrastive_head_path=str(tmp_path), contrastive_pooling="last", contrastive_layer=0)
    assert (trainer.contrastive_head.pooling, trainer.contrastive_head.layer) == ("last", 0)


def test_the_saved_mean_follows_the_batches_of_a_run(tmp_path):
    """A head that was loaded is one in training again."""
    saved = ContrastiveHead(16, 8, debias="mean_subtract")
    saved(torch.ones(2, 16))
    saved.save_pretrained(tmp_path / "head")
    trainer = make(tmp_path, contrastive_head_path=str(tmp_path / "head"), max_steps=1)
    assert torch.equal(trainer.contrastive_head.mean_H, saved.mean_H)
    trainer.train()
    assert not torch.equal(trainer.contrastive_head.mean_H, saved.mean_H)
