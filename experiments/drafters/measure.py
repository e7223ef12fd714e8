"""Acceptance of drafters on the embedded target: one row a drafter and tree.

    python experiments/drafters/measure.py results/drafters/eagle results/drafters/hydra

takes run folders of `pdecode train` and embedded names ("heads", "drafter"), decodes
held-out prompts greedily and adds to table.json beside this file what is not there yet;
then it prints the table. Tokens and calls are counted, nothing is timed.
"""

import argparse
import json
import math
import pathlib

from pdecode.evals import acceptance
from pdecode.models import embedded

TABLE = pathlib.Path(__file__).parent / "table.json"
CHAIN, TREE = (1, 1, 1, 1), (4, 2, 1, 1)
# By objective: (method, settings) of a chain of four and of a tree of 28 nodes.
HEADS = [("medusa", {"branching": CHAIN}), ("medusa", {"branching": TREE})]
CHAINED = [("hydra", {"branching": CHAIN}), ("hydra", {"branching": TREE})]
WAYS = {
    "eagle": [("eagle", {"branching": CHAIN}), ("eagle", {"branching": TREE}),
              ("eagle2", {"num_nodes": 28, "width": 4, "max_depth": 4})],
    "eagle3": [("eagle2", {"num_nodes": 28, "width": 4, "max_depth": 4})],
    **dict.fromkeys(("medusa", "medusa2", "koala", "amphista"), HEADS),
    **dict.fromkeys(("hydra", "clover"), CHAINED),
    "mtp": [("mtp", {"num_draft": 4})],
    "jakiro": [("jakiro", {"num_nodes": 28, "width": 4, "max_depth": 4})],
    "falcon": [("falcon", {"branching": CHAIN}), ("falcon", {"branching": TREE})],
    # As many lanes as the tree's nodes, prompt tokens among them.
    "ppd": [("ppd", {"branching": CHAIN}), ("ppd", {"num_lanes": 28})],
    "hidden_transfer": [("hidden_transfer", {"branching": CHAIN[:3]}),
                        ("hidden_transfer", {"branching": TREE[:3]})],
    "space": [("space", {"num_draft": 4})],
    "blockwise_heads": [("blockwise", {"num_draft": 4})],
    "autoregressive": [
        ("coupled_sampling", {"num_draft": 4}),
        ("dynamic_tree", {"num_nodes": 28, "width": 4, "max_depth": 4}),
    ],
}  # fmt: skip


def shape(settings):
    """A tree in words."""
    branching = settings.get("branching")
    if "num_draft" in settings or branching == CHAIN:
        return "chain of 4"
    if "num_lanes" in settings:
        return "sparse, 28 lanes"
    if branching is None:
        return "grown, 28 nodes"
    nodes = sum(math.prod(branching[: d + 1]) for d in range(len(branching)))
    return f"{' x '.join(map(str, branching))}, {nodes} nodes"


def label(record):
    """The objective; Hydra++ is one of Hydra's."""
    is_plus = (record["config"].get("options") or {}).get("prefix_attention")
    return record["objective"] + ("++" if is_plus else "")


def row(name, method, settings, num_prompts, max_new_tokens):
    record = embedded.read_from(name)[1]
    config = record["config"]
    who = {"drafter": name, "model": "target"}
    if "original" in record:  # heads that were trained with their target
        who["model"] = record["frozen"]["target"]["from"]
    if record["holds"]["kind"] == "transformer" and method == "space":
        who = {"model": name}  # trained to draft for itself: another target
    found = acceptance.measure(
        method=method, num_prompts=num_prompts, max_new_tokens=max_new_tokens,
        **who, **settings,
    )  # fmt: skip
    return {
        "objective": label(record),
        "params": record["num_params"],
        "steps": record["steps"],
        "tokens_a_step": config["batch_size"] * config["row_len"],
        "method": method,
        "tree": shape(settings),
        "prompts": num_prompts,
        "new_tokens": max_new_tokens,
        "target": embedded.record_of(who["model"])["sha256"][:12],
        **found._asdict() | {"depths": [each._asdict() for each in found.depths]},
    }


def line(made):
    low, high = made["tokens_per_call_interval"]
    rates = " ".join(f"{each['rate']:.2f}" for each in made["depths"])
    return (
        f"| {made['objective']} | {made['params']} | {made['steps']} x "
        f"{made['tokens_a_step']} | {made['method']} | {made['tree']} | "
        f"{made['mean_accepted']:.2f} | {made['tokens_per_call']:.2f} "
        f"({low:.2f}-{high:.2f}) | {rates} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("drafters", nargs="*")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    args = parser.parse_args()
    rows = json.loads(TABLE.read_text()) if TABLE.exists() else []
    known = {(each["objective"], each["steps"], each["method"], each["tree"])
             for each in rows}  # fmt: skip
    for name in args.drafters:
        record = embedded.read_from(name)[1]
        for method, settings in WAYS[record["objective"]]:
            key = (label(record), record["steps"], method, shape(settings))
            if key in known:
                continue
            made = row(name, method, settings, args.num_prompts, args.max_new_tokens)
            rows.append(made | {"drafter": pathlib.Path(name).name})
            TABLE.write_text(json.dumps(rows, indent=1) + "\n")
            print(line(rows[-1]), flush=True)
    print("\n".join(["", *map(line, rows)]))


if __name__ == "__main__":
    main()
