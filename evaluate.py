"""Evaluate a model on any number of test sets, or compare two models that were evaluated: `clipo evaluate` as a
script.

python evaluate.py --config configs/eval/track1.yaml --model runs/track1_gsm8k --output_dir evals/clipo
python evaluate.py --compare evals/grpo evals/clipo
"""

from clipo_trl.cli.main import run_evaluate


if __name__ == "__main__":
    run_evaluate()
else:
    from clipo_trl.cli.evaluate import SAMPLERS, EvaluationArguments, logger, main, name_datasets


__all__ = ["SAMPLERS", "EvaluationArguments", "logger", "main", "name_datasets"]
