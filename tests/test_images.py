"""Rollouts about images: the states are those of a plain full forward of each rollout alone with its images."""

from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from recording import CAPTURE_MODES, FUSED, RecordingTrainer, assert_right, record, settings_of
from tiny_models import letters_reward, tiny_config, tiny_model
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import think_format_reward

from clipo_trl import CLIPOConfig, CLIPOTrainer
from clipo_trl.images import check_images


pytest.importorskip("PIL", reason="images need Pillow")
# trl 1.10 lets random models sample image tokens, for which there is no image: its own passes fail.
pytest.importorskip("trl", minversion="1.16.0", reason="older versions sample image tokens")
from tiny_vision import FAMILIES, mark_id, picture, picture_dataset, tiny_vision_model  # noqa: E402


pytestmark = pytest.mark.slow  # whole trainings of vision-language models


SLOW = pytest.mark.slow
ONE_FAMILY_FAST = [pytest.param(family, marks=() if family == "LLaVA" else SLOW) for family in FAMILIES]


class WithImages(RecordingTrainer):
    """Keeps the prompts, whose images the plain forward pass is fed."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self.prompts = prompts
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def beside_tokens(self, row):
        parts = [part for message in self.prompts[row] for part in message["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        tools = self._env_tools[self._batch_environments[row]] if self.environment_factories else self.tools
        text = self.processing_class.apply_chat_template(self.prompts[row], tools=tools, add_generation_prompt=True)
        inputs = self.processing_class(text=[text], images=[images] if images else None, return_tensors="pt")
        tokens = self.states.tokens
        assert inputs.pop("input_ids")[0].tolist() == tokens.prompt_ids[row]
        inputs.pop("attention_mask")
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(tokens.completion_ids[row])))
        return dict(inputs)


def record_images(tmp_path, family, mode, where="image", trainer_kwargs=None, base=WithImages, **settings):
    model, processor = tiny_vision_model(family)
    if {"tools", "environment_factory"} & (trainer_kwargs or {}).keys():  # TRL asks how calls are to be found
        content = {"close_pattern": r"<\|end\|>", "content": "text"}
        processor.tokenizer.response_template = {"start_anchor": "<a>", "fields": {"content": content}}
    trainer_kwargs = {"processing_class": processor, "train_dataset": picture_dataset(where), **(trainer_kwargs or {})}
    settings = {"max_steps": 2, **settings_of(mode), **settings}
    return record(tmp_path, mode, model=model, base=base, trainer_kwargs=trainer_kwargs, **settings)


@pytest.mark.parametrize("where", ["image", *(pytest.param(name, marks=SLOW) for name in ("images", "messages"))])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_states_are_those_of_a_full_forward(tmp_path, family, mode, where):
    trainer = record_images(tmp_path, family, mode, where)
    assert_right(trainer)
    tokens, pooled, _ = trainer.records[0]
    assert len(set(map(len, tokens.prompt_ids))) > 1 and len(set(map(len, tokens.completion_ids))) > 1
    assert pooled.std(0).min() > 1e-3  # they differ from rollout to rollout
    passes = trainer.state.log_history[0].get("contrastive/extra_forward_passes")
    assert passes == (1.0 if mode == "forward" else None)


@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.parametrize("family", ONE_FAMILY_FAST)
def test_a_layer_of_an_adapted_model_with_masked_completions(tmp_path, family, mode):
    """As in TRL's script, whose adapter is one of the vision tower, too."""
    adapter = LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    settings = {"contrastive_layer": 0, "contrastive_pooling": "last", "mask_truncated_completions": True}
    assert_right(record_images(tmp_path, family, mode, trainer_kwargs={"peft_config": adapter}, **settings))


def test_decoding_that_cannot_be_followed_costs_a_pass(tmp_path):
    trainer = record_images(tmp_path, "LLaVA", "decode", generation_kwargs={"num_beams": 2})
    assert_right(trainer)
    assert trainer.state.log_history[0]["contrastive/extra_forward_passes"] == 1.0


@SLOW
def test_the_comparison_would_notice_a_pass_without_images(tmp_path, monkeypatch):
    monkeypatch.setattr("clipo_trl.trainer.prompt_image_inputs", lambda *args: {})
    for family in FAMILIES:
        with pytest.raises(AssertionError):
            assert_right(record_images(tmp_path, family, "forward"))


@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.parametrize("family", ONE_FAMILY_FAST)
def test_weight_zero_is_grpo_bit_for_bit(tmp_path, family, mode, monkeypatch):
    def train(trainer_class, config_class, **settings):
        model, processor = tiny_vision_model(family)
        args = tiny_config(tmp_path, config_class, **settings_of(mode), **settings)
        data = {"train_dataset": picture_dataset("image"), "eval_dataset": picture_dataset("image", 2)}
        trainer = trainer_class(model, letters_reward, args, processing_class=processor, **data)
        trainer.train()
        return trainer, trainer.evaluate()["eval_reward"]

    if mode == "forward":
        monkeypatch.setattr(CLIPOTrainer, "_choose_capture_mode", lambda self, reader: "forward")
    grpo, eval_reward = train(GRPOTrainer, GRPOConfig)
    clipo, same_reward = train(CLIPOTrainer, CLIPOConfig, contrastive_reward_weight=0.0)
    other, _ = train(CLIPOTrainer, CLIPOConfig, contrastive_reward_weight=0.2)
    assert clipo.states.mode == mode
    parameters = [list(trainer.model.parameters()) for trainer in (grpo, clipo, other)]
    assert all(map(torch.equal, parameters[0], parameters[1]))
    assert not all(map(torch.equal, parameters[0], parameters[2]))
    assert same_reward == eval_reward


@pytest.mark.parametrize("family", ONE_FAMILY_FAST)
def test_weights_in_bf16(tmp_path, family):
    model, processor = tiny_vision_model(family)
    data = {"processing_class": processor, "train_dataset": picture_dataset("image")}
    trainer = record(
        tmp_path, "forward", model.bfloat16(), base=WithImages, trainer_kwargs=data, bf16=True, max_steps=1
    )
    for _, pooled, expected in trainer.records:
        assert torch.nn.functional.cosine_similarity(pooled, expected).min() > 0.99


def test_the_way_of_trls_scripts(tmp_path):
    """grpo_vlm.py and gspo_vlm.py with two names changed: model and processor from a folder, an image column."""
    model, processor = tiny_vision_model("LLaVA")
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    rows = picture_dataset("image").map(
        lambda row: {"prompt": [{"role": "system", "content": "think"}, *row["prompt"]]}
    )

    def accuracy_reward(completions, solution, **kwargs):
        return [float(len(completion[0]["content"]) % 2 == 0) for completion in completions]

    sequence_level = {"importance_sampling_level": "sequence", "loss_type": "grpo", "beta": 0.0, "epsilon": 3e-4}
    for name, settings in {"grpo": {}, "gspo": {**FUSED, **sequence_level}}.items():
        folder = tmp_path / name
        trainer = CLIPOTrainer(
            model=str(tmp_path / "base"),
            args=tiny_config(folder, model_init_kwargs={"dtype": torch.float32}, log_completions=True, **settings),
            reward_funcs=[think_format_reward, accuracy_reward],
            train_dataset=rows,
            eval_dataset=None,
            peft_config=LoraConfig(target_modules=["q_proj", "v_proj"]),
        )
        trainer.train()
        trainer.save_model(str(folder))
        assert trainer.states.mode == ("fused" if settings else "decode")
        assert (folder / "adapter_model.safetensors").exists() and (folder / "contrastive_head").is_dir()
        assert any(row.get("rewards/contrastive/mean") for row in trainer.state.log_history)


# ---------------------------------------------------------------------- where others write the completions


def written(n):
    """Completions of different lengths, of letters."""
    return [[40 + (3 * row + t) % 20 for t in range(2 + row % 5)] + [1] for row in range(n)]


@pytest.fixture
def stand_in(monkeypatch):
    """In the place of vLLM: it writes the same completions always."""

    class StandInForVLLM:
        def __init__(self, **settings):
            pass

        def sync_weights(self):
            pass

        def generate(self, prompts, images, num_generations, profiler=None):
            assert all(len(one) == 1 for one in images)
            completions = written(len(prompts))
            return prompts, completions, [[[-1.0]] * len(ids) for ids in completions], None

    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", StandInForVLLM)


@pytest.mark.parametrize("correction", [True, False])
@pytest.mark.parametrize("family", ONE_FAMILY_FAST)
def test_vllm(tmp_path, stand_in, family, correction):
    trainer = record_images(tmp_path, family, None, use_vllm=True, vllm_importance_sampling_correction=correction)
    assert trainer.states.mode == ("fused" if correction else "forward")
    assert_right(trainer)


def rollout_func(change=lambda ids: ids):
    def rollout(prompts, trainer):
        prompt_ids, _, _ = trainer._tokenize_prompts(prompts)
        completion_ids = written(len(prompts))
        logprobs = [[-1.0] * len(ids) for ids in completion_ids]
        prompt_ids = [change(ids) for ids in prompt_ids]
        return {"prompt_ids": prompt_ids, "completion_ids": completion_ids, "logprobs": logprobs}

    return rollout


WARNS_OF_ROLLOUT_FUNC = pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
WARNS_OF_ENVIRONMENTS = pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning")


@WARNS_OF_ROLLOUT_FUNC
@pytest.mark.parametrize("mode", [None, "fused"])
def test_rollout_func(tmp_path, mode):
    trainer = record_images(tmp_path, "LLaVA", mode, trainer_kwargs={"rollout_func": rollout_func()})
    assert trainer.states.mode == (mode or "forward")
    assert_right(trainer)


@WARNS_OF_ROLLOUT_FUNC
def test_a_rollout_func_with_prompts_of_its_own_is_refused_where_its_images_cannot_be_placed(tmp_path):
    other = {"rollout_func": rollout_func(lambda ids: [*ids, 50])}
    with pytest.raises(ValueError, match="other tokens than the processor.*`rollout_func`.*Or: Let TRL score"):
        record_images(tmp_path, "LLaVA", None, trainer_kwargs=other)


@WARNS_OF_ROLLOUT_FUNC
@pytest.mark.parametrize("mode", [None, "fused"])
def test_a_rollout_func_loses_images_in_messages(tmp_path, mode):
    def never(prompts, trainer):
        pytest.fail("generated before it was refused")

    with pytest.raises(ValueError, match="`rollout_func` TRL scores and trains on such a rollout without it.*column"):
        record_images(tmp_path, "LLaVA", mode, "messages", trainer_kwargs={"rollout_func": never})


@WARNS_OF_ENVIRONMENTS
@pytest.mark.parametrize("mode", ["forward", "fused"])
def test_environments_that_show_an_image(tmp_path, mode):
    """Each rollout has one of two environments, which show different things."""

    class Near:
        def reset(self, solution, **kwargs):
            return [{"type": "image", "image": picture(int(solution))}, {"type": "text", "text": "Look."}]

    class Far(Near):
        def look(self) -> str:
            """Look around."""
            return "seen"

    prompt = [{"role": "user", "content": "ab"}]
    rows = [{"solution": str(i), "prompt": prompt, "environment": ["near", "far"][i % 2]} for i in range(8)]
    factories = {"environment_factory": {"near": Near, "far": Far}, "train_dataset": Dataset.from_list(rows)}
    trainer = record_images(tmp_path, "LLaVA", mode, trainer_kwargs=factories)
    assert set(trainer._batch_environments) == {"near", "far"}  # those of the batch again
    assert_right(trainer)


def look() -> str:
    """Look around."""
    return "seen"


@pytest.fixture
def shown_by_a_tool(monkeypatch):
    """The first rollout ends with a tool's image, of 2 x 2 tokens."""

    def loop(self, prompts, prompt_ids, completion_ids, completions, logprobs, images, fields):
        tool_mask = [[1] * len(ids) for ids in completion_ids]
        seen = [mark_id("<boi>"), *[mark_id("<|image_pad|>")] * 4, mark_id("<eoi>"), 50, 1]
        completion_ids[0] = completion_ids[0] + seen
        tool_mask[0] += [0] * 6 + [1, 1]
        tool_images = [[picture(0)], *[[] for _ in prompt_ids[1:]]]
        return tool_mask, completions, completion_ids, None, 1, 0, tool_images

    monkeypatch.setattr(GRPOTrainer, "_tool_call_loop", loop)


class WithToolImages(WithImages):
    def beside_tokens(self, row):
        inputs = super().beside_tokens(row)
        if row == 0:
            parts = [part for message in self.prompts[row] for part in message["content"]]
            images = [part["image"] for part in parts if part["type"] == "image"] + [picture(0)]
            inputs.update(self.processing_class.image_processor(images=images, return_tensors="pt"))
            ids = self.states.tokens.prompt_ids[row] + self.states.tokens.completion_ids[row]
            inputs["mm_token_type_ids"] = (torch.tensor([ids]) == mark_id("<|image_pad|>")).long()
        return inputs


def test_a_tools_image_is_read_in_trls_own_pass(tmp_path, shown_by_a_tool):
    tools = {"tools": [look]}
    assert_right(record_images(tmp_path, "Qwen2.5-VL", "fused", trainer_kwargs=tools, base=WithToolImages))


def test_a_tools_image_is_refused_in_a_pass_of_our_own(tmp_path, shown_by_a_tool):
    with pytest.raises(ValueError, match="A tool returned an image.*Let TRL score.*`steps_per_generation`"):
        record_images(tmp_path, "Qwen2.5-VL", None, trainer_kwargs={"tools": [look]})


# ---------------------------------------------------------------------- what is refused when the trainer is made


def test_a_decoder_that_takes_no_images_is_refused_in_a_pass_of_our_own():
    trainer = SimpleNamespace(_is_vlm=True)
    check_images(trainer, "decode", tiny_model().model, "X")
    check_images(trainer, "forward", tiny_vision_model("LLaVA")[0].model, "X")
    with pytest.raises(ValueError, match="X, but .*`Qwen2Model`, which takes no `pixel_values`. Let TRL score"):
        check_images(trainer, "forward", tiny_model().model, "X")
