"""The faithfulness experiment on word problems: arms and jobs with a tiny language model in the real one's place."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_language_model import TINY, base, wheel  # noqa: F401  # fixtures
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl.trainer import utils

from experiments.faithfulness import arms
from experiments.faithfulness import study as studies
from experiments.faithfulness.jobs import write_json
from experiments.faithfulness.study import Settings
from experiments.faithfulness.tasks import word_problems_task
from experiments.language_model import warm_starts


NAME = "choices"
KEYS = ("prompt_ids", "completion_ids", "logprobs")
pytestmark = [
    pytest.mark.slow,  # whole trainings
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func'"),
]


@pytest.fixture
def models(base, tmp_path, monkeypatch) -> Path:  # noqa: F811
    """Folder of models in which a tiny warm start can be made."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "base").symlink_to(base / "base")
    monkeypatch.setitem(warm_starts.WARM_STARTS, NAME, replace(TINY, problems=warm_starts.WARM_STARTS[NAME].problems))
    return tmp_path / "models"


def settings(models, tmp_path, *arm_names) -> Settings:
    return Settings(
        output_dir=str(tmp_path / "study"), policies=[NAME], arms=list(arm_names), seeds=1, first_seed=3000, steps=1,
        train_problems=8, test_problems=2, models=str(models),
    )  # fmt: skip


def run(asked: Settings, tmp_path) -> None:
    """The warm start, and the one run asked for."""
    policies = studies.policy_jobs(asked)
    policies[NAME].work(tmp_path, lambda step: None)
    (job,) = studies.arm_jobs(asked, policies).values()
    job.partial_folder.mkdir(parents=True)
    job.work(job.partial_folder, lambda step: None)


def test_jobs_train_adapters_of_the_last_layers(models, tmp_path):
    asked = settings(models, tmp_path, "grpo", "likelihood", "calibrated_equations", "equations")
    policies = studies.policy_jobs(asked)
    steps = []
    figures = policies[NAME].work(tmp_path, steps.append)
    assert set(figures) == {"test", "other_operands", "p1"} and steps == [1, 2, 3, 4] == list(
        range(1, 1 + policies[NAME].steps)
    )
    runs = studies.arm_jobs(asked, policies)
    for (_, arm, seed), job in runs.items():
        job.partial_folder.mkdir(parents=True)
        result = job.work(job.partial_folder, lambda step: None)
        assert result["arm"] == arm and seed == 3000 and job.settings["config"] == result["config"]
        assert result["train"][-1]["rollouts"] == 32 and set(result["eval"][0]) == {"step", *figures}


def test_what_is_paid_and_what_learns(models, tmp_path, monkeypatch):
    trainers, n_read, n_rows = [], [], []
    make, apply = arms._make_trainer, utils._ChunkedLogProbFunction.apply

    def count(module, ids, states):
        if trainers[-1].model.training:
            n_read.append(ids[0].numel())

    def watched(*args):
        trainers.append(make(*args))
        trainers[-1].model.get_input_embeddings().register_forward_hook(count)
        return trainers[-1]

    def watched_head(states, *args):
        n_rows.append(len(states))
        return apply(states, *args)

    monkeypatch.setattr(arms, "_make_trainer", watched)
    monkeypatch.setattr(utils._ChunkedLogProbFunction, "apply", watched_head)
    run(settings(models, tmp_path, "equations"), tmp_path)
    (trainer,) = trainers
    n_tokens = trainer.state.num_input_tokens_seen  # of prompts and completions, whole
    assert n_rows[-1] <= 32 * 48 and sum(n_read[-2:]) < n_tokens / 2, "prompts are read once, completions scored alone"
    paid = dict(zip(trainer.reward_func_names, trainer.reward_weights.tolist(), strict=True))
    assert paid["answer_reward"] == paid["right_with_sound_equations_reward"] == 1
    assert paid["sound_equations_reward"] == paid["steps_reward"] == 0
    learned = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert learned and all("lora_" in name for name in learned)
    frozen = {parameter.dtype for parameter in trainer.model.parameters() if not parameter.requires_grad}
    assert frozen == {torch.bfloat16} and trainer.args.bf16


def test_groups_are_sampled_as_the_trainer_asks(models, tmp_path, monkeypatch):
    """Prompts as the chat template has them, one after the other G times, and no more tokens than are allowed."""
    seen = []
    make = arms._make_trainer

    def watched(*args):
        trainer = make(*args)
        sampler = trainer.rollout_func
        trainer.rollout_func = lambda prompts, it: seen.append((prompts, sampler(prompts, it))) or seen[-1][1]
        return trainer

    monkeypatch.setattr(arms, "_make_trainer", watched)
    run(settings(models, tmp_path, "grpo"), tmp_path)
    (prompts, rollouts), tokenizer = seen[0], AutoTokenizer.from_pretrained(models / NAME / "model")
    assert len(prompts) == 32 and prompts == [prompt for prompt in prompts[::8] for _ in range(8)]
    for prompt, prompt_ids, ids, logprobs in zip(prompts, *(rollouts[key] for key in KEYS), strict=True):
        assert prompt_ids == tokenizer.apply_chat_template(prompt, add_generation_prompt=True)["input_ids"]
        assert 0 < len(ids) == len(logprobs) <= 48 and max(logprobs) <= 0
    # Each completion is of its own prompt: a pass after it gives the log-probabilities, one after another does not.
    model = AutoModelForCausalLM.from_pretrained(models / NAME / "model", dtype=torch.bfloat16)  # adapters begin at 0
    off = {}
    for shift in (0, 8):
        pairs = zip(rollouts["prompt_ids"][shift:], rollouts["completion_ids"], rollouts["logprobs"], strict=False)
        off[shift] = max(
            (logprobs_after(model, prompt_ids, ids) - torch.tensor(logprobs)).abs().mean().item()
            for prompt_ids, ids, logprobs in pairs
        )
    assert off[0] < 0.02 < 0.1 < off[8]


@torch.no_grad()
def logprobs_after(model, prompt_ids, ids):
    logits = model(torch.tensor([prompt_ids + ids])).logits[0, len(prompt_ids) - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def test_another_task_is_another_run(models, tmp_path):
    """What is not in the configuration counts too: a run with other adapters is not taken for this one."""
    task = studies.task_of(NAME)
    assert task.settings["lora_layers"] == 10 and task.settings["rollout_func"] == "sample_groups"
    (job,) = studies.arm_jobs(asked := settings(models, tmp_path, "grpo"), studies.policy_jobs(asked)).values()
    assert task.settings.items() <= job.settings.items() and studies.CHAINS.settings == {}


def test_a_warm_start_that_went_away_is_told(models, tmp_path):
    asked = settings(models, tmp_path, "grpo")
    studies.check_models(asked)  # not made yet
    job = studies.policy_jobs(asked)[NAME]
    job.folder.mkdir(parents=True)
    write_json(job.folder / "result.json", {"settings": job.settings, "result": {}})
    with pytest.raises(FileNotFoundError, match=f"no warm start '{NAME}' in it"):
        studies.check_models(asked)


def test_adapters_of_the_last_layers_alone():
    task = word_problems_task({"num_operations": 2})
    for n_layers, adapted in ((30, list(range(20, 30))), (2, [0, 1])):
        model = type("Model", (), {"config": type("Config", (), {"num_hidden_layers": n_layers})})
        assert task.peft_config(model).layers_to_transform == adapted
