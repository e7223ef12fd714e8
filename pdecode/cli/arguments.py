"""What the texts of a command line mean: meshes, settings, prompts, names.

Each function raises ValueError, in one line, for what it cannot read.
"""

import json
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


class Asked(NamedTuple):
    """The prompts of a command line."""

    rows: Any  # what `prompts.encode` takes
    given: list[dict[str, Any]]  # of a batch: what stood on each one's line
    is_batch: bool  # answered by one JSON object a row


def mesh(text: str | None) -> dict[str, int] | None:
    """{"data": 2, "tensor": 4} of "data=2,tensor=4"; None of None."""
    if text is None:
        return None
    try:
        pairs = [part.split("=") for part in text.split(",")]
        axes = {name.strip(): int(size) for name, size in pairs}
    except ValueError:
        raise ValueError(f"--mesh {text}: write axes and sizes, as tensor=4") from None
    if len(axes) < len(pairs):
        raise ValueError(f"--mesh {text}: name every axis once")
    if min(axes.values()) < 1:
        raise ValueError(f"--mesh {text}: every size must be at least 1")
    return axes


def settings(method, pairs: Sequence[str]) -> dict[str, Any]:
    """Knobs and sizes of `method` from "knob=value" pairs."""
    found = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        name = name.strip()
        if not equals or not name:
            raise ValueError(f"--set {pair}: write KNOB=VALUE")
        if name == "max_new_tokens":
            raise ValueError(f"--set {pair}: use --max-new-tokens")
        if name in found:
            raise ValueError(f"--set {pair}: {name} is given twice")
        found[name] = value(method, name, text)
    return found


def overrides(pairs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{"llada": {"steps": 16}} from "llada.steps=16"."""
    from pdecode import recipes

    found: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        place, equals, text = pair.partition("=")
        name, dot, knob = (part.strip() for part in place.rpartition("."))
        if not (equals and dot and name and knob):
            raise ValueError(f"--set {pair}: write METHOD.KNOB=VALUE")
        method = recipes.find(name).method
        found.setdefault(name, {})[knob] = value(method, knob, text)
    return found


def value(method: Callable, name: str, text: str) -> Any:
    """`text` as the value of a knob, by its kind. Ranges are checked later."""
    from pdecode import knobs, names
    from pdecode.methods import describe

    known = knobs.parameters(method)
    if name not in known:
        raise ValueError(
            f"{method.__name__} has no knob or size {name!r}; "
            f"{names.listed(name, known)}"
        )
    parameter, text = known[name], text.strip()
    is_none = text in ("None", "none") and parameter.is_optional
    try:
        if parameter.base is bool:
            return None if is_none else _bool(text)
        if isinstance(parameter.kind, knobs.Choice):
            return None if is_none and text not in parameter.kind.names else text
        if text in ("None", "none"):
            return None
        if parameter.base is tuple:
            is_whole = isinstance(parameter.kind, knobs.Size)
            parts = text.strip("()[] ,").split(",")
            return tuple((int if is_whole else float)(part) for part in parts)
        is_whole = isinstance(parameter.kind, knobs.Size) or parameter.base is int
        return int(text) if is_whole else float(text)
    except ValueError:
        limits = {n: r for n, r, _ in describe.knob_lines(method)}[name]
        raise ValueError(
            f"{method.__name__}: {name}={text!r} is no value; it takes {limits}"
        ) from None


def _bool(text: str) -> bool:
    if text.lower() not in (*_TRUE, *_FALSE):
        raise ValueError(text)
    return text.lower() in _TRUE


def decode(args) -> dict[str, Any]:
    """What `generation.prepare` takes, out of the options of generate and compile."""
    from pdecode import recipes
    from pdecode.sharding import processes

    values = {}
    if args.set:
        if args.method is None:
            raise ValueError("--set needs --method: knobs belong to a method")
        values = settings(recipes.find(args.method).method, args.set)
    if args.temperature is not None and "temperature" in values:
        raise ValueError("--temperature and --set temperature=...: give one of them")
    axes = mesh(args.mesh)
    return {
        "method": args.method,
        "model": args.model,
        "drafter": args.drafter,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "row_ids": ids(getattr(args, "row_ids", None)),
        "keep_eos_tail": args.keep_eos_tail,
        "dtype": args.dtype,
        "mesh": None if axes is None else processes.make_mesh(**axes),
        "fused": args.fused,
        "lenses": lenses(args),
        "files": role_files(args),
        **values,
    }


def role_files(args) -> dict[str, str]:
    """{"corpus": path} of --datastore and --file."""
    found = {} if args.datastore is None else {"corpus": args.datastore}
    for pair in args.file:
        role, equals, path = pair.partition("=")
        if not equals or not role.strip() or not path:
            raise ValueError(f"--file {pair}: write ROLE=FILE")
        if role.strip() in found:
            raise ValueError(f"--file {pair}: {role} is given twice")
        found[role.strip()] = path
    return found


# Options of logit processing that are numbers, and what they say.
_NUMBERS = {
    "repetition-penalty": "over logits of tokens that stand in the text",
    "presence-penalty": "off logits of tokens that were generated",
    "frequency-penalty": "off logits, for each time that one was",
    "min-p": "least share of the likeliest token's probability",
}


def lens_options(made) -> None:
    """The options that `lenses` reads."""
    group = made.add_argument_group(
        "logit processing",
        "of methods of the draft-and-verify family, autoregressive among them (not of "
        "pearl, quantspec, spec_pv, hidden_transfer, early_exit, sjd, sjd2 and gsd): "
        "on the target's law and on a draft model's alike",
    )
    for name, about in _NUMBERS.items():
        group.add_argument(f"--{name}", type=float, help=about)
    group.add_argument("--ban-ids", help="ids that are never generated, as 7,9")
    group.add_argument("--forced", help="ids at places, the first 0: as 0:7,3:9")
    group.add_argument(
        "--grammar", metavar="FILE", help="JSON of an automaton: states, start, ends"
    )


def lenses(args) -> dict[str, Any]:
    """What `generate` takes as lenses; empty if nothing was asked for."""
    found: dict[str, Any] = {}
    for option in _NUMBERS:
        value = getattr(args, option.replace("-", "_"))
        if value is not None:
            found[option.replace("-", "_")] = value
    if args.ban_ids is not None:
        found["ban_ids"] = ids(args.ban_ids, "--ban-ids")
    if args.forced is not None:
        try:
            pairs = [part.split(":") for part in args.forced.split(",")]
            places = [(int(place), int(token)) for place, token in pairs]
        except ValueError:
            raise ValueError(
                f"--forced {args.forced}: write places and ids, as 0:7,3:9"
            ) from None
        found["forced"] = dict(places)
        if len(found["forced"]) < len(places):
            raise ValueError(f"--forced {args.forced}: force every place once")
    if args.grammar is not None:
        try:
            found["grammar"] = json.loads(read(args.grammar))
        except json.JSONDecodeError as error:
            raise ValueError(f"{args.grammar} is no JSON: {error}") from None
        if not isinstance(found["grammar"], dict):
            raise ValueError(f"{args.grammar} must hold an object with states")
    return found


def prompts(args) -> Asked:
    """The texts of --prompt, --prompt-file, --prompts and --class, or --prompt-ids."""
    if args.prompt is not None:
        given = [{"prompt": text} for text in args.prompt]
        return Asked(args.prompt, given, len(args.prompt) > 1)
    if args.classes is not None:
        texts = names(args.classes, "--class")
        return Asked(texts, [{"prompt": t} for t in texts], len(texts) > 1)
    if args.prompt_file is not None:
        return Asked([read(args.prompt_file)], [], False)
    if args.prompts is not None:
        given = lines(args.prompts)
        return Asked([words(line) for line in given], given, True)
    try:
        rows = json.loads(args.prompt_ids)
    except ValueError:
        raise ValueError(
            f"--prompt-ids {args.prompt_ids!r} is no JSON; write [[1,2,3],[4,5]]"
        ) from None
    if not isinstance(rows, list):
        raise ValueError(f"--prompt-ids {args.prompt_ids!r} is no list of rows of ids")
    return Asked(rows, [], False)


def lines(path: str) -> list[dict[str, Any]]:
    """Prompts of a file: a text a line, or in .jsonl {"prompt": text}, {"ids": [1]}.

    What else an object holds stays in it. Empty lines are no prompts.
    """
    found = []
    for number, line in enumerate(read(path).splitlines(), 1):
        if not line.strip():
            continue
        if not path.endswith((".jsonl", ".json")):
            found.append({"prompt": line})
            continue
        try:
            made = json.loads(line)
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: {line[:40]!r} is no JSON"
            ) from None
        made = {"prompt": made} if isinstance(made, str) else made
        if not isinstance(made, dict) or not (
            isinstance(made.get("prompt"), str) or isinstance(made.get("ids"), list)
        ):
            raise ValueError(
                f"{path}, line {number}: write a text, or an object with prompt (a "
                "text) or ids (a list)"
            )
        found.append(made)
    if not found:
        raise ValueError(f"{path} is empty: give a prompt a line")
    return found


def words(line: dict[str, Any]) -> str | list:
    """Ids or the text of one of `lines`."""
    return line.get("ids") or line.get("prompt", [])


def read(path: str) -> str:
    """The text of a file; "-" is standard input."""
    try:
        if path == "-":
            return sys.stdin.read()
        with open(path, encoding="utf-8") as file:
            return file.read()
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no UTF-8 text") from None


def ids(text: str | None, option: str = "--row-ids") -> list[int] | None:
    """[7, 9] of "7,9"; None of None."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{option} {text}: write whole numbers, as 7,9") from None


def chat(args, asked: Asked, options: dict[str, Any]) -> Asked:
    """`asked` as --chat and --system have it: ids of conversations, or itself.

    Bare text for a model with a chat template draws a line of advice.
    """
    from pdecode import generation

    if args.system is not None and not args.chat:
        raise ValueError("--system needs --chat: it is a message of a conversation")
    if args.chat and args.prompt_ids is not None:
        raise ValueError("--chat renders text: give --prompt or --prompt-file")
    texts = [each for each in asked.rows if isinstance(each, str)]
    tokenizer = None
    if args.model is not None and args.prompt_ids is None:
        places = (options[name] for name in ("dtype", "mesh", "fused"))
        tokenizer = generation.load(args.model, *places)[2]
    if tokenizer is None or not getattr(tokenizer, "templates", {}):
        if not args.chat:
            return asked
        raise ValueError(
            f"--chat: {args.model or 'the default model'} has no chat template; leave "
            "out --chat for plain text"
        )
    if not args.chat:
        marks = tokenizer.tokens.values()
        if texts and not any(token in text for token in marks for text in texts):
            warnings.warn(
                f"{args.model} has a chat template, and this text is continued as it "
                "stands; --chat asks for a reply",
                stacklevel=2,
            )
        return asked
    if len(texts) < len(asked.rows):
        raise ValueError("--chat renders text: give no ids")
    if not all(text.strip() for text in texts):
        raise ValueError("the prompt is empty: --chat needs a message")
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    said = [[*system, {"role": "user", "content": text}] for text in texts]
    return asked._replace(rows=[tokenizer.chat(each) for each in said])


def check_count(name: str, value: int) -> None:
    """ValueError unless `value` is a length that arrays may have."""
    from pdecode import knobs

    if not 1 <= value <= knobs.MOST:
        limit = "at least 1" if value < 1 else f"at most {knobs.MOST}"
        raise ValueError(f"{name}={value} must be {limit}")


def names(text: str, option: str) -> list[str]:
    """The parts of the "one,two" that `option` was given."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ValueError(f"{option} is empty: give names separated by commas")
    return found
