"""Which architecture a set of tensors belongs to, for hints and for ``tools/weights.py inspect``."""
import re
from typing import Mapping, Optional

from torch import Tensor

_LARGE = re.compile(r'(?:backbone\.)?stages\.(\d+)\.blocks\.(\d+)\.large_kernel\.'
                    r'(lkb_origin\.conv|lkb_reparam)\.weight')


def identify(tensors: Mapping[str, Tensor]) -> Optional[str]:
    """A line such as 'RepLKNet-31B, training form', or None for what is not a RepLKNet."""
    from mmlk.backbones.replknet import ARCHS
    kernels, channels, layers, merged = {}, {}, {}, False
    for key, value in tensors.items():
        match = _LARGE.fullmatch(key)
        output = tensors.get(key[:key.index('large_kernel')] + 'pw2.conv.weight') if match else None
        if output is None or value.ndim != 4:
            continue
        stage = int(match.group(1))
        kernels[stage], channels[stage] = value.shape[-1], output.shape[0]
        layers[stage] = max(layers.get(stage, 0), int(match.group(2)) // 2 + 1)
        merged = match.group(3) == 'lkb_reparam'
    if not kernels:
        return None
    order = sorted(kernels)
    shape = {'large_kernel_sizes': tuple(kernels[s] for s in order),
             'layers': tuple(layers[s] for s in order),
             'channels': tuple(channels[s] for s in order)}
    # a backbone without its last stages is still of its arch
    names = [name for name, arch in ARCHS.items()
             if all(tuple(arch[key])[:len(order)] == value for key, value in shape.items())]
    told = f'RepLKNet-{names[0]}' if names else 'RepLKNet with ' + ', '.join(
        f"{key} {'-'.join(map(str, value))}" for key, value in shape.items())
    return f"{told}, {'merged' if merged else 'training'} form"
