"""mmdet's detectors as anybody builds and runs them, without mmlk's runner: boxes are right under autocast too."""
import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

import mmlk  # noqa: F401
from tests.utils import fill

HALVES = pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def _modules():
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmdet'):  # a test before may have left another
        yield


def build(**cfg):
    torch.manual_seed(0)
    return MODELS.build(ConfigDict(cfg)).eval()


def retina_head(classes):
    return build(type='RetinaHead', num_classes=classes, in_channels=8, feat_channels=8, stacked_convs=1,
                 anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0], strides=[8]),
                 test_cfg=dict(nms_pre=2000, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
                               max_per_img=500))


@HALVES
def test_boxes_of_a_dense_head_far_from_the_origin(dtype):
    """Maps of ones, so that rounded predictions alone cannot move a box by half a pixel."""
    head = retina_head(2)
    nn.init.zeros_(head.retina_reg.weight)
    maps = [torch.rand(1, 8, 4, 160)]
    meta = dict(img_shape=(32, 1280), scale_factor=(1.0, 1.0))

    def boxes():
        with torch.no_grad():
            return head.predict_by_feat(*head(maps), batch_img_metas=[meta], with_nms=False)[0].bboxes.float()

    expected = boxes()
    with torch.autocast('cpu', dtype):
        found = boxes()
    centres = [set((b[:, 0] + b[:, 2]).round(decimals=2).tolist()) for b in (expected, found)]
    assert len(centres[0]) > 150 and centres[0] == centres[1]


@HALVES
def test_boxes_of_high_classes_suppress_each_other(dtype):
    """Boxes are shifted by their class for that: by 80 images, which float16 does not reach."""
    head = retina_head(80)
    maps = [torch.ones(1, 8, 4, 160)]
    with torch.no_grad():
        head.retina_cls.bias[:] = -20.0
        head.retina_cls.bias[79] = 3.0
        head.retina_reg.bias[2:] = 1.5  # large boxes, which overlap
    meta = dict(img_shape=(32, 1280), scale_factor=(1.0, 1.0))

    def count():
        with torch.no_grad():
            found = head.predict_by_feat(*head(maps), batch_img_metas=[meta])[0]
        return int((found.labels == 79).sum())

    expected = count()
    with torch.autocast('cpu', dtype):
        assert count() == pytest.approx(expected, abs=expected // 4)  # boxes of equal scores come in any order
    assert 5 < expected < 100


@HALVES
@pytest.mark.parametrize('kind', ['SingleRoIExtractor', 'GenericRoIExtractor'])
def test_regions_stay_in_float32(kind, dtype):
    extractor = build(type=kind, roi_layer=dict(type='RoIAlign', output_size=3, sampling_ratio=2), out_channels=4,
                      featmap_strides=[8])
    maps = [torch.rand(1, 4, 8, 200).to(dtype)]
    rois = torch.tensor([[0, 1001.3, 3.2, 1031.6, 40.9], [0, 1333.7, 8.1, 1399.2, 50.3]])
    expected = extractor([maps[0].float()], rois)
    found = extractor(maps, rois)
    assert found.dtype == dtype and torch.equal(found, expected.to(dtype))


@HALVES
@pytest.mark.parametrize('kind', ['DETRHead', 'DeformableDETRHead'])
def test_boxes_of_a_detr(kind, dtype):
    options = dict(loss_cls=dict(type='FocalLoss', use_sigmoid=True))
    if kind == 'DeformableDETRHead':
        options.update(num_pred_layer=2, share_pred_layer=True)
    head = fill(build(type=kind, num_classes=3, embed_dims=16, **options))
    states = torch.randn(2, 1, 50, 16).to(dtype)
    inputs = [states] if kind == 'DETRHead' else [states, [torch.rand(1, 50, 4), torch.rand(1, 50, 4)]]
    with torch.no_grad():
        expected = head(states.float(), *inputs[1:])
        with torch.autocast('cpu', dtype):
            found = head(*inputs)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)


def test_predictions_of_bbox_heads_are_float32():
    for kind in ('Shared2FCBBoxHead', 'SABLHead'):
        options = {} if kind == 'SABLHead' else dict(in_channels=8, roi_feat_size=7, fc_out_channels=8)
        cfg = dict(type=kind, num_classes=3, **options)
        if kind == 'SABLHead':
            cfg.update(cls_in_channels=8, reg_in_channels=8, cls_out_channels=8, reg_offset_out_channels=8,
                       reg_cls_out_channels=8)
        head = build(**cfg)
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            cls_score, bbox_pred = head(torch.rand(2, 8, 7, 7))
        preds = bbox_pred if isinstance(bbox_pred, tuple) else [bbox_pred]
        assert {tensor.dtype for tensor in (cls_score, *preds)} == {torch.float32}, kind


def test_ssd_head_predicts_and_a_subclass_keeps_its_loss():
    from mmdet.models.dense_heads import SSDHead

    options = dict(
        num_classes=3, in_channels=(8, ), anchor_generator=dict(
            type='SSDAnchorGenerator', scale_major=False, input_size=64, basesize_ratio_range=(0.2, 0.9), strides=[8],
            ratios=[[2]], min_sizes=[10], max_sizes=[20]),
        test_cfg=ConfigDict(nms_pre=20, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
                            max_per_img=10))

    class WithLoss(SSDHead):

        def __init__(self):
            super().__init__(**options)
            self.loss_cls = nn.Identity()

    assert isinstance(WithLoss().loss_cls, nn.Identity)
    head = copy.deepcopy(SSDHead(**options))
    outs = head.eval()([torch.rand(1, 8, 8, 8)])
    found, = head.predict_by_feat(*outs, batch_img_metas=[dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))])
    assert isinstance(found, InstanceData) and len(found) == 10 and np.isfinite(found.bboxes.detach().numpy()).all()


@pytest.mark.parametrize('first, second', [('mmlk', 'mmdet.models'), ('mmdet.models', 'mmlk')])
def test_the_order_of_imports_does_not_matter(first, second):
    code = (f'import {first}, {second}; from mmdet.models.dense_heads import SSDHead, DETRHead, FCOSHead\n'
            'from mmdet.models.roi_heads import BBoxHead, BaseRoIExtractor\n'
            'import torch; call = torch.nn.Module.__call__\n'
            'print([c.__call__ is not call for c in (SSDHead, DETRHead, FCOSHead, BBoxHead, BaseRoIExtractor)])')
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert done.stdout.strip() == str([True] * 5), done.stderr[-2000:]
