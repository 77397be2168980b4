"""Rollouts about images: the states are those of a plain full forward of each rollout alone with its images."""

import pytest
import torch
from recording import CAPTURE_MODES, RecordingTrainer, assert_right, record, settings_of
from tiny_vision import FAMILIES, picture_dataset, tiny_vision_model


class WithImages(RecordingTrainer):
    """Keeps the prompts, whose images the plain forward pass is fed."""

    def _calculate_rewards(self, inputs, prompts, completions, completion_ids_list):
        self.prompts = prompts
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def beside_tokens(self, row):
        parts = [part for message in self.prompts[row] for part in message["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        text = self.processing_class.apply_chat_template(self.prompts[row], add_generation_prompt=True)
        inputs = self.processing_class(text=[text], images=[images] if images else None, return_tensors="pt")
        tokens = self.states.tokens
        assert inputs.pop("input_ids")[0].tolist() == tokens.prompt_ids[row]
        inputs.pop("attention_mask")
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in inputs:
                inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(tokens.completion_ids[row])))
        return dict(inputs)


def record_images(tmp_path, family, mode, where="image", trainer_kwargs=None, **settings):
    model, processor = tiny_vision_model(family)
    trainer_kwargs = {"processing_class": processor, "train_dataset": picture_dataset(where), **(trainer_kwargs or {})}
    settings = {"max_steps": 2, **settings_of(mode), **settings}
    return record(tmp_path, mode, model=model, base=WithImages, trainer_kwargs=trainer_kwargs, **settings)


@pytest.mark.parametrize("where", ["image", "images", "messages"])
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
