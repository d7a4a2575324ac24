"""Weights and comparisons that several tests share."""
import zlib
from typing import Tuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn


def values_of(name: str, shape: Tuple[int, ...], seed: int = 0) -> Tensor:
    """What :func:`fill` gives a tensor, float64."""
    rng = np.random.RandomState(zlib.crc32(name.encode()) ^ seed)
    norm_like = len(shape) == 1
    if name.endswith('running_var'):
        values = rng.uniform(0.5, 1.5, shape)
    elif norm_like and name.endswith('weight'):  # below 1, so that deep residual sums stay in range
        values = rng.uniform(0.25, 0.75, shape)
    elif norm_like:
        values = rng.standard_normal(shape) * 0.1
    else:
        values = rng.standard_normal(shape) / np.sqrt(max(1, np.prod(shape[1:])))
    return torch.from_numpy(np.asarray(values))


def fill(module: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every parameter and buffer from its name and the seed, norms' statistics and affine terms included.

    ``RandomState`` gives the same numbers on every numpy, so a fixture needs to hold outputs only.
    """
    for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        if tensor.dtype.is_floating_point:
            tensor.data.copy_(values_of(name, tuple(tensor.shape), seed))
    return module


def image(*shape: int, seed: int = 0) -> Tensor:
    """A seeded normal tensor, float32."""
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape)).float()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected, in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    assert actual.shape == expected.shape, f'{tuple(actual.shape)} is not {tuple(expected.shape)}'
    return ((actual - expected).norm() / expected.norm().clamp_min(1e-30)).item()


def assert_onnx_equals(net: nn.Module, path: str, example: Tensor, *others: Tensor) -> None:
    """Write the maps of a backbone as ONNX for any size, and compare those of other images with the backbone's."""
    from mmlk.deploy import formats
    pytest.importorskip('onnxscript')
    runtime = pytest.importorskip('onnxruntime')
    with torch.no_grad():
        names = [f'map{i}' for i in range(len(net(example)))]
    graph = formats.Graph(net, example, 1, 'images', names, {})
    formats.write_graph(graph, path, 'onnx', opset=18)
    session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
    for images in others:
        with torch.no_grad():
            expected = net(images)
        for ours, theirs in zip(session.run(None, {'images': images.numpy()}), expected, strict=True):
            assert relative_error(torch.from_numpy(ours), theirs) < 1e-5
