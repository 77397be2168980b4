"""The files in `configs/` parse, multiply out to the paper's numbers, and configure the launcher that they are named
after."""

from pathlib import Path

import pytest
import yaml
from accelerate import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from transformers import TrainingArguments
from trl import ModelConfig, TrlParser

import smollm
from clipo_trl import CLIPOConfig
from clipo_trl.cli.run_plan import plan_run
from clipo_trl.cli.train import parse_arguments
from clipo_trl.config import LEVELS, LOSS_TYPES
from experiments.language_model.sampling import MAX_COMPLETION_TOKENS
from train import ScriptArguments


CONFIGS = Path(__file__).parents[1] / "configs"
RUNS = ["track1_gsm8k", "track2_math", "lora_single_gpu", "quickstart", "smollm"]
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]


def parse(name: str, *overrides: str) -> tuple[ScriptArguments, CLIPOConfig, ModelConfig]:
    parser = TrlParser((ScriptArguments, CLIPOConfig, ModelConfig))
    return parser.parse_args_and_config(["--config", str(CONFIGS / f"{name}.yaml"), *ON_CPU, *overrides])


@pytest.fixture
def eight_processes(monkeypatch):
    """TRL multiplies by `world_size`; everything else is its own arithmetic."""
    monkeypatch.setattr(TrainingArguments, "world_size", property(lambda self: 8))


# ---------------------------------------------------------------------- runs


@pytest.mark.parametrize("name", RUNS)
def test_every_field_arrives(name):
    parsed = parse(name)
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    assert values.pop("bf16") is (name != "quickstart")  # off in this test, which runs on a CPU
    assert values.pop("report_to") == "none" and parsed[1].report_to == []
    values["lora_target_modules"] = values.get("lora_target_modules", [None])[0]  # `ModelConfig` unpacks a single one
    for field, value in values.items():
        (owner,) = [arguments for arguments in parsed if hasattr(arguments, field)]
        assert getattr(owner, field) == value, field


def test_unknown_field_is_refused(tmp_path):
    (tmp_path / "run.yaml").write_text("contrastive_temprature: 0.1")
    with pytest.raises(ValueError, match="contrastive_temprature"):
        TrlParser((ScriptArguments, CLIPOConfig, ModelConfig)).parse_args_and_config(
            ["--config", str(tmp_path / "run.yaml"), *ON_CPU]
        )


PAPER = {  # sizes, epochs, warm-up and embedding size of the paper's two recipes
    "track1_gsm8k": {
        "model": "Qwen/Qwen2.5-3B-Instruct",
        "num_prompts": 7473,
        "prompts_per_generation": 512,
        "prompts_per_step": 256,
        "tokens": (512, 2048),
        "epochs": 6,
        "warmup": 14,
        "dim": 512,
    },
    "track2_math": {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "num_prompts": 7500,
        "prompts_per_generation": 128,
        "prompts_per_step": 128,
        "tokens": (512, 4096),
        "epochs": 10,
        "warmup": 58,
        "dim": 2048,
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_tracks_multiply_out_to_the_paper(name, eight_processes):
    paper = PAPER[name]
    script, args, model = parse(name)
    assert model.model_name_or_path == paper["model"]
    assert (script.max_prompt_length, args.max_completion_length) == paper["tokens"]
    assert args.vllm_max_model_length == sum(paper["tokens"])

    assert args.num_generations == 16
    assert args.generation_batch_size == paper["prompts_per_generation"] * 16
    # 8 processes x rows x accumulation make an optimizer step; `steps_per_generation` of those passes make a
    # generation.
    rows = 8 * args.per_device_train_batch_size
    assert rows * args.gradient_accumulation_steps == paper["prompts_per_step"] * 16
    assert rows * args.steps_per_generation == args.generation_batch_size

    plan = plan_run(args, paper["num_prompts"])
    batches_per_epoch = paper["num_prompts"] // paper["prompts_per_generation"]
    steps_per_batch = paper["prompts_per_generation"] // paper["prompts_per_step"]
    assert args.contrastive_warmup_steps == paper["warmup"] == batches_per_epoch  # one epoch
    assert plan.prompts == paper["prompts_per_generation"]
    assert plan.prompts_per_step == paper["prompts_per_step"]
    assert plan.generation_batches == paper["epochs"] * batches_per_epoch
    assert plan.optimizer_steps == paper["epochs"] * batches_per_epoch * steps_per_batch
    # Checkpoints stand between generation batches, where a run resumes exactly.
    assert args.save_steps % steps_per_batch == 0

    assert (args.contrastive_temperature, args.contrastive_reward_weight) == (0.05, 0.2)
    assert args.contrastive_embedding_dim == paper["dim"]
    assert (args.learning_rate, args.lr_scheduler_type) == (1e-6, "constant")
    assert (args.loss_type, args.beta, args.epsilon, args.epsilon_high) == ("dapo", 0.001, 0.2, None)


def test_lora_on_one_gpu():
    script, args, model = parse("lora_single_gpu")
    plan = plan_run(args, 7473)
    assert plan == (8, 8, 300, 300)
    assert args.contrastive_warmup_steps < plan.generation_batches
    assert model.use_peft and model.lora_target_modules == "all-linear"


def test_a_language_model_on_a_cpu():
    """The file fits what its script makes: folders, lengths, and a group in each batch."""
    script, args, model = parse("smollm", "--bf16", "true")
    assert Path(model.model_name_or_path) == smollm.MODELS / smollm.WARM_START / "model"
    assert Path(script.dataset_name) == smollm.FOLDER / "train.jsonl"
    assert args.use_cpu and args.bf16 and model.use_peft and args.contrastive_step_reward == "steps_reward"
    assert plan_run(args, 800)[:2] == (4, 4)
    assert args.max_completion_length <= MAX_COMPLETION_TOKENS


@pytest.mark.parametrize("name", RUNS)
def test_command_line_has_the_last_word(name):
    script, args, model = parse(name, "--contrastive_temperature", "0.5", "--dataset_name", "x", "--use_vllm", "false")
    assert (args.contrastive_temperature, script.dataset_name, args.use_vllm) == (0.5, "x", False)


# ---------------------------------------------------------------------- ablations, over a run's file

ABLATIONS = {
    **{f"loss_{name}": {"contrastive_loss_type": name} for name in LOSS_TYPES},
    **{f"temperature_{tau}": {"contrastive_temperature": tau} for tau in (0.02, 0.05, 0.1, 0.2)},
    **{f"group_size_{size}": {"num_generations": size} for size in (4, 8, 16, 32)},
    **{f"level_{name}": {"contrastive_level": name} for name in LEVELS},
    "head_frozen": {"freeze_contrastive_head": True, "contrastive_warmup_steps": 0},
    "warmup_none": {"contrastive_warmup_steps": 0},
    "warmup_verifiable_reward": {"contrastive_warmup_policy": "verifiable_reward"},
    "grpo": {"contrastive_reward_weight": 0.0},
}


def test_every_ablation_is_named_after_what_it_sets():
    files = {path.stem: yaml.safe_load(path.read_text()) for path in (CONFIGS / "ablations").glob("*.yaml")}
    assert files == ABLATIONS


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_changes_its_fields_and_no_other(ablation, eight_processes):
    for name in ("track1_gsm8k", "track2_math"):
        paths = [str(CONFIGS / f"{name}.yaml"), str(CONFIGS / "ablations" / f"{ablation}.yaml")]
        base = parse_arguments(["--config", paths[0], *ON_CPU])
        ours = parse_arguments(["--config", *paths, *ON_CPU])
        changed = {
            field: value
            for before, after in zip(base, ours, strict=True)
            for field, value in vars(after).items()
            if repr(vars(before)[field]) != repr(value) and field != "logging_dir"
        }
        assert changed.items() <= ABLATIONS[ablation].items()
        assert all(getattr(ours[1], field) == value for field, value in ABLATIONS[ablation].items())


# ---------------------------------------------------------------------- launchers


@pytest.fixture
def launch(monkeypatch):
    """Environment that `accelerate launch --config_file ...` gives to the processes it starts."""

    def environment(name: str) -> dict[str, str]:
        path = str(CONFIGS / "accelerate" / f"{name}.yaml")
        arguments = launch_command_parser().parse_args(["--config_file", path, "train.py"])
        arguments, config, _ = _validate_launch_command(arguments)
        arguments.deepspeed_fields_from_accelerate_config = ",".join(config.deepspeed_config)
        prepare = prepare_deepspeed_cmd_env if arguments.use_deepspeed else prepare_multi_gpu_env
        environment = prepare(arguments)
        environment = environment[1] if isinstance(environment, tuple) else environment
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        assert arguments.num_processes == config.num_processes
        return environment

    return environment


@pytest.mark.parametrize(
    ("name", "distributed_type", "num_processes"),
    [
        ("single", "NO", 1),
        ("ddp", "MULTI_GPU", 8),
        ("zero2", "DEEPSPEED", 8),
        ("zero3", "DEEPSPEED", 8),
        ("fsdp2", "FSDP", 8),
    ],
)
def test_accelerate_reads(name, distributed_type, num_processes):
    config = load_config_from_file(str(CONFIGS / "accelerate" / f"{name}.yaml"))
    assert (config.distributed_type.value, config.num_processes) == (distributed_type, num_processes)
    assert config.mixed_precision == "bf16" and not config.use_cpu


def test_every_launcher_is_tested():
    assert {path.stem for path in (CONFIGS / "accelerate").iterdir()} == {"single", "ddp", "zero2", "zero3", "fsdp2"}


def test_ddp_launches_one_process_a_gpu(launch):
    environment = launch("ddp")
    assert "ACCELERATE_USE_FSDP" not in environment and "ACCELERATE_USE_DEEPSPEED" not in environment


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3)])
def test_zero(launch, name, stage):
    pytest.importorskip("deepspeed")
    assert launch(name)["ACCELERATE_USE_DEEPSPEED"] == "true"
    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == stage
    assert plugin.zero3_init_flag == plugin.zero3_save_16bit_model == (stage == 3)
    # Left to the trainer, so that they cannot contradict it.
    for field in ("gradient_accumulation_steps", "gradient_clipping", "train_micro_batch_size_per_gpu"):
        assert plugin.deepspeed_config[field] == "auto"
    assert "optimizer" not in plugin.deepspeed_config


def test_fsdp2(launch):
    assert launch("fsdp2")["ACCELERATE_USE_FSDP"] == "true"
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type.name == "FULL_STATE_DICT"
