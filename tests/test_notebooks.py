"""The notebooks run from top to bottom, and are committed as such a run leaves them."""

import json
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MAX_BYTES = 300_000
# Only the training is made shorter: of the starting policy, and two steps after the head's warm-up.
SHORTER = {
    "max_steps=60": "max_steps=12",
    'warm_start(FOLDER / "policy", seed=0)': 'warm_start(FOLDER / "policy", batch_size=24)',
}


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_what_is_committed(path):
    assert path.stat().st_size < MAX_BYTES
    cells = code_cells(json.loads(path.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run it from top to bottom"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's and its client's own
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    for long, short in SHORTER.items():
        (cell,) = (cell for cell in notebook["cells"] if long in cell["source"])
        cell["source"] = cell["source"].replace(long, short)
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}})
    client.execute()  # raises where a cell does
    pictures = [o for cell in code_cells(notebook) for o in cell["outputs"] if "image/png" in o.get("data", {})]
    assert len(pictures) == 4
