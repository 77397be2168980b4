"""Train a model with CLIPO: `clipo train` as a script, for launchers.

accelerate launch --config_file configs/accelerate/zero2.yaml train.py --config configs/track1_gsm8k.yaml
python train.py --config configs/lora_single_gpu.yaml --learning_rate 5e-6 --contrastive_reward_weight 0.1
"""

from clipo_trl.cli.main import run_train


if __name__ == "__main__":
    run_train()
else:
    from clipo_trl.cli.train import ScriptArguments, load_eval_datasets, main


__all__ = ["ScriptArguments", "load_eval_datasets", "main"]
