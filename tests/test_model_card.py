"""Cards of models and heads: true, whole, and read by the Hub's own parser."""

from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from test_trainer import length_reward, make
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from trl import GRPOTrainer

from clipo_trl import (
    CLIPOConSPOConfig,
    CLIPOConSPOTrainer,
    CLIPOTrainer,
    ContrastiveHead,
    RolloutEmbedder,
    __version__,
    model_card,
)
from clipo_trl.cli.evaluation_tables import card_entries, summarise
from clipo_trl.model_card import add_evaluation, base_model, project_link, result_of


AUTHORS = "Sijia Cui, Pengyu Cheng, Jiajun Song, Yongbo Gai, Guojun Zhang, Zhechao Yu, Jianhe Lin, Xiaoxi Jiang, Guanjun Jiang"


def card_of(trainer, **names) -> ModelCard:
    trainer.create_model_card(**names)
    return ModelCard.load(f"{trainer.args.output_dir}/README.md")


def facts(card: ModelCard) -> dict[str, str]:
    """Rows of two columns of all tables."""
    rows = (line.strip("| ").split(" | ") for line in card.text.splitlines() if line.startswith("| "))
    return {row[0]: row[1] for row in rows if len(row) == 2}


# ---------------------------------------------------------------------- a trained model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with every field of the card set to something else than its default, and two evaluations."""
    trainer = make(
        tmp_path_factory.mktemp("card") / "my-run",
        reward_funcs=[letters_reward, length_reward],
        reward_weights=[1.0, 0.5],
        contrastive_success_rewards=["letters_reward"],
        contrastive_step_reward="length_reward",
        contrastive_reward_weight=0.3,
        contrastive_temperature=0.07,
        contrastive_loss_type="supcon_out",
        contrastive_reward_type="agreement",
        contrastive_score_scale="group",
        contrastive_pooling="last",
        contrastive_layer=0,
        contrastive_head_type="mlp",
        contrastive_debias="layer_norm",
        contrastive_warmup_steps=1,
        eval_strategy="steps",
        eval_steps=1,
        trainer_kwargs={"eval_dataset": {"easy": tiny_dataset(4), "hard": tiny_dataset(4)}},
        max_steps=2,
    )
    trainer.train()
    return trainer


def test_what_clipo_did(trained):
    card = card_of(trained, model_name="my-model", dataset_name="someone/data")
    told = facts(card)
    assert told["base model"] == "[tiny-qwen2](https://huggingface.co/tiny-qwen2)"
    assert told["training data"] == "[someone/data](https://huggingface.co/datasets/someone/data), 8 prompts"
    assert told["rewards"] == "`letters_reward` x 1, `length_reward` x 0.5"
    assert told["a rollout is correct if"] == "`letters_reward` > 0" and told["steps checked by"] == "`length_reward`"
    assert told["contrastive reward"].startswith("type `agreement`, lambda = 0.3, in standard deviations of the group")
    assert told["contrastive loss"].startswith("`supcon_out`, cosine similarity, tau = 0.07")
    assert told["head"].startswith("mlp, 16 -> 8; pooling last, layer 0, debias layer_norm")
    assert told["warm-up of the head"].startswith("1 generation batches") and told["optimizer steps"].startswith("2,")
    assert "None" not in card.content
    assert card.data.to_dict()["base_model"] == "tiny-qwen2" and card.data.datasets == "someone/data"
    assert {"clipo", "trl", "generated_from_trainer"} <= set(card.data.tags)


def test_figures_are_those_of_the_logs(trained):
    card = card_of(trained, model_name="my-model")
    last = [entry for entry in trained.state.log_history if "reward" in entry][-1]
    assert facts(card)["reward"] == f"{last['reward']:.4g}"
    assert facts(card)["`contrastive`"] == f"{last['rewards/contrastive/mean']:.4g}"
    results = {(one.dataset_name, one.metric_name): one.metric_value for one in card.data.eval_results}
    assert set(results) == {
        (name, f"{reward}_reward") for name in ("easy", "hard") for reward in ("letters", "length")
    }
    logged = [entry for entry in trained.state.log_history if "eval_easy_rewards/letters_reward/mean" in entry][-1]
    value = logged["eval_easy_rewards/letters_reward/mean"]
    assert results["easy", "letters_reward"] == pytest.approx(value, abs=1e-6)
    assert f"| easy | `letters_reward` | {value:.4f} | {logged['step']} |" in card.text
    assert card.data.model_name == "my-model"


def test_citation_versions_and_how_to_load_it(trained, monkeypatch):
    listed = SimpleNamespace(
        get_all=lambda key: ["Source, https://example.org/clipo"] if key == "Project-URL" else None
    )
    monkeypatch.setattr(model_card.metadata, "metadata", lambda package: listed)
    text = card_of(trained).text
    for author in AUTHORS.split(", "):
        assert author in text.replace("\n             ", "")
    for name, version in (("clipo_trl", __version__), ("trl", metadata.version("trl")), ("torch", torch.__version__)):
        assert f"- {name}: {version}" in text
    assert "[`clipo_trl`](https://example.org/clipo)" in text and "arXiv:2603.10101" in text
    assert 'RolloutEmbedder.from_pretrained("path/to/my-run")' in text
    assert str(trained.args.output_dir) not in text
    assert "@software{vonwerra2020trl" in text  # taken from TRL's card


def test_without_an_address_the_project_has_its_name():
    assert project_link().startswith(("`clipo_trl`", "[`clipo_trl`](http"))


def test_a_dataset_is_remembered_for_later_cards(trained):
    card_of(trained, dataset_name="someone/data")
    assert card_of(trained).data.datasets == "someone/data"


def test_before_training_there_are_no_figures(tmp_path):
    trainer = make(tmp_path / "new")
    trainer.dataset_label = "`rows.jsonl` (a local file)"
    card = card_of(trainer)
    assert "In the log" not in card.text and "## Evaluation" not in card.text and card.data.eval_results is None
    assert facts(card)["training data"] == "`rows.jsonl` (a local file), 8 prompts"


def test_the_best_model_has_its_own_evaluation(trained):
    log = trained.state.log_history
    trained.state.best_global_step, trained.args.load_best_model_at_end = 1, True
    try:
        [value] = [row["eval_easy_reward"] for row in log if row.get("step") == 1 and "eval_easy_reward" in row]
        means = [row for row in log if row["step"] == 1 and "eval_easy_rewards/letters_reward/mean" in row][0]
        text = card_of(trained).text
        assert value is not None
        assert f"| easy | `letters_reward` | {means['eval_easy_rewards/letters_reward/mean']:.4f} | 1 |" in text
    finally:
        trained.state.best_global_step, trained.args.load_best_model_at_end = None, False


def test_a_reward_that_says_nothing_of_a_test_set_is_left_out(tmp_path):
    """The card is written with every checkpoint: it must not end the run."""

    def of_training_alone(completions, **kwargs):
        return [None if trainer.model.training is False else 1.0] * len(completions)

    settings = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 1}
    rewards = [letters_reward, of_training_alone]
    trainer = make(tmp_path, reward_funcs=rewards, trainer_kwargs={"eval_dataset": tiny_dataset(4)}, **settings)
    trainer.train()
    assert any(row.get("eval_rewards/of_training_alone/mean", 0) is None for row in trainer.state.log_history)
    text = (
        (tmp_path / "checkpoint-1" / "README.md").read_text()
        if (tmp_path / "checkpoint-1" / "README.md").exists()
        else (tmp_path / "README.md").read_text()
    )
    assert "| test set | `letters_reward` |" in text and "| test set | `of_training_alone` |" not in text


def test_a_grpo_trainers_card_stays_trls(tmp_path):
    card = card_of(make(tmp_path, GRPOTrainer), model_name="plain")
    assert "This model is a fine-tuned version" in card.text and model_card.TRL_CITATION in card.text


# ---------------------------------------------------------------------- the base model


def test_a_base_model_is_never_none(tmp_path):
    model = tiny_model()
    model.config._name_or_path = "Qwen/Qwen2.5-3B"
    assert base_model(model) == ("[Qwen/Qwen2.5-3B](https://huggingface.co/Qwen/Qwen2.5-3B)", "Qwen/Qwen2.5-3B", False)
    model.config._name_or_path = ""
    assert base_model(model) == ("a `Qwen2ForCausalLM` without a name", None, False)
    folder = tmp_path / "secret" / "start"
    folder.mkdir(parents=True)
    model.config._name_or_path = str(folder)
    assert base_model(model) == ("the local model `start`", None, False)
    (folder / "README.md").write_text("---\nbase_model: Qwen/Qwen2.5-3B\n---\n# start\n")
    text, name, _ = base_model(model)
    assert text.startswith("the local model `start`, itself based on [Qwen/Qwen2.5-3B]") and name == "Qwen/Qwen2.5-3B"
    model.config._name_or_path = "/gone/start"
    assert base_model(model)[:2] == ("the local model `start`", None)


def test_the_card_of_an_adapter_names_what_it_is_for(tmp_path):
    trainer = make(tmp_path, trainer_kwargs={"peft_config": LoraConfig(target_modules=["q_proj"])})
    card = card_of(trainer, model_name="adapter")
    assert "An adapter for [tiny-qwen2]" in card.text and card.data.library_name == "peft"
    assert base_model(get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"]))).is_adapter


# ---------------------------------------------------------------------- `clipo evaluate` writes into it


def results_of(value: float) -> dict:
    record = {"prompt": "1 + 1?", "rewards": [value], "classes": [None], "tokens": [3], "truncated": [False]}
    return summarise("model", {"gsm8k": [record]})


def test_an_evaluation_takes_its_place_in_the_card(trained):
    before = card_of(trained, model_name="my-model")
    for value in (0.0, 1.0):  # the second in the place of the first
        add_evaluation(trained.args.output_dir, *card_entries(results_of(value)))
    card = ModelCard.load(f"{trained.args.output_dir}/README.md")
    results = {(one.dataset_name, one.metric_name): one.metric_value for one in card.data.eval_results}
    assert results["gsm8k", "mean@1"] == 1.0 and ("easy", "letters_reward") in results
    assert card.text.count("## Evaluation by `clipo evaluate`") == 1 and "### All scores, %" in card.text
    assert card.text.index("clipo evaluate") < card.text.index("## Versions")
    start, end = model_card.EVALUATION
    rest = card.text.partition(start)[0].rstrip() + card.text.partition(end)[2]
    assert rest.replace("\n", "") == before.text.replace("\n", "")
    assert card.data.model_name == "my-model" and card.data.base_model == before.data.base_model


def test_a_card_of_others_gets_an_evaluation_too(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Someone's\n")
    add_evaluation(tmp_path, "## Table", [result_of("a b", "accuracy", "mean@1", 0.25)])
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.startswith("# Someone's") and card.data.license == "mit"
    [result] = card.data.eval_results
    assert (result.dataset_name, result.dataset_type, result.metric_value) == ("a b", "a_b", 0.25)


def test_without_a_card_there_is_nowhere_to_write(tmp_path):
    with pytest.raises(ValueError, match="`model_card` is True, but .* has no README.md"):
        add_evaluation(tmp_path, "", [])


# ---------------------------------------------------------------------- a head


def test_the_heads_card(trained, tmp_path):
    trained.save_model(str(tmp_path))
    card = ModelCard.load(tmp_path / "contrastive_head" / "README.md")
    assert card.data.to_dict()["base_model"] == "tiny-qwen2" and card.data.library_name == "clipo_trl"
    assert facts(card)["type"] == "mlp, 16 -> 8" and facts(card)["reads"] == "pooling last, layer 0"
    assert "RolloutEmbedder.from_pretrained(" in card.text and "huggingface.co/papers/2603.10101" in card.text
    assert "More Information Needed" not in card.text and "None" not in card.text


def test_a_head_remembers_its_policy(tmp_path):
    head = ContrastiveHead(12, 7)
    head.trained_with = {"policy": "me/model", "base_model": "Qwen/Qwen2.5-3B"}
    head.save_pretrained(tmp_path)
    loaded = ContrastiveHead.from_pretrained(tmp_path)
    assert loaded.trained_with == head.trained_with and torch.equal(loaded.fingerprint(), head.fingerprint())
    card = loaded.generate_model_card(repo_id="me/head")
    assert 'RolloutEmbedder.from_pretrained("me/model", head="me/head")' in card.text
    assert 'ContrastiveHead.from_pretrained("me/head")' in card.text
    assert card.data.to_dict()["base_model"] == "me/model" and "Qwen/Qwen2.5-3B" in card.text
    (tmp_path / "README.md").unlink()
    assert ContrastiveHead.from_pretrained(tmp_path).trained_with == {}


def test_the_snippet_runs(trained, tmp_path):
    trained.save_model(str(tmp_path))
    snippet = model_card.embedder_snippet(str(tmp_path)).strip("`").removeprefix("python\n")
    names = {"prompts": ["hi"], "completions": ["abc"]}
    exec(snippet, names)
    assert isinstance(names["embedder"], RolloutEmbedder) and names["embeddings"].shape == (1, 8)


@pytest.mark.parametrize(
    "settings, paid",
    [
        ({}, "close its hidden states are to those of the group's other correct ones"),
        ({"contrastive_reward_type": "likelihood"}, "likely the policy finds it"),
        ({"contrastive_reward_type": "negative_entropy"}, "sure the policy is of its tokens"),
        ({"contrastive_reward_weight": 0.0}, "the verifiable rewards alone are paid"),
    ],
    ids=str,
)
def test_what_is_paid(tmp_path, settings, paid):
    trainer = CLIPOTrainer(
        tiny_model(),
        letters_reward,
        tiny_config(tmp_path, **settings),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
    )
    assert paid in card_of(trainer).text and "dapo (token level), clip 0.2" in facts(card_of(trainer))["policy loss"]


@pytest.mark.parametrize(
    "scale, paid", [(0.0, "the verifiable rewards alone are paid"), (1.0, "a rollout is paid for")]
)
def test_what_conspo_pays(tmp_path, scale, paid):
    config = tiny_config(tmp_path, CLIPOConSPOConfig, conspo_contrastive_scale=scale)
    data = {"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer()}
    card = card_of(CLIPOConSPOTrainer(tiny_model(), letters_reward, config, **data))
    assert paid in card.text and facts(card)["policy loss"].startswith(
        "ConSPO, scores / temperature 10, margin up to 0.01 in"
    )
