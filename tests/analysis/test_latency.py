"""What is measured and in which order; never how long it takes."""
import importlib.util
import json
import math
import re
import sys

import pytest
import torch
from mmengine.config import Config
from torch import nn

from mmlk.analysis import latency
from mmlk.analysis.latency import (
    Difference,
    KnownResult,
    LatencyNetwork,
    LatencyRow,
    Outputs,
    Variant,
    jobs,
    latency_from_config,
    latency_from_timm,
    measure_latency,
    plot_latency,
)
from mmlk.backbones.replknet import RepLKNet
from mmlk.ops import benchmark
from mmlk.reparam import MergeableBranches
from tests.utils import fill

CPU = torch.device('cpu')
ARCH = dict(large_kernel_sizes=[7], layers=[1], channels=[8], small_kernel=3)
SEGMENTOR, DETECTOR = 'configs/demo/upernet_replknet-tiny_ade20k.py', 'configs/demo/mask_rcnn_replknet-tiny_coco.py'


def tiny():
    return LatencyNetwork('tiny', lambda: RepLKNet(ARCH, out_indices=(0, )))


def plain():
    return LatencyNetwork('plain', lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))


def row(name='a', seconds=(2., 1., 4.), **other):
    facts = dict(variant='fp32', mode='inference', batch=4, parameters=10, recomputes=False)
    return LatencyRow(name, seconds=list(seconds), **{**facts, **other})


@pytest.fixture
def clock(monkeypatch):
    """Calls take a second on a clock that stands still, however long they take."""
    monkeypatch.setattr(benchmark, 'timed', lambda call, device: (call(), 1.)[1])


@pytest.mark.parametrize('text, variant', [
    ('fp32', Variant()), ('merged', Variant(merged=True)), ('amp', Variant(amp=True)),
    ('amp+merged', Variant(merged=True, amp=True)), ('merged+compiled', Variant(merged=True, compiled=True)),
    ('optimized', Variant(runtime='optimized')), ('optimized+bf16', Variant(runtime='optimized', bf16=True)),
    ('onnxruntime', Variant(runtime='onnxruntime')), ('bf16+openvino', Variant(runtime='openvino', bf16=True))])
def test_variants_are_read(text, variant):
    assert Variant.parse(text) == variant
    assert Variant.parse(str(variant)) == variant


@pytest.mark.parametrize('text', ['', 'fast', 'amp+', 'fp32+amp', 'amp merged'])
def test_unknown_variants_are_refused(text):
    with pytest.raises(ValueError, match='there are fp32, merged, amp, compiled, and these joined'):
        Variant.parse(text)


@pytest.mark.parametrize('text, problem', [
    ('bf16', "bf16 stands behind optimized or openvino only; PyTorch's own forward has amp"),
    ('merged+bf16', 'bf16 stands behind optimized or openvino only; PyTorch'),
    ('onnxruntime+bf16', 'bf16 stands behind optimized or openvino only$'),
    ('openvino+merged', 'merge branches themselves, and combine with bf16 only'),
    ('optimized+amp', 'merge branches themselves, and combine with bf16 only'),
    ('onnxruntime+openvino', 'merge branches themselves, and combine with bf16 only')])
def test_runtimes_do_not_combine_with_the_switches(text, problem):
    with pytest.raises(ValueError, match=f"unknown variant '{re.escape(text)}'; .*{problem}"):
        Variant.parse(text)


def test_figures_of_a_row():
    one, two = row(), row(seconds=[4., 3., 2.])
    assert (one.median, one.quartiles, one.throughput) == (2., (1.5, 3.), 2.)
    assert two.relative_to(one) == 2  # 2, 3 and 0.5 turn by turn, where the medians alone would say 1.5
    assert row(seconds=[3.]).quartiles == (3., 3.)
    facts = one.to_dict()
    assert (facts['median_s'], facts['seconds'], facts['images_per_second']) == (2., [2., 1., 4.], 2.)
    assert 'median_s' not in row(seconds=[], failed='out of memory').to_dict()
    assert facts['largest_difference'] is None
    told = row(difference=Difference(0.5, math.nan)).to_dict()
    assert told['largest_difference'] == dict(absolute=0.5, relative=None) and json.dumps(told, allow_nan=False)


def test_the_difference_is_that_of_the_output_that_differs_most_for_its_size():
    expected = [torch.tensor([100., -200.]), torch.tensor([1., 2.])]
    assert Difference.between(expected, expected) == (0, 0)
    assert Difference.between([torch.tensor([101., -200.]), torch.tensor([1., 2.5])], expected) == (0.5, 0.25)
    assert Difference.between([expected[0], torch.tensor([1., 2.5]).bfloat16()], expected) == (0.5, 0.25)
    assert math.isnan(Difference.between([torch.tensor([math.nan, 0.]), expected[1] + 9], expected).relative)
    assert Difference.between([torch.ones(2)], [torch.zeros(2)]).absolute == 1
    for wrong in (expected[:1], [expected[0], torch.ones(1)]):
        with pytest.raises(ValueError, match=r'have the shapes .*, and those of the network itself \[\(2,\), \(2,\)\]'):
            Difference.between(wrong, expected)


ALL = [Variant(), Variant(merged=True), Variant(amp=True), Variant(merged=True, amp=True)]


@pytest.mark.parametrize('network, mode, variants, expected', [
    (tiny, 'inference', ALL, ['fp32', 'merged', 'amp', 'merged+amp']),
    (plain, 'inference', ALL, ['fp32', 'amp']),
    (plain, 'inference', ALL[1:], ['merged', 'amp']),
    (tiny, 'training', ALL, ['fp32', 'amp']),
    (tiny, 'training', ALL[1:2], ['fp32']),
])
def test_variants_that_come_out_alike_are_one(network, mode, variants, expected):
    network = network()
    found = list(jobs(network, network.build(), variants, mode, (16, 16), 1, CPU))
    assert [str(job.variant) for job in found] == expected
    for job in found:
        branches = [m for m in job.module.modules() if isinstance(m, MergeableBranches)]
        assert all(m.merged is job.variant.merged for m in branches)
        assert job.module.training is (mode == 'training')


def test_a_network_that_cannot_be_merged_is_told(clock):
    network = LatencyNetwork('norms', lambda: RepLKNet(ARCH, out_indices=(0, ), norm_cfg=dict(type='GN', num_groups=2)))
    fp32, merged = measure_latency([network], [network.build()], ALL[:2], 'inference', (16, 16), 1, CPU, turns=1,
                                   warmup=1)
    assert fp32.seconds == [1.] and not fp32.failed
    assert merged.failed.startswith("ValueError: cannot merge 'stages.0.blocks.0.large_kernel': GroupNorm is not")


def test_what_a_call_runs():
    """Inference without gradients, in the variant's precision; training leaves no gradient, weights as they were."""
    seen = []

    class Spy(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append((tuple(x.shape), out.dtype, out.requires_grad, self.training))
            out.requires_grad and out.register_hook(lambda grad: seen.append('gradient'))
            return out

    network = LatencyNetwork('spy', lambda: Spy(6, 2))
    module = network.build()
    before = module.weight.clone()
    for mode, variant, expected in [
        ('inference', Variant(), [(torch.float32, False, False)]),
        ('inference', Variant(amp=True), [(torch.bfloat16, False, False)]),
        ('training', Variant(amp=True), [(torch.bfloat16, True, True), 'gradient']),
    ]:
        seen.clear()
        job, = jobs(network, module, [variant], mode, (4, 6), 2, CPU)
        job.call()
        assert seen == [((2, 3, 4, 6), *e) if e != 'gradient' else e for e in expected]
    assert module.weight.grad is None and torch.equal(module.weight, before)


def test_networks_are_interleaved_and_a_failure_is_told(clock, monkeypatch):
    order, texts = [], []
    monkeypatch.setattr(benchmark, 'peak_memory', lambda call, device: order.append('memory') or 7)

    class Noted(nn.Module):
        def __init__(self, name):
            super().__init__()
            self.name, self.weight = name, nn.Parameter(torch.ones(5))

        def forward(self, x):
            order.append(self.name)
            if self.name == 'broken':
                raise RuntimeError('no such operator\nand more')
            return x * self.weight.mean()

    networks = [LatencyNetwork(name, lambda name=name: Noted(name)) for name in ('a', 'broken', 'b')]
    rows = measure_latency(networks, [n.build() for n in networks], [Variant()], 'inference', (8, 8), 2, CPU, turns=3,
                           warmup=2, tick=lambda *done: texts.append(done))
    assert order == ['a', 'a', 'a', 'broken', 'broken', 'b', 'b', 'b', 'a', 'b'] + ['a', 'a', 'b', 'b'] * 3 + [
        'memory', 'memory']  # the first call of each is the reference of the differences
    assert [r.difference for r in rows] == [(0, 0), None, (0, 0)]
    assert [(r.name, r.seconds, r.memory, r.parameters) for r in rows] == [
        ('a', [1.] * 3, 7, 5), ('broken', [], None, 5), ('b', [1.] * 3, 7, 5)]
    assert rows[1].failed == 'RuntimeError: no such operator'
    assert texts == [(f'inference: {name} (fp32) warmed up', 12) for name in ('a', 'broken', 'b')] + [
        ('inference: a (fp32)', 9), ('inference: b (fp32)', 9)] * 3


def test_runtimes_take_turns_with_pytorch(clock, monkeypatch):
    """Each is built once, when its warm-up begins, and gets the network as it is, its images and its precision."""
    order = []
    monkeypatch.setattr(benchmark, 'peak_memory', lambda call, device: 7)

    def build(name):
        def build(outputs, images, bf16):
            order.append(f'build {name}')
            assert type(outputs) is Outputs and not outputs.training and images.shape == (2, 3, 16, 16)
            assert not outputs.network.stages[0].blocks[0].large_kernel.merged
            if name == 'openvino' and bf16:
                raise OSError('not on this processor\nsee the manual')
            with torch.no_grad():
                doubled = [2 * out for out in outputs(images)]
            order.pop()  # this call's own 'PyTorch'

            def call():
                order.append(name)
                return doubled
            return call
        return build

    network = tiny()
    module = network.build()
    module.register_forward_hook(lambda *_: order.append('PyTorch'))
    variants = [Variant.parse(text) for text in ('openvino', 'fp32', 'openvino+bf16', 'optimized')]
    rows = measure_latency([network], [module], variants, 'inference', (16, 16), 2, CPU, turns=2, warmup=0,
                           runtimes={name: build(name) for name in ('openvino', 'optimized', 'onnxruntime')})
    assert order == ['PyTorch', 'build openvino', 'openvino', 'PyTorch', 'build openvino', 'build optimized',
                     'optimized', *['openvino', 'PyTorch', 'optimized'],
                     *['openvino', 'openvino', 'PyTorch', 'PyTorch', 'optimized', 'optimized'] * 2]
    assert [(r.label, r.difference and round(r.difference.relative, 4), r.memory) for r in rows] == [
        ('tiny (openvino)', 1, None), ('tiny (fp32)', 0, 7), ('tiny (openvino+bf16)', None, None),
        ('tiny (optimized)', 1, 7)]
    assert rows[2].failed == 'OSError: not on this processor'


def test_differences_are_from_the_network_in_fp32_that_is_not_merged(clock):
    """Although fp32 is not among the variants."""
    network = tiny()
    module = fill(network.build())
    merged, amp = measure_latency([network], [module], ALL[1:3], 'inference', (16, 16), 1, CPU, turns=1, warmup=1)
    image = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, = module.eval()(image)
    assert merged.difference.relative == pytest.approx(merged.difference.absolute / expected.abs().max().item())
    assert merged.difference.relative < 1e-5 < 1e-4 < amp.difference.relative < 0.1
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        halved = (module(image)[0].float() - expected).abs().max().item()
    assert amp.difference.absolute == pytest.approx(halved, rel=0.5)
    training, = measure_latency([network], [module], ALL[:1], 'training', (16, 16), 2, CPU, turns=1, warmup=1)
    assert training.difference is None


@pytest.mark.parametrize('variant, mode, device, problem', [
    ('optimized', 'training', 'cpu', "variant 'optimized' is of inference only, and the mode is training"),
    ('openvino+bf16', 'training', 'cpu', r"variant 'openvino\+bf16' is of inference only"),
    ('onnxruntime', 'inference', 'cuda', "variant 'onnxruntime' runs on a CPU only, and the device is cuda")])
def test_a_mode_or_a_device_that_a_runtime_lacks_is_refused(variant, mode, device, problem):
    network = LatencyNetwork('never', None)
    with pytest.raises(ValueError, match=problem):
        measure_latency([network], [nn.Identity()], [Variant.parse(variant)], mode, (16, 16), 1, torch.device(device))


def test_beside_a_runtime_whole_models_end_at_the_outputs_of_a_file(repo):
    """Merged or not, all variants do the same work."""
    variants = [Variant(), Variant(merged=True), Variant(runtime='optimized')]
    for config, first in [(SEGMENTOR, (2, 6, 64, 96)), (DETECTOR, (2, 64, 16, 24))]:
        network = latency_from_config(Config.fromfile(str(repo / config)), 'whole', 'model')
        module = network.build()
        seen = {}
        found = list(jobs(network, module, variants, 'inference', (64, 96), 2, CPU, dict(
            optimized=lambda outputs, images, bf16: lambda: seen.update(images=images) or outputs(images))))
        expected = [out.shape for out in found[2].call()]
        assert expected[0] == first and seen['images'].shape == (2, 3, 64, 96)
        for job in found:
            assert [out.shape for out in job.call()] == expected
        if network.kind == 'segmentor':  # the logits that mmseg takes its labels from
            job, = jobs(network, module, variants[:1], 'inference', (64, 96), 2, CPU)
            logits = torch.stack([sample.seg_logits.data for sample in job.call()])
            assert torch.allclose(logits, found[0].call()[0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('config, kind, mode', [(SEGMENTOR, 'segmentor', 'inference'),
                                                (SEGMENTOR, 'segmentor', 'training'),
                                                (DETECTOR, 'detector', 'inference'),
                                                (DETECTOR, 'detector', 'training')])
def test_whole_models_run_to_the_end(repo, config, kind, mode):
    network = latency_from_config(Config.fromfile(str(repo / config)), 'whole', 'model')
    assert network.kind == kind
    module = network.build()
    heads = []
    head = module.decode_head if kind == 'segmentor' else module.roi_head.bbox_head
    head.conv_seg.register_forward_hook(lambda *_: heads.append('seg')) if kind == 'segmentor' else \
        head.fc_cls.register_forward_hook(lambda *_: heads.append('box'))
    job, = jobs(network, module, [Variant()], mode, (64, 96), 2, CPU)
    out = job.call()
    assert heads
    if mode == 'inference' and kind == 'segmentor':
        assert [sample.pred_sem_seg.data.shape for sample in out] == [(1, 64, 96)] * 2
    elif mode == 'inference':
        assert len(out) == 2 and all('pred_instances' in sample for sample in out)
    assert all(p.grad is None for p in module.parameters())


def test_backbones_of_configs_come_alone_and_in_training_form(repo):
    cfg = Config.fromfile(str(repo / SEGMENTOR))
    cfg.model.backbone.merged = True
    network = latency_from_config(cfg, 'ours')
    backbone = network.build()
    assert type(backbone) is RepLKNet and not backbone.merged and network.kind == 'backbone'
    assert cfg.model.backbone.merged is True  # the caller's own


def test_models_of_timm():
    resnet = latency_from_timm('resnet18', (64, 64)).build().eval()
    assert [out.shape[1] for out in resnet(torch.zeros(1, 3, 64, 64))] == [
        64, 64, 128, 256, 512]
    with pytest.raises(ValueError, match="no model 'nothing'"):
        latency_from_timm('nothing', (64, 64))


def test_a_whole_model_is_a_segmentor_or_a_detector():
    cfg = Config(dict(model=dict(type='A', backbone=dict(type='B')), default_scope='mmpretrain'))
    with pytest.raises(ValueError, match="default_scope = 'mmseg' or 'mmdet'; this one has 'mmpretrain'"):
        latency_from_config(cfg, 'other', 'model')


METAFILE = '''
Models:
- Name: published
  Metadata: {Pretraining: ImageNet-1K}
  Results:
  - {Task: Semantic Segmentation, Dataset: ADE20K, Metrics: {mIoU: 30.5, mIoU(ms+flip): 31.5}}
  Published: {Source: a table}
  Trained Here:
  - {Task: Semantic Segmentation, Dataset: ADE20K, Metrics: {mIoU: 12.0}, Source: a log}
- Name: ours
  Metadata: {Pretraining: none}
  Trained Here:
  - {Task: Object Detection, Dataset: COCO, Metrics: {box AP: 30.0, mask AP: 28.0}, Source: a log}
- Name: unknown
  Metadata: {}
'''


def test_known_results_come_from_the_zoo(tmp_path):
    (tmp_path / 'configs' / 'metafiles').mkdir(parents=True)
    (tmp_path / 'configs' / 'metafiles' / 'family.yml').write_text(METAFILE)
    assert latency.known_result('published', tmp_path) == KnownResult('mIoU on ADE20K', 30.5, 'published', 'a table',
                                                                      'ImageNet-1K')
    assert latency.known_result('ours', tmp_path) == KnownResult('box AP on COCO', 30.0, 'trained here', 'a log',
                                                                 'none')
    assert latency.known_result('unknown', tmp_path) is latency.known_result('absent', tmp_path) is None


def test_the_picture_has_a_panel_for_each_mode_and_metric():
    rows = [row('a'), row('a', variant='merged', seconds=[1., 1., 1.]), row('b'), row('c', seconds=[], failed='no'),
            row('a', mode='training', seconds=[8.])]
    results = {'a': KnownResult('mIoU on ADE20K', 50., 'published', '', ''),
               'b': KnownResult('box AP on COCO', 40., 'x', '', ''),
               'c': KnownResult('mIoU on Cityscapes', 80., 'x', '', '')}
    bars, training, miou, box = plot_latency(rows, results, 'a machine').axes
    assert [label.get_text() for label in bars.get_yticklabels()] == ['b (fp32)', 'a (merged)', 'a (fp32)']
    assert [patch.get_width() for patch in bars.patches] == [2000, 1000, 2000]
    assert [patch.get_width() for patch in training.patches] == [8000]
    assert [tuple(line.get_xydata()[0]) for line in miou.lines] == [(2000, 50), (1000, 50)]
    assert miou.get_ylabel() == 'mIoU on ADE20K, published' and len(box.lines) == 1
    assert len(plot_latency(rows, {}, '').axes) == 2


@pytest.fixture
def run(repo, monkeypatch, capsys):
    """The tool, run with some arguments; what it wrote to stdout, and to stderr."""
    spec = importlib.util.spec_from_file_location('benchmark_tool', repo / 'tools' / 'benchmark.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.chdir(repo)

    def run(*arguments, expect=0):
        monkeypatch.setattr(sys, 'argv', ['benchmark.py', *map(str, arguments)])
        code = 0
        try:
            tool.main()
        except SystemExit as end:
            code = end.code
        captured = capsys.readouterr()
        assert code == expect, captured.err
        return captured

    return run


def test_the_tool_writes_figures_and_a_picture(run, tmp_path, clock):
    out = run(SEGMENTOR, 'timm:resnet18', '--shape', '96x64', '--turns', 2, '--warmup', 1, '--batch', 2, '--device',
              'cpu', '--out', tmp_path / 'new').out
    assert '2 x 96x64 (width x height), random weights' in out and 'torch' in out
    report = json.loads((tmp_path / 'new' / 'benchmark.json').read_text())
    assert [(r['name'], r['variant'], r['mode']) for r in report['rows']] == [
        ('upernet_replknet-tiny_ade20k', 'fp32', 'inference'), ('upernet_replknet-tiny_ade20k', 'merged', 'inference'),
        ('resnet18', 'fp32', 'inference'), ('upernet_replknet-tiny_ade20k', 'fp32', 'training'),
        ('resnet18', 'fp32', 'training')]
    assert all(r['median_s'] == 1 and r['images_per_second'] == 2 and len(r['seconds']) == 2 for r in report['rows'])
    assert report['shape'] == dict(width=96, height=64) and report['weights'] == 'random'
    assert (tmp_path / 'new' / 'benchmark.png').stat().st_size > 10000


@pytest.mark.parametrize('arguments, problem', [
    (['configs/no.py'], 'no config at configs/no.py'),
    (['configs/_base_/runtime_seg.py'], 'runtime_seg.py: the config has no backbone'),
    (['timm:nothing'], "timm has no model 'nothing'"),
    (['timm:resnet18', '--part', 'model'], 'a timm model is a backbone'),
    (['timm:resnet18', '--shape', '64'], 'a shape is WIDTHxHEIGHT'),
    (['timm:resnet18', '--variants', 'fast'], "unknown variant 'fast'"),
    (['timm:resnet18', '--device', 'abacus'], '--device abacus: there is no such device here'),
    (['timm:resnet18', '--device', 'cuda:99'], '--device cuda:99: there is no such device here'),
    (['timm:resnet18', '--turns', '0'], '--turns must be at least 1, got 0'),
    (['timm:resnet18', '--variants', 'fp32', 'onnxruntime', '--modes', 'inference', 'training'],
     "variant 'onnxruntime' is of inference only, and the mode is training"),
    (['timm:resnet18', '--variants', 'fp32', 'onnxruntime+bf16'], "unknown variant 'onnxruntime.bf16'"),
    (['timm:resnet18', 'timm:resnet18'], 'two sources have the same name: resnet18'),
    ([SEGMENTOR, '--cfg-options', 'model.backbone.type=Nothing'], 'cannot be built: .*Nothing'),
    ([SEGMENTOR, '--cfg-options', 'model.backbone.in_channels=0'], 'cannot be built: .*in_channels must be positive'),
])
def test_the_tool_refuses_before_anything_is_measured(run, tmp_path, monkeypatch, arguments, problem):
    monkeypatch.setattr(latency, 'measure_latency', None)
    message = run(*arguments, '--out', tmp_path / 'never', expect=2).err
    assert re.search(problem, message) and message.count('error: ') == 1


def test_the_tool_says_when_nothing_could_be_measured(run, tmp_path):
    message = run(SEGMENTOR, '--shape', '64x64', '--device', 'cpu', '--out', tmp_path, '--cfg-options',
                  'model.backbone.in_channels=4', 'model.backbone.norm_cfg.type=IN1d', expect=2).err
    assert 'error: nothing could be measured: upernet_replknet-tiny_ade20k (fp32)' in message


def test_the_tool_measures_runtimes_beside_pytorch(run, tmp_path, monkeypatch, clock):
    """Packages that lack are named in the output and in the file, and the others are measured, in inference alone."""
    monkeypatch.setattr('mmlk.deploy.optimize', lambda network, example, dtype=None: network, raising=False)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    out = run(SEGMENTOR, '--shape', '64x64', '--turns', 1, '--warmup', 1, '--device', 'cpu', '--out', tmp_path,
              '--variants', 'fp32', 'openvino', 'optimized', 'openvino+bf16', 'onnxruntime').out
    missing = ['openvino, onnxscript are not installed: pip install openvino onnxscript',
               'onnxscript is not installed: pip install onnxscript']
    assert [line for line in out.splitlines() if 'installed' in line] == missing
    assert re.search('difference +of largest', out)
    report = json.loads((tmp_path / 'benchmark.json').read_text())
    assert report['not_installed'] == dict(openvino=missing[0], onnxruntime=missing[1])
    assert list(report['runtimes']) == ['optimized'] and report['threads'] == torch.get_num_threads()
    assert [(r['variant'], r['mode']) for r in report['rows']] == [('fp32', 'inference'), ('optimized', 'inference')]
    assert all(0 <= r['largest_difference'][kind] < 1e-5 for r in report['rows'] for kind in ('absolute', 'relative'))


def test_the_tool_refuses_when_no_variant_is_installed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, 'measure_latency', None)
    monkeypatch.setitem(sys.modules, 'openvino', None)
    message = run(SEGMENTOR, '--variants', 'openvino', 'openvino+bf16', '--device', 'cpu', '--out', tmp_path,
                  expect=2).err
    assert message == 'error: nothing is left to measure: openvino is not installed: pip install openvino\n'


def test_the_tool_refuses_runtimes_on_a_gpu(run, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, 'measure_latency', None)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    message = run(SEGMENTOR, '--variants', 'fp32', 'openvino', '--device', 'cuda', '--out', tmp_path, expect=2).err
    assert message == "error: variant 'openvino' runs on a CPU only, and the device is cuda\n"
