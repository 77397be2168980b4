"""The list of suspicious rollouts, in the terminal and in the completions table."""

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


def test_rollouts_of_an_evaluation_have_no_agreement(tmp_path):
    trainer = make_trainer(tmp_path, log_completions=True, eval_strategy="steps", eval_steps=1)
    trainer.add_callback(SuspiciousRolloutsCallback(trainer))
    trainer.train()
    tables = [pd.read_parquet(path) for path in (tmp_path / "completions").glob("*.parquet")]
    for table in tables:  # written at the end of an evaluation: rows of training, then of the evaluation
        assert (table.agreement.notna() <= table.contrastive.notna()).all() and table.contrastive.isna().any()
        assert (table.agreement.notna() <= (table.letters_reward > 0)).all()


def test_asks_for_the_completions_table(tmp_path):
    with pytest.raises(ValueError, match="`log_completions` is False"):
        SuspiciousRolloutsCallback(make_trainer(tmp_path))
    with pytest.raises(ValueError, match="`num_rollouts` is 0"):
        SuspiciousRolloutsCallback(make_trainer(tmp_path, log_completions=True), num_rollouts=0)
