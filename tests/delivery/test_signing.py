"""Who signs: keys with passwords, certificates, nobody's key; and what each refuses in one line."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

import bipline
from bipline.base.errors import BiplineError, EnvironmentFailure, InvalidInput, Refused
from bipline.delivery.lineage import record_verdict
from bipline.delivery.signature import add_verdict, is_signed, sign, verify
from bipline.delivery.signer import Signer, Trust, signer_of, trust_of
from bipline.settings.compress import ExportSettings
from bipline.settings.loading import validated
from bipline.settings.signing import PASSWORD, TOKEN, SignSettings
from bipline.stages.signing import Telling, signed, written_place
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import LINEAGE
from tests.command import run
from tests.delivery.test_gate import GOOD
from tests.gated import asked, verdict

SECRET = "correct horse battery"
NOW = datetime.now(UTC)


def pem(private: Any, password: str | None = None) -> bytes:
    way: Any = serialization.NoEncryption()
    if password:
        way = serialization.BestAvailableEncryption(password.encode())
    kind = serialization.PrivateFormat.PKCS8
    return bytes(private.private_bytes(serialization.Encoding.PEM, kind, way))


def public(private: Any) -> bytes:
    kind = serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(private.public_key().public_bytes(serialization.Encoding.PEM, kind))


def certified(
    private: Any, name: str, issuer: Any, issuer_name: str, days: int = 30, **usage: bool
) -> bytes:
    """A certificate for a key, by an issuer's key; its own where both are one."""
    is_root = private is issuer
    told = {
        "digital_signature": not is_root, "content_commitment": False, "key_encipherment": False,
        "data_encipherment": False, "key_agreement": False, "key_cert_sign": is_root,
        "crl_sign": is_root, "encipher_only": False, "decipher_only": False, **usage,
    }  # fmt: skip
    called, by = (
        x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, each)])
        for each in (name, issuer_name)
    )
    made = (
        x509.CertificateBuilder().subject_name(called).issuer_name(by)
        .public_key(private.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=20)).not_valid_after(NOW + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**told), critical=True)
        .sign(issuer, hashes.SHA256())
    )  # fmt: skip
    return made.public_bytes(serialization.Encoding.PEM)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys and certificates: good ones, and each kind of bad one."""
    folder = tmp_path_factory.mktemp("signing")
    own, root, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    written = {
        "key.pem": pem(own), "key.pub": public(own), "locked.pem": pem(own, SECRET),
        "root.pem": certified(root, "root", root, "root"),
        "own.pem": certified(own, "us", root, "root"),
        "expired.pem": certified(own, "us", root, "root", days=-1),
        "unfit.pem": certified(
            own, "us", root, "root", digital_signature=False, key_agreement=True
        ),
        "other.pem": certified(other, "they", root, "root"),
        "stranger.pem": certified(other, "root", other, "root"),
        "rsa.pem": pem(rsa.generate_private_key(65537, 2048)),
        "k1.pem": pem(ec.generate_private_key(ec.SECP256K1())), "text.pem": b"no key\n",
        "ed.pub": public(rsa.generate_private_key(65537, 2048)),
    }  # fmt: skip
    for name, content in written.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def package(tmp_path: Path) -> Path:
    with atomic_directory(tmp_path / "package", "package") as writer:
        (writer.path / "README.md").write_text("this is a package\n")
    first = verdict(asked({"figure": "parameters", "at_most": 1}), GOOD)
    record_verdict(tmp_path / "package", first)
    return tmp_path / "package"


def settings(files: Path, **given: Any) -> SignSettings:
    """Settings whose names are files of the fixture."""
    chain = tuple(str(files / each) for each in given.pop("chain", ()))
    named = {name: str(files / each) for name, each in given.items()}
    return SignSettings(**named, **({"certificate_chain": chain} if chain else {}))


def test_a_certificate_signs_and_is_found_under_its_root_alone(package: Path, files: Path) -> None:
    by = Signer(settings(files, key="key.pem", certificate="own.pem", chain=["root.pem"]))
    by.check()
    sign(package, by)
    verify(package, Trust(certificate_chain=(files / "root.pem",)))
    for wrong in (Trust(certificate_chain=(files / "stranger.pem",)), Trust(key=files / "key.pub")):
        with pytest.raises(Refused, match="is not by"):
            verify(package, wrong)
    sign(package, files / "key.pem")
    with pytest.raises(Refused, match="is not by a certificate under"):
        verify(package, Trust(certificate_chain=(files / "root.pem",)))


def test_a_locked_key_needs_its_password_which_nothing_tells(
    package: Path, files: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    locked = settings(files, key="locked.pem")
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(InvalidInput, match=f"is encrypted, and {PASSWORD} is not set"):
        Signer(locked).check()
    monkeypatch.setenv(PASSWORD, f"{SECRET}!")
    with pytest.raises(InvalidInput, match="not a private elliptic curve key") as caught:
        Signer(locked).check()
    assert SECRET not in str(caught.value)
    monkeypatch.setenv(PASSWORD, SECRET)
    Signer(locked).check()
    found = signed(package, Signer(locked))
    assert found is not None and found.holds and found.key == "locked.pem"
    verify(package, files / "key.pub")
    told = capfd.readouterr()
    kept = [each.read_text() for each in package.rglob("*") if each.is_file()]
    assert not any(SECRET in text or "PRIVATE" in text for text in (told.out, told.err, *kept))
    with pytest.raises(InvalidInput, match="is not encrypted"):
        Signer(settings(files, key="key.pem")).check()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"key": "missing.pem"}, "missing.pem: not a private .* No such file"),
        ({"key": "."}, "Is a directory"),
        ({"key": "key.pub"}, "it is a public key; give the private one"),
        ({"key": "text.pem"}, "text.pem: not a private elliptic curve key"),
        ({"key": "rsa.pem"}, "of another kind"),
        ({"key": "k1.pem"}, "secp256k1"),
        ({"key": "key.pem", "certificate": "text.pem", "chain": ["root.pem"]}, "not a certificate"),
        ({"key": "key.pem", "certificate": "own.pem", "chain": ["gone.pem"]}, "gone.pem: not a"),
        ({"key": "key.pem", "certificate": "own.pem", "chain": ["stranger.pem"]}, "not verify"),
        ({"key": "key.pem", "certificate": "other.pem", "chain": ["root.pem"]}, "certificate of"),
        ({"key": "key.pem", "certificate": "unfit.pem", "chain": ["root.pem"]}, "cannot be used"),
        ({"key": "key.pem", "certificate": "expired.pem", "chain": ["root.pem"]}, "not today"),
        ({"key": "locked.pem", "certificate": "own.pem", "chain": ["root.pem"]}, "without a pass"),
    ],
)
def test_what_cannot_sign_is_refused_before_any_work(
    given: dict[str, Any], told: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(InvalidInput, match=told) as caught:
        Signer(settings(files, **given)).check()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "given",
    [
        {"keyless": True, "key": "k"}, {"certificate": "c", "certificate_chain": ("r",)},
        {"key": "k", "certificate": "c"}, {"key": "k", "certificate_chain": ("r",)}, {"key": ""},
        {"password": SECRET},
    ],
)  # fmt: skip
def test_settings_name_one_signer_and_no_secret(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput) as caught:
        validated(SignSettings, given)
    assert SECRET not in str(caught.value)


def test_whoever_signs_changes_nothing_that_a_package_is_keyed_by_or_tells(files: Path) -> None:
    plain, signing = ExportSettings(), ExportSettings(sign=settings(files, key="key.pem"))
    assert signing.model_dump() == plain.model_dump()
    assert signer_of(plain.sign) is None and signer_of(signing.sign) is not None


def test_without_a_key_or_an_identity_the_surroundings_are_at_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyless = Signer(SignSettings(keyless=True))
    monkeypatch.delenv(TOKEN, raising=False)
    monkeypatch.setattr("sigstore.oidc.detect_credential", lambda *_: None)
    with pytest.raises(EnvironmentFailure, match="nothing here says who this run is"):
        keyless.check()
    monkeypatch.setenv(TOKEN, "no.token.this")
    with pytest.raises(EnvironmentFailure, match="no identity") as caught:
        keyless.check()
    assert "no.token.this" not in str(caught.value)
    with pytest.raises(InvalidInput, match="together"):
        trust_of(identity="us@example.org")
    with pytest.raises(InvalidInput, match="give one"):
        trust_of(Path("key"), identity="us@example.org", issuer="https://example.org")


def test_a_verdict_is_added_to_a_signed_lineage_by_its_signer_alone(
    package: Path, files: Path, tmp_path: Path
) -> None:
    sign(package, files / "key.pem")
    later = verdict(asked({"figure": "parameters", "at_most": 2}), GOOD)
    with pytest.raises(Refused, match="is signed, and stays as it was signed"):
        add_verdict(package, later)
    other = Signer(SignSettings(key=str(tmp_path / "other.pem")))
    (tmp_path / "other.pem").write_bytes(pem(ec.generate_private_key(ec.SECP256R1())))
    with pytest.raises(Refused, match="is not by"):
        add_verdict(package, later, other)
    verify(package, files / "key.pub")
    assert not (package / LINEAGE / later.file_name).exists()
    add_verdict(package, later, Signer(settings(files, key="key.pem")))
    verify(package, files / "key.pub")
    assert (package / LINEAGE / later.file_name).is_file()


def test_a_verdict_after_the_fact_lies_in_the_registered_copy_where_it_may(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = verdict(asked({"figure": "parameters", "at_most": 3}), GOOD)
    version: Any = type("Version", (), {"location": f"file://{package}"})
    Telling().tell(later, version)
    assert (package / LINEAGE / later.file_name).is_file() and not is_signed(package / LINEAGE)
    verify(package)
    assert written_place(str(tmp_path / "nowhere")) is None and written_place("s3://b/p") is None
    monkeypatch.setattr("os.access", lambda *_: False)
    assert written_place(str(package)) is None


def test_the_commands_sign_and_verify_by_certificate(
    package: Path, files: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = ("--certificate-chain", files / "root.pem")
    by = ("--key", files / "key.pem", "--certificate", files / "own.pem", *root)
    assert run(capfd, "sign", package, *by).code == 0
    done = run(capfd, "verify", package, *root)
    assert done.code == 0 and "signed by a certificate under" in " ".join(done.output.split())
    for bad in (["--certificate", files / "own.pem"], []):
        assert run(capfd, "sign", package, *bad).code == 2
    copy = shutil.copytree(package, package.parent / "copy")
    with pytest.raises(BiplineError, match="together"):
        bipline.verify(copy, identity="us@example.org")
