"""Nothing between the steps is pickled: our materializers write JSON, the Store safetensors."""

from __future__ import annotations

from pathlib import Path

from bipline.values.summary import RunSummary
from tests.pipeline.conftest import inside

OURS = {"materializers.json_value.JsonValueMaterializer", "materializers.handle.HandleMaterializer"}
SUFFIXES = {
    ".json", ".html", ".png", ".safetensors", ".gguf", ".md", ".log", ".txt", ".jinja", ".model"
}  # fmt: skip
PICKLE_PROTOCOL = b"\x80"


def test_every_output_is_written_by_our_materializers(first: RunSummary, folder: Path) -> None:
    with inside(folder) as client:
        run = client.get_pipeline_run(first.run_id)
        written = {
            f"{step}.{name}": artifact.materializer.import_path
            for step, response in run.steps.items()
            for name, artifacts in response.outputs.items()
            for artifact in artifacts
        }
    assert set(written.values()) == OURS, written


def test_no_stored_file_is_a_pickle(first: RunSummary, folder: Path) -> None:
    root = folder / "state" / "zenml" / "artifacts"
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 40
    pictures = [path.read_text() for path in files if path.name == "importance.html"]
    assert all("<svg" in page for page in pictures)
    assert any("llm-bip-glu" in page for page in pictures)
    for path in files:
        assert path.suffix in SUFFIXES or path.name.startswith("LICENSE"), path
        with path.open("rb") as file:
            assert file.read(1) != PICKLE_PROTOCOL or path.suffix == ".safetensors", path
