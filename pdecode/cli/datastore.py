"""`pdecode datastore`: files to draft from, made of texts."""

from typing import Any

from pdecode.cli import arguments


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
    made.add_argument("--num-kept", type=int, default=12, help="of trigrams: followers")


def run(args) -> int:
    """Reads, encodes, sorts and writes; the exit code."""
    from pdecode import assembly
    from pdecode.data import datastore, trigrams

    tokenizer = assembly.load(args.model)[2]
    rows = []
    for path in args.texts:
        for each in documents(path):
            rows.append(tokenizer.encode(each) if isinstance(each, str) else each)
    num_tokens = sum(map(len, rows))
    if args.kind == "trigrams":
        _, found = trigrams.build(rows, args.num_kept)
        path = _named(args.out, ".npz")
        trigrams.save(path, found)
        what = f"{len(found.keys)} pairs"
    else:
        _, texts = datastore.build(rows)
        path = _named(args.out, ".npy")
        datastore.save(path, texts)
        what = f"{len(texts.order)} places"
    use = "--file table=" if args.kind == "trigrams" else "--datastore "
    print(f"{len(rows)} documents of {num_tokens} tokens: {what}")
    print(f"written: {path} (pdecode generate {use}{path})")
    return 0


def documents(path: str) -> list[Any]:
    """The texts or rows of ids of a file."""
    if not path.endswith(".jsonl"):
        return [arguments.read(path)]
    return [line.get("ids") or line["prompt"] for line in arguments.lines(path)]


def _named(path: str, ending: str) -> str:
    """ValueError where numpy would write elsewhere than at `path`."""
    if not path.endswith(ending):
        raise ValueError(f"{path} must end in {ending}")
    return path
