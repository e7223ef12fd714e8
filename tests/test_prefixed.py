"""A context in front of the text, under every family, against the network itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_gaps import tiny

from pdecode import methods, prompts, run
from pdecode.models import prefixed, transformer

NUM = 3
MASKS = {"attention": "bidirectional", "predicts": "masked", "mask_id": 23}
FEATURES = jax.random.normal(jax.random.key(1), (2, NUM, 16))


def prompt(features=FEATURES):
    rows = [[0] * NUM + [1, 2], [0] * NUM + [5]]
    return prompts.from_rows(rows, max_new_tokens=6, context=features)


@pytest.mark.parametrize("method, changes, sizes", [
    ("autoregressive", {}, {}), ("prompt_lookup", {}, {"num_draft": 3}),
    ("llada", MASKS, {}), ("any_order", MASKS, {"order": "raster"}),
    ("fast_dllm", MASKS, {"cache": "dual", "block_length": 2}),
])  # fmt: skip
def test_features_are_read_wherever_their_positions_are_evaluated(
    method, changes, sizes
):
    """The last committed token is what a whole forward with the features predicts."""
    config_model, params = tiny(**changes)
    model = prefixed.prefixed(config_model, NUM)
    knobs = {"temperature": 0.0}
    if method == "fast_dllm":
        knobs["threshold"] = 0.99

    def go(features):
        made = prompt(features)
        out, _ = run(
            getattr(methods, method), model, params, made, jax.random.key(0),
            knobs=knobs, max_new_tokens=6, **sizes,
        )  # fmt: skip
        return np.asarray(out.tokens), np.asarray(out.log_probs)

    tokens, log_probs = go(FEATURES)
    assert (log_probs != go(0 * FEATURES)[1]).any()  # the features matter
    if changes:
        return
    config = transformer.Config(
        vocab_size=24, width=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
        mlp_width=24, max_positions=48,
    )  # fmt: skip
    for b, length in enumerate((NUM + 2, NUM + 1)):
        text = jnp.asarray(tokens[b : b + 1, : length + 6])
        extra = jnp.zeros((1, length + 6, 16)).at[:, :NUM].set(FEATURES[b])
        output = transformer.forward(config, params, text, extra=extra, train=False)
        weight = config_model.head(params).weight
        wanted = np.argmax(np.asarray(output.hidden[0] @ weight.T), -1)
        np.testing.assert_array_equal(
            tokens[b, length : length + 6], wanted[length - 1 : -1]
        )


def test_another_number_of_features_is_refused():
    model = prefixed.prefixed(tiny()[0], NUM)
    for wrong in (None, FEATURES[:, :2]):
        with pytest.raises(ValueError, match="reads 3 features a row"):
            model.init_cache(prompt(wrong), 12)
