"""Predictions from a config and a checkpoint are those of tools/test.py, of an exported file, and of the toolboxes."""
import argparse
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco

from mmlk.cli import main
from mmlk.cli import test as test_command
from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.deploy.export import export
from mmlk.engine.network import build_network
from mmlk.predict import ImageError, Predictor
from tests.utils import fill

REPO = Path(__file__).resolve().parent.parent.parent
DEMO = REPO / 'configs' / 'demo'
LAYOUTS = dict(ade20k='upernet_replknet-tiny_ade20k', cityscapes='upernet_replknet-tiny_cityscapes',
               coco='mask_rcnn_replknet-tiny_coco')
IMAGES = dict(ade20k='images/validation', cityscapes='leftImg8bit/val', coco='val2017')


@pytest.fixture(scope='module')
def work(tmp_path_factory):
    """A folder with scenes and a checkpoint for each layout."""
    folder = tmp_path_factory.mktemp('predict')
    for layout, name in LAYOUTS.items():
        write_demo(DemoPlan(layout, seed=0, train=1, val=3, size=(64, 90)), folder / layout)
        network = fill(build_network(Config.fromfile(DEMO / f'{name}.py')))
        torch.save(dict(state_dict=network.state_dict()), folder / f'{layout}.pth')
        if layout != 'coco':  # so that all classes are predicted somewhere: their logits have the mean 0
            image = np.array(Image.open(images(folder, layout)[0]))
            logits = predictor(folder, layout)._model.scores(image)
            network.decode_head.conv_seg.bias.data.sub_(torch.from_numpy(logits.mean((1, 2))))
            torch.save(dict(state_dict=network.state_dict()), folder / f'{layout}.pth')
    return folder


@pytest.fixture(autouse=True)
def _one_backend(monkeypatch):
    """The backend of the operator is chosen by time otherwise, and rounding differs between them."""
    monkeypatch.setenv('MMLK_BACKEND', 'native')


def config(layout):
    return str(DEMO / f'{LAYOUTS[layout]}.py')


def predictor(work, layout, **arguments):
    return Predictor(config(layout), str(work / f'{layout}.pth'), device='cpu', **arguments)


def images(work, layout):
    return sorted(path for path in (work / layout / IMAGES[layout]).rglob('*') if path.suffix in ('.jpg', '.png'))


def run_test(work, layout, out, *options):
    """What tools/test.py does."""
    parser = argparse.ArgumentParser()
    test_command.add_arguments(parser)
    data = f'{work / layout}/'
    settings = [f'test_dataloader.dataset.data_root={data}', *options]
    if layout == 'coco':
        settings.append(f'test_evaluator.ann_file={data}annotations/instances_val2017.json')
    test_command.test(parser.parse_args([
        config(layout), str(work / f'{layout}.pth'), '--out', str(out), '--work-dir', str(out) + '.work',
        '--cfg-options', *settings]))


@pytest.mark.parametrize('layout', ['ade20k', 'cityscapes'])
def test_label_pngs_equal_those_of_the_test_tool(layout, work, tmp_path):
    run_test(work, layout, tmp_path / 'tested')
    main(['predict', config(layout), str(work / f'{layout}.pth'), str(work / layout / IMAGES[layout]),
          '--out', str(tmp_path / 'predicted'), '--device', 'cpu'])
    expected, found = (sorted(folder.iterdir()) for folder in (tmp_path / 'tested', tmp_path / 'predicted' / 'labels'))
    assert [path.name for path in found] == [path.name for path in expected] and len(found) == 3
    for path, other in zip(found, expected):
        assert path.read_bytes() == other.read_bytes()
    values = {value for path in found for value in np.unique(Image.open(path))}
    assert len(values) > 1 and min(values) == (layout == 'ade20k')
    assert len(list((tmp_path / 'predicted' / 'overlays').iterdir())) == 3


def test_detections_equal_those_of_the_test_tool(work, tmp_path):
    run_test(work, 'coco', tmp_path / 'tested.pkl')
    with open(tmp_path / 'tested.pkl', 'rb') as file:
        expected = {Path(sample['img_path']).name: sample['pred_instances'] for sample in pickle.load(file)}
    ours = predictor(work, 'coco', score_threshold=0)
    for path in images(work, 'coco'):
        prediction, theirs = ours(ours.read(path)), expected.pop(path.name)
        assert len(prediction.boxes) > 10
        assert (prediction.boxes == theirs['bboxes'].numpy()).all()
        assert (prediction.scores == theirs['scores'].numpy()).all()
        assert (prediction.class_ids == theirs['labels'].numpy()).all()
        assert (prediction.masks == coco.decode(theirs['masks']).transpose(2, 0, 1)).all()
    assert not expected
    few = predictor(work, 'coco', score_threshold=float(np.median(prediction.scores)))(ours.read(path))
    assert 0 < len(few.boxes) < len(prediction.boxes)
    assert (few.boxes == prediction.boxes[:len(few.boxes)]).all() and len(few.crops) == len(few.boxes)


@pytest.mark.parametrize('layout', ['ade20k', 'coco'])
def test_a_tile_as_large_as_the_image_is_the_image(layout, work):
    whole, tiled = (predictor(work, layout, score_threshold=0.1, **arguments) for arguments in ({}, dict(tile=100)))
    image = whole.read(images(work, layout)[0])
    expected, found = whole(image), tiled(image)
    if layout == 'ade20k':
        assert (found.labels == expected.labels).all()
    else:
        assert (found.boxes == expected.boxes).all() and (found.masks == expected.masks).all()
    small = predictor(work, layout, score_threshold=0.1, tile=48, overlap=16)(image)
    assert (small.labels.shape == image.shape[:2] if layout == 'ade20k' else len(small.boxes) > len(expected.boxes))


@pytest.mark.parametrize('window', [False, True])
def test_an_exported_segmentor_predicts_as_its_config(window, work, tmp_path):
    cfg, size = Config.fromfile(config('ade20k')), (71, 100)  # as the test pipeline resizes 64x90
    if window:
        size = (48, 48)
        cfg.model.test_cfg = dict(mode='slide', crop_size=size, stride=(16, 32))
    paths = images(work, 'ade20k')
    export(cfg, str(work / 'ade20k.pth'), str(tmp_path / 'model.pt'), paths[:1], 'torchscript', size)
    ours = Predictor(cfg, str(work / 'ade20k.pth'), device='cpu')
    theirs = Predictor(str(tmp_path / 'model.pt'), device='cpu')
    assert (theirs.classes, theirs.palette) == (ours.classes, ours.palette) and theirs.reduce_zero_label
    for path in paths:
        image = ours.read(path)
        assert (theirs.read(path) == image).all()
        labels = ours(image).labels
        assert len(np.unique(labels)) > 1 and (theirs(image).labels == labels).mean() > 0.999
        scores, expected = theirs._model.scores(image), ours._model.scores(image)
        assert np.abs(scores - expected).max() < 1e-3 * expected.std(), 'as far as float32 goes'


def test_an_end_to_end_detector_predicts_as_its_config(work, tmp_path):
    pytest.importorskip('onnxscript', reason='ONNX files are written by onnxscript, an optional package')
    cfg = Config.fromfile(config('coco'))
    cfg.model.backbone.arch = dict(large_kernel_sizes=[5] * 4, layers=[1] * 4, channels=[8, 8, 16, 16])
    cfg.model.neck.in_channels = [8, 8, 16, 16]
    network = fill(build_network(cfg))
    for name, parameter in network.named_parameters():  # so that scores differ from each other
        if name.endswith(('cls.weight', 'fc_cls.weight')):
            parameter.data.mul_(4)
    torch.save(dict(state_dict=network.state_dict()), tmp_path / 'trained.pth')
    paths = images(work, 'coco')
    export(cfg, str(tmp_path / 'trained.pth'), str(tmp_path / 'model.onnx'), paths[:1], 'onnx', (57, 80))
    ours = Predictor(cfg, str(tmp_path / 'trained.pth'), device='cpu', score_threshold=0.1)
    theirs = Predictor(str(tmp_path / 'model.onnx'), device='cpu', score_threshold=0.1)
    for path in paths:
        image = ours.read(path)
        expected, found = ours(image), theirs(image)
        assert len(expected.boxes) > 5 and found.masks.shape[1:] == image.shape[:2]
        alike = []
        for index, box in enumerate(expected.boxes):
            close = np.flatnonzero((np.abs(found.boxes - box).max(1) < 0.1)
                                   & (found.class_ids == expected.class_ids[index])
                                   & (np.abs(found.scores - expected.scores[index]) < 1e-3))
            # the file's masks are of the resized image, and are resized again
            if close.size:
                alike.append(max((found.masks[other] == expected.masks[index]).mean() for other in close))
        assert len(alike) >= 0.97 * len(expected.boxes) and np.mean(alike) > 0.97


def test_a_memory_format_that_the_config_sets_is_that_of_the_predictor(work):
    cfg = Config.fromfile(config('ade20k'))
    cfg.custom_hooks = [dict(type='mmlk.MemoryFormatHook', memory_format='contiguous')]
    ours = Predictor(cfg, str(work / 'ade20k.pth'), device='cpu')
    formats = [[hook.memory_format for hook in one.model.backbone._forward_pre_hooks.values()]
               for one in (ours, predictor(work, 'ade20k'))]
    assert formats[0] == [torch.contiguous_format] != formats[1]


def test_names_come_from_the_checkpoint_and_the_config(work, tmp_path):
    ours = predictor(work, 'coco')
    assert ours.classes == ('disc', 'ring', 'square', 'bar', 'cross') and ours.palette[0] == (230, 75, 60)
    assert ours.task == 'detection' and not ours.reduce_zero_label and not ours.model.training
    state = torch.load(work / 'ade20k.pth')
    meta = dict(dataset_meta=dict(classes=tuple('abcdef'), palette=[[index, 0, 9] for index in range(6)]))
    torch.save(dict(state, meta=meta), tmp_path / 'named.pth')
    named = Predictor(config('ade20k'), str(tmp_path / 'named.pth'), device='cpu')
    assert named.classes == tuple('abcdef') and named.palette[2] == (2, 0, 9) and named.reduce_zero_label


def test_images_of_four_bands_are_loaded_as_in_a_test(work, tmp_path):
    import tifffile
    load = dict(type='LoadImageFromFile', color_type='unchanged', imdecode_backend='tifffile')
    cfg = Config.fromfile(config('ade20k'))
    cfg.test_dataloader.dataset.pipeline[0] = load
    cfg.model.backbone.in_channels = 4
    cfg.model.data_preprocessor.update(type='mmlk.SegDataPreProcessor', mean=[90] * 4, std=[50] * 4, bgr_to_rgb=False)
    torch.save(dict(state_dict=fill(build_network(cfg)).state_dict()), tmp_path / 'four.pth')
    bands = np.random.RandomState(0).randint(0, 256, (64, 80, 4), np.uint8)
    tifffile.imwrite(tmp_path / 'a.tif', bands)
    ours = Predictor(cfg, str(tmp_path / 'four.pth'), device='cpu')
    assert (ours.read(tmp_path / 'a.tif') == bands).all()
    prediction = ours(bands)
    assert prediction.labels.shape == (64, 80) and prediction.overlay(bands, legend=False).shape == (64, 80, 3)
    Image.fromarray(bands[..., :3]).save(tmp_path / 'b.tif')
    with pytest.raises(ImageError, match='b.tif: the model takes images of 4 channels, got 3'):
        ours.read(tmp_path / 'b.tif')


def test_what_cannot_be_used_is_refused(work, tmp_path, capsys):
    with pytest.raises(ValueError, match='classifier|backbone'):
        Predictor(Config(dict(model=dict(type='mmpretrain.ImageClassifier'))), 'x.pth')
    with pytest.raises(ValueError, match='must begin with a step that loads an image'):
        cfg = Config.fromfile(config('ade20k'))
        cfg.test_dataloader.dataset.pipeline = cfg.test_dataloader.dataset.pipeline[1:]
        Predictor(cfg, str(work / 'ade20k.pth'), device='cpu')
    with pytest.raises(ValueError, match="the device 'nothing' cannot be used"):
        Predictor(config('ade20k'), str(work / 'ade20k.pth'), device='nothing')
    with pytest.raises(ValueError, match='cfg_options do not fit'):
        predictor(work, 'ade20k', cfg_options={'train_pipeline.9.x': 1})
    ours = predictor(work, 'ade20k')
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(ImageError, match='text.png cannot be read as an image'):
        ours.read(tmp_path / 'text.png')
    with pytest.raises(SystemExit) as ended:
        main(['predict', config('coco'), str(work / 'ade20k.pth'), str(tmp_path / 'text.png'), '--out',
              str(tmp_path / 'out')])
    assert ended.value.code == 2 and capsys.readouterr().err.startswith('error: ')


def test_the_inferencers_of_the_toolboxes_take_our_configs(work):
    from mmdet.apis import DetInferencer
    from mmengine.registry import init_default_scope
    from mmseg.apis import MMSegInferencer
    for layout, kind in (('ade20k', MMSegInferencer), ('coco', DetInferencer)):
        image = predictor(work, layout).read(images(work, layout)[0])
        inferencer = kind(config(layout), str(work / f'{layout}.pth'), device='cpu')
        bgr = np.ascontiguousarray(image[..., ::-1])
        expected = predictor(work, layout, score_threshold=0)(image)
        if layout == 'ade20k':
            sample = inferencer(bgr, return_datasamples=True)
            assert (sample.pred_sem_seg.data[0].numpy() == expected.labels).all()
        else:
            sample = inferencer(bgr, return_datasamples=True, no_save_vis=True)['predictions'][0]
            assert (sample.pred_instances.bboxes.numpy() == expected.boxes).all()
            assert (sample.pred_instances.masks.numpy() == expected.masks).all()
        init_default_scope('mmengine')
