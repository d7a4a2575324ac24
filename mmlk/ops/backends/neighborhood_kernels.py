"""The Triton kernels of :class:`.neighborhood.TritonNeighborhood`. Importing this module imports triton.

All tensors are contiguous: ``attn`` is (B, g, H, W, k * k), ``value``, ``out`` and ``grad`` are (B, g, H, W, C). A
program computes ``PIXELS`` neighbouring pixels of one head, for ``CHANNELS`` channels or, in ``weights_gradient``, for
all channels one block after the other.
"""
import triton
import triton.language as tl


@triton.jit
def _start(index, length, kernel):
    """Returns the first index of a window."""
    return tl.minimum(tl.maximum(index - kernel // 2, 0), length - kernel)


@triton.jit
def _wide(x, DOUBLE: tl.constexpr):
    """Returns ``x`` in the dtype of sums."""
    return x.to(tl.float64) if DOUBLE else x.to(tl.float32)


@triton.jit(do_not_specialize=['height', 'width', 'channels', 'kernel', 'tiles'])
def weighted_sum(attn_ptr, value_ptr, out_ptr, height, width, channels, kernel, tiles, PIXELS: tl.constexpr,
                 CHANNELS: tl.constexpr, DOUBLE: tl.constexpr):
    """Computes the output: for each pixel, the sum of the values in its window times the weights."""
    head = (tl.program_id(0) // tiles).to(tl.int64) * height * width
    pixel = tl.program_id(0) % tiles * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = pixel < height * width
    pixel = tl.minimum(pixel, height * width - 1)
    corner = _start(pixel // width, height, kernel) * width + _start(pixel % width, width, kernel)
    mask = inside[:, None] & (c < channels)[None, :]
    weights = attn_ptr + (head + pixel) * (kernel * kernel)
    values = value_ptr + ((head + corner) * channels)[:, None] + c[None, :]
    acc = _wide(tl.zeros((PIXELS, CHANNELS), tl.float32), DOUBLE)
    for p in range(kernel):
        for q in range(kernel):
            a = tl.load(weights + p * kernel + q)
            v = tl.load(values + (p * width + q) * channels, mask=mask, other=0)
            acc += _wide(a, DOUBLE)[:, None] * _wide(v, DOUBLE)
    out = out_ptr + ((head + pixel) * channels)[:, None] + c[None, :]
    tl.store(out, acc.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=['height', 'width', 'channels', 'kernel', 'tiles'])
def weights_gradient(attn_ptr, value_ptr, grad_ptr, height, width, channels, kernel, tiles, PIXELS: tl.constexpr,
                     CHANNELS: tl.constexpr, DOUBLE: tl.constexpr):
    """Computes the gradient of the weights into ``attn``: products of the gradient and the values in the window."""
    head = (tl.program_id(0) // tiles).to(tl.int64) * height * width
    pixel = tl.program_id(0) % tiles * PIXELS + tl.arange(0, PIXELS)
    inside = pixel < height * width
    pixel = tl.minimum(pixel, height * width - 1)
    corner = _start(pixel // width, height, kernel) * width + _start(pixel % width, width, kernel)
    weights = attn_ptr + (head + pixel) * (kernel * kernel)
    for p in range(kernel):
        for q in range(kernel):
            acc = _wide(tl.zeros((PIXELS, ), tl.float32), DOUBLE)
            for first in range(0, channels, CHANNELS):
                c = first + tl.arange(0, CHANNELS)
                mask = inside[:, None] & (c < channels)[None, :]
                g = tl.load(grad_ptr + ((head + pixel) * channels)[:, None] + c[None, :], mask=mask, other=0)
                v = tl.load(value_ptr + ((head + corner + p * width + q) * channels)[:, None] + c[None, :], mask=mask,
                            other=0)
                acc += tl.sum(_wide(g, DOUBLE) * _wide(v, DOUBLE), 1)
            tl.store(weights + p * kernel + q, acc.to(attn_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _first_reader(index, kernel):
    """Returns the first pixel along an axis whose window contains ``index``."""
    return tl.where(index < kernel, 0, index - kernel // 2)


@triton.jit
def _last_reader(index, length, kernel):
    """Returns the last pixel along an axis whose window contains ``index``."""
    return tl.where(index >= length - kernel, length - 1, index + kernel // 2)


@triton.jit(do_not_specialize=['height', 'width', 'channels', 'kernel', 'tiles'])
def values_gradient(attn_ptr, value_ptr, grad_ptr, height, width, channels, kernel, tiles, PIXELS: tl.constexpr,
                    CHANNELS: tl.constexpr, DOUBLE: tl.constexpr):
    """Computes the gradient of the values into ``value``: a sum over the pixels whose windows contain the value.

    At the border these are up to k + k // 2 along an axis, because windows stop there.
    """
    head = (tl.program_id(0) // tiles).to(tl.int64) * height * width
    pixel = tl.program_id(0) % tiles * PIXELS + tl.arange(0, PIXELS)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = pixel < height * width
    pixel = tl.minimum(pixel, height * width - 1)
    y, x = pixel // width, pixel % width
    top, bottom = _first_reader(y, kernel), _last_reader(y, height, kernel)
    left, right = _first_reader(x, kernel), _last_reader(x, width, kernel)
    acc = _wide(tl.zeros((PIXELS, CHANNELS), tl.float32), DOUBLE)
    for down in range(tl.max(bottom - top) + 1):
        i = top + down
        p = y - _start(i, height, kernel)
        for along in range(tl.max(right - left) + 1):
            j = left + along
            reads = inside & (i <= bottom) & (j <= right)
            reader = head + tl.minimum(i, height - 1) * width + tl.minimum(j, width - 1)
            q = x - _start(j, width, kernel)
            a = tl.load(attn_ptr + reader * (kernel * kernel) + p * kernel + q, mask=reads, other=0)
            g = tl.load(grad_ptr + (reader * channels)[:, None] + c[None, :],
                        mask=reads[:, None] & (c < channels)[None, :], other=0)
            acc += _wide(a, DOUBLE)[:, None] * _wide(g, DOUBLE)
    out = value_ptr + ((head + pixel) * channels)[:, None] + c[None, :]
    tl.store(out, acc.to(value_ptr.dtype.element_ty), mask=inside[:, None] & (c < channels)[None, :])
