"""The contract between exported files and what runs them: every key, and what is refused."""
import json
import subprocess
import sys

import pytest

from mmlk.deploy.metadata import Bounds, Resize, Window, read_metadata


def written(**changes):
    """Metadata as they stand in a file; a change to ... removes the key."""
    facts = dict(task='detection', classes=['disc', 'ring'], palette=[[1, 2, 3], [255, 0, 7]], mean=[1.0, 2, 3.5],
                 std=[4.0, 5, 6], mean_and_std_are_of='BGR', size=[64, 80], size_step=32,
                 size_bounds=dict(height=[96, None], width=[96, 640]), resize=dict(scale=[80, 64], keep_ratio=True),
                 pad_divisor=32, reduce_zero_label=False, window=None, align_corners=False, binary_threshold=None,
                 score_threshold=0.05, nms_iou_threshold=0.5, mask_threshold=None, max_detections=100, more='text')
    facts = {key: value for key, value in {**facts, **changes}.items() if value is not ...}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


def test_every_key_is_read():
    found = read_metadata(written())
    assert (found.task, found.classes, found.palette) == ('detection', ('disc', 'ring'), ((1, 2, 3), (255, 0, 7)))
    assert (found.mean, found.std, found.mean_and_std_are_of) == ((1.0, 2.0, 3.5), (4.0, 5.0, 6.0), 'BGR')
    assert (found.size, found.size_step, found.height, found.width) == ((64, 80), 32, Bounds(96, None), Bounds(96, 640))
    assert found.resize == Resize((80, 64), True) and found.pad_divisor == 32 and found.window is None
    assert (found.reduce_zero_label, found.align_corners, found.binary_threshold) == (False, False, None)
    assert (found.score_threshold, found.nms_iou_threshold) == (0.05, 0.5)
    assert (found.mask_threshold, found.max_detections) == (None, 100)
    other = read_metadata(written(task='segmentation', window=dict(crop_size=[512, 1024], stride=[341, 683]),
                                  resize=None, score_threshold=..., max_detections=..., binary_threshold=0.3))
    assert other.window == Window((512, 1024), (341, 683)) and other.resize is None
    assert other.max_detections is None and other.binary_threshold == 0.3


def test_which_sizes_a_file_takes():
    several, one = read_metadata(written()), read_metadata(written(size_step=None))
    sizes = [(96, 640), (128, 96), (64, 96), (96, 672), (100, 96), (64, 80)]
    assert [several.takes(*size) for size in sizes] == [True, True, False, False, False, False]
    assert [one.takes(*size) for size in sizes] == [False] * 5 + [True]


@pytest.mark.parametrize('changes, message', [
    (dict(task=...), "no 'task' in its metadata: it was not written by this version of mmlk export; export it again"),
    (dict(max_detections=...), "no 'max_detections' in its metadata"),
    (dict(task='poses'), "is 'poses'; there is segmentation, detection, features"),
    (dict(size='64x80'), "'size' in the metadata of the file cannot be read: '64x80'"),
    (dict(size=[64, 0]), "'size' in the metadata of the file cannot be read"),
    (dict(palette=[[1, 2, 256]] * 2), "'palette' in the metadata"),
    (dict(palette=[[1, 2, 3]]), 'name 2 classes and 1 colours'),
    (dict(mean=['1']), "'mean' in the metadata"),
    (dict(pad_divisor=True), "'pad_divisor' in the metadata"),
    (dict(resize=dict(scale=[80, 64])), "'resize' in the metadata"),
    (dict(reduce_zero_label=0), "'reduce_zero_label' in the metadata"),
])
def test_what_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        read_metadata(written(**changes))


def test_reading_imports_neither_pytorch_nor_openmmlab():
    code = ('import sys, mmlk.deploy.metadata; '
            'heavy = {"torch", "numpy", "mmengine", "mmcv", "mmdet", "mmseg"}; '
            'print(sorted({n.split(".")[0] for n in sys.modules} & heavy))')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == '[]', done.stderr[-2000:]
