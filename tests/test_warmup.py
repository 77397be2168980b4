"""The head's warm-up with a frozen policy: how long it lasts, that it eats nothing of the schedule, and that it pays
for nothing."""

import pytest
import torch
from test_trainer import FUSED, make, rows, same, trained, weights
from test_vllm import stand_in
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_tokenizer
from trl import GRPOTrainer

from clipo_trl import CLIPOTrainer
from clipo_trl.warmup import steps_of_batches


__all__ = ["stand_in"]  # fixture

SHORT_EPOCHS = {"train_dataset": tiny_dataset(6)}  # three generation batches
LAYOUTS = {  # of a generation batch over optimizer steps: settings, warm-up batches, frozen steps
    "one to one": ({}, 2, 2),
    "two steps a batch": (FUSED, 2, 4),
    "two iterations": ({"num_iterations": 2}, 2, 4),
    "two batches a step": ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, 2, 1),
    "ends inside a step": ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, 1, 1),
    "ends inside a later step": (
        {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "per_device_train_batch_size": 4}
        | {"generation_batch_size": None},
        1,
        2,
    ),
    "ends with an epoch": ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, 3, 2),
    "ends in the second epoch": ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, 4, 3),
}


class Watched(CLIPOTrainer):
    """Notes, for each pass of the policy, the optimizer step and whether the rollouts came from the warm-up."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.learned, self.scored = [], []

    def _compute_loss(self, *args):
        self.learned.append(self.state.global_step)
        return super()._compute_loss(*args)

    def _calculate_rewards(self, *args):
        self.scored.append((self.state.global_step, self.warmup.has_batch(self.head_learner.n_batches)))
        return super()._calculate_rewards(*args)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_policy_waits_for_whole_optimizer_steps(tmp_path, layout, caplog):
    settings, n_batches, n_frozen = LAYOUTS[layout]
    settings = {name: value for name, value in settings.items() if value is not None}
    settings |= {"max_steps": n_frozen + 2, "contrastive_warmup_steps": n_batches}
    settings.setdefault("trainer_kwargs", SHORT_EPOCHS)
    trainer = make(tmp_path, Watched, **settings)
    trainer.train()
    assert trainer.warmup.frozen_steps == n_frozen
    # No step has passes of both kinds, and all of the warm-up's rollouts were used up in frozen steps.
    assert set(trainer.learned) == {n_frozen, n_frozen + 1}
    assert sum(in_warmup for _, in_warmup in trainer.scored) == n_batches
    assert all(step < n_frozen for step, in_warmup in trainer.scored if in_warmup)
    assert ("ends inside an accumulation window" in caplog.text) == ("inside" in layout or "second" in layout)


def test_steps_of_batches_counts_epochs_that_end_early(tmp_path):
    args = make(tmp_path, gradient_accumulation_steps=4, steps_per_generation=1).args
    assert [steps_of_batches(n, args) for n in range(6)] == [0, 1, 1, 1, 1, 2]
    assert [steps_of_batches(n, args, num_prompts=6) for n in range(8)] == [0, 1, 1, 1, 2, 2, 2, 3]  # three an epoch


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant_with_warmup", "constant"])
@pytest.mark.slow
def test_the_schedule_begins_when_the_policy_learns(tmp_path, schedule):
    settings = {"lr_scheduler_type": schedule, "warmup_steps": 2}
    grpo = trained(tmp_path, GRPOTrainer, max_steps=5, **settings)
    clipo = trained(tmp_path, max_steps=8, contrastive_warmup_steps=3, **settings)
    rates = [row["learning_rate"] for row in rows(clipo)]
    assert rates[3:] == [row["learning_rate"] for row in rows(grpo)]
    assert rates[:3] == rates[3:4] * 3
    resumed = make(tmp_path, max_steps=8, contrastive_warmup_steps=3, save_strategy="steps", save_steps=2, **settings)
    resumed.train()
    for step in (2, 4):
        again = make(tmp_path, max_steps=8, contrastive_warmup_steps=3, **settings)
        again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert [row["learning_rate"] for row in rows(again)] == rates
        assert same(weights(again.model), weights(clipo.model))


def test_without_a_warm_up_the_schedule_is_left_alone(tmp_path):
    settings = {"lr_scheduler_type": "cosine", "warmup_steps": 2, "max_steps": 5}
    warm = {"contrastive_warmup_steps": 2, "contrastive_warmup_policy": "verifiable_reward"}
    expected = [row["learning_rate"] for row in rows(trained(tmp_path, GRPOTrainer, **settings))]
    for more in ({}, warm):
        assert [row["learning_rate"] for row in rows(trained(tmp_path, **settings, **more))] == expected


def test_a_scheduler_of_the_users_is_left_alone_with_a_warning(tmp_path, caplog):
    trainer = make(tmp_path)
    optimizer = torch.optim.SGD(trainer.model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    kwargs = {"optimizers": (optimizer, scheduler)}
    trainer = make(tmp_path, contrastive_warmup_steps=2, max_steps=4, trainer_kwargs=kwargs)
    assert "`optimizers` brings a learning rate scheduler of yours" in caplog.text
    trainer.train()
    rates = [row["learning_rate"] for row in rows(trainer)]
    assert rates == pytest.approx([0.1, 0.1 / 2, 0.1 / 3, 0.1 / 4])


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("layout", ["one to one", "ends inside a later step"])
def test_no_reference_pass_is_paid_while_the_policy_is_frozen(tmp_path, model_path, adapter, layout):
    from peft import LoraConfig

    settings, n_batches, n_frozen = LAYOUTS[layout]
    settings = {name: value for name, value in settings.items() if value is not None}

    class Counting(Watched):
        def _get_per_token_logps_and_entropies(self, model, *args, **kwargs):
            is_off = any(getattr(module, "_disable_adapters", False) for module in model.modules())
            if model is self.ref_model or is_off:
                passes.append((self.state.global_step, self.warmup.has_batch(self.head_learner.n_batches)))
            return super()._get_per_token_logps_and_entropies(model, *args, **kwargs)

    passes = []
    trainer = Counting(
        model_path,
        letters_reward,
        tiny_config(tmp_path, beta=0.1, max_steps=n_frozen + 2, contrastive_warmup_steps=n_batches, **settings),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if adapter else None,
    )
    trainer.train()
    assert passes and not any(in_warmup for _, in_warmup in passes)
    assert len(passes) == len([one for one in trainer.scored if not one[1]])  # one for each batch after it
    assert trainer.beta == 0.1 and rows(trainer)[-1]["kl"] is not None


@pytest.mark.parametrize("evaluated", [False, True])
def test_weights_are_not_sent_to_vllm_while_the_policy_is_frozen(tmp_path, stand_in, evaluated):
    settings = {"eval_strategy": "steps", "eval_steps": 1} if evaluated else {}
    trainer = make(
        tmp_path,
        use_vllm=True,
        max_steps=5,
        contrastive_warmup_steps=3,
        trainer_kwargs={"eval_dataset": tiny_dataset(2)},
        **settings,
    )
    synced_at = []
    sync = trainer.vllm_generation.sync_weights
    trainer.vllm_generation.sync_weights = lambda: synced_at.append(trainer.state.global_step) or sync()
    trainer.train()
    # At the start, and after each update: 3 trains on what step 0's weights wrote.
    assert synced_at == ([0, 4, 5] if evaluated else [0, 4])


def test_a_warm_up_made_shorter_on_resuming(tmp_path, model_path, caplog):
    """Its rollouts wait without log-probabilities under the reference, and the policy learns from the next step on."""

    def run(n_batches, checkpoint=None, **settings):
        args = tiny_config(tmp_path, beta=0.1, max_steps=6, contrastive_warmup_steps=n_batches, **FUSED, **settings)
        data = {"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer()}
        trainer = Watched(model_path, letters_reward, args, **data)
        trainer.train(checkpoint)
        return trainer

    run(2, save_strategy="steps", save_steps=1)
    for step, waiting in ((1, True), (2, False)):
        caplog.clear()
        resumed = run(0, str(tmp_path / f"checkpoint-{step}"))
        assert resumed.learned == list(range(step, 6)) and resumed.state.log_history[-2]["kl"] > 0
        assert ("which needs log-probabilities under the reference" in caplog.text) == waiting


def test_another_run_of_a_trainer_goes_on_elsewhere_without_a_warm_up(tmp_path):
    """Its checkpoints say that the head was warm when it began."""
    settings = {"save_strategy": "steps", "save_steps": 1, "contrastive_warmup_steps": 3, "max_steps": 6}
    whole = make(tmp_path, **settings)
    whole.train()
    whole.train()
    resumed = make(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert not resumed.warmup.freezes(1)
    assert same(weights(resumed.model), weights(whole.model))
    assert [row["learning_rate"] for row in rows(resumed)] == [row["learning_rate"] for row in rows(whole)]
    # one trainer may do both: a run of its own again, and one that goes on in a warm-up
    resumed.train()
    assert resumed.warmup.frozen_steps == 0
    again = make(tmp_path / "again", **settings)
    again.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "again" / "checkpoint-1"))
    assert resumed.warmup.frozen_steps == 3 and same(weights(resumed.model), weights(again.model))


def test_a_warm_up_whose_steps_change_on_resuming(tmp_path, model_path):
    """With fewer steps a batch the policy learns from a batch that the warm-up still counts: it has its reference."""

    def run(checkpoint=None, **settings):
        args = tiny_config(tmp_path, beta=0.1, max_steps=7, contrastive_warmup_steps=4, **settings)
        data = {"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer()}
        trainer = Watched(model_path, letters_reward, args, **data)
        trainer.train(checkpoint)
        return trainer

    run(**FUSED, save_strategy="steps", save_steps=4)
    resumed = run(str(tmp_path / "checkpoint-4"), steps_per_generation=1)
    assert resumed.learned == [4, 5, 6]
