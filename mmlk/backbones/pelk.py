"""PeLK: Parameter-efficient Large Kernel ConvNets with Peripheral Convolution, Chen et al., CVPR 2024.

arXiv:2403.07589. No code was published, so this is written from the paper. These are our decisions where the paper does
not give details:

- A stage with C channels convolves the first ``int(3 / 8 * C)`` of them.
- :mod:`mmlk.reparam.peripheral` describes the sharing grid for kernels whose taps do not divide into powers of two.
- The parallel 5x5 kernel of section 3 has its own BatchNorm. The shared kernel has no norm, and no bias except for what
  the position embedding adds.
- The position embedding of a stage has one channel. Section 4.2 says c_in channels, which is one for a depthwise
  kernel. With as many channels as the map, B-101 would have 92 million parameters; table 4 says 90.
- Weights, embeddings and layer scale are initialized like those of ConvNeXt.

The sparsity of 40 % is not a part of the network: ``DynamicSparsityHook`` of :mod:`mmlk.engine.sparsity` applies it in
training. The published numbers of parameters and multiply-adds only count what remains. No weights were published.
"""
from typing import Any, Dict, Sequence

import torch
from torch import Tensor

from mmlk.registry import MODELS
from mmlk.reparam.peripheral import PeripheralLargeKernel, share_embedding

from .base import Arch, check_kernels, check_not_negative, check_per_stage, check_positive, resolve_arch
from .convnext import Block, ConvNeXt, arch_of


def _arch(third_stage: int, width: int, kernels: Sequence[int] = (51, 49, 47, 13), central: int = 5) -> Dict[str, Any]:
    return arch_of((3, 3, third_stage, 3), width, width_factor=1.3, kernel_sizes=tuple(kernels), central_kernel=central)


# Section 4.4 of the paper
ARCHS = {
    'T': _arch(9, 96),
    'S': _arch(27, 96),
    'B': _arch(27, 128),
    'B-101': _arch(27, 128, (101, 69, 67, 13), central=7),
}

_DEFAULTS = dict(layer_scale_init_value=1e-6, kernel_sizes=(51, 49, 47, 13), central_kernel=5, small_kernel=5,
                 conv_ratio=3 / 8, width_factor=1.0)
_REQUIRED = ('depths', 'dims')


class PartialBlock(Block):
    """The block of ConvNeXt with a token mixer for only the first ``mixed`` channels; section 4.3.

    Args:
        mixed: Number of channels of the token mixer.
        args: Arguments of :class:`Block`.
    """

    def __init__(self, mixed: int, *args):
        super().__init__(*args)
        self.mixed = mixed

    def mix(self, x: Tensor) -> Tensor:
        mixed, left = x[:, :self.mixed], x[:, self.mixed:]
        if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
            mixed = mixed.contiguous(memory_format=torch.channels_last)  # strides of a slice do not show it
        return torch.cat((super().mix(mixed), left), 1)


@MODELS.register_module()
class PeLK(ConvNeXt):
    """PeLK as a feature extractor: a wider ConvNeXt with very large, weight-sharing kernels on a part of the channels.

    As in ConvNeXt, ``norm_cfg`` only applies to the re-parameterized branches. All other norms are LayerNorms.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depths`` and ``dims`` (one per stage) and optionally
            ``layer_scale_init_value`` (0: no layer scale), ``kernel_sizes`` (one per stage), ``central_kernel`` (side
            of the centre in which weights are not shared), ``small_kernel`` (side of the parallel kernel; None: none),
            ``conv_ratio`` (share of the channels that are convolved) and ``width_factor`` (stage i has
            ``int(dims[i] * width_factor)`` channels).
        norm_cfg: Norm layer config of the small branches.
        merged: As in :class:`BaseBackbone`; the merged kernels are dense.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, channels[i], H // s, W // s), s = 4, 8, 16, 32. Rows and
        columns that do not fill a patch are cropped, as in ConvNeXt. H and W must be at least the s of the last stage.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """The arch as a full, checked dict, ``dims`` times ``width_factor``."""
        full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'PeLK')
        check_per_stage(full, 'kernel_sizes', *_REQUIRED)
        check_positive(full, *_REQUIRED)
        check_kernels(full, 'kernel_sizes', full['small_kernel'])
        check_kernels(dict(central_kernel=(full['central_kernel'], )), 'central_kernel')
        check_not_negative(full, 'layer_scale_init_value', 'conv_ratio', 'width_factor')
        full['dims'] = tuple(int(channels * full['width_factor']) for channels in full['dims'])
        if min(full['dims']) < 1:
            raise ValueError(f"width_factor {full['width_factor']} leaves no channels")
        ratio = full['conv_ratio']
        if ratio > 1 or int(min(full['dims']) * ratio) < 1:
            raise ValueError(f'conv_ratio must be at most 1 and leave channels to convolve, got {ratio}')
        return full

    def block(self, arch: Dict[str, Any], stage: int, index: int, drop_path: float, merged: bool) -> Block:
        """Block ``index`` of a stage of the completed arch."""
        channels = arch['dims'][stage]
        mixed = int(channels * arch['conv_ratio'])
        mixer = PeripheralLargeKernel(mixed, arch['kernel_sizes'][stage], arch['central_kernel'],
                                      arch['small_kernel'], self.norm_layer, merged)
        return PartialBlock(mixed, 'large_kernel', mixer, channels, drop_path, arch['layer_scale_init_value'])

    def finish(self) -> None:
        """Give each stage its one position embedding; then as every backbone."""
        if not self.merged:
            for stage in self.stages:
                share_embedding([block.large_kernel for block in stage])
        super().finish()
