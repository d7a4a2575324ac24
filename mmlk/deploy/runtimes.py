"""What :mod:`mmlk.analysis.latency` measures beside PyTorch's own forward: ``optimize``, ONNX Runtime and OpenVINO.

ONNX Runtime and OpenVINO run the same file, on the CPU, on as many threads as PyTorch. They are optional packages:
``pip install mmlk[runtimes]``.
"""
import threading
from functools import cache, partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor

from mmlk import __version__
from mmlk.analysis.latency import Outputs, RuntimeBuilder
from mmlk.reparam import merge
from mmlk.reparam.folding import fold_norms

from .formats import Graph, write_graph

if TYPE_CHECKING:
    import onnxruntime
    import openvino

Call = Callable[[], Sequence[Tensor]]

_core_lock = threading.Lock()  # cache does not keep a second thread from calling the function too

_WRITER = ('onnx', 'onnx_ir', 'onnxscript')
PACKAGES: Dict[str, Tuple[str, ...]] = {
    'optimized': (),
    'onnxruntime': ('onnxruntime', *_WRITER),
    'openvino': ('openvino', *_WRITER),
}


def why_not(runtime: str) -> Optional[str]:
    """Returns which packages of a runtime are not installed and how to install them, as text; None if all are."""
    missing = [package for package in PACKAGES[runtime] if find_spec(package) is None]
    if not missing:
        return None
    return (f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            f"pip install {' '.join(missing)}")


def version(runtime: str) -> str:
    """Returns the version of an installed runtime, without the name of its build."""
    return __version__ if runtime == 'optimized' else metadata.version(runtime)


class ExportedFiles:
    """ONNX files of networks, each written when it is first asked for.

    Args:
        folder: An existing folder for them.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._written: Dict[Outputs, Union[Path, Exception]] = {}

    def path(self, network: Outputs, images: Tensor) -> Path:
        """Returns the file of a network for images of this shape, merged and with BatchNorm folded where possible.

        Args:
            network: The network, in eval mode. It is not changed. Each network has one file.
            images: Example input, (N, C, H, W).

        Raises:
            ValueError: The branches cannot be merged, or the network cannot be exported. A second call raises the same
                error without another attempt.
        """
        if network not in self._written:
            path = self._folder / f'{len(self._written)}.onnx'
            try:
                _write(network, images, path)
                self._written[network] = path
            except Exception as error:  # of any kind: it is raised by a model, PyTorch's exporter or the disk
                self._written[network] = error.with_traceback(None)  # whose frames would hold the copy of the network
        found = self._written[network]
        if isinstance(found, Exception):
            raise found
        return found


def _write(network: Outputs, images: Tensor, path: Path) -> None:
    subject = merge(network).requires_grad_(False)
    try:
        fold_norms(subject, images)
    except Exception:  # torch.export cannot record it; unless writing the file fails as well, its norms stay
        pass
    with torch.no_grad():
        names = [f'output_{index}' for index in range(len(subject(images)))]
    write_graph(Graph(subject, images, None, 'images', names, {}, fixed_batch=True), str(path), 'onnx')


def open_onnxruntime(path: Path) -> 'onnxruntime.InferenceSession':
    """Returns a session on as many threads as PyTorch, which sleep between calls and so disturb no other call."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def open_openvino(path: Path, bf16: bool = False) -> 'openvino.CompiledModel':
    """Returns a model that is compiled for the shortest latency on as many threads as PyTorch.

    Args:
        path: An ONNX file.
        bf16: Whether to compute in bfloat16, or else in float32 throughout.

    Raises:
        ValueError: OpenVINO does not compute in bfloat16 on this processor.
    """
    with _core_lock:
        core = _core()
    if bf16 and 'BF16' not in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        raise ValueError('OpenVINO does not compute in bfloat16 on this processor')
    settings: Dict[str, Any] = dict(
        PERFORMANCE_HINT='LATENCY', NUM_STREAMS=1, INFERENCE_NUM_THREADS=torch.get_num_threads(),
        INFERENCE_PRECISION_HINT='bf16' if bf16 else 'f32', CACHE_DIR='')  # '' is no cache
    return core.compile_model(str(path), 'CPU', settings)


@cache
def _core() -> 'openvino.Core':
    """Returns OpenVINO's core, one for the process.

    While a core's CPU plugin exists, OpenVINO 2026.4 gives the thread its own stack for signal handlers. Then it puts
    back the one from before. If the first of two plugins ends first, the second puts back the stack of the first,
    whose memory is gone: the next signal with a handler in Python (Ctrl-C, or the end of a data loader's worker) ends
    the process with a segmentation fault.
    """
    import openvino
    return openvino.Core()


def _optimized(network: Outputs, images: Tensor, bf16: bool) -> Call:
    from mmlk.deploy import optimize
    fast = Outputs(optimize(network.network, images, dtype=torch.bfloat16 if bf16 else None), network.kind)

    def call() -> Sequence[Tensor]:
        with torch.no_grad():
            return fast(images)

    return call


def _onnxruntime(files: ExportedFiles, network: Outputs, images: Tensor, bf16: bool) -> Call:
    session = open_onnxruntime(files.path(network, images))
    inputs = {'images': images.numpy()}
    return lambda: [torch.from_numpy(out) for out in session.run(None, inputs)]


def _openvino(files: ExportedFiles, network: Outputs, images: Tensor, bf16: bool) -> Call:
    request = open_openvino(files.path(network, images), bf16).create_infer_request()
    inputs = [images.numpy()]

    def call() -> Sequence[Tensor]:
        outputs = request.infer(inputs, share_inputs=True, share_outputs=True)  # neither is copied
        return [torch.from_numpy(out) for out in outputs.values()]

    return call


def builders(folder: Path) -> Dict[str, RuntimeBuilder]:
    """Returns the runtimes by name, as :func:`mmlk.analysis.latency.measure_latency` takes them.

    Args:
        folder: An existing folder, for one ONNX file of each network. It is needed as long as the runtimes are.
    """
    files = ExportedFiles(folder)
    return {'optimized': _optimized, 'onnxruntime': partial(_onnxruntime, files), 'openvino': partial(_openvino, files)}
