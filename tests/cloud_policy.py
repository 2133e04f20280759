"""What no plan of ours may hold: a public bucket, a wildcard role, an open database or cluster.

It reads resources as ``terraform show -json`` tells them, of a plan or of a state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

Resource = dict[str, Any]
# AWS knows no narrower resource for these, and they change nothing.
TELLING = re.compile(r"\w+:(Describe|Get|List)\w+")
MANAGED = {
    "AmazonEKSClusterPolicy", "AmazonEKSWorkerNodePolicy", "AmazonEKS_CNI_Policy",
    "AmazonEC2ContainerRegistryReadOnly", "service-role/AmazonEBSCSIDriverPolicy",
}  # fmt: skip
BLOCKS = (
    "block_public_acls", "block_public_policy", "ignore_public_acls", "restrict_public_buckets",
)  # fmt: skip
BUCKET = ("public_access_block", "versioning", "server_side_encryption_configuration", "policy")
EVERYBODY = {"0.0.0.0/0", "::/0"}


def resources(module: dict[str, Any]) -> Iterator[Resource]:
    """Managed resources of a module and of those below it."""
    yield from (each for each in module.get("resources", []) if each["mode"] == "managed")
    for child in module.get("child_modules", []):
        yield from resources(child)


def violations(found: list[Resource]) -> list[str]:
    """What is wrong, with the address of the resource."""
    return [
        f"{each['address']}: {wrong}"
        for each in found
        for wrong in CHECKS.get(each["type"], nothing)(each, found)
    ]


def nothing(_resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Nothing is asked of this kind."""
    return iter(())


def bucket(resource: Resource, found: list[Resource]) -> Iterator[str]:
    """A bucket has all of its parts, which lie in its module."""
    module = resource["address"].rpartition("aws_s3_bucket.")[0]
    kinds = {each["type"] for each in found if each["address"].rpartition("aws_")[0] == module}
    yield from (f"no {part}" for part in BUCKET if f"aws_s3_bucket_{part}" not in kinds)
    if resource["values"].get("object_lock_enabled") and (
        "aws_s3_bucket_object_lock_configuration" not in kinds
    ):
        yield "locked without a retention"


def public_block(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """All four are on."""
    yield from (f"{name} is off" for name in BLOCKS if resource["values"].get(name) is not True)


def versions(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Versions are kept."""
    if resource["values"]["versioning_configuration"][0]["status"] != "Enabled":
        yield "no versions"


def bucket_policy(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Nobody is let in by it who is not named."""
    for each in statements(resource["values"].get("policy")):
        if each["Effect"] == "Allow" and "*" in json.dumps(each.get("Principal")):
            yield "open to everybody"


def bucket_list(_resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Access lists are a way around policies."""
    yield "an access list"


def role(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """One service of AWS, or one service account of the cluster, takes a role."""
    for each in statements(resource["values"].get("assume_role_policy")):
        if "*" in json.dumps([each.get("Principal"), each["Action"]]):
            yield "everybody may take it"
        if "WebIdentity" in json.dumps(each["Action"]):
            equal = each.get("Condition", {}).get("StringEquals", {})
            names = [v for k, v in equal.items() if k.endswith((":sub", ":aud"))]
            if len(names) != 2 or "*" in json.dumps(names):
                yield "not for one service account"


def role_policy(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Named actions on named resources."""
    if not resource["values"].get("policy"):
        yield "its policy is not known"
    for each in statements(resource["values"].get("policy")):
        actions, where = listed(each.get("Action")), listed(each.get("Resource"))
        if not actions or not where or any("*" in action for action in actions):
            yield f"actions {actions} on {where}"
        elif "*" in where and not all(TELLING.fullmatch(action) for action in actions):
            yield f"{actions} on everything"


def attachment(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Of AWS's own policies those alone that EKS asks for."""
    name = resource["values"]["policy_arn"].partition(":policy/")[2]
    if name not in MANAGED:
        yield f"policy {name}"


def database(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Encrypted, not reached from outside, with a password that AWS keeps."""
    values = resource["values"]
    if values.get("publicly_accessible") is not False or not values.get("storage_encrypted"):
        yield "public, or not encrypted"
    if values.get("password") or not values.get("manage_master_user_password"):
        yield "a password in the state"


def incoming(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Nothing listens to everybody."""
    values = resource["values"]
    ranges = [values.get("cidr_ipv4"), values.get("cidr_ipv6")]
    for each in values.get("ingress") or []:
        ranges += [*(each.get("cidr_blocks") or []), *(each.get("ipv6_cidr_blocks") or [])]
    if EVERYBODY.intersection(filter(None, ranges)):
        yield "open to everybody"


def cluster(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Secrets are encrypted, and the API is not everybody's."""
    values = resource["values"]
    [network] = values["vpc_config"]
    if network["endpoint_public_access"] and (
        not network.get("public_access_cidrs") or EVERYBODY & set(network["public_access_cidrs"])
    ):
        yield "its API is open to everybody"
    if [each["resources"] for each in values.get("encryption_config", [])] != [["secrets"]]:
        yield "secrets are not encrypted"


def pool(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """GPUs rest at zero, and only pods that ask for one get there."""
    values = resource["values"]
    if "NVIDIA" not in values["ami_type"]:
        return
    if values["scaling_config"][0]["min_size"] != 0:
        yield "GPU nodes that never rest"
    if [(t["key"], t["effect"]) for t in values["taint"]] != [("nvidia.com/gpu", "NO_SCHEDULE")]:
        yield "GPU nodes without their taint"


def template(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """Disks are encrypted, and pods do not get at the node's role."""
    values = resource["values"]
    if any(each["ebs"][0]["encrypted"] != "true" for each in values["block_device_mappings"]):
        yield "a disk that is not encrypted"
    [metadata] = values["metadata_options"]
    if (metadata["http_tokens"], metadata["http_put_response_hop_limit"]) != ("required", 1):
        yield "pods reach the node's role"


def repository(resource: Resource, _found: list[Resource]) -> Iterator[str]:
    """What a tag names stays what it was."""
    if resource["values"]["image_tag_mutability"] != "IMMUTABLE":
        yield "tags can be moved"


def statements(policy: str | None) -> list[dict[str, Any]]:
    """Statements of a policy; none where a plan does not know it yet."""
    return list(json.loads(policy)["Statement"]) if policy else []


def listed(value: Any) -> list[str]:
    """IAM takes a string for a list of one."""
    return [value] if isinstance(value, str) else list(value or [])


CHECKS: dict[str, Callable[[Resource, list[Resource]], Iterator[str]]] = {
    "aws_s3_bucket": bucket,
    "aws_s3_bucket_public_access_block": public_block,
    "aws_s3_bucket_versioning": versions,
    "aws_s3_bucket_policy": bucket_policy,
    "aws_s3_bucket_acl": bucket_list,
    "aws_iam_role": role,
    "aws_iam_role_policy": role_policy,
    "aws_iam_policy": role_policy,
    "aws_iam_role_policy_attachment": attachment,
    "aws_db_instance": database,
    "aws_security_group": incoming,
    "aws_vpc_security_group_ingress_rule": incoming,
    "aws_eks_cluster": cluster,
    "aws_eks_node_group": pool,
    "aws_launch_template": template,
    "aws_ecr_repository": repository,
}
