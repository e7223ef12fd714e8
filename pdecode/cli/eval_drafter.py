"""`pdecode eval-drafter`: acceptance by depth, with intervals."""

import json
from typing import Any

from pdecode.cli import arguments, program_cache


def options(made: Any) -> None:
    """The options of the command."""
    made.add_argument("drafter", help="a run's folder, or an embedded name")
    made.add_argument("--model", help="the target (default: the one it was trained on)")
    made.add_argument("--method", help="default: the one that its record names")
    made.add_argument("--num-prompts", type=int, default=16)
    made.add_argument("--max-new-tokens", type=int, default=64)
    made.add_argument("--temperature", type=float, default=0.0)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", action="store_true", help="one JSON object")


def run(args) -> int:
    """Decodes held-out prompts and prints what was accepted; the exit code."""
    from pdecode import recipes
    from pdecode.evals import acceptance

    for name in ("num_prompts", "max_new_tokens"):
        arguments.check_count(name, getattr(args, name))
    if args.set and args.method is None:
        raise ValueError(f"--set {args.set[0]}: name the --method that it is for")
    settings = {}
    if args.set:
        settings = arguments.settings(recipes.find(args.method).method, args.set)
    program_cache.enable()
    found = acceptance.measure(
        method=args.method, model=args.model, drafter=args.drafter,
        num_prompts=args.num_prompts, max_new_tokens=args.max_new_tokens,
        temperature=args.temperature, seed=args.seed, **settings,
    )  # fmt: skip
    if args.json:
        depths = [each._asdict() for each in found.depths]
        print(json.dumps({**found._asdict(), "depths": depths}))
    else:
        print(text(found))
    return 0


def text(found: Any) -> str:
    """A line a depth, then the whole."""
    lines = [f"{found.method}: {found.drafter} drafts for {found.model}", ""]
    lines.append("depth  reached  accepted   rate  95 % interval")
    for each in found.depths:
        lines.append(
            f"{each.depth:5}  {each.reached:7}  {each.accepted:8}  {each.rate:5.3f}  "
            f"{each.low:.3f}-{each.high:.3f}"
        )
    low, high = found.tokens_per_call_interval
    lines += [
        "",
        f"accepted length {found.mean_accepted:.2f}; tokens a call "
        f"{found.tokens_per_call:.2f} ({low:.2f}-{high:.2f}) in {found.num_rounds} "
        "rounds",
    ]
    return "\n".join(lines)
