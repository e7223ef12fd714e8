"""Chat templates: where a checkpoint folder keeps them, and what they may ask for.

A template comes with the checkpoint, so it runs in a jinja2 sandbox. It finds what
transformers gives it: `tools` and `documents` are None unless passed, and there are
`raise_exception`, `strftime_now`, `tojson` with its options, and `generation` blocks.
"""

import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from pdecode import files

DEFAULT, WITH_TOOLS = "default", "tool_use"


def templates(folder: pathlib.Path, settings: Mapping[str, Any]) -> dict[str, str]:
    """Templates by name; a file of its own counts before `settings`.

    `settings` is tokenizer_config.json. Raises ValueError for a template that is none.
    """
    found = {}
    given = settings.get("chat_template")
    if given is None:
        given = files.read_object(folder / "chat_template.json").get("chat_template")
    if isinstance(given, str):
        found[DEFAULT] = given
    elif isinstance(given, dict):
        found = dict(given)
    elif isinstance(given, list):
        for entry in given:
            if not isinstance(entry, dict) or {"name", "template"} - set(entry):
                raise ValueError(
                    f"{folder}: the chat template {entry!r} has no name and template"
                )
            found[entry["name"]] = entry["template"]
    elif given is not None:
        raise ValueError(f"{folder}: the chat template {given!r} is no text")
    paths = [(DEFAULT, folder / "chat_template.jinja")]
    paths += [
        (path.stem, path)
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    ]
    own = {
        name: path.read_text(encoding="utf-8") for name, path in paths if path.is_file()
    }
    return own or found


def render(
    by_name: Mapping[str, str],
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    variables: Mapping[str, Any],
) -> str:
    """The text of a conversation, ready for the model's reply.

    Raises ValueError if there is no template to use, or it refuses the messages.
    """
    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    variables = {
        "tools": None,
        "documents": None,
        "add_generation_prompt": True,
        **tokens,
        **variables,
    }
    # Many templates print "None" for what a message has not.
    messages = [
        {key: value for key, value in message.items() if value is not None}
        for message in messages
    ]
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _generation()],
    )
    environment.filters["tojson"] = _tojson
    own = {"raise_exception": _refuse, "strftime_now": _strftime_now}
    source = _chosen(by_name, variables["tools"])
    try:
        made = environment.from_string(source, globals=own)
        return made.render(messages=messages, **variables)
    except (jinja2.TemplateError, TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"the chat template refused: {error}") from None


def _chosen(by_name: Mapping[str, str], tools: Any) -> str:
    if tools is not None and WITH_TOOLS in by_name:
        return by_name[WITH_TOOLS]
    if DEFAULT not in by_name:
        if by_name:
            raise ValueError(
                f"this checkpoint has chat templates {', '.join(sorted(by_name))}, "
                "but none is the default"
            )
        raise ValueError("this checkpoint has no chat template: pass plain text")
    return by_name[DEFAULT]


def _generation() -> type:
    """Reads {% generation %} blocks, which mark replies in training, as their body."""
    import jinja2.ext

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Generation


def _tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    # jinja2's own filter escapes what HTML would read.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str):
    import jinja2

    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
