"""SLaK: More ConvNets in the 2020s: Scaling up Kernels Beyond 51x51 using Sparsity, Liu et al., ICLR 2023.

arXiv:2207.03620. Official code: https://github.com/VITA-Group/SLaK (MIT). Parameter names are the official ones. The
sparsity is not a part of the network: ``DynamicSparsityHook`` of :mod:`mmlk.engine.sparsity` applies it in training.
"""
from typing import Any, Dict

from mmlk.registry import MODELS
from mmlk.reparam import ReparamLargeKernel
from mmlk.reparam.stripes import StripedLargeKernel

from .base import (Arch, check_flags, check_kernels, check_not_negative, check_per_stage, check_positive,
                   check_sequences, is_integer, resolve_arch)
from .convnext import Block, ConvNeXt, arch_of


def _arch(third_stage: int, width: int, first_kernel: int = 51) -> Dict[str, Any]:
    return arch_of((3, 3, third_stage, 3), width, width_factor=1.3, Decom=True,
                   kernel_size=(first_kernel, first_kernel - 2, first_kernel - 4, 13, 5))


# From the tables of the official README, where T-31 and T-61 are trained for 120 epochs.
ARCHS = {
    'T': _arch(9, 96),
    'S': _arch(27, 96),
    'B': _arch(27, 128),
    'T-31': _arch(9, 96, first_kernel=31),
    'T-61': _arch(9, 96, first_kernel=61),
}

_DEFAULTS = dict(layer_scale_init_value=1e-6, kernel_size=(51, 49, 47, 13, 5), width_factor=1.0, Decom=False)
_REQUIRED = ('depths', 'dims')


@MODELS.register_module()
class SLaK(ConvNeXt):
    """SLaK as a feature extractor: a wider ConvNeXt in which two long, narrow kernels replace each 7x7 kernel.

    As in ConvNeXt, ``norm_cfg`` only applies to the re-parameterized branches. All other norms are LayerNorms.

    Args:
        arch: A name of ``ARCHS``, or a dict with ``depths`` and ``dims`` (one per stage) and optionally
            ``layer_scale_init_value`` (0: no layer scale), ``kernel_size`` (one per stage, then the small kernel),
            ``width_factor`` (stage i has ``int(dims[i] * width_factor)`` channels) and ``Decom``: if True, the
            sizes K (large) and k (small) give two kernels, K x k and k x K; otherwise one K x K (``lkb_origin``). In
            the latter case there is no small branch if k is None or not smaller than K.
        norm_cfg: Norm layer config of the re-parameterized branches; SyncBN in the paper.
        merged: As in :class:`BaseBackbone`; the form is that of ``dense=True`` if ``Decom`` is False.

    All other arguments are those of :class:`BaseBackbone`.

    Shape:
        Input: (N, in_channels, H, W). Output: a tuple of (N, channels[i], H // s, W // s), s = 4, 8, 16, 32. Rows and
        columns that do not fill a patch are cropped, as officially. H and W must be at least the s of the last stage.

    Raises:
        ValueError: An argument is not valid; the message says which one and what is allowed.
    """

    @staticmethod
    def complete(arch: Arch) -> Dict[str, Any]:
        """Checks the arch and returns it with all default values, and with ``dims`` multiplied by ``width_factor``."""
        full = resolve_arch(arch, ARCHS, _REQUIRED, _DEFAULTS, 'SLaK')
        check_per_stage(full, *_REQUIRED)
        check_positive(full, *_REQUIRED)
        check_sequences(full, 'kernel_size')
        check_not_negative(full, 'layer_scale_init_value', 'width_factor')
        check_flags(full, 'Decom')
        stages, width = len(full['dims']), full['width_factor']
        if len(full['kernel_size']) != stages + 1:
            raise ValueError('kernel_size must have one entry per stage and one for the small kernel, '
                             f"got {len(full['kernel_size'])} for {stages} stages")
        *kernels, small = full['kernel_size']
        if full['Decom'] and small is None:
            raise ValueError('Decom needs a small kernel, the breadth of the stripes, last in kernel_size')
        check_kernels(dict(kernel_size=kernels), 'kernel_size')
        if full['Decom'] or small is not None and not (is_integer(small) and small >= max(kernels)):
            check_kernels(dict(kernel_size=(small, )), 'kernel_size')
        if full['Decom'] and small > min(kernels):
            raise ValueError(f'kernel_size: the small kernel {small} is larger than the large kernel {min(kernels)} '
                             'beside it')
        full['dims'] = tuple(int(channels * width) for channels in full['dims'])
        if min(full['dims']) < 1:
            raise ValueError(f'width_factor {width} leaves no channels')
        return full

    def block(self, arch: Dict[str, Any], stage: int, index: int, drop_path: float, merged: bool) -> Block:
        """Returns block ``index`` of a stage. ``arch`` is what :meth:`complete` returns."""
        channels, kernel, small = arch['dims'][stage], arch['kernel_size'][stage], arch['kernel_size'][-1]
        if arch['Decom']:
            mixer = StripedLargeKernel(channels, kernel, small, self.norm_layer, merged)
        else:
            small = small if small is not None and small < kernel else None
            mixer = ReparamLargeKernel(channels, kernel, small, self.norm_layer, merged)
        return Block('large_kernel', mixer, channels, drop_path, arch['layer_scale_init_value'])
