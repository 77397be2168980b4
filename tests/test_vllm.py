"""vLLM as the generation engine: where the pooled states come from then, in both of TRL's modes."""

import inspect
import os
from types import SimpleNamespace

import pytest
import torch
from recording import RecordingTrainer, assert_right, record
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from trl import GRPOConfig, GRPOTrainer
from trl.generation.vllm_generation import VLLMGeneration

from clipo_trl import CLIPOConfig, CLIPOTrainer, ConSPOConfig, ConSPOTrainer, DAPOConfig, DAPOTrainer
from clipo_trl.plain import MendedGRPOTrainer


class StandInForVLLM:
    """
    Stands in for TRL's `VLLMGeneration`: same constructor, methods and answers, but the tokens are sampled by the
    policy itself, and their log-probabilities are a little off, as those of another engine are.
    """

    def __init__(self, model, accelerator, processing_class, mode="colocate", **settings):
        self.model, self.mode, self.settings = model, mode, settings
        self.syncs = 0
        self.asked_for = []
        if mode == "server":
            info = {"model_config": {"logprobs_mode": "processed_logprobs"}}
            self.vllm_client = SimpleNamespace(get_server_info=lambda: info)

    def sync_weights(self):
        self.syncs += 1

    @torch.no_grad()
    def generate(self, prompts, images, num_generations, profiler=None):
        assert images is None
        self.asked_for.append(num_generations)
        if self.mode == "server":  # one request a prompt, `num_generations` answers each
            prompts = [prompt for prompt in prompts[::num_generations] for _ in range(num_generations)]
        completions, logprobs = [], []
        model = getattr(self.model, "module", self.model)
        for prompt in prompts:
            out = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=self.settings["max_completion_length"],
                temperature=self.settings["temperature"],
                do_sample=True,
                top_k=0,
                eos_token_id=1,
                pad_token_id=0,
                output_scores=True,
                return_dict_in_generate=True,
            )
            ids = out.sequences[0, len(prompt) :].tolist()
            scores = torch.stack(out.scores)[:, 0].log_softmax(-1)
            completions.append(ids)
            logprobs.append([[scores[t, token].item() + 0.01] for t, token in enumerate(ids)])
        return prompts, completions, logprobs, None


@pytest.fixture
def stand_in(monkeypatch):
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandInForVLLM)


def contrastive_rewards(trainer):
    """Means that are not zero, one a generation batch."""
    return [
        row["rewards/contrastive/mean"] for row in trainer.state.log_history if row.get("rewards/contrastive/mean")
    ]


def test_the_stand_in_answers_as_the_real_one_does():
    real, ours = (inspect.signature(cls.__init__).parameters for cls in (VLLMGeneration, StandInForVLLM))
    assert list(real)[:4] == ["self", "model", "accelerator", "processing_class"]
    assert real["mode"].default == ours["mode"].default == "colocate"
    assert {"temperature", "max_completion_length"} < set(real)
    taken = list(inspect.signature(VLLMGeneration.generate).parameters)[:5]
    assert taken == list(inspect.signature(StandInForVLLM.generate).parameters)
    assert list(inspect.signature(VLLMGeneration.sync_weights).parameters) == ["self"]
    source = inspect.getsource(VLLMGeneration.generate)
    assert "return prompt_ids, completion_ids, logprobs, logprob_token_ids" in source
    assert "all_prompts[::num_generations]" in source


@pytest.mark.parametrize("mode", ["colocate", "server"])
@pytest.mark.parametrize("settings", [{}, {"steps_per_generation": 2, "per_device_train_batch_size": 4}], ids=str)
def test_with_the_correction_states_come_from_trls_own_pass(tmp_path, stand_in, mode, settings):
    trainer = record(tmp_path, use_vllm=True, vllm_mode=mode, max_steps=3, **settings)
    assert trainer.states.mode == "fused"
    assert isinstance(trainer.vllm_generation, StandInForVLLM) and trainer.vllm_generation.mode == mode
    assert trainer.vllm_generation.syncs == len(trainer.records)
    assert set(trainer.vllm_generation.asked_for) == {4}
    assert len({len(ids) for tokens, _, _ in trainer.records for ids in tokens.completion_ids}) > 3
    assert_right(trainer)
    logged = trainer.state.log_history[0]
    assert "contrastive/extra_forward_passes" not in logged
    assert logged["sampling/sampling_logp_difference/mean"] == pytest.approx(0.01, abs=1e-4)
    assert contrastive_rewards(trainer)


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_correction_with_an_adapter(tmp_path, stand_in, beta):
    from peft import LoraConfig

    adapter = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    trainer = record(tmp_path, use_vllm=True, trainer_kwargs={"peft_config": adapter}, beta=beta)
    assert trainer.states.mode == "fused"
    assert_right(trainer)


@pytest.mark.parametrize("mode", ["colocate", "server"])
@pytest.mark.parametrize(
    "settings",
    [
        {"vllm_importance_sampling_correction": False},
        {"vllm_importance_sampling_correction": False, "mask_truncated_completions": True, "max_completion_length": 4},
    ],
    ids=str,
)
def test_without_it_they_come_from_a_pass_over_the_decoder(tmp_path, stand_in, mode, settings):
    trainer = record(tmp_path, use_vllm=True, vllm_mode=mode, max_steps=2, **settings)
    assert trainer.states.mode == "forward"
    assert_right(trainer)
    assert trainer.state.log_history[0]["contrastive/extra_forward_passes"] == 1.0


MASKED = {"mask_truncated_completions": True, "max_completion_length": 6}


def same_length_prompts():
    """So that no prompt needs padding: the attention mask has zeros for truncated completions alone."""
    return tiny_dataset().map(lambda row: {"prompt": [{"role": "user", "content": "abc"}]})


@pytest.mark.parametrize("prompts", [tiny_dataset, same_length_prompts])
@pytest.mark.parametrize("correction, masked", [(True, {}), (False, {}), (True, MASKED)])
@pytest.mark.slow
def test_weight_zero_is_grpo_bit_for_bit(tmp_path, stand_in, correction, masked, prompts):
    def train(trainer_class, config_class, **settings):
        trainer = trainer_class(
            tiny_model(),
            letters_reward,
            tiny_config(
                tmp_path,
                config_class,
                use_vllm=True,
                vllm_importance_sampling_correction=correction,
                **masked,
                **settings,
            ),
            train_dataset=prompts(),
            processing_class=tiny_tokenizer(),
        )
        passes = []
        trainer.model.model.register_forward_pre_hook(lambda *args: passes.append(1))
        trainer.train()
        return trainer.model, len(passes)

    (grpo, grpo_passes), (clipo, clipo_passes) = (
        train(GRPOTrainer, GRPOConfig),
        train(CLIPOTrainer, type(tiny_config(tmp_path)), contrastive_reward_weight=0.0),
    )
    assert all(torch.equal(a, b) for a, b in zip(grpo.parameters(), clipo.parameters(), strict=True))
    assert clipo_passes == grpo_passes + (0 if correction else 3)  # three generation batches


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_truncated_completions_that_are_masked_cost_no_second_pass(tmp_path, stand_in, pooling):
    trainer = record(tmp_path, use_vllm=True, contrastive_pooling=pooling, **MASKED)
    assert trainer.states.mode == "fused"
    truncated = [ids[-1] != 1 for tokens, _, _ in trainer.records for ids in tokens.completion_ids]
    assert any(truncated) and not all(truncated)
    assert_right(trainer)
    assert "contrastive/extra_forward_passes" not in trainer.state.log_history[0]


@pytest.mark.parametrize(
    "trainer_class, config_class",
    [(MendedGRPOTrainer, CLIPOConfig), (DAPOTrainer, DAPOConfig), (ConSPOTrainer, ConSPOConfig)],
)
def test_without_a_head_the_engine_gets_the_weights_as_with_one(tmp_path, stand_in, trainer_class, config_class):
    """The best model's after a training: the number of the step says nothing of them."""
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps"}
    config = tiny_config(tmp_path, config_class, use_vllm=True, max_steps=2, save_steps=1, **best)
    data = {"train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(2), "processing_class": tiny_tokenizer()}
    trainer = trainer_class(tiny_model(), letters_reward, config, **data)
    trainer.train()
    before = trainer.vllm_generation.syncs
    trainer.predict(tiny_dataset(2))
    assert trainer.vllm_generation.syncs == before + 1


def vllm_model(folder):
    """A model on disk of a size that vLLM's kernels take."""
    model = tiny_model(hidden_size=128).bfloat16()  # two heads of 64
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.mark.gpu
@pytest.mark.parametrize("correction", [True, False])
def test_the_real_vllm_in_this_process(tmp_path, correction):
    pytest.importorskip("vllm")
    run_real(
        tmp_path,
        vllm_mode="colocate",
        vllm_importance_sampling_correction=correction,
        vllm_gpu_memory_utilization=0.2,
        vllm_max_model_length=128,
    )


@pytest.mark.gpu
def test_the_real_vllm_behind_a_server(tmp_path):
    """
    Needs a second GPU. Save the model with `vllm_model("/tmp/model")`, start `vllm serve /tmp/model` as TRL's page on
    vLLM says, and give its address: `VLLM_SERVER_URL=http://localhost:8000`.
    """
    pytest.importorskip("vllm")
    if "VLLM_SERVER_URL" not in os.environ:
        pytest.skip("needs VLLM_SERVER_URL, the address of a running server")
    run_real(tmp_path, vllm_mode="server", vllm_server_base_url=os.environ["VLLM_SERVER_URL"])


def run_real(tmp_path, vllm_importance_sampling_correction=True, **settings):
    trainer = RecordingTrainer(
        vllm_model(tmp_path / "base"),
        letters_reward,
        tiny_config(
            tmp_path,
            use_vllm=True,
            vllm_importance_sampling_correction=vllm_importance_sampling_correction,
            use_cpu=False,
            bf16=True,
            max_steps=3,
            **settings,
        ),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
    )
    assert trainer.states.mode == ("fused" if vllm_importance_sampling_correction else "forward")
    assert type(trainer.vllm_generation) is VLLMGeneration
    trainer.train()
    assert len(trainer.records) == 3
    for tokens, pooled, expected in trainer.records:
        assert len(set(map(len, tokens.completion_ids))) > 1
        assert torch.nn.functional.cosine_similarity(pooled, expected).min() > 0.99
    assert contrastive_rewards(trainer)
