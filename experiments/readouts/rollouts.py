"""Rollouts of a frozen policy: problems, completions, and what the checker found. Sampled, or read from a file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..faithfulness.jobs import write_json
from ..starting_policy import sample_completions
from ..word_problems import Problem
from .tasks import TASKS, Task, check_all


FILE = "rollouts.json"


@dataclass
class Rollouts:
    """
    G completions of each of P problems.

    Attributes:
        task_name (`str`): One of `TASKS`.
        prompts (`list[list[dict]]`): Messages of each problem.
        problems (`list[str]`): What the checker needs of it.
        completions_PG (`list[list[str]]`): Without special tokens.
        token_ids_PG (`list[list[list[int]]]`, *optional*): Their tokens as they were sampled, the end among them.
            Default: the completions are tokenized, and each is taken to have ended.
    """

    task_name: str
    prompts: list[list[dict[str, str]]]
    problems: list[str]
    completions_PG: list[list[str]]
    token_ids_PG: list[list[list[int]]] | None = None

    def __post_init__(self):
        checks = check_all(self.task, self.problems, self.completions_PG)
        self.right_PG = np.array([[checked.answer_correct for checked in row] for row in checks])
        self.sound_PG = np.array([[checked.strictly_correct for checked in row] for row in checks])

    @property
    def task(self) -> Task:
        return TASKS[self.task_name]

    @property
    def lucky_PG(self) -> np.ndarray:
        return self.right_PG & ~self.sound_PG

    @property
    def compared_P(self) -> np.ndarray:
        """
        Groups that count, the same for every score: a sound and a lucky rollout to compare, a third right one (of two
        right rollouts, each is the other's only peer), and a wrong one (without, the loss has no anchor).
        """
        n_right = self.right_PG.sum(1)
        return (n_right > 2) & ~self.right_PG.all(1) & self.sound_PG.any(1) & self.lucky_PG.any(1)

    def part(self, groups: Sequence[int]) -> "Rollouts":
        """Some of the groups alone."""

        def of(rows):
            return None if rows is None else [rows[group] for group in groups]

        return Rollouts(
            self.task_name, *map(of, (self.prompts, self.problems, self.completions_PG, self.token_ids_PG))
        )

    def figures(self) -> dict[str, float]:
        """Size and shares, for the page."""
        n_right = int(self.right_PG.sum())
        compared = self.compared_P
        return {
            "groups": len(self.problems),
            "rollouts_a_group": self.right_PG.shape[1],
            "accuracy": float(self.right_PG.mean()),
            "lucky_share": float(self.lucky_PG.sum() / n_right) if n_right else float("nan"),
            "compared_groups": int(compared.sum()),
            "pairs": int((self.sound_PG.sum(1) * self.lucky_PG.sum(1))[compared].sum()),
        }

    def save(self, folder: Path) -> None:
        write_json(folder / FILE, {field.name: getattr(self, field.name) for field in fields(self)})

    @classmethod
    def load(cls, folder: Path) -> "Rollouts":
        return cls(**json.loads((folder / FILE).read_text()))

    @classmethod
    def read_word_problems(cls, path: Path) -> "Rollouts":
        """
        Rollouts of word problems from a JSONL file, one a line with `group`, `problem`, `completion` and `token_ids`,
        as `python -m experiments.language_model` writes them. Groups that are not whole are left out.
        """
        groups: dict[int, list[dict[str, Any]]] = {}
        with open(path) as file:
            for row in map(json.loads, file):
                groups.setdefault(row["group"], []).append(row)
        size = max(map(len, groups.values()))
        whole = [rows for _, rows in sorted(groups.items()) if len(rows) == size]
        problems = [rows[0]["problem"] for rows in whole]
        return cls(
            "word_problems",
            [[{"role": "user", "content": Problem.from_json(problem).text}] for problem in problems],
            problems,
            [[row["completion"] for row in rows] for rows in whole],
            [[row["token_ids"] for row in rows] for rows in whole],
        )


def load_policy(folder: Path, dtype: Any) -> tuple[Any, Any]:
    """Model, in evaluation mode, and tokenizer."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def sample(policy_folder: Path, task_name: str, n_groups: int, group_size: int, seed: int, dtype: Any) -> Rollouts:
    """Sample held-out problems at temperature 1."""
    model, tokenizer = load_policy(policy_folder, dtype)
    rows = TASKS[task_name].build_dataset(n_groups, seed)
    completions = sample_completions(model, tokenizer, rows, num_samples=group_size, seed=seed)
    return Rollouts(task_name, rows["prompt"][:], rows["problem"][:], completions)
