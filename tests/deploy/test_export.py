"""Files of three formats, run by their own runtimes, against the trained model; and what is refused."""
import copy
import importlib.util
import json
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmlk.datasets.images import packaged_photographs
from mmlk.deploy import formats
from mmlk.deploy.export import OutputComparison, palette_of, default_size, export
from mmlk.deploy.metadata import Bounds, Resize, Window, read_metadata
from mmlk.engine.network import build_network
from mmlk.ops import global_filter2d
from mmlk.registry import MODELS
from mmlk.weights import WeightsError
from tests.backbones.test_contract import TINY
from tests.test_training import CONFIGS, shrink_model
from tests.utils import assert_onnx_equals, fill, image, relative_error

REPO = CONFIGS.parent
UPERNET = 'upernet_replknet31b_ade20k'
MEAN, STD = (torch.tensor(v).reshape(3, 1, 1) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
STOCK = dict(type='mmseg.ResNet', depth=18, base_channels=8, stem_channels=8, norm_cfg=dict(type='BN'))


def config(name, family=None, **changes):
    """A shrunk config, with a backbone of another family if asked."""
    cfg = Config.fromfile(str(CONFIGS / f'{name}.py'))
    if family:
        cfg.model.backbone = dict(type=f'mmlk.{family}')
    shrink_model(cfg.model)
    cfg.merge_from_dict(changes)
    return cfg


def trained(cfg, folder):
    """The model with weights of every kind random, and the path of its checkpoint."""
    model = fill(build_network(cfg)).eval()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=['wall', 'sky']))),
               folder / 'trained.pth')
    return model, str(folder / 'trained.pth')


def write(cfg, folder, format, size=(64, 96), **kwargs):
    """The model, the path of the file, and the result."""
    model, checkpoint = trained(cfg, folder)
    path = str(folder / f'model{formats.FORMATS[format].suffix}')
    return model, path, export(cfg, checkpoint, path, packaged_photographs()[:2], format, size, **kwargs)


def run(path, images):
    """The outputs of a file, by its runtime alone."""
    if path.endswith('.onnx'):
        runtime = pytest.importorskip('onnxruntime')
        session = runtime.InferenceSession(path, providers=['CPUExecutionProvider'])
        return [torch.from_numpy(out) for out in session.run(None, {'images': images.numpy()})]
    module = torch.jit.load(path) if path.endswith('.pt') else torch.export.load(path).module()
    with torch.no_grad():
        return list(module(images))


def pixels(count, height, width):
    return torch.from_numpy(np.random.RandomState(1).randint(0, 256, (count, 3, height, width))).float()


@torch.no_grad()
def logits_of(model, images):
    """By hand: what mmseg's tests feed the network of RGB images, and its logits at their size."""
    logits = model.decode_head(model.extract_feat((images - MEAN) / STD))
    return torch.nn.functional.interpolate(logits, images.shape[2:], mode='bilinear', align_corners=False)


def assert_segments(path, model, images):
    labels, logits = run(path, images)
    expected = logits_of(model, images)
    assert relative_error(logits, expected) < 1e-5
    assert torch.equal(labels, logits.argmax(1))
    assert (labels != expected.argmax(1)).float().mean() < 1e-3


def nodes(path):
    onnx = pytest.importorskip('onnx')
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {''}, 'operators of ONNX alone'
    return model, Counter(node.op_type for node in model.graph.node)


def test_onnx_of_any_size(tmp_path):
    pytest.importorskip('onnxscript')
    model, path, result = write(config(UPERNET), tmp_path, 'onnx', (96, 128), dynamic_size=True)
    assert_segments(path, model, pixels(3, 101, 134))
    assert_segments(path, model, pixels(1, 160, 97))
    graph, kinds = nodes(path)
    shapes = {value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
              for value in (*graph.graph.input, *graph.graph.output)}
    assert shapes == dict(images=['batch', 3, 'height', 'width'], labels=['batch', 'height', 'width'],
                          logits=['batch', 150, 'height', 'width'])
    assert 'BatchNormalization' not in kinds
    weights = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    kernels = Counter(weights[node.input[1]][2] for node in graph.graph.node if node.op_type == 'Conv')
    assert {k: n for k, n in kernels.items() if k > 3} == {31: 1, 29: 1, 27: 2, 13: 1}, 'one for each large kernel'
    facts = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(facts['mean']) == pytest.approx([123.675, 116.28, 103.53])
    assert json.loads(facts['classes']) == ['wall', 'sky'] and facts['sizes'] == 'any size from 96 pixels on'
    read = read_metadata(facts)
    assert (read.task, read.size, read.size_step) == ('segmentation', (96, 128), 1)
    assert read.height == read.width == Bounds(96, None) and read.takes(101, 134) and not read.takes(95, 134)
    assert read.resize == Resize((2048, 512), True) and read.pad_divisor == 1 and read.window is None
    assert read.reduce_zero_label and not read.align_corners and len(set(read.palette)) == 2
    assert result.merged == 5 and result.opset >= 18 and result.seconds > 0
    assert 'opset' in str(result) and '(batch, 150, height, width)' in str(result)
    assert result.comparison.sizes[0] == (96, 128) and len(result.comparison.sizes) == 2


@pytest.mark.parametrize('family, step, size', [
    pytest.param('ConvNeXtIsotropic', 1, (101, 134), marks=pytest.mark.slow), ('ConvNeXtV2', 1, (101, 134)),
    ('ConvNeXtRoadmap', 32, (160, 96))])  # its ResNet has max pooling, as stock ones
def test_onnx_of_a_family(family, step, size, tmp_path):
    pytest.importorskip('onnxscript')
    model, path, result = write(config(UPERNET, family), tmp_path, 'onnx', (96, 128), dynamic_size=True)
    assert result.step == step
    assert_segments(path, model, pixels(2, *size))
    nodes(path)


@pytest.mark.parametrize('family', [
    pytest.param('FlashInternImage', marks=pytest.mark.slow), pytest.param('InternImage', marks=pytest.mark.slow),
    pytest.param('MSCAN', marks=pytest.mark.slow), 'VAN'])
def test_onnx_of_a_backbone(family, tmp_path):
    net = fill(MODELS.build(dict(type=f'mmlk.{family}', arch=copy.deepcopy(TINY[family]), out_indices=(0, 1)))).eval()
    assert_onnx_equals(net, str(tmp_path / 'net.onnx'), image(2, 3, 64, 96), image(1, 3, 96, 160),
                       image(2, 3, 131, 100))


@pytest.mark.slow  # the exported operator itself is tested in tests/ops/test_neighborhood.py
def test_dynamic_convolutions_in_onnx_of_any_size(tmp_path):
    """Of OverLoCK, whose maps are enlarged for some of the sizes: by standard operators, without a decision."""
    pytest.importorskip('onnxscript')
    model, path, result = write(config(UPERNET, 'OverLoCK'), tmp_path, 'onnx', (96, 128), dynamic_size=True)
    for shape in ((3, 101, 134), (1, 160, 97)):
        assert_segments(path, model, pixels(*shape))
    assert nodes(path) and result.merged == 7


class Plain(torch.nn.Module):
    """A global filter and uneven pooling, which the exporter would write wrongly or as operators that little runs."""

    def __init__(self):
        super().__init__()
        self.filter = torch.nn.Parameter(torch.randn(3, 9, 6, 2))

    def forward(self, images):
        return (torch.nn.functional.adaptive_avg_pool2d(images, (5, 3)), global_filter2d(images, self.filter))


def test_pooling_and_global_filters_are_plain_in_onnx(tmp_path):
    pytest.importorskip('onnxscript')
    net, path = Plain().eval(), str(tmp_path / 'plain.onnx')
    graph = formats.Graph(net, torch.randn(2, 3, 96, 96), 1, 'images', ['pooled', 'filtered'], {})
    formats.write_graph(graph, path, 'onnx', opset=18)
    for shape in ((1, 3, 96, 97), (3, 3, 131, 100)):
        images = torch.randn(shape)
        for found, expected in zip(run(path, images), net(images)):
            assert relative_error(found, expected) < 1e-5
    model, kinds = nodes(path)
    assert 'DFT' not in kinds and model.opset_import[0].version == 18


@pytest.mark.parametrize('family', ['RepLKNet', 'GFNet', 'OverLoCK'])
def test_torchscript_of_any_size(family, tmp_path):
    model, path, _ = write(config(UPERNET, family), tmp_path, 'torchscript', (96, 128), dynamic_size=True)
    for shape in ((3, 101, 134), (1, 160, 97)):
        assert_segments(path, model, pixels(*shape))
    kept = {'metadata.json': ''}
    torch.jit.load(path, _extra_files=kept)
    facts = json.loads(kept['metadata.json'])
    assert json.loads(facts['std']) == pytest.approx([58.395, 57.12, 57.375])


@pytest.mark.parametrize('format', sorted(formats.FORMATS))
def test_a_swin_takes_any_batch_and_one_size(format, tmp_path):
    """Its own window_reverse makes a number of the batch; padded, shifted windows are here."""
    if format == 'onnx':
        pytest.importorskip('onnxscript')
    cfg = config(UPERNET)
    cfg.model.backbone = dict(type='mmseg.SwinTransformer', embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 1, 2, 2))
    cfg.model.decode_head.in_channels = [8, 16, 32, 64]
    cfg.model.auxiliary_head.in_channels = 32
    with pytest.raises(ValueError, match='one file for each size'):
        write(cfg, tmp_path, format, (96, 128), dynamic_size=True)
    model, path, _ = write(cfg, tmp_path, format, (96, 128))
    for count in (1, 3):
        assert_segments(path, model, pixels(count, 96, 128))


def test_where_any_size_cannot_be_had_multiples_of_32_are(tmp_path):
    """torch.export asks of max pooling whether sizes are odd, in stock ResNets."""
    cfg = config(UPERNET)
    cfg.model.backbone = STOCK
    cfg.model.decode_head.in_channels = [8, 16, 32, 64]
    cfg.model.auxiliary_head.in_channels = 32
    model, path, result = write(cfg, tmp_path, 'exported-program', (96, 128), dynamic_size=True)
    assert result.step == 32
    assert_segments(path, model, pixels(3, 160, 96))
    with pytest.raises(AssertionError, match='Guard failed'):
        run(path, pixels(1, 101, 134))
    kept = {'metadata.json': ''}
    program = torch.export.load(path, extra_files=kept)
    assert json.loads(kept['metadata.json'])['sizes'] == 'multiples of 32 pixels from 96 pixels on'
    assert not any('batch_norm' in str(node.target) for node in program.graph.nodes)
    assert not any('auxiliary' in name for name in program.state_dict)


def test_binary_segmentation(tmp_path):
    model, path, _ = write(config(UPERNET, **{'model.decode_head.num_classes': 2, 'model.decode_head.out_channels': 1,
                                              'model.decode_head.threshold': 0.52}), tmp_path, 'torchscript')
    images = pixels(2, 64, 96)
    labels, logits = run(path, images)
    assert relative_error(logits, logits_of(model, images)) < 1e-5
    assert torch.equal(labels, (logits[:, 0].sigmoid() > 0.52).long()) and 0 < labels.float().mean() < 1
    assert metadata_of(path).binary_threshold == 0.52


def metadata_of(path):
    """The metadata of a TorchScript file."""
    kept = {'metadata.json': ''}
    torch.jit.load(path, _extra_files=kept)
    return read_metadata(json.loads(kept['metadata.json']))


def test_facts_that_the_config_and_the_checkpoint_know(tmp_path):
    slide = dict(mode='slide', crop_size=(512, 1024), stride=(341, 683))
    cfg = config('upernet_replknet31b_cityscapes', **{'model.test_cfg': slide})
    model = build_network(cfg)
    dataset = dict(classes=('a', ) * 19, reduce_zero_label=True)
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dataset)), tmp_path / 'trained.pth')
    path = str(tmp_path / 'model.pt')
    export(cfg, str(tmp_path / 'trained.pth'), path, packaged_photographs()[:1], 'torchscript', (64, 64))
    read = metadata_of(path)
    assert read.window == Window((512, 1024), (341, 683)) and not read.takes(64, 65) and read.takes(64, 64)
    assert read.classes == ('a', ) * 19 and read.reduce_zero_label and read.align_corners
    assert read.palette[0] == (128, 64, 128), 'of the road in Cityscapes'


def test_a_palette_is_of_the_first_that_knows_a_colour_for_each_class():
    one, two = ([[index, 0, 7] for index in range(count)] for count in (3, 2))
    assert palette_of(2, dict(palette=one), {}, dict(palette=np.array(two))) == two
    assert palette_of(3, dict(palette='random'), dict(palette=None), dict(palette=tuple(map(tuple, one)))) == one
    hues = palette_of(150)
    assert len(set(map(tuple, hues))) == 150 and all(0 <= value <= 255 for hue in hues for value in hue)


def test_a_network_that_takes_bgr_is_given_bgr(tmp_path):
    cfg = config(UPERNET, **{'model.data_preprocessor.bgr_to_rgb': False})
    model, path, _ = write(cfg, tmp_path, 'torchscript')
    images = pixels(1, 64, 96)
    with torch.no_grad():
        expected = logits_of(model, images.flip(1))
    assert relative_error(run(path, images)[1], expected) < 1e-5


def test_a_detectors_backbone_and_neck(tmp_path):
    model, path, result = write(config('mask_rcnn_replknet31b_coco'), tmp_path, 'exported-program')
    images = pixels(3, 64, 96)
    with torch.no_grad():
        expected = model.extract_feat((images - MEAN) / STD)
    found = run(path, images)
    assert list(result.outputs) == [f'feature_{level}' for level in range(5)]
    assert [tuple(out.shape) for out in found] == [(3, 16, 64 // s, 96 // s) for s in (4, 8, 16, 32)] + [(3, 16, 1, 2)]
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(found, expected))
    names = [name.split('.') for name in torch.export.load(path).state_dict]
    assert {name[1] for name in names if name[0] == 'network'} == {'backbone', 'neck'}


def test_a_one_stage_detector_with_its_head(tmp_path):
    model, path, result = write(config('fcos_replknet31b_coco'), tmp_path, 'torchscript', (128, 160))
    images = pixels(3, 128, 160)
    with torch.no_grad():
        expected = model.bbox_head(model.extract_feat((images - MEAN) / STD))
    names = [f'{kind}_{level}' for kind in ('cls_score', 'bbox_pred', 'score_factor') for level in range(5)]
    assert list(result.outputs) == names
    for found, theirs in zip(run(path, images), (level for levels in expected for level in levels)):
        assert relative_error(found, theirs) < 1e-5


@torch.no_grad()
def masks_of(model, images):
    """By hand: each pixel's sum of the masks of all queries, weighted by their classes."""
    scores, masks = model.decode_head(model.extract_feat((images - MEAN) / STD))
    masks = torch.nn.functional.interpolate(masks[-1], images.shape[2:], mode='bilinear').sigmoid()
    return torch.einsum('nqc,nqhw->nchw', scores[-1].softmax(-1)[..., :-1], masks)


@pytest.mark.parametrize('format', sorted(formats.FORMATS))
def test_a_mask2former(format, tmp_path):
    """For any batch. The largest difference is allowed to masked attention, in which a logit near 0 hides a place."""
    model, path, result = write(config('mask2former_replknet31b_ade20k'), tmp_path, format, (64, 96))
    images = pixels(3, 64, 96)
    labels, logits = run(path, images)
    expected = masks_of(model, images)
    assert tuple(logits.shape) == (3, 150, 64, 96) and relative_error(logits, expected) < 1e-4
    assert torch.equal(labels, logits.argmax(1)) and (labels != expected.argmax(1)).float().mean() < 1e-2
    if format == 'onnx':
        graph, kinds = nodes(path)
        assert kinds['GridSample'] == 2 * 3, 'one for each layer and level'
        assert read_metadata({entry.key: entry.value for entry in graph.metadata_props}).pad_divisor == 32


def test_the_maps_of_a_mask2former_detector(tmp_path):
    model, path, result = write(config('mask2former_replknet31b_coco'), tmp_path, 'exported-program')
    images = pixels(1, 64, 96)
    with torch.no_grad():
        expected = model.extract_feat((images - MEAN) / STD)
    assert list(result.outputs) == [f'feature_{level}' for level in range(4)]
    assert all(relative_error(a, b) < 1e-5 for a, b in zip(run(path, images), expected, strict=True))


@pytest.mark.parametrize('length, cells', [(16, 3), (16, 6), (5, 6), (13, 2), (12, 6)])
def test_pooling_as_products_equals_torchs(length, cells):
    x = torch.randn(2, 3, length, length + 3, dtype=torch.float64)
    expected = torch.nn.functional.adaptive_avg_pool2d(x, (cells, 1))
    torch.testing.assert_close(formats._adaptive_avg_pool2d(x, (cells, 1)), expected)


@pytest.mark.parametrize('size', [(8, 8), (7, 9), (1, 2), (6, 1)])
def test_transforms_as_products_equal_torchs(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    spectrum = torch.fft.rfft2(x, norm='ortho')
    torch.testing.assert_close(formats._rfft2(x), spectrum)
    torch.testing.assert_close(formats._irfft2(spectrum, size), x)


def test_default_size():
    assert default_size(Config.fromfile(str(CONFIGS / f'{UPERNET}.py'))) == (512, 512)
    assert default_size(Config.fromfile(str(CONFIGS / 'fcos_replknet31b_coco.py'))) is None
    slide = dict(model=dict(test_cfg=dict(mode='slide', crop_size=(512, 1024)), data_preprocessor=dict(size=(8, 8))))
    assert default_size(Config(slide)) == (512, 1024)


@pytest.mark.parametrize('kwargs, message', [
    (dict(format='tflite'), 'there is no format'),
    (dict(format='torchscript'), 'ends in .pt, got'),
    (dict(outputs='boxes'), 'there are no outputs .boxes.; there is detections, features'),
    (dict(format='exported-program', outputs='detections'), 'written in onnx only, not in exported-program'),
    (dict(opset=7), 'writes opsets 18 to'),
    (dict(format='exported-program', opset=18), 'an opset is of ONNX'),
    (dict(size=None), 'names no size'),
    (dict(size=(100, 96), outputs='features'), 'multiples of 32 pixels, and the file will not: 96x100'),
])
def test_refuses_arguments(kwargs, message, tmp_path):
    cfg = config('mask_rcnn_replknet31b_coco')
    suffix = '.pt2' if kwargs.get('format') == 'exported-program' else '.onnx'
    with pytest.raises(ValueError, match=message):
        export(cfg, 'none.pth', str(tmp_path / f'model{suffix}'), packaged_photographs()[:1],
               **{'size': (64, 64), **kwargs})
    assert not list(tmp_path.iterdir())


def test_packages_that_lack_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, 'find_spec', lambda name: None if name.startswith('onnx') else name)
    with pytest.raises(ValueError, match='pip install onnx onnx_ir onnxscript onnxruntime'):
        export(config(UPERNET), 'none.pth', str(tmp_path / 'model.onnx'), [])


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch):
    cfg = config(UPERNET)
    _, checkpoint = trained(cfg, tmp_path)
    before, opened = tmp_path / 'model.pt', formats.open_exported
    before.write_text('an older file')

    def faulty(path, format):
        runner = opened(path, format)
        return lambda images: [out * 1.01 if out.is_floating_point() else out for out in runner(images)]

    monkeypatch.setattr(formats, 'open_exported', faulty)
    with pytest.raises(ValueError, match="output 'logits' differs by .* the file was not kept"):
        export(cfg, checkpoint, str(before), packaged_photographs()[:1], 'torchscript', (64, 96))
    assert before.read_text() == 'an older file'
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model.pt', 'trained.pth']


def test_outputs_are_of_detectors(tmp_path):
    with pytest.raises(ValueError, match="outputs='features' is of detectors; this is a segmentor"):
        write(config(UPERNET), tmp_path, 'torchscript', outputs='features')


def test_two_exports_to_one_path_at_the_same_time(tmp_path, monkeypatch):
    """The second begins and ends between the first's writing and its comparison."""
    models, out, write_graph = {}, str(tmp_path / 'model.pt'), formats.write_graph

    def exported(classes):
        cfg = config(UPERNET, **{f'model.{head}.num_classes': classes for head in ('decode_head', 'auxiliary_head')})
        (tmp_path / str(classes)).mkdir()
        models[classes], checkpoint = trained(cfg, tmp_path / str(classes))
        return export(cfg, checkpoint, out, packaged_photographs()[:1], 'torchscript', (64, 96))

    def interrupted(graph, path, *args):
        write_graph(graph, path, *args)
        if len(models) == 1:
            exported(7)
            assert_segments(out, models[7], pixels(1, 64, 96))

    monkeypatch.setattr(formats, 'write_graph', interrupted)
    assert exported(150).comparison.pixels
    assert_segments(out, models[150], pixels(1, 64, 96))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['150', '7', 'model.pt']


@pytest.mark.parametrize('error', [KeyboardInterrupt, OSError])
def test_a_stopped_export_leaves_nothing(error, tmp_path, monkeypatch):
    (tmp_path / 'model.pt').write_text('an older file')
    monkeypatch.setattr(formats, 'open_exported', lambda *args: (_ for _ in ()).throw(error('stopped')))
    with pytest.raises(error):
        write(config(UPERNET), tmp_path, 'torchscript')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['model.pt', 'trained.pth']
    assert (tmp_path / 'model.pt').read_text() == 'an older file'


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path):
    cfg = config(UPERNET)
    model = build_network(cfg)
    state = {name: value for name, value in model.state_dict().items() if 'conv_seg' not in name}
    torch.save(state, tmp_path / 'lacking.pth')
    with pytest.raises(WeightsError, match='conv_seg'):
        export(cfg, str(tmp_path / 'lacking.pth'), str(tmp_path / 'model.pt'), packaged_photographs()[:1],
               'torchscript', (64, 96))
    assert [path.name for path in tmp_path.iterdir()] == ['lacking.pth']


def test_a_comparison_tells_the_worst_output():
    comparison = OutputComparison()
    comparison.add('a', torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
    comparison.add('b', torch.tensor([100.0, 101.0]), torch.tensor([100.0, 100.0]))
    assert comparison.worst == 'a' and comparison.differences['a'] == 0.5
    with pytest.raises(ValueError, match="output 'a' differs by 0.5 where the largest value is 2"):
        comparison.check(0.01)
    comparison.check(0.3)
    comparison.add('a', torch.tensor([float('nan')]), torch.tensor([1.0]))
    comparison.add('a', torch.tensor([1.0]), torch.tensor([1.0]))
    with pytest.raises(ValueError, match="output 'a' differs by nan"):
        comparison.check(0.3)
    with pytest.raises(ValueError, match=r"output 'c' of the file is \(2,\), where PyTorch's is \(3,\)"):
        comparison.add('c', torch.zeros(2), torch.zeros(3))


def test_a_comparison_counts_labels():
    comparison = OutputComparison()
    labels = torch.zeros(1, 100, 100, dtype=torch.long)
    other = labels.clone()
    other[0, 0, :10] = 1
    comparison.add('labels', other, labels)
    comparison.check(0.1)
    other[0, 0, 10] = 1
    comparison.add('labels', other, labels)
    with pytest.raises(ValueError, match='labels differ at 21 of 20000 pixels'):
        comparison.check(0.1)


def run_tool(monkeypatch, *args):
    spec = importlib.util.spec_from_file_location('export_tool', REPO / 'tools' / 'export.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', ['export.py', *map(str, args)])
    tool.main()


def test_tool(tmp_path, monkeypatch, capsys):
    demo = CONFIGS / 'demo' / 'upernet_replknet-tiny_ade20k.py'
    model, checkpoint = trained(Config.fromfile(str(demo)), tmp_path)
    out = tmp_path / 'new' / 'demo.pt'
    run_tool(monkeypatch, demo, checkpoint, '--format', 'torchscript', '--num-images', 1, '--out', out)
    said = capsys.readouterr().out
    assert f'wrote {out}: torchscript' in said and 'largest difference' in said and 'TorchScript' in said
    assert [path.name for path in out.parent.iterdir()] == ['demo.pt']
    assert_segments(str(out), model, pixels(2, *default_size(Config.fromfile(str(demo)))))


@pytest.mark.parametrize('args, message', [
    (['--shape', '64'], 'a shape is WIDTHxHEIGHT'),
    (['--images', 'nowhere.png'], 'nowhere.png cannot be read as an image'),
    (['--num-images', 0], '--num-images must be at least 1'),
])
def test_tool_refuses(args, message, tmp_path, monkeypatch, capsys):
    demo = CONFIGS / 'demo' / 'upernet_replknet-tiny_ade20k.py'
    torch.save(dict(a=torch.zeros(1)), tmp_path / 'some.pth')
    with pytest.raises(SystemExit) as stopped:
        run_tool(monkeypatch, demo, tmp_path / 'some.pth', '--format', 'torchscript', '--out', tmp_path / 'a.pt', *args)
    assert stopped.value.code == 2 and message in capsys.readouterr().err
