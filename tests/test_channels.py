"""Every tool on images of one, three and four channels, under each kind of head for two classes."""
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import PixelData
from PIL import Image

from mmlk.analysis import cam, complexity, erf, latency, panels
from mmlk.cli.prepare import build_runner
from mmlk.datasets.images import as_loaded, open_bands, packaged_photographs, read_image, viewable
from mmlk.deploy.export import export
from mmlk.deploy.merging import merge_checkpoint
from mmlk.engine.hooks import CheckLabelsHook
from mmlk.engine.loading import DataError
from mmlk.engine.network import build_network, in_channels
from mmlk.preprocessors import IMAGENET_MEAN, IMAGENET_STD, Normalization
from mmlk.reparam import merge
from tests.test_training import CONFIGS, shrink_model
from tests.utils import fill, relative_error

SIDE = 64
MODES, LOADS = {1: 'L', 3: 'RGB', 4: 'RGBA'}, {1: 'grayscale', 3: 'color', 4: 'unchanged'}
MEAN, STD = (90.0, 100.0, 110.0, 120.0), (50.0, 55.0, 60.0, 65.0)
SIGMOID = dict(type='CrossEntropyLoss', use_sigmoid=True)
HEADS = {  # what mmseg takes for two classes
    'softmax': dict(num_classes=2, loss_decode=dict(type='CrossEntropyLoss')),
    'one channel of two': dict(num_classes=2, out_channels=1, threshold=0.5, loss_decode=SIGMOID),
    'one class': dict(num_classes=1, threshold=0.5, loss_decode=SIGMOID),
}
CASES = [(channels, head) for channels in MODES for head in HEADS]


def config(folder, channels, head):
    """A UperNet over two images of these channels, labels 0 and 1 in each."""
    cfg = Config.fromfile(str(CONFIGS / 'upernet_replknet31b_ade20k.py'))
    shrink_model(cfg.model)
    cfg.model.backbone.in_channels = channels
    cfg.model.decode_head.update(HEADS[head])
    cfg.model.auxiliary_head.update(HEADS[head])
    cfg.model.data_preprocessor = dict(type='mmlk.SegDataPreProcessor', mean=MEAN[:channels], std=STD[:channels],
                                       bgr_to_rgb=channels == 3, size=(SIDE, SIDE), pad_val=0, seg_pad_val=255)
    classes = ('ground', 'crack') if head != 'one class' else ('crack', )
    load, labels = dict(type='LoadImageFromFile', color_type=LOADS[channels]), dict(type='LoadAnnotations')
    resize, pack = dict(type='Resize', scale=(SIDE, SIDE)), dict(type='PackSegInputs')
    for split in ('train', 'val', 'test'):
        dataset = dict(type='BaseSegDataset', data_root=str(folder), img_suffix='.png', seg_map_suffix='.png',
                       data_prefix=dict(img_path='images', seg_map_path='labels'), metainfo=dict(classes=classes),
                       pipeline=[load, labels, resize, pack] if split == 'train' else [load, resize, labels, pack])
        cfg[f'{split}_dataloader'].update(num_workers=0, persistent_workers=False, dataset=dataset)
    cfg.train_dataloader.batch_size = 2
    cfg.train_cfg.update(max_iters=1, val_interval=2)
    cfg.param_scheduler = None
    cfg.work_dir = str(folder / 'work')
    cfg.experiment_name = f'{channels} {head}'
    return cfg


def write_data(folder, channels):
    random = np.random.RandomState(channels)
    for index in range(2):
        for name, mode, picture in (
                ('images', MODES[channels], random.randint(0, 256, (SIDE, SIDE, channels), np.uint8).squeeze()),
                ('labels', 'L', random.randint(0, 2, (SIDE, SIDE), np.uint8))):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(picture, mode).save(folder / name / f'{index}.png')


@pytest.fixture(params=CASES, ids=[f'{channels}-{head}' for channels, head in CASES])
def case(request, tmp_path):
    """The config, its model with weights of every kind random, their checkpoint, and the folder of the data."""
    channels, head = request.param
    write_data(tmp_path, channels)
    cfg = config(tmp_path, channels, head)
    model = fill(build_network(cfg)).eval()
    model.data_preprocessor = build_network(cfg).data_preprocessor  # its constants are not of the weights
    found = SimpleNamespace(cfg=cfg, model=model, checkpoint=str(tmp_path / 'trained.pth'), folder=tmp_path,
                            channels=channels, head=head)
    logits, _ = expected(found)
    margin = logits[0, -1] - logits[0, 0] if len(logits[0]) > 1 else logits[0, 0]
    model.decode_head.conv_seg.bias.data[-1] -= margin.quantile(0.4)  # so that there are pixels of both labels
    assert 0.55 < expected(found)[1].float().mean() < 0.65
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    return found


def expected(case, index=0):
    """By hand: the logits (1, C, H, W) of an image, and its labels (H, W)."""
    picture = np.asarray(Image.open(case.folder / 'images' / f'{index}.png')).reshape(SIDE, SIDE, case.channels)
    # OpenCV gives the four channels of a PNG as blue, green, red and alpha
    order = [2, 1, 0, 3] if case.channels == 4 else list(range(case.channels))
    inputs = torch.from_numpy(picture[..., order].copy()).permute(2, 0, 1).float()
    mean, std = (torch.tensor(values[:case.channels])[:, None, None] for values in (MEAN, STD))
    with torch.no_grad():
        logits = case.model.decode_head(case.model.extract_feat(((inputs - mean) / std)[None]))
        logits = torch.nn.functional.interpolate(logits, (SIDE, SIDE), mode='bilinear', align_corners=False)
    labels = logits[0].argmax(0) if case.head == 'softmax' else (logits[0, 0] > 0).long()
    assert logits.shape[1] == (2 if case.head == 'softmax' else 1)
    return logits, labels


def test_analyses(case):
    """Prediction, class activation maps, receptive fields, counts and latency."""
    logits, labels = expected(case)
    scenes, classes, palette = panels.predict_some(case.cfg, case.checkpoint, 2)
    assert (scenes[0].prediction != labels.numpy()).mean() < 1e-3 and scenes[0].image.shape == (SIDE, SIDE, 3)
    assert list(classes) == [{'one class': 'background'}.get(case.head, 'ground'), 'crack']
    truth = np.asarray(Image.open(case.folder / 'labels' / '0.png'))
    assert np.array_equal(scenes[0].truth, truth)
    panels.panels(scenes, classes, palette).savefig(case.folder / 'panels.png')

    if find_spec('pytorch_grad_cam'):
        subject = cam.subject_from_config(case.cfg, case.model)
        sample = subject.sample(case.folder / 'images' / '0.png')
        for label in (None, 0, 1):
            choice, maps = cam.explain(subject, sample, [cam.LAST_MAP], label=label)
            assert choice.label == (1 if label is None else label) and choice.found.endswith('% of the pixels')
            assert (choice.region != (labels == choice.label).numpy()).mean() < 1e-3
            assert maps[cam.LAST_MAP].shape == (SIDE, SIDE)
            sign = -1 if len(logits[0]) == 1 and choice.label == 0 else 1
            score = sign * logits[0, choice.label if len(logits[0]) > 1 else 0][labels == choice.label].sum()
            assert subject.score(subject(sample.inputs)[0], choice).item() == pytest.approx(score.item(), rel=1e-3)
        assert subject.classes == list(classes)

    network = erf.erf_from_config(case.cfg, initialise=True)
    stage, _ = network.check(SIDE)
    photographs = [read_image(path, SIDE, case.channels) for path in packaged_photographs()[:1]]
    assert photographs[0].shape == (SIDE, SIDE, case.channels)
    assert erf.measure_erf(network, photographs, stage).scores.shape == (SIDE, SIDE)

    counted = complexity.count(complexity.build_on_meta(case.cfg), (SIDE, SIDE), in_channels(case.cfg))
    assert counted.parameters < sum(p.numel() for p in case.model.parameters())
    network = latency.latency_from_config(case.cfg, 'x', 'model')
    for mode in latency.MODES:
        row, = latency.measure_latency([network], [network.build()], [latency.Variant()], mode, (SIDE, SIDE), 2,
                                       torch.device('cpu'), turns=1, warmup=1)
        assert row.failed is None


def test_merged_and_exported(case):
    """Both compare with the model themselves; here, that what they write is right."""
    out = str(case.folder / 'merged.pth')
    result = merge_checkpoint(case.cfg, case.checkpoint, out)
    assert result.blocks == 5 and result.largest_difference < 1e-3 * result.largest_feature
    photograph = str(case.folder / 'images' / '0.png')
    exported = export(case.cfg, case.checkpoint, str(case.folder / 'x.pt'), [case.folder / 'images' / '0.png'],
                      'torchscript', (SIDE, SIDE))
    picture = np.asarray(Image.open(photograph)).reshape(SIDE, SIDE, case.channels)
    order = [2, 1, 0, 3] if case.channels == 4 else list(range(case.channels))
    images = torch.from_numpy(picture[..., order].copy()).permute(2, 0, 1).float()[None]
    logits, labels = expected(case)
    with torch.no_grad():
        found_labels, found_logits = torch.jit.load(case.folder / 'x.pt')(images)
    assert relative_error(found_logits, logits) < 1e-5 and (found_labels[0] != labels).float().mean() < 1e-3
    order = {1: 'grey', 3: 'RGB', 4: 'channels as in the data'}[case.channels]
    assert f'(batch, {case.channels}, {SIDE}, {SIDE}), {order}, values 0 to 255' in str(exported)


def test_a_run_trains_and_tests(case):
    """Labels 0 and 1 are legal, and 2 is not; a merged model tests as the plain one does."""
    cfg = case.cfg.copy()
    runner = build_runner(cfg)
    runner.train()
    runner.model.load_state_dict(case.model.state_dict())
    logits, labels = expected(case)
    with torch.no_grad():
        for model in (runner.model.eval(), merge(runner.model)):
            sample = model.test_step(next(iter(runner.test_dataloader)))[0]
            assert (sample.pred_sem_seg.data[0] != labels).float().mean() < 1e-3
    hook, = [hook for hook in runner.hooks if isinstance(hook, CheckLabelsHook)]
    batch = next(iter(runner.train_dataloader))
    batch['data_samples'][1].gt_sem_seg = PixelData(data=torch.full((1, SIDE, SIDE), 2))
    with pytest.raises(DataError, match='holds label 2 after loading; the segmentor has classes 0 to 1'):
        hook.before_train_iter(runner, 0, batch)


@pytest.mark.parametrize('mean', [[100.0], None])
def test_a_mean_of_one_value_and_none(mean, tmp_path):
    """mmseg's own preprocessor, on three channels: the deviation is of one value too, or nothing is normalised."""
    write_data(tmp_path, 3)
    cfg = config(tmp_path, 3, 'softmax')
    cfg.model.data_preprocessor.update(type='SegDataPreProcessor', mean=mean, std=mean and [50.0])
    model = fill(build_network(cfg)).eval()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    checkpoint, picture = str(tmp_path / 'trained.pth'), tmp_path / 'images' / '0.png'
    result = merge_checkpoint(cfg, checkpoint, str(tmp_path / 'merged.pth'), str(picture))
    images = torch.from_numpy(np.array(Image.open(picture))).permute(2, 0, 1)[None].float()
    inputs = (images - 100) / 50 if mean else images
    with torch.no_grad():
        maps = model.backbone(inputs)
        logits = torch.nn.functional.interpolate(model.decode_head(maps), (SIDE, SIDE), mode='bilinear')
    assert result.blocks == 5
    export(cfg, checkpoint, str(tmp_path / 'x.pt'), [picture], 'torchscript', (SIDE, SIDE))
    assert relative_error(torch.jit.load(tmp_path / 'x.pt')(images)[1], logits) < 1e-5
    network = erf.erf_from_config(cfg, initialise=True)
    standard = torch.zeros(1, 3, SIDE, SIDE)  # an image of ImageNet's mean
    pixels = standard + torch.tensor(IMAGENET_MEAN)[:, None, None]
    with torch.no_grad():
        expected_maps = network.backbone((pixels - 100) / 50 if mean else pixels)
        assert relative_error(network.maps(standard)[3], expected_maps[-1]) < 1e-5


@pytest.mark.parametrize('toolbox, name', [('mmseg', 'SegDataPreProcessor'), ('mmdet', 'DetDataPreprocessor')])
@pytest.mark.parametrize('channels', [1, 3, 5])
def test_preprocessors_of_any_number_of_channels(toolbox, name, channels):
    pytest.importorskip(toolbox)
    mean, std = np.arange(1.0, channels + 1), np.arange(2.0, channels + 2)
    pad = dict(size_divisor=32) if toolbox == 'mmseg' else dict(pad_size_divisor=32)
    image = torch.randint(0, 256, (channels, 32, 64), dtype=torch.uint8)
    found = []
    for kind in [f'mmlk.{name}'] + [name] * (channels != 5):
        with DefaultScope.overwrite_default_scope(toolbox):
            preprocessor = MODELS.build(dict(type=kind, mean=mean.tolist(), std=std.tolist(), bgr_to_rgb=channels == 3,
                                             **pad))
        assert type(preprocessor).__name__ == name and not preprocessor.state_dict()
        found.append(preprocessor(dict(inputs=[image], data_samples=None), False)['inputs'][0])
    pixels = (image.flip(0) if channels == 3 else image).double().numpy()
    by_hand = (pixels - mean[:, None, None]) / std[:, None, None]
    assert all(np.abs(out.numpy() - by_hand).max() < 1e-4 for out in found)


@pytest.mark.parametrize('toolbox, name', [('mmseg', 'SegDataPreProcessor'), ('mmdet', 'DetDataPreprocessor')])
@pytest.mark.parametrize('channels, settings', [
    (3, dict(mean=[1, 2, 3], std=[4, 5, 6], bgr_to_rgb=True)), (3, dict(mean=[1, 2, 3], std=[4, 5, 6])), (3, {}),
    (3, dict(bgr_to_rgb=True)), (1, dict(mean=[7], std=[8])), (5, dict(mean=[1, 2, 3, 4, 5], std=[2, 3, 4, 5, 6])),
])
def test_normalization_is_that_of_the_preprocessor(toolbox, name, channels, settings):
    """Read from the config or from the module, for images that are RGB where mmcv's are BGR."""
    pytest.importorskip(toolbox)
    pad = dict(size_divisor=32) if toolbox == 'mmseg' else dict(pad_size_divisor=32)
    settings = dict(type=f'mmlk.{name}', **settings, **pad)
    with DefaultScope.overwrite_default_scope(toolbox):
        preprocessor = MODELS.build(dict(settings))
    image = torch.randint(0, 256, (channels, 32, 64), dtype=torch.uint8)
    read_by_mmcv = image.flip(0) if channels == 3 else image
    expected = preprocessor(dict(inputs=[read_by_mmcv], data_samples=None), False)['inputs'][0].float()
    cfg = Config(dict(model=dict(data_preprocessor=settings)))
    for read, source in ((Normalization.of_config, cfg), (Normalization.of_preprocessor, preprocessor)):
        normalization = read(source, channels)
        assert torch.allclose(normalization(image.float()), expected, atol=1e-5)
        assert torch.equal(normalization(image.float()[None])[0], normalization(image.float()))


def test_normalization_of_timm_and_of_imagenet():
    usual = Normalization.of_timm(dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)))
    assert usual == Normalization() == Normalization.imagenet() == Normalization.of_config(Config(dict(model={})))
    assert Normalization.of_timm(dict(mean=(0.5, ) * 3, std=(0.5, ) * 3)) == ((127.5, ) * 3, (127.5, ) * 3, False)
    assert Normalization.imagenet(4).mean == (*IMAGENET_MEAN, IMAGENET_MEAN[0])
    assert Normalization.imagenet(1).std == (pytest.approx(sum(IMAGENET_STD) / 3), )


@pytest.mark.parametrize('change, problem', [
    (dict(mean=[1, 2, 3, 4], std=[1, 2, 3]), 'mean and std must be of the same channels'),
    (dict(mean=[1, 2, 3, 4], std=None), 'mean and std must be of the same channels'),
    (dict(mean=[1, 2, 3, 4], std=[1, 2, 3, 4], bgr_to_rgb=True), 'bgr_to_rgb is of images of three channels'),
    (dict(mean=[1, 2], std=[1, 0]), 'std must be above zero'),
])
@pytest.mark.parametrize('name', ['SegDataPreProcessor', 'DetDataPreprocessor'])
def test_preprocessors_refuse(name, change, problem):
    with pytest.raises(ValueError, match=problem):
        MODELS.build(dict(type=f'mmlk.{name}', **change))


def test_channels_of_files(tmp_path):
    """Files that have as many channels are read as they are; others give red, green and blue in turn, or grey."""
    random = np.random.RandomState(0)
    five = random.randint(0, 256, (20, 30, 5), np.uint8)
    tifffile = pytest.importorskip('tifffile')
    tifffile.imwrite(tmp_path / 'five.tif', five, photometric='minisblack', planarconfig='contig')
    tifffile.imwrite(tmp_path / 'planes.tif', five.transpose(2, 0, 1).astype(np.uint16) << 8, photometric='minisblack')
    for name in ('five.tif', 'planes.tif'):
        assert np.array_equal(open_bands(tmp_path / name, 5), five)
        assert np.array_equal(viewable(tmp_path / name), five[..., :3])
        assert np.array_equal(as_loaded(tmp_path / name), five[..., :3])
    orientation = Image.Exif()
    orientation[0x0112] = 6  # to be rotated by 90 degrees
    Image.new('RGB', (30, 20), 'red').save(tmp_path / 'rotated.jpg', exif=orientation)
    assert as_loaded(tmp_path / 'rotated.jpg').shape == (30, 20, 3)
    assert as_loaded(tmp_path / 'rotated.jpg')[0, 0].argmax() == 0
    colours = five[..., :3]
    Image.fromarray(colours).save(tmp_path / 'three.png')
    assert np.array_equal(open_bands(tmp_path / 'three.png', 3), colours)
    assert np.array_equal(open_bands(tmp_path / 'three.png', 7), colours[..., [0, 1, 2, 0, 1, 2, 0]])
    grey = open_bands(tmp_path / 'three.png', 1)
    assert np.abs(grey[..., 0] - colours @ [0.299, 0.587, 0.114]).max() <= 1
    (tmp_path / 'no.png').write_bytes(b'no image')
    for channels in (1, 3, 4):
        with pytest.raises(ValueError, match='no.png cannot be read as an image'):
            open_bands(tmp_path / 'no.png', channels)
