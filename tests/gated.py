"""Packages as gates see them, made of numbers alone: documents, evidence and verdicts."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from bipline.delivery.evidence import Evidence, Signature, evidence_of
from bipline.delivery.gate import Candidate, Incumbent, judge
from bipline.settings.base import tuples
from bipline.settings.gate import GateSettings
from bipline.storage.digests import digest_json
from bipline.storage.manifest import Manifest
from bipline.values.items import EvaluationItems, TaskItem
from bipline.values.record import EvaluationRecord, Perplexity, Speed, TaskResult
from bipline.values.resolution import Resolution, ResolvedModel
from bipline.values.verdict import Check, Override, Verdict

NOW = datetime(2026, 11, 28, 12, tzinfo=UTC)
PROTOCOL: dict[str, Any] = {
    "name": "house", "seqlen": 16, "texts": {"prose": "a" * 64}, "tasks": {"cloze": "b" * 64},
}  # fmt: skip
MACHINE = {"device": "cpu", "processor": "one", "threads": 1, "lm_eval": "0.4.13"}
Documents = dict[str, Any]


def windows(mean: float, spread: float, count: int = 20) -> tuple[float, ...]:
    """Nats by window about a mean, half of them so much above and half below."""
    return tuple(mean + spread * (1 if n % 2 else -1) for n in range(count))


def rows(right: int, count: int = 40, first: int = 0) -> tuple[TaskItem, ...]:
    """Answers of which so many are right, from one row on."""
    chosen = {(first + n) % count for n in range(right)}
    return tuple(
        TaskItem(row=n, loglikelihoods=(-1.0, -2.0), gold=0, choice=0 if n in chosen else 1,
                 choice_norm=0 if n in chosen else 1)
        for n in range(count)
    )  # fmt: skip


def record(
    tensors: str, parameters: int, nats: tuple[float, ...], answers: tuple[TaskItem, ...],
    speed: float = 100.0,
) -> EvaluationRecord:  # fmt: skip
    """A record that says what its items say."""
    nll, right = sum(nats) / len(nats), sum(row.is_right for row in answers)
    share = right / len(answers)
    return EvaluationRecord(
        tensor_digest=tensors * 64,
        parameters=parameters,
        file_bytes=2 * parameters,
        perplexity={"prose": Perplexity(value=math.exp(nll), nll=nll, tokens=300)},
        tasks={"cloze": TaskResult(acc=share, acc_norm=share, stderr=0.05, n=len(answers))},
        speed=Speed(
            prefill_tokens_per_second=10 * speed, prefill_median_tokens_per_second=9 * speed,
            decode_tokens_per_second=speed, decode_median_tokens_per_second=0.98 * speed,
            batch_size=1, prompt_tokens=8, decoded_tokens=8, repeats=5,
        ),
        protocol=PROTOCOL,
        environment=MACHINE,
    )  # fmt: skip


def documents(
    nats: tuple[float, ...] | None = None, right: int = 30, speed: float = 120.0,
    dense: tuple[float, ...] | None = None, parameters: int = 700,
) -> Documents:  # fmt: skip
    """What a package holds: by default a little worse than dense, smaller and faster."""
    nats, before = nats or windows(2.05, 0.2), dense or windows(2.0, 0.2)
    items = {
        "dense": EvaluationItems(windows={"prose": before}, tasks={"cloze": rows(30)}),
        "pruned": EvaluationItems(windows={"prose": nats}, tasks={"cloze": rows(right)}),
    }
    records = {
        "dense": record("d", 1000, before, rows(30)),
        "pruned": record("p", parameters, nats, rows(right), speed),
    }
    model = ResolvedModel(
        source="org/name", location="", tensor_digest="d" * 64, files={"config.json": "c" * 64},
        tokenizer_digest="t" * 64, licence="apache-2.0",
    )  # fmt: skip
    evaluation = {
        "schema_version": 1,
        "packaged": "pruned",
        "records": {name: each.to_json_value() for name, each in records.items()},
        "recovery": None,
    }
    return {
        "evaluation.json": evaluation,
        "resolution.json": Resolution(model=model).model_dump(mode="json"),
        "items.json": {name: each.model_dump(mode="json") for name, each in items.items()},
        "manifest": {
            "tensor_digest": "p" * 64, "parameters": parameters, "formats": ["hf"],
            "packaged": "pruned",
        },
    }  # fmt: skip


def evidence(given: Documents, **known: Any) -> Evidence:
    """The evidence in documents; evaluated a day ago and signed, unless told otherwise."""
    told = {
        "evaluated_at": NOW.replace(day=27), "signature": Signature(holds=True, key="team"),
        **known,
    }  # fmt: skip
    manifest = Manifest(kind="package", files={}, info=given.get("manifest", {}))
    named = {name: value for name, value in given.items() if name != "manifest"}
    return replace(evidence_of(manifest, named), **told)


def edited(given: Documents, edit: Callable[[Documents], object]) -> Documents:
    """A copy of documents after an edit."""
    changed = copy.deepcopy(given)
    edit(changed)
    return changed


def reprotocolled(given: Documents, *models: str, **changes: Any) -> Documents:
    """Documents whose records of some models were made under another protocol, consistently."""

    def edit(changed: Documents) -> None:
        for model in models:
            record = changed["evaluation.json"]["records"][model]
            protocol = {**record["protocol"], **changes}
            del protocol["digest"]
            record["protocol"] = {**protocol, "digest": digest_json(protocol)}

    return edited(given, edit)


def asked(*limits: dict[str, Any], **more: Any) -> GateSettings:
    """A gate of these limits."""
    return GateSettings.model_validate(tuples({"limits": list(limits), **more}))


def verdict(
    gate: GateSettings, candidate: Evidence, champion: Evidence | None = None,
    incumbent: str | None = "1", override: Override | None = None,
) -> Verdict:  # fmt: skip
    """What a gate says; with an ``incumbent`` the alias points at a version, ``champion``'s."""
    subject = Candidate("name", "2", "production", candidate)
    beside = Incumbent(incumbent, champion) if incumbent else None
    return judge(gate, "test", subject, beside, override, NOW)


def check(found: Verdict, name: str) -> Check:
    """The check of this name."""
    return next(each for each in found.checks if each.name == name)
