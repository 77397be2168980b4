"""
The places inside TRL and transformers that CLIPO hangs on. When a release moves one, this file says which, before a
run does.
"""

import ast
import inspect
import re
import sys
import warnings
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from packaging.version import Version
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from transformers import Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback
from trl import GRPOConfig, GRPOTrainer, import_utils
from trl import __version__ as trl_version
from trl.models.utils import _ForwardRedirection

from clipo_trl.cli.doctor import range_of
from clipo_trl.conspo_trainer import ConSPOMixin, ConSPOTrainer
from clipo_trl.dapo import DAPOTrainer
from clipo_trl.dynamic_sampling import DynamicSamplingMixin
from clipo_trl.model_card import TRL_CITATION
from clipo_trl.parent_shapes import end_tokens
from clipo_trl.plain import MendedGMPOTrainer, MendedGRPOTrainer
from clipo_trl.scoring import ScoringMixin
from clipo_trl.sharing import SharingMixin
from clipo_trl.trainer import CLIPOMixin
from clipo_trl.upstream.continuous_batching import ContinuousBatchingMixin
from clipo_trl.upstream.evaluation import EvaluationMixin
from clipo_trl.upstream.exact_resume import ExactResumeMixin
from clipo_trl.upstream.mended import MendedMixin
from clipo_trl.upstream.vllm_weights import VLLMWeightsMixin
from clipo_trl.upstream.zero3_order import ZeRO3OrderMixin


TRL = Version(trl_version)
# trl 1.14 hands its arguments on, as they come.
SCORING_PASS = (
    "_full_logits_logps" if Version("1.14") <= TRL < Version("1.15") else "_get_per_token_logps_and_entropies"
)
SIGNATURES = {
    (GRPOTrainer, "_generate"): ["self", "prompts"],
    (GRPOTrainer, "_generate_and_score_completions"): ["self", "inputs"],
    (GRPOTrainer, "_calculate_rewards"): ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    (GRPOTrainer, "_tokenize_prompts"): ["self", "prompts"],
    (Trainer, "_prepare_input"): ["self", "data"],
    (GRPOTrainer, "_compute_loss"): ["self", "model", "inputs"],
    (GRPOTrainer, "training_step"): ["self", "model", "inputs", "num_items_in_batch"],
    (GRPOTrainer, "_prepare_inputs"): ["self", "generation_batch"],
    (GRPOTrainer, "prediction_step"): ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    (Trainer, "predict"): ["self", "test_dataset", "ignore_keys", "metric_key_prefix"],
    (Trainer, "create_scheduler"): ["self", "num_training_steps", "optimizer"],
    (GRPOTrainer, "_log_completion_extra"): ["self", "column", "values"],
    (GRPOTrainer, "log"): ["self", "logs", "start_time"],
    (Trainer, "evaluate"): ["self", "eval_dataset", "ignore_keys", "metric_key_prefix"],
    (Trainer, "save_model"): ["self", "output_dir", "_internal_call"],
    (Trainer, "_save_optimizer_and_scheduler"): ["self", "output_dir"],
    (Trainer, "_load_optimizer_and_scheduler"): ["self", "checkpoint"],
    (Trainer, "_save_checkpoint"): ["self", "model", "trial"],
    (Trainer, "_save_rng_state"): ["self", "output_dir"],
    (Trainer, "_load_best_model"): ["self"],
    (Trainer, "_push_from_checkpoint"): ["self", "checkpoint_folder"],
    (Trainer, "_finish_current_push"): ["self"],
    (GRPOTrainer, "create_model_card"): ["self", "model_name", "dataset_name", "tags"],
    (GRPOTrainer, "_get_train_sampler"): ["self", "dataset"],
    (Trainer, "train"): ["self", "resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    (_ForwardRedirection, "__call__"): ["self", "wrapper_module", "original_module", "method", "args", "kwargs"],
}


def moved(owner, name, what):
    return (
        f"{owner.__module__}.{owner.__name__}.{name} {what}. clipo_trl relies on it: read its new form, mend "
        "the module of clipo_trl that uses it, then this test."
    )


@pytest.mark.parametrize("owner, name", SIGNATURES, ids=lambda value: getattr(value, "__name__", value))
def test_signatures(owner, name):
    assert hasattr(owner, name), moved(owner, name, "is gone")
    found = list(inspect.signature(getattr(owner, name)).parameters)
    expected = SIGNATURES[owner, name]
    assert found == expected, moved(owner, name, f"takes {found}, and took {expected}")


def test_scoring_pass():
    method = getattr(GRPOTrainer, SCORING_PASS)
    found = list(inspect.signature(method).parameters)[:6]
    expected = ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]
    assert found == expected, moved(GRPOTrainer, method.__name__, f"begins with {found}, and began with {expected}")


def test_constructor():
    found = list(inspect.signature(GRPOTrainer.__init__).parameters)[:8]
    expected = ["self", "model", "reward_funcs", "args", "train_dataset", "eval_dataset", "processing_class"]
    expected.append("reward_processing_classes")
    assert found == expected, moved(GRPOTrainer, "__init__", f"begins with {found}, and began with {expected}")


# Lines of TRL whose meaning CLIPO repeats or builds on. The text is compared without white space.
LINES = [
    (
        "_generate",
        "return prompt_ids, completion_ids, tool_mask, completions, logprobs, extra_fields, images, tool_images",
        "rollout tokens come first, a tool's images eighth",
    ),
    ("_tokenize_prompts", "return prompt_ids, images, multimodal_fields", "a pass of our own is fed the same images"),
    (
        "_tokenize_prompts",
        "for prompt, name in zip(prompts, self._batch_environments, strict=True):",
        "some of the prompts are tokenized with their own environments",
    ),
    (
        "_generate_and_score_completions",
        "images = dataset_images  # restore dataset images (rollout_func path returns None)",
        "with a rollout_func, images in messages are lost",
    ),
    (
        "_prepare_inputs",
        "if self._step % generate_every == 0 or self._buffered_inputs is None:",
        "warm-up counts batches",
    ),
    (
        "_generate_single_turn",
        "if self.args.bf16: unwrapped_model.to(torch.bfloat16) elif self.args.fp16: unwrapped_model.to(torch.float16)",
        "the casts that are kept from the policy's own weights",
    ),
    (
        "_generate_single_turn",
        "if self.state.global_step != self._last_loaded_step:",
        "weights that vLLM has already are not sent again",
    ),
    ("_generate_and_score_completions", "if self.beta != 0.0:", "a frozen policy needs no reference"),
    (
        "_generate_and_score_completions",
        "completion_mask = completion_mask * (~is_truncated).unsqueeze(1).int()",
        "truncated completions are shown to themselves",
    ),
    (
        SCORING_PASS,
        # Before 1.14 a masked token has the log-probability that comes out, and the mask alone keeps it from the loss.
        "labels = input_ids_batch.masked_fill(attention_mask_batch == 0, -100)"
        if TRL >= Version("1.15")
        else "logits, completion_ids, temperature=self.temperature, row_mask=completion_mask"
        if TRL >= Version("1.14")
        else "logps = selective_log_softmax(logits, completion_ids)",
        "log-probabilities are 0, or count for nothing, where a token is masked",
    ),
    (
        "log",
        'f"completions_{self.state.global_step:05d}.parquet"',
        "an evaluation's table is told apart from training's by its name",
    ),
    (
        "_prepare_inputs",
        "generate_every = self.args.steps_per_generation * self.num_iterations",
        "warm-up counts batches",
    ),
    (
        "_generate_and_score_completions",
        "if self.args.gradient_accumulation_steps % generate_every != 0 or "
        "( self.use_vllm and self.vllm_importance_sampling_correction ):",
        "tells when TRL scores rollouts itself, and has it score them where it would not",
    ),
    (
        "_generate_and_score_completions",
        "generate_every = self.args.steps_per_generation * self.num_iterations",
        "a number of iterations that fits no accumulation has TRL score the rollouts",
    ),
    (
        "_generate_and_score_completions",
        "rewards_per_func = self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
        "the column is filled here",
    ),
    (
        "_generate",
        "if self.rollout_func is not None:",
        "rollouts that dynamic sampling keeps are handed back by this door",
    ),
    ("_generate", "output = self.rollout_func(prompts, self)", "it takes these arguments"),
    ("_generate", 'required_keys = {"prompt_ids", "completion_ids", "logprobs"}', "it gives these"),
    ("_generate", 'tool_mask = extra_fields.pop("env_mask", None)', "and tokens of tools and environments as this"),
    ("_generate", "if self.tools:", "no tool is called for rollouts that are handed back"),
    (
        "_generate_and_score_completions",
        "if self.environment_factories is not None:",
        "no environment is made for them",
    ),
    ("_generate_and_score_completions", "if self.environments:", "and none is reset"),
    (
        "_generate_and_score_completions",
        "unscorable_mask = torch.isnan(rewards_per_func).all(dim=1)",
        "rollouts that fill up a batch count for nothing",
    ),
    (
        "_generate_and_score_completions",
        "num_items_in_batch = self.accelerator.gather(loss_mask.sum()).sum()",
        "their tokens are not counted",
    ),
    ("_generate_and_score_completions", "inp[key] = values[i]", "extra fields of a `rollout_func` reach rewards"),
    ("_calculate_rewards", "rewards_per_func = gather(rewards_per_func)", "rewards of all processes are returned"),
    ("log", '**self._logs["extra"],', "the completions table has a column of agreement"),
    ("log", 'metrics = {f"eval_{key}": val for key, val in metrics.items()}', "sets are told apart after `eval_`"),
    ("_generate_and_score_completions", '"advantages": advantages,', "ConSPO puts its weights in their place"),
    (
        "_generate_and_score_completions",
        'output["old_per_token_logps"] = old_per_token_logps',
        "ConSPO makes its scores of them, and takes them out",
    ),
    (
        "_generate_and_score_completions",
        'self._logs["advantages"].extend(all_process_advantages.tolist())',
        "ConSPO's weights take their place in the table",
    ),
    ("_compute_loss", 'advantages = inputs["advantages"]', "ConSPO's weights arrive"),
    (
        "_compute_loss",
        "old_per_token_logps = per_token_logps.detach() if old_per_token_logps is None else old_per_token_logps",
        "without old log-probabilities the ratio is 1, with the gradient of log pi",
    ),
    (
        "_compute_loss",
        'if self.loss_type in ["grpo", "sapo"]: loss = ((per_token_loss * mask).sum(-1) / '
        "mask.sum(-1).clamp(min=1.0)).mean() normalizer = self.current_gradient_accumulation_steps if mode == "
        '"train" else 1.0',
        "ConSPO's factor undoes these means",
    ),
    (
        "_compute_loss",
        'mask = completion_mask if "tool_mask" not in inputs else completion_mask * inputs["tool_mask"]',
        "ConSPO's scores are over the same tokens",
    ),
    ("training_step", "self._step += 1", "a frozen warm-up step counts like any other"),
    (
        "training_step",
        'self._metrics["train"]["step_time"].append(self._current_train_step_time)',
        "a frozen warm-up step is timed like any other",
    ),
]


@pytest.mark.parametrize("name, line, why", LINES, ids=[line[:40] for _, line, _ in LINES])
def test_lines(name, line, why):
    source = "".join(inspect.getsource(getattr(GRPOTrainer, name)).split())
    assert "".join(line.split()) in source, moved(GRPOTrainer, name, f"no longer has `{line}` ({why})")


def test_policy_is_scored_before_a_reference():
    """The fused mode takes the first pass after generation to be that of the policy."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    policy, reference = source.find("old_per_token_logps, _, _ ="), source.find("ref_per_token_logps, _, _ =")
    assert 0 < policy < reference, moved(
        GRPOTrainer, "_generate_and_score_completions", "changed the order of its passes"
    )


def test_the_policy_is_scored_before_rewards():
    """Likelihoods are there when the column is filled."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    scored, rewarded = source.find("old_per_token_logps, _, _ ="), source.find("self._calculate_rewards(")
    assert 0 < scored < rewarded, moved(
        GRPOTrainer, "_generate_and_score_completions", "gives rewards before it scores"
    )


def test_a_checkpoint_ends_with_the_trainer_state():
    """`trainer_state.json` is the sign of a whole checkpoint: after all else is written, before an older one is
    deleted."""
    source = inspect.getsource(Trainer._save_checkpoint)
    parts = [
        "save_model(",
        "_save_optimizer_and_scheduler(",
        "_save_rng_state(",
        "TRAINER_STATE_NAME",
        "rotate_checkpoints(",
    ]
    places = [source.find(part) for part in parts]
    assert 0 < places[0] and places == sorted(places), moved(Trainer, "_save_checkpoint", "changed its order")


def test_nothing_that_the_mixin_overrides_has_vanished():
    mixins = CLIPOMixin.__mro__[: CLIPOMixin.__mro__.index(object)]
    repairs = {EvaluationMixin, ExactResumeMixin, ContinuousBatchingMixin, VLLMWeightsMixin, ZeRO3OrderMixin}
    assert set(mixins) == {CLIPOMixin, ScoringMixin, SharingMixin, DynamicSamplingMixin, MendedMixin, *repairs}
    for trainer_class in (DAPOTrainer, ConSPOTrainer, MendedGRPOTrainer, MendedGMPOTrainer):  # none lacks a repair
        assert repairs <= set(trainer_class.__mro__)
    own = {name for mixin in mixins for name in vars(mixin) if not name.startswith("__")}
    overridden = {name for name in own if hasattr(GRPOTrainer, name)}
    assert overridden == {
        "_generate",
        "_generate_and_score_completions",
        "_get_per_token_logps_and_entropies",
        "_calculate_rewards",
        "training_step",
        "evaluate",
        "predict",
        "prediction_step",
        "create_scheduler",
        "_generate_single_turn",
        "create_model_card",
        "init_hf_repo",
        "push_to_hub",
        "_finish_current_push",
        "log",
        "save_model",
        "_save_optimizer_and_scheduler",
        "_load_optimizer_and_scheduler",
        "_get_train_sampler",
        "_load_best_model",
        "_run_epoch",
        "_push_from_checkpoint",
        "_save_checkpoint",
        "_save_rng_state",
        "train",
    }, "a method of the mixins and one of TRL share a name by accident, or TRL dropped one that is overridden"


def test_nothing_that_conspo_overrides_has_vanished():
    overridden = {name for name in vars(ConSPOMixin) if not name.startswith("__") and hasattr(GRPOTrainer, name)}
    assert overridden == {
        "_calculate_rewards",
        "_generate_and_score_completions",
        "_get_per_token_logps_and_entropies",
        "_compute_loss",
    }, "a method of ConSPO and one of TRL share a name by accident, or TRL dropped one that is overridden"


# Attributes that a mixin sets over the parent's own: each has to be there before.
SET_OVER_THE_PARENTS = {
    "_buffered_inputs",
    "_current_train_step_time",
    "environment_factories",
    "environments",
    "num_iterations",
    "_last_loaded_step",
    "_logs",
    "_step",
    "beta",
    "rollout_func",
    "tools",
}


def attributes_of_a_trainer(contexts):
    """Names that the mixins' modules, and functions that get a trainer, read (or set) of `self` and `trainer`."""
    mixins = [one for one in CLIPOMixin.__mro__ if one.__module__.startswith("clipo_trl.")]
    modules = {"clipo_trl.images", "clipo_trl.parent_shapes", "clipo_trl.upstream.zero3_order"}
    modules |= {one.__module__ for one in mixins}
    names = set()
    for module in modules:
        tree = ast.parse(Path(sys.modules[module].__file__).read_text(encoding="utf-8"))
        others = {one.name for one in tree.body if isinstance(one, ast.ClassDef)} - {one.__name__ for one in mixins}
        tree.body = [one for one in tree.body if getattr(one, "name", None) not in others]
        for node in ast.walk(tree):
            of_trainer = isinstance(node, ast.Attribute) and getattr(node.value, "id", "") in ("self", "trainer")
            if of_trainer and isinstance(node.ctx, contexts):
                names.add(node.attr)
    return names


@pytest.fixture(scope="module")
def grpo_trainer(tmp_path_factory):
    """After a step, since some attributes are made in training."""
    trainer = GRPOTrainer(
        tiny_model(),
        letters_reward,
        tiny_config(tmp_path_factory.mktemp("seams"), GRPOConfig, max_steps=1),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
    )
    trainer.train()
    return trainer


def test_attributes_of_the_parent_that_are_read(grpo_trainer):
    ours = {name for mixin in CLIPOMixin.__mro__ if mixin.__module__.startswith("clipo_trl.") for name in vars(mixin)}
    read, assigned = attributes_of_a_trainer(ast.Load), attributes_of_a_trainer(ast.Store)
    theirs = (read - ours - assigned) | SET_OVER_THE_PARENTS
    assert {
        "use_transformers_continuous_batching",
        "_metrics",
        "_tokenizer",
        "reward_func_names",
        "deepspeed",
    } <= theirs
    only_with_vllm = {"_last_loaded_step"}
    gone = {name for name in theirs - only_with_vllm if not hasattr(grpo_trainer, name)}
    assert gone == set(), moved(GRPOTrainer, ", ".join(gone), "is gone")
    assert "self._last_loaded_step = -1" in inspect.getsource(GRPOTrainer.__init__)
    assert SET_OVER_THE_PARENTS <= assigned  # none is listed that nothing sets


def test_end_tokens(grpo_trainer):
    """Before 1.14.2 TRL had the tokenizer's alone, and no attribute."""
    has_more = TRL >= Version("1.14.2")
    assert hasattr(grpo_trainer, "eos_token_ids") is has_more
    assert end_tokens(grpo_trainer) == [grpo_trainer._tokenizer.eos_token_id]
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    assert ("self.eos_token_ids" in source) is has_more
    assert ("self._tokenizer.eos_token_id" in source) is not has_more


# Keys of TRL's stores that are read, filled or emptied.
@pytest.mark.parametrize("key", ["rewards", "extra", "advantages"])
def test_stores_of_the_latest_rollouts(grpo_trainer, key):
    assert key in grpo_trainer._logs
    assert {"train", "eval"} == set(grpo_trainer._metrics)


def test_range_of_vllm(monkeypatch):
    """`clipo doctor` reads it in TRL's metadata; TRL itself warns by numbers in its code."""
    first, last = re.search(r"versions from ([\d.]+) to ([\d.]+)\.", inspect.getsource(import_utils)).groups()
    for version, supported in [(first, 1), (f"{last}+cu129", 1), ("0.1.9", 0), ("9.0", 0)]:
        monkeypatch.setattr(import_utils, "_is_package_available", lambda *args, v=version, **kwargs: (True, v))
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            assert import_utils.is_vllm_available()
        assert bool(warned) is not bool(supported), f"`is_vllm_available` takes vLLM {version} otherwise than it did."
        assert range_of("vllm").contains(version) is bool(supported), (
            f"TRL's metadata takes vLLM {version} otherwise than it did."
        )


def test_names_of_reward_columns():
    """`clipo doctor` names rewards as the trainer does."""
    assert "get_callable_name(reward_funcs[i])" in inspect.getsource(GRPOTrainer.__init__)


def test_what_is_taken_from_trls_card(tmp_path):
    """Tags and TRL's own citation."""
    trainer = GRPOTrainer(
        tiny_model(),
        letters_reward,
        tiny_config(tmp_path, GRPOConfig),
        tiny_dataset(),
        processing_class=tiny_tokenizer(),
    )
    trainer.create_model_card("plain", tags=["mine"])
    card = ModelCard.load(tmp_path / "README.md")
    before, found, citation = card.text.partition(TRL_CITATION)
    assert {"trl", "grpo", "mine"} <= set(card.data.tags) and before and found
    assert citation.strip().startswith("```bibtex") and citation.count("```") == 2


def test_the_last_log_comes_before_the_trackers_are_closed(tmp_path):
    """A report takes a log's row from the history, and sends its pictures at the last log of a training."""
    events = []

    class Events(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            assert logs.items() <= state.log_history[-1].items()
            events.append("last log" if "train_runtime" in logs else "log")

        def on_train_end(self, args, state, control, **kwargs):
            events.append("end")

    GRPOTrainer(
        tiny_model(),
        letters_reward,
        tiny_config(tmp_path, GRPOConfig, max_steps=1),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
        callbacks=[Events()],
    ).train()
    assert events == ["log", "last log", "end"], moved(Trainer, "log", "is called in another order")
    assert "self.tb_writer.close()" in inspect.getsource(TensorBoardCallback.on_train_end)
