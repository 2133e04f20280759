"""Whose word an audit takes for what: keys, certificates, users; and what nobody vouches for."""

from __future__ import annotations

import datetime
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bipline.audits.audit import audit
from bipline.audits.registered import _promoter
from bipline.base.errors import InvalidInput
from bipline.delivery.contents import PackageContents
from bipline.delivery.lineage import record_run
from bipline.delivery.signature import sign
from bipline.settings.trust import TrustSettings, load_trust
from bipline.storage.manifest import LINEAGE, MANIFEST_NAME, SIGNATURE_NAME
from bipline.values.promotion import JournalEntry
from tests.audited import about, edit_json, flip, request, rewrite, said
from tests.delivery.test_tampering import make_key
from tests.delivery.test_vouching import run_of

Keys = dict[str, tuple[Path, Path]]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("ours", "theirs")}


@pytest.fixture
def signed(package: Path, contents: PackageContents, keys: Keys, tmp_path: Path) -> Path:
    """A package with a lineage, both signed by our key."""
    copy = Path(shutil.copytree(package, tmp_path / "package"))
    record_run(copy, contents.config, run_of("first"))
    sign(copy, keys["ours"][0])
    return copy


def trust_file(folder: Path, **trusted: Any) -> Path:
    path = folder / "trust.yaml"
    path.write_text(yaml.safe_dump(trusted))
    return path


def test_each_part_is_held_to_those_who_count_for_it(
    signed: Path, keys: Keys, tmp_path: Path
) -> None:
    ours, theirs = str(keys["ours"][1]), str(keys["theirs"][1])
    file = trust_file(tmp_path, keys=[
        {"name": "release team", "file": ours, "counts_for": ["package"]},
        {"name": "builders", "file": theirs, "counts_for": ["lineage"]},
    ])  # fmt: skip
    found = audit(request(signed, trust=file))
    assert "signed by release team (ours.pub, sha256 " in said(found, "signature")
    assert "its signature counts for lineage" in said(found, "trust")
    assert about(found, "differs") == {"lineage's signature"}
    both = trust_file(tmp_path, keys=[{"name": "release team", "file": ours}])
    assert {"signature", "lineage's signature"} <= about(
        audit(request(signed, trust=both)), "holds"
    )
    assert not audit(request(signed, key=keys["ours"][1])).differences


def test_a_lineage_that_was_listed_again_is_found_by_its_signature(
    signed: Path, keys: Keys
) -> None:
    [run] = (signed / LINEAGE / "runs").glob("*.json")
    edit_json(run, host="elsewhere")
    assert "lineage" in about(audit(request(signed)), "differs")
    rewrite(signed / LINEAGE)
    assert not audit(request(signed)).differences  # nobody's word was asked
    found = audit(request(signed, key=keys["ours"][1]))
    assert about(found, "differs") == {"lineage's signature"}


def test_a_package_without_a_signature_is_nobodys_word(signed: Path, keys: Keys) -> None:
    (signed / SIGNATURE_NAME).unlink()
    found = audit(request(signed, key=keys["ours"][1]))
    assert "is not signed" in said(found, "signature")
    assert about(found, "differs") == {"signature"}


def certificate(
    folder: Path, name: str, issuer: tuple[Any, Any] | None = None
) -> tuple[Any, Any, Path]:
    """A new certificate, of an issuer's or its own signature, its key, and its file."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[0].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=9))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(
            x509.KeyUsage(True, False, False, False, False, issuer is None, False, False, False),
            critical=True,
        )
        .sign(issuer[1] if issuer else key, hashes.SHA256())
    )
    path = folder / f"{name}.crt"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return made, key, path


def test_a_certificate_counts_by_who_issued_it(signed: Path, tmp_path: Path) -> None:
    from model_signing import signing

    root = certificate(tmp_path, "root")
    other = certificate(tmp_path, "other")
    leaf = certificate(tmp_path, "leaf", (root[0], root[1]))
    private = tmp_path / "leaf.pem"
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    private.write_bytes(leaf[1].private_bytes(encoding, form, serialization.NoEncryption()))
    config = signing.Config().use_certificate_signer(
        private_key=private, signing_certificate=leaf[2], certificate_chain=[root[2]]
    )
    config.sign(signed / MANIFEST_NAME, signed / SIGNATURE_NAME)
    for path, status in ((root[2], "holds"), (other[2], "differs")):
        file = trust_file(tmp_path, certificates=[
            {"name": "acme's root", "file": str(path), "counts_for": ["package"]}
        ])  # fmt: skip
        assert "signature" in about(audit(request(signed, trust=file)), status)


def test_a_bundle_without_a_signer_is_by_nobody(signed: Path, keys: Keys) -> None:
    flip(signed / SIGNATURE_NAME)
    for text in ("", "{}", "[1]", '{"verificationMaterial": {}}'):
        (signed / SIGNATURE_NAME).write_text(text)
        found = audit(request(signed, key=keys["ours"][1]))
        assert "signature" in about(found, "differs"), text


def entry(**more: Any) -> JournalEntry:
    told = {"id": "1", "alias": "production", "action": "promote", "version": "1", "user": "ada",
            "package_digest": "0", "expects": 0, "at": "2026-11-28"}  # fmt: skip
    return JournalEntry.model_validate_json(json.dumps({**told, **more}))


@pytest.mark.parametrize(
    ("users", "told", "status"),
    [
        ([], {}, "unknown"),
        ([{"name": "Ada L.", "user": "ada"}], {}, "unknown"),
        ([{"name": "Ada L.", "user": "ada", "aliases": ["staging"]}], {}, "differs"),
        ([{"name": "Grace", "user": "grace"}], {"by": "Grace"}, "differs"),
    ],
)  # fmt: skip
def test_who_promoted_is_held_to_the_trust_file(
    users: list[dict[str, Any]], told: dict[str, Any], status: str
) -> None:
    """A name that was typed makes nobody trusted."""
    trust = TrustSettings.model_validate_json(json.dumps({"users": users})) if users else None
    found = _promoter(entry(**told), trust or TrustSettings.model_construct())
    assert found.status == status and "user ada moved production" in found.said
    assert ("'Grace' was typed" in found.said) is bool(told)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("keys: []", "names nobody"),
        ("keys: [{name: a, file: nowhere.pub}]", "no such file"),
        ("keys: [{name: a, file: trust.yaml, counts_for: []}]", "counts_for"),
        ("keys: [{name: a, file: trust.yaml, counts_for: [model]}]", "counts_for"),
        ("people: []", "unknown key 'people'"),
        ("identities: [{name: a, identity: b, issuer: 'http://x'}]", "issuer"),
    ],
)
def test_a_trust_file_that_makes_no_sense_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "trust.yaml"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=words):
        load_trust(path)


def test_the_trust_file_of_the_page_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    path = tmp_path / "trust.yaml"
    path.write_text(block)
    for name in re.findall(r"file: ([\w.]+)", block):
        (tmp_path / name).touch()
    found = load_trust(path)
    assert [len(each) for _, each in found] == [2, 1, 1, 1]
    assert found.keys[0].counts_for == ("package",)


def test_a_key_that_is_none_is_refused_before_any_work(signed: Path, tmp_path: Path) -> None:
    file = trust_file(tmp_path, keys=[{"name": "a", "file": "trust.yaml"}])
    with pytest.raises(InvalidInput, match="not a public elliptic curve key"):
        audit(request(signed, trust=file))
