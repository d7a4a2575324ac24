"""Detectors end to end in ONNX: their detections are mmdet's, with neither PyTorch nor OpenMMLab at hand."""
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mmlk.datasets import scenes
from mmlk.deploy import formats
from mmlk.deploy.detection import DetectionComparison, _around, _regions, detect, end_to_end
from mmlk.deploy.export import Detection, bounds_of, export, predicted
from mmlk.deploy.metadata import Bounds, read_metadata
from mmlk.engine.network import build_network
from tests.test_training import CONFIGS, shrink_model
from tests.utils import fill

pytest.importorskip('onnxscript')
pytest.importorskip('onnxruntime')
TINY = dict(large_kernel_sizes=[5, 5, 5, 5], layers=[1, 1, 1, 1], channels=[8, 8, 16, 16])
CASES = {
    'mask_rcnn': ('demo/mask_rcnn_replknet-tiny_coco', (64, 80)),
    'cascade': ('demo/cascade_mask_rcnn_replknet-tiny_coco', (64, 80)),
    'cascade_4conv1fc': ('cascade_mask_rcnn_replknet31b_coco', (64, 80)),
    'fcos': ('fcos_replknet31b_coco', (100, 134)),
    'ssd': ('ssd_parcnet-s_coco', (320, 320)),
    'mask2former': ('mask2former_replknet31b_coco', (64, 96)),
}
WITH_BOXES = [case for case in CASES if case != 'mask2former']


def config(case):
    cfg = Config.fromfile(str(CONFIGS / f'{CASES[case][0]}.py'))
    if case in ('fcos', 'cascade_4conv1fc', 'mask2former'):
        shrink_model(cfg.model)
    if case == 'cascade_4conv1fc':
        cfg.model.test_cfg.rcnn.score_thr = 0.2
    if 'neck' in cfg.model and case != 'ssd':
        cfg.model.backbone.arch = TINY
        cfg.model.neck.in_channels = TINY['channels']
    if case == 'ssd':
        cfg.model.bbox_head.num_classes = 5
    if case == 'mask2former':
        cfg.model.panoptic_head.pixel_decoder.encoder.num_layers = 1
        cfg.model.panoptic_head.transformer_decoder.num_layers = 2
    return cfg


def build(cfg):
    """A detector with random weights, whose head tells places and classes apart as a trained one does."""
    model = build_network(cfg).eval()
    model.load_state_dict(fill(build_network(cfg)).state_dict())  # fill changes the mean of the images too
    for name, parameter in model.named_parameters():
        if name.endswith(('cls.weight', 'fc_cls.weight')):
            parameter.data.mul_(4)
    return model


def scene(size, index):
    """RGB, (1, 3, height, width), uint8."""
    return torch.from_numpy(scenes.draw(3, 'val', index, size).image.transpose(2, 0, 1))[None]


@pytest.fixture(scope='module')
def exported(tmp_path_factory):
    """For a case: the trained model, the path of its file and the result."""
    made = {}

    def make(case, **kwargs):
        key = (case, *kwargs.items())
        if key not in made:
            folder, cfg, size = tmp_path_factory.mktemp('exported'), config(case), CASES[case][1]
            model, names = build(cfg), []
            torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=scenes.CLASSES[1:]))),
                       folder / 'trained.pth')
            for index in range(2):
                names.append(folder / f'{index}.png')
                Image.fromarray(scenes.draw(4, 'val', index, size).image).save(names[-1])
            path = str(folder / 'model.onnx')
            made[key] = model, path, export(cfg, str(folder / 'trained.pth'), path, names, size=size, **kwargs)
        return made[key]

    return make


def session(path):
    import onnxruntime
    return onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])


def found_by(runtime, image):
    return [torch.from_numpy(value) for value in runtime.run(None, {'images': image.float().numpy()})]


def assert_detects(path, model, images):
    runtime, comparison = session(path), DetectionComparison()
    for image in images:
        comparison.add(found_by(runtime, image), predicted(model, image), tuple(image.shape[2:]))
    comparison.check()
    assert comparison.detections >= 5 * len(images), comparison
    return comparison


@pytest.mark.parametrize('case', WITH_BOXES)
def test_detections_of_20_scenes_are_those_of_mmdet(case, exported):
    model, path, result = exported(case)
    size = CASES[case][1]
    comparison = assert_detects(path, model, [scene(size, index) for index in range(20)])
    assert comparison.sizes == [size] and (comparison.masks is not None) == (case not in ('fcos', 'ssd'))
    scores = predicted(model, scene(size, 0))[1]
    assert len(scores.unique()) > 5, 'detections must be told apart by their scores'
    onnx = pytest.importorskip('onnx')
    graph = onnx.load(path)
    onnx.checker.check_model(graph, full_check=True)
    assert {entry.domain for entry in graph.opset_import} == {''} and graph.opset_import[0].version >= 18
    kinds = {node.op_type for node in graph.graph.node}
    assert 'NonMaxSuppression' in kinds and 'TopK' in kinds and ('RoiAlign' in kinds) == (case not in ('fcos', 'ssd'))
    outputs = {value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
               for value in graph.graph.output}
    assert outputs['boxes'] == ['detections', 4] and outputs['scores'] == outputs['labels'] == ['detections']
    assert 'detections are the same as those of PyTorch' in str(result) and '(detections, 4)' in str(result)
    facts = read_metadata({entry.key: entry.value for entry in graph.metadata_props})
    test = model.roi_head.test_cfg if 'masks' in outputs else model.bbox_head.test_cfg
    assert facts.task == 'detection' and facts.classes == scenes.CLASSES[1:] and facts.pad_divisor == 1
    assert (facts.score_threshold, facts.nms_iou_threshold) == (test.score_thr, test.nms.iou_threshold)
    assert facts.max_detections == test.max_per_img and facts.mask_threshold == test.get('mask_thr_binary')
    assert facts.takes(*size) and not facts.takes(size[0] + 32, size[1])


@pytest.mark.parametrize('case, sizes', [
    ('mask_rcnn', [(64, 80), (101, 134), (33, 160), (224, 288)]),
    pytest.param('fcos', [(100, 134), (65, 224)], marks=pytest.mark.slow),
    pytest.param('cascade', [(64, 80), (101, 134), (224, 288)], marks=pytest.mark.slow),
    pytest.param('ssd', [(320, 320), (301, 417)], marks=pytest.mark.slow),
])
def test_of_any_size(case, sizes, exported):
    model, path, result = exported(case, dynamic_size=True)
    assert_detects(path, model, [scene(size, index) for index, size in enumerate(sizes * 2)])
    facts = read_metadata(session(path).get_modelmeta().custom_metadata_map)
    bounds = Bounds(257, 512) if case == 'ssd' else Bounds(33, None)
    assert case == 'ssd' or facts.resize == ((1333, 800) if case == 'fcos' else (80, 64), True)
    assert (facts.size_step, facts.height, facts.width) == (1, bounds, bounds)
    assert all(facts.takes(*size) for size in sizes) and str(bounds.least) in str(result)


@pytest.mark.parametrize('dynamic', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_instances_of_a_mask2former(dynamic, exported):
    """Its queries are similar without training, so that each detection is to be told from many others."""
    size = CASES['mask2former'][1]
    model, path, _ = exported('mask2former', **(dict(dynamic_size=True) if dynamic else {}))
    sizes = [size, (70, 97), (33, 64)] if dynamic else [size]
    comparison = assert_detects(path, model, [scene(sizes[index % len(sizes)], index) for index in range(20)])
    assert comparison.detections == 20 * 20 and comparison.masks > 0.99 and comparison.score < 1e-5
    graph = pytest.importorskip('onnx').load(path)
    assert {entry.domain for entry in graph.opset_import} == {''}
    assert {'TopK', 'GridSample'} <= {node.op_type for node in graph.graph.node}
    facts = read_metadata({entry.key: entry.value for entry in graph.metadata_props})
    assert (facts.score_threshold, facts.nms_iou_threshold) == (0, None), 'nothing is suppressed'
    assert (facts.mask_threshold, facts.max_detections) == (0.5, 20)
    assert all(facts.takes(*size) for size in sizes)


@pytest.mark.parametrize('case', ['mask_rcnn', 'fcos'])
def test_an_image_without_detections(case, exported):
    model, path, _ = exported(case)
    quiet = build(config(case))
    head = quiet.roi_head.bbox_head.fc_cls if case == 'mask_rcnn' else quiet.bbox_head.conv_cls
    head.bias.data[:5] = -200
    image = scene(CASES[case][1], 0)
    assert len(predicted(quiet, image)[0]) == 0
    onnx = pytest.importorskip('onnx')
    graph = onnx.load(path)
    for tensor in graph.graph.initializer:
        if tensor.name.endswith(('fc_cls.bias', 'conv_cls.bias')):
            values = onnx.numpy_helper.to_array(tensor).copy()
            values[:5] = -200
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    found = found_by(session(graph.SerializeToString()), image)
    shapes = [(0, 4), (0, ), (0, ), (0, *CASES[case][1])]
    assert [tuple(value.shape) for value in found] == shapes[:len(found)]


def test_bounds_of_a_detector_that_does_not_pad():
    subject = Detection(build(config('ssd')))
    assert bounds_of(subject, torch.zeros(1, 3, 320, 320)) == [(257, 512)] * 2
    assert bounds_of(subject, torch.zeros(1, 3, 320, 640)) == [(257, 512), (513, None)]


BARE = '''
import json, sys
sys.path[:] = [path for path in sys.path if 'site-packages' not in path and 'dist-packages' not in path] + [sys.argv[1]]
import numpy, onnxruntime
for name in ('torch', 'torchvision', 'mmcv', 'mmengine', 'mmdet', 'mmlk', 'onnx'):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(name + ' can be imported here')
session = onnxruntime.InferenceSession(sys.argv[2], providers=['CPUExecutionProvider'])
outputs = session.run(None, {'images': numpy.load(sys.argv[3])})
numpy.savez(sys.argv[4], *outputs)
print(json.loads(session.get_modelmeta().custom_metadata_map['classes'])[0])
'''


@pytest.mark.parametrize('case', ['mask_rcnn', 'ssd'])
def test_in_an_environment_that_holds_onnxruntime_and_numpy_alone(case, exported, tmp_path):
    _, path, _ = exported(case)
    packages = tmp_path / 'packages'
    packages.mkdir()
    sites = {Path(importlib.util.find_spec(name).origin).parent.parent for name in ('onnxruntime', 'numpy')}
    for name in ('onnxruntime', 'numpy', 'numpy.libs', 'flatbuffers', 'google', 'packaging', 'sympy', 'mpmath',
                 'coloredlogs', 'humanfriendly'):
        for site in sites:
            if (site / name).exists() and not (packages / name).exists():
                (packages / name).symlink_to(site / name)
    image = scene(CASES[case][1], 1).float().numpy()
    np.save(tmp_path / 'image.npy', image)
    done = subprocess.run([sys.executable, '-I', '-S', '-c', BARE, str(packages), path, str(tmp_path / 'image.npy'),
                           str(tmp_path / 'found.npz')], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.strip() == 'disc', done.stdout + done.stderr
    here = session(path).run(None, {'images': image})
    there = np.load(tmp_path / 'found.npz')
    assert len(there.files) == len(here) and len(here[0]) > 0
    for name, value in zip(there.files, here):
        assert np.array_equal(there[name], value)


def test_the_example_of_the_manual(exported, tmp_path, monkeypatch, capsys):
    page = (CONFIGS.parent / 'docs' / 'export.md').read_text(encoding='utf-8')
    block = page.partition('```python\n')[2].partition('```')[0]
    model, path, _ = exported('mask_rcnn')
    shutil.copy(path, tmp_path / 'mask_rcnn.onnx')
    image = scene((64, 80), 2)
    Image.fromarray(image[0].permute(1, 2, 0).numpy()).save(tmp_path / 'street.jpg', quality=100, subsampling=0)
    monkeypatch.chdir(tmp_path)
    exec(compile(block, 'export.md', 'exec'), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(predicted(model, image)[0]) and lines[0].split()[0] in scenes.CLASSES


def test_the_computation_is_mmdets_to_the_last_bit():
    for case, (_, size) in CASES.items():
        model = build(config(case))
        end_to_end(model)
        image = scene((224, 288) if case != 'ssd' else size, 5)  # large enough for boxes of several levels
        inputs = model.data_preprocessor(dict(inputs=list(image.flip(1)), data_samples=None), False)['inputs']
        with torch.no_grad():
            found = detect(model, inputs, tuple(image.shape[2:]))
        expected = predicted(model, image)
        order = expected[1].argsort(descending=True, stable=True)  # those of Mask2Former are in no order
        expected = [values[order] for values in expected]
        assert len(found) == len(expected) and len(found[0]) > 0
        for ours, theirs in zip(found[:3], expected):
            assert torch.equal(ours, theirs), case
        for ours, theirs in zip(found[3:], expected[3:]):  # sums in another order: pixels at the threshold may differ
            assert (ours != theirs).float().mean() < 1e-5, case


def test_regions_are_of_the_level_that_fits_the_box():
    extractor = build_network(config('mask_rcnn')).roi_head.bbox_roi_extractor
    maps = [torch.rand(1, 64, 512 // stride, 512 // stride) for stride in (4, 8, 16, 32)]
    sides = torch.tensor([3.0, 50, 111.9, 112, 200, 223.9, 224, 300, 447.9, 448, 500])
    boxes = torch.stack([torch.full_like(sides, 5), torch.full_like(sides, 7), 5 + sides, 7 + sides], 1)
    expected = extractor(maps, torch.cat([torch.zeros(len(boxes), 1), boxes], 1))
    assert torch.equal(_regions(extractor, maps, boxes), expected)


def test_heads_of_another_kind_are_named():
    def message(case, change):
        model = build_network(config(case))
        change(model)
        with pytest.raises(ValueError, match='Use --outputs features') as error:
            end_to_end(model)
        return str(error.value)

    def other_roi_head(model):
        model.roi_head.__class__ = type('OwnRoIHead', (type(model.roi_head), ), dict(predict_bbox=lambda self: None))

    def other_extractor(model):
        model.roi_head.mask_roi_extractor = torch.nn.Conv2d(1, 1, 1)

    assert message('fcos', lambda model: setattr(model.bbox_head, 'prior_generator', 7)) == (
        'this FCOS cannot be exported end to end: its bbox_head.prior_generator is a int. Use --outputs features for '
        'the maps that its heads take or give')
    assert "its roi_head.test_cfg.nms is {'type': 'soft_nms'" in message(
        'mask_rcnn', lambda model: model.roi_head.test_cfg.nms.update(type='soft_nms'))
    assert 'this MaskRCNN cannot be exported end to end: its roi_head is a OwnRoIHead' in message(
        'mask_rcnn', other_roi_head)
    assert 'this CascadeRCNN cannot be exported end to end: its roi_head is a OwnRoIHead' in message(
        'cascade', other_roi_head)
    assert 'its region extractor is a Conv2d' in message('mask_rcnn', other_extractor)
    assert 'its panoptic_fusion_head is one that predicts more than instances' in message(
        'mask2former', lambda model: model.panoptic_fusion_head.test_cfg.update(panoptic_on=True))


def test_boxes_around_masks_are_mmdets():
    from mmdet.structures.mask import mask2bbox
    masks = torch.rand(9, 7, 11) > 0.95
    masks[0] = False
    assert torch.equal(_around(masks), mask2bbox(masks))


def detections(count=3):
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0]]).repeat(count, 1) + 100 * torch.arange(count)[:, None]
    masks = torch.zeros(count, 10, 10, dtype=torch.bool)
    masks[:, :5] = True
    return [boxes, torch.linspace(0.9, 0.5, count), torch.arange(count), masks]


@pytest.mark.parametrize('output, change', [
    (0, lambda boxes: boxes + torch.tensor([0, 0, 0, 1.2])), (1, lambda scores: scores + 0.0011),
    (2, lambda labels: labels + 1), (3, lambda masks: masks | (torch.arange(10) == 7)[:, None]),
])
def test_a_comparison_counts_what_differs(output, change):
    same, other, none = DetectionComparison(), DetectionComparison(), DetectionComparison()
    same.add(detections(), detections(), (10, 10))
    same.check()
    assert (same.matched, same.detections, same.masks) == (3, 3, 1.0)
    found = detections()
    found[output] = change(found[output])
    other.add(found, detections(), (10, 10))
    assert other.detections == 3 and other.matched < 3
    with pytest.raises(ValueError, match='of 3 detections are the same as those of PyTorch; the file was not kept'):
        other.check()
    none.add(detections(0), detections(0), (10, 10))
    with pytest.raises(ValueError, match='the model finds nothing in the 1 images'):
        none.check()
    fewer = DetectionComparison()
    fewer.add(detections(4), detections(3), (10, 10))
    assert fewer.detections == 4 and fewer.matched <= 3


def test_similar_detections_are_matched_with_the_closest():
    """The first that is similar enough would leave another one without a partner."""
    boxes, labels, masks = torch.tensor([[0.0, 0, 9, 9]] * 3), torch.zeros(3), torch.ones(3, 4, 4, dtype=torch.bool)
    scores = torch.tensor([0.5000, 0.5008, 0.5016])
    comparison = DetectionComparison()
    comparison.add([boxes, scores[[1, 2, 0]], labels, masks], [boxes, scores, labels, masks], (10, 10))
    assert (comparison.matched, comparison.detections, comparison.score) == (3, 3, 0)


def test_a_file_whose_detections_differ_is_not_kept(exported, tmp_path, monkeypatch):
    cfg = config('mask_rcnn')
    torch.save(build(cfg).state_dict(), tmp_path / 'trained.pth')
    Image.fromarray(scenes.draw(4, 'val', 0, (64, 80)).image).save(tmp_path / 'scene.png')
    opened = formats.open_exported

    def faulty(path, format):
        runner = opened(path, format)
        return lambda images: [out + 0.01 if index == 1 else out for index, out in enumerate(runner(images))]

    monkeypatch.setattr(formats, 'open_exported', faulty)
    monkeypatch.setattr(formats, 'write_graph', lambda graph, path, *args: Path(path).write_bytes(
        Path(exported('mask_rcnn')[1]).read_bytes()))
    with pytest.raises(ValueError, match='only 0 of .* the file was not kept'):
        export(cfg, str(tmp_path / 'trained.pth'), str(tmp_path / 'model.onnx'), [tmp_path / 'scene.png'],
               size=(64, 80))
    assert sorted(path.name for path in tmp_path.iterdir()) == ['scene.png', 'trained.pth']
    assert json.loads(session(exported('mask_rcnn')[1]).get_modelmeta().custom_metadata_map['size']) == [64, 80]
