"""A trainer that keeps what it pooled, beside what a plain full forward of each rollout alone gives."""

import copy

import torch
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

from clipo_trl import CLIPOTrainer, contrastive_loss, contrastive_reward


def positions_by_hand(n_prompt, policy_mask, pooling="mean"):
    """The method's text, word by word: completion tokens 1..T-1 that the policy wrote; else the state that sampled
    it."""
    T = len(policy_mask)
    positions = [n_prompt + t for t in range(T - 1) if policy_mask[t]]
    if not positions and any(policy_mask):
        positions = [n_prompt + max(t for t in range(T) if policy_mask[t]) - 1]
    return positions if pooling == "mean" else positions[-1:]


@torch.no_grad()
def full_forward_states(model, tokens, pooling="mean", layer=-1, beside_tokens=lambda row: {}):
    """
    Pooled states from `output_hidden_states=True`, one rollout at a time, without padding. `beside_tokens` gives what
    a rollout's forward pass takes beside its token ids.
    """
    pooled = []
    was_training = model.training
    model.eval()
    for row in range(len(tokens)):
        n_completion = len(tokens.completion_ids[row])
        policy_mask = tokens.policy_mask[row] if tokens.policy_mask is not None else [1] * n_completion
        ids = torch.tensor([tokens.prompt_ids[row] + tokens.completion_ids[row]], device=model.device)
        states = model(input_ids=ids, output_hidden_states=True, **beside_tokens(row)).hidden_states
        states = states[layer + 1] if layer >= 0 else states[layer]  # hidden_states[0] are the token embeddings
        positions = positions_by_hand(len(tokens.prompt_ids[row]), policy_mask, pooling)
        pooled.append(states[0, positions].float().mean(0))
    model.train(was_training)
    return torch.stack(pooled)


class RecordingTrainer(CLIPOTrainer):
    """
    Keeps what it pooled, beside what a full forward with the same weights gives; and the rewards it gave, beside those
    that the same head gives the states of the full forward (for `contrastive_loss_type="supcon_out"`, which draws
    nothing).
    """

    force_mode = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.states.mode = self.force_mode or self.states.mode
        self.records = []
        self.columns = []

    def beside_tokens(self, row):
        """What the plain forward pass of a rollout takes beside its token ids."""
        return {}

    def _contrastive_column(self, rewards_per_func, pooled_BH):
        with self.accelerator.autocast():
            expected = full_forward_states(
                self.model,
                self.states.tokens,
                self.args.contrastive_pooling,
                self.args.contrastive_layer,
                self.beside_tokens,
            )
        self.records.append((self.states.tokens, pooled_BH.clone(), expected))
        head = copy.deepcopy(self.contrastive_head)
        column = super()._contrastive_column(rewards_per_func, pooled_BH)
        if self.args.contrastive_loss_type == "supcon_out":
            weights = self.reward_weights.clone()
            weights[self._column] = 0.0
            correct = ((rewards_per_func.nan_to_num() * weights).sum(1) > 0).view(-1, self.num_generations)
            with torch.no_grad():
                embeddings = head(expected).view(*correct.shape, -1)
            loss, _ = contrastive_loss(embeddings, correct, loss_type="supcon_out")
            reward = contrastive_reward(loss, correct, floor=self.args.contrastive_reward_floor)
            self.columns.append((column, reward.flatten()))
        return column


def record(
    tmp_path,
    mode=None,
    model=None,
    reward_funcs=letters_reward,
    trainer_kwargs=None,
    base=RecordingTrainer,
    **settings,
):
    trainer_class = type("Recording", (base,), {"force_mode": mode})
    trainer = trainer_class(
        model or tiny_model(),
        reward_funcs,
        tiny_config(tmp_path, **settings),
        **{"train_dataset": tiny_dataset(), "processing_class": tiny_tokenizer(), **(trainer_kwargs or {})},
    )
    trainer.train()
    assert trainer.records
    return trainer


def assert_right(trainer, atol=1e-5):
    for _, pooled, expected in trainer.records:
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, expected, atol=atol, rtol=atol)


def assert_column_right(trainer, atol=1e-3):
    """Every contrastive reward of the run, and that they are not all the same."""
    assert_right(trainer)
    for column, expected in trainer.columns:
        torch.testing.assert_close(column, expected, atol=atol, rtol=atol)
    everything = torch.cat([column for column, _ in trainer.columns])
    assert everything.min() < 0 and len(everything.unique()) > 3


CAPTURE_MODES = ["decode", "forward", "fused"]
# TRL scores its rollouts itself when a generation serves several optimizer steps.
FUSED = {"steps_per_generation": 2, "per_device_train_batch_size": 4}


def settings_of(mode):
    """The settings that a capture mode needs: TRL itself passes over the rollouts only where a generation serves
    several steps."""
    return FUSED if mode == "fused" else {}
