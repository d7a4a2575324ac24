"""Weights, comparisons and processes that several tests share."""
import multiprocessing
import os
import runpy
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Dict, Sequence, Tuple

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
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


def same_detections(found: Sequence[Tensor], expected: Sequence[Tensor], pixels: float) -> Tensor:
    """Compare detections (boxes, scores, labels) in any order, because the order follows from scores that may be equal
    but for rounding.

    Each one that is expected is paired with one that was found: of the same label, of a score within 1e-4, and with
    sides at most ``pixels`` apart.

    Returns:
        For each expected detection the index of its partner.
    """
    (boxes, scores, labels), (their_boxes, their_scores, their_labels) = found, expected
    assert len(boxes) == len(their_boxes) and torch.isfinite(boxes).all()
    torch.testing.assert_close(scores.sort().values, their_scores.sort().values, rtol=1e-4, atol=1e-5)
    apart = torch.cdist(their_boxes, boxes, p=float('inf'))
    alike = (their_labels[:, None] == labels) & ((their_scores[:, None] - scores).abs() <= 1e-4) & (apart < pixels)
    rows, places = linear_sum_assignment(~alike.numpy())
    lonely = [row for row, place in zip(rows, places) if not alike[row, place]]
    assert not lonely, (f'no partner for {len(lonely)} of {len(boxes)} detections, the first at '
                        f'{their_boxes[lonely[0]].tolist()}; the nearest is {apart[lonely[0]].min():.3f} pixels apart')
    return torch.as_tensor(places)


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


def run_script(script: Path, *arguments: object, cwd: Path, **env: str) -> Tuple[int, str]:
    """Run a Python script in a process of its own.

    The process is forked from one that has imported PyTorch, OpenMMLab and mmlk and has done nothing else. These
    imports take several seconds, most of what a small training takes. A test for which it matters what is imported, or
    when, starts an interpreter instead.

    Returns:
        The exit code, minus the number of the signal if one ended the process; and what the script printed, standard
        output first.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.utils', 'matplotlib.pyplot', 'mmlk.backbones', 'mmlk.cli.prepare',
                                    'mmlk.engine', 'mmseg.apis', 'mmdet.apis'])
    with tempfile.TemporaryDirectory() as folder:
        outputs = [os.path.join(folder, name) for name in ('stdout', 'stderr')]
        process = context.Process(target=_run_as_main, args=(
            [str(script), *map(str, arguments)], str(cwd), {**os.environ, 'OMP_NUM_THREADS': '1', **env}, outputs))
        process.start()
        try:
            process.join()
        finally:
            process.kill()  # where the test was ended before it
        return process.exitcode, ''.join(Path(path).read_text() for path in outputs)


def _run_as_main(argv: Sequence[str], cwd: str, env: Dict[str, str], outputs: Sequence[str]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for descriptor, path in enumerate([os.devnull, *outputs]):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    torch.set_num_threads(1)
    sys.argv = list(argv)
    runpy.run_path(argv[0], run_name='__main__')
