"""Run a script with the network's second convolution by Fourier transforms: TensorFlow, CPU alone.

    python tests/fourier.py training.py --vary

That 11x11 convolution is 83 % of the network's arithmetic. On a processor without bfloat16 units
this makes a training step about twice as fast, so that long runs can be measured there. The sums
are the same to some 1e-5 of their spread. Weights, files and options are those of the script; a
run should go on as it began. With --precision mixed_bfloat16 this convolution stays in float32.
"""

import os
import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # TensorFlow leaves it off before AVX-512

import keras
import numpy as np
import tensorflow as tf


def convolution(images, kernel):
    """As tf.nn.conv2d(images, kernel, 1, "VALID"), of squares, the images of an odd size.

    images: float32 (n, size, size, channels); kernel: float32 (k, k, channels, filters).
    """
    size, channels, filters = images.shape[1], *kernel.shape[2:]
    count, left = tf.shape(images)[0], size - kernel.shape[0] + 1
    half = size // 2 + 1  # frequencies across; the others are their conjugates

    spectrum = transform(tf.transpose(images, (1, 2, 0, 3)), size, 1)
    real, imaginary = (
        tf.reshape(spectrum[:, part], (half, size, count, channels)) for part in (0, 1)
    )
    both = tf.concat([real, imaginary], axis=2)
    both = tf.reshape(tf.stack([both, both], axis=1), (-1, 2 * count, channels))
    wanted = tf.reshape(transform(kernel, size, -1), (-1, channels, filters))
    products = tf.reshape(tf.matmul(both, wanted), (half, 2, size, 2 * count, filters))
    real = products[:, 0, :, :count] - products[:, 1, :, count:]
    imaginary = products[:, 0, :, count:] + products[:, 1, :, :count]

    spectrum = tf.reshape(tf.stack([real, imaginary], axis=1), (half, 2 * size, -1))
    angle = 2 * np.pi * np.outer(np.arange(left), np.arange(size)) / size
    down = tf.matmul(rotation(angle), spectrum)
    down = tf.transpose(tf.reshape(down, (half, 2, left, -1)), (2, 0, 1, 3))
    angle = 2 * np.pi * np.outer(np.arange(left), np.arange(half)) / size
    weight = np.where(np.arange(half) == 0, 1, 2) / size**2
    across = np.stack([np.cos(angle) * weight, -np.sin(angle) * weight], axis=2)
    result = tf.matmul(constant(across.reshape(left, -1)), tf.reshape(down, (left, 2 * half, -1)))
    return tf.transpose(tf.reshape(result, (left, left, count, filters)), (2, 0, 1, 3))


def transform(field, size, sign):
    """The Fourier transform over the first two axes, float32 (size // 2 + 1, 2, size, the rest).

    sign: 1, or -1 for its conjugate, which makes the product a correlation.
    """
    rows = field.shape[0]
    half, flat = size // 2 + 1, tf.reshape(field, (rows, rows, -1))
    angle = 2 * np.pi * np.outer(np.arange(half), np.arange(rows)) / size
    across = np.stack([np.cos(angle), -sign * np.sin(angle)], axis=1).reshape(-1, rows)
    lines = tf.reshape(tf.matmul(constant(across), flat), (rows, half, 2, -1))
    lines = tf.reshape(tf.transpose(lines, (1, 2, 0, 3)), (half, 2 * rows, -1))
    angle = -sign * 2 * np.pi * np.outer(np.arange(size), np.arange(rows)) / size
    return tf.reshape(tf.matmul(rotation(angle), lines), (half, 2, size, -1))


def rotation(angle):
    """The matrix that turns (real, imaginary) by the angles."""
    cos, sin = np.cos(angle), np.sin(angle)
    return constant(np.block([[cos, -sin], [sin, cos]]))


def constant(matrix):
    return tf.constant(matrix.astype(np.float32))


def call(layer, images, plain=keras.layers.Conv2D.call):
    """What Conv2D does, of an 11x11 kernel and stride 1 by Fourier transforms."""
    if layer.kernel_size == (11, 11) and layer.strides == (1, 1):
        images, kernel = tf.cast(images, tf.float32), tf.cast(layer.kernel, tf.float32)
        return tf.cast(convolution(images, kernel), layer.compute_dtype) + layer.bias
    return plain(layer, images)


if __name__ == "__main__":
    keras.layers.Conv2D.call = call
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
