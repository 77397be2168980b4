"""Pooled states in the model families that TRL trains, each against a plain full forward of each rollout alone."""

import pytest
import torch
import transformers
from recording import CAPTURE_MODES, FUSED, assert_right, record, settings_of
from tiny_models import tiny_model, tiny_tokenizer
from torch import nn
from transformers import PreTrainedModel, Qwen2Config, Qwen2Model

from clipo_trl.hidden_states import DecodePooler, ForwardPooler, HiddenStateReader, RolloutTokens


SIZES = {
    "vocab_size": 98,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}
WINDOW = 6  # shorter than the rollouts, so that it matters
GEMMA = {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": WINDOW}
MIXTURE = {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}}
QWEN_VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
GEMMA_VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

FAMILIES = {
    "Llama": ("LlamaForCausalLM", SIZES),
    "Qwen2": ("Qwen2ForCausalLM", SIZES),
    "Qwen3": ("Qwen3ForCausalLM", {**SIZES, "head_dim": 8}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", {**SIZES, **MIXTURE}),
    "Gemma2": ("Gemma2ForCausalLM", {**SIZES, **GEMMA}),
    "Gemma3": ("Gemma3ForCausalLM", {**SIZES, **GEMMA}),
    "Mistral": ("MistralForCausalLM", {**SIZES, "sliding_window": WINDOW}),
    "Phi-3": ("Phi3ForCausalLM", SIZES),
    "GPT-NeoX": ("GPTNeoXForCausalLM", {key: SIZES[key] for key in SIZES if key != "num_key_value_heads"}),
    # vision-language models, on text: the text model is wrapped
    "Qwen2.5-VL": (
        "Qwen2_5_VLForConditionalGeneration",
        {
            "text_config": {**SIZES, **MROPE},
            "vision_config": {**QWEN_VISION, "window_size": 28, "fullatt_block_indexes": [0]},
            "image_token_id": 90,
            "video_token_id": 91,
            "vision_start_token_id": 92,
            "vision_end_token_id": 93,
        },
    ),
    "Gemma3 with vision": (
        "Gemma3ForConditionalGeneration",
        {
            "text_config": {**SIZES, **GEMMA},
            "vision_config": {**GEMMA_VISION, "image_size": 28, "patch_size": 14},
            "mm_tokens_per_image": 4,
            "image_token_index": 97,
        },
    ),
    # attention and a recurrent state mixed
    "Qwen3-Next": (
        "Qwen3NextForCausalLM",
        {
            **SIZES,
            **MIXTURE,
            "shared_expert_intermediate_size": 16,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            **{"linear_num_value_heads": 2, "linear_num_key_heads": 2},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 8},
        },
    ),
    # its LM head calls a part of the decoder, past the decoder itself
    "OPT": (
        "OPTForCausalLM",
        {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 16, "init_std": 0.3, "dropout": 0.0},
    ),
    # and may have states of another size than the layers inside
    "OPT, projected": (
        "OPTForCausalLM",
        {**SIZES, "ffn_dim": 32, "word_embed_proj_dim": 8, "init_std": 0.3, "dropout": 0.0},
    ),
}
# The end token is likely where its direction is met; in this family it is met too often.
END_SCALE = {"GPT-NeoX": 1.0}


def make(family, seed=0):
    class_name, settings = FAMILIES[family]
    model_class = getattr(transformers, class_name)
    torch.manual_seed(seed)
    model = model_class(model_class.config_class(**settings))
    model.config._name_or_path = class_name
    model.generation_config.eos_token_id = 1
    with torch.no_grad():
        model.get_output_embeddings().weight[1] *= END_SCALE.get(family, 3.0)
    return model


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_states_are_those_of_a_full_forward(tmp_path, family, mode, layer):
    settings = settings_of(mode)
    trainer = record(tmp_path, mode, model=make(family), contrastive_layer=layer, max_steps=1, **settings)
    tokens, pooled, _ = trainer.records[0]
    # padding on both sides, and sequences beyond a sliding window
    assert len(set(map(len, tokens.prompt_ids))) > 1
    assert len(set(map(len, tokens.completion_ids))) > 1
    assert max(map(len, tokens.completion_ids)) > WINDOW
    assert pooled.std(0).min() > 1e-3  # they differ from rollout to rollout
    assert_right(trainer)
    # What OPT decodes is not seen, which is noticed: it costs a pass.
    needs_pass = mode == "forward" or (family.startswith("OPT") and mode == "decode")
    assert trainer.state.log_history[0].get("contrastive/extra_forward_passes") == (1.0 if needs_pass else None)


def processor():
    """A vision-language model's processor in place of a tokenizer."""
    tokenizer = tiny_tokenizer()
    size = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    return transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(**size),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        image_token=tokenizer.unk_token,
        chat_template=tokenizer.chat_template.replace("message['content']", "message['content'][0]['text']"),
    )


def llava():
    vision = {"model_type": "clip_vision_model", **GEMMA_VISION, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    config = transformers.LlavaConfig(
        text_config=Qwen2Config(**SIZES), vision_config=vision, image_token_id=2, vision_feature_layer=-1
    )
    model = transformers.LlavaForConditionalGeneration(config)
    model.config._name_or_path = "LLaVA"
    model.generation_config.eos_token_id = 1
    return model


@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_a_vision_language_model_with_its_processor(tmp_path, mode):
    settings = settings_of(mode)
    trainer = record(
        tmp_path, mode, model=llava(), trainer_kwargs={"processing_class": processor()}, max_steps=2, **settings
    )
    assert trainer._is_vlm
    assert_right(trainer)


def gpt2():
    torch.manual_seed(0)
    sizes = {"vocab_size": 98, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 128}
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, **tokens, **NO_DROPOUT, initializer_range=0.3)
    )
    model.config._name_or_path = "GPT-2"
    return model


@pytest.mark.parametrize("layer", [-1, 0])
def test_learned_positions_that_padding_moves_are_read_another_way(tmp_path, layer):
    """GPT-2 counts positions from the left, padding included, unless told; TRL's scoring pass does not tell."""
    trainer = record(tmp_path, model=gpt2(), contrastive_layer=layer, max_steps=2, **FUSED)
    assert trainer.states.mode == "decode"
    assert_right(trainer)
    assert_right(record(tmp_path, "forward", model=gpt2(), contrastive_layer=layer, max_steps=1))
    with pytest.raises(AssertionError):
        assert_right(record(tmp_path, "fused", model=gpt2(), contrastive_layer=layer, max_steps=1, **FUSED))


class Headed(PreTrainedModel):
    """A causal model as somebody may write it: the decoder is not where transformers looks for it."""

    config_class = Qwen2Config
    base_model_prefix = "transformer"
    _supports_sdpa = True

    def __init__(self, config, name="transformer", wrap=None):
        super().__init__(config)
        decoder = Qwen2Model(config)
        setattr(self, name, wrap(decoder) if wrap else decoder)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)


class Flat(nn.Module):
    """A decoder whose layers are not in a list."""

    def __init__(self, decoder):
        super().__init__()
        self.first, self.second = decoder.layers


def test_an_unknown_structure_says_what_was_looked_for():
    config = tiny_model().config
    assert HiddenStateReader(Headed(config)).hidden_size == 16
    with pytest.raises(ValueError, match="Headed no decoder was found.*`base_model_prefix` .'transformer'"):
        HiddenStateReader(Headed(config, name="engine"))
    with pytest.raises(ValueError, match="`contrastive_layer` is 0.*no list of 2 decoder layers"):
        HiddenStateReader(Headed(config, wrap=Flat), layer=0)


@pytest.mark.gpu
def test_states_on_another_device_than_the_tokens():
    """As in a model that is split over devices: tokens go in at the first, states come out at the last."""
    tokens = RolloutTokens([[5]], [[7, 8, 1]])
    decoded = DecodePooler([1], "mean")
    for fed in ([5], [7], [8], [1]):
        decoded(torch.full((1, 1, 4), float(fed[0]), device="cuda"), torch.tensor([fed]))
    assert decoded.result(tokens).tolist() == [[7.5] * 4]
    forward = ForwardPooler(torch.tensor([[False, True, True, False]]))
    forward(torch.tensor([5.0, 7.0, 8.0, 1.0], device="cuda").view(1, 4, 1), None)
    assert forward.result().tolist() == [[7.5]]
