"""Keys: equal keys mean equal bytes, so what has a key in the folder is not computed again.

They are stage keys (see :mod:`bipline.storage.stage_key`): digests of models, texts and
windows, the settings that matter, the code that runs, and the numerics. Names, paths and where
results go are no part of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from bipline.comparison.grid import scoring_options
from bipline.comparison.inputs import Inputs, Settings
from bipline.compression.allocation import rule_module
from bipline.compression.criteria import module_name
from bipline.model.devices import choose_device
from bipline.storage.digests import digest_json
from bipline.storage.stage_key import code_digest, numerics
from bipline.values.combination import Combination

VERSION = "1"


class Keys:
    """The keys of everything that one comparison computes."""

    def __init__(self, inputs: Inputs, settings: Settings) -> None:
        self._inputs = inputs
        self._settings = settings
        protocol = settings.protocol
        self._computing = {"dtype": protocol.dtype, "micro_batch": settings.micro_batch}
        self._protocol = protocol.model_dump(mode="json")
        self._device = choose_device(settings.device).type

    def calibration(self, model: str, calibration: str, seed: int) -> str:
        """Of the windows that a seed draws with a model's tokenizer."""
        resolution = self._inputs.models[model]
        settings = self._settings
        inputs = {
            "tokenizer": resolution.model.tokenizer_digest,
            "text": self._inputs.calibrations[calibration].sha256,
            **{f"text {name}": text.sha256 for name, text in resolution.texts.items()},
        }
        section = {"samples": settings.samples, "seqlen": settings.seqlen, "seed": seed}
        return self._key("calibrate", ["bipline.compression.calibrate"], inputs, section)

    def dense(self, model: str) -> str:
        """Of a dense model's record."""
        inputs = {"model": self._inputs.models[model].digest}
        return self._key("dense", ["bipline.quality.evaluate"], inputs, self._protocol)

    def statistics(self, combination: Combination) -> str:
        """Of the statistics that a combination is allocated from."""
        calibration = self.calibration(combination.model, combination.calibration, combination.seed)
        inputs = {
            "model": self._inputs.models[combination.model].subset().digest,
            "windows": calibration,
        }
        name = combination.criterion.name
        section = {
            "criterion": name,
            "options": scoring_options(combination).to_json_value(),
            **self._computing,
        }
        modules = ["bipline.comparison.scoring", module_name(name)]
        return self._key("score", modules, inputs, section)

    def row(self, combination: Combination) -> str:
        """Of a combination's outcome."""
        inputs = {
            "model": self._inputs.models[combination.model].digest,
            "statistics": self.statistics(combination),
        }
        section = {**combination.settings(), **self._computing, "protocol": self._protocol}
        # What measures reaches the code of compensation by its imports.
        modules = ["bipline.comparison.measure", rule_module(combination.allocation.name)]
        return self._key("row", modules, inputs, section)

    def _key(self, stage: str, modules: list[str], inputs: Mapping[str, str], section: Any) -> str:
        return digest_json(
            {
                "stage": stage,
                "version": VERSION,
                "inputs": {**inputs, "device": self._device},
                "section": section,
                "code": _code(*modules),
                "numerics": numerics(),
            }
        )


@cache
def _code(*modules: str) -> str:
    """The code's digest, taken once: every row asks for it."""
    return code_digest(*modules)
