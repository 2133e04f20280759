"""Addresses of servers in a configuration: it is kept and shown, so nobody's password is in it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bipline.settings.compress import PromoteSettings

PASSWORD = "not-to-be-shown"


@pytest.mark.parametrize("field", ["tracking_uri", "registry_uri"])
@pytest.mark.parametrize("scheme", ["http", "https", "postgresql+psycopg2"])
def test_a_login_is_refused_and_not_shown(field: str, scheme: str) -> None:
    with pytest.raises(ValidationError) as refused:
        PromoteSettings.model_validate({field: f"{scheme}://me:{PASSWORD}@host/mlflow"})
    [problem] = refused.value.errors()
    assert problem["msg"].startswith(f"Value error, promote.{field} {scheme}://host/mlflow: ")
    assert PASSWORD not in problem["msg"]


@pytest.mark.parametrize("address", ["http://host:5000", "sqlite:///file.db", None])
def test_an_address_alone_is_taken(address: str | None) -> None:
    assert PromoteSettings(tracking_uri=address, registry_uri=address).registry_uri == address
