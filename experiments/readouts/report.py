"""The page: results read back from a table of all scores, laid into the text of `page.txt`."""

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import sharpening
from ..faithfulness.jobs import Job, write_json
from .study import LIKELIHOOD


HERE = Path(__file__).parent
DOCS = HERE.parents[1] / "docs"
TABLE, POLICIES, TEMPLATE, PAGE = "results.csv", "policies.json", "page.txt", "readouts.md"
FIGURES = [f"{name}{end}" for name in ("auroc", "gain", "combined", "matched") for end in ("", "_low", "_high")]
PLACE = re.compile(r"^<!-- (\w+) -->$", re.MULTILINE)

Row = dict[str, float]
Results = dict[str, dict[str, Row]]  # by policy and score

# Scores of the page, by what they are called there.
GROUPS: dict[str, dict[str, str]] = {
    "what the policy thinks of its text": {
        LIKELIHOOD: "likelihood (mean log-probability)",
        "likelihood/sum": "sum of log-probabilities",
        "likelihood/lowest": "lowest token",
        "certainty/minus_entropy": "minus mean entropy",
        "certainty/self_certainty": "self-certainty",
        "length": "length in tokens",
    },
    "after other problems, cut, changed": {
        "own_prompt/sum": "own problem less others, whole",
        "own_prompt/mean_step": "own problem less others, mean step",
        "own_prompt/lowest_step": "own problem less others, lowest step",
        "prefix/gain": "gain of p(answer) over the trace",
        "prefix/lowest_gain": "gain of p(answer), lowest step",
        "cut/lost": "answer lost when cut",
        "changed/mean": "answer lost when a number changes",
        "changed/last": "answer lost when the last one changes",
    },
    "hidden states, last layer": {
        "states/-1/mean/alignment": "states: alignment",
        "states/-1/mean/minus_uniformity": "states: minus uniformity",
        "states/-1/mean/minus_supcon": "states: minus SupCon",
        "states/-1/mean/gap": "states: gap, right less wrong",
        "states/-1/mean/agreement_with_all": "states: agreement with all",
        "centred/-1/mean/alignment": "centred states: alignment",
        "states/-1/last/centroid_right": "last token: centroid of the right",
        "states/-1/last/centroid_all": "last token: centroid of all",
    },
    "embeddings of the head": {
        "untrained_head/alignment": "untrained head: alignment",
        "untrained_head/minus_supcon": "untrained head: minus SupCon",
        "head/alignment": "head: alignment",
        "head/minus_uniformity": "head: minus uniformity",
        "head/minus_supcon": "head: minus SupCon",
        "head/minus_infonce": "head: minus InfoNCE (the paper's)",
        "head/minus_softnn": "head: minus SoftNN",
        "head/decoupled": "head: decoupled denominator",
        "head/gap": "head: gap, right less wrong",
        "head/agreement_with_all": "head: agreement with all",
        "centred_head/alignment": "centred head: alignment",
        "centred_head/minus_uniformity": "centred head: minus uniformity",
        "centred_head/minus_supcon": "centred head: minus SupCon",
        "centred_head/gap": "centred head: gap",
    },
}
TITLES = {name: title for group in GROUPS.values() for name, title in group.items()}
MODELS = {
    "model/likelihood": "likelihood alone, its sign learned",
    "model/text": "and sum, lowest token, entropy, self-certainty, length",
    "model/embeddings": "and ten scores of states and embeddings",
    "model/other_texts": "and seven scores of other prompts, cuts and changes",
    "model/together": "and all of these",
}
BY_LAYER = ("alignment", "minus_uniformity", "minus_supcon")


def write_report(finished: Mapping[str, Mapping[str, Job]], output_dir: Path, publish: bool) -> Path:
    """
    Write table, page and pictures.

    Args:
        finished (`Mapping[str, Mapping[str, Job]]`): Jobs by policy and stage.
        output_dir (`Path`): Its folder `report` gets them, unless `publish` puts them into the checkout.
    """
    from .pictures import draw_all  # matplotlib is an extra

    results_dir, docs_dir = (HERE, DOCS) if publish else (output_dir / "report", output_dir / "report")
    (docs_dir / "images").mkdir(parents=True, exist_ok=True)
    rows = {name: jobs["table"].result() + jobs["models"].result() for name, jobs in finished.items()}
    write_table(rows, results_dir / TABLE)
    policies = {name: jobs["rollouts"].result() for name, jobs in finished.items()}
    write_json(results_dir / POLICIES, policies, indent=1)
    draw_all(read_table(results_dir / TABLE), {name: output_dir / name for name in finished}, docs_dir / "images")
    page = docs_dir / PAGE
    page.write_text(make_page(results_dir))
    return page


def write_table(rows: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """One line a policy and score, three digits."""

    def text(value: float | None) -> str:
        return "" if value is None or math.isnan(value) else f"{value:.3f}"

    with open(path, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["policy", "score", *FIGURES])
        for policy, of_policy in rows.items():
            writer.writerows([policy, row["score"], *(text(row.get(name)) for name in FIGURES)] for row in of_policy)


def read_table(path: Path) -> Results:
    results: Results = {}
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            policy, score = row.pop("policy"), row.pop("score")
            results.setdefault(policy, {})[score] = {name: float(value) for name, value in row.items() if value}
    return results


def make_page(results_dir: Path) -> str:
    """The text of `page.txt` with tables in the place of lines like `<!-- policies -->`."""
    results = read_table(results_dir / TABLE)
    tables = {
        "policies": policies_table(json.loads((results_dir / POLICIES).read_text())),
        "auroc": scores_table(results, "auroc"),
        "gain": scores_table(results, "gain"),
        "models": models_table(results),
        "layers": layers_table(results),
        "sharpening": sharpening.table(sharpening.read_rows(sharpening.PUBLISHED)),
    }
    text = (HERE / TEMPLATE).read_text()
    return PLACE.sub(lambda match: tables[match[1]], text)


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def interval(row: Row, figure: str, signed: bool = False) -> str:
    """A figure with its interval, bold if that does not touch chance."""
    if figure not in row:
        return "–"
    sign = "+" if signed else ""
    value, low, high = (f"{row[f'{figure}{end}']:{sign}.2f}".replace("-", "−") for end in ("", "_low", "_high"))
    chance = 0.0 if signed else 0.5
    is_bold = row[f"{figure}_low"] > chance or (row[f"{figure}_high"] < chance and not signed)
    return f"**{value}** [{low}, {high}]" if is_bold else f"{value} [{low}, {high}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def policies_table(policies: Mapping[str, Mapping[str, float]]) -> str:
    header = ["policy", "groups x rollouts", "right answers", "lucky of these", "groups compared", "pairs"]
    return markdown(header, [
        [f"`{name}`", f"{row['groups']} x {row['rollouts_a_group']}", f"{100 * row['accuracy']:.0f} %",
         f"{100 * row['lucky_share']:.0f} %", f"{row['compared_groups']}", f"{row['pairs']:,}"]
        for name, row in policies.items()
    ])  # fmt: skip


def scores_table(results: Results, figure: str) -> str:
    rows = []
    for group, titles in GROUPS.items():
        rows.append([f"*{group}*", *[""] * len(results)])
        for score, title in titles.items():
            cells = [interval(of_policy.get(score, {}), figure, figure == "gain") for of_policy in results.values()]
            rows.append([title, *cells])
    return markdown(["score", *(f"`{policy}`" for policy in results)], rows)


def models_table(results: Results) -> str:
    """AUROC of models of several scores, and below each what that is above likelihood alone, in the same groups."""
    rows = []
    for score, title in MODELS.items():
        of_score = [of_policy.get(score, {}) for of_policy in results.values()]
        rows.append([title, *(interval(row, "combined") for row in of_score)])
        if score != next(iter(MODELS)):
            rows.append(["*less likelihood alone*", *(interval(row, "gain", signed=True) for row in of_score)])
    return markdown(["model", *(f"`{policy}`" for policy in results)], rows)


def layers_table(results: Results) -> str:
    """The highest AUROC over layers of some scores, with the layer, by space and pooling."""
    rows = []
    for score in BY_LAYER:
        for space in ("states", "centred"):
            for pooling in ("mean", "last"):
                best = [_best_layer(of_policy, f"{space}/", f"/{pooling}/{score}") for of_policy in results.values()]
                cells = [f"{row['auroc']:.2f} ({layer})" if row else "–" for layer, row in best]
                title = f"{'centred ' if space == 'centred' else ''}states, {pooling}: {score.replace('_', ' ')}"
                rows.append([title.replace("supcon", "SupCon"), *cells])
    return markdown(["score", *(f"`{policy}`" for policy in results)], rows)


def _best_layer(of_policy: Mapping[str, Row], start: str, end: str) -> tuple[str, Row]:
    found = {
        name[len(start) : -len(end)]: row
        for name, row in of_policy.items()
        if name.startswith(start) and name.endswith(end) and "auroc" in row
    }
    return max(found.items(), key=lambda entry: entry[1]["auroc"], default=("", {}))
