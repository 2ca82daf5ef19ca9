"""tests/fourier.py computes the convolution that it replaces."""

import fourier
import numpy as np
import tensorflow as tf


def test_same_sums_and_gradients():
    rng = np.random.default_rng(0)
    images = tf.constant(rng.normal(size=(3, 27, 27, 4)).astype(np.float32))
    kernel = tf.constant(rng.normal(size=(11, 11, 4, 5)).astype(np.float32))
    weight = tf.constant(rng.normal(size=(3, 17, 17, 5)).astype(np.float32))
    found = []
    for convolve in (lambda x, k: tf.nn.conv2d(x, k, 1, "VALID"), fourier.convolution):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            result = convolve(images, kernel)
            total = tf.reduce_sum(result * weight)
        found.append([result, *tape.gradient(total, [images, kernel])])
    for ours, theirs in zip(*found):
        assert np.abs(ours - theirs).max() < 2e-5 * np.std(theirs)
