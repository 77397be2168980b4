"""The estimate of memory: against the tensors of a run, and against the sizes of a model that people know."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM, MambaConfig, Qwen2Config

from clipo_trl import CLIPOTrainer
from clipo_trl.cli.memory import GIB, PolicyShape, describe_memory, estimate, quantized, shape_of


QWEN = Qwen2Config(
    hidden_size=1536,
    intermediate_size=8960,
    num_hidden_layers=28,
    num_attention_heads=12,
    num_key_value_heads=2,
    vocab_size=151936,
    tie_word_embeddings=True,
)


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def moments(optimizer):
    return [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_optimizer_and_head_are_those_of_a_run(tmp_path, dtype):
    gradients = []
    model = tiny_model().to(dtype)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: gradients.append(p.grad.clone()))
    args = tiny_config(tmp_path, max_steps=1)
    trainer = CLIPOTrainer(
        model, letters_reward, args, train_dataset=tiny_dataset(), processing_class=tiny_tokenizer()
    )
    trainer.train()
    head = list(trainer.contrastive_head.parameters())
    parts = estimate(trainer.args, shape_of(trainer.model), sum(p.numel() for p in head), 8)
    weights = bytes_of(trainer.model.parameters())
    assert parts["weights"] == weights
    assert parts["gradients"] == bytes_of(gradients)
    assert parts["optimizer"] == bytes_of(moments(trainer.optimizer.optimizer))
    assert parts["head"] == 2 * bytes_of(head) + bytes_of(moments(trainer.head_learner.optimizer))
    assert parts["reference"] == 0


def shape_of_qwen(adapter=None, dtype=torch.bfloat16) -> PolicyShape:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(QWEN, dtype=dtype)
        return shape_of(model if adapter is None else get_peft_model(model, adapter))


def test_the_shape_of_a_model_without_weights():
    shape = shape_of_qwen()
    assert shape.n_parameters == shape.n_trained == 1_543_714_304  # Qwen2.5-1.5B
    assert shape.weight_bytes == shape.trained_bytes == 2 * shape.n_parameters
    assert (shape.n_layers, shape.hidden_size, shape.vocab_size) == (28, 1536, 151936)
    assert shape.cache_size == 2 * 28 * 2 * 128 and not shape.is_adapted
    adapted = shape_of_qwen(LoraConfig(r=8, target_modules=["q_proj"]))
    assert adapted.is_adapted and adapted.n_trained == 28 * 8 * (1536 + 1536)
    assert quantized(adapted, 4).weight_bytes == shape.n_parameters // 2 + adapted.trained_bytes


def arguments(tmp_path, **settings):
    settings = {"max_completion_length": 2048, "per_device_train_batch_size": 8, "bf16": True} | settings
    return tiny_config(tmp_path, gradient_checkpointing=False, **settings)


def test_what_the_settings_change(tmp_path):
    shape = shape_of_qwen()
    plain = estimate(arguments(tmp_path), shape, 0, 512)
    assert plain["rollouts"] == 2 * 8 * 2560 * shape.cache_size
    with_reference = estimate(arguments(tmp_path, beta=0.1), shape, 0, 512)
    assert with_reference == plain | {"reference": plain["weights"]}
    adapted = shape_of_qwen(LoraConfig(r=8, target_modules=["q_proj"]))
    assert estimate(arguments(tmp_path, beta=0.1), adapted, 0, 512)["reference"] == 0
    halved = estimate(arguments(tmp_path, per_device_train_batch_size=4, steps_per_generation=2), shape, 0, 512)
    assert halved["training pass"] * 2 == plain["training pass"] and halved["rollouts"] == plain["rollouts"]
    assert estimate(arguments(tmp_path), shape, 1000, 512) == plain | {"head": 16_000}


@pytest.mark.parametrize("stage, shared", [(1, ["optimizer"]), (2, ["optimizer", "gradients"])])
def test_what_processes_share_out(tmp_path, monkeypatch, stage, shared):
    shape = shape_of_qwen()
    alone = estimate(arguments(tmp_path), shape, 0, 512)
    args = arguments(tmp_path)
    monkeypatch.setattr(type(args), "world_size", 4)
    args.deepspeed_plugin = plugin(stage)
    parts = estimate(args, shape, 0, 512)
    assert parts["optimizer"] == 3 * 4 * shape.n_trained // 4  # two moments and float32 copies
    for name in {"weights", "gradients"}:
        assert parts[name] == alone[name] // (4 if name in shared else 1)


def test_fsdp_shares_the_weights_too(tmp_path, monkeypatch):
    args, shape = arguments(tmp_path), shape_of_qwen()
    monkeypatch.setattr(type(args), "world_size", 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert estimate(args, shape, 0, 512)["weights"] == shape.weight_bytes // 2


def test_the_line_names_what_is_needed_at_once(tmp_path):
    parts = dict.fromkeys(("weights", "gradients", "optimizer", "reference", "head"), GIB)
    parts |= {"rollouts": 3 * GIB, "training pass": 2 * GIB}
    line = describe_memory(arguments(tmp_path), parts, 512)
    assert line.startswith("about 8.00 GiB a process (weights 1.00, ") and "rollouts 3.00" in line
    small = describe_memory(arguments(tmp_path), {name: size // 2**10 for name, size in parts.items()}, 512)
    assert small.startswith("about 8.00 MiB a process (weights 1.00, ")
    assert "prompts of 512 tokens and completions of 2,048" in line


def test_a_model_without_attention_has_no_cache():
    config = MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, vocab_size=50)
    shape = shape_of(AutoModelForCausalLM.from_config(config))
    assert shape.cache_size == 0 and shape.hidden_size == 16


def plugin(stage, **zero):
    config = {"zero_optimization": {"stage": stage, **zero}}
    return type("Plugin", (), {"zero_stage": stage, "deepspeed_config": config})


def test_deepspeed_casts_what_is_held_in_float32(tmp_path, monkeypatch):
    args, shape = arguments(tmp_path, beta=0.1), shape_of_qwen(dtype=torch.float32)
    monkeypatch.setattr(type(args), "world_size", 4)
    args.deepspeed_plugin = plugin(3)
    parts, n = estimate(args, shape, 0, 512), shape.n_trained
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (2 * n // 4, 2 * n // 4, 12 * n // 4)
    assert parts["reference"] == 2 * n // 4
    cache = 2 * 2 * 2560 * shape.cache_size
    assert parts["rollouts"] == cache + 2 * n - 2 * n // 4  # all weights are gathered for generation
    args.ds3_gather_for_generation = False
    assert estimate(args, shape, 0, 512)["rollouts"] == cache
    monkeypatch.setattr(type(args), "world_size", 1)
    args.deepspeed_plugin = plugin(2, offload_optimizer={"device": "cpu"})
    assert estimate(args, shape, 0, 512)["optimizer"] == 0
    args.deepspeed_plugin = None
    assert estimate(args, shape, 0, 512)["weights"] == 4 * n  # without DeepSpeed they stay as they are


def test_logits_stand_there_whole_where_trl_has_no_tiles(tmp_path, monkeypatch):
    args, shape = arguments(tmp_path), shape_of_qwen()
    tiled = estimate(args, shape, 0, 512)["training pass"]
    monkeypatch.delattr("trl.trainer.utils.add_fused_lm_head", raising=False)
    assert estimate(args, shape, 0, 512)["training pass"] == tiled + 2 * 2 * 8 * 2048 * 151936
