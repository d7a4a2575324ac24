"""3x3 convolutions with a quarter of the multiplications, by Winograd's minimal filtering algorithm.

To compute m outputs of a filter with r taps, m + r - 1 multiplications are enough instead of m r: F(4, 3) takes 6
instead of 12. In two dimensions, a tile of 4x4 outputs of a 3x3 filter takes 36 instead of 144. The tile's 6x6 inputs d
and the taps g are transformed, multiplied element by element, and transformed back: Y = A^T [(G g G^T) * (B^T d B)] A.
The three matrices come from interpolating a polynomial at the points 0, 1, -1, 2, -2 and infinity. Summed over the
input channels, the element-wise products are 36 products of matrices, (tiles, C_in) by (C_in, C_out), which run at the
full speed of the processor. See Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016,
arXiv:1509.09308.

The price is memory, four times that of the weights, and rounding: the error is about ten times that of the direct sum,
some 1e-5 of the largest value in float32. Products are therefore always computed in float32, also for maps in bfloat16.
"""
from typing import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .fused import NONE, Activation, FusedConv, image_of, linear, pixels_of

_TILE, _WINDOW = 4, 6  # outputs and inputs of a tile along each axis
_INPUT = ((4, 0, -5, 0, 1, 0), (0, -4, -4, 1, 1, 0), (0, 4, -4, -1, 1, 0), (0, -2, -1, 2, 1, 0), (0, 2, -1, -2, 1, 0),
          (0, 4, 0, -5, 0, 1))  # B^T
_TAPS = ((1 / 4, 0, 0), (-1 / 6, -1 / 6, -1 / 6), (-1 / 6, 1 / 6, -1 / 6), (1 / 24, 1 / 12, 1 / 6),
         (1 / 24, -1 / 12, 1 / 6), (0, 0, 1))  # G
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))  # A^T
_TILES = 256  # minimum number of tiles that are computed together; fewer would leave the products too small
_MIN_CHANNELS, _MIN_PIXELS = 256, 32 * 32  # below these, the transforms cost more than they save


def _both_axes(matrix: Sequence[Sequence[float]], dtype: torch.dtype) -> Tensor:
    """Returns the matrix that transforms rows and columns of a flattened tile at once."""
    axis = torch.tensor(matrix, dtype=torch.float64, device='cpu')
    return torch.kron(axis, axis).to(dtype)


def suits(conv: FusedConv) -> bool:
    """Returns whether a convolution that has not been packed yet is expected to be faster by this algorithm."""
    weight, (padding, stride, dilation, groups) = conv.plain[0], conv.settings
    if weight.shape[2:] != (3, 3) or groups != 1 or {*stride, *dilation} != {1} or {*padding} != {1}:
        return False
    if conv.size is None or conv.size[2] * conv.size[3] < _MIN_PIXELS:
        return False
    return min(weight.shape[:2]) >= _MIN_CHANNELS


class WinogradConv(nn.Module):
    """A 3x3 convolution with stride 1 and padding 1, followed by an activation.

    Args:
        conv: The convolution, before it is packed.

    Shape:
        Input: (N, C_in, H, W). Output: (N, C_out, H, W) in channels_last, in the dtype of the input.
    """

    def __init__(self, conv: FusedConv):
        super().__init__()
        weight, bias = conv.plain
        self.bias = None if bias is None else bias.float()
        self.activation: Activation = conv.activation
        spectrum = _both_axes(_TAPS, torch.float64) @ weight.double().flatten(2).permute(2, 0, 1).flatten(1)
        self.products = nn.ModuleList(linear(taps.view(weight.shape[:2]).float(), None, _TILES) for taps in spectrum)
        self.input, self.output = (_both_axes(matrix, torch.float32) for matrix in (_INPUT, _OUTPUT))
        self.out_channels = len(weight)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1)
        batch, height, width, _ = pixels.shape
        down, across = -(-height // _TILE), -(-width // _TILE)
        out = x.new_empty(batch, down * _TILE, across * _TILE, self.out_channels)
        rows = max(1, round(_TILES / across))  # of tiles
        for image, target in zip(pixels, out):
            for first in range(0, down, rows):
                top, count = first * _TILE, min(rows, down - first)
                self._tiles(image, top, count, across, target[top:top + count * _TILE])
        return out[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _tiles(self, image: Tensor, top: int, down: int, across: int, out: Tensor) -> None:
        """Computes ``down`` rows of tiles of an image, (H, W, C), from the pixel row ``top`` on."""
        height, width, channels = image.shape
        start, end = top - 1, top + down * _TILE + 1
        some = image[max(start, 0):end].float()
        some = F.pad(some, (0, 0, 1, across * _TILE + 1 - width, max(-start, 0), max(end - height, 0)))
        line = some.shape[1] * channels
        windows = some.as_strided((_WINDOW, _WINDOW, down, across, channels),
                                  (line, channels, _TILE * line, _TILE * channels, 1))
        spectrum = torch.mm(self.input, windows.reshape(_WINDOW**2, -1)).view(_WINDOW**2, -1, channels)
        products = torch.stack([pixels_of(product(image_of(part))) for product, part in zip(self.products, spectrum)])
        tiles = torch.mm(self.output, products.flatten(1)).view(_TILE, _TILE, down, across, -1)
        target = out.view(down, _TILE, across, _TILE, -1)
        target.copy_(tiles.permute(2, 0, 3, 1, 4))
        if self.bias is not None:
            out.add_(self.bias.to(out.dtype))
        _apply(self.activation, out)


def _apply(activation: Activation, x: Tensor) -> None:
    """Applies an activation in-place."""
    functions = {'relu': torch.relu_, 'sigmoid': torch.sigmoid_, 'tanh': torch.tanh_}
    if activation == NONE:
        return
    if activation.name in functions:
        functions[activation.name](x)
    elif activation.name == 'gelu':
        x.copy_(F.gelu(x, approximate=activation.algorithm))
    else:
        {'swish': F.silu, 'hardswish': F.hardswish}[activation.name](x, inplace=True)
