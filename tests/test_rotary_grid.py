"""Rotary positions of a grid: rows turn one half of the pairs, columns the other."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pdecode import methods, prompts
from pdecode.decode import run
from pdecode.models import axial, layers, transformer
from pdecode.models.config import Config, Rope
from pdecode.train import losses, plain

COLUMNS, DIM = 5, 12
GRID = Rope(theta=50.0, columns=COLUMNS, before=1)
LINE = dataclasses.replace(GRID, columns=None, before=0)
NET = Config(
    vocab_size=9, width=24, num_layers=2, num_heads=2, mlp_width=32, rope=GRID,
    eos_ids=(),
)  # fmt: skip


def turned(rope, places, seed=0):
    """One random head [12], turned by each of `places`."""
    head = jax.random.normal(jax.random.key(seed), (1, 1, 1, DIM))
    head = jnp.broadcast_to(head, (1, len(places), 1, DIM))
    angles = layers.rotary(rope, DIM, jnp.asarray(places, jnp.int32)[None])
    return np.asarray(layers.rotate(head, angles), np.float64)[0, :, 0]


def test_a_cell_turns_pairs_by_its_row_and_by_its_column():
    places = range(1 + 3 * COLUMNS)
    head = turned(LINE, [0])[0]
    for place, got in zip(places, turned(GRID, places)):
        row, column = (place - 1) // COLUMNS, (place - 1) % COLUMNS
        want = np.zeros(DIM)
        for pair in range(DIM // 2):
            nth, axis = pair % (DIM // 4), (row, column)[pair // (DIM // 4)]
            angle = axis * 50.0 ** (-2 * nth / (DIM // 2))
            first, second = head[pair], head[pair + DIM // 2]
            want[pair] = first * np.cos(angle) - second * np.sin(angle)
            want[pair + DIM // 2] = second * np.cos(angle) + first * np.sin(angle)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_scores_are_of_relative_cells_in_both_axes():
    height = 4
    places = 1 + np.arange(height * COLUMNS)
    scores = turned(GRID, places, 1) @ turned(GRID, places, 2).T
    row, column = np.divmod(np.arange(height * COLUMNS), COLUMNS)
    found = {}
    for one, other in np.ndindex(scores.shape):
        step = row[one] - row[other], column[one] - column[other]
        first = found.setdefault(step, scores[one, other])
        assert abs(first - scores[one, other]) < 1e-4
    assert len(found) == (2 * height - 1) * (2 * COLUMNS - 1)
    # The control: on a line a row's end is as near to the next row as to its own.
    line = turned(LINE, places, 1) @ turned(LINE, places, 2).T
    beside, wrapped = (1, 0), (COLUMNS, COLUMNS - 1)
    assert abs(line[beside] - line[wrapped]) < 1e-4
    assert abs(scores[beside] - scores[wrapped]) > 0.1


def logits(config, params, tokens):
    hidden = transformer.forward(config, params, tokens, train=False).hidden
    return losses.logits_of(config, params, hidden)


def test_one_row_is_a_line_of_heads_of_half_the_size():
    """Token for token: a model whose heads have the same pairs at other places."""
    tokens = jnp.arange(14).reshape(2, 7) % NET.vocab_size
    one_row = dataclasses.replace(NET, rope=Rope(50.0, columns=7))
    line = dataclasses.replace(NET, rope=Rope(50.0, dims=DIM // 2))
    params = transformer.init(line, jax.random.key(0))
    # Line: pairs (i, i + 3) of the first 6; grid: the columns' are (3 + i, 9 + i).
    of_line = np.array([6, 7, 8, 0, 1, 2, 9, 10, 11, 3, 4, 5])
    whole = np.concatenate([of_line, DIM + of_line])

    def moved(layer):
        attention = dict(layer["attention"])
        for name in ("query", "key"):
            attention[name] = {"kernel": attention[name]["kernel"][:, whole]}
        return {**layer, "attention": attention}

    both = {n: moved(v) if n.startswith("layer") else v for n, v in params.items()}
    expected = logits(line, params, tokens)
    np.testing.assert_allclose(logits(one_row, both, tokens), expected, atol=1e-5)
    # The control: a second row.
    two_rows = dataclasses.replace(NET, rope=Rope(50.0, columns=4))
    assert np.abs(logits(two_rows, both, tokens) - expected).max() > 1e-2


def test_steps_with_a_cache_say_what_the_whole_image_does():
    params = transformer.init(NET, jax.random.key(0))
    prompt = prompts.from_rows([[7], [8]], max_new_tokens=2 * COLUMNS)
    out, _ = run(
        methods.autoregressive, transformer.make_model(NET), params, prompt,
        jax.random.key(1), knobs={"temperature": 1.0}, max_new_tokens=2 * COLUMNS,
    )  # fmt: skip
    tokens = out.tokens[:, : 1 + 2 * COLUMNS]

    def gap(config):
        laws = jax.nn.log_softmax(logits(config, params, tokens)[:, :-1])
        told = jnp.take_along_axis(laws, tokens[:, 1:, None], -1)[..., 0]
        return np.abs(told - out.log_probs[:, 1 : tokens.shape[1]]).max()

    assert gap(NET) < 1e-4
    # The control: the class as the grid's first cell moves every row's end.
    assert gap(dataclasses.replace(NET, rope=Rope(50.0, columns=COLUMNS))) > 1e-2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope": Rope(columns=0)}, "rope.columns=0"),
        ({"rope": Rope(columns=True)}, "rope.columns=True"),
        ({"rope": Rope(columns=8, before=-1)}, "rope.before=-1"),
        ({"rope": Rope(before=1)}, "rope.before=1 counts"),
        ({"rope": Rope(columns=8, dims=6)}, "6 dimensions of a head"),
        ({"head_dim": 6}, "6 dimensions of a head must be a multiple of 4"),
        ({"rope_sliding": Rope(columns=0)}, "rope.columns=0"),
    ],
)
def test_what_is_no_grid_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NET, **changes)


def test_passes_of_places_on_a_line_refuse_a_grid():
    with pytest.raises(ValueError, match="on a line; use forward='transformer'"):
        plain.check(NET)
    plain.check(dataclasses.replace(NET, rope=LINE))
    with pytest.raises(ValueError, match=r"of a line, not rope=Rope\(.*columns=5"):
        axial.make_model(NET, 2, COLUMNS, 1)
