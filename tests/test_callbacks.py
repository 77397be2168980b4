"""The list of suspicious rollouts, in the terminal and in the completions table."""

import numpy as np
import pandas as pd
import pytest
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

from clipo_trl import CLIPOTrainer, SuspiciousRolloutsCallback


def make_trainer(tmp_path, **settings):
    config = tiny_config(tmp_path, logging_steps=1, num_completions_to_print=1, **settings)
    return CLIPOTrainer(
        tiny_model(),
        letters_reward,
        config,
        train_dataset=tiny_dataset(),
        eval_dataset=tiny_dataset(3),
        processing_class=tiny_tokenizer(),
    )


def test_lists_the_correct_rollouts_farthest_from_their_group(tmp_path, capsys):
    trainer = make_trainer(tmp_path, log_completions=True)
    trainer.add_callback(SuspiciousRolloutsCallback(trainer, num_rollouts=2))
    trainer.train()
    tables = sorted((tmp_path / "completions").glob("*.parquet"))
    assert len(tables) == trainer.args.max_steps
    n_compared = n_lists = 0
    for path in tables:
        table = pd.read_parquet(path)
        scored = table[table.agreement.notna()]
        below = (scored.agreement < -1e-5).sum()  # two correct rollouts alone are as close as each other
        assert (scored.letters_reward > 0).all() and table.suspicious.sum() == min(2, below)
        n_lists += below > 0
        others = scored[~scored.suspicious]
        if len(others) and table.suspicious.any():
            assert table[table.suspicious].agreement.max() <= others.agreement.min()
            n_compared += 1
    assert n_compared
    assert " ".join(capsys.readouterr().out.split()).count("farthest from their group") == n_lists


def test_a_batch_is_listed_once(tmp_path, capsys):
    """Four logs, two generation batches."""
    trainer = make_trainer(tmp_path, log_completions=True, steps_per_generation=2, max_steps=4, num_generations=4)
    trainer.add_callback(SuspiciousRolloutsCallback(trainer))
    trainer.train()
    assert " ".join(capsys.readouterr().out.split()).count("farthest from their group") == 2


def test_training_and_evaluation_have_tables_of_their_own(tmp_path):
    settings = {"log_completions": True, "max_steps": 2, "num_generations_eval": 2, "per_device_eval_batch_size": 4}
    alone = make_trainer(tmp_path / "alone", **settings)
    alone.train()
    trainer = make_trainer(tmp_path / "with", eval_strategy="steps", eval_steps=1, **settings)
    trainer.eval_dataset = {"small": tiny_dataset(3), "big/er": tiny_dataset(4)}
    trainer.add_callback(SuspiciousRolloutsCallback(trainer))
    trainer.train()
    folder = tmp_path / "with" / "completions"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"{prefix}completions_0000{step}.parquet" for prefix in ("", "eval_big_er_", "eval_small_") for step in (1, 2)
    ]
    table, other = (pd.read_parquet(f / "completions_00001.parquet") for f in (folder, tmp_path / "alone/completions"))
    pd.testing.assert_frame_equal(table.drop(columns="suspicious"), other)  # as without an evaluation
    for table in map(pd.read_parquet, sorted(folder.glob("completions_*.parquet"))):
        assert table.group.tolist() == [0] * 4 + [1] * 4
        assert (table.agreement.notna() <= (table.letters_reward > 0)).all() and table.contrastive.notna().all()
        is_anchor = table.contrastive_loss.notna()
        assert is_anchor.any() and (is_anchor <= (table.letters_reward > 0)).all()
        reward = (-0.2 * table.contrastive_loss.fillna(0)).clip(lower=-0.5)
        np.testing.assert_allclose(table.contrastive, reward, atol=1e-6)
    for name, n_prompts in (("small", 3), ("big_er", 4)):
        table = pd.read_parquet(folder / f"eval_{name}_completions_00002.parquet")
        assert table.group.tolist() == [group for group in range(n_prompts) for _ in range(2)]
        assert not table.filter(["agreement", "contrastive", "contrastive_loss"]).notna().any(axis=None)


def test_asks_for_the_completions_table(tmp_path):
    with pytest.raises(ValueError, match="`log_completions` is False"):
        SuspiciousRolloutsCallback(make_trainer(tmp_path))
    with pytest.raises(ValueError, match="`num_rollouts` is 0"):
        SuspiciousRolloutsCallback(make_trainer(tmp_path, log_completions=True), num_rollouts=0)
