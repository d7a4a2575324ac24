"""Networks in ONNX Runtime and in OpenVINO: their outputs, their settings, and the file that they share."""
import importlib.util
import subprocess
import sys
import time
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmlk.analysis.latency import LatencyNetwork, Outputs, Variant, latency_from_config, measure_latency
from mmlk.backbones.replknet import RepLKNet
from mmlk.deploy import runtimes
from mmlk.ops import benchmark
from mmlk.reparam import merge
from tests.test_training import CONFIGS, shrink_model
from tests.utils import fill

CPU = torch.device('cpu')
ARCH = dict(large_kernel_sizes=[7, 5], layers=[1, 1], channels=[8, 16], small_kernel=3)
needs = {name: pytest.mark.skipif(runtimes.why_not(name) is not None, reason=str(runtimes.why_not(name)))
         for name in runtimes.PACKAGES}
EACH = [pytest.param('onnxruntime', marks=needs['onnxruntime']), pytest.param('openvino', marks=needs['openvino'])]
MODELS = 'demo/upernet_replknet-tiny_ade20k.py', 'fcos_replknet31b_coco.py', 'demo/mask_rcnn_replknet-tiny_coco.py'


@pytest.fixture
def network():
    """A backbone of two maps, in eval mode, and its images."""
    backbone = fill(RepLKNet(ARCH, out_indices=(0, 1))).eval()
    return Outputs(backbone, 'backbone').eval(), torch.randn(1, 3, 64, 32)


@pytest.fixture
def two_threads():
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


def close(found, expected, tolerance):
    assert [out.shape for out in found] == [out.shape for out in expected]
    for ours, theirs in zip(found, expected):
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize('name', EACH)
def test_outputs_equal_pytorch(name, network, tmp_path):
    network, images = network
    call = runtimes.builders(tmp_path)[name](network, images, False)
    with torch.no_grad():
        expected = network(images)
    assert len(expected) == 2 and expected[0].abs().max() > 0
    close(call(), expected, 1e-5)
    close(call(), expected, 1e-5)
    assert not network.network.stages[0].blocks[0].large_kernel.merged  # the network itself is as it was


SIGNALS = '''
import os, signal, sys
from pathlib import Path
from mmlk.deploy.runtimes import open_openvino
handled = []
signal.signal(signal.SIGUSR1, lambda *_: handled.append(True))
first = open_openvino(Path(sys.argv[1]))
second = open_openvino(Path(sys.argv[1]))
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
print('handled', handled)
'''


@needs['openvino']
def test_signals_are_handled_after_models_are_gone_in_the_order_of_their_making(network, tmp_path, repo):
    """As the end of a data loader's worker is, in a process that has measured OpenVINO before."""
    path = runtimes.ExportedFiles(tmp_path).path(*network)
    done = subprocess.run([sys.executable, '-X', 'faulthandler', '-c', SIGNALS, str(path)], cwd=repo, text=True,
                          capture_output=True)
    assert (done.returncode, done.stdout) == (0, 'handled [True]\n'), done.stderr


def test_threads_that_open_models_at_the_same_time_share_one_core(monkeypatch):
    made = []

    class Core:
        def __init__(self):
            made.append(self)
            time.sleep(0.2)

        def compile_model(self, *args):
            return self

    monkeypatch.setitem(sys.modules, 'openvino', types.SimpleNamespace(Core=Core))
    runtimes._core.cache_clear()
    try:
        with ThreadPoolExecutor(4) as pool:
            models = list(pool.map(runtimes.open_openvino, ['a.onnx'] * 4))
    finally:
        runtimes._core.cache_clear()
    assert models == made * 4


@needs['openvino']
def test_openvino_computes_in_the_precision_that_is_asked_for(network, tmp_path, two_threads):
    import openvino
    network, images = network
    path = runtimes.ExportedFiles(tmp_path).path(network, images)
    if 'BF16' not in openvino.Core().get_property('CPU', 'OPTIMIZATION_CAPABILITIES'):
        with pytest.raises(ValueError, match='does not compute in bfloat16 on this processor'):
            runtimes.open_openvino(path, bf16=True)
        return
    for bf16, name in ((False, 'float32'), (True, 'bfloat16')):
        compiled = runtimes.open_openvino(path, bf16)
        assert name in str(compiled.get_property('INFERENCE_PRECISION_HINT'))
    call = runtimes.builders(tmp_path)['openvino'](network, images, True)
    with torch.no_grad():
        expected = network(images)
    close(call(), expected, 0.1)
    assert max((a - b).abs().max() / b.abs().max() for a, b in zip(call(), expected)) > 1e-4


@needs['openvino']
def test_openvino_has_pytorchs_threads_in_one_stream(network, tmp_path, two_threads):
    network, images = network
    compiled = runtimes.open_openvino(runtimes.ExportedFiles(tmp_path).path(network, images))
    found = {name: compiled.get_property(name) for name in ('INFERENCE_NUM_THREADS', 'NUM_STREAMS')}
    assert found == dict(INFERENCE_NUM_THREADS=2, NUM_STREAMS=1)
    assert 'LATENCY' in str(compiled.get_property('PERFORMANCE_HINT'))
    torch.set_num_threads(1)
    assert runtimes.open_openvino(tmp_path / '0.onnx').get_property('INFERENCE_NUM_THREADS') == 1
    assert [path.name for path in tmp_path.iterdir()] == ['0.onnx']  # no cache beside it


@needs['onnxruntime']
def test_onnxruntime_has_pytorchs_threads_and_they_sleep(network, tmp_path, two_threads):
    network, images = network
    session = runtimes.open_onnxruntime(runtimes.ExportedFiles(tmp_path).path(network, images))
    options = session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry('session.intra_op.allow_spinning') == '0'
    assert session.get_providers() == ['CPUExecutionProvider']


@needs['onnxruntime']
def test_the_file_is_merged_folded_and_of_one_size(network, tmp_path):
    import onnx
    network, images = network
    graph = onnx.load(runtimes.ExportedFiles(tmp_path).path(network, images)).graph
    kinds = [node.op_type for node in graph.node]
    assert 'BatchNormalization' not in kinds
    assert kinds.count('Conv') == sum(isinstance(layer, nn.Conv2d) for layer in merge(network).modules())
    assert [size.dim_value for size in graph.input[0].type.tensor_type.shape.dim] == [1, 3, 64, 32]


def test_a_network_has_one_file_and_fails_once(network, tmp_path, monkeypatch):
    network, images = network
    written = []

    def write(graph, path, format):
        written.append(path)
        if len(written) > 1:
            raise ValueError('no such operator')

    monkeypatch.setattr(runtimes, 'write_graph', write)
    files = runtimes.ExportedFiles(tmp_path)
    assert files.path(network, images) == files.path(network, images) == tmp_path / '0.onnx'
    other = Outputs(nn.Conv2d(3, 4, 1), 'backbone').eval()
    for _ in range(2):
        with pytest.raises(ValueError, match='no such operator'):
            files.path(other, images)
    assert written == [str(tmp_path / '0.onnx'), str(tmp_path / '1.onnx')]


@needs['onnxruntime']
def test_a_network_that_cannot_be_exported_is_a_failed_row(monkeypatch, tmp_path):
    class Stubborn(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) if x.sum() > -1e9 and str(x)[:6] == 'tensor' else x  # values decide

    monkeypatch.setattr(benchmark, 'timed', lambda call, device: (call(), 1.)[1])
    network = LatencyNetwork('stubborn', lambda: Stubborn(3, 4, 1))
    variants = [Variant(), Variant(runtime='onnxruntime')]
    fp32, file = measure_latency([network], [network.build()], variants, 'inference', (16, 16), 1, CPU, 1, 1,
                                 runtimes=runtimes.builders(tmp_path))
    assert fp32.difference == (0, 0) and not fp32.failed
    assert file.failed.startswith('ExportFailed: the model could not be exported: ')


@pytest.mark.parametrize('name', EACH)
@pytest.mark.parametrize('config', MODELS)
def test_whole_models_come_out_alike(name, config, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'timed', lambda call, device: (call(), 1.)[1])
    cfg = Config.fromfile(str(CONFIGS / config))
    shrink_model(cfg.model)
    network = latency_from_config(cfg, 'whole', 'model')
    module = fill(network.build())
    variants = [Variant(), Variant(merged=True), Variant(runtime=name)]
    rows = measure_latency([network], [module], variants, 'inference', (64, 96), 2, CPU, 1, 1,
                           runtimes=runtimes.builders(tmp_path))
    assert [row.failed for row in rows] == [None] * 3
    assert all(row.difference.relative < 1e-4 for row in rows)


def test_optimized_networks_get_the_dtype(network, tmp_path, monkeypatch):
    network, images = network
    asked = []

    def optimize(model, example, dtype=None):
        assert model is network.network and example is images
        asked.append(dtype)
        return lambda x: [out + 1 for out in model(x)]

    monkeypatch.setattr('mmlk.deploy.optimize', optimize, raising=False)
    for bf16 in (False, True):
        out = runtimes.builders(tmp_path)['optimized'](network, images, bf16)()
        assert not out[0].requires_grad
        close([out[0] - 1], [network(images)[0]], 1e-5)
    assert asked == [None, torch.bfloat16] and not list(tmp_path.iterdir())


def test_packages_that_lack_are_named(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(runtimes, 'find_spec', lambda name: None if sys.modules.get(name, 0) is None else
                        real('torch' if name in (*runtimes.PACKAGES, 'onnx', 'onnx_ir', 'onnxscript') else name))
    assert [runtimes.why_not(name) for name in runtimes.PACKAGES] == [None] * 3
    monkeypatch.setitem(sys.modules, 'openvino', None)
    assert runtimes.why_not('openvino') == 'openvino is not installed: pip install openvino'
    assert runtimes.why_not('onnxruntime') is runtimes.why_not('optimized') is None
    monkeypatch.setitem(sys.modules, 'onnx_ir', None)
    assert runtimes.why_not('onnxruntime') == 'onnx_ir is not installed: pip install onnx_ir'
    assert runtimes.why_not('openvino') == 'openvino, onnx_ir are not installed: pip install openvino onnx_ir'
