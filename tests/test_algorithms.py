"""Base algorithms: each trains, with CLIPO and without; with weight 0 as TRL's own; what contradicts it is refused."""

from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from test_train_script import SMALL_BATCH, TINY, rows_path
from tiny_models import letters_reward, tiny_config, tiny_dataset, tiny_model, tiny_tokenizer
from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer

import train
from clipo_trl import CLIPOMixin, ConSPOTrainer
from clipo_trl.algorithms import ALGORITHMS, find_algorithm
from clipo_trl.cli.run_choices import run_rows
from clipo_trl.cli.train import parse_arguments
from clipo_trl.policy_loss import describe_policy_loss
from reward_funcs.errors import UsageError


__all__ = ["rows_path"]  # a fixture

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
TRACKS = {"track1": "track1_gsm8k", "track2": "track2_math"}
ON_CPU = ["--use_cpu", "true", "--bf16", "false"]
OF_TRL = {"gmpo": GMPOTrainer, "conspo": ConSPOTrainer}  # the others are GRPOTrainer's
NAMES = [None, *ALGORITHMS]


def make_trainer(tmp_path, name, trainer_class, reward_funcs=letters_reward, **settings):
    """For five optimizer steps, two to a generation batch, so that ratios are not 1."""
    algorithm = find_algorithm(name)
    args = tiny_config(
        tmp_path,
        algorithm.config_class(),
        **{"max_steps": 5, "steps_per_generation": 2, **algorithm.defaults(), **settings},
    )
    algorithm.check(str(name), args)
    return trainer_class(
        tiny_model(), reward_funcs, args, train_dataset=tiny_dataset(), processing_class=tiny_tokenizer()
    )


def trained(*args, **settings):
    trainer = make_trainer(*args, **settings)
    trainer.train()
    assert trainer.state.global_step == 5
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_with_weight_zero_it_is_trls_own_bit_for_bit(tmp_path, name):
    algorithm = find_algorithm(name)
    as_trl = {"dynamic_sampling": False} if name == "dapo" else {}  # which TRL has not
    theirs = trained(tmp_path, name, OF_TRL.get(name, GRPOTrainer), **as_trl)
    plain = trained(tmp_path, name, algorithm.trainer_class(contrastive=False), **as_trl)
    start = dict(tiny_model().named_parameters())
    assert same(theirs, plain) and not same(theirs, start)
    ours = algorithm.trainer_class()
    assert issubclass(ours, CLIPOMixin) and not issubclass(algorithm.trainer_class(contrastive=False), CLIPOMixin)
    assert same(theirs, trained(tmp_path, name, ours, contrastive_reward_weight=0.0, **as_trl))
    scale = {"conspo_contrastive_scale": 4.0} if name == "conspo" else {}
    assert not same(theirs, trained(tmp_path, name, ours, **scale, **as_trl))


def test_with_weight_zero_dapo_with_dynamic_sampling_is_the_plain_one(tmp_path):
    def only_c(completions, **kwargs):  # few groups have a spread
        return [float("c" in completion[0]["content"]) for completion in completions]

    settings = {"reward_funcs": only_c, "temperature": 1.5}
    plain = trained(tmp_path, "dapo", ALGORITHMS["dapo"].trainer_class(contrastive=False), **settings)
    ours = ALGORITHMS["dapo"].trainer_class()
    assert same(plain, trained(tmp_path, "dapo", ours, contrastive_reward_weight=0.0, **settings))
    assert not same(plain, trained(tmp_path, "dapo", ours, **settings))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_dynamic_sampling_is_there_with_clipo_and_without(tmp_path, name):
    """The same file, but for the head: all groups are dead, and both make three attempts at each batch."""
    for contrastive in (True, False):
        calls = []

        def right(completions, **kwargs):
            calls.append(len(completions))  # noqa: B023
            return [1.0] * len(completions)

        settings = {"dynamic_sampling": True, "dynamic_sampling_max_attempts": 3, "max_steps": 5}
        trained(tmp_path, name, find_algorithm(name).trainer_class(contrastive), reward_funcs=right, **settings)
        assert len(calls) == 3 * 3  # five steps take three generation batches


@pytest.mark.parametrize("name", ["dapo", "conspo"])
def test_the_same_rewards_decide_with_clipo_and_without(tmp_path, name):
    def mine(completions, **kwargs):
        return [1.0] * len(completions)

    def steps(completions, **kwargs):
        return letters_reward(completions, **kwargs)

    found = []
    for contrastive in (True, False):
        args = tiny_config(
            tmp_path,
            find_algorithm(name).config_class(),
            **{**find_algorithm(name).defaults(), "contrastive_step_reward": "steps", "dynamic_sampling": True},
        )
        trainer = find_algorithm(name).trainer_class(contrastive)(
            tiny_model(), [mine, steps], args, train_dataset=tiny_dataset(), processing_class=tiny_tokenizer()
        )
        found.append((trainer._find_spread_columns(), getattr(trainer, "_success_columns", [0])))
    assert found == [([0], [0])] * 2


@pytest.mark.slow
def test_no_two_algorithms_are_the_same(tmp_path):
    # A high learning rate, so that ratios leave every clip.
    found = {
        name: trained(
            tmp_path, name, find_algorithm(name).trainer_class(contrastive=False), learning_rate=0.05, beta=0.0
        )
        for name in ALGORITHMS
    }
    names = list(found)
    assert not [
        (one, other) for i, one in enumerate(names) for other in names[i + 1 :] if same(found[one], found[other])
    ]


def test_with_one_step_a_generation_batch_the_ratio_makes_no_difference(tmp_path):
    """Those that average over a rollout's tokens, then over rollouts, have the same gradient where the ratio is 1."""
    one_step = {"steps_per_generation": 1, "optim": "sgd", "learning_rate": 0.1, "max_grad_norm": 0.0}
    found = {
        name: trained(tmp_path, name, find_algorithm(name).trainer_class(contrastive=False), **one_step)
        for name in ("grpo", "gspo", "gmpo", "sapo", "dr_grpo")
    }
    moved = max((found["grpo"][name] - w).abs().max() for name, w in tiny_model().named_parameters())
    assert moved > 1e-2

    def distance(name):
        return max((weight - found["grpo"][key]).abs().max() for key, weight in found[name].items())

    assert all(distance(name) < 1e-4 * moved for name in ("gspo", "gmpo", "sapo"))
    assert distance("dr_grpo") > 0.1 * moved


# ---------------------------------------------------------------------- what is chosen, and what is refused


def test_values_that_are_not_given_are_the_published_ones():
    _, args, _ = parse_arguments(["--algorithm", "gspo", *ON_CPU])
    assert (args.loss_type, args.importance_sampling_level) == ("grpo", "sequence")
    assert (args.epsilon, args.epsilon_high) == (3e-4, 4e-4)
    _, args, _ = parse_arguments(["--algorithm", "gspo", "--epsilon", "0.001", *ON_CPU])
    assert (args.epsilon, args.epsilon_high) == (1e-3, 4e-4)
    _, args, _ = parse_arguments(["--algorithm", "dapo", *ON_CPU])
    assert args.mask_truncated_completions is True and args.epsilon_high == 0.28 and args.dynamic_sampling is True
    _, args, _ = parse_arguments(ON_CPU)
    assert (args.loss_type, args.importance_sampling_level, args.epsilon) == ("dapo", "token", 0.2)


def test_grpo_may_average_tokens_in_three_ways():
    for loss_type in ("grpo", "bnpo", "dapo"):
        assert parse_arguments(["--algorithm", "grpo", "--loss_type", loss_type, *ON_CPU])[1].loss_type == loss_type


@pytest.mark.parametrize(
    "words, message",
    [
        (
            "--algorithm gspo --importance_sampling_level token",
            "`importance_sampling_level` is 'token', but `algorithm` is 'gspo', for which it must be 'sequence'",
        ),
        ("--algorithm grpo --loss_type cispo", "`loss_type` is 'cispo'.*must be 'grpo' or 'bnpo' or 'dapo'. Leave"),
        ("--algorithm dr_grpo --scale_rewards group", "`scale_rewards` is 'group'.*must be 'none'"),
        ("--algorithm gmpo --loss_type dapo", "`loss_type` is 'dapo', but `algorithm` is 'gmpo', with which nothing"),
        (
            "--algorithm conspo --epsilon 0.2",
            "`epsilon` is 0.2, but `algorithm` is 'conspo', with which nothing reads",
        ),
        ("--algorithm conspo --loss_type dapo", "`loss_type` is 'dapo', but must be 'grpo' for ConSPO"),
        ("--algorithm grop", "`algorithm` is 'grop', which is not known. Choose one of"),
        ("--contrastive false --suspicious_rollouts 3", "`suspicious_rollouts` is 3, but `contrastive` is off"),
        ("--conspo_temperature 1", "conspo_temperature"),
    ],
)
def test_contradictions_are_refused(words, message):
    with pytest.raises(UsageError, match=message):
        parse_arguments([*words.split(), *ON_CPU])


def test_an_unknown_algorithm_is_refused_before_anything_is_loaded():
    with pytest.raises(UsageError, match="`algorithm` is 'grop', which is not known"):
        train.main("--algorithm grop --model_name_or_path some/model --dataset_name some/data".split())


def test_a_file_names_the_algorithm_and_the_command_line_another(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("algorithm: gspo\nepsilon: 0.002\n")
    script, args, _ = parse_arguments(["--config", str(path), *ON_CPU])
    assert (script.algorithm, args.epsilon, args.epsilon_high) == ("gspo", 0.002, 4e-4)
    script, args, _ = parse_arguments(["--config", str(path), "--algorithm", "gmpo", *ON_CPU])
    assert (script.algorithm, args.epsilon, type(args).__name__) == ("gmpo", 0.002, "CLIPOGMPOConfig")


# ---------------------------------------------------------------------- the script


@pytest.mark.parametrize("name, contrastive", [("conspo", True), ("conspo", False), ("gmpo", True), ("grpo", False)])
def test_the_script_trains(model_path, rows_path, tmp_path, name, contrastive, monkeypatch):
    tables = []
    monkeypatch.setattr(Console, "print", lambda self, table: tables.append(table))
    paths = f"--model_name_or_path {model_path} --dataset_name {rows_path} --output_dir {tmp_path / 'out'}"
    rewards = "--reward_funcs test_train_script.even_length --save_strategy no --max_steps 2 --report false"
    choice = f"--algorithm {name} --contrastive {contrastive}"
    trainer = train.main(f"{paths} {TINY} {SMALL_BATCH} {rewards} {choice}".split())
    assert type(trainer) is ALGORITHMS[name].trainer_class(contrastive)
    assert trainer.state.global_step == 2
    assert (tmp_path / "out" / "contrastive_head").exists() is contrastive
    console = Console(width=120)
    with console.capture() as capture:
        monkeypatch.undo()
        console.print(tables[0])
    text = capture.get()
    assert f"{name}: " in text and ("contrastive loss" in text) is contrastive
    assert ("CLIPO: what will run" in text) is contrastive
    assert "learning rate" in text
    assert {"conspo": "temperature 10", "gmpo": "0.4 / 0.4 in log space", "grpo": "clip 0.2 / 0.2"}[name] in text


def test_the_doctor_tells_the_trainer():
    rows = {row.subject: row.text for row in run_rows(["--algorithm", "gmpo", *ON_CPU])}
    assert rows["trainer"] == "CLIPOGMPOTrainer (gmpo, arXiv 2507.20673)" and "hidden states" in rows
    rows = {row.subject: row.text for row in run_rows(["--algorithm", "grpo", "--contrastive", "false", *ON_CPU])}
    assert rows["trainer"].startswith("MendedGRPOTrainer") and "hidden states" not in rows


# ---------------------------------------------------------------------- the files


FILES = [f"{name}_{track}" for name in ALGORITHMS if name != "grpo" for track in TRACKS]
# What a file may have otherwise than its track: the algorithm's own blocks, and for two algorithms what they need.
OWN = {"algorithm", "contrastive", "output_dir", "learning_rate", "loss_type", "importance_sampling_level", "epsilon"}
OWN |= {"epsilon_high", "beta", "use_bias_correction_kl", "scale_rewards", "sapo_temperature_pos"}
OWN |= {"sapo_temperature_neg", "conspo_temperature", "conspo_target_margin", "conspo_margin_warmup_ratio"}
OWN |= {"conspo_contrastive_scale"}
MORE = {
    "gspo": {"gradient_accumulation_steps", "save_steps", "eval_steps"},
    "dapo": {"reward_funcs", "contrastive_success_rewards", "mask_truncated_completions", "dynamic_sampling"},
}


def test_every_algorithm_has_a_file_for_each_track():
    assert {path.stem for path in (CONFIGS / "algorithms").glob("*")} == set(FILES)
    for track in TRACKS.values():
        assert yaml.safe_load((CONFIGS / f"{track}.yaml").read_text())["algorithm"] == "grpo"


@pytest.mark.parametrize("file", FILES)
def test_files_are_their_track_but_for_the_algorithm(file, monkeypatch):
    name, track = file.rsplit("_", 1)
    path = CONFIGS / "algorithms" / f"{file}.yaml"
    values = yaml.safe_load(path.read_text())
    base = yaml.safe_load((CONFIGS / f"{TRACKS[track]}.yaml").read_text())
    different = {field for field in {*values, *base} if values.get(field) != base.get(field)}
    assert different <= OWN | MORE.get(name, set())
    script, args, model = parsed = parse_arguments(["--config", str(path), *ON_CPU])
    assert script.algorithm == values["algorithm"] == name and values["output_dir"] == f"runs/{file}"
    for field in set(values) - {"bf16", "report_to"}:
        (owner,) = [arguments for arguments in parsed if hasattr(arguments, field)]
        assert getattr(owner, field) == values[field], field
    assert ALGORITHMS[name].paper in path.read_text()
    # Nothing that the algorithm would choose by itself is left unsaid.
    assert not {
        field for field, value in ALGORITHMS[name].defaults(values).items() if getattr(type(args), field) != value
    }


def test_gspo_takes_four_steps_a_generation_batch():
    for track, rows in (("track1", 16), ("track2", 8)):
        values = yaml.safe_load((CONFIGS / "algorithms" / f"gspo_{track}.yaml").read_text())
        assert values["generation_batch_size"] == 4 * 8 * rows * values["gradient_accumulation_steps"]
        assert values["per_device_train_batch_size"] == rows and values["save_steps"] % 4 == 0


def test_the_clips_that_are_read_are_told():
    def told(name, option="--algorithm"):
        return describe_policy_loss(parse_arguments([option, name, *ON_CPU])[1])

    assert told("vespo", "--loss_type") == "vespo (token level)"  # of TRL, without an algorithm's name here
    assert told("bnpo", "--loss_type") == "bnpo (token level), clip 0.2 / 0.2"
    assert told("sapo") == "sapo (token level)"
    assert told("cispo") == "cispo (token level), clip 5"
    assert told("dapo") == "dapo (token level), clip 0.2 / 0.28"
    assert told("gspo") == "grpo (sequence level), clip 0.0003 / 0.0004"
    assert told("gmpo") == "GMPO, geometric mean of ratios, clip 0.4 / 0.4 in log space"  # which reads no `loss_type`


@pytest.mark.parametrize("first, then", [("grpo", "conspo"), ("conspo", "grpo")])
def test_resuming_as_another_algorithm_makes_waiting_rollouts_again(tmp_path, first, then, caplog):
    settings = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1, "learning_rate": 1e-4}
    make_trainer(tmp_path, first, find_algorithm(first).trainer_class(), **settings).train()
    trainer = make_trainer(tmp_path, then, find_algorithm(then).trainer_class())
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert "rollouts that were waiting to be trained on are made again" in caplog.text
    assert trainer.state.global_step == 5


def test_dapo_without_arguments_takes_its_own():
    with pytest.raises(ValueError, match="bf16"):  # of its configuration, on a CPU
        ALGORITHMS["dapo"].trainer_class(False)(tiny_model(), letters_reward, train_dataset=tiny_dataset())
