"""Rows of an image, a question and its answer."""

import numpy as np
import pytest

from pdecode.data import captions
from pdecode.models import digits


def test_a_row_is_the_image_the_question_and_what_is_asked():
    image = np.zeros((8, 8), np.uint8)
    image[2] = 16  # a line across
    image[:, 5] = 8  # and one down
    across, down = captions.stream(image[None], np.array([7])).reshape(2, -1)
    assert captions.ROW_LEN == len(across) == 74
    for row, question in ((across, captions.ROWS), (down, captions.COLUMNS)):
        np.testing.assert_array_equal(row[:64], image.ravel())
        assert row[64] == question and row[65] == digits.FIRST_CLASS + 7
    assert across[66:].tolist() == [1, 1, 15, 1, 1, 1, 1, 1]
    assert down[66:].tolist() == [2, 2, 2, 2, 2, 8, 2, 2]
    assert down.max() < captions.VOCAB_SIZE and digits.MASK_ID not in across
    with pytest.raises(ValueError, match="question=3 must be 28"):
        captions.row(image, 7, 3)
