import numpy as np
import pytest
import torch
from PIL import Image

from mmlk.analysis.panels import Instances, PredictedScene, distinct_palette, overlay, panels, predict

RED, BLUE = (255, 0, 0), (0, 0, 255)
CLASSES = ('sky', 'sea')
PALETTE = (RED, BLUE)


def grey(height=4, width=6):
    return np.full((height, width, 3), 100, np.uint8)


def test_labels_are_blended_where_they_are_and_nowhere_else():
    labels = np.full((4, 6), 255)
    labels[0, 1], labels[3, 5] = 0, 1
    image = grey()
    drawn = overlay(image, labels, PALETTE, opacity=0.5)
    assert drawn[0, 1].tolist() == [178, 50, 50]  # 177.5 rounds to even
    assert drawn[3, 5].tolist() == [50, 50, 178]
    drawn[0, 1] = drawn[3, 5] = 100
    assert (drawn == image).all() and (image == 100).all()


def test_an_images_own_colour_does_not_shift_the_labels_colour():
    image = np.full((1, 2, 3), (30, 240, 90), np.uint8)
    drawn = overlay(image, np.array([[0, 255]]), PALETTE, opacity=0.5)
    assert drawn[0].tolist() == [[188, 60, 60], [30, 240, 90]]  # the mean of the three is 120


def test_labels_beyond_the_palette_are_left_alone():
    assert (overlay(grey(), np.full((4, 6), 2), PALETTE) == 100).all()


def test_later_masks_lie_over_earlier_ones():
    masks = np.zeros((2, 4, 6), bool)
    masks[0, :2], masks[1, 1:3] = True, True
    instances = Instances(np.zeros((2, 4)), np.array([0, 1]), masks)
    drawn = overlay(grey(), instances, PALETTE, opacity=1)
    assert drawn[:, 0].tolist() == [list(RED), list(BLUE), list(BLUE), [100, 100, 100]]


def test_boxes_alone_leave_the_pixels():
    instances = Instances(np.array([[1., 1., 3., 3.]]), np.array([0]))
    assert (overlay(grey(), instances, PALETTE) == 100).all()


def test_an_annotation_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r'\(4, 5\).*\(4, 6\)'):
        overlay(grey(), np.zeros((4, 5), int), PALETTE)


def test_colours_are_distinct():
    colours = distinct_palette(150)
    assert len(set(colours)) == 150
    steps = np.abs(np.diff(np.array(colours), axis=0)).max(axis=1)
    assert steps.min() > 60


def scenes():
    truth = np.zeros((4, 6), int)
    prediction = truth.copy()
    prediction[:, 3:] = 1
    boxes = Instances(np.array([[1., 0., 4., 3.]]), np.array([1]), scores=np.array([.75]))
    return [PredictedScene(grey(), truth, prediction, 'first.png'),
            PredictedScene(grey(6, 6), None, boxes, 'second.png')]


def test_a_figure_shows_each_scene_in_a_row():
    figure = panels(scenes(), CLASSES, PALETTE)
    axes = figure.axes
    assert [one.get_title() for one in axes] == [
        'first.png', 'ground truth', 'prediction', 'second.png', 'no ground truth', 'prediction']
    shown = [np.asarray(one.images[0].get_array()) if one.images else None for one in axes]
    assert (shown[0] == 100).all()
    assert (shown[1] == [193, 40, 40]).all()  # 0.4 * 100 + 0.6 * 255
    assert (shown[2][:, :3] == [193, 40, 40]).all() and (shown[2][:, 3:] == [40, 40, 193]).all()
    assert shown[4] is None
    box, = axes[5].patches
    assert box.get_bbox().extents.tolist() == [1, 0, 4, 3] and box.get_edgecolor()[:3] == (0, 0, 1)
    assert [text.get_text() for text in axes[5].texts] == ['sea 0.75']


def test_the_legend_names_the_classes_that_occur_commonest_first():
    figure = panels(scenes(), ('sky', 'sea', 'land'), [*PALETTE, (0, 255, 0)])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ['sky', 'sea']


def test_the_picture_is_written(tmp_path):
    path = tmp_path / 'panels.png'
    panels(scenes(), CLASSES, PALETTE[:1]).savefig(path, dpi=100)
    pixels = np.asarray(Image.open(path).convert('RGB')).reshape(-1, 3)
    # The palette was too short, so the second class's own colour, blended, must be there.
    expected = np.rint(0.4 * 100 + 0.6 * np.array(distinct_palette(2)[1]))
    assert (pixels == expected).all(axis=1).sum() > 1000


def test_no_scene_is_an_error():
    with pytest.raises(ValueError, match='no scene'):
        panels([], CLASSES)


class Model:
    """Answers every image with the same sample."""

    def __init__(self, **content):
        self.content = content

    def test_step(self, batch):
        from mmengine.structures import BaseDataElement
        return [BaseDataElement(metainfo=dict(img_path=batch['path'][0]), **self.content)]


class Dataset:

    def __init__(self, path, instances=()):
        self.path, self.instances = str(path), list(instances)

    def __getitem__(self, index):
        return dict(path=self.path)

    def get_data_info(self, index):
        return dict(instances=self.instances)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / 'picture.png'
    Image.new('RGB', (6, 4), RED).save(path)
    return path


def test_a_segmentors_prediction_becomes_a_scene(picture):
    from mmengine.structures import PixelData
    truth, found = torch.zeros(1, 4, 6, dtype=torch.uint8), torch.ones(1, 4, 6, dtype=torch.long)
    model = Model(pred_sem_seg=PixelData(data=found), gt_sem_seg=PixelData(data=truth))
    scene, = predict(model, Dataset(picture), [0])
    assert scene.title == 'picture.png (6 x 4)' and (scene.image == RED).all()
    assert scene.truth.shape == (4, 6) and (scene.truth == 0).all() and (scene.prediction == 1).all()
    assert predict(Model(pred_sem_seg=PixelData(data=found)), Dataset(picture), [0])[0].truth is None


def test_a_detectors_prediction_becomes_a_scene_with_the_truth_of_the_annotations(picture):
    coco = pytest.importorskip('pycocotools.mask')
    from mmengine.structures import InstanceData
    expected = np.zeros((4, 6), bool)
    expected[1:3, 2:5] = True
    runs = coco.encode(np.asfortranarray(expected.astype(np.uint8)))
    counts = [9, 2, 2, 2, 2, 2, 5]  # the same, column by column, zeros first
    box = dict(bbox=[2., 1., 5., 3.], bbox_label=1, ignore_flag=0)
    dataset = Dataset(picture, [
        dict(box, mask=[[2, 1, 5, 1, 5, 3, 2, 3]]), dict(box, mask=runs), dict(box, ignore_flag=1, mask=runs),
        dict(box, mask=dict(size=[4, 6], counts=counts))])
    found = InstanceData(bboxes=torch.arange(12.).reshape(3, 4), labels=torch.tensor([0, 1, 0]),
                         scores=torch.tensor([.9, .2, .4]), masks=torch.zeros(3, 4, 6, dtype=torch.bool))
    scene, = predict(Model(pred_instances=found), dataset, [0], score=0.3)
    assert scene.prediction.scores.tolist() == pytest.approx([.4, .9])
    assert scene.prediction.boxes[:, 0].tolist() == [8, 0] and scene.prediction.masks.shape == (2, 4, 6)
    assert scene.truth.labels.tolist() == [1, 1, 1] and scene.truth.boxes[0].tolist() == [2, 1, 5, 3]
    assert (scene.truth.masks == expected).all()
