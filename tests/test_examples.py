"""What the examples choose by; what they measure is in docs/embedder.md."""

import runpy
from pathlib import Path

import torch


EXAMPLES = Path(__file__).parents[1] / "examples"
# Three that are alike, the second of them in the middle, and one that is not.
EMBEDDINGS = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.0], [1.0, -0.2], [-1.0, 0.0]]), dim=1)


def test_best_of_n():
    example = runpy.run_path(str(EXAMPLES / "best_of_n.py"))
    answers = ["7", "8", "8", "5"]
    assert example["majority"](answers) == [1, 2] and example["majority"](["1", "2"]) == [0]
    chosen = {name: choose(answers, EMBEDDINGS) for name, choose in example["CHOICES"].items()}
    assert chosen == {"the first sample": 0, "majority vote": 1, "agreement": 1, "both": 1}
    assert example["majority_and_agreement"](["7", "8", "7", "7"], EMBEDDINGS) == 2  # 1 is not asked


def test_the_odd_one_out():
    example = runpy.run_path(str(EXAMPLES / "odd_one_out.py"))
    asked = []

    def embedder(prompts, completions, **options):
        asked.append((prompts, completions))
        return EMBEDDINGS

    assert example["odd_one_out"](embedder, "hi", list("abcd")) == 3
    assert asked == [(["hi"] * 4, list("abcd"))]
