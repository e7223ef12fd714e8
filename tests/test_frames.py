"""Clips of moved digits: their rule, and what is drawn frame by frame."""

import numpy as np
import pytest

from pdecode.data import packing, texts
from pdecode.models import digits, frames


def picture(seed=0):
    return np.random.default_rng(seed).integers(0, 17, (8, 8)).astype(np.uint8)


def test_a_clip_is_a_digit_that_its_actions_move():
    row = frames.record(picture(), 7, [1, 1, 2, 0, 3, 4, 4])
    assert len(row) == frames.RECORD == 520
    assert row[0] == digits.tokenizer.encode("7")[0]
    assert frames.tokenizer.encode("7 >>v.<^^") == row[: frames.HEAD].tolist()
    found = frames.parsed(row[None])
    assert found.classes.tolist() == [7]
    assert found.actions.tolist() == [[1, 1, 2, 0, 3, 4, 4]]
    (made,) = found.frames
    np.testing.assert_array_equal(made[0], picture())
    # Two to the right: the last two columns come first; then a row down.
    np.testing.assert_array_equal(made[2][:, :2], picture()[:, 6:])
    np.testing.assert_array_equal(made[3][1:], made[2][:-1])
    np.testing.assert_array_equal(made[4], made[3])
    # Right, right, down, left, up, up: one to the right, one up.
    np.testing.assert_array_equal(made[7], np.roll(picture(), (-1, 1), (0, 1)))
    drawn = frames.tokenizer.decode(row).split("\n")
    assert drawn[0] == " 7 > > v . < ^ ^" and len(drawn) == 65
    for wrong in ("7", "7 >>v.<^", "7 >>v.<^x", "x >>v.<^^"):
        with pytest.raises(ValueError, match="is no class"):
            frames.tokenizer.encode(wrong)


def test_numbers_and_squares_of_a_frame_go_back():
    image = picture()
    numbers = frames.values(image)
    assert numbers.min() >= -1 and numbers.max() <= 1
    np.testing.assert_array_equal(frames.levels(numbers + 0.05), image)
    np.testing.assert_array_equal(frames.levels(numbers * 9)[image == 16], 16)
    cut = frames.patches(np.stack([image, image.T]), 2)
    assert cut.shape == (2, 16, 4)
    np.testing.assert_array_equal(cut[0, 1].reshape(2, 2), image[:2, 2:4])
    np.testing.assert_array_equal(frames.unpatched(cut, 2)[0], image)


def test_the_clips_have_their_split_rule_and_hash(tmp_path):
    pytest.importorskip("sklearn")
    from pdecode.data import frames as data

    folder = str(tmp_path)
    sizes = {name: len(data.clips(name, folder).classes) for name in ("heldout",)}
    assert sizes == {"heldout": 354 * data.CLIPS}
    stream = packing.load_split("validation", folder, texts.KINDS["frames"].stream)
    assert packing.fingerprint(stream)[:12] == "bbb1e31dc9a5"
    found = frames.parsed(stream)
    for made, actions in zip(found.frames[:40], found.actions):
        np.testing.assert_array_equal(made, frames.clip(made[0], actions))
    # Four clips of a digit go different ways; actions repeat in 3/4 + 1/4 * 1/5.
    assert (found.frames[0, 0] == found.frames[3, 0]).all()
    assert (found.actions[0] != found.actions[1]).any()
    repeats = (found.actions[:, 1:] == found.actions[:, :-1]).mean()
    assert abs(repeats - 0.8) < 0.03
    counts = np.bincount(found.actions[:, 0], minlength=5) / len(found.actions)
    assert (abs(counts - 0.2) < 0.07).all()
    # The run scores pixels alone.
    facts = texts.Text(stream, "x", "token", texts.KINDS["frames"].given_ids, 520)
    assert facts.describe()["units"] == 136 * data.CLIPS * 512
