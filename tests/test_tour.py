"""The notebook of docs/ runs from its first cell to its last, and is kept with what it showed."""

import json
import re

import pytest
from conftest import PROJECT_DIR

NOTEBOOK = PROJECT_DIR / "docs" / "tour.ipynb"


def code_cells(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_the_notebook_is_kept_as_it_ran_in_order_without_an_error():
    cells = code_cells(json.loads(NOTEBOOK.read_text()))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    kinds = [output["output_type"] for cell in cells for output in cell["outputs"]]
    assert "error" not in kinds
    assert kinds.count("display_data") + kinds.count("execute_result") >= 4
    assert str(PROJECT_DIR) not in NOTEBOOK.read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Jupyter's own
def test_the_notebook_runs(tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed (extra `docs`)")
    import nbformat

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, resources=where).execute()
    text = "".join(
        output.get("text", "") for cell in code_cells(notebook) for output in cell["outputs"]
    )
    best = dict(re.findall(r"^(\S+): best top-1 error (\S+)%", text, re.MULTILINE))
    assert set(best) == {"run", "without-lrn"}
    assert float(best["run"]) < 75  # chance: 90
