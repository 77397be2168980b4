"""Stands for `clipo train` in test_ablations.py, by its words: writes what a training logs, and counts its starts."""

import json
import sys
from pathlib import Path

import yaml


def main(words: list[str]) -> int:
    files = words[words.index("--config") + 1 : words.index("--seed")]
    given = {words[i].removeprefix("--"): words[i + 1] for i in range(words.index("--seed"), len(words), 2)}
    fields = {name: value for path in files for name, value in yaml.safe_load(Path(path).read_text()).items()}
    with open("starts.txt", "a") as starts:
        starts.write(f"{'+'.join(Path(path).stem for path in files)} {given['seed']}\n")
    if fields.get("fails"):
        sys.stderr.write("the reason\n")
        return 3
    folder = Path(given["output_dir"])
    folder.mkdir(parents=True)
    score = int(given["seed"]) + fields.get("shift", 0)
    logged = [{"step": step, "score": score * (step > 5), "rare": 1.0 if step == 2 else None} for step in range(1, 11)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": [*logged, {"step": 10, "eval_score": 7.0}]}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
