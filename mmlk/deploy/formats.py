"""Writes networks to files that run without this toolbox: ONNX, TorchScript and PyTorch's exported programs.

The batch may have any size, unless it is fixed, and the image where that is asked for. ONNX files are written from
exported programs, in which two kinds of operators become plain ones first:

- Adaptive average pooling to other than one cell, of which torch 2.12 writes, where the size of the map is not fixed,
  a file that gives wrong numbers without a word. It is a product with a matrix along each axis.
- Fourier transforms over a map, which hardly anything but onnxruntime runs, and that slowly and at fixed sizes only.
  They are products with matrices of sines and cosines.
"""
import json
import math
import warnings
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from .detection_ops import onnx_translations

Bounds = Tuple[int, Optional[int]]
RunBatch = Callable[[Tensor], List[Tensor]]

METADATA = 'metadata.json'  # beside the graph, in files of PyTorch


class Format(NamedTuple):
    """A file format.

    Args:
        suffix: Suffix of the file name.
        runtime: Name of the runtime with which files are checked.
        packages: Packages that the format needs.
    """
    suffix: str
    runtime: str
    packages: Tuple[str, ...] = ()


FORMATS = {
    'onnx': Format('.onnx', 'onnxruntime', ('onnx', 'onnx_ir', 'onnxscript', 'onnxruntime')),
    'torchscript': Format('.pt', 'TorchScript'),
    'exported-program': Format('.pt2', 'the exported program'),
}
OPSETS = (18, 23)  # of torch 2.12's exporter, whose operators are written in 18
LIMIT = 2**31  # bytes of an ONNX file, which is one protobuf message
# Minimum height and width, in pixels, for a file that takes several sizes. For smaller images the last map has a side
# of less than three pixels, for which PyTorch's exporter makes special cases.
LEAST_SIDE = 96
ANY_SIDE: Sequence[Bounds] = ((LEAST_SIDE, None), ) * 2


def lacking(format: str) -> List[str]:
    """Returns the packages that a format needs and that are not installed."""
    return [package for package in FORMATS[format].packages if find_spec(package) is None]


class Graph(NamedTuple):
    """A network to write to a file.

    Args:
        module: The network, in eval mode.
        example: An example input of the module, (N, C, H, W): two images or more, or one if it takes one at a time.
        step: The file accepts heights and widths that are multiples of this number of pixels. None for a file that
            accepts only the height and width of the example.
        input_name: The name of the input.
        output_names: The names of the outputs, in their order.
        metadata: Facts to store in the file.
        fixed_batch: Whether the file accepts only the number of images of the example, and not any number.
        bounds: The smallest and largest height, and the same of the width, if there is a step; None for no largest.
    """
    module: nn.Module
    example: Tensor
    step: Optional[int]
    input_name: str
    output_names: Sequence[str]
    metadata: Mapping[str, object]
    fixed_batch: bool = False
    bounds: Sequence[Bounds] = ANY_SIDE

    def text(self) -> Dict[str, str]:
        """Returns the metadata as text, which all three formats can store. Other types are written as JSON."""
        return {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.metadata.items()}


class ExportFailed(ValueError):
    """PyTorch could not export the graph. The message contains its error."""


def write_graph(graph: Graph, path: str, format: str, opset: Optional[int] = None) -> None:
    """Write a file in a format of ``FORMATS``; ``opset`` is of ONNX, the exporter's own when None.

    Raises:
        ExportFailed: The graph could not be drawn, or the format has no place for it.
    """
    with _quiet(), torch.no_grad():
        if format == 'torchscript':
            with _reported('traced'):
                traced = torch.jit.freeze(torch.jit.trace(graph.module, graph.example, check_trace=False))
            torch.jit.save(traced, path, _extra_files={METADATA: json.dumps(graph.text())})
            return
        program = _program(graph)
        if format == 'exported-program':
            torch.export.save(program, path, extra_files={METADATA: json.dumps(graph.text())})
        else:
            _write_onnx(graph, program, path, opset)


def open_exported(path: str, format: str) -> RunBatch:
    """Open an exported file.

    Args:
        path: The file.
        format: The key of its format in ``FORMATS``.

    Returns:
        A function from images (N, C, H, W), float32, to the list of outputs.
    """
    with _quiet():
        if format == 'onnx':
            import onnxruntime
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = torch.get_num_threads()
            session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
            source = session.get_inputs()[0].name
            return lambda images: [torch.from_numpy(out) for out in session.run(None, {source: images.numpy()})]
        module = torch.jit.load(path) if format == 'torchscript' else torch.export.load(path).module()

    def run(images: Tensor) -> List[Tensor]:
        with torch.no_grad():
            return list(module(images))

    return run


def opset_of(path: str) -> int:
    """Returns the opset version of an ONNX file."""
    import onnx
    model = onnx.load(path, load_external_data=False)
    return next(entry.version for entry in model.opset_import if entry.domain in ('', 'ai.onnx'))


@contextmanager
def _quiet() -> Iterator[None]:
    """A context manager that suppresses warnings of tracing and of deprecated functions."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield


@contextmanager
def _reported(how: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of any kind: it is raised by an operator, a model or a compiler
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = f'{type(error).__name__}: {" ".join(lines[:2])[:400]}'
        raise ExportFailed(f'the model could not be {how}: {reason}') from error


def symbolic_sizes(example: Tensor, step: Optional[int], bounds: Sequence[Bounds] = ANY_SIDE,
                   batch: bool = True) -> Tuple[Dict[int, Any], Tensor]:
    """Returns what ``torch.export`` needs to record a network for several sizes of image.

    Args:
        example: (N, C, H, W).
        step: Heights and widths are multiples of this number of pixels; None if they are fixed.
        bounds: The smallest and largest height, and the same of the width; None for no largest.
        batch: Whether the number of images is free.

    Returns:
        The free sizes by axis, and zeros in place of the example, of a size for which nothing is a special case.
    """
    sizes: Dict[int, Any] = {0: torch.export.Dim('batch')} if batch else {}
    if not step:
        return sizes, example
    sides = []
    for axis, name, (least, most) in zip((2, 3), ('height', 'width'), bounds):
        fewest, largest = -(-least // step), None if most is None else most // step
        blocks = torch.export.Dim(name, min=fewest, max=largest)
        sizes[axis] = step * blocks if step > 1 else blocks
        count = max(-(-max(example.shape[axis], 2 * LEAST_SIDE) // step), fewest)
        sides.append(step * (count if largest is None else min(count, largest)))
    return sizes, example.new_zeros(*example.shape[:2], *sides)


def _program(graph: Graph) -> torch.export.ExportedProgram:
    sizes, example = symbolic_sizes(graph.example, graph.step, graph.bounds,
                                    not graph.fixed_batch and len(graph.example) > 1)
    with _reported('exported for images of any size' if graph.step else 'exported'):
        return torch.export.export(graph.module, (example, ), dynamic_shapes=(sizes, ), strict=False)


def _write_onnx(graph: Graph, program: torch.export.ExportedProgram, path: str, opset: Optional[int]) -> None:
    parameters = sum(value.numel() * value.element_size() for value in program.state_dict.values())
    if parameters >= LIMIT:
        raise ExportFailed(f'an ONNX file holds less than 2 GiB, and the weights are {parameters / 2**30:.1f} GiB')
    with _reported('written as ONNX'):
        plain = program.run_decompositions(_plain_operators(program))
        written = torch.onnx.export(plain, dynamo=True, opset_version=opset, input_names=[graph.input_name],
                                    output_names=list(graph.output_names), verbose=False,
                                    custom_translation_table=onnx_translations())
    model = written.model
    sizes = zip(model.graph.inputs[0].shape, ('batch', 'channels', 'height', 'width'))
    names = {str(size): name for size, name in sizes if not isinstance(size, int)}
    for value in (*model.graph.inputs, *model.graph.outputs):
        _name_sizes(value, names)
    model.metadata_props.update(graph.text())
    written.save(path, external_data=False)


def _name_sizes(value, names: Mapping[str, str]) -> None:
    """Renames the dynamic dimensions of an input or output, which the exporter names by symbols."""
    import onnx_ir
    value.shape = onnx_ir.Shape([size if isinstance(size, int) else names.get(str(size), 'detections' if index == 0 else
                                                                              str(size))
                                 for index, size in enumerate(value.shape)])


def _plain_operators(program: torch.export.ExportedProgram) -> Dict[Any, Callable]:
    """Decompositions of those operators that the program has and that these stand for."""
    def over_the_map(node) -> bool:
        arguments = {**dict(zip(('x', 's', 'dim', 'norm'), node.args)), **node.kwargs}
        whole = node.target is aten.fft_irfft2.default or arguments.get('s') is None
        return whole and arguments.get('norm') == 'ortho' and list(arguments.get('dim', (-2, -1))) in ([-2, -1], [2, 3])

    aten = torch.ops.aten
    transforms: Dict[Any, Callable] = {aten.fft_rfft2.default: _rfft2, aten.fft_irfft2.default: _irfft2}
    found = [node for node in program.graph.nodes if node.target in transforms]
    pooling = {aten.adaptive_avg_pool2d.default: _adaptive_avg_pool2d}
    return {**pooling, **transforms} if all(map(over_the_map, found)) else pooling


def _cells(length: int, cells: int, like: Tensor) -> Tensor:
    """Returns the weight of each element in each cell of an adaptive average pooling, (cells, length)."""
    position = torch.arange(length, device=like.device)
    cell = torch.arange(cells, device=like.device)[:, None]
    start, end = cell * length // cells, ((cell + 1) * length + cells - 1) // cells
    return ((position >= start) & (position < end)).to(like.dtype) / (end - start).to(like.dtype)


def _adaptive_avg_pool2d(x: Tensor, output_size: Sequence[int]) -> Tensor:
    height, width = output_size
    if height == width == 1:
        return x.mean((-2, -1), keepdim=True)
    return _cells(x.shape[-2], height, x) @ x @ _cells(x.shape[-1], width, x).mT


def _circle(frequencies: int, length: int, like: Tensor) -> Tuple[Tensor, Tensor]:
    """Returns cos and sin of 2 pi k n / length, divided by sqrt(length); both (frequencies, length)."""
    turns = torch.arange(frequencies, device=like.device)[:, None] * torch.arange(length, device=like.device)
    angles = (turns - turns // length * length).to(like.dtype) * (2 * math.pi / length)  # small, and so exact
    return angles.cos() / length**0.5, angles.sin() / length**0.5


def _rfft2(x: Tensor, s: None = None, dim: Sequence[int] = (-2, -1), norm: str = 'ortho') -> Tensor:
    height, width = x.shape[-2:]
    cos, sin = _circle(width // 2 + 1, width, x)
    real, imaginary = x @ cos.mT, -(x @ sin.mT)
    cos, sin = _circle(height, height, x)
    return torch.complex(cos @ real + sin @ imaginary, cos @ imaginary - sin @ real)


def _irfft2(spectrum: Tensor, s: Sequence[int], dim: Sequence[int] = (-2, -1), norm: str = 'ortho') -> Tensor:
    height, width = s
    real, imaginary = torch.view_as_real(spectrum).unbind(-1)
    cos, sin = _circle(height, height, real)
    real, imaginary = cos @ real - sin @ imaginary, cos @ imaginary + sin @ real
    column = torch.arange(width // 2 + 1, device=real.device)
    pairs = torch.where((column == 0) | (2 * column == width), 1.0, 2.0).to(real.dtype)  # the other half is mirrored
    cos, sin = _circle(width // 2 + 1, width, real)
    return (real * pairs) @ cos - (imaginary * pairs) @ sin
