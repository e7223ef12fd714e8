"""What the texts of a command line mean: meshes, settings, prompts, names.

Each function raises ValueError, in one line, for what it cannot read.
"""

import json
import warnings
from collections.abc import Sequence
from typing import Any


def mesh(text: str | None) -> dict[str, int] | None:
    """{"data": 2, "tensor": 4} of "data=2,tensor=4"; None of None."""
    if text is None:
        return None
    try:
        pairs = [part.split("=") for part in text.split(",")]
        axes = {name.strip(): int(size) for name, size in pairs}
    except ValueError:
        raise ValueError(f"--mesh {text}: write axes and sizes, as tensor=4") from None
    if min(axes.values()) < 1:
        raise ValueError(f"--mesh {text}: every size must be at least 1")
    return axes


def settings(method, pairs: Sequence[str]) -> dict[str, Any]:
    """Knobs and sizes of `method` from "knob=value" pairs."""
    from pdecode.evals import lineup

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
        found[name] = lineup.knobs_value(method, name, text)
    return found


def decode(args) -> dict[str, Any]:
    """What `generation.prepare` takes, out of the options of generate and compile."""
    from pdecode.methods import variants
    from pdecode.sharding import processes

    values = {}
    if args.set:
        if args.method is None:
            raise ValueError("--set needs --method: knobs belong to a method")
        method, _ = variants.resolve(args.method)
        values = settings(method, args.set)
    if args.temperature is not None and "temperature" in values:
        raise ValueError("--temperature and --set temperature=...: give one of them")
    axes = mesh(args.mesh)
    return {
        "method": args.method,
        "model": args.model,
        "drafter": args.drafter,
        "max_new_tokens": args.max_new_tokens,
        "temperature": args.temperature,
        "keep_eos_tail": args.keep_eos_tail,
        "dtype": args.dtype,
        "mesh": None if axes is None else processes.make_mesh(**axes),
        **values,
    }


def prompt(args) -> Any:
    """The text of --prompt or --prompt-file, or the rows of ids of --prompt-ids."""
    if args.prompt is not None:
        return args.prompt
    if args.prompt_file is not None:
        try:
            with open(args.prompt_file, encoding="utf-8") as file:
                return file.read()
        except UnicodeDecodeError:
            raise ValueError(f"{args.prompt_file} is no UTF-8 text") from None
    try:
        rows = json.loads(args.prompt_ids)
    except ValueError:
        raise ValueError(
            f"--prompt-ids {args.prompt_ids!r} is no JSON; write [[1,2,3],[4,5]]"
        ) from None
    if not isinstance(rows, list):
        raise ValueError(f"--prompt-ids {args.prompt_ids!r} is no list of rows of ids")
    return rows


def chat(args, text: Any, options: dict[str, Any]) -> Any:
    """`text` as --chat and --system have it: ids of a conversation, or itself.

    A bare text for a model with a chat template draws a line of advice.
    """
    from pdecode import generation

    if args.system is not None and not args.chat:
        raise ValueError("--system needs --chat: it is a message of a conversation")
    if args.chat and args.prompt_ids is not None:
        raise ValueError("--chat renders text: give --prompt or --prompt-file")
    tokenizer = None
    if args.model is not None and args.prompt_ids is None:
        tokenizer = generation.load(args.model, options["dtype"], options["mesh"])[2]
    if tokenizer is None or not getattr(tokenizer, "templates", {}):
        if not args.chat:
            return text
        raise ValueError(
            f"--chat: {args.model or 'the default model'} has no chat template; leave "
            "out --chat for plain text"
        )
    if not args.chat:
        if not any(token in text for token in tokenizer.tokens.values()):
            warnings.warn(
                f"{args.model} has a chat template, and this text is continued as it "
                "stands; --chat asks for a reply",
                stacklevel=2,
            )
        return text
    if not text.strip():
        raise ValueError("the prompt is empty: --chat needs a message")
    system = [] if args.system is None else [{"role": "system", "content": args.system}]
    return [tokenizer.chat([*system, {"role": "user", "content": text}])]


def check_count(name: str, value: int) -> None:
    """ValueError unless `value` is a length that arrays may have."""
    from pdecode import knobs

    if not 1 <= value <= knobs.MOST:
        limit = "at least 1" if value < 1 else f"at most {knobs.MOST}"
        raise ValueError(f"{name}={value} must be {limit}")


def bench(args) -> tuple[list[str], str]:
    """Shapes and dtype of the suite "hotpath"; refused where "loop" would drop them."""
    if args.suite == "loop" and (args.shapes or args.dtype):
        raise ValueError("--shapes and --dtype are for --suite hotpath")
    shapes = "3m,30m" if args.shapes is None else args.shapes
    return names(shapes, "--shapes"), args.dtype or "float32"


def names(text: str, option: str) -> list[str]:
    """The parts of the "one,two" that `option` was given."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise ValueError(f"{option} is empty: give names separated by commas")
    return found
