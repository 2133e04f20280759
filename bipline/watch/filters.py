"""Which releases count: why one does not, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator

from bipline.settings.watch import FilterSettings
from bipline.storage.digests import digest_json
from bipline.watch.sources import Description


def filters_digest(filters: FilterSettings, version: str) -> str:
    """What a release that was passed over is asked again for: other filters, another bipline."""
    return digest_json([filters.model_dump(mode="json"), version])


def passed_over(filters: FilterSettings, found: Description) -> str | None:
    """Why a release does not count, or None. What it does not tell, it does not fulfil."""
    return next(_reasons(filters, found), None)


def _reasons(filters: FilterSettings, found: Description) -> Iterator[str]:
    if filters.families and found.family not in filters.families:
        yield f"family {found.family}, not one of {', '.join(filters.families)}"
    least, most = filters.parameters_at_least, filters.parameters_at_most
    if (least or most) and found.parameters is None:
        yield "does not tell how many parameters it has"
    if least and (found.parameters or 0) < least:
        yield f"{found.parameters:,} parameters, fewer than {least:,}"
    if most and (found.parameters or 0) > most:
        yield f"{found.parameters:,} parameters, more than {most:,}"
    allowed = {each.casefold() for each in filters.licences}
    if allowed and (found.licence or "").casefold() not in allowed:
        yield f"licence {found.licence!a:.60}, not one of {', '.join(filters.licences)}"
    if missing := [tag for tag in filters.tags if tag not in found.tags]:
        yield f"without the tag {', '.join(missing)}"
