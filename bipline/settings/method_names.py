"""The criteria and allocations there are, by name: each is a module of its room.

A line here is all that ``--help``, configurations and ``compare`` need to know a new one.
"""

from __future__ import annotations

# Modules of bipline.compression.criteria.
CRITERIA = {
    "activation": "activation",
    "bi-level": "bi_level",
    "block-influence": "block_influence",
    "block-shapley": "block_shapley",
    "flap": "flap",
    "hywia": "hywia",
    "llm-bip": "llm_bip",
    "llm-bip-adjoint": "llm_bip_adjoint",
    "llm-bip-exact": "llm_bip_exact",
    "llm-bip-glu": "llm_bip_glu",
    "llm-pruner": "llm_pruner",
    "magnitude": "magnitude",
    "policy-gradient": "policy_gradient",
    "random": "random",
    "saap": "saap",
    "wanda-sp": "wanda_sp",
}
# Modules of bipline.compression.allocation.
ALLOCATIONS = {
    "block-influence": "block_influence",
    "compensated": "compensated",
    "depth": "depth",
    "error-aware": "error_aware",
    "learned": "learned",
    "log-increase": "log_increase",
    "standardized": "standardized",
    "threshold": "threshold",
    "uniform": "uniform",
}
