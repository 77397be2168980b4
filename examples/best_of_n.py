"""Best of n without a verifier: take the completion that agrees best with the others, beside majority vote, measured.

    python quickstart.py                # makes a small model and its head, once
    python examples/best_of_n.py        # 400 problems a test set, 8 samples each: a minute on a CPU

- majority vote: the most frequent answer (Wang et al. 2022, arXiv 2203.11171), and of its completions the first;
- agreement: the completion with the highest mean cosine to all others, whatever their answers;
- both: of the completions with the most frequent answer, the one with the highest mean cosine to the others of them.

No answer is known to any of them. A checker of the steps then says which choices are right, and right step by step.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from clipo_trl import RolloutEmbedder
from experiments import chain
from experiments.starting_policy import sample_completions


MODEL = Path("runs/quickstart/clipo")
TEST_SETS = {"test": "same kind", "p1": "one more operation", "p2": "two more operations"}
SAMPLES, SEED = 8, 1

Choice = Callable[[list[str], torch.Tensor], int]


def most_agreeing(embeddings_ND: torch.Tensor) -> int:
    """Index of the embedding with the highest mean cosine to the others."""
    return int((embeddings_ND @ embeddings_ND.sum(0)).argmax())  # its cosine to itself is 1 for each


def majority(answers: list[str]) -> list[int]:
    """Indices of the completions with the most frequent answer; of answers that tie, the one that came first."""
    [(answer, _)] = Counter(answers).most_common(1)
    return [i for i, other in enumerate(answers) if other == answer]


def majority_and_agreement(answers: list[str], embeddings_ND: torch.Tensor) -> int:
    chosen = majority(answers)
    return chosen[most_agreeing(embeddings_ND[chosen])]


CHOICES: dict[str, Choice] = {
    "the first sample": lambda answers, embeddings_ND: 0,
    "majority vote": lambda answers, embeddings_ND: majority(answers)[0],
    "agreement": lambda answers, embeddings_ND: most_agreeing(embeddings_ND),
    "both": majority_and_agreement,
}


def measure(embedder: RolloutEmbedder, variant: str, num_problems: int) -> dict[str, np.ndarray]:
    """For each choice, right and right step by step: `(Q, 2)`."""
    problems = chain.build_dataset(num_problems, SEED, split="test", **chain.VARIANTS[variant])
    samples = sample_completions(embedder.model, embedder.tokenizer, problems, num_samples=SAMPLES, seed=SEED)
    prompts = [prompt for prompt in problems["prompt"] for _ in range(SAMPLES)]
    flat = [completion for completions in samples for completion in completions]
    embeddings_QND = embedder(prompts, flat, batch_size=256).view(len(samples), SAMPLES, -1)
    outcomes: dict[str, list] = {name: [] for name in CHOICES}
    for problem, completions, embeddings_ND in zip(problems["problem"], samples, embeddings_QND, strict=True):
        checks = chain.check_completions([problem] * SAMPLES, completions)
        answers = [text.partition("#")[2] for text in completions]
        for name, choose in CHOICES.items():
            chosen = checks[choose(answers, embeddings_ND)]
            outcomes[name].append((chosen.answer_correct, chosen.strictly_correct))
    return {name: np.array(pairs, dtype=float) for name, pairs in outcomes.items()}


def main(model: Path = MODEL, num_problems: int = 400) -> dict[str, dict[str, np.ndarray]]:
    """Returns [`measure`] by test set."""
    torch.set_num_threads(1)
    embedder = RolloutEmbedder.from_pretrained(model, device="cpu")
    results = {variant: measure(embedder, variant, num_problems) for variant in TEST_SETS}
    table = Table(
        "best of 8", *TEST_SETS.values(), title="Right answer / answer and all steps right, ± standard error"
    )
    for name in CHOICES:
        cells = []
        for outcomes in results.values():
            means, errors = outcomes[name].mean(0), outcomes[name].std(0) / np.sqrt(num_problems)
            shares = zip(means, errors, strict=True)
            cells.append(" / ".join(f"{100 * mean:.1f} ± {100 * error:.1f}" for mean, error in shares))
        table.add_row(name, *cells)
    Console().print(table)
    return results


if __name__ == "__main__":
    main()
