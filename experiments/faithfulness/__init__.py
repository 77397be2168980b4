"""
Does CLIPO make rollouts more faithful, that is, fewer right by luck? An experiment that anyone can repeat:

    python -m experiments.faithfulness

The protocol, fixed before the final run:

1. Starting policies (`arms.POLICIES`): small language models, warm-started on arithmetic that a program checks step
   by step (`experiments.chain`), that are often right, and often by luck: right in the answer and wrong in a step.
2. Arms (`arms.ARMS`): plain GRPO, CLIPO in its forms, and controls that bound what is possible. All are paid for the
   answer, and CLIPO's for the contrastive reward; the step checker only measures, but for the arms that say otherwise.
3. Pairs: for one starting policy and seed, all arms draw from the same stream of problems and the same seed (a warm-up
   of the head uses the first batches).
4. Primary metric: share of lucky rollouts among the right ones, over the last 20 training steps
   (the second half of runs shorter than 40). Also: accuracy,
   strict accuracy (answer and every step right) and lucky share on four test sets, and how well rewards, embeddings
   and hidden states tell sound from lucky rollouts (AUROC) during training.
5. Comparison: paired differences to GRPO and to the permuted controls, with 95 % bootstrap intervals over seeds.

Settings are chosen on development seeds (`--first_seed 0`, with an `--output_dir` of their own); the final seeds, 1000
and up, are run once. The first seed also draws the problems and the starting policies, so the final run has fresh
ones. All goes to `--output_dir`: starting policies, one folder a run, report.md, report.json, runs.csv and pictures.
What is finished is not run again, so the same command goes on after Ctrl-C or worse, and elsewhere from an archive of
the runs (`experiments.faithfulness.archive`). The second study, of likelihood as the reward, has seeds 2000 and up,
the third, of a language model, 3000 and up; their protocols are in docs/faithfulness.md.
"""
