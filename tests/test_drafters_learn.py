"""A short run of each drafter raises what its decoder accepts, by a stated margin."""

import dataclasses

import pytest
from tiny import MODEL, RUN, quiet

from pdecode.evals import acceptance
from pdecode.train import train

LONG = dataclasses.replace(
    RUN, steps=120, learning_rate=1e-2, checkpoint_every=120, eval_every=120
)
PROMPTS = ["def f(x):\n", "class A:\n    pass\ndef f(", "    return x"]

# Objective: (options, tokens a call that 120 steps add at least to those of 1 step).
RUNS = {
    "eagle": ({}, 0.5),
    "eagle3": ({"num_steps": 3}, 0.5),
    "medusa": ({"num_heads": 4}, 0.5),
    "hydra": ({"num_heads": 4}, 0.5),
    # All that learns is four vectors in front of a target of one layer.
    "ppd": ({"num_tokens": 4}, 0.1),
    "jakiro": ({}, 0.5),
    "mtp": ({"num_modules": 3}, 0.5),
    "hydra_plus": (
        {"num_layers": 2, "prefix_attention": True, "labels": "target"},
        0.5,
    ),
    "clover": ({"num_heads": 4, "num_layers": 1}, 0.5),
    "amphista": ({"num_heads": 4}, 0.5),
    "hidden_transfer": ({"layers": (1, 1)}, 0.3),
    "falcon": ({}, 0.5),
    "medusa2": ({"num_heads": 4, "heads_steps": 60, "heads_weight": 1.0}, 0.5),
    "koala": ({"num_heads": 4, "discriminator_width": 16}, 0.5),
}
OF = {"hydra_plus": "hydra"}  # what trains it
CHAIN = {
    "eagle": {"method": "eagle", "branching": (1, 1, 1, 1)},
    "eagle3": {"method": "eagle2", "num_nodes": 5, "width": 2, "max_depth": 4},
    "medusa": {"method": "medusa", "branching": (1, 1, 1, 1)},
    "hydra": {"method": "hydra", "branching": (1, 1, 1, 1)},
    "falcon": {"method": "falcon", "branching": (1, 1, 1, 1)},
    "hidden_transfer": {"method": "hidden_transfer", "branching": (1, 1)},
    "jakiro": {"method": "jakiro", "num_nodes": 5, "width": 2, "max_depth": 4},
    "ppd": {"method": "ppd", "branching": (1, 1, 1, 1)},
    "mtp": {"method": "mtp", "num_draft": 3},
    "hydra_plus": {"method": "hydra", "branching": (1, 1, 1, 1)},
    "clover": {"method": "clover", "branching": (1, 1, 1, 1)},
    "amphista": {"method": "amphista", "branching": (1, 1, 1, 1)},
    "medusa2": {"method": "medusa", "branching": (1, 1, 1, 1)},
    "koala": {"method": "medusa", "branching": (1, 1, 1, 1)},
}


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    train(dataclasses.replace(LONG, model=MODEL), folder, **quiet())
    return str(folder)


def measured(name, folder, target):
    own = folder / "model"  # of heads that were trained with their target
    return acceptance.measure(
        drafter=str(folder), model=str(own if own.exists() else target),
        prompts=PROMPTS, max_new_tokens=32, **CHAIN[name],
    )  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", RUNS)
def test_a_short_run_raises_what_is_accepted(name, target, tmp_path):
    options, margin = RUNS[name]
    found = {}
    for steps in (1, 120):
        start = target if name == "medusa2" else None
        config = dataclasses.replace(
            LONG, objective=OF.get(name, name), start_from=start,
            frozen={"target": target}, options=options, steps=steps, warmup_steps=1,
            learning_rate=1e-2 if steps > 1 else 1e-9,
        )  # fmt: skip
        train(config, tmp_path / str(steps), **quiet())
        found[steps] = measured(name, tmp_path / str(steps), target)
    low = found[120].tokens_per_call_interval[0]
    assert low > found[1].tokens_per_call + margin, found
    assert found[120].mean_accepted > found[1].mean_accepted + margin
