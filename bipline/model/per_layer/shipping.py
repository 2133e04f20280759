"""The code that goes with weights whose blocks differ in width: its files, and its README.

transformers has no class for such a model, so the directory brings one, and whoever loads it by
transformers alone has to trust that code. bipline itself never runs code from a directory: it
compares what lies there with its own files, byte by byte, and uses its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from hashlib import sha256
from inspect import getfile
from pathlib import Path
from typing import Any

from bipline.base.errors import InvalidInput
from bipline.model.families import families, family_in, family_of
from bipline.model.per_layer import modeling_per_layer
from bipline.model.per_layer.stored import KEY
from bipline.model.shapes import PER_LAYER_PREFIX, is_per_layer
from bipline.storage.folder import Folder
from bipline.storage.strict_json import parse_json

TOKENIZER_CONFIG = "tokenizer_config.json"
# sha256 of files that earlier versions shipped: they read widths from lists alone.
EARLIER = {
    "modeling_per_layer.py": {"3ab37d067c76c480ac2b12f24c03708f155f00ee1f8f78d8fd853027f4b87b66"},
}
# And of those that differ in what they are for, and compute the same of a model that has them.
AS_GOOD = {
    "modeling_per_layer.py": {"24398658c558231d1fc01250b204654785b7cc3d44b3072095b3171c4b1641f8"},
}
README = """# Weights whose blocks differ in width

bipline pruned a {source} so that every block has widths of its own, which
`config.json` lists. transformers has no class for that, so this directory brings the code of
one, and it loads only where you allow that code to run, with `trust_remote_code=True`:

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(".", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(".", trust_remote_code=False)  # brings no code
```

What the code does: it builds transformers' own {source}, as wide everywhere as the
widest block, and replaces the linear layers of every block by smaller ones, or a whole attention
or FFN by one that adds nothing. It opens no file and no connection. Read it before you trust it:
it is short, and the same for every {source} that bipline prunes in this way.

| file | sha256 |
|---|---|
{digests}

The `manifest.json` of bipline, here or in the package around this folder, lists these files and
all others. bipline itself reads this directory as data: it refuses code files that are not
exactly its own, and runs its own.
"""


def own_class(model_type: str) -> Any:
    """Our own installed class for a per-layer ``model_type``.

    Raises InvalidInput for one of an unknown family, or of one that has none.
    """
    family_of(model_type)
    from bipline.model.per_layer.classes import PER_LAYER_CLASSES

    if (found := PER_LAYER_CLASSES.get(model_type)) is None:
        base = model_type.removeprefix(PER_LAYER_PREFIX)
        raise InvalidInput(
            f"there is no class yet for a {base} whose blocks differ in width; use the uniform "
            "layout"
        )
    return found


def auto_map(model_type: str) -> dict[str, str]:
    """Where transformers finds the classes of a per-layer ``model_type`` in its directory."""
    built_by = own_class(model_type)
    return {
        "AutoConfig": _in_its_file(built_by.config_class),
        "AutoModelForCausalLM": _in_its_file(built_by),
    }


def _in_its_file(named: Any) -> str:
    return f"{Path(getfile(named)).stem}.{named.__name__}"


def code_files(config: Mapping[str, Any]) -> dict[str, bytes]:
    """The code that goes with a config's weights, by file name: none where a stock class does.

    It is the text of our own modules. Raises InvalidInput for an unknown family.
    """
    return _own_code(str(config["model_type"])) if is_per_layer(config) else {}


@cache
def _own_code(model_type: str) -> dict[str, bytes]:
    paths = (Path(getfile(each)) for each in (modeling_per_layer, own_class(model_type)))
    return {path.name: path.read_bytes() for path in paths}


def is_own_code(config: Mapping[str, Any], name: str, content: bytes) -> bool:
    """Whether a file is code that bipline ships with a config's weights, or once shipped."""
    own = code_files(config)
    if name not in own:
        return False
    as_good = sha256(content).hexdigest() in AS_GOOD.get(name, ())
    return own[name] == content or as_good or _is_earlier(name, content)


def _is_earlier(name: str, content: bytes) -> bool:
    return sha256(content).hexdigest() in EARLIER.get(name, ())


def shipped_files(config: Mapping[str, Any]) -> dict[str, bytes]:
    """What goes beside the weights of a model besides its config; nothing for a stock class."""
    code = code_files(config)
    if not code:
        return {}
    digests = "\n".join(f"| `{name}` | `{sha256(code[name]).hexdigest()}` |" for name in code)
    source = family_in(config).architecture
    return {**code, "README.md": README.format(source=source, digests=digests).encode()}


def check_code(folder: Folder, config: Mapping[str, Any]) -> None:
    """Raise InvalidInput unless a config names no code, or ours, and no other lies beside it.

    Beside a stock class no code is ever run, and none is looked for. Code that is missing cannot
    run, and is no error here.
    """
    where = folder.location
    if not is_per_layer(config):
        family = families().get(str(config.get("model_type")))
        if "auto_map" in config and not (family and family.names_code):
            raise InvalidInput(
                f"{where}/config.json: auto_map asks for the model's own code, which is never run"
            )
        return
    model_type = str(config["model_type"])
    if config.get("auto_map") != auto_map(model_type):
        raise InvalidInput(
            f"{where}/config.json: auto_map of a {model_type} does not name bipline's own classes"
        )
    for name in folder.names():
        if not name.endswith(".py"):
            continue
        content = folder.read(name)
        if not is_own_code(config, name, content):
            raise InvalidInput(
                f"{where}/{name}: is not the code that bipline ships with a {model_type}; "
                "take the model from whom you trust, or delete the file"
            )
        if KEY in config and _is_earlier(name, content):
            raise InvalidInput(f"{where}/{name}: is of an earlier bipline, which reads no {KEY}")
    refuse_tokenizer_code(folder)


def refuse_tokenizer_code(folder: Folder) -> None:
    """Raise InvalidInput where a tokenizer names code of its own.

    Whoever allows a per-layer model's code to run would allow the tokenizer's with it.
    """
    if TOKENIZER_CONFIG not in folder.names():
        return
    where = f"{folder.location}/{TOKENIZER_CONFIG}"
    config = parse_json(folder.read(TOKENIZER_CONFIG), where)
    if not isinstance(config, dict):
        raise InvalidInput(f"{where}: not a JSON object")
    if "auto_map" in config:
        raise InvalidInput(
            f"{where}: auto_map asks for the tokenizer's own code, which nobody should allow to "
            "run; remove it, or use the uniform layout"
        )
