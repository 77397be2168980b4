"""
Small trainings that can be run alone or as one of several processes, with the same rollouts in either case.

    torchrun --standalone --nproc_per_node 2 tests/distributed_worker.py BACKEND OUTPUT_DIR CASE [CASE ...]

Every process writes what it saw into `OUTPUT_DIR/CASE.PROCESS.pt`. The launchers that look right and run one process,
or run DDP instead of FSDP, are many: so world size and wrapper are among what is written, for the test to check.
"""

import os
import random
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from datetime import timedelta

import numpy as np
import torch
from accelerate import PartialState
from safetensors.torch import save
from tiny_models import tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from transformers.integrations import unset_hf_deepspeed_config

from clipo_trl import CLIPOConfig, CLIPOConSPOConfig, CLIPOConSPOTrainer, CLIPOTrainer


N_ROLLOUTS = 12  # three groups of 4: the middle one straddles two processes
ZERO = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": "auto"},
    "zero_allow_untested_optimizer": True,
}
SETTINGS = {
    "ddp": {},
    "zero2": {"deepspeed": {**ZERO, "zero_optimization": {"stage": 2}}},
    # Threshold 0: otherwise parameters as small as these stay whole, and nothing is shown.
    "zero3": {
        "deepspeed": {
            **ZERO,
            "zero_optimization": {
                "stage": 3,
                "stage3_param_persistence_threshold": 0,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
        }
    },
    "fsdp2": {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "reshard_after_forward": True,
            "transformer_layer_cls_to_wrap": ["Qwen2DecoderLayer"],
        },
        "accelerator_config": {"use_configured_state": True},
    },
    "ddp_5s": {"accelerator_config": {"use_configured_state": True}},
    "nccl": {"use_cpu": False},
    "alone": {},
}


def start(backend: str) -> None:
    """What comes before the first trainer."""
    torch.set_num_threads(1)
    if backend.startswith("zero"):
        import deepspeed
        import deepspeed.ops

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # saves a compilation of a minute
        from trl import GRPOConfig

        GRPOConfig(
            output_dir="unused", use_cpu=True, bf16=False, report_to=[], deepspeed=SETTINGS[backend]["deepspeed"]
        )
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    elif backend == "ddp_5s":  # what `ddp_timeout` does where there are GPUs; with `use_cpu=True` nothing reads it
        PartialState(cpu=True, timeout=timedelta(seconds=5))
    elif backend == "fsdp2":
        from accelerate.utils import DistributedType

        PartialState(cpu=True)  # accelerate takes FSDP for a matter of GPUs: let it take these processes for such
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU


def world() -> tuple[int, int]:
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


# ---------------------------------------------------------------------- trainers that tell what they did


class Recording(CLIPOTrainer):
    """Keeps rewards, contrastive column, head and traffic of each generation batch."""

    mode = None

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.fetched_ahead = [], []

    def training_step(self, *args, **kwargs):
        loss = super().training_step(*args, **kwargs)
        optimizer = getattr(self.model_wrapped, "optimizer", None)
        if hasattr(optimizer, "parameter_offload"):  # ZeRO-3; its order of layers was that of the step before
            self.fetched_ahead.append(optimizer.parameter_offload.get_param_coordinator().is_complete_trace())
        return loss

    def _choose_capture_mode(self, reader):
        return self.mode or super()._choose_capture_mode(reader)

    def _contrastive_column(self, rewards_per_func, pooled_BH):
        rewards = rewards_per_func[:, 0].clone()
        with count_bytes() as traffic:
            column = super()._contrastive_column(rewards_per_func, pooled_BH)
        self.seen.append({"rewards": rewards, "column": column, "head": flat_head(self), "bytes": sum(traffic)})
        return column


class SameRollouts(Recording):
    """Draws tokens by place: the same for a row of a generation batch, on whichever process that row is."""

    def _generate(self, prompts):
        rank, size = world()
        rows = slice(rank * len(prompts), (rank + 1) * len(prompts))
        count = iter(range(10_000))
        batch = self.head_learner.n_batches

        def draw(probabilities, num_samples):
            generator = torch.Generator().manual_seed(1_000 * batch + next(count))
            level = torch.rand(size * len(prompts), generator=generator)[rows].unsqueeze(1)
            level = level.to(probabilities.device)
            cumulative = probabilities.float().cumsum(1)
            return (cumulative < level * cumulative[:, -1:]).sum(1, keepdim=True)

        multinomial, torch.multinomial = torch.multinomial, draw
        try:
            return super()._generate(prompts)
        finally:
            torch.multinomial = multinomial


class SameContrasts(CLIPOConSPOTrainer, SameRollouts):
    """ConSPO with CLIPO's head."""


class KilledInStep(Recording):
    """Loses a process in the middle of a step."""

    def training_step(self, *args, **kwargs):
        if self.state.global_step == 4:
            die()
        return super().training_step(*args, **kwargs)


class KilledInSave(Recording):
    """Loses a process in the middle of its second checkpoint."""

    def _save_rng_state(self, output_dir):
        if self.state.global_step == 6:
            die()
        super()._save_rng_state(output_dir)


class KilledInHead(Recording):
    """Loses a process when half of the second checkpoint's head is written."""

    def _save_head(self, folder):
        if self.state.global_step == 6:
            half = os.path.join(folder, "_contrastive_head", "model.safetensors")
            os.makedirs(os.path.dirname(half))
            with open(half, "wb") as file:
                file.write(save(self.contrastive_head.state_dict())[:200])
            die()
        super()._save_head(folder)


class OtherHead(Recording):
    """One process' head is another one, from the start or from the end of a step on."""

    when = "start"

    def _contrastive_column(self, *args):
        if self.when == "start":
            flip(self, 23)
        return super()._contrastive_column(*args)

    def _save_checkpoint(self, *args):
        if self.when == "save":
            flip(self, 23)
        super()._save_checkpoint(*args)


class RoundedHead(Recording):
    """One process' head comes to differ in the last bit of a weight, at the third generation batch and at the second
    save."""

    def _contrastive_column(self, *args):
        if self.head_learner.n_batches == 2:
            flip(self, 0)
        return super()._contrastive_column(*args)

    def _save_checkpoint(self, *args):
        if self.state.global_step == 6:
            flip(self, 0)
        super()._save_checkpoint(*args)


def flip(trainer, bit: int) -> None:
    """Turn a bit of a weight on process 1, and of what its optimizer remembers: 0 is the last, 23 makes it twice or
    half."""
    if world()[0] == 1:
        weight = next(trainer.contrastive_head.parameters())
        for tensor in (weight.data, trainer.head_learner.optimizer.state.get(weight, {}).get("exp_avg")):
            if tensor is not None:
                tensor.view(torch.int32)[0, 0] ^= 1 << bit


def die() -> None:
    """The last process goes without a word; `kill -9` of the others is the launcher's part."""
    if world()[0] == world()[1] - 1:
        os.kill(os.getpid(), signal.SIGKILL)


def flat_head(trainer) -> torch.Tensor:
    return torch.cat([weight.detach().flatten().clone() for weight in trainer.contrastive_head.parameters()])


@contextmanager
def count_bytes():
    """Bytes that this process hands to collective operations."""
    sent = []
    names = ("all_gather", "all_gather_into_tensor", "all_reduce", "broadcast", "reduce", "gather")
    originals = {name: getattr(torch.distributed, name) for name in names}

    def counting(name):
        def wrapped(*args, **kwargs):
            tensor = args[1] if name in ("all_gather", "all_gather_into_tensor") else args[0]
            sent.append(tensor.numel() * tensor.element_size())
            return originals[name](*args, **kwargs)

        return wrapped

    for name in names:
        setattr(torch.distributed, name, counting(name))
    try:
        yield sent
    finally:
        for name in names:
            setattr(torch.distributed, name, originals[name])


# ---------------------------------------------------------------------- the cases


def even(completions, **kwargs):
    return [float(len(completion[0]["content"]) % 2 == 0) for completion in completions]


def short(completions, **kwargs):
    return [float(len(completion[0]["content"]) < 6) for completion in completions]


def even_in_first_group(completions, **kwargs):
    first = world()[0] * len(completions)
    return [float(reward and first + i < 4) for i, reward in enumerate(even(completions))]


def from_elsewhere(prompts, trainer):
    """Rollouts that the policy does not generate itself, the same for a row of a generation batch on any process."""
    tokenizer, first = trainer.processing_class, world()[0] * len(prompts)
    draws = torch.Generator().manual_seed(trainer.head_learner.n_batches)
    lengths = torch.randint(1, 9, (world()[1] * len(prompts),), generator=draws).tolist()
    tokens = torch.randint(3, 20, (len(lengths), max(lengths)), generator=draws).tolist()
    completion_ids = [tokens[row][: lengths[row]] for row in range(first, first + len(prompts))]
    return {
        "prompt_ids": [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts
        ],
        "completion_ids": completion_ids,
        "logprobs": [[-1.0] * len(ids) for ids in completion_ids],
    }


def never(completions, **kwargs):
    return [0.0] * len(completions)


def second_half(completions, **kwargs):
    """Groups on the first process, or in the first half of one process alone, are all wrong."""
    n, (rank, size) = len(completions), world()
    return [float(rank * n + i >= n * size / 2 and i % 2) for i in range(n)]


def first_prompt(completions, solution, **kwargs):
    """Right for the first question alone."""
    return [float(number == "0") for number in solution]


def sleeps(completions, **kwargs):
    if world()[0] == 1:
        time.sleep(60)
    return even(completions)


# Two steps a generation batch: checkpoint 3 falls between them, and between two logs; checkpoint 6 does not.
LONG = {
    "trainer_class": Recording,
    "steps_per_generation": 2,
    "max_steps": 8,
    "save_strategy": "steps",
    "save_steps": 3,
    "logging_steps": 2,
    "contrastive_warmup_steps": 1,
}
CONSPO = {  # with plain SGD, small differences of gradients stay small
    "trainer_class": SameContrasts,
    "config_class": CLIPOConSPOConfig,
    "conspo_contrastive_scale": 2.0,
    "conspo_temperature": 0.5,
    "optim": "sgd",
    "learning_rate": 1e-2,
}
CASES = {
    "decode": {},
    "forward": {"mode": "forward"},
    "from_elsewhere": {"rollout_func": from_elsewhere, "max_steps": 6},
    "fused": {"num_iterations": 2, "max_steps": 6},
    "images": {"family": "Qwen2.5-VL"},
    "images_forward": {"family": "LLaVA", "mode": "forward"},
    "mean": {"contrastive_debias": "mean_subtract", "contrastive_level": "cross", "contrastive_head_type": "mlp"},
    "agreement": {
        "contrastive_reward_type": "agreement",
        "contrastive_debias": "group_center",
        "contrastive_step_reward": "short",
        "contrastive_calibration": True,
        "contrastive_reward_weight": 1.0,
        "log_completions": True,
        "reward": [even, short],
    },
    "likelihood": {
        "contrastive_reward_type": "likelihood",
        "contrastive_score_scale": "group",
        "contrastive_step_reward": "short",
        "contrastive_reward_weight": 1.0,
        "reward": [even, short],
    },
    "one_group": {"reward": even_in_first_group},
    "no_group": {"reward": never},
    "warmup": {"contrastive_warmup_steps": 2},
    "conspo": CONSPO,
    "conspo_parts": {**CONSPO, "gradient_accumulation_steps": 2, "num_iterations": 2},
    "wide": {"n_rollouts": 24},
    "tied_gather_off": {"tied": True, "ds3_gather_for_generation": False},
    "untied_gather_off": {"ds3_gather_for_generation": False},
    "lora": {"lora": True},
    "lora_gather_off": {"lora": True, "ds3_gather_for_generation": False, "mode": "forward"},
    "dynamic": {"dynamic_sampling": True},
    "dynamic_lora": {"dynamic_sampling": True, "lora": True},
    "dynamic_one_side": {"dynamic_sampling": True, "reward": second_half, "n_rollouts": 16},
    "dynamic_none": {"dynamic_sampling": True, "reward": never, "dynamic_sampling_max_attempts": 3},
    "dynamic_long": {**LONG, "dynamic_sampling": True},
    "continuous_batching": {
        "bf16": True,
        "use_transformers_continuous_batching": True,
        "transformers_continuous_batching_config": {"block_size": 32, "num_blocks": 16, "max_batch_tokens": 64},
        "trainer_class": Recording,
    },
    "bf16_full_eval": {"bf16_full_eval": True},
    "accuracy": {"reward": first_prompt, "per_device_eval_batch_size": 1, "num_generations_eval": 1},
    "hang": {"reward": sleeps},
    "rounded_head": {**LONG, "trainer_class": RoundedHead},
    "other_head": {"trainer_class": OtherHead},
    "other_head_at_save": {"trainer_class": OtherHead, "when": "save", "save_strategy": "steps", "save_steps": 2},
    "whole": LONG,
    "killed_in_step": {**LONG, "trainer_class": KilledInStep},
    "killed_in_head": {**LONG, "trainer_class": KilledInHead},
    "killed_in_save": {**LONG, "trainer_class": KilledInSave},
}


def make_trainer(
    backend: str,
    output_dir,
    trainer_class=SameRollouts,
    config_class=CLIPOConfig,
    reward=even,
    n_rollouts=N_ROLLOUTS,
    lora=False,
    tied=False,
    mode=None,
    when=None,
    rollout_func=None,
    family=None,
    **settings,
):
    defaults = {
        "max_steps": 4,
        "learning_rate": 1e-3,
        "contrastive_learning_rate": 1e-2,
        "per_device_train_batch_size": n_rollouts // world()[1],
        "use_cpu": backend != "fsdp2",
        **SETTINGS[backend],
    }
    model, processor, dataset, more = tiny_model(), tiny_tokenizer(), tiny_dataset(), {}
    if family is not None:
        from tiny_vision import picture_dataset, tiny_vision_model

        unset_hf_deepspeed_config()  # that of a case before: its tower would be made in parts
        (model, processor), dataset = tiny_vision_model(family), picture_dataset("image")
    if tied:
        model.config.tie_word_embeddings = True
        model.tie_weights()
    if lora:
        from peft import LoraConfig

        more["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using 'rollout_func'", UserWarning)
        return type(trainer_class.__name__, (trainer_class,), {"mode": mode, "when": when or "start"})(
            model,
            reward,
            tiny_config(output_dir, config_class, **{**defaults, **settings}),
            train_dataset=dataset,
            processing_class=processor,
            rollout_func=rollout_func,
            **more,
        )


def report(trainer) -> dict:
    """What a run has come to, as this process sees it."""
    parameters = list(trainer.model.parameters())
    # This process' part of each parameter: under ZeRO-3, under FSDP2, else the whole.
    parts = [getattr(p, "ds_tensor", getattr(p, "_local_tensor", p)) for p in parameters]
    timed = ("time", "seconds", "per_second")
    return {
        "mode": trainer.states.mode,
        "world_size": trainer.accelerator.num_processes,
        "wrapper": type(trainer.model_wrapped).__name__,
        "share": sum(part.numel() for part in parts) / sum(getattr(p, "ds_numel", p.numel()) for p in parameters),
        "weights": [part.detach().clone() for part in parts],
        "head": flat_head(trainer),
        "mean": trainer.contrastive_head.mean_H,
        "moments": [state["exp_avg"] for state in trainer.head_learner.optimizer.state.values()],
        "seen": trainer.seen,
        "fetched_ahead": trainer.fetched_ahead,
        "log": [
            {key: value for key, value in row.items() if not any(word in key for word in timed)}
            for row in trainer.state.log_history
            if "loss" in row
        ],
        "random": (random.random(), np.random.rand(), torch.rand(1).item()),
    }


def run(backend: str, output_dir, case: str) -> dict:
    """A case by its name; `CASE@FOLDER` goes on from the last whole checkpoint of `FOLDER`, or from `FOLDER`
    itself."""
    case, _, checkpoint = case.partition("@")
    checkpoint = os.path.join(output_dir, checkpoint) if checkpoint else None
    in_run = checkpoint is not None and "checkpoint-" not in checkpoint
    folder = checkpoint if in_run else os.path.join(output_dir, case)
    trainer = make_trainer(backend, folder, **CASES[case])
    if case == "accuracy":  # three questions on two processes: the last batch is filled up
        return {"metrics": trainer.evaluate(tiny_dataset(3))}
    if case == "bf16_full_eval":  # of a policy that trains on
        trainer.train()
        trainer.evaluate(tiny_dataset(4))
    try:
        trainer.train(resume_from_checkpoint=True if in_run else checkpoint)
    except RuntimeError as error:
        if "contrastive_head" not in str(error):
            raise
        return {"error": str(error)}
    return report(trainer)


def main(backend: str, output_dir: str, *cases: str) -> None:
    start(backend)
    for case in cases:
        result = run(backend, output_dir, case)
        torch.save(result, os.path.join(output_dir, f"{case.replace('/', '_')}.{world()[0]}.pt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
    # All is saved. Python's teardown is left out: threads of the gloo backend that still run abort it now and then.
    torch.distributed.barrier()
    sys.stdout.flush()
    os._exit(0)
