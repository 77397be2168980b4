"""
What tells sound from lucky rollouts? Every score that we know of, on frozen policies whose steps a program checks.

    python -m experiments.readouts                                 # the toy policies: some minutes each on one thread
    python -m experiments.readouts --language_models smol=FOLDER   # and a language model, on word problems
    python -m experiments.readouts --report_only                   # tables, pictures and page anew from what is there

A policy is sampled (or its rollouts are read), then scored: from its hidden states, by a head or without, and from
what it thinks of its own text. A score is worth its AUROC for sound against lucky among a group's right rollouts, and
what it adds to the rollout's likelihood. Scores of single rollouts stay in the output folder, where the same command
finds them; `results.csv` beside this file holds what they came to, and `docs/readouts.md` is written from it.
"""
