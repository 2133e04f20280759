"""Stacks of the user's ZenML: registered from a file, again and again with the same result.

What a flavor calls a secret goes to ZenML's secret store, and the component refers to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from bipline.base.errors import InvalidInput
from bipline.base.extras import require
from bipline.settings.stack_file import StackFile
from pipelines.own_stack import answering, quiet
from pipelines.process_state import changed, of_every_run

if TYPE_CHECKING:
    from uuid import UUID

    from zenml.enums import StackComponentType

# This project's flavors, and where they lie.
OWN = {
    "bipline_kubeflow": "infra.kubeflow.flavor", "bipline_kubernetes": "infra.kubernetes.flavor",
}  # fmt: skip
Change = Literal["created", "updated", "unchanged"]
# More than any flavor is expected to have of each.
PAGE = 100


def apply_stack(file: StackFile) -> dict[str, Change]:
    """Register what a file says, and nothing twice; what became of each part, by its name.

    Raises InvalidInput for a component that ZenML does not take, EnvironmentFailure where ZenML
    does not answer.
    """
    with changed(quiet, of_every_run), answering(), _invalid(file):
        from zenml.enums import StackComponentType as Kind

        kinds = {name: Kind(name) for name in file.components}
        told: dict[str, Change] = {}
        if flavor := _own_flavor(file):
            told[f"flavor {flavor.FLAVOR}"] = _with_flavor(flavor)
        components: dict[StackComponentType, UUID] = {}
        for name, kind in kinds.items():
            told[name], components[kind] = _with_component(file, name, kind)
        told[f"stack {file.name}"] = _with_stack(file.name, components)
    return told


@contextmanager
def _invalid(file: StackFile) -> Iterator[None]:
    """Raise InvalidInput for what ZenML says of a configuration."""
    try:
        yield
    except ValidationError as error:
        found = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, found["loc"]))
        raise InvalidInput(f"stack {file.name}: {place}: {found['msg']}") from None
    except (ValueError, KeyError) as error:
        reason = " ".join(str(error.args[0] if error.args else error).split())
        raise InvalidInput(f"stack {file.name}: {reason}") from None


def _own_flavor(file: StackFile) -> ModuleType | None:
    """The module of this project's flavor that a stack asks for.

    Raises InvalidInput where the libraries are missing that it needs.
    """
    found = [OWN[each.flavor] for each in file.components.values() if each.flavor in OWN]
    return require(found[0], "kubeflow") if found else None


def _with_flavor(flavor: ModuleType) -> Change:
    """Tell ZenML of this project's flavor; one of an older version is told anew."""
    from zenml.client import Client
    from zenml.enums import StackComponentType as Kind
    from zenml.utils.source_utils import load

    client, kind = Client(), Kind.ORCHESTRATOR
    found = client.list_flavors(name=flavor.FLAVOR, type=kind, size=PAGE, hydrate=True).items
    schema = load(flavor.SOURCE)().config_class.model_json_schema()
    if found and found[0].config_schema == schema:
        return "unchanged"
    if found:
        client.delete_flavor(str(found[0].id))
    client.create_flavor(flavor.SOURCE, Kind.ORCHESTRATOR)
    return "updated" if found else "created"


def _with_component(file: StackFile, name: str, kind: StackComponentType) -> tuple[Change, UUID]:
    """The component of a kind, named like the stack, as the file says."""
    from zenml.client import Client

    client, component = Client(), file.components[name]
    wanted = _without_secrets(file, name, kind)
    found = client.list_stack_components(type=kind, name=f"equals:{file.name}", hydrate=True).items
    if not found:
        made = client.create_stack_component(file.name, component.flavor, kind, wanted)
        return "created", made.id
    held = found[0]
    if held.flavor_name != component.flavor:
        raise ValueError(
            f"{name} {file.name!r} is of flavor {held.flavor_name}, not {component.flavor}; delete "
            "it, or name the stack otherwise"
        )
    gone = dict.fromkeys(set(held.configuration) - set(wanted))
    if not gone and _same(held.configuration, wanted):
        return "unchanged", held.id
    client.update_stack_component(held.id, kind, configuration={**gone, **wanted})
    return "updated", held.id


def _same(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(held.get(name) == value for name, value in wanted.items())


def _without_secrets(file: StackFile, name: str, kind: StackComponentType) -> dict[str, Any]:
    """A component's configuration with references where the flavor's secrets were."""
    from zenml.client import Client
    from zenml.stack.flavor import Flavor
    from zenml.utils.secret_utils import is_secret_field

    component, client = file.components[name], Client()
    model = client.get_flavor_by_name_and_type(component.flavor, kind)
    fields = Flavor.from_model(model).config_class.model_fields
    unknown = sorted(set(component.configuration) - set(fields))
    if unknown:
        raise ValueError(f"{name} of flavor {component.flavor} knows no {', '.join(unknown)}")
    secret = {
        key: str(value)
        for key, value in component.configuration.items()
        if value is not None and is_secret_field(fields[key])
    }
    if not secret:
        return dict(component.configuration)
    called = f"{file.name}-{name}"
    _keep_secret(called, secret)
    return {**component.configuration, **{key: f"{{{{{called}.{key}}}}}" for key in secret}}


def _keep_secret(name: str, values: dict[str, str]) -> None:
    from zenml.client import Client

    client = Client()
    if client.list_secrets(name=f"equals:{name}").items:
        client.update_secret(name, add_or_update_values=values)
    else:
        client.create_secret(name, values)


def _with_stack(name: str, components: Mapping[StackComponentType, UUID]) -> Change:
    from zenml.client import Client

    client = Client()
    found = client.list_stacks(name=f"equals:{name}", hydrate=True).items
    if not found:
        client.create_stack(name, components)
        return "created"
    held = {kind: each[0].id for kind, each in found[0].components.items() if each}
    if {kind: held.get(kind) for kind in components} == dict(components):
        return "unchanged"
    client.update_stack(found[0].id, component_updates=components)
    return "updated"
