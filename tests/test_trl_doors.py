"""What else TRL's `GRPOTrainer` takes: with each of it, the states, the contrastive rewards and the advantages are
right."""

import asyncio
import json

import pandas
import pytest
import torch
from datasets import Dataset, IterableDataset
from recording import CAPTURE_MODES, assert_column_right, assert_right, record, settings_of
from tiny_models import letters_reward, tiny_dataset, tiny_model, tiny_tokenizer
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification
from trl import GRPOTrainer
from trl.chat_template_utils import qwen2_5_chat_template


# No draw, so that the rewards can be computed again, and no floor for them to lie on.
EXACT = {"contrastive_loss_type": "supcon_out", "contrastive_reward_floor": -5.0}


def length_reward(completions, **kwargs):
    return [-0.01 * len(completion[0]["content"]) for completion in completions]


def last_message_reward(completions, **kwargs):
    return [float(len(completion[-1]["content"]) % 2 == 0) for completion in completions]


def logged(trainer):
    """Advantages and reward columns of the last generation batch."""
    columns = {name: torch.tensor(list(column)) for name, column in trainer._logs["rewards"].items()}
    return torch.tensor(list(trainer._logs["advantages"])), columns


def assert_advantages_right(trainer, weights=None):
    """The normalised sum of the columns, groups of four."""
    advantages, columns = logged(trainer)
    weights = [1.0] * len(columns) if weights is None else weights
    total = sum(weight * column.nan_to_num() for weight, column in zip(weights, columns.values(), strict=True))
    total = total.view(-1, 4)
    expected = (total - total.mean(1, keepdim=True)) / (total.std(1, keepdim=True) + 1e-4)
    torch.testing.assert_close(advantages, expected.flatten(), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- who writes the completions


@pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning")
@pytest.mark.parametrize("mode", ["forward", "fused"])
def test_rollout_func(tmp_path, mode):
    """An environment's text stands in the completion, and an extra field goes on to the reward functions."""
    tokenizer = tiny_tokenizer()
    texts = ["abc[42]de<|end|>", "x[7]<|end|>", "no tools<|end|>", "[]y", "ab[c]d<|end|>", "zz<|end|>", "q[rs]t", "u"]

    def rollout(prompts, trainer):
        prompt_ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
        completion_ids = [tokenizer(text)["input_ids"] for text in texts]
        inside = tokenizer.convert_tokens_to_ids("["), tokenizer.convert_tokens_to_ids("]")
        env_mask = []
        for ids in completion_ids:
            opened = [ids[: t + 1].count(inside[0]) - ids[:t].count(inside[1]) for t in range(len(ids))]
            env_mask.append([0 if depth else 1 for depth in opened])
        return {
            "prompt_ids": prompt_ids,
            "completion_ids": completion_ids,
            "logprobs": [[-1.0] * len(ids) for ids in completion_ids],
            "env_mask": env_mask,
            "solved": [i % 3 != 0 for i in range(len(prompts))],
        }

    def solved_reward(completions, solved, **kwargs):
        return [float(value) for value in solved]

    trainer = record(
        tmp_path, reward_funcs=solved_reward, trainer_kwargs={"rollout_func": rollout}, **EXACT, **settings_of(mode)
    )
    assert trainer.states.mode == mode
    assert trainer.records[0][0].policy_mask[0] == [1, 1, 1, 0, 0, 0, 0, 1, 1, 1]
    assert_column_right(trainer)
    assert_advantages_right(trainer)


def tool_tokenizer():
    """One token a character, in a chat template with tools."""
    special = ["<|pad|>", "<|im_end|>", "<|unk|>"]
    tokens = [*special, *(chr(code) for code in range(32, 127)), "\n", "<|im_start|>"]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<|unk|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        unk_token="<|unk|>",
        extra_special_tokens=["<|im_start|>"],
        padding_side="left",
    )
    wrapped.chat_template = qwen2_5_chat_template
    return wrapped


def tool_model():
    torch.manual_seed(0)
    config = {**tiny_model().config.to_dict(), "vocab_size": 100, "max_position_embeddings": 2048}
    model = Qwen2ForCausalLM(Qwen2Config(**config))
    model.config._name_or_path = "tiny-qwen2"
    return model


def call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def scripted(monkeypatch):
    """Replaces the generation of one turn by written ones: `first` answers a prompt, `after` answers a tool."""

    def script(first, after):
        tokenizer = tool_tokenizer()
        turns = {"first": 0, "after": 0}

        def generate(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
            kind, texts = ("after", after) if num_generations == 1 else ("first", first)
            turns[kind] += 1
            ids = [tokenizer(texts[i % len(texts)])["input_ids"] for i in range(len(prompt_ids))]
            return ids, None

        monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", generate)
        return turns

    return script


def add(a: int, b: int) -> int:
    """
    Add two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


async def halve(a: int) -> float:
    """
    Halve a number.

    Args:
        a: The number.
    """
    await asyncio.sleep(0)
    return a / 2


@pytest.mark.parametrize("mode", ["forward", "fused"])
def test_tools(tmp_path, scripted, mode):
    turns = scripted(
        first=[
            call("add", a=3, b=4) + "<|im_end|>",
            "no tool<|im_end|>",
            "so: " + call("halve", a=6) + "<|im_end|>",
            call("add", a=1, b=1) + "\n" + call("halve", a=8) + "<|im_end|>",  # two at once
            call("nobody") + "<|im_end|>",  # fails, and says so
            "<tool_call>not a call",
        ],
        after=["70<|im_end|>", "even<|im_end|>", call("add", a=5, b=5) + "<|im_end|>"],
    )
    trainer = record(
        tmp_path,
        model=tool_model(),
        reward_funcs=last_message_reward,
        trainer_kwargs={"processing_class": tool_tokenizer(), "tools": [add, halve]},
        max_completion_length=600,
        max_tool_calling_iterations=3,
        max_steps=1,
        **EXACT,
        **settings_of(mode),
    )
    assert trainer.states.mode == mode
    assert turns["first"] == len(trainer.records) and turns["after"] > turns["first"]
    tokens = trainer.records[0][0]
    tokenizer = tool_tokenizer()
    outside = [
        tokenizer.decode([t for t, own in zip(ids, mask, strict=True) if not own])
        for ids, mask in zip(tokens.completion_ids, tokens.policy_mask, strict=True)
    ]
    assert outside[1] == "" and outside[0].startswith("\n<|im_start|>user\n<tool_response>\n7\n</tool_response>")
    assert "3.0" in outside[2] and "4.0" in outside[3] and "not found" in outside[4]
    written = tokenizer.decode(
        [t for t, own in zip(tokens.completion_ids[0], tokens.policy_mask[0], strict=True) if own]
    )
    assert written == call("add", a=3, b=4) + "<|im_end|>70<|im_end|>"
    assert_column_right(trainer)
    assert_advantages_right(trainer)


class Counter:
    """An environment that owns its data, its tool and its reward."""

    def reset(self, **kwargs):
        self.count = 0
        return "Count."

    def increment(self, by: int) -> int:
        """
        Count on.

        Args:
            by: How far.
        """
        self.count += by
        return self.count

    def get_reward(self) -> float:
        return float(self.count > 1)


class AsyncCounter(Counter):
    async def get_reward(self) -> float:
        return float(self.count > 1)


COUNTING = {
    "first": [call("increment", by=n) + "<|im_end|>" for n in (1, 2, 3, 0)] + ["nothing<|im_end|>"],
    "after": ["ok<|im_end|>", "well<|im_end|>"],
}


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning")
@pytest.mark.parametrize("mode", ["forward", "fused"])
@pytest.mark.parametrize("environment", [Counter, AsyncCounter])
def test_an_environment_that_owns_data_and_reward(tmp_path, scripted, environment, mode):
    scripted(**COUNTING)
    trainer = record(
        tmp_path,
        model=tool_model(),
        reward_funcs=None,
        trainer_kwargs={
            "processing_class": tool_tokenizer(),
            "environment_factory": environment,
            "train_dataset": None,
        },
        max_completion_length=300,
        max_steps=1,
        **EXACT,
        **settings_of(mode),
    )
    assert trainer.reward_func_names == ["contrastive", environment.__name__]
    assert any(0 in mask for mask in trainer.records[0][0].policy_mask)
    _, columns = logged(trainer)
    assert set(columns[environment.__name__].tolist()) == {0.0, 1.0}
    assert_column_right(trainer)
    assert_advantages_right(trainer)


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning")
def test_several_environments_beside_a_weighted_reward(tmp_path, scripted):
    class Plain(Counter):
        get_reward = None

    scripted(**COUNTING)
    rows = [
        {"prompt": [{"role": "user", "content": "Go. "}], "environment": name} for name in ("counter", "plain") * 4
    ]
    settings = {
        "model": tool_model(),
        "reward_funcs": last_message_reward,
        "reward_weights": [2.0],
        "max_completion_length": 300,
        "max_steps": 1,
        "trainer_kwargs": {
            "processing_class": tool_tokenizer(),
            "environment_factory": {"counter": Counter, "plain": Plain},
            "train_dataset": Dataset.from_list(rows),
        },
    }
    trainer = record(tmp_path, **settings, **EXACT)
    assert trainer.reward_func_names == ["last_message_reward", "contrastive", "Counter"]
    assert trainer.reward_weights.tolist() == [2.0, 1.0, 1.0] and trainer.args.reward_weights == [2.0]
    _, columns = logged(trainer)
    assert 0 < columns["Counter"].isnan().sum() < 8  # the plain one gives none
    assert_column_right(trainer)
    assert_advantages_right(trainer, [2.0, 1.0, 1.0])

    chosen = record(tmp_path, **settings, contrastive_success_rewards=["Counter"])
    _, columns = logged(chosen)
    assert torch.equal(columns["contrastive"].isnan(), columns["Counter"].isnan())  # without it, success is unknown


@pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning")
def test_an_environment_without_tools_is_decoded_as_any_prompt(tmp_path):
    class Opener:
        def reset(self, solution, **kwargs):
            return solution * (int(solution) % 3)

    trainer = record(
        tmp_path,
        model=tool_model(),
        trainer_kwargs={"processing_class": tool_tokenizer(), "environment_factory": Opener},
        **EXACT,
    )
    assert trainer.states.mode == "decode"
    assert_column_right(trainer)
    assert_advantages_right(trainer)


def test_images_in_messages_are_refused_without_a_processor(tmp_path, monkeypatch):
    monkeypatch.setattr(GRPOTrainer, "_generate", lambda *args: pytest.fail("generated before it was refused"))
    rows = tiny_dataset().map(
        lambda row: {"prompt": [{"role": "user", "content": [{"type": "image", "image": "a path"}]}]}
    )
    with pytest.raises(ValueError, match="image in the messages.*takes no images"):
        record(tmp_path, trainer_kwargs={"train_dataset": rows})


# ---------------------------------------------------------------------- who rewards them


def test_async_reward_functions(tmp_path):
    async def slow_letters(completions, **kwargs):
        await asyncio.sleep(0.01)
        return letters_reward(completions)

    async def sometimes(completions, **kwargs):
        return [None if i % 2 else 0.1 for i in range(len(completions))]

    trainer = record(
        tmp_path, reward_funcs=[slow_letters, length_reward, sometimes], reward_weights=[3, 1, 1], **EXACT
    )
    assert trainer.reward_func_names == ["slow_letters", "length_reward", "sometimes", "contrastive"]
    assert_column_right(trainer)
    assert_advantages_right(trainer, [3.0, 1.0, 1.0, 1.0])


def reward_model():
    torch.manual_seed(11)
    model = Qwen2ForSequenceClassification(
        Qwen2Config(**{**tiny_model().config.to_dict(), "id2label": {0: "reward"}, "label2id": {"reward": 0}})
    )
    model.config._name_or_path = "tiny-reward"
    with torch.no_grad():
        model.score.weight.normal_()  # rewards of both signs
    return model


@pytest.mark.parametrize("given", ["model", "path"])
def test_a_reward_model(tmp_path, given):
    model, tokenizer = reward_model(), tiny_tokenizer()
    if given == "path":
        model.save_pretrained(tmp_path / "tiny-reward")
        tokenizer.save_pretrained(tmp_path / "tiny-reward")
        reward_funcs, processing = [str(tmp_path / "tiny-reward"), length_reward], None
    else:
        reward_funcs, processing = model, tokenizer
    trainer = record(
        tmp_path, reward_funcs=reward_funcs, trainer_kwargs={"reward_processing_classes": processing}, **EXACT
    )
    names = ["tiny-reward", "contrastive"] if given == "model" else ["tiny-reward", "length_reward", "contrastive"]
    assert trainer.reward_func_names == names
    assert given == "model" or isinstance(reward_funcs[0], str)  # the caller's list
    assert 0 < trainer.state.log_history[0]["contrastive/correct_rollouts"] < 1
    assert_column_right(trainer)
    assert_advantages_right(trainer)


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
@pytest.mark.parametrize("scale", ["group", "batch", "none", True, False])
def test_advantages_by_hand(tmp_path, aggregation, scale):
    trainer = record(
        tmp_path,
        reward_funcs=[letters_reward, length_reward],
        reward_weights=[1.0, 2.0],
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        max_steps=1,
        **EXACT,
    )
    assert_column_right(trainer)
    advantages, columns = logged(trainer)
    weights = {"letters_reward": 1.0, "length_reward": 2.0, "contrastive": 1.0}
    if aggregation == "normalize_then_sum":
        total = torch.zeros(8)
        for name, column in columns.items():
            groups = column.view(2, 4)
            normal = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
            total += weights[name] * normal.flatten()
        expected = (total - total.mean()) / (total.std() + 1e-4)
    else:
        total = sum(weights[name] * column for name, column in columns.items()).view(2, 4)
        expected = total - total.mean(1, keepdim=True)
        if scale in ("group", True):
            expected = expected / (total.std(1, keepdim=True) + 1e-4)
        elif scale == "batch":
            expected = expected / (total.std() + 1e-4)
    torch.testing.assert_close(advantages, expected.flatten(), atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------- which data, how often


@pytest.mark.parametrize("kind", ["of a dataset", "of a generator"])
def test_iterable_datasets(tmp_path, kind):
    dataset = tiny_dataset()
    rows = IterableDataset.from_generator(lambda: iter(dataset)) if kind == "of a generator" else None
    trainer = record(
        tmp_path,
        trainer_kwargs={
            "train_dataset": rows or dataset.to_iterable_dataset(),
            "eval_dataset": tiny_dataset(2).to_iterable_dataset(),
        },
        **EXACT,
    )
    tokens = trainer.records[0][0]
    assert tokens.prompt_ids[:4] == [tokens.prompt_ids[0]] * 4 and tokens.prompt_ids[4] != tokens.prompt_ids[0]
    assert_column_right(trainer)
    assert_advantages_right(trainer)
    metrics = trainer.evaluate()
    assert metrics["eval_reward"] == metrics["eval_rewards/letters_reward/mean"]


@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_prompts_that_are_plain_text(tmp_path, mode):
    def even_text(completions, **kwargs):
        return [float(len(completion) % 2 == 0) for completion in completions]

    rows = Dataset.from_dict({"prompt": ["abcdefghij"[: i % 7 + 1] for i in range(8)]})
    trainer = record(
        tmp_path, mode, reward_funcs=even_text, trainer_kwargs={"train_dataset": rows}, **EXACT, **settings_of(mode)
    )
    assert_column_right(trainer)
    assert_advantages_right(trainer)


def test_images_of_an_iterable_dataset_are_refused_without_a_processor(tmp_path):
    images = tiny_dataset().add_column("images", [["x"]] * 8).to_iterable_dataset()
    with pytest.raises(ValueError, match="train_dataset.*images.*takes no images"):
        record(tmp_path, trainer_kwargs={"train_dataset": images})


@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.slow
def test_evaluation_between_steps_changes_nothing(tmp_path, mode):
    """Several sets, another group size: the column is empty there, and training goes on as if none had been."""
    settings = {
        **EXACT,
        **settings_of(mode),
        "max_steps": 4,
        "temperature": 1e-4,
    }  # evaluation draws from the global state
    plain = record(tmp_path, mode, **settings)
    sets = {"small": tiny_dataset(2), "streamed": tiny_dataset(3).to_iterable_dataset()}
    evaluated = record(
        tmp_path,
        mode,
        trainer_kwargs={"eval_dataset": sets},
        num_generations_eval=1,
        eval_strategy="steps",
        eval_steps=1,
        **settings,
    )
    assert_right(evaluated)
    assert len(plain.columns) == len(evaluated.columns)
    for (first, _), (second, _) in zip(plain.columns, evaluated.columns, strict=True):
        assert torch.equal(first, second)
    assert len([row for row in evaluated.state.log_history if any(key.endswith("_reward") for key in row)]) == 8


@pytest.mark.parametrize(
    "settings, n_generations",
    [
        ({"num_iterations": 2, "max_steps": 4}, 2),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 4}, 2),
        ({"steps_per_generation": 4, "gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 6}, 2),
        ({"steps_per_generation": 2, "gradient_accumulation_steps": 4, "max_steps": 2}, 4),
    ],
    ids=str,
)
def test_rollouts_used_more_than_once(tmp_path, settings, n_generations):
    trainer = record(tmp_path, per_device_train_batch_size=4, **settings, **EXACT)
    once_each = settings.get("num_iterations", 1) == 1 and settings["steps_per_generation"] < 4
    assert trainer.states.mode == ("decode" if once_each else "fused")
    assert len(trainer.records) == trainer.head_learner.n_batches == n_generations
    assert len(trainer.records[0][0]) == 4 * trainer.args.steps_per_generation
    steps = [state["step"].item() for state in trainer.head_learner.optimizer.state.values()]
    assert steps == [n_generations]  # one step of the head a generation, however often the rollouts are used
    assert_column_right(trainer)
    assert_advantages_right(trainer)


LOSSES = [
    *({"loss_type": name} for name in ("grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo")),
    {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    {"top_entropy_quantile": 0.2, "off_policy_mask_threshold": 0.1, "delta": 2.0, "use_adaptive_entropy": True},
    {"cast_lm_head_to_fp32": True},
]


@pytest.mark.parametrize("settings", LOSSES, ids=str)
def test_what_shapes_the_policys_loss_leaves_the_column_alone(tmp_path, settings):
    trainer = record(tmp_path, max_steps=2, **settings, **EXACT)
    assert_column_right(trainer)
    assert_advantages_right(trainer)


@pytest.mark.parametrize(
    "settings, passes",
    [
        ({"generation_kwargs": {"use_cache": False}}, 1.0),  # whole sequences again and again: not taken for decoding
        ({"generation_kwargs": {"prefill_chunk_size": 2}}, None),
        ({"cache_implementation": "static"}, None),
        ({"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2}, None),
    ],
    ids=str,
)
def test_how_generate_decodes(tmp_path, settings, passes):
    trainer = record(tmp_path, max_steps=2, **settings, **EXACT)
    assert trainer.state.log_history[0].get("contrastive/extra_forward_passes") == passes
    assert_column_right(trainer)


def test_completions_table(tmp_path):
    trainer = record(tmp_path, log_completions=True, max_steps=2, **EXACT)
    table = pandas.read_parquet(tmp_path / "completions" / "completions_00002.parquet")
    column, _ = trainer.columns[-1]
    assert table["contrastive"].tolist() == column.tolist()
    assert {"letters_reward", "advantage", "completion"} < set(table.columns)


# ---------------------------------------------------------------------- how the model runs


@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_a_reference_model_beside_the_policy(tmp_path, mode):
    tiny_model().save_pretrained(tmp_path / "base")
    trainer = record(
        tmp_path, mode, model=str(tmp_path / "base"), beta=0.1, learning_rate=0.1, **EXACT, **settings_of(mode)
    )
    assert trainer.ref_model is not None and trainer.state.log_history[-2]["kl"] > 0
    assert_column_right(trainer)


@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.slow
def test_activation_checkpointing(tmp_path, mode, reentrant, layer):
    def weights(checkpointing):
        trainer = record(
            tmp_path,
            mode,
            gradient_checkpointing=checkpointing,
            gradient_checkpointing_kwargs={"use_reentrant": reentrant},
            contrastive_layer=layer,
            max_steps=2,
            **EXACT,
            **settings_of(mode),
        )
        assert_column_right(trainer)
        assert trainer.model.is_gradient_checkpointing == checkpointing
        expected = 1.0 if mode == "forward" else None  # decoding keeps its cache
        assert trainer.state.log_history[0].get("contrastive/extra_forward_passes") == expected
        return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])

    torch.testing.assert_close(weights(True), weights(False))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # looked at by dynamo, in TRL's loss
@pytest.mark.parametrize("layer", [-1, 0])
@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_torch_compile(tmp_path, mode, layer):
    """Traced by dynamo, then run as it is: the code generation of the default backend would take minutes on a CPU."""
    trainer = record(
        tmp_path,
        mode,
        torch_compile=True,
        torch_compile_backend="eager",
        contrastive_layer=layer,
        **EXACT,
        **settings_of(mode),
    )
    assert type(trainer.model_wrapped).__name__ == "OptimizedModule"
    assert_column_right(trainer)


@pytest.mark.filterwarnings("ignore:`use_liger_kernel=True` is deprecated:FutureWarning")
@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_kernels_put_in_place_of_layers(tmp_path, mode, monkeypatch):
    """A stand-in for Liger, which patches the `forward` of layers when training starts, the last norm's included."""
    patched = []

    def stand_in(model, config):
        assert config["fused_linear_cross_entropy"] is False
        for module in model.modules():
            if type(module).__name__ == "Qwen2RMSNorm":
                module.forward = lambda states, weight=module.weight: (
                    2 * torch.nn.functional.rms_norm(states, weight.shape, weight, 1e-6)
                )
                patched.append(module)

    monkeypatch.setattr("transformers.trainer.apply_liger_kernel", stand_in)
    trainer = record(tmp_path, mode, use_liger_kernel=True, **EXACT, **settings_of(mode))
    assert len(patched) == 5
    assert_column_right(trainer)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:`use_liger_kernel=True` is deprecated:FutureWarning")
@pytest.mark.parametrize("mode", CAPTURE_MODES)
@pytest.mark.parametrize("package", ["liger_kernel", "kernels"])
def test_the_real_kernels(tmp_path, mode, package):
    pytest.importorskip(package)
    tiny_model(hidden_size=64).save_pretrained(tmp_path / "base")
    if package == "kernels":
        settings = {"model_init_kwargs": {"use_kernels": True}}
    else:
        settings = {"use_liger_kernel": True}
    trainer = record(
        tmp_path,
        mode,
        model=str(tmp_path / "base"),
        use_cpu=False,
        bf16=True,
        max_steps=2,
        **settings,
        **settings_of(mode),
    )
    for _, pooled, expected in trainer.records:
        assert torch.nn.functional.cosine_similarity(pooled, expected).min() > 0.99


def test_a_loss_inside_the_kernels_is_refused(tmp_path):
    with pytest.warns(FutureWarning, match="use_liger_kernel"), pytest.raises(ValueError, match="fused_linear_cross"):
        record(tmp_path, use_liger_kernel=True, liger_kernel_config={"fused_linear_cross_entropy": True})
