"""Find the odd one out among right answers: the right completion that is least like the other right ones is the one to
read first when looking for answers that are right by luck.

    python quickstart.py                # makes a small model and its head, once
    python examples/odd_one_out.py      # on ten problems, beside what a checker of the steps says

A list of completions of one prompt goes through `odd_one_out`, whatever the model.
"""

from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from clipo_trl import RolloutEmbedder
from experiments import chain
from experiments.starting_policy import sample_completions


MODEL = Path("runs/quickstart/clipo")
SAMPLES, SEED, SHOWN = 8, 1, 10

console = Console()


def odd_one_out(embedder: RolloutEmbedder, prompt, completions: list[str]) -> int:
    """Index of the completion whose embedding has the lowest mean cosine to the others'."""
    embeddings_ND = embedder([prompt] * len(completions), completions, show_progress_bar=False)
    return int((embeddings_ND @ embeddings_ND.sum(0)).argmin())  # its cosine to itself is 1 for each


def main(model: Path = MODEL, num_problems: int = 200) -> dict[str, float]:
    """Returns how often the odd one out, and a right completion drawn at random, is right by luck."""
    torch.set_num_threads(1)
    embedder = RolloutEmbedder.from_pretrained(model, device="cpu")
    problems = chain.build_dataset(num_problems, SEED, split="test")
    samples = sample_completions(embedder.model, embedder.tokenizer, problems, num_samples=SAMPLES, seed=SEED)
    found, by_chance = [], []
    table = Table("problem", "odd one out", "another right one", "its steps", title="Right answers, the odd ones out")
    for row, completions in zip(problems, samples, strict=True):
        checks = chain.check_completions([row["problem"]] * SAMPLES, completions)
        right = [i for i, checked in enumerate(checks) if checked.answer_correct]
        lucky = [checks[i].lucky for i in right]
        if len(right) < 3 or not any(lucky) or all(lucky):
            continue  # nothing to find
        odd = odd_one_out(embedder, row["prompt"], [completions[i] for i in right])
        found.append(lucky[odd])
        by_chance.append(sum(lucky) / len(lucky))
        if len(found) <= SHOWN:
            another = right[0 if odd else 1]
            verdict = "one is wrong" if lucky[odd] else "all right"
            table.add_row(row["problem"], completions[right[odd]], completions[another], verdict)
    results = {"odd_one_out": sum(found) / len(found), "by_chance": sum(by_chance) / len(by_chance)}
    console.print(table)
    console.print(
        f"In {len(found)} problems some of the right answers are lucky. The odd one out is one of these in "
        f"{results['odd_one_out']:.0%} of them; drawn at random it would be in {results['by_chance']:.0%}.",
        highlight=False,
    )
    return results


if __name__ == "__main__":
    main()
