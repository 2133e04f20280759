"""Where a model came from: read from what it says of itself, named in a package's copy of it."""

from __future__ import annotations

import json

from bipline.base.errors import Refused
from bipline.delivery.contents import PackageContents
from bipline.storage.folder import Folder, open_folder
from bipline.storage.strict_json import parse_object
from bipline.values.origin import ModelOrigin, origin_in
from bipline.values.resolution import CONFIG


def model_origin(folder: Folder) -> ModelOrigin | None:
    """The origin in a model's config.json; None where it tells none.

    Raises InvalidInput for a section that is none of ours.
    """
    where = f"{folder.location}/{CONFIG}"
    return origin_in(parse_object(folder.read(CONFIG), where, "config", ""), where)


def named_config(contents: PackageContents) -> str:
    """The text of the packaged model's config.json with the base model's name and revision.

    A model of before, which tells no origin, keeps the text that it has. Raises Refused where the
    origin is of another plan or other tensors.
    """
    path = contents.model / CONFIG
    origin = model_origin(open_folder(contents.model))
    if origin is None:
        return path.read_text(encoding="utf-8")
    _hold_to(origin, contents)
    resolved = contents.resolution.model
    named = origin.model_copy(
        update={
            "base_model": contents.source_name,
            "base_revision": resolved.revision,
        }
    )
    config = parse_object(path.read_bytes(), str(path), "config", "")
    return json.dumps({**config, **named.section()}, indent=2, sort_keys=True) + "\n"


def _hold_to(origin: ModelOrigin, contents: PackageContents) -> None:
    told = {
        "base_tensor_digest": contents.plan.tensor_digest,
        "plan_digest": contents.plan.digest,
        "tensor_digest": contents.records[contents.packaged].tensor_digest,
    }
    for name, expected in told.items():
        if (found := getattr(origin, name)) != expected:
            raise Refused(
                f"{contents.model}: its config.json names the {name} {str(found)[:12]}, the "
                f"package is of {expected[:12]}"
            )
