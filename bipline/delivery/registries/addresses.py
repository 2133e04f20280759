"""Which registry an address means: one table, and one place where it is opened.

``s3://bucket/prefix``, ``sagemaker://bucket/prefix`` and ``hf:OWNER``; everything else is MLflow's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bipline.base.addresses import without_secrets
from bipline.base.errors import InvalidInput
from bipline.delivery.registries.interface import PackageRegistry
from bipline.delivery.registries.ledger import LedgerRegistry

EXAMPLES = "s3://bucket/prefix, sagemaker://bucket/prefix or hf:OWNER"
Open = Callable[[str, str], LedgerRegistry]


def is_place(address: str | None) -> bool:
    """Whether an address is of a registry that is a place for files, not of an MLflow server."""
    return address is not None and address.startswith(tuple(PLACES))


def open_place(name: str, address: str) -> LedgerRegistry:
    """A registered model at the address of such a place; nothing is asked of it yet.

    Raises InvalidInput for another address, a name that cannot lie there, or a password in it.
    """
    for scheme, opened in PLACES.items():
        if address.startswith(scheme):
            return opened(name, address)
    raise InvalidInput(f"{without_secrets(address)}: no place for packages; write {EXAMPLES}")


def open_registry(name: str, alias: str, address: str | None) -> PackageRegistry[Any]:
    """A registered model at an address; None is where MLflow points now.

    Raises InvalidInput for a name or an alias that the registry will refuse.
    """
    if address is not None and is_place(address):
        place = open_place(name, address)
        place.check_alias(alias)
        return place
    from bipline.delivery.registries.journal_mlflow import MlflowRegistry
    from bipline.delivery.registries.mlflow import check_names

    check_names(name, alias)
    return MlflowRegistry(name, address)


def known_registry(name: str, alias: str, address: str | None) -> PackageRegistry[Any]:
    """As :func:`open_registry`. Raises InvalidInput for a model that nobody registered there.

    MLflow says so itself when it is asked.
    """
    registry = open_registry(name, alias, address)
    if isinstance(registry, LedgerRegistry):
        registry.check_known()
    return registry


def _check_bucket(address: str) -> None:
    bucket, _, rest = address.partition("://")[2].partition("/")
    if "@" in bucket or "?" in address or "#" in address:
        raise InvalidInput(
            f"{without_secrets(address)}: takes no user, password or query; set AWS_ACCESS_KEY_ID "
            "and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if not bucket or ".." in rest.split("/"):
        raise InvalidInput(f"{address}: names no place in a bucket; write {EXAMPLES}")


def _s3(name: str, address: str) -> LedgerRegistry:
    from bipline.delivery.registries.s3 import S3Registry

    _check_bucket(address)
    return S3Registry(name, address)


def _sagemaker(name: str, address: str) -> LedgerRegistry:
    from bipline.delivery.registries.sagemaker import SageMakerRegistry

    _check_bucket(address)
    return SageMakerRegistry(name, address)


def _hub(name: str, address: str) -> LedgerRegistry:
    from bipline.delivery.registries.hub import HubRegistry

    return HubRegistry(name, address)


PLACES: dict[str, Open] = {"s3://": _s3, "sagemaker://": _sagemaker, "hf:": _hub}
