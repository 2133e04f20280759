"""ZenML's own server, on SQLite and a free port, with a key for a service account."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.stacks.server import SERVER_LIBRARIES, account_key, answers, wait
from tests.layers import ROOT
from tests.servers import running
from tests.storage.server import free_port

PASSWORD = "not-to-be-seen-anywhere"


@contextmanager
def zenml_server(folder: Path) -> Iterator[dict[str, str]]:
    """A running server; gives the variables by which a client finds it and may enter."""
    assert (SERVER_LIBRARIES / "fastapi").is_dir(), (
        f"{SERVER_LIBRARIES} has no fastapi: make environment"
    )
    folder.mkdir(exist_ok=True)
    address = f"http://127.0.0.1:{(port := free_port())}"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("ZENML_")
    } | {
        "PYTHONPATH": os.pathsep.join([str(SERVER_LIBRARIES), str(ROOT)]),
        "ZENML_CONFIG_PATH": str(folder / "config"),
        "ZENML_STORE_URL": f"sqlite:///{folder}/zenml.db",
        "ZENML_SERVER": "true",
        "ZENML_SERVER_AUTO_ACTIVATE": "1",
        "ZENML_DEFAULT_USER_PASSWORD": PASSWORD,
        "ZENML_SERVER_JWT_SECRET_KEY": PASSWORD * 2,
        "ZENML_ANALYTICS_OPT_IN": "false",
    }  # fmt: skip
    command = [
        sys.executable, "-m", "uvicorn", "zenml.zen_server.zen_server_api:app", "--port", str(port),
    ]  # fmt: skip
    with running(command, folder / "zenml.log", env=environment, cwd=folder):
        wait("zenml", lambda: answers(f"{address}/health"))
        key = account_key(f"{address}/api/v1", PASSWORD)
        yield {"ZENML_STORE_URL": address, "ZENML_STORE_API_KEY": key}
