"""What a generation batch of CLIPO asks of the device beside GRPO's: counted, as a CPU does not show what it costs."""

import warnings
from collections import Counter

import pytest
import torch
from recording import CAPTURE_MODES, assert_right, record, settings_of
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from torch.utils._python_dispatch import TorchDispatchMode
from trl import GRPOTrainer

from clipo_trl import CLIPOTrainer
from clipo_trl.capture import plan_passes, split_passes
from clipo_trl.hidden_states import ForwardPooler, pool


# Operations for which the host waits for the device: a number, or a shape, is read off it.
WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal")


class Counting(TorchDispatchMode):
    """Counts the operations that make the host wait, and notes the largest result that is no view."""

    def __init__(self):
        super().__init__()
        self.waits, self.largest = Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if any(name == wait or name.startswith(wait + "_") for wait in WAITS):
            self.waits[name] += 1
        output = func(*args, **(kwargs or {}))
        if isinstance(output, torch.Tensor) and not any(
            isinstance(arg, torch.Tensor) and arg.data_ptr() == output.data_ptr() for arg in args
        ):
            self.largest = max(self.largest, output.numel())
        return output


def waits(tmp_path, trainer_class, max_completion_length, mode, **settings):
    """Of two steps, in which nothing but the trainer differs: with weight 0, rollouts are the same."""

    class OfMode(trainer_class):
        def _choose_capture_mode(self, reader):
            return mode

        def _generate(self, prompts):  # rollouts of full length
            self.generation_config.min_new_tokens = max_completion_length
            return super()._generate(prompts)

    trainer = OfMode(
        tiny_model(),
        letters_reward,
        tiny_config(
            tmp_path,
            max_steps=2,
            max_completion_length=max_completion_length,
            report_to="none",
            contrastive_reward_weight=0.0,
            **settings_of(mode),
            **settings,
        ),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
    )
    with Counting() as counting:
        trainer.train()
    return counting.waits


@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_the_host_waits_a_bounded_number_of_times(tmp_path, mode):
    """However long the rollouts are. Counted here are numbers read off the CPU's own tensors too: a few a rollout."""
    more = []
    for length in (4, 16):
        of_grpo, of_clipo = (waits(tmp_path, trainer, length, mode) for trainer in (GRPOTrainer, CLIPOTrainer))
        more.append((of_clipo - of_grpo).total())
    batches, rollouts = (1 if mode == "fused" else 2), 8
    assert 0 < more[0] == more[1] <= batches * (20 + rollouts)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", CAPTURE_MODES)
def test_the_host_waits_for_a_gpu_a_bounded_number_of_times(tmp_path, mode):
    more = []
    for length in (4, 64):
        counts = [waits_for_a_gpu(tmp_path, trainer, length, mode) for trainer in (GRPOTrainer, CLIPOTrainer)]
        more.append(counts[1] - counts[0])
    assert more[1] <= more[0] + 2 and more[0] <= 60  # two generation batches at most


def waits_for_a_gpu(tmp_path, trainer_class, length, mode):
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            waits(tmp_path, trainer_class, length, mode, use_cpu=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


@pytest.mark.parametrize("length", [5, 300])
def test_pooling_copies_the_states_that_are_read_not_all(length):
    states = torch.randn(3, 400, 128)
    reads = torch.zeros(3, 400, dtype=torch.bool)
    reads[0, 60 : 60 + length] = reads[2, 70 : 60 + length] = True  # the second row reads nothing
    pooler = ForwardPooler(reads)
    with Counting() as counting:
        pooler(states, None)
    assert counting.largest <= 3 * length * 128
    torch.testing.assert_close(pooler.result(), pool(states, reads))
    assert pooler.result()[1].eq(0).all()


def test_rows_that_read_nothing_at_all():
    pooler = ForwardPooler(torch.zeros(2, 9, dtype=torch.bool))
    pooler(torch.full((2, 9, 4), torch.nan), None)
    assert pooler.result().tolist() == [[0.0] * 4] * 2


@pytest.mark.parametrize(
    "lengths, max_tokens, expected",
    [
        ([5, 5, 5, 5], 10, [[0, 1], [2, 3]]),
        ([9, 1, 2, 1, 3, 2], 18, [[0, 4], [2, 5, 1, 3]]),  # nine rows of length 2 would fit
        ([7, 8], 4, [[1], [0]]),  # a row is not cut
        ([3], 100, [[0]]),
    ],
)
def test_passes_are_planned_by_tokens(lengths, max_tokens, expected):
    assert plan_passes(lengths, max_tokens) == expected


def test_processes_agree_on_the_number_of_passes():
    passes = plan_passes([4] * 6 + [2] * 2, 16)
    assert passes == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert split_passes(passes, 2) == passes
    assert split_passes(passes, 3) == [[0, 1], [2, 3], [4, 5, 6, 7]]
    assert split_passes(passes, 8) == [[row] for row in range(8)]


def test_short_rollouts_share_a_pass(tmp_path, monkeypatch):
    """Fewer passes than training micro-batches, where one rollout is long."""
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    texts = ["a", "bc", "d", "e", "fg", "h", "i", "abcdefghijklmnopqrst"]
    tokenizer = tiny_tokenizer()

    def rollout(prompts, trainer):
        return {
            "prompt_ids": [[5, 6]] * len(prompts),
            "completion_ids": [tokenizer(text)["input_ids"] for text in texts],
            "logprobs": [[-1.0] * len(tokenizer(text)["input_ids"]) for text in texts],
        }

    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "max_steps": 1}
    trainer = record(tmp_path, trainer_kwargs={"rollout_func": rollout}, **settings)
    assert trainer.states.mode == "forward"
    assert trainer.state.log_history[0]["contrastive/extra_forward_passes"] == 2.0  # not 4
    assert_right(trainer)


def test_our_pass_is_queued_before_the_reward_functions_run(tmp_path):
    order = []

    class Ordered(CLIPOTrainer):
        def _choose_capture_mode(self, reader):
            watch = reader.watch
            reader.watch = lambda pooler: (order.append("pass"), watch(pooler))[1]
            return "forward"

    def reward(completions, **kwargs):
        order.append("reward")
        return letters_reward(completions, **kwargs)

    Ordered(
        tiny_model(),
        reward,
        tiny_config(tmp_path, max_steps=2),
        train_dataset=tiny_dataset(),
        processing_class=tiny_tokenizer(),
    ).train()
    assert order == ["pass", "reward"] * 2
