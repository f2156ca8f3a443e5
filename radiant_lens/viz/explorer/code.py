"""Python code that reproduces the answers of the explorer's state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from radiant_lens.datasets.templates import ChatTemplate
from radiant_lens.steering.steering import Steering
from radiant_lens.viz.explorer.prompts import CHAT, RENDERED
from radiant_lens.viz.explorer.settings import Settings


@dataclass(frozen=True)
class Source:
    """Origin of the model and the steering, from which the copied code loads them.

    Attributes:
        model: name or folder, as for `load_model`.
        steering: folder, as for `Steering.load`.
        options: keyword arguments of `load_model`.
    """

    model: str
    steering: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def reproducing_code(
    settings: Settings,
    steering: Steering,
    *,
    stop: Sequence[str],
    template: ChatTemplate | None,
    source: Source | None,
) -> str:
    """Return code that sets `plain` and `steered` to the two answers.

    Args:
        settings: of the explorer.
        steering: that the explorer was opened with.
        stop: strings at which an answer ends.
        template: of prompts in the form "chat".
        source: None for a model and a steering that the reader has as `model` and `steering`.
    """
    parts = [
        _imports(settings, steering),
        _loading(source),
        _edits(settings, steering),
        f"prompt = {_prompt(settings, template)}",
        f"options = {{'max_new_tokens': {settings.max_new_tokens}, 'temperature': 0.0, 'stop': {list(stop)!r}}}",
        "[[plain]] = generate_answers(model, [prompt], **options)",
        _steered(settings, steering),
        "print(plain, steered, sep='\\n')",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def _imports(settings: Settings, steering: Steering) -> str:
    lines = ["from dataclasses import replace"] if settings.gate != steering.gate else []
    lines += ["import radiant_lens as rl"]
    lines += ["from radiant_lens.datasets import ChatTemplate"] if settings.form == CHAT else []
    return "\n".join([*lines, "from radiant_lens.evaluation import generate_answers", ""])


def _loading(source: Source | None) -> str:
    if source is None:
        return "# `model` and `steering` are those that were given to `rl.explore`."
    options = "".join(f", {name}={value!r}" for name, value in source.options.items() if value is not None)
    return f"model = rl.load_model({source.model!r}{options})\nsteering = rl.Steering.load({source.steering!r})"


def _edits(settings: Settings, steering: Steering) -> str:
    lines: list[str] = []
    if settings.off and _some_are_on(settings, steering):
        on = " ".join(str(site) for site in steering.sites if site not in settings.off)
        off = " ".join(str(site) for site in sorted(settings.off))
        # The shorter of the two lists of heads.
        lines += [
            f"steering = steering.select({on!r})"
            if len(on) <= len(off)
            else f"steering = steering.select([site for site in steering.sites if str(site) not in {off!r}.split()])"
        ]
    if settings.gate != steering.gate:
        lines += [f"steering = replace(steering, gate={settings.gate!r})"]
    return "\n".join(lines)


def _prompt(settings: Settings, template: ChatTemplate | None) -> str:
    if settings.form == RENDERED:
        return f"rl.Prompt({settings.prompt!r}, (), (), rendered=True)"
    if settings.form != CHAT or template is None:
        return repr(settings.prompt)
    arguments = "" if template.system is None else f", system={template.system!r}"
    arguments += f", options={dict(template.options)!r}" if template.options else ""
    text = f"ChatTemplate(model.tokenizer{arguments}).prompt({settings.prompt!r})"
    return f"rl.Prompt({text}, (), (), rendered=True)"


def _steered(settings: Settings, steering: Steering) -> str:
    if not _some_are_on(settings, steering):
        return "steered = plain  # every head is taken out"
    note = "" if settings.budget is None else f"  # a KL of {settings.budget:g} nats a token on desirable text"
    return (
        f"with rl.steer(model, steering, strength={settings.strength!r}):{note}\n"
        "    [[steered]] = generate_answers(model, [prompt], **options)"
    )


def _some_are_on(settings: Settings, steering: Steering) -> bool:
    return len(settings.off) < len(steering.sites)
