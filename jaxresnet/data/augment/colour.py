"""Changes of the pixel values. Each function takes uint8 images [B, H, W, C] and returns such.

Where a reference is named, the results are Pillow's to within one grey value: here they are rounded, there cut off.
"""

import tensorflow as tf

from jaxresnet.data.augment.draws import shape_of


def _each(values: tf.Tensor) -> tf.Tensor:
    """One value per image, in a shape that goes with the images."""
    return values[:, None, None, None]


def _as_uint8(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.round(tf.clip_by_value(values, 0.0, 255.0)), tf.uint8)


def brighten(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Multiply images by `factors`, float32 [B], at least 0. The results are rounded and at most 255."""
    scaled = tf.cast(images, tf.float32) * _each(factors)
    return tf.cast(tf.round(tf.minimum(scaled, 255.0)), tf.uint8)


def _luminance(images: tf.Tensor) -> tf.Tensor:
    """The grey image, float32 in whole numbers, in each channel: Pillow's for three channels, else the image itself."""
    values = tf.cast(images, tf.float32)
    if shape_of(images)[3] != 3:
        return values
    # Pillow's fixed point numbers, exact in float32. Three equal columns: a broadcast would take longer.
    weights = tf.repeat(tf.constant([[19595.0], [38470.0], [7471.0]]), 3, axis=1)
    return tf.floor((tf.tensordot(values, weights, 1) + 2**15) / 2**16)


def _blend(base: tf.Tensor, images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """From `base` in the direction of the images, as far as `factors` say: 0 gives the base, 1 the images."""
    return _as_uint8(base + _each(factors) * (tf.cast(images, tf.float32) - base))


def saturate(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Change how colourful images are, as PIL.ImageEnhance.Color: the factor 0 gives grey images, 1 the same."""
    return _blend(_luminance(images), images, factors)


def change_contrast(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Change the contrast, as PIL.ImageEnhance.Contrast: the factor 0 gives each image's mean grey, 1 the same."""
    mean = tf.reduce_mean(_luminance(images), axis=[1, 2, 3], keepdims=True)
    return _blend(tf.floor(mean + 0.5), images, factors)


def sharpen(images: tf.Tensor, factors: tf.Tensor) -> tf.Tensor:
    """Change the sharpness, as PIL.ImageEnhance.Sharpness: the factor 0 gives smoothed images, 1 the same.

    The smoothing weighs a pixel 5 and its eight neighbours 1 each. Pixels at the border stay as they are.
    """
    _, height, width, channels = shape_of(images)
    if min(height, width) < 3:  # all is border
        return images
    # Sums of shifted views, with columns and channels as one axis: a pooling takes five times as long.
    values = tf.reshape(tf.cast(images, tf.float32), [-1, height, width * channels])
    columns = values[:, :, : -2 * channels] + values[:, :, channels:-channels] + values[:, :, 2 * channels :]
    sums = columns[:, :-2] + columns[:, 1:-1] + columns[:, 2:]
    inner = values[:, 1:-1, channels:-channels]
    difference = inner - tf.round((sums + inner * 4) / 13)
    change = (factors[:, None, None] - 1) * difference
    changed = values + tf.pad(change, [[0, 0], [1, 1], [channels, channels]])
    return _as_uint8(tf.reshape(changed, tf.shape(images)))


def posterize(images: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    """Keep only the highest bits of each value; `bits` float32 [B] says how many, 1 to 8."""
    masks = tf.bitwise.left_shift(tf.constant(255, tf.uint8), tf.cast(8 - bits, tf.uint8))
    return tf.bitwise.bitwise_and(images, _each(masks))


def solarize(images: tf.Tensor, thresholds: tf.Tensor) -> tf.Tensor:
    """Invert the values that are not below `thresholds`, float32 [B], 0 to 255."""
    limits = tf.cast(tf.math.ceil(thresholds), tf.uint8)
    return tf.where(images >= _each(limits), 255 - images, images)


def stretch_contrast(images: tf.Tensor) -> tf.Tensor:
    """Stretch the values of each channel of each image to 0 to 255, as PIL.ImageOps.autocontrast."""
    values = tf.cast(images, tf.float32)
    # One axis after the other: twice as fast as both at once.
    low = tf.reduce_min(tf.reduce_min(values, axis=1, keepdims=True), axis=2, keepdims=True)
    high = tf.reduce_max(tf.reduce_max(values, axis=1, keepdims=True), axis=2, keepdims=True)
    stretched = _as_uint8((values - low) * tf.math.divide_no_nan(255.0, high - low))
    return tf.where(high > low, stretched, images)


def equalize(images: tf.Tensor) -> tf.Tensor:
    """Spread the values of each channel of each image evenly, as PIL.ImageOps.equalize: the same values."""
    _, height, width, channels = shape_of(images)
    rows = tf.shape(images)[0] * channels
    # Each channel of each image has its own 256 places in the histogram, and later in the table.
    first_places = tf.reshape(tf.range(rows) * 256, [-1, 1, 1, channels])
    places = tf.cast(images, tf.int32) + first_places
    counts = tf.math.unsorted_segment_sum(tf.ones_like(places), places, rows * 256)
    counts = tf.reshape(counts, [-1, 256])
    highest = tf.reshape(tf.reduce_max(places, axis=[1, 2]), [-1])
    step = (height * width - tf.gather(tf.reshape(counts, [-1]), highest))[:, None] // 255
    divisor = tf.maximum(step, 1)
    table = tf.minimum((tf.cumsum(counts, axis=1, exclusive=True) + step // 2) // divisor, 255)
    # With so few values that the step is 0, an image stays as it is.
    table = tf.where(step > 0, table, tf.range(256)[None])
    return tf.cast(tf.gather(tf.reshape(table, [-1]), places), tf.uint8)
