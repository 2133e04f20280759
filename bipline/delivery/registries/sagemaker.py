"""The SageMaker Model Registry: a model package group whose packages point at files in S3.

``sagemaker://bucket/prefix`` holds files, books and journal as :mod:`.s3` does, because SageMaker
has no conditional write; the group is the registered model's name. A version has the number that
SageMaker gave it. A version that a served alias points at is ``Approved`` there, every other
``PendingManualApproval``: approvals are set before the alias in S3, and an alias whose approvals
are not so is told as one that points elsewhere, so that whoever comes next sets them right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.delivery.registries.journal import PREVIOUS
from bipline.delivery.registries.ledger import VERSIONS, file_name
from bipline.delivery.registries.s3 import S3Registry
from bipline.settings.compress import CANDIDATE
from bipline.storage.s3_client import S3_SCHEME, aws_client, code_of, failures
from bipline.values.promotion import RegisteredPackage

SCHEME = "sagemaker://"
GROUP = re.compile(r"[A-Za-z0-9](-*[A-Za-z0-9]){0,62}")
APPROVED, PENDING = "Approved", "PendingManualApproval"


class SageMakerRegistry(S3Registry):
    """One model package group, with its files and its journal in S3."""

    def __init__(self, name: str, address: str) -> None:
        if not GROUP.fullmatch(name):
            raise InvalidInput(
                f"model name {name!r}: SageMaker's groups have up to 63 letters, digits and -"
            )
        super().__init__(name, address)

    def _bucket_address(self) -> str:
        return S3_SCHEME + self.address.removeprefix(SCHEME)

    def check_ready(self) -> None:
        """As that of S3; and the group must be there. Raises InvalidInput where it is not."""
        super().check_ready()
        with self._asked() as client:
            client.describe_model_package_group(ModelPackageGroupName=self.name)

    def versions(self) -> dict[int, RegisteredPackage]:
        """All versions by number: packages of the group whose files were hashed in S3."""
        found = {}
        for number in self._packages():
            if (text := self._read(file_name(VERSIONS, number))) is not None:
                found[number] = self._typed(file_name(VERSIONS, number), text, RegisteredPackage)
        return found

    def _register(self, digest: str, location: str, evaluated_at: datetime | None) -> int:
        """As that of a ledger; the number is SageMaker's, of the first package with these files."""
        uri = f"{self._place.where(location)}/hf/"
        made = [number for number, each in self._packages().items() if self._uri(each) == uri]
        number = min(made) if made else self._create(uri, digest)
        record = self._record(digest, location, evaluated_at)
        name = file_name(VERSIONS, number)
        if not self._write(name, record.to_json(), new=True) and evaluated_at is not None:
            self._write(name, record.to_json(), new=False)
        return number

    def _create(self, uri: str, digest: str) -> int:
        source = {"S3Uri": uri, "S3DataType": "S3Prefix", "CompressionType": "None"}
        with self._asked() as client:
            made = client.create_model_package(
                ModelPackageGroupName=self.name,
                ModelPackageDescription=f"package {digest[:12]} of bipline",
                InferenceSpecification={
                    "Containers": [{"ModelDataSource": {"S3DataSource": source}}],
                    "SupportedContentTypes": ["application/json"],
                    "SupportedResponseMIMETypes": ["application/json"],
                },
                ModelApprovalStatus=PENDING,
                CustomerMetadataProperties={"package_digest": digest},
            )
            return int(str(made["ModelPackageArn"]).rpartition("/")[2])

    def aliases(self) -> dict[str, str]:
        """Versions by alias; for a served one, all that SageMaker has approved."""
        pointed = super().aliases()
        served = {alias: version for alias, version in pointed.items() if _is_served(alias)}
        if not served:
            return pointed
        approved = {str(number) for number in self._packages(APPROVED)}
        others = approved - set(served.values())
        for alias, version in served.items():
            told = {*others, *({version} & approved)}
            pointed[alias] = " and ".join(sorted(told, key=int)) or "nothing that is approved"
        return pointed

    def point(self, alias: str, version: str | None) -> None:
        """See :meth:`LedgerRegistry.point`; approvals first, and again by what came of it."""
        if not _is_served(alias):
            super().point(alias, version)
            return
        self._approve({**super().aliases(), alias: version})
        super().point(alias, version)
        self._approve(super().aliases())

    def _approve(self, pointed: dict[str, Any]) -> None:
        """Make the approvals what the aliases say."""
        wanted = {int(v) for alias, v in pointed.items() if v is not None and _is_served(alias)}
        # What is to be served first: at no moment is nothing approved.
        packages = sorted(self._packages().items(), key=lambda pair: pair[0] not in wanted)
        for number, package in packages:
            status = APPROVED if number in wanted else PENDING
            if package["ModelApprovalStatus"] != status:
                with self._asked() as client:
                    client.update_model_package(
                        ModelPackageArn=package["ModelPackageArn"], ModelApprovalStatus=status,
                        ApprovalDescription="by bipline's journal",
                    )  # fmt: skip

    def _packages(self, status: str | None = None) -> dict[int, Any]:
        """SageMaker's records of the group's packages, by version."""
        asked = {"ModelPackageGroupName": self.name}
        if status is not None:
            asked["ModelApprovalStatus"] = status
        with self._asked() as client:
            client.describe_model_package_group(ModelPackageGroupName=self.name)
            pages = client.get_paginator("list_model_packages").paginate(**asked)
            found = [each for page in pages for each in page["ModelPackageSummaryList"]]
            return {int(each["ModelPackageVersion"]): each for each in found}

    def _uri(self, package: Any) -> str:
        """Where the files of a package lie; of one that bipline did not make perhaps nowhere."""
        with self._asked() as client:
            told = client.describe_model_package(ModelPackageName=package["ModelPackageArn"])
            containers = (told.get("InferenceSpecification") or {}).get("Containers") or [{}]
            source = (containers[0].get("ModelDataSource") or {}).get("S3DataSource") or {}
            return str(source.get("S3Uri", ""))

    @contextmanager
    def _asked(self) -> Iterator[Any]:
        """A client; what it says of the group in one line."""
        where = f"{self.name} in SageMaker"
        client = aws_client("sagemaker", where)
        with failures(where, "SageMaker"):
            try:
                yield client
            except client.exceptions.ClientError as error:
                if code_of(error) != "ValidationException" or "exist" not in str(error):
                    raise
                raise InvalidInput(
                    f"{where}: no such model package group in this account and region; make it by "
                    f"aws sagemaker create-model-package-group --model-package-group-name "
                    f"{self.name}"
                ) from error


def _is_served(alias: str) -> bool:
    return alias != CANDIDATE and not alias.startswith(PREVIOUS)
