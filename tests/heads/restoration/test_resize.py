"""MATLAB's downscale."""

import numpy as np
import pytest

from attnzoo.heads.restoration.resize import imresize

# imresize(reshape(0:n*n-1, n, n)', 1/factor, 'bicubic') as MATLAB R2019b gives it: test_answer/down_down_x*_aa.mat of
# https://github.com/sanghyun-son/bicubic_pytorch. Inside it goes on evenly, at the border the mirror shows.
MATLAB = {
    2: [
        [4.04296875, 6.08203125, 8.10546875, 10.14453125],
        [20.35546875, 22.39453125, 24.41796875, 26.45703125],
        [36.54296875, 38.58203125, 40.60546875, 42.64453125],
        [52.85546875, 54.89453125, 56.91796875, 58.95703125],
    ],
    3: [
        [14.41975309, 17.50617284, 20.51851852, 23.5308642, 26.61728395],
        [60.71604938, 63.80246914, 66.81481481, 69.82716049, 72.91358025],
        [105.90123457, 108.98765432, 112.0, 115.01234568, 118.09876543],
        [151.08641975, 154.17283951, 157.18518519, 160.19753086, 163.28395062],
        [197.38271605, 200.4691358, 203.48148148, 206.49382716, 209.58024691],
    ],
    4: [[12.38378906, 16.63183594], [46.36816406, 50.61621094]],
    5: [[29.1072, 34.288, 39.4688], [106.8192, 112.0, 117.1808], [184.5312, 189.712, 194.8928]],
}


@pytest.mark.parametrize("factor", MATLAB)
def test_imresize_is_matlabs(factor):
    expected = np.array(MATLAB[factor])
    side = len(expected) * factor
    image = np.arange(side**2, dtype=np.float64).reshape(side, side, 1)
    np.testing.assert_allclose(imresize(image, factor)[..., 0], expected, rtol=0, atol=1e-8)


def test_imresize_by_hand():
    """A step at scale 1/2: the weights of Keys' cubic at distances of 1/4, 3/4, 5/4 and 7/4, on both sides."""
    weights = np.array([0.8671875, 0.2265625, -0.0703125, -0.0234375])
    assert weights.sum() == 1
    step = np.repeat([[0.0] * 8 + [1.0] * 8], 2, axis=0)[..., None]
    line = imresize(step, 2)[0, :, 0]
    # Pixel 2i + 1/2 is the middle; to the right of it stand the pixels at 1/2, 3/2, 5/2 and 7/2, halved by the factor.
    expected = [0, 0, weights[3] / 2, weights[1:].sum() / 2, 1 - weights[1:].sum() / 2, 1 - weights[3] / 2, 1, 1]
    np.testing.assert_allclose(line, expected, rtol=0, atol=1e-12)


def test_imresize_of_one_pixel_and_of_floats_in_colour():
    assert imresize(np.full((4, 4, 3), 7, np.uint8), 4).tolist() == [[pytest.approx([7.0] * 3)]]
    image = np.random.default_rng(0).random((12, 18, 3))
    np.testing.assert_allclose(imresize(image, 3)[..., 1], imresize(image[..., 1:2], 3)[..., 0], rtol=0, atol=1e-12)
    assert imresize(image, 1) == pytest.approx(image, abs=1e-12)


@pytest.mark.parametrize(("shape", "factor"), [((8, 9, 3), 2), ((9, 8, 3), 4), ((8, 8, 3), 0)])
def test_imresize_takes_multiples(shape, factor):
    with pytest.raises(ValueError, match=f"divide both sides of the image {shape[0]} x {shape[1]}, got {factor}"):
        imresize(np.zeros(shape), factor)


def test_a_factor_that_is_no_whole_number_is_refused():
    with pytest.raises(TypeError, match=r"factor=2\.0: must be a whole number, got float"):
        imresize(np.zeros((4, 4, 3)), 2.0)
