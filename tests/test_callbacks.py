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
    n_listed = 0
    for path in tables:
        table = pd.read_parquet(path)
        scored = table[table.agreement.notna()]
        assert (scored.letters_reward > 0).all() and table.suspicious.sum() == min(2, len(scored))
        others = scored[~scored.suspicious]
        if len(others) and table.suspicious.any():
            assert table[table.suspicious].agreement.max() <= others.agreement.min()
            n_listed += 1
    assert n_listed
    assert capsys.readouterr().out.count("Correct rollouts farthest") <= len(tables)


def test_rollouts_of_an_evaluation_have_no_agreement(tmp_path):
    trainer = make_trainer(tmp_path, log_completions=True, eval_strategy="steps", eval_steps=1)
    trainer.add_callback(SuspiciousRolloutsCallback(trainer))
    trainer.train()
    evaluated = pd.read_parquet(max((tmp_path / "completions").glob("*.parquet")))  # the last log is that of the end
    assert evaluated.contrastive.isna().tail(4).all() and evaluated.agreement.isna().tail(4).all()


def test_asks_for_the_completions_table(tmp_path):
    with pytest.raises(ValueError, match="`log_completions` is False"):
        SuspiciousRolloutsCallback(make_trainer(tmp_path))
    with pytest.raises(ValueError, match="`num_rollouts` is 0"):
        SuspiciousRolloutsCallback(make_trainer(tmp_path, log_completions=True), num_rollouts=0)
