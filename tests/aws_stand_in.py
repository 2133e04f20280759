"""An AWS for Terraform on this machine: moto's server, with what it gets wrong for us mended.

``python -m tests.aws_stand_in -H HOST -p PORT``. It starts no machine, cluster or
database, enforces no policy, and answers at once.
"""

from __future__ import annotations

import secrets
import sys
from typing import Any

from moto.ec2 import ec2_backends
from moto.eks.models import Cluster
from moto.rds.models import DBInstance
from moto.server import main


def tell_databases_apart() -> None:
    """moto 5.2.1 gives all databases one resource id, and Terraform looks for them by it."""
    made = DBInstance.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        self.dbi_resource_id = f"db-{secrets.token_hex(13).upper()}"

    DBInstance.__init__ = init  # type: ignore[method-assign]


def give_clusters_a_group() -> None:
    """moto makes no security group for a cluster; here it is the default one of its network."""
    made = Cluster.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        network = ec2_backends[options["account_id"]][options["region_name"]]
        subnet = network.get_subnet(self.resources_vpc_config["subnetIds"][0])
        group = network.get_security_group_by_name_or_id("default", subnet.vpc_id)
        self.resources_vpc_config["clusterSecurityGroupId"] = group.id

    Cluster.__init__ = init  # type: ignore[method-assign]


if __name__ == "__main__":
    tell_databases_apart()
    give_clusters_a_group()
    main(sys.argv[1:])
