"""The operators written from their definitions. They are slow, and are only used to check the others."""
import torch
from torch import Tensor


def depthwise_conv2d_reference(input: Tensor, weight: Tensor, bias: Tensor = None) -> Tensor:
    """Computes a depthwise convolution as the sum, over the kernel's taps, of shifted and scaled copies of the input.

    Args:
        input: (N, C, H, W).
        weight: (C, 1, kh, kw). Tap (i, j) is multiplied by the pixel at offset (i - (kh - 1) // 2, j - (kw - 1) // 2).
        bias: (C,) or None.

    Returns:
        (N, C, H, W), float64.
    """
    x, w = input.double(), weight.double()
    _, _, height, width = x.shape
    kh, kw = w.shape[-2:]
    top, left = (kh - 1) // 2, (kw - 1) // 2
    padded = x.new_zeros(*x.shape[:2], height + kh - 1, width + kw - 1)
    padded[:, :, top:top + height, left:left + width] = x
    out = torch.zeros_like(x)
    for i in range(kh):
        for j in range(kw):
            out = out + padded[:, :, i:i + height, j:j + width] * w[:, 0, i, j].reshape(1, -1, 1, 1)
    return out if bias is None else out + bias.double().reshape(1, -1, 1, 1)


def neighborhood_av_reference(attn: Tensor, value: Tensor, kernel_size: int) -> Tensor:
    """Computes :func:`mmlk.ops.neighborhood_av` as the sum, over the window's taps, of one value for each pixel.

    Args:
        attn: (B, g, H, W, k * k).
        value: (B, g, H, W, C).
        kernel_size: k. The window of row i starts at row i - k // 2, or at the nearest one at which it is inside the
            map; the same for columns.

    Returns:
        (B, g, H, W, C), float64.
    """
    a, v = attn.double(), value.double()
    height, width = v.shape[2:4]
    rows, columns = ([min(max(i - kernel_size // 2, 0), n - kernel_size) for i in range(n)] for n in (height, width))
    out = torch.zeros_like(v)
    for p in range(kernel_size):
        for q in range(kernel_size):
            seen = v[:, :, [start + p for start in rows]][:, :, :, [start + q for start in columns]]
            out = out + a[..., p * kernel_size + q, None] * seen
    return out
