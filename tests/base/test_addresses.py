"""Addresses are shown without user, password and token, wherever they are shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bipline.base.addresses import without_secrets
from bipline.base.errors import EnvironmentFailure, InvalidInput, Refused
from bipline.base.extras import check_hub_address
from bipline.base.progress import heading, listening, note
from bipline.delivery.contents import portable

SECRET = "TOPSECRET"
SHOWN = {
    f"http://user:{SECRET}@host:5000/path": "http://host:5000/path",
    f"https://{SECRET}@host": "https://host",
    f"https://user:{SECRET}@": "https://",
    f"http://user:p@{SECRET}@host/x@y": "http://host/x@y",
    f"postgresql+psycopg2://me:{SECRET}@db/mlflow": "postgresql+psycopg2://db/mlflow",
    f"s3://key:{SECRET}@bucket/prefix": "s3://bucket/prefix",
    f"http://user:{SECRET}%40x@[::1]:80": "http://[::1]:80",
    f"mysql://u:{SECRET}@h/d?charset=utf8&password={SECRET}": "mysql://h/d?charset=utf8&password=***",
    f"https://h/o?X-Amz-Credential={SECRET}&X-Amz-Signature={SECRET}&x=1":
        "https://h/o?X-Amz-Credential=***&X-Amz-Signature=***&x=1",
    f"https://h/o?access_token={SECRET}": "https://h/o?access_token=***",
    f"('http://user:{SECRET}@h', 3)": "('http://h', 3)",
    f"see http://a:{SECRET}@h and ftp://b:{SECRET}@g.": "see http://h and ftp://g.",
}  # fmt: skip
KEPT = [
    "hf:org/name@main", "models:/tiny@champion", "hf://datasets/org/name@refs/pr/1", "a@b.c",
    "s3://bucket/prefix", "sqlite:////tmp/mlflow.db", "/home/me@work/model", "file:///a/b@c",
    "hf:org/name?field=text&split=train", "http://host/a@b", "tokens=5", "--seqlen=16",
]  # fmt: skip


@pytest.mark.parametrize(("text", "shown"), SHOWN.items())
def test_nothing_secret_is_shown(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize("text", KEPT)
def test_other_addresses_are_shown_as_they_are(text: str) -> None:
    assert without_secrets(text) == text


@given(st.text(st.characters(exclude_categories=("Cs", "Zs", "Cc"), exclude_characters="/\"'<>")))
def test_no_password_comes_through(password: str) -> None:
    assert without_secrets(f"http://user:{password}@host/x") == "http://host/x"


@pytest.mark.parametrize("text", SHOWN)
def test_no_door_shows_it(text: str) -> None:
    said = [str(kind(f"{text}: no")) for kind in (EnvironmentFailure, InvalidInput, Refused)]

    class Listener:
        def note(self, text: str) -> None:
            said.append(text)

        heading = note

        def begin(self, description: str, total: int | None) -> None: ...
        def advance(self) -> None: ...
        def end(self) -> None: ...

    with listening(Listener()):
        note(text)
        heading(text)
    said.append(str(portable({"tracking": [text]})))
    assert len(said) == 6 and not any(SECRET in line for line in said)


ADDRESSES = [
    "", "junk", "ftp://host", "//host", "http://", "http://host:99999", "http://host:x", "https:/h",
    f"http://user:{SECRET}@host:99999", "http://[::1", "file:///etc/passwd",
]  # fmt: skip


@pytest.mark.parametrize("address", ADDRESSES)
def test_what_is_no_address_of_a_hub(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", address)
    with pytest.raises(InvalidInput, match=r"HF_ENDPOINT is '.*correct or unset it") as caught:
        check_hub_address()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("address", ["http://host", "https://u:p@host:8080/x", "http://[::1]:80"])
def test_what_is_one(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    check_hub_address()
    monkeypatch.setenv("HF_ENDPOINT", address)
    check_hub_address()


def test_a_secret_of_the_environment_is_shown_nowhere(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "TEAM_PASSWORD", "SOME_APIKEY"):
        monkeypatch.setenv(name, f"value-of-{name}")
        assert without_secrets(f"a value-of-{name}!") == "a ***!"
        assert str(Refused(f"value-of-{name}")) == "***"
    monkeypatch.setenv("MONKEY", "value-of-monkey")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "value-of-monkey")
    monkeypatch.setenv("TEAM_PASSWORD", "word")
    monkeypatch.setenv("TEAM_CREDENTIALS", str(tmp_path))
    for plain in ("value-of-monkey", "a word", f"{tmp_path}/file"):
        assert without_secrets(plain) == plain
