"""Where a model came from, read from what it says of itself."""

from __future__ import annotations

from bipline.storage.folder import Folder
from bipline.storage.strict_json import parse_object
from bipline.values.origin import ModelOrigin, origin_in
from bipline.values.resolution import CONFIG


def model_origin(folder: Folder) -> ModelOrigin | None:
    """The origin in a model's config.json; None where it tells none.

    Raises InvalidInput for a section that is none of ours.
    """
    where = f"{folder.location}/{CONFIG}"
    return origin_in(parse_object(folder.read(CONFIG), where, "config", ""), where)
