"""Small vision-language models with their processors, and a task with images: no download, no torchvision."""

import numpy as np
import torch
import transformers
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from tiny_models import tiny_tokenizer
from transformers import PreTrainedTokenizerFast, ProcessorMixin


MARKS = ["<image>", "<|image_pad|>", "<|video_pad|>", "<boi>", "<eoi>"]
MARKS += ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<row_1_col_1>", "<row_1_col_2>"]
VOCABULARY = 98 + len(MARKS)
CHAT_TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool['function']['name'] }}{% endfor %}"
    "{% for message in messages %}{{ '<' + message['role'][0] + '>' }}{% for part in message['content'] %}"
    "{{ 'MARK' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function']['name'] ~ call['function']['arguments'] }}"
    "{% endfor %}{{ '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<a>' }}{% endif %}"
)
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": None,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
}


def marked_tokenizer(image_token="<image>"):
    """The tiny tokenizer with the marks of images, by the names that processors know them by."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(MARKS, special_tokens=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        **{"pad_token": "<|pad|>", "eos_token": "<|end|>", "unk_token": "<|unk|>", "padding_side": "left"},
        extra_special_tokens={"image_token": image_token, "boi_token": "<boi>", "eoi_token": "<eoi>"},
    )


def mark_id(mark):
    return marked_tokenizer().convert_tokens_to_ids(mark)


class QwenProcessor(transformers.Qwen2_5_VLProcessor):
    """For images alone: the processor of videos needs torchvision."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.image_token, self.video_token = "<|image_pad|>", "<|video_pad|>"
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        self.video_token_id = tokenizer.convert_tokens_to_ids(self.video_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)


def qwen():
    tokenizer = marked_tokenizer("<|image_pad|>")
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}
    config = transformers.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": rope},
        vision_config={**vision, "patch_size": 4, "window_size": 16, "fullatt_block_indexes": [1]},
        image_token_id=mark_id("<|image_pad|>"),
        video_token_id=mark_id("<|video_pad|>"),
        vision_start_token_id=mark_id("<boi>"),
        vision_end_token_id=mark_id("<eoi>"),
    )
    size = {"shortest_edge": 64, "longest_edge": 4096}
    images = transformers.Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size=size)
    processor = QwenProcessor(
        images, tokenizer, chat_template=CHAT_TEMPLATE.replace("MARK", "<boi><|image_pad|><eoi>")
    )
    return transformers.Qwen2_5_VLForConditionalGeneration, config, processor


def gemma():
    config = transformers.Gemma3Config(
        text_config={**TEXT, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6},
        vision_config={**VISION, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=mark_id("<image>"),
        boi_token_index=mark_id("<boi>"),
        eoi_token_index=mark_id("<eoi>"),
    )
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessorPil(size={"height": 28, "width": 28}),
        marked_tokenizer(),
        image_seq_length=4,
        chat_template=CHAT_TEMPLATE.replace("MARK", "<boi>"),
    )
    return transformers.Gemma3ForConditionalGeneration, config, processor


class SmolProcessor(transformers.SmolVLMProcessor):
    """For images alone: that of videos needs torchvision, and num2words to name them."""

    def __init__(self, image_processor=None, tokenizer=None, chat_template=None):
        self.fake_image_token, self.global_image_token = "<fake_token_around_image>", "<global-img>"
        self.image_token, self.video_token, self.image_seq_len = "<image>", "<video>", 4
        self.image_token_id = tokenizer.convert_tokens_to_ids(self.image_token)
        ProcessorMixin.__init__(self, image_processor, tokenizer, chat_template=chat_template)

    def apply_chat_template(self, *args, **kwargs):
        return ProcessorMixin.apply_chat_template(self, *args, **kwargs)


def smol():
    config = transformers.SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "image_size": 16, "patch_size": 4},
        scale_factor=2,
        image_token_id=mark_id("<image>"),
        pad_token_id=0,
    )
    images = transformers.SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 16}, do_image_splitting=True
    )
    processor = SmolProcessor(images, marked_tokenizer(), CHAT_TEMPLATE.replace("MARK", "<image>"))
    return transformers.SmolVLMForConditionalGeneration, config, processor


def llava():
    config = transformers.LlavaConfig(
        text_config={**TEXT, "model_type": "qwen2"},
        vision_config={**VISION, "model_type": "clip_vision_model", "image_size": 8, "patch_size": 4},
        image_token_id=mark_id("<image>"),
        vision_feature_layer=-1,
    )
    processor = transformers.LlavaProcessor(
        transformers.CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8}),
        marked_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE.replace("MARK", "<image>"),
    )
    return transformers.LlavaForConditionalGeneration, config, processor


FAMILIES = {"Qwen2.5-VL": qwen, "Gemma3": gemma, "SmolVLM": smol, "LLaVA": llava}


def tiny_vision_model(family):
    """A random model and its processor."""
    model_class, config, processor = FAMILIES[family]()
    torch.manual_seed(0)
    model = model_class(config)
    model.config._name_or_path = family
    model.generation_config.eos_token_id = 1
    with torch.no_grad():
        model.get_output_embeddings().weight[1] *= 3.0  # the end token is likely where its direction is met
    return model, processor


def picture(seed):
    """Noise of one of three sizes."""
    height, width = [(16, 16), (16, 32), (24, 16)][seed % 3]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def picture_dataset(where, n_rows=8):
    """
    Prompts of different lengths about pictures: in a column `image`, one or two in a column `images`, or one in the
    messages.
    """
    rows, features = [], {"solution": Value("string")}
    for i in range(n_rows):
        text, row = "abcdefghij"[: i % 7 + 1], {"solution": str(i)}
        content = [
            {"type": "image", "image": picture(i), "text": None},
            {"type": "text", "image": None, "text": text},
        ]
        if where == "image":
            row["image"] = picture(i)
        elif where != "messages":
            row["images"] = [picture(i), picture(i + 1)][: 1 + i % 2]
        rows.append({**row, "prompt": [{"role": "user", "content": content if where == "messages" else text}]})
    parts = [{"type": Value("string"), "image": ImageFeature(), "text": Value("string")}]
    features["prompt"] = [{"role": Value("string"), "content": parts if where == "messages" else Value("string")}]
    if where != "messages":
        features[where] = ImageFeature() if where == "image" else [ImageFeature()]
    return Dataset.from_list(rows, features=Features(features))
