"""What lm-evaluation-harness needs to read the data files of `clipo evaluate` and to grade as it does."""

from datasets import Dataset

from clipo_trl.cli.data import to_prompt_solution
from reward_funcs import get_reward_func


INSTRUCTION = r"Let's think step by step and output the final answer within \boxed{}."  # as in `configs/eval`


def read_rows(rows: Dataset) -> Dataset:
    """Bring a dataset in any of the layouts of `clipo_trl.cli.data` to `question`, `solution` and what it had
    besides; a prompt that asks for no box is made to."""
    rows = to_prompt_solution(rows, instruction=INSTRUCTION)
    return rows.map(lambda row: {"question": _text(row["prompt"])})


def _text(prompt: str | list[dict[str, str]]) -> str:
    """The harness applies the chat template itself (`--apply_chat_template`): it wants the user's words alone."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def verifiable(row: dict, completions: list[str]) -> dict[str, float]:
    """The reward `verifiable` of the completion, as in training: 1.0 for the right answer. A row whose gold cannot be
    read counts as wrong."""
    columns = {name: [value] for name, value in row.items() if name not in ("prompt", "question")}
    [score] = get_reward_func("verifiable")(prompts=[row["prompt"]], completions=[completions[0]], **columns)
    return {"verifiable": score or 0.0}
