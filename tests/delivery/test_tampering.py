"""Whatever is done to a package, ``verify`` finds and names it; what it cannot tell, it says."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

import bipline
from bipline.base.errors import BiplineError, InvalidInput, Refused
from bipline.delivery.signature import is_signed, sign, verify
from bipline.storage.digests import digest_file
from bipline.storage.directory import atomic_directory
from bipline.storage.manifest import MANIFEST_NAME, SIGNATURE_NAME, FileEntry, read_manifest
from tests.command import run
from tests.tiny import tiny_model

Tampering = Callable[[Path], object]


def make_key(folder: Path, name: str) -> tuple[Path, Path]:
    """A new private key and its public one, in PEM."""
    private = ec.generate_private_key(ec.SECP256R1())
    one, other = folder / f"{name}.pem", folder / f"{name}.pub"
    encoding = serialization.Encoding.PEM
    one.write_bytes(
        private.private_bytes(
            encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    public = private.public_key()
    other.write_bytes(
        public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return one, other


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: make_key(folder, name) for name in ("ours", "theirs")}


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory, keys: dict[str, tuple[Path, Path]]) -> Path:
    """A signed directory shaped as a package, with real weights."""
    base = tmp_path_factory.mktemp("package")
    tiny_model(base / "dense", "llama-gqa")
    with atomic_directory(base / "package", "package") as writer:
        shutil.copytree(base / "dense", writer.path / "hf")
        for name in ("README.md", "evaluation.json", "pruning_plan.json"):
            (writer.path / name).write_text(f"this is {name}\n")
    sign(base / "package", keys["ours"][0])
    return base / "package"


def files_of(package: Path) -> list[str]:
    return sorted(read_manifest(package).files)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def rename(path: Path) -> None:
    path.rename(path.with_name(f"{path.name}.other"))


def add_beside(path: Path) -> None:
    path.with_name(f"{path.name}.other").write_bytes(b"")


def test_whatever_is_done_to_a_file_is_found_and_named(signed: Path, tmp_path: Path) -> None:
    for name in files_of(signed):
        for number, tamper in enumerate((flip, cut, rename, add_beside, Path.unlink)):
            copy = shutil.copytree(signed, tmp_path / f"{number}-{name.replace('/', '-')}")
            tamper(copy / name)
            with pytest.raises(Refused, match=name.replace(".", r"\.")):
                verify(copy)
            shutil.rmtree(copy)


def test_swapped_files_are_found_and_named(signed: Path, tmp_path: Path) -> None:
    names = files_of(signed)
    for one, other in zip(names, [*names[1:], names[0]], strict=True):
        copy = shutil.copytree(signed, tmp_path / "swapped")
        first, second = (copy / one).read_bytes(), (copy / other).read_bytes()
        (copy / one).write_bytes(second)
        (copy / other).write_bytes(first)
        with pytest.raises(Refused, match=f"({one}|{other}) does not match"):
            verify(copy)
        shutil.rmtree(copy)


def edit_metadata(package: Path) -> None:
    """Another word in the header of the safetensors file, as long as the one before."""
    path = package / "hf" / "model.safetensors"
    content = path.read_bytes()
    assert content.count(b'"pt"') == 1
    path.write_bytes(content.replace(b'"pt"', b'"tf"'))


def rewrite(package: Path) -> None:
    """What only who signs can tell: a file changed, and the manifest made to follow."""
    edit_metadata(package)
    manifest, name = read_manifest(package), "hf/model.safetensors"
    path = package / name
    entry = FileEntry(size=path.stat().st_size, sha256=digest_file(path))
    changed = manifest.model_copy(update={"files": {**manifest.files, name: entry}})
    (package / MANIFEST_NAME).write_text(changed.to_json())


def test_metadata_inside_safetensors_is_covered(signed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    edit_metadata(copy)
    with pytest.raises(Refused, match=r"hf/model\.safetensors does not match"):
        verify(copy)


def test_an_edited_manifest_does_not_follow_from_itself(signed: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    value = json.loads((copy / MANIFEST_NAME).read_text())
    value["info"]["parameters"] = 1
    (copy / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(InvalidInput, match="does not follow from its listing"):
        verify(copy)


def test_a_manifest_written_anew_is_found_by_key_and_by_digest_alone(
    signed: Path, tmp_path: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    rewrite(copy)
    verify(copy)  # consistent in itself: nothing in the folder can tell
    with pytest.raises(Refused, match=f"{SIGNATURE_NAME} is of another {MANIFEST_NAME}"):
        verify(copy, keys["ours"][1])
    with pytest.raises(Refused, match="has digest"):
        verify(copy, digest=read_manifest(signed).digest)
    sign(copy, keys["theirs"][0])
    with pytest.raises(Refused, match=f"{SIGNATURE_NAME} is not by"):
        verify(copy, keys["ours"][1])


def empty_signature(package: Path) -> None:
    (package / SIGNATURE_NAME).write_text("{}")


def forge(package: Path) -> None:
    """The statement made to name the new manifest; the signature stays the old one's."""
    rewrite(package)
    path = package / SIGNATURE_NAME
    bundle = json.loads(path.read_text())
    statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    statement["predicate"]["resources"][0]["digest"] = digest_file(package / MANIFEST_NAME)
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    path.write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    "tamper", [empty_signature, forge, lambda package: (package / SIGNATURE_NAME).unlink()]
)
def test_a_signature_that_is_none_is_refused(
    tamper: Tampering, signed: Path, tmp_path: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    tamper(copy)
    with pytest.raises(Refused, match=SIGNATURE_NAME):
        verify(copy, keys["ours"][1])


def test_signing_changes_no_digest_and_moves_along(
    signed: Path, tmp_path: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    moved = shutil.copytree(signed, tmp_path / "elsewhere" / "moved")
    digest = read_manifest(moved).digest
    assert is_signed(moved)
    assert verify(moved, keys["ours"][1], digest[:12]).digest == digest
    assert sign(moved, keys["theirs"][0]).digest == digest
    assert verify(moved, keys["theirs"][1], digest).digest == digest
    (moved / SIGNATURE_NAME).unlink()
    assert verify(moved).digest == digest


def test_a_directory_that_differs_is_not_signed(
    signed: Path, tmp_path: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    copy = shutil.copytree(signed, tmp_path / "copy")
    flip(copy / "README.md")
    before = (copy / SIGNATURE_NAME).read_bytes()
    with pytest.raises(Refused, match=r"README\.md"):
        sign(copy, keys["ours"][0])
    assert (copy / SIGNATURE_NAME).read_bytes() == before


@pytest.mark.parametrize("call", ["sign", "verify"])
def test_keys_and_digests_that_are_none_are_one_line(
    call: str, signed: Path, tmp_path: Path, keys: dict[str, tuple[Path, Path]]
) -> None:
    broken = tmp_path / "broken.pem"
    broken.write_text("no key\n")
    for key in (broken, tmp_path / "missing", keys["ours"][1 if call == "sign" else 0]):
        with pytest.raises(InvalidInput, match="elliptic curve key") as caught:
            getattr(bipline, call)(signed, key=key)
        assert "\n" not in str(caught.value)
    with pytest.raises(BiplineError, match="12 to 64 digits"):
        verify(signed, digest="abc")


def test_the_command_says_what_vouches(
    signed: Path, keys: dict[str, tuple[Path, Path]], capfd: pytest.CaptureFixture[str]
) -> None:
    digest = read_manifest(signed).digest
    public = str(keys["ours"][1])
    for flags, told in (
        ([], "signed, by whom only --key PUB tells"),
        (["--key", public], f"(signed by {public})"),
        (["--key", public, "--digest", digest], "; as the digest that was given)"),
    ):
        done = run(capfd, "verify", signed, *flags)
        assert done.code == 0 and told in " ".join(done.output.split())
