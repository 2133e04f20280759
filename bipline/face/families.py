"""``bipline models``: which models can be made smaller, and what becomes of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bipline.face import named_places, options
from bipline.face.named_places import USUAL_STATE
from bipline.face.output import log_file, write_json

if TYPE_CHECKING:
    from bipline.values.families import FamilyRow


def models(
    model_type: Annotated[
        str | None, typer.Argument(help="model_type of a config.json; left out, all of them")
    ] = None,
    json_file: options.JsonFile = None,
) -> None:
    """Which families can be pruned, what of them, and which exports hold it."""
    from bipline.face.console import working
    from bipline.face.tables import print_lines, table_of
    from bipline.stages.families import known_families

    state = Path(USUAL_STATE)
    named_places.check_registered(None, json_file=json_file, command="models", state=state)
    with working(log_file(state, "models")) as console:
        found = known_families(model_type)
        write_json(json_file, "models", found.model_dump(mode="json"))
        head = ("model_type", "kind", "what can go", "layouts", "also as", "gguf")
        console.print(table_of(head, map(_cells, found.families), set(range(len(head)))))
        print_lines(
            console,
            (
                "groups: a KV head with its query heads; channels: of the FFN, or of each expert",
                "hf: each loads by transformers; onnx: as exported, opened again and compared",
                "inside another model: gguf and onnx hold the decoder alone, hf all of it",
                "another model_type: `bipline models NAME` tells the nearest kind; docs/adding.md",
            ),
        )


def _cells(row: FamilyRow) -> list[str]:
    cuts = [each.rpartition(" ")[2] for each in row.cuts]
    also = [each.removesuffix("ForCausalLM") for each in row.also]
    lists = (cuts, row.layouts, also, row.exports.get("gguf", ()))
    return [row.model_type, row.kind, *(", ".join(each) or "-" for each in lists)]
