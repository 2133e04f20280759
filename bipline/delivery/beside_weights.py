"""What lies beside a package's weights, held to what the dense model has: templates, settings.

A chat template is rendered by transformers' sandbox, with and without tools, from both folders: a
template that was left behind gives another text, or none.
"""

from __future__ import annotations

from collections.abc import Iterator
from threading import Thread
from typing import Any

from bipline.base.errors import Refused

RENDER_SECONDS = 20.0
CHAT = [
    {"role": "user", "content": "What is the weather in Zürich?"},
    {"role": "assistant", "content": "Rain, 7 °C."},
    {"role": "user", "content": "And <b>tomorrow</b>? 'Thanks'"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a day.",
        "parameters": {
            "type": "object",
            "properties": {"day": {"type": "string", "description": "a date"}},
            "required": ["day"],
        },
    },
}


def compare_templates(source: Any, packaged: Any) -> None:
    """Render the chat templates of two tokenizers. Raises Refused where they differ."""
    expected, actual = _in_time(source), _in_time(packaged)
    for name in sorted(set(expected) | set(actual)):
        if expected.get(name) != actual.get(name):
            raise Refused(f"hf: the chat template {name} gives another text than the dense model's")


def _rendered(tokenizer: Any) -> Iterator[tuple[str, str]]:
    """What every template makes of a chat, or how it refuses it."""
    templates = tokenizer.chat_template or {}
    if isinstance(templates, str):
        templates = {"default": templates}
    for name, template in templates.items():
        for kind, tools in (("without tools", None), ("with tools", [TOOL])):
            try:
                text = tokenizer.apply_chat_template(
                    CHAT, chat_template=template, tools=tools, tokenize=False,
                    add_generation_prompt=True,
                )  # fmt: skip
            except Exception as error:
                # A template may refuse a chat by its own words: both must then refuse alike.
                text = f"refused: {type(error).__name__}: {error}"
            yield f"{name} {kind}", str(text)


def _in_time(tokenizer: Any) -> dict[str, str]:
    """What templates make of the chat, or Refused: a template is a program, and may never end."""
    done: list[dict[str, str]] = []
    thread = Thread(target=lambda: done.append(dict(_rendered(tokenizer))), daemon=True)
    thread.start()
    thread.join(RENDER_SECONDS)
    if not done:
        raise Refused(f"hf: a chat template was not rendered within {RENDER_SECONDS:g} seconds")
    return done[0]
