"""
The paper's ablations, or any others that are files of fields, on one base configuration: run, gone on with, compared.

    python quickstart.py                 # makes model and data of the example
    python -m experiments.ablations      # the ablation table of the paper on the quickstart's task

An *arm* is the base with files of `configs/ablations/` over it, one or several joined by `+`, later ones winning. So
braces of the shell write a grid: `--arms configs/ablations/{temperature_0.02,temperature_0.1}.yaml+other.yaml`. Each
arm and seed is one run of `clipo train` (or of `--launcher`), which differs from the others by configuration alone.
Arms are compared in pairs of the same seed. What is finished is not run again; the same command goes on.
"""
