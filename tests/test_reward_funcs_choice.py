"""Multiple choice, format, overlong punishment, the dispatcher, and the choice of rewards by name."""

import pickle
import subprocess
import sys

import pytest

import reward_funcs
from reward_funcs import (
    format_reward,
    get_reward_func,
    math_accuracy_reward,
    multiple_choice_reward,
    soft_overlong_punishment,
    verifiable_reward,
)
from reward_funcs.completions import completion_text
from reward_funcs.multiple_choice import options_of
from reward_funcs.verifiable import is_multiple_choice


QUESTION = """A revolving door serves as a security measure at a what?

Options:
A. bank
B. library
C. department store
D. $\\frac{1}{2}$ of all malls
E. New York
Let's think step by step and output the final answer (eg, A, B, C, D, E) within \\boxed{}."""
MESSAGES = [{"role": "system", "content": "Answer. A. this B. that"}, {"role": "user", "content": QUESTION}]


def choose(answer, gold="B", prompt=None):
    prompts = None if prompt is None else [prompt]
    return multiple_choice_reward([rf"So \boxed{{{answer}}}"], [gold], prompts=prompts)[0]


@pytest.mark.parametrize(
    "answer",
    [
        "B",
        "b",
        "(B)",
        "B.",
        "B)",
        "[B]",
        r"\text{B}",
        r"\text{(B)}",
        r"\textbf{(B) }",
        r"\mathrm{B}",
        "$B$",
        "Option B",
    ],
)
@pytest.mark.parametrize("gold", ["B", "(b)", r"\text{(B)}", "b", r"Clearly it is \boxed{B}."])
def test_letters_in_every_form(answer, gold):
    assert choose(answer, gold) == 1.0
    assert choose(answer, "C") == 0.0


@pytest.mark.parametrize(
    "answer", ["B. library", "(B) library", "B: Library.", r"\text{B. library}", "library", r"\text{Library}"]
)
def test_the_option_text_where_the_prompt_lists_it(answer):
    for prompt in (QUESTION, MESSAGES, [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}]):
        assert choose(answer, "B", prompt) == 1.0
        assert choose(answer, "A", prompt) == 0.0


def test_text_of_options_with_formulas_and_several_words():
    assert choose(r"\frac12 \text{ of all malls}", "D", QUESTION) == 1.0
    assert choose(r"$\frac{1}{2}$ of all malls", "D", QUESTION) == 1.0
    assert choose(r"$\frac{1}{3}$ of all malls", "D", QUESTION) == 0.0
    assert choose(r"\frac{12}{3}", "A", "Options:\nA. $\\frac{1}{23}$\nB. $\\frac{12}{3}$") == 0.0
    assert choose("department store", "C", QUESTION) == 1.0
    assert choose("new york", "E", QUESTION) == 1.0


@pytest.mark.parametrize(
    "answer", ["A", "C", "A, B", "A and B", "AB", "B or C", "B. bank", "bank", "not library", "", "2"]
)
def test_other_options_and_contradictions_are_refused(answer):
    assert choose(answer, "B", QUESTION) == 0.0


def test_a_gold_that_is_the_text_of_an_option():
    assert choose("B", "library", QUESTION) == 1.0
    assert choose("A", "library", QUESTION) == 0.0
    assert choose("library", "library") == 1.0


def test_text_that_two_options_share_is_right_for_both():
    prompt = "Which?\nOptions:\nA. bar\nB. pub\nC. bar"
    assert choose("bar", "C", prompt) == choose("bar", "A", prompt) == 1.0
    assert choose("A", "C", prompt) == 0.0 and choose("bar", "B", prompt) == 0.0


def test_every_letter_to_z():
    letters = [chr(ord("A") + i) for i in range(26)]
    boxes = [rf"\boxed{{{letter}}}" for letter in letters]
    assert verifiable_reward(boxes, letters) == [1.0] * 26
    assert verifiable_reward(boxes, letters[1:] + letters[:1]) == [0.0] * 26


def test_options_are_read_from_the_last_list():
    assert options_of(QUESTION) == options_of(MESSAGES)
    assert list(options_of(QUESTION)) == list("ABCDE") and options_of(QUESTION)["C"] == "department store"
    assert options_of("Options:\nA. x\nB. y\n\nOptions:\n(A) u\n(B) v") == {"A": "u", "B": "v"}
    assert options_of("Plan A. go\nB. stay\nD. gap") == {} and options_of(None) == {} and options_of("") == {}


def test_format_asks_for_a_closed_box_that_is_not_empty():
    completions = [r"\boxed{x}", r"\boxed{}", r"\boxed{ }", r"\boxed{x", "x", r"\boxed{1} \boxed{", "", None]
    assert format_reward(completions) == [1.0] + [0.0] * 7
    assert format_reward([[{"role": "assistant", "content": text}] for text in completions]) == [1.0] + [0.0] * 7


def test_completions_of_every_kind():
    message = {"role": "assistant", "content": r"\boxed{7}"}
    completions = [
        [message],
        [{"content": r"\boxed{7}"}],
        [{"role": "assistant", "content": [{"type": "text", "text": r"\boxed"}, {"type": "text", "text": "{7}"}]}],
        [{"role": "assistant", "content": r"\boxed{3}"}, {"role": "tool", "content": r"\boxed{4}"}, message],
        [{"role": "assistant", "content": None}],
        [],
        [{"role": "tool", "content": r"\boxed{7}"}],
    ]
    assert verifiable_reward(completions, ["7"] * 7) == [1.0] * 4 + [0.0] * 3


def test_soft_overlong_punishment_is_dapo_equation_13():
    reward = soft_overlong_punishment(100, 20)
    lengths = [0, 80, 81, 90, 100, 101]
    assert reward(completion_ids=[[1] * n for n in lengths]) == pytest.approx([0.0, 0.0, -0.05, -0.5, -1.0, -1.0])
    by_name = get_reward_func("soft_overlong", max_completion_length=100)
    assert by_name(completion_ids=[[1] * n for n in lengths]) == pytest.approx([0.0, 0.0, -0.05, -0.5, -1.0, -1.0])
    for length in (0, 101):
        with pytest.raises(ValueError, match="cache_length"):
            soft_overlong_punishment(100, length)


def test_each_row_is_checked_as_what_it_is():
    completions = [
        r"\boxed{b}",
        r"\boxed{b}",
        r"\boxed{\frac12}",
        r"\boxed{library}",
        r"\boxed{(c)}",
        r"\boxed{True}",
        "no box",
    ]
    solution = ["B", "b", "0.5", "B", "(c)", "True", "5"]
    sources = [
        "conrl/mmlu",
        "conrl/math",
        "conrl/gsm8k",
        "conrl/commonsense_qa",
        "conrl/theoremqa",
        "conrl/theoremqa",
        "my/own",
    ]
    expected = [1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]
    assert verifiable_reward(completions, solution, data_source=sources, prompts=[MESSAGES] * 7) == expected
    assert verifiable_reward(completions, solution, prompts=[MESSAGES] * 7) == expected
    assert verifiable_reward(completions[:1], ["b"], data_source="conrl/math") == [1.0]
    assert verifiable_reward(completions[:1], ["b"], data_source=[7]) == [1.0]  # a column of numbers says nothing
    assert verifiable_reward([r"\boxed{\text{(B)}}"], ["b"], data_source="conrl/truthfulqa") == [1.0]
    assert verifiable_reward([], []) == []


def test_the_source_decides_before_the_shape_of_the_gold():
    assert is_multiple_choice("b", "conrl/mmlu_2k") and is_multiple_choice("bank", "tau/commonsense_qa")
    assert is_multiple_choice("B", None) and is_multiple_choice("(b)", "conrl/theoremqa")
    assert (
        not is_multiple_choice("b", None)
        and not is_multiple_choice("AB", "conrl/math")
        and not is_multiple_choice(None, None)
    )


def test_answers_and_failures_are_logged_as_trl_wants_them():
    extra, metrics = {}, {}
    verifiable_reward(
        [r"\boxed{5}", "none"],
        ["5", "B"],
        log_extra=extra.__setitem__,
        log_metric=metrics.__setitem__,
        trainer_state=None,
    )
    assert extra == {"verifiable_answer": ["5", ""]}
    names = ("odd_completions", "timed_out", "worker_died")
    assert metrics == {f"reward_checks/{name}": 0.0 for name in names}


def test_rewards_by_name_and_by_path():
    assert (
        get_reward_func("verifiable") is verifiable_reward and get_reward_func("math_accuracy") is math_accuracy_reward
    )
    assert get_reward_func("multiple_choice") is multiple_choice_reward and get_reward_func("format") is format_reward
    assert get_reward_func("reward_funcs.format.format_reward") is format_reward
    for name, error, message in [
        (
            "accuracy",
            ValueError,
            "Known: verifiable, math_accuracy, multiple_choice, format, .*soft_overlong, verl_compatible",
        ),
        ("soft_overlong", ValueError, "max_completion_length"),
        ("reward_funcs.nothing", ImportError, "has no 'nothing'"),
        ("no_such_package.reward", ImportError, "no_such_package"),
        ("reward_funcs.REWARD_FUNCS", ValueError, "cannot be called"),
    ]:
        with pytest.raises(error, match=message):
            get_reward_func(name)


def test_trls_rewards_by_the_names_of_its_script():
    import trl.rewards

    for name in ("accuracy_reward", "reasoning_accuracy_reward", "think_format_reward"):
        assert get_reward_func(name) is getattr(trl.rewards, name)
    overlong = get_reward_func("get_soft_overlong_punishment")
    lengths = [1024, 1152, 1280, 1281]
    assert overlong(completion_ids=[[1] * length for length in lengths]) == [0.0, -0.5, -1.0, -1.0]


def test_rewards_survive_pickling():
    """As asynchronous trainers need it, which send reward functions to other processes."""
    for reward in (verifiable_reward, math_accuracy_reward, multiple_choice_reward, format_reward):
        assert pickle.loads(pickle.dumps(reward)) is reward
    again = pickle.loads(pickle.dumps(soft_overlong_punishment(100, 20)))
    assert again(completion_ids=[[1] * 90]) == [-0.5]


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, reward_funcs; print([m for m in ('torch', 'transformers', 'trl', 'sympy', 'datasets') if m in sys.modules])"
    root = str(__import__("pathlib").Path(reward_funcs.__file__).parents[1])
    output = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"


ODD = {
    "nothing": None,
    "number": 3,
    "bytes": rb"\boxed{B}",
    "message without a list": {"role": "assistant", "content": r"\boxed{B}"},
    "list of numbers": [1, 2],
    "list of texts": [r"\boxed{B}"],
    "list with nothing": [None],
    "nested lists": [[{"role": "assistant", "content": r"\boxed{B}"}]],
    "content is a number": [{"role": "assistant", "content": 3}],
    "content is bytes": [{"role": "assistant", "content": rb"\boxed{B}"}],
    "content is a message": [{"role": "assistant", "content": {"text": 3}}],
    "parts are numbers": [{"role": "assistant", "content": [1]}],
    "parts are lists": [{"role": "assistant", "content": [[r"\boxed{B}"]]}],
    "text is a number": [{"role": "assistant", "content": [{"type": "text", "text": 3}]}],
    "set": {1, 2},
}
NOT_ODD = ["", [], [{"role": "assistant", "content": None}], [{"role": "user", "content": "a"}], [{"role": "tool"}]]


@pytest.mark.parametrize(
    "reward",
    [verifiable_reward, math_accuracy_reward, multiple_choice_reward, format_reward],
    ids=lambda f: f.__name__,
)
def test_odd_completions_score_zero_and_are_counted(reward):
    metrics = {}
    completions = [*ODD.values(), r"\boxed{B}", [{"role": "assistant", "content": [{"text": r"\boxed{B}"}, "!", {}]}]]
    scores = reward(completions=completions, solution=["B"] * len(completions), log_metric=metrics.__setitem__)
    assert scores == [0.0] * len(ODD) + [1.0, 1.0]
    assert metrics["reward_checks/odd_completions"] == len(ODD)
    assert reward(completions=NOT_ODD, solution=["B"] * len(NOT_ODD), log_metric=metrics.__setitem__) == [0.0] * 5
    assert metrics["reward_checks/odd_completions"] == 0.0
    assert reward(completions=list(ODD.values()), solution=["B"] * len(ODD)) == [0.0] * len(ODD)


@pytest.mark.parametrize("completion", ODD.values(), ids=ODD)
def test_odd_completions_have_no_text(completion):
    assert completion_text(completion) == ""
