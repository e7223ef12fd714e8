"""`pdecode datastore`: files to draft from, made of texts."""

from typing import Any

from pdecode.cli import arguments

NUM_KEPT = 12


def options(made: Any) -> None:
    """The options of the command."""
    made.add_argument("out", help="the file that is written: .npy, of trigrams .npz")
    made.add_argument(
        "--texts", nargs="+", required=True, metavar="FILE",
        help="a document each; of .jsonl one a line, with prompt or ids",
    )  # fmt: skip
    made.add_argument("--model", default="target", help="whose tokens they are")
    made.add_argument(
        "--kind", choices=("datastore", "trigrams"), default="datastore",
        help="for rest and fastcoder, or for aded",
    )  # fmt: skip
    made.add_argument(
        "--num-kept", type=int, help=f"of trigrams: followers ({NUM_KEPT})"
    )


def run(args) -> int:
    """Reads, encodes, sorts and writes; the exit code."""
    from pdecode import assembly
    from pdecode.data import datastore, trigrams

    is_table = args.kind == "trigrams"
    if args.num_kept is not None and not is_table:
        raise ValueError(f"--num-kept {args.num_kept} is for --kind trigrams")
    model, _, tokenizer = assembly.load(args.model)
    size = getattr(model, "vocab_size", tokenizer.vocab_size)
    rows = [
        row for path in args.texts for row in _rows(path, args.model, tokenizer, size)
    ]
    num_tokens = sum(map(len, rows))
    if is_table:
        num_kept = NUM_KEPT if args.num_kept is None else args.num_kept
        _, found = trigrams.build(rows, num_kept)
        path = _named(args.out, ".npz")
        trigrams.save(path, found)
        what = f"{len(found.keys)} pairs"
    else:
        _, texts = datastore.build(rows)
        path = _named(args.out, ".npy")
        datastore.save(path, texts)
        what = f"{len(texts.order)} places"
    use = "--file table=" if is_table else "--datastore "
    print(f"{len(rows)} documents of {num_tokens} tokens: {what}")
    print(f"written: {path} (pdecode generate {use}{path})")
    return 0


def documents(path: str) -> list[Any]:
    """The texts or rows of ids of a file."""
    if not path.endswith(".jsonl"):
        return [arguments.read(path)]
    return [arguments.words(line) for line in arguments.lines(path)]


def _rows(path: str, model: str, tokenizer: Any, size: int) -> list[list[int]]:
    """The documents of a file as ids; ValueError for what is none of the model's."""
    rows = []
    for number, each in enumerate(documents(path), 1):
        if isinstance(each, str):
            try:
                rows.append(tokenizer.encode(each))
            except ValueError:
                raise ValueError(
                    f"{path}: {each[:30]!r} is no text of {model}: name another "
                    "--model, or give .jsonl with ids"
                ) from None
            continue
        for token in each:
            if type(token) is not int or not 0 <= token < size:
                raise ValueError(
                    f"{path}, document {number}: {token!r} is no id of {model}, whose "
                    f"ids lie in [0, {size})"
                )
        rows.append(each)
    return rows


def _named(path: str, ending: str) -> str:
    """ValueError where numpy would write elsewhere than at `path`."""
    if not path.endswith(ending):
        raise ValueError(f"{path} must end in {ending}")
    return path
