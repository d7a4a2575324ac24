"""Exported files are run as their metadata say, without OpenMMLab, and from the command line; results are written."""
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from mmlk.cli import main
from mmlk.predict import MaskCrop, Prediction, Predictor
from mmlk.predict.files import find_sources, label_image, runs_of, unique_names
from mmlk.predict.from_file import _resize_maps

pytest.importorskip('onnxruntime', reason='exported files are run by onnxruntime, an optional package')
pytest.importorskip('onnx', reason='files are made with onnx, an optional package')

from tests.predict import made_files

REPO = Path(__file__).resolve().parent.parent.parent


def noise(height=40, width=60, seed=0, channels=3):
    return np.random.RandomState(seed).randint(0, 256, (height, width, channels), np.uint8)


def truth(image):
    """What the segmentor of made_files says of an image that it gets as it is."""
    return (image[..., 0] > 100).astype(np.uint8)


def test_a_segmentor_of_any_size(tmp_path):
    predictor = Predictor(made_files.segmentor(tmp_path / 'model.onnx'))
    image = noise()
    prediction = predictor(image)
    assert (predictor.task, predictor.classes, predictor.channels) == ('segmentation', ('dark', 'bright', 'never'), 3)
    assert predictor.palette == ((200, 0, 0), (0, 200, 0), (0, 0, 200)) and predictor.model is None
    assert prediction.labels.dtype == np.uint8 and (prediction.labels == truth(image)).all()
    assert prediction.boxes is None and prediction.masks is None
    grey = image[..., 0]
    assert (predictor(grey).labels == truth(grey[..., None])).all()


@pytest.mark.parametrize('tile, overlap', [(16, 0), (16, 5), (32, 20), (64, 8)])
def test_tiles_of_a_pointwise_model_are_the_whole(tile, overlap, tmp_path):
    path = made_files.segmentor(tmp_path / 'model.onnx')
    image = noise(50, 70)
    assert (Predictor(path, tile=tile, overlap=overlap)(image).labels == truth(image)).all()


def test_a_file_of_one_size_is_moved_over_the_image_where_windows_are_given(tmp_path):
    fixed = dict(size=[32, 32], size_step=None, size_bounds=dict(height=[32, 32], width=[32, 32]))
    window = dict(crop_size=[32, 32], stride=[20, 24])
    predictor = Predictor(made_files.segmentor(tmp_path / 'model.onnx', window=window, **fixed))
    for size in ((80, 90), (32, 32), (20, 70), (5, 6)):
        assert (predictor(noise(*size)).labels == truth(noise(*size))).all()
    smooth = cv2.resize(noise(4, 5), (90, 80), interpolation=cv2.INTER_CUBIC)
    resized = Predictor(made_files.segmentor(tmp_path / 'other.onnx', **fixed))(smooth).labels
    small = cv2.resize(smooth, (32, 32), interpolation=cv2.INTER_LINEAR)[..., 0].astype(np.float32)
    expected = cv2.resize(small, (90, 80), interpolation=cv2.INTER_LINEAR) > 100
    assert (resized == expected).mean() > 0.999


def test_sizes_in_steps_are_padded_and_bounds_are_kept(tmp_path):
    bounds = dict(size_step=16, size_bounds=dict(height=[32, 64], width=[32, None]))
    predictor = Predictor(made_files.segmentor(tmp_path / 'model.onnx', **bounds))
    assert (predictor(noise(33, 50)).labels == truth(noise(33, 50))).all()
    assert (predictor(noise(5, 100)).labels == truth(noise(5, 100))).all()
    assert predictor(noise(100, 32)).labels.shape == (100, 32)  # too high: resized to 64 and back


@pytest.mark.parametrize('scale, keep_ratio', [((50, 30), True), ((30, 50), True), ((50, 30), False)])
def test_images_are_resized_as_mmcv_does_and_logits_back(scale, keep_ratio, tmp_path):
    mmcv = pytest.importorskip('mmcv')
    image = cv2.resize(noise(5, 6), (77, 41), interpolation=cv2.INTER_CUBIC)
    path = made_files.segmentor(tmp_path / 'model.onnx', resize=dict(scale=scale, keep_ratio=keep_ratio))
    small = mmcv.imrescale(image, scale) if keep_ratio else mmcv.imresize(image, scale)
    expected = cv2.resize(small[..., 0].astype(np.float32), (77, 41), interpolation=cv2.INTER_LINEAR) > 100
    assert (Predictor(path)(image).labels == expected).all()


@pytest.mark.parametrize('align_corners', [False, True])
@pytest.mark.parametrize('size', [(13, 40), (5, 3), (7, 9), (1, 1), (30, 9)])
def test_maps_are_resized_as_pytorch_does(align_corners, size):
    torch = pytest.importorskip('torch')
    maps = np.random.RandomState(0).standard_normal((3, 7, 9)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.from_numpy(maps)[None], size, mode='bilinear',
                                               align_corners=align_corners)[0].numpy()
    assert _resize_maps(maps, size, slice(0, size[0]), align_corners) == pytest.approx(expected, abs=1e-5)
    assert _resize_maps(maps, size, slice(1, 3), align_corners) == pytest.approx(expected[:, 1:3], abs=1e-5)


def test_other_channels_are_read_from_the_file(tmp_path):
    path = made_files.segmentor(tmp_path / 'model.onnx', mean=[1.0] * 4, std=[1.0] * 4,
                                mean_and_std_are_of='channels as in the data')
    image = noise(channels=4)
    tifffile.imwrite(tmp_path / 'a.tif', image)
    predictor = Predictor(path)
    assert (predictor.read(tmp_path / 'a.tif') == image).all() and (predictor(image).labels == truth(image)).all()
    with pytest.raises(ValueError, match='takes images of 4 channels, got 3'):
        predictor(noise())


def test_detections_are_in_pixels_of_the_image(tmp_path):
    path = made_files.detector(tmp_path / 'model.onnx', resize=dict(scale=[30, 20], keep_ratio=True), pad_divisor=16)
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:30, 20:50] = 255
    prediction = Predictor(path)(image)
    assert prediction.scores.tolist() == pytest.approx([0.9, 0.4]) and prediction.class_ids.tolist() == [0, 1]
    assert prediction.boxes.tolist() == [[0, 0, 32, 16], [4, 8, 20, 24]]  # the image is resized to a half
    assert prediction.masks.shape == (2, 40, 60) and prediction.masks.dtype == bool
    for mask in prediction.masks:  # padded with the mean, whose red is not above 100
        shared = (mask & (image[..., 0] > 100)).sum() / (mask | (image[..., 0] > 100)).sum()
        assert shared > 0.9
    assert len(Predictor(path, score_threshold=0.1)(image).boxes) == 3


def test_a_detector_of_one_size_gets_the_image_shrunk_and_padded(tmp_path):
    fixed = dict(size=[32, 32], size_step=None, size_bounds=dict(height=[32, 32], width=[32, 32]))
    predictor = Predictor(made_files.detector(tmp_path / 'model.onnx', **fixed))
    assert predictor(noise(20, 30)).boxes.tolist() == [[0, 0, 16, 8], [2, 4, 10, 12]]
    assert predictor(noise(64, 128)).boxes.tolist() == [[0, 0, 64, 32], [8, 16, 40, 48]]


@pytest.mark.parametrize('order, mean', [('RGB', [100, 110, 120]), ('BGR', [120, 110, 100])])
def test_images_are_padded_with_the_mean_in_the_order_of_the_channels(order, mean, tmp_path):
    predictor = Predictor(made_files.segmentor(tmp_path / 'model.onnx', mean_and_std_are_of=order))
    padded = predictor._model._padded(noise(5, 6), (8, 7))
    assert (padded[:5, :6] == noise(5, 6)).all() and padded.shape == (8, 7, 3)
    assert (padded[5:] == mean).all() and (padded[:, 6:] == mean).all()


def test_tiles_of_a_detector(tmp_path):
    prediction = Predictor(made_files.detector(tmp_path / 'model.onnx'), tile=32, overlap=0)(noise(32, 64))
    assert prediction.boxes.tolist() == [[0, 0, 16, 8], [32, 0, 48, 8], [2, 4, 10, 12], [34, 4, 42, 12]]
    assert (prediction.masks == (noise(32, 64)[..., 0] > 100) & np.array(
        [[column < 32, column >= 32] * 2 for column in range(64)]).T[:, None]).all()


@pytest.mark.parametrize('changes, message', [
    (dict(task=...), "no 'task' in its metadata: it was not written by this version of mmlk export"),
    (dict(task='features'), 'gives the feature maps of a detector, not its detections'),
])
def test_files_that_cannot_be_used_are_refused(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        Predictor(made_files.segmentor(tmp_path / 'model.onnx', **changes))


def test_arguments_that_cannot_be_used_are_refused(tmp_path):
    fixed = dict(size_step=None, size_bounds=dict(height=[32, 32], width=[48, 48]))
    path = made_files.segmentor(tmp_path / 'model.onnx', **fixed)
    for arguments, message in [
            (dict(tile=48), 'does not take tiles of 48x48 pixels: it takes 48x32 only'),
            (dict(overlap=3), 'overlap is of tiles'), (dict(tile=8, overlap=8), 'overlap must be smaller than tile'),
            (dict(tile=0), 'tile must be at least 1'), (dict(score_threshold=2), 'score_threshold must be from 0 to 1'),
            (dict(checkpoint='x.pth'), 'is an exported file, which holds its weights'),
            (dict(device='tpu'), "this onnxruntime cannot use the device 'tpu'")]:
        with pytest.raises(ValueError, match=message):
            Predictor(path, **arguments)
    with pytest.raises(ValueError, match='the config some.py needs a checkpoint'):
        Predictor('some.py')
    with pytest.raises(ValueError, match='no file at'):
        Predictor(tmp_path / 'none.onnx')
    (tmp_path / 'broken.onnx').write_bytes(b'not a model')
    with pytest.raises(ValueError, match='broken.onnx: cannot be read as an ONNX file'):
        Predictor(tmp_path / 'broken.onnx')
    predictor = Predictor(path)
    for image in (noise()[0, 0], noise(channels=2), noise().astype(float), np.zeros((0, 4, 3), np.uint8)):
        with pytest.raises(ValueError, match='image'):
            predictor(image)


HEAVY = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'timm')


def test_an_onnx_file_is_predicted_without_pytorch_and_openmmlab(tmp_path):
    made_files.segmentor(tmp_path / 'model.onnx')
    made_files.detector(tmp_path / 'boxes.onnx')
    Image.fromarray(noise()).save(tmp_path / 'a.png')
    code = ('import sys; from mmlk.cli import main; '
            f'[main(["predict", model, "a.png", "--out", model + ".out"]) for model in ("model.onnx", "boxes.onnx")]; '
            f'print(sorted({{n.split(".")[0] for n in sys.modules}} & set({HEAVY})))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(REPO)})
    assert done.stdout.splitlines()[-1] == '[]', done.stdout + done.stderr
    assert (np.array(Image.open(tmp_path / 'model.onnx.out' / 'labels' / 'a.png')) == truth(noise())).all()


# The picture

def test_the_overlay_has_the_colours_and_a_legend_of_the_classes_that_occur():
    labels = np.zeros((600, 700), np.uint8)  # more than the rows that are drawn at a time
    labels[550:] = 2
    prediction = Prediction('segmentation', ('sky', 'sea', 'land'), ((255, 0, 0), (0, 255, 0), (0, 0, 255)),
                            labels.shape, labels)
    image = np.full((600, 700, 3), 100, np.uint8)
    drawn = prediction.overlay(image, legend=False)
    assert (drawn[:550] == [193, 40, 40]).all() and (drawn[550:] == [40, 40, 193]).all()
    with_legend = prediction.overlay(image)
    assert (with_legend[:600] == drawn).all() and with_legend.shape[0] > 600
    colours = set(map(tuple, with_legend[600:].reshape(-1, 3)))
    assert {(255, 0, 0), (0, 0, 255), (255, 255, 255)} <= colours and (0, 255, 0) not in colours
    assert prediction.legend(700, rows=3).shape[0] == 3 * prediction.legend(700, rows=1).shape[0]
    assert (prediction.overlay(image[..., 0]) == with_legend).all()
    with pytest.raises(ValueError, match='the image is'):
        prediction.overlay(image[1:])


def test_the_overlay_of_detections_has_masks_boxes_and_scores():
    crops = [MaskCrop(30, 40, np.ones((20, 30), bool)), MaskCrop(40, 50, np.ones((20, 30), bool))]
    prediction = Prediction('detection', ('disc', 'bar'), ((255, 0, 0), (0, 0, 255)), (100, 120), None,
                            np.array([[40, 30, 70, 50], [50, 40, 80, 60]], np.float32),
                            np.array([0.9, 0.5], np.float32), np.array([0, 1]), crops)
    masks = prediction.masks
    assert masks.sum((1, 2)).tolist() == [600, 600] and masks[0, 30:50, 40:70].all() and masks[1, 40:60, 50:80].all()
    drawn = prediction.overlay(np.full((100, 120, 3), 100, np.uint8), legend=False)
    assert drawn[48, 60].tolist() == [193, 40, 40] and drawn[55, 60].tolist() == [40, 40, 193]  # the surer is above
    assert drawn[45, 40].tolist() == [255, 0, 0] and drawn[60, 70].tolist() == [0, 0, 255]
    assert drawn[95, 5].tolist() == [100, 100, 100]


# What is read and written

def test_label_maps_have_the_numbers_of_the_data():
    labels = np.array([[0, 149]], np.uint8)
    for reduce, expected in ((False, [[0, 149]]), (True, [[1, 150]])):
        assert label_image(labels, ['x'] * 150, reduce).tolist() == expected
    assert label_image(np.array([[255]], np.uint8), ['x'] * 256, True).tolist() == [[256]]


@pytest.mark.parametrize('seed', range(6))
def test_runs_are_those_of_the_whole_mask(seed):
    coco = pytest.importorskip('pycocotools.mask')
    random = np.random.RandomState(seed)
    size = (9, 7)
    mask = random.rand(*size) < (0.5, 0.95, 0.1, 1, 0, 0.7)[seed]
    mask[:seed // 2], mask[:, :seed // 3] = False, False
    expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    found = runs_of(MaskCrop.of(mask), size)
    assert found['size'] == list(size) and found['counts'].encode() == expected['counts']


def test_names_of_results_are_different():
    paths = [Path(name) for name in ('/d/a/x.jpg', '/d/b/x.jpg', '/d/b/x.png', '/d/y.jpg', '/d/a_x.jpg', '/d/Y.png')]
    names = unique_names(paths)
    assert len({name.lower() for name in names}) == 6 and unique_names(paths[3:5]) == ['y', 'a_x']
    assert unique_names(paths[:2]) == ['a_x', 'b_x']


def test_sources_are_files_folders_and_patterns_once_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('in/a.png', 'in/sub/b.JPG', 'in/c.txt', 'in/out/d.png', 'in/[1].png', 'clip.mp4', 'odd.xyz'):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b'')
    sources = find_sources(['in', 'in/**/*', 'in/[1].png', '*.mp4', 'odd.xyz', 'in/../in/a.png'], 'in/out')
    assert [str(source.path) for source in sources] == ['in/[1].png', 'in/a.png', 'in/sub/b.JPG', 'clip.mp4', 'odd.xyz']
    assert [source.is_video for source in sources] == [False, False, False, True, False]
    for inputs, message in ((['none.png'], 'there is no file, folder or pattern none.png'),
                            (['*.bmp'], r'no image in \*.bmp'), (['in/out'], 'no image in in/out'), ([], 'no images')):
        with pytest.raises(ValueError, match=message):
            find_sources(inputs, 'in/out')


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with models and images in it."""
    monkeypatch.chdir(tmp_path)
    made_files.segmentor('model.onnx', reduce_zero_label=True)
    made_files.detector('boxes.onnx')
    for index, name in enumerate(('in/a.png', 'in/sub/a.png', 'in/b.png')):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise(seed=index)).save(name)
    return tmp_path


def predict(*arguments):
    """Runs the command; returns its exit code."""
    try:
        main(['predict', *map(str, arguments)])
    except SystemExit as ended:
        return ended.code
    return 0


def test_a_folder_with_unreadable_images(folder, capsys):
    Image.fromarray(noise(200, 200)).save('in/cut.jpg')
    whole = Path('in/cut.jpg').read_bytes()
    Path('in/cut.jpg').write_bytes(whole[:len(whole) // 2])
    Path('in/text.png').write_text('no image')
    assert predict('model.onnx', 'in', '--out', 'out') == 1
    assert sorted(path.name for path in (folder / 'out/labels').iterdir()) == ['b.png', 'in_a.png', 'sub_a.png']
    for name, index in (('in_a', 0), ('sub_a', 1), ('b', 2)):
        assert (np.array(Image.open(f'out/labels/{name}.png')) == truth(noise(seed=index)) + 1).all()
        assert Image.open(f'out/overlays/{name}.png').size[0] == 60
    out = capsys.readouterr().out
    assert '3 of 5 predicted: out' in out and '2 could not be read:' in out
    assert 'in/cut.jpg is truncated' in out and 'in/text.png cannot be read as an image' in out
    assert 'in/sub/a.png is written as sub_a: another file has the same name' in out


def test_detections_are_a_file_of_cocos_form(folder, capsys):
    pytest.importorskip('pycocotools')
    from pycocotools.coco import COCO
    assert predict('boxes.onnx', 'in/?.png', '--out', 'out', '--no-overlays', '--score', 0.3) == 0
    assert sorted(os.listdir('out')) == ['detections.json']
    data = COCO('out/detections.json')
    assert [image['file_name'] for image in data.dataset['images']] == ['in/a.png', 'in/b.png']
    assert data.dataset['images'][0] == dict(id=1, file_name='in/a.png', height=40, width=60)
    assert data.dataset['categories'] == [
        dict(id=index + 1, name=name) for index, name in enumerate(made_files.CLASSES)]
    first, second = data.loadAnns(data.getAnnIds(1))
    assert first['bbox'] == [0, 0, 16, 8] and first['category_id'] == 1 and second['category_id'] == 2
    assert (first['score'], second['score']) == pytest.approx((0.9, 0.4))
    assert (data.annToMask(first) == truth(noise())).all() and first['area'] == truth(noise()).sum()


@pytest.mark.parametrize('codec', [True, False])
def test_a_video_is_predicted_frame_by_frame(codec, folder, monkeypatch):
    writer = cv2.VideoWriter('clip.avi', cv2.VideoWriter_fourcc(*'MJPG'), 5, (64, 48))
    if not writer.isOpened():
        pytest.skip('this OpenCV writes no MJPG')
    for brightness in (40, 160, 220):
        writer.write(np.full((48, 64, 3), brightness, np.uint8))
    writer.release()
    if not codec:
        monkeypatch.setattr(cv2.VideoWriter, 'isOpened', lambda self: False, raising=False)
    assert predict('model.onnx', 'clip.avi', 'in/b.png', '--out', 'out') == 0
    frames = sorted(Path('out/labels/clip').iterdir())
    assert [path.name for path in frames] == ['000000.png', '000001.png', '000002.png']
    assert [set(np.unique(Image.open(path))) for path in frames] == [{1}, {2}, {2}]
    Path('broken.mp4').write_text('no video')
    assert predict('model.onnx', 'broken.mp4', 'in/b.png', '--out', 'out') == 1
    if codec:
        video, = Path('out/overlays').glob('clip.*')
        shown = cv2.VideoCapture(str(video))
        there, frame = shown.read()
        assert there and frame.shape[1] == 64 and frame.shape[0] > 48 and shown.get(cv2.CAP_PROP_FRAME_COUNT) == 3


@pytest.mark.parametrize('arguments, message', [
    (['config.py', 'in/a.png'], 'the config config.py needs a checkpoint after it, before the images'),
    (['config.py'], 'the config config.py needs a checkpoint'),
    (['weights.pth', 'in'], 'weights.pth is neither a config (.py) nor an exported file'),
    (['model.onnx'], 'no images: give files, folders, patterns or videos after the model'),
    (['model.onnx', 'none'], 'there is no file, folder or pattern none'),
    (['plain.onnx', 'in'], "plain.onnx: the file has no 'task' in its metadata"),
    (['none.onnx', 'in'], 'no file at none.onnx'),
    (['model.onnx', 'in', '--cfg-options', 'a=1'], 'give no checkpoint and no cfg_options with it'),
    (['model.onnx', 'in', '--overlap', '5'], 'overlap is of tiles'),
    (['model.onnx', 'in', '--tile', '0'], '--tile must be at least 1, got 0'),
    (['model.onnx', 'in', '--out', 'model.onnx'], '--out model.onnx cannot be written to'),
])
def test_bad_input_is_one_message_before_anything_is_predicted(arguments, message, folder, capsys):
    made_files.segmentor('plain.onnx', task=...)
    assert predict(*arguments, *([] if '--out' in arguments else ['--out', 'out'])) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.startswith('error: ') and len(said.err.splitlines()) == 1
    assert not Path('out/labels').exists()


def test_inputs_are_not_overwritten(folder, capsys):
    before = Path('out/labels/a.png')
    before.parent.mkdir(parents=True)
    before.write_bytes(Path('in/a.png').read_bytes())
    assert predict('model.onnx', 'out/labels/a.png', '--out', 'out') == 2
    assert 'is to be predicted, and would be overwritten' in capsys.readouterr().err
    assert before.read_bytes() == Path('in/a.png').read_bytes()


def test_files_of_pytorch_need_no_openmmlab_and_run_no_code(tmp_path):
    torch = pytest.importorskip('torch')

    class Bright(torch.nn.Module):

        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor([1.0]))

        def forward(self, images):
            logits = torch.cat([100 - images[:, :1], images[:, :1] - 100], 1) * self.scale
            return logits.argmax(1), logits

    example = torch.zeros(1, 3, 40, 60)
    metadata = made_files.facts(classes=['dark', 'bright'], palette=[[1, 2, 3], [4, 5, 6]], size=[40, 60],
                                size_step=None, size_bounds=dict(height=[40, 40], width=[60, 60]))
    kept = {'metadata.json': json.dumps(metadata)}
    torch.jit.save(torch.jit.trace(Bright(), example), tmp_path / 'model.pt', _extra_files=kept)
    torch.export.save(torch.export.export(Bright(), (example, )), tmp_path / 'model.pt2', extra_files=kept)
    np.save(tmp_path / 'image.npy', noise())
    code = ('import sys, numpy; from mmlk.predict import Predictor; image = numpy.load("image.npy"); '
            'print([int((Predictor(model)(image).labels == (image[..., 0] > 100)).all()) '
            'for model in ("model.pt", "model.pt2")]); '
            f'print(sorted({{n.split(".")[0] for n in sys.modules}} & set({HEAVY}) - {{"torch", "torchvision"}}))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(REPO)})
    assert done.stdout.splitlines() == ['[1, 1]', '[]'], done.stdout + done.stderr
    with pytest.raises(ValueError, match='cannot be read as an exported file of PyTorch; if it is a checkpoint'):
        torch.save(dict(state_dict={}), tmp_path / 'checkpoint.pt')
        Predictor(tmp_path / 'checkpoint.pt')
    _poison(tmp_path / 'model.pt2', tmp_path / 'bad.pt2', tmp_path / 'ran')
    with pytest.raises(ValueError, match='cannot be read as an exported file of PyTorch'):
        Predictor(tmp_path / 'bad.pt2')
    assert not (tmp_path / 'ran').exists()


def _poison(path, bad, ran):
    """Copies an exported program, and has one of its weights pickled with a call in it."""
    import io

    import torch

    class Call:

        def __reduce__(self):
            return open, (str(ran), 'w')

    buffer = io.BytesIO()
    torch.save(Call(), buffer)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(bad, 'w') as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith('weights_config.json'):
                config = json.loads(content)
                for weight in config['config'].values():
                    weight['use_pickle'] = True
                content = json.dumps(config).encode()
            elif '/data/weights/' in name:
                content = buffer.getvalue()
            target.writestr(name, content)
    with pytest.raises(Exception):  # noqa: B017  (what comes out is no weight)
        torch.export.load(bad)
    assert ran.exists(), 'the file is harmless, so the test shows nothing'
    ran.unlink()


def test_the_memory_of_a_huge_image_is_bounded(tmp_path):
    side, least = 12000, 3 * 12000**2  # bytes of the image
    made_files.segmentor(tmp_path / 'model.onnx')
    cell = np.repeat(np.repeat(noise(12, 12), 100, 0), 100, 1)
    cv2.imwrite(str(tmp_path / 'huge.bmp'), np.tile(cell, (10, 10, 1))[..., ::-1])
    assert (tmp_path / 'huge.bmp').stat().st_size >= least
    # the peak is read from the kernel's record of this program: getrusage would count the process that started it
    code = ('from mmlk.cli import main; main(["predict", "model.onnx", "huge.bmp", "--out", "out", '
            '"--tile", "1024", "--overlap", "256", "--no-overlays"]); '
            'print(*[line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")])')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, 'PYTHONPATH': str(REPO)})
    assert done.returncode == 0, done.stderr
    labels = cv2.imread(str(tmp_path / 'out' / 'labels' / 'huge.png'), cv2.IMREAD_UNCHANGED)
    assert labels.shape == (side, side) and (labels == np.tile(truth(cell), (10, 10))).all()
    (tmp_path / 'huge.bmp').unlink()
    # The file and its image, then the image and its labels, and what OpenCV, Python and a row of tiles take.
    # The scores of all pixels, three numbers each, would be 1.6 GiB more.
    peak = int(done.stdout.splitlines()[-1]) * 2**10
    assert peak < 3.6 * least, f'{peak / 2**30:.2f} GiB'


def test_the_memory_of_an_overlay_is_bounded():
    labels = np.zeros((6000, 1000), np.uint8)
    prediction = Prediction('segmentation', ('sky', ), ((255, 0, 0), ), labels.shape, labels)
    image = np.full((*labels.shape, 3), 100, np.uint8)
    prediction.overlay(image)  # imports what it needs
    tracemalloc.start()
    try:
        prediction.overlay(image)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * image.nbytes, f'{peak / image.nbytes:.1f} times the image'
