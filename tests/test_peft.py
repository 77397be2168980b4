"""Adapters: pooled states are the policy's, adapter on; the head lies beside the adapter."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from recording import CAPTURE_MODES, assert_right, full_forward_states, record, settings_of
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from transformers import BitsAndBytesConfig
from trl import GRPOConfig, GRPOTrainer

from clipo_trl import CLIPOTrainer, ContrastiveHead
from clipo_trl.head import HEAD_FOLDER, load_head


# Adapters that change the states from the first step on, unlike freshly initialised ones.
LORA = {"r": 4, "lora_alpha": 32, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
IA3 = {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"], "init_ia3_weights": False}
ADAPTERS = {
    "LoRA": LoraConfig(**LORA),
    "DoRA": LoraConfig(**LORA, use_dora=True),
    "rsLoRA on all linear layers": LoraConfig(**{**LORA, "target_modules": "all-linear"}, use_rslora=True),
    "IA3": IA3Config(**IA3),
}


def pre_adapted(adapter="LoRA"):
    model = tiny_model()
    return get_peft_model(model, ADAPTERS[adapter])


def adapter_weights(model, name="default"):
    return {key: value.detach().clone() for key, value in model.named_parameters() if f".{name}" in key}


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_states_are_those_with_the_adapter_on(tmp_path, adapter, mode, beta):
    trainer = record(
        tmp_path, mode, trainer_kwargs={"peft_config": ADAPTERS[adapter]}, beta=beta, max_steps=2, **settings_of(mode)
    )
    assert_right(trainer, atol=3e-5)  # rsLoRA's larger scale enlarges the rounding
    tokens, pooled, _ = trainer.records[0]
    with trainer.model.disable_adapter():
        assert not torch.allclose(pooled, full_forward_states(trainer.model, tokens), atol=1e-2)


@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.parametrize("adapter", ["LoRA", "DoRA"])
@pytest.mark.slow
def test_an_adapter_trained_before_and_the_copy_that_is_the_reference(tmp_path, adapter, mode):
    model = pre_adapted(adapter)
    start = adapter_weights(model)
    trainer = record(
        tmp_path,
        mode,
        model=model,
        beta=0.1,
        max_steps=3,
        learning_rate=0.1,
        lr_scheduler_type="constant",
        **settings_of(mode),
    )
    assert set(trainer.model.peft_config) == {"default", "ref"} and trainer.model.active_adapter == "default"
    assert_right(trainer)
    tokens, pooled, _ = trainer.records[-1]
    trainer.model.set_adapter("ref")  # what the policy was when it came
    assert not torch.allclose(pooled, full_forward_states(trainer.model, tokens), atol=1e-2)
    reference = {key.replace(".ref", ".default"): value for key, value in adapter_weights(model, "ref").items()}
    assert reference.keys() == start.keys() and all(torch.equal(reference[key], start[key]) for key in start)
    assert not all(torch.equal(value, start[key]) for key, value in adapter_weights(model).items())


@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.slow
def test_weight_zero_is_grpo_with_an_adapter_and_its_dropout(tmp_path, mode, beta):
    adapter = LoraConfig(**LORA, lora_dropout=0.3)
    settings = {"max_steps": 3, "beta": beta, **settings_of(mode)}
    grpo = GRPOTrainer(
        tiny_model(),
        letters_reward,
        tiny_config(tmp_path, GRPOConfig, **settings),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
        peft_config=adapter,
    )
    grpo.train()
    settings["contrastive_reward_weight"] = 0.0
    clipo = record(tmp_path, mode, trainer_kwargs={"peft_config": adapter}, **settings)
    first, second = adapter_weights(grpo.model), adapter_weights(clipo.model)
    assert first and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_dropout_is_in_the_states_of_the_rollouts_but_not_in_a_pass_of_our_own(tmp_path, mode):
    adapter = LoraConfig(**LORA, lora_dropout=0.5)
    for disabled in (False, True):
        trainer = record(
            tmp_path,
            mode,
            trainer_kwargs={"peft_config": adapter},
            disable_dropout=disabled,
            max_steps=1,
            **settings_of(mode),
        )
        _, pooled, without = trainer.records[0]
        assert torch.allclose(pooled, without, atol=1e-4) == (disabled or mode == "forward")


@pytest.mark.parametrize("layer", [0, -2])
def test_an_inner_layer_under_an_adapter(tmp_path, layer):
    for mode in CAPTURE_MODES:
        trainer = record(
            tmp_path,
            mode,
            trainer_kwargs={"peft_config": ADAPTERS["LoRA"]},
            contrastive_layer=layer,
            max_steps=1,
            **settings_of(mode),
        )
        assert_right(trainer)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_activation_checkpointing_under_an_adapter(tmp_path, mode, reentrant):
    trainer = record(
        tmp_path,
        mode,
        trainer_kwargs={"peft_config": ADAPTERS["LoRA"]},
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
        max_steps=2,
        **settings_of(mode),
    )
    assert_right(trainer)


@pytest.mark.parametrize("prepared", [False, True], ids=["peft_config", "PeftModel with a reference"])
def test_the_head_is_saved_beside_the_adapter(tmp_path, prepared):
    model = pre_adapted() if prepared else None
    trainer = record(
        tmp_path,
        model=model,
        trainer_kwargs={} if prepared else {"peft_config": ADAPTERS["LoRA"]},
        beta=0.1,
        save_strategy="steps",
        save_steps=2,
    )
    trainer.save_model()
    for folder in (tmp_path, tmp_path / "checkpoint-2"):
        assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()
        assert (folder / HEAD_FOLDER / "model.safetensors").is_file()
    adapted, head = PeftModel.from_pretrained(tiny_model(), tmp_path), load_head(str(tmp_path), 16)
    assert all(
        torch.equal(a, b) for a, b in zip(head.parameters(), trainer.contrastive_head.parameters(), strict=True)
    )
    tokens = trainer.records[-1][0]
    torch.testing.assert_close(full_forward_states(adapted, tokens), full_forward_states(trainer.model, tokens))


def test_resuming_with_an_adapter_goes_on_where_the_run_was(tmp_path):
    def make():
        return CLIPOTrainer(
            tiny_model(),
            letters_reward,
            tiny_config(tmp_path, max_steps=4, save_strategy="steps", save_steps=2),
            train_dataset=tiny_dataset(),
            processing_class=tiny_tokenizer(),
            peft_config=LoraConfig(**LORA, lora_dropout=0.1),
        )

    whole = make()
    whole.train()
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    first, second = adapter_weights(whole.model), adapter_weights(resumed.model)
    assert first and all(torch.equal(first[key], second[key]) for key in first)
    heads = zip(whole.contrastive_head.parameters(), resumed.contrastive_head.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in heads)


@pytest.mark.parametrize(
    "adapter",
    [
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
        LoraConfig(**LORA, task_type="CAUSAL_LM", alora_invocation_tokens=[3]),
    ],
    ids=["prompt tuning", "prefix tuning", "activated LoRA"],
)
def test_adapters_that_act_outside_the_decoder_are_refused(tmp_path, adapter):
    with pytest.raises(ValueError, match=f"'default' is a `{type(adapter).__name__}`.*Use an adapter"):
        record(tmp_path, trainer_kwargs={"peft_config": adapter})


@pytest.mark.gpu
@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.parametrize("prepared", [False, True], ids=["peft_config", "PeftModel with a reference"])
def test_qlora(tmp_path, mode, prepared):
    """4-bit weights below a LoRA. What the states are compared with goes through the same 4-bit kernels."""
    pytest.importorskip("bitsandbytes")
    from peft import prepare_model_for_kbit_training
    from transformers import AutoModelForCausalLM

    base = tmp_path / "base"
    tiny_model(hidden_size=64).save_pretrained(base)
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)
    if prepared:
        quantised = AutoModelForCausalLM.from_pretrained(base, quantization_config=four_bits, device_map={"": 0})
        model, extra = get_peft_model(prepare_model_for_kbit_training(quantised), ADAPTERS["LoRA"]), {}
    else:
        model, extra = str(base), {"peft_config": ADAPTERS["LoRA"], "quantization_config": four_bits}
    trainer = record(
        tmp_path,
        mode,
        model=model,
        trainer_kwargs=extra,
        beta=0.1,
        use_cpu=False,
        bf16=True,
        max_steps=2,
        **settings_of(mode),
    )
    assert trainer.model.get_base_model().is_loaded_in_4bit
    for _, pooled, expected in trainer.records:
        assert pooled.dtype == torch.float32 and pooled.isfinite().all()
        cosine = torch.nn.functional.cosine_similarity(pooled, expected.to(pooled.device))
        assert cosine.min() > 0.99
    trainer.save_model()
    assert ContrastiveHead.from_pretrained(tmp_path / HEAD_FOLDER).hidden_size == 64
