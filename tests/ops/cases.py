"""Shapes and tolerances that the tests of the operator share."""
import torch

from mmlk.ops import list_backends
from mmlk.ops.backends import ConvProblem

SMALL = ConvProblem(torch.device('cpu'), torch.float32, 2, 8, 16, 16, 7, 7)
ON_CPU = [backend.name for backend in list_backends() if backend.can_run(SMALL)[0]]

# Ratio of norms, of an output or a gradient, to the float64 reference on the same rounded numbers.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 4e-3}

SHAPES = [  # N, C, H, W, kh, kw
    (2, 3, 12, 17, 7, 7),
    (1, 4, 40, 24, 31, 31),
    (2, 2, 9, 14, 13, 13),
    (1, 3, 8, 8, 31, 31),
    (1, 2, 1, 1, 7, 7),
    (2, 3, 11, 10, 4, 6),
    (1, 3, 3, 5, 8, 12),
    (1, 2, 20, 9, 51, 5),
    (1, 2, 9, 20, 5, 51),
    (3, 1, 16, 16, 1, 1),
    (1, 2, 1, 30, 3, 9),
    (2, 4, 32, 32, 15, 15),  # by which oneDNN hangs in half precision in channels_last
]


def tensors(shape, dtype=torch.float32):
    """Input, weight and bias of a case, leaves that require gradients."""
    n, c, h, w, kh, kw = shape
    return [torch.randn(s).to(dtype).requires_grad_() for s in ((n, c, h, w), (c, 1, kh, kw), (c, ))]
