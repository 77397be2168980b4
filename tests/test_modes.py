"""Where modes meet: every way of generating, in every precision, trained, evaluated, predicted with, warmed up and
resumed."""

import copy
import re
from pathlib import Path

import pytest
import torch
from recording import RecordingTrainer
from test_resume import assert_same_run
from test_trl_doors import COUNTING, Counter, add, call, last_message_reward, scripted, tool_model, tool_tokenizer
from test_vllm import stand_in
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer

from clipo_trl import CLIPOTrainer


__all__ = ["scripted", "stand_in"]  # fixtures

GENERATES = ["generate", "continuous_batching", "vllm", "tools", "rollout_func", "environment"]
PRECISIONS = ["fp32", "bf16_autocast", "bf16_weights"]
CONTINUOUS = {
    "use_transformers_continuous_batching": True,
    "transformers_continuous_batching_config": {"block_size": 32, "num_blocks": 16, "max_batch_tokens": 64},
}
# In each way of generating one precision is quick to run, in turn; continuous batching in none.
QUICK = dict(zip(GENERATES, ("fp32", None, "bf16_weights", "fp32", "bf16_autocast", "bf16_weights"), strict=True))
EACH_PAIR = pytest.mark.parametrize(
    "generates, precision",
    [
        pytest.param(
            generation, precision, marks=() if precision == quick else pytest.mark.slow, id=f"{generation}-{precision}"
        )
        for generation, quick in QUICK.items()
        for precision in PRECISIONS
    ],
)
pytestmark = [
    pytest.mark.filterwarnings("ignore:You are using 'rollout_func':UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using 'environment_factory':UserWarning"),
]


def rollout(prompts, trainer):
    """Decodes greedily, and leaves the policy in the other mode, as a function of a user's may."""
    tokenizer = tiny_tokenizer()
    trainer.model.train(not trainer.model.training)
    texts = ["abc<|end|>", "x[7]<|end|>", "tools<|end|>", "[]y", "ab<|end|>", "zz<|end|>", "qrst", "u"]
    completion_ids = [tokenizer(texts[i % len(texts)])["input_ids"] for i in range(len(prompts))]
    return {
        "prompt_ids": [
            tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts
        ],
        "completion_ids": completion_ids,
        "logprobs": [[-1.0] * len(ids) for ids in completion_ids],
    }


@pytest.fixture
def make(request, tmp_path):
    """Makes a trainer that generates in one of the ways, in one of the precisions."""

    def make(generates, precision, trainer_class=CLIPOTrainer, folder="run", **settings):
        settings = {
            "num_generations_eval": 2,
            "per_device_eval_batch_size": 4,  # several batches a test set
            "bf16": precision != "fp32",
            **settings,
        }
        model, reward_func = tiny_model(), letters_reward
        more = {"train_dataset": tiny_dataset(), "eval_dataset": tiny_dataset(4), "processing_class": tiny_tokenizer()}
        if generates == "continuous_batching":
            settings |= CONTINUOUS
        elif generates == "vllm":
            request.getfixturevalue("stand_in")
            settings["use_vllm"] = True
        elif generates == "rollout_func":
            more["rollout_func"] = rollout
        elif generates in ("tools", "environment"):
            calls = [call("add", a=3, b=n) + "<|im_end|>" for n in (1, 22, 333)] + ["no tool<|im_end|>"]
            turns = {"first": calls, "after": ["70<|im_end|>", "odd<|im_end|>"]} if generates == "tools" else COUNTING
            request.getfixturevalue("scripted")(**turns)
            model, reward_func = tool_model(), last_message_reward
            more |= {"processing_class": tool_tokenizer()} | (
                {"tools": [add]} if generates == "tools" else {"environment_factory": Counter}
            )
            settings["max_completion_length"] = 300
        if precision == "bf16_weights":
            model = model.bfloat16()
        return trainer_class(model, reward_func, tiny_config(tmp_path / folder, **settings), **more)

    return make


def traces(trainer):
    """All that an evaluation may not change."""
    return copy.deepcopy(
        {
            "policy": trainer.model.state_dict(),
            "policy is training": trainer.model.training,
            "head": trainer.contrastive_head.state_dict(),
            "head's optimizer": trainer.head_learner.optimizer.state_dict(),
            "draw": trainer.head_learner.draw_generator.get_state(),
            "calibration": trainer.head_learner.calibration,
            "batches": trainer.head_learner.n_batches,
            "step": (trainer._step, trainer.state.global_step),
            "waiting rollouts": trainer._buffered_inputs,
            "waiting metrics": {name: list(values) for name, values in trainer._metrics["train"].items()},
            "metrics of evaluations": dict(trainer._metrics["eval"]),
            "pending": (dict(trainer._pending_extra_logs), dict(trainer._pending_metrics)),
            "rollouts at hand": (trainer.states.tokens, trainer.states._pooled_BH, list(trainer._logs["advantages"])),
            "test rewards": tuple(trainer._test_rewards),
        }
    )


def assert_same(before, after, path=""):
    assert type(before) is type(after), path
    if isinstance(before, dict):
        assert before.keys() == after.keys(), path
        for name in before:
            assert_same(before[name], after[name], f"{path} {name}")
    elif isinstance(before, list | tuple):
        assert len(before) == len(after), path
        for i, (one, other) in enumerate(zip(before, after, strict=True)):
            assert_same(one, other, f"{path} {i}")
    elif isinstance(before, torch.Tensor):
        assert before.dtype == after.dtype and torch.equal(before, after), path
    else:
        assert before == after, path


class Watched(RecordingTrainer):
    """Evaluates and predicts only if that leaves no trace, at whichever place of a run."""

    n_watched = 0

    def evaluate(self, *args, **kwargs):
        return self._watch(super().evaluate, *args, **kwargs)

    def predict(self, *args, **kwargs):
        return self._watch(super().predict, *args, **kwargs)

    def _watch(self, method, *args, **kwargs):
        before = traces(self)
        result = method(*args, **kwargs)
        assert_same(before, traces(self))
        self.n_watched += 1
        return result


@EACH_PAIR
def test_evaluation_and_prediction_leave_no_trace(make, generates, precision):
    trainer = make(generates, precision, Watched, max_steps=3, eval_strategy="steps", eval_steps=1)
    kinds = {parameter.dtype for parameter in trainer.model.parameters()}
    assert kinds == {torch.bfloat16 if precision == "bf16_weights" else torch.float32}
    head = copy.deepcopy(trainer.contrastive_head.state_dict())
    policy = copy.deepcopy(trainer.model.state_dict())

    metrics = trainer.evaluate()
    assert 0 <= metrics["eval_reward"] <= 2  # an environment has a reward of its own
    trainer.predict(tiny_dataset(2))
    trainer.train()
    trainer.predict(tiny_dataset(2))
    assert 0 <= trainer.evaluate()["eval_reward"] <= 2

    assert trainer.n_watched == 2 + 3 + 2
    evaluations = [row for row in trainer.state.log_history if "eval_reward" in row]
    assert len(evaluations) == 3 + 1 and not any("contrastive" in name for row in evaluations for name in row)
    trained = [row for row in trainer.state.log_history if "loss" in row]
    assert len(trained) == 3 and all("contrastive/anchors" in row and "reward" in row for row in trained)
    # Training itself did what it is there for.
    assert trainer.head_learner.n_batches == len(trainer.records) == 3
    assert {parameter.dtype for parameter in trainer.model.parameters()} == kinds
    assert not torch.equal(policy["lm_head.weight"], trainer.model.state_dict()["lm_head.weight"])
    learned = any(row["contrastive/anchors"] > 0 for row in trained)  # a random policy may have had none
    assert learned != all(torch.equal(head[name], w) for name, w in trainer.contrastive_head.state_dict().items())
    assert all(parameter.dtype == torch.float32 for parameter in trainer.contrastive_head.parameters())
    for _, pooled, expected in trainer.records:
        assert pooled.dtype == torch.float32
        torch.testing.assert_close(pooled, expected, **({} if precision == "fp32" else {"atol": 0.1, "rtol": 0.1}))
        assert torch.nn.functional.cosine_similarity(pooled, expected).min() > 0.998


@EACH_PAIR
@pytest.mark.slow
def test_a_run_with_a_warm_up_resumes_bit_for_bit(make, generates, precision):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 1, "contrastive_warmup_steps": 2}
    whole = make(generates, precision, **settings)
    start = copy.deepcopy(whole.model.state_dict())
    whole.train()
    for step in (1, 3):  # in the warm-up, and after it
        resumed = make(generates, precision, **settings)
        resumed.train(resume_from_checkpoint=f"{resumed.args.output_dir}/checkpoint-{step}")
        assert_same_run(resumed, whole)
    warming = make(generates, precision, **(settings | {"max_steps": 2}), folder="other")
    warming.train()
    assert_same(start, warming.model.state_dict())  # frozen
    assert not torch.equal(start["lm_head.weight"], whole.model.state_dict()["lm_head.weight"])


@pytest.mark.parametrize("generates", ["generate", "continuous_batching", "vllm", "rollout_func"])
def test_an_exception_in_the_middle_leaves_no_trace(make, generates, monkeypatch):
    trainer = make(generates, "fp32", max_steps=2, log_completions=True)
    before = traces(trainer)
    grade = trainer.reward_funcs[0]

    def failing(completions, log_extra=None, **kwargs):
        log_extra("half", [0] * len(completions))
        raise ConnectionError("the judge is away")

    trainer.reward_funcs[0] = failing
    for run in (trainer.evaluate, lambda: trainer.predict(tiny_dataset(2)), trainer.train):
        with pytest.raises(ConnectionError):
            run()
        if run == trainer.train:
            before["policy is training"] = True
        after = traces(trainer)
        assert_same(before | {"waiting metrics": None}, after | {"waiting metrics": None})
        assert not trainer._evaluating
    trainer.reward_funcs[0] = grade
    trainer.train()
    assert trainer.head_learner.n_batches == 2


@pytest.mark.parametrize("full_eval", ["bf16_full_eval", "fp16_full_eval"])
def test_full_low_precision_evaluation_gives_the_weights_back(make, full_eval):
    trainer = make("generate", "fp32", Watched, max_steps=2, **{full_eval: True})
    buffers = {name: buffer.dtype for name, buffer in trainer.model.named_buffers()}
    trainer.evaluate()
    trainer.predict(tiny_dataset(2))
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}
    assert {name: buffer.dtype for name, buffer in trainer.model.named_buffers()} == buffers
    trainer.train()
    assert trainer.n_watched == 2


def test_a_column_of_the_users_with_the_name_of_ours_is_refused(make):
    trainer = make("generate", "fp32", max_steps=1, log_completions=True)
    grade = trainer.reward_funcs[0]

    def graded(completions, log_extra=None, **kwargs):
        log_extra("group", ["mine"] * len(completions))
        return grade(completions)

    trainer.reward_funcs[0] = graded
    with pytest.raises(ValueError, match="'group', which is CLIPO's own.*Rename it"):
        trainer.train()


def test_another_run_of_the_same_trainer_does_not_warm_up_again(make):
    trainer = make("vllm", "fp32", max_steps=3, contrastive_warmup_steps=2)
    syncs = []
    sync = trainer.vllm_generation.sync_weights
    trainer.vllm_generation.sync_weights = lambda: syncs.append(trainer.state.global_step) or sync()
    trainer.train()
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.args.max_steps = 1
    trainer.train()
    assert syncs == [0, 0]  # at the start of each: nothing had changed at step 2
    assert not torch.equal(before["lm_head.weight"], trainer.model.state_dict()["lm_head.weight"])


def test_the_engine_gets_the_best_model(make):
    """It is loaded at the end, when the engine has the last step's weights, and the step says nothing of them."""
    trainer = make("vllm", "fp32", max_steps=2, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1,
                   save_strategy="steps", save_steps=1)  # fmt: skip
    syncs = []
    sync = trainer.vllm_generation.sync_weights
    trainer.vllm_generation.sync_weights = lambda: syncs.append(trainer.state.global_step) or sync()
    trainer.train()
    syncs.clear()
    trainer.predict(tiny_dataset(2))
    assert syncs == [2]


def test_the_page_names_these_tests():
    page = (Path(__file__).parents[1] / "docs" / "modes.md").read_text()
    rows = [row.strip("| ").split(" | ") for row in page.splitlines() if re.match(r"\| [a-z_]+ \| (fp|bf)", row)]
    assert [(row[0], row[1]) for row in rows] == [
        (generation, precision) for generation in GENERATES for precision in PRECISIONS
    ]
    for generation, precision, *cells in rows:
        assert cells == [f"`{name}[{generation}-{precision}]`" for name in "AAABB"]
    for name in ("test_evaluation_and_prediction_leave_no_trace", "test_a_run_with_a_warm_up_resumes_bit_for_bit"):
        assert name in page and name in globals()
