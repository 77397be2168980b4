"""`train.py` end to end: the paper's recipe on the paper's data with a tiny random model, resuming, evaluating, LoRA,
two processes."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from rich.console import Console
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer, ModelConfig

import train
from clipo_trl import CLIPOConfig, CLIPOTrainer, ContrastiveHead
from clipo_trl.cli import run_plan
from clipo_trl.cli.rewards import check_rewards
from clipo_trl.cli.run_choices import explain_checks
from clipo_trl.log_file import LOG_NAME, read_log
from reward_funcs.errors import UsageError


ROOT = Path(__file__).parents[1]
GSM8K = ROOT.parent / "shared" / "data" / "train" / "gsm8k.parquet"
TINY = "--use_cpu true --bf16 false --use_vllm false --report_to none --disable_tqdm true --max_completion_length 8"
SMALL_BATCH = (
    "--num_generations 4 --generation_batch_size 8 --per_device_train_batch_size 4 --gradient_accumulation_steps 1"
)


def even_length(completions, **kwargs) -> list[float]:
    """Right about half of the time, for a model that knows nothing."""
    return [float(len(completion[-1]["content"]) % 2 == 0) for completion in completions]


def short(completions, **kwargs) -> list[float]:
    """Stands for a checker of steps."""
    return [float(len(completion[-1]["content"]) < 6) for completion in completions]


@pytest.fixture(scope="module")
def rows_path(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    rows = pd.DataFrame(
        {"question": [f"{i} + {i}?" for i in range(10)], "answer": [f"#### {2 * i}" for i in range(10)]}
    )
    rows.to_json(path, orient="records", lines=True)
    return str(path)


@pytest.fixture
def run(model_path, rows_path, tmp_path):
    """`main` on ten rows, with batches of 2 prompts x 4 rollouts; later fields override earlier ones."""

    def run(*overrides: str) -> CLIPOTrainer:
        paths = f"--model_name_or_path {model_path} --dataset_name {rows_path} --output_dir {tmp_path / 'out'}"
        argv = f"{paths} {TINY} {SMALL_BATCH} --reward_funcs test_train_script.even_length --save_strategy no"
        argv += " --report false"  # test_report.py has it
        return train.main([*argv.split(), *" ".join(overrides).split()])

    return run


def test_paths_from_home(run, rows_path, tmp_path, monkeypatch):
    """A file is found to be one, a checkpoint and a head are found."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "train.jsonl").write_text(Path(rows_path).read_text())
    with pytest.raises(UsageError, match="is one file, without a test split"):
        run("--dataset_name ~/train.jsonl --eval_strategy steps --eval_steps 1")
    run("--dataset_name ~/train.jsonl --max_steps 1 --save_strategy steps --save_steps 1")
    assert "datasets/" not in (tmp_path / "out" / "README.md").read_text().partition("\n#")[0]
    head = "--contrastive_head_path ~/out --output_dir ~/other"
    trainer = run(f"{head} --resume_from_checkpoint ~/out/checkpoint-1 --max_steps 2")
    assert trainer.state.global_step == 2 and trainer.args.contrastive_head_path == str(tmp_path / "out")


def test_what_an_earlier_run_left_in_the_folder(run, tmp_path):
    """An adapter is loaded before the model that is saved beside it; a head and a report would be taken for ours."""
    run("--max_steps 1 --use_peft true --lora_target_modules all-linear --report true")
    with pytest.raises(UsageError, match=r"has left an adapter.*\(adapter_config.json\)"):
        run("--max_steps 1")
    (tmp_path / "out" / "adapter_config.json").unlink()
    with pytest.raises(UsageError, match=r"has left a contrastive head.*\(contrastive_head\)"):
        run("--max_steps 1 --contrastive false")
    assert (tmp_path / "out" / "report.html").exists()
    run("--max_steps 1")
    assert not (tmp_path / "out" / "report.html").exists() and not (tmp_path / "out" / "report").exists()


@pytest.mark.parametrize("also", ["", "--dry_run true"])
def test_a_checkpoint_that_is_not_there_is_told_first(run, tmp_path, also):
    with pytest.raises(UsageError, match="there is no whole checkpoint in"):
        run(f"--resume_from_checkpoint true {also}")
    (tmp_path / "half").mkdir()
    with pytest.raises(UsageError, match="no checkpoint that was written to its end"):
        run(f"--resume_from_checkpoint {tmp_path / 'half'} {also}")


def test_a_test_set_that_is_not_there_is_told_in_a_sentence(run):
    with pytest.raises(UsageError, match="`eval_datasets`.*cannot be read"):
        run("--eval_datasets x=no/suchset --eval_strategy steps --eval_steps 1")


def test_a_model_without_a_chat_template(run, model_path, tmp_path):
    folder = shutil.copytree(model_path, tmp_path / "plain")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    for also in ("", "--dry_run true", "--max_prompt_length 50"):
        with pytest.raises(UsageError, match="has no `chat_template`"):
            run(f"--model_name_or_path {folder} {also}")


def test_config_may_stand_before_its_sign(run, tmp_path):
    (tmp_path / "one.yaml").write_text("max_steps: 1\n")
    assert run(f"--config={tmp_path / 'one.yaml'}").state.global_step == 1


def logged(trainer: CLIPOTrainer, metric: str) -> list[float]:
    return [entry[metric] for entry in trainer.state.log_history if metric in entry]


# ---------------------------------------------------------------------- the paper's recipe


@pytest.mark.skipif(not GSM8K.is_file(), reason=f"the paper's training file is not at {GSM8K}")
@pytest.mark.slow
def test_track1_on_gsm8k(model_path, tmp_path, capsys):
    out = tmp_path / "track1"
    argv = f"--config {ROOT}/configs/track1_gsm8k.yaml --model_name_or_path {model_path} --dataset_name {GSM8K} {TINY}"
    sizes = (
        "--generation_batch_size 64 --per_device_train_batch_size 16 --gradient_accumulation_steps 2 --max_steps 8 "
        "--contrastive_warmup_steps 1 --save_steps 4 --eval_strategy no --max_prompt_length 300"
    )
    # A random model answers nothing right: let the other reward say what is correct.
    rewards = "--reward_funcs verifiable test_train_script.even_length --contrastive_success_rewards even_length"
    trainer = train.main(f"{argv} --output_dir {out} {sizes} {rewards}".split())

    assert trainer.state.global_step == 8
    assert trainer.args.contrastive_embedding_dim == 512 and trainer.args.beta == 0.001  # the recipe's own
    assert len(logged(trainer, "contrastive/head_loss")) == 4  # two optimizer steps from each generation batch
    assert any(value < 0 for value in logged(trainer, "rewards/contrastive/mean"))
    assert "CLIPO: what will run" in capsys.readouterr().out

    saved = AutoModelForCausalLM.from_pretrained(out)
    assert any((a != b).any() for a, b in zip(saved.parameters(), tiny_model().parameters(), strict=True))
    head = ContrastiveHead.from_pretrained(out / "contrastive_head")
    assert (head.hidden_size, head.embedding_dim) == (16, 512)
    assert (head.layers[0].weight == trainer.contrastive_head.layers[0].weight).all()
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}
    card = ModelCard.load(out / "README.md")
    assert "CLIPO" in card.text and "2603.10101" in card.text and "clipo" in card.data.tags
    assert str(GSM8K) not in card.content  # a local path names nothing on the Hub


# ---------------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    "sizes",
    [
        "--num_train_epochs 2",
        "--num_train_epochs 1 --num_iterations 2",
        "--generation_batch_size 16 --num_train_epochs 3",
        "--generation_batch_size 16 --gradient_accumulation_steps 8 --num_train_epochs 2",
        "--max_steps 3 --gradient_accumulation_steps 2",
        "--max_steps 12 --num_iterations 2",
    ],
)
@pytest.mark.slow
def test_plan_is_what_happens(run, sizes, capsys):
    trainer = run(sizes)
    plan = run_plan.plan_run(trainer.args, 10)
    assert trainer.state.global_step == trainer.state.max_steps == plan.optimizer_steps
    assert trainer.head_learner.n_batches == plan.generation_batches
    expected = f"{plan.generation_batches} generation batches, {plan.optimizer_steps} optimizer steps"
    assert expected in capsys.readouterr().out


def test_too_few_prompts(run):
    with pytest.raises(ValueError, match="has 3 prompts, but a generation batch takes 4.*`generation_batch_size`"):
        run("--max_train_samples 3 --generation_batch_size 16")


def test_start_table(run, monkeypatch):
    tables = []
    monkeypatch.setattr(Console, "print", lambda self, table: tables.append(table))
    run("--max_steps 2 --contrastive_warmup_steps 1 --contrastive_head_type mlp --contrastive_embedding_dim 8")
    console = Console(width=100)
    with console.capture() as capture:
        monkeypatch.undo()
        console.print(tables[0])
    text = capture.get()
    n_parameters = sum(parameter.numel() for parameter in tiny_model().parameters())
    for piece in (
        f"{n_parameters:,} parameters, all trained",
        "rows.jsonl (train): 10 prompts",
        "even_length + contrastive",
        "2 prompts x 4 rollouts (group size G) = 8",
        "1 prompts x 4 rollouts = 1 process x 4 rollouts x 1 accumulated",
        "transformers, temperature 1, up to 8 tokens",
        "1 generation batches, 2 optimizer steps",
        "mlp 16 -> 16 -> 8, 384 parameters",
        "infonce, cosine / temperature 0.05",
        "0.2 (lambda)",
        "even_length > 0",
        "frozen IN ALL OF THIS RUN",
        "out, only at the end",
    ):
        assert piece in " ".join(text.replace("│", " ").split()), piece
    assert max(map(len, text.splitlines())) <= 100


def test_start_table_of_agreement(run):
    trainer = run(
        "--max_steps 1 --contrastive_reward_type similarity_gap --contrastive_step_reward short",
        "--contrastive_calibration true --contrastive_reward_floor -0.25 --contrastive_debias layer_norm",
        "--reward_funcs test_train_script.even_length test_train_script.short",
    )
    rows = run_plan.describe_clipo(trainer, run_plan.plan_run(trainer.args, 10))
    expected = "0 + 0.2 (lambda) x similarity gap, within 0.25, calibrated by short"
    assert rows["contrastive reward"] == expected
    assert rows["success"] == "even_length > 0" and rows["step checker"] == "short"
    assert rows["head"].endswith(", states layer_norm")


def test_start_table_of_a_frozen_head(run, tmp_path):
    options = "--max_steps 1 --freeze_contrastive_head true --contrastive_embedding_dim 8"
    trainer = run(options)
    rows = run_plan.describe_clipo(trainer, run_plan.plan_run(trainer.args, 10))
    assert rows["head"].endswith(", frozen, random")
    trainer = run(options, f"--contrastive_head_path {tmp_path / 'out'}")
    rows = run_plan.describe_clipo(trainer, run_plan.plan_run(trainer.args, 10))
    assert rows["head"].endswith(f", frozen, from {tmp_path / 'out'}")


def test_start_table_says_how_often():
    assert run_plan.describe_interval("steps", 50.0) == "every 50 steps"
    assert run_plan.describe_interval("no", 500) == "only at the end"
    assert (
        run_plan.describe_interval("epoch", None) == "every epoch"
    )  # `eval_strategy: epoch` leaves `eval_steps` empty


# ---------------------------------------------------------------------- configuration


def test_command_line_overrides_the_file(run, tmp_path):
    (tmp_path / "run.yaml").write_text("learning_rate: 1e-3\ncontrastive_temperature: 0.1\nmax_steps: 1\n")
    trainer = run(f"--config {tmp_path / 'run.yaml'} --contrastive_temperature 0.2")
    assert (trainer.args.learning_rate, trainer.args.contrastive_temperature) == (1e-3, 0.2)


def test_model_arguments_reach_the_model(run):
    trainer = run(
        "--max_steps 1 --dtype bfloat16 --attn_implementation eager --model_init_kwargs", '{"use_cache":false}'
    )
    config = trainer.model.config
    assert (str(trainer.model.dtype), config._attn_implementation, config.use_cache) == (
        "torch.bfloat16",
        "eager",
        False,
    )


@pytest.mark.parametrize("name", ["dataset_name", "model_name_or_path"])
def test_missing_essentials(name, model_path, rows_path):
    given = {"dataset_name": rows_path, "model_name_or_path": model_path}
    del given[name]
    with pytest.raises(ValueError, match=f"`{name}` is missing"):
        train.main(
            [
                *TINY.split(),
                *SMALL_BATCH.split(),
                *(part for pair in given.items() for part in (f"--{pair[0]}", pair[1])),
            ]
        )


def test_lora(run, tmp_path):
    trainer = run("--max_steps 2 --use_peft true --lora_r 2 --lora_target_modules all-linear")
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "out" / "contrastive_head" / "model.safetensors").is_file()
    rows = run_plan.describe_inputs(trainer, train.ScriptArguments(dataset_name="x"), ModelConfig())
    trained = sum(parameter.numel() for parameter in trainer.model.parameters() if parameter.requires_grad)
    assert f"{trained:,} trained (" in rows["model"]


def test_prompts_are_prepared(run):
    trainer = run("--max_steps 1 --max_train_samples 5 --instruction Briefly!")
    assert len(trainer.train_dataset) == 5
    assert trainer.train_dataset["prompt"][0] == [{"role": "user", "content": "0 + 0?\nBriefly!"}]


def test_rewards_by_name(run):
    trainer = run("--max_steps 1 --reward_funcs verifiable format soft_overlong test_train_script.even_length")
    assert len(trainer.reward_funcs) == 5  # and CLIPO's column
    # A completion at the limit of 8 tokens is punished in full, so `soft_overlong` was told the limit.
    assert min(logged(trainer, f"rewards/{trainer.reward_func_names[2]}/mean")) > -1.0


def test_suspicious_rollouts_are_listed(run, tmp_path, capsys):
    options = "--max_steps 3 --logging_steps 1 --log_completions true --num_completions_to_print 1"
    run(options, "--suspicious_rollouts 2")
    assert "farthest from their group" in " ".join(capsys.readouterr().out.split())
    table = pd.concat(pd.read_parquet(path) for path in (tmp_path / "out" / "completions").glob("*.parquet"))
    assert table.suspicious.any() and table.agreement.notna().any()
    with pytest.raises(ValueError, match="`suspicious_rollouts` is 2, but `log_completions` is off"):
        run("--max_steps 1 --suspicious_rollouts 2")


def test_unreadable_golds_stop_the_run(run, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"problem": "1 + 1", "solution": "\\\\boxed{}"}\n' * 4)
    with pytest.raises(ValueError, match="`max_unparsable_share`"):
        run(f"--dataset_name {path} --reward_funcs verifiable --max_steps 1")
    run(f"--dataset_name {path} --reward_funcs verifiable --max_steps 1 --max_unparsable_share 1")
    run(f"--dataset_name {path} --max_steps 1")  # no reward compares them


@pytest.mark.parametrize("field", ["model_name_or_path", "dataset_name"])
def test_a_name_that_leads_nowhere_is_told_in_a_sentence(run, field):
    with pytest.raises(UsageError, match=f"`{field}` is 'nowhere/none', which cannot be read: .*Correct the name"):
        run(f"--{field} nowhere/none --max_steps 1")


# ---------------------------------------------------------------------- resuming


@pytest.mark.parametrize("word", ["True", "path"])
def test_resume(run, tmp_path, word, capsys):
    run("--max_steps 2 --logging_steps 1 --save_strategy steps --save_steps 2")
    checkpoint = tmp_path / "out" / "checkpoint-2"
    capsys.readouterr()
    trainer = run(f"--max_steps 4 --logging_steps 1 --resume_from_checkpoint {checkpoint if word == 'path' else word}")
    assert trainer.state.global_step == 4
    assert len(logged(trainer, "train_runtime")) == 1 and trainer.head_learner.n_batches == 2
    written = read_log(tmp_path / "out" / LOG_NAME)
    keys = ("step", "epoch", "reward", "loss", "contrastive/loss/mean", "train_runtime")
    assert [[row.get(key) for key in keys] for row in written] == [
        [row.get(key) for key in keys] for row in trainer.state.log_history
    ]
    assert "resume from" in capsys.readouterr().out
    assert run_plan.describe_resume(trainer.args) == str(checkpoint)


def test_starting_afresh_beside_checkpoints_is_told(run, tmp_path, capsys, caplog):
    saving = "--save_strategy steps --save_steps 1"
    run("--max_steps 2", saving)
    whole, cut_off = (tmp_path / "out" / f"checkpoint-{step}" for step in (1, 2))
    (cut_off / "trainer_state.json").write_text("{")
    capsys.readouterr(), caplog.clear()

    run("--max_steps 1")
    said = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "starts afresh" in said and "add --resume_from_checkpoint true" in said
    (warning,) = [record.getMessage() for record in caplog.records if "earlier run" in record.getMessage()]
    assert repr(str(whole)) in warning and "`--resume_from_checkpoint true`" in warning and "`output_dir`" in warning

    caplog.clear()
    run("--max_steps 2", "--resume_from_checkpoint true")
    assert "starts afresh" not in capsys.readouterr().out and "earlier run" not in caplog.text
    (whole / "trainer_state.json").unlink()
    run("--max_steps 1")  # none of them can be resumed from
    assert "starts afresh" not in capsys.readouterr().out and "earlier run" not in caplog.text


def test_resume_from_nothing(run):
    with pytest.raises(ValueError, match="no whole checkpoint"):
        run("--max_steps 1 --resume_from_checkpoint true")
    assert run("--max_steps 1 --resume_from_checkpoint false").state.global_step == 1


# ---------------------------------------------------------------------- evaluation


def test_named_test_sets(run, rows_path):
    trainer = run(
        "--max_steps 2 --eval_strategy steps --eval_steps 2 --num_generations_eval 1 --max_eval_samples 3",
        f"--eval_datasets twice={rows_path} {rows_path}",
    )
    assert set(trainer.eval_dataset) == {"twice", "rows"} and len(trainer.eval_dataset["twice"]) == 3
    for name in ("twice", "rows"):
        assert len(logged(trainer, f"eval_{name}_rewards/even_length/mean")) == 1


def test_test_split_of_the_dataset(run, rows_path, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for split, n_rows in (("train", 4), ("test", 2)):
        lines = Path(rows_path).read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:n_rows]))
    trainer = run(f"--dataset_name {folder} --max_steps 1 --eval_strategy steps --eval_steps 1")
    assert (len(trainer.train_dataset), len(trainer.eval_dataset)) == (4, 2)


def test_one_file_has_no_test_split(run):
    with pytest.raises(ValueError, match="is one file, without a test split.*`eval_datasets`"):
        run("--max_steps 1 --eval_strategy steps --eval_steps 1")


# ---------------------------------------------------------------------- sharing, launching


def test_push_to_hub(run, monkeypatch, tmp_path):
    pushed = []
    monkeypatch.setattr(CLIPOTrainer, "init_hf_repo", lambda self, token=None: None)
    monkeypatch.setattr(CLIPOTrainer, "push_to_hub", lambda self, **card: pushed.append(card))
    run("--max_steps 1 --push_to_hub true --hub_model_id me/my-model")
    assert pushed[-1] == {"model_name": "my-model", "dataset_name": None}  # after `save_model`'s own push
    pushed.clear()
    run("--max_steps 1")
    assert not pushed


@pytest.mark.slow
def test_two_processes_from_another_folder(model_path, rows_path, tmp_path):
    argv = f"--model_name_or_path {model_path} --dataset_name {rows_path} --output_dir {tmp_path / 'out'} {TINY} {SMALL_BATCH}"
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(ROOT / "train.py"),
    ]
    done = subprocess.run(
        [*launcher, *argv.split(), "--max_steps", "2"], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("CLIPO: what will run") == 1  # the main process speaks for all
    assert "2 x cpu" in done.stdout and "2 processes x 4" in done.stdout
    assert (tmp_path / "out" / "model.safetensors").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Finished after 2 steps" in page and "2 × cpu" in page and "too few" not in page
    assert len((tmp_path / "out" / "log.jsonl").read_text().splitlines()) == 1  # one process writes


@pytest.mark.slow
def test_one_process_checks_for_all(tmp_path):
    (tmp_path / "checks.py").write_text(
        "import os, pathlib\n"
        "from accelerate import PartialState\n"
        "from clipo_trl.cli.rewards import on_one_process\n"
        "from reward_funcs.errors import UsageError\n"
        "PartialState(cpu=True)\n"
        "here = pathlib.Path(__file__).parent\n"
        "def check(error=None):\n"
        "    (here / ('checked' + os.environ['RANK'])).touch()\n"
        "    if error: raise error\n"
        "on_one_process(check)\n"
        "for kind in UsageError, LookupError:\n"
        "    try: on_one_process(lambda: check(kind('a gold is empty')))\n"
        "    except Exception as error: (here / (type(error).__name__ + os.environ['RANK'])).write_text(str(error))\n"
        "PartialState().destroy_process_group()\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*launcher, str(tmp_path / "checks.py")],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    raised = ["RuntimeError0", "RuntimeError1", "UsageError0", "UsageError1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [*raised, "checked0", "checks.py"]
    assert (tmp_path / "UsageError1").read_text() == "a gold is empty"
    assert (tmp_path / "RuntimeError1").read_text() == "LookupError: a gold is empty"  # others may not travel


def test_script_arguments_clash_with_no_other_field():
    fields = [set(cls.__dataclass_fields__) for cls in (train.ScriptArguments, CLIPOConfig, ModelConfig)]
    assert not (fields[0] & fields[1] or fields[0] & fields[2] or fields[1] & fields[2])


@pytest.mark.parametrize(
    "options, message",
    [
        ("--contrastive_success_rewards nope", "`contrastive_success_rewards`"),
        ("--contrastive_step_reward nope", "`contrastive_step_reward`"),
        ("--reward_weights 1 1 1", "`reward_weights` has 3 entries"),
        ("--dynamic_sampling true --dynamic_sampling_rewards nope", "`dynamic_sampling_rewards`"),
        ("--algorithm conspo --contrastive false --contrastive_success_rewards nope", "`contrastive_success_rewards`"),
    ],
)
def test_rewards_that_do_not_fit_are_told_before_a_model_is_loaded(run, monkeypatch, options, message):
    monkeypatch.setattr(GRPOTrainer, "__init__", lambda *args, **kwargs: pytest.fail("a trainer was made first"))
    with pytest.raises(UsageError, match=message):
        run("--max_steps 1", options)


def test_a_choice_in_a_file_is_checked_as_one_on_the_command_line(run, tmp_path):
    (tmp_path / "c.yaml").write_text("console: tabel")
    with pytest.raises(ValueError, match="`console` is 'tabel'.*'table', 'full'"):
        run("--max_steps 1 --config", str(tmp_path / "c.yaml"))


@pytest.mark.parametrize(
    "settings",
    [
        {"dynamic_sampling_rewards": ["even_length"], "contrastive_success_rewards": ["nope"]},
        {"dynamic_sampling": False, "dynamic_sampling_rewards": ["nope"], "contrastive_success_rewards": ["nope"]},
    ],
    ids=str,
)
def test_fields_that_a_plain_run_does_not_read_are_not_checked(settings, tmp_path):
    args = CLIPOConfig(
        **{"output_dir": str(tmp_path), "use_cpu": True, "bf16": False, "dynamic_sampling": True} | settings
    )
    check_rewards(SimpleNamespace(contrastive=False, algorithm="dapo"), args, [even_length])


def test_a_reward_that_is_an_object_is_looked_for_among_those_that_compare(tmp_path):
    @dataclass
    class Reward:  # not hashable
        __name__ = "reward"

        def __call__(self, completions, **kwargs):
            return [1.0] * len(completions)

    assert explain_checks([Reward()]).startswith("checked in the training process")
