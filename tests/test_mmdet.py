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

from mmlk import _mmdet
from mmlk.reparam import merge
from tests.utils import fill, relative_error

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


SMALL = dict(embed_dims=16, num_heads=2, batch_first=True)
FFN = dict(embed_dims=16, feedforward_channels=24, num_fcs=2, ffn_drop=0.0, act_cfg=dict(type='ReLU', inplace=True))
DECODER = dict(
    type='MSDeformAttnPixelDecoder', strides=[4, 8, 16, 32], num_outs=3, norm_cfg=dict(type='GN', num_groups=2),
    act_cfg=dict(type='ReLU'), positional_encoding=dict(num_feats=8, normalize=True),
    encoder=dict(num_layers=2, layer_cfg=dict(
        self_attn_cfg=dict(SMALL, num_levels=3, num_points=2, dropout=0.0), ffn_cfg=FFN)))
QUERIES = dict(
    in_channels=[4, 8, 12, 16], strides=[4, 8, 16, 32], feat_channels=16, out_channels=16, num_queries=7,
    num_transformer_feat_level=3, pixel_decoder=dict(DECODER, type='mmdet.MSDeformAttnPixelDecoder'),
    positional_encoding=dict(num_feats=8, normalize=True),
    transformer_decoder=dict(return_intermediate=True, num_layers=2, layer_cfg=dict(
        self_attn_cfg=SMALL, cross_attn_cfg=SMALL, ffn_cfg=FFN)))


def maps_of(height, width, count=2):
    return [torch.randn(count, 4 * (i + 1), -(-height // 2**(i + 2)), -(-width // 2**(i + 2))) for i in range(4)]


def pixel_decoder():
    return fill(build(**DECODER, in_channels=[4, 8, 12, 16], feat_channels=16, out_channels=16))


@pytest.mark.parametrize('kernel', [False, True])
def test_the_pixel_decoder_of_mask2former_is_mmdets(kernel, monkeypatch):
    """With sizes as numbers or, as where mmcv has a kernel, with tensors of them."""
    monkeypatch.setattr(_mmdet, '_has_kernel', lambda operators, device: kernel)
    decoder, maps = pixel_decoder(), maps_of(75, 100)
    original = type(decoder).forward.__wrapped__
    assert original.__module__ == 'mmdet.models.layers.msdeformattn_pixel_decoder'
    with torch.no_grad():
        expected, found = original(decoder, maps), decoder(maps)
    for ours, theirs in zip((found[0], *found[1]), (expected[0], *expected[1]), strict=True):
        assert relative_error(ours, theirs) < 1e-6


def test_gradients_of_the_pixel_decoder_are_mmdets():
    decoder, maps = pixel_decoder(), maps_of(64, 96)
    results = []
    for forward in (type(decoder).forward, type(decoder).forward.__wrapped__):
        decoder.zero_grad()
        features, outs = forward(decoder, maps)
        (features.square().mean() + sum(out.square().mean() for out in outs)).backward()
        results.append({name: parameter.grad for name, parameter in decoder.named_parameters()})
    assert all(relative_error(results[0][name], results[1][name]) < 1e-5 for name in results[0])


@pytest.mark.parametrize('found', ['operators of torchvision', 'compiled', 'no GPU'])
def test_where_mmcv_has_a_kernel_of_the_attention(found):
    from types import SimpleNamespace
    made = SimpleNamespace(__module__='mmlk._mmcv_ext' if found == 'operators of torchvision' else 'mmcv._ext')
    operators = SimpleNamespace(ext_module=SimpleNamespace(ms_deform_attn_forward=made))
    device = torch.device('cpu' if found == 'no GPU' else 'cuda')
    assert _mmdet._has_kernel(operators, device) is (found == 'compiled')


def test_where_our_operators_stand_for_mmcvs_there_is_no_kernel():
    from mmcv.ops import multi_scale_deform_attn as operators

    import mmcv._ext
    ours = str(mmcv._ext.__file__).endswith('.py')
    assert _mmdet._has_kernel(operators, torch.device('cuda')) is not ours


@HALVES
def test_the_pixel_decoder_stays_in_float32(dtype):
    decoder, maps = pixel_decoder(), [x.to(dtype) for x in maps_of(64, 96)]
    with torch.no_grad():
        expected = decoder([x.float() for x in maps])
        with torch.autocast('cpu', dtype):
            found = decoder(maps)
    assert torch.equal(found[0], expected[0]) and all(map(torch.equal, found[1], expected[1]))


@HALVES
def test_queries_are_matched_in_float32(dtype):
    """Costs that differ by less than half precision can tell, where the rounded ones choose other pairs."""
    from mmdet.registry import TASK_UTILS
    costs = [dict(type='mmdet.ClassificationCost', weight=2.0),
             dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
             dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0)]
    assigner = TASK_UTILS.build(dict(type='mmdet.HungarianAssigner', match_costs=costs))
    masks = torch.randn(1, 300) + 1e-3 * torch.randn(40, 300)
    predicted = InstanceData(scores=1e-3 * torch.randn(40, 4), masks=masks)
    objects = InstanceData(labels=torch.arange(20) % 3, masks=(torch.rand(20, 300) > 0.5).float())
    expected = assigner.assign(predicted, objects).gt_inds
    with torch.autocast('cpu', dtype):
        assert torch.equal(assigner.assign(predicted, objects).gt_inds, expected)


def segmentor(**options):
    arch = dict(large_kernel_sizes=[5, 5, 5, 5], layers=[1, 1, 1, 1], channels=[4, 8, 12, 16], small_kernel=3)
    from mmseg.registry import MODELS as SEGMENTORS
    from mmseg.utils import register_all_modules as register
    register(init_default_scope=False)
    head = dict(
        QUERIES, type='Mask2FormerHead', num_classes=3,
        loss_cls=dict(type='mmdet.CrossEntropyLoss', class_weight=[1.0] * 3 + [0.1]),
        loss_mask=dict(type='mmdet.CrossEntropyLoss', use_sigmoid=True),
        loss_dice=dict(type='mmdet.DiceLoss', use_sigmoid=True, activate=True, naive_dice=True, eps=1.0))
    with DefaultScope.overwrite_default_scope('mmseg'):
        return fill(SEGMENTORS.build(ConfigDict(
            type='EncoderDecoder', backbone=dict(type='mmlk.RepLKNet', arch=arch, out_indices=(0, 1, 2, 3)),
            decode_head=head, test_cfg=dict(mode='whole', **options)))).eval()


@torch.no_grad()
def test_mask2former_of_mmseg_predicts_in_windows():
    """The mean of what it predicts in each window, which mmseg had resized to the size of the image."""
    model, image = segmentor(crop_size=(64, 64), stride=(32, 48)), torch.randn(1, 3, 96, 160)

    def logits(part):
        size = tuple(part.shape[2:])
        return model.encode_decode(part, [dict(img_shape=size, pad_shape=size, ori_shape=size)])

    total, times = torch.zeros(1, 3, 96, 160), torch.zeros(96, 160)
    for top in (0, 32):
        for left in (0, 48, 96):
            place = (..., slice(top, top + 64), slice(left, left + 64))
            total[place] += logits(image[place])
            times[place] += 1
    meta = dict(img_shape=(90, 150), pad_shape=(96, 160), ori_shape=(90, 150))
    assert logits(image).shape == model.whole_inference(image, [dict(meta)]).shape == total.shape
    assert torch.equal(logits(image), model.whole_inference(image, [dict(meta)]))
    assert relative_error(model.slide_inference(image, [dict(meta)]), total / times) < 1e-6


def test_mask2former_of_mmseg_in_the_mode_tensor():
    model, image = segmentor(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        scores, masks = model(image, mode='tensor')
        expected = model.decode_head(model.extract_feat(image), [])
    assert len(scores) == 3 and all(map(torch.equal, [*scores, *masks], [*expected[0], *expected[1]]))


def panoptic():
    arch = dict(large_kernel_sizes=[5, 5, 5, 5], layers=[1, 1, 1, 1], channels=[4, 8, 12, 16], small_kernel=3)
    classes = dict(num_things_classes=2, num_stuff_classes=2)
    return build(
        type='Mask2Former', data_preprocessor=dict(
            type='DetDataPreprocessor', mean=[150.0, 50, 50], std=[50.0] * 3, pad_size_divisor=32, pad_mask=True),
        backbone=dict(type='mmlk.RepLKNet', arch=arch, out_indices=(0, 1, 2, 3)),
        panoptic_head=dict(
            QUERIES, type='Mask2FormerHead', **classes,
            loss_cls=dict(type='CrossEntropyLoss', class_weight=[1.0] * 4 + [0.1]),
            loss_mask=dict(type='CrossEntropyLoss', use_sigmoid=True),
            loss_dice=dict(type='DiceLoss', use_sigmoid=True, activate=True, naive_dice=True, eps=1.0)),
        panoptic_fusion_head=dict(type='MaskFormerFusionHead', **classes),
        train_cfg=dict(num_points=50, assigner=dict(type='HungarianAssigner', match_costs=[
            dict(type='ClassificationCost', weight=2.0),
            dict(type='CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
            dict(type='DiceCost', weight=5.0, pred_act=True, eps=1.0)]), sampler=dict(type='MaskPseudoSampler')),
        test_cfg=dict(panoptic_on=True, instance_on=True, object_mask_thr=0.0, iou_thr=0.0, max_per_image=20))


def test_panoptic_segmentation_over_a_backbone_of_ours():
    """It learns one scene by heart, things and stuff, and predicts the same when its branches are merged."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import PixelData
    model = panoptic()
    scene = np.full((64, 64), 2, dtype=np.uint8)  # stuff of class 2, a band of class 3, and a thing of class 1
    scene[40:] = 3
    thing = np.zeros((64, 64), dtype=np.uint8)
    thing[8:32, 8:40] = 1
    image = torch.from_numpy(np.stack([scene * 60, thing * 200, scene * 20]))
    sample = DetDataSample(metainfo=dict(img_shape=(64, 64), ori_shape=(64, 64), scale_factor=(1.0, 1.0)))
    sample.gt_instances = InstanceData(bboxes=torch.tensor([[8.0, 8, 40, 32]]), labels=torch.tensor([1]),
                                       masks=BitmapMasks(thing[None], 64, 64))
    painted = torch.from_numpy(np.where(thing == 1, 1, scene))[None]
    sample.gt_sem_seg = PixelData(sem_seg=painted.long())
    torch.manual_seed(0)
    model.init_weights()
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(60):
        data = model.data_preprocessor(dict(inputs=[image], data_samples=[copy.deepcopy(sample)]), True)
        loss, _ = model.parse_losses(model(**data, mode='loss'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()

    def predict(network):
        data = model.data_preprocessor(dict(inputs=[image], data_samples=[copy.deepcopy(sample)]), False)
        with torch.no_grad():
            return network(**data, mode='predict')[0]

    found, merged = predict(model), predict(merge(model))
    classes = found.pred_panoptic_seg.sem_seg[0] % 1000
    assert (classes == painted[0]).float().mean() > 0.9
    assert len(found.pred_instances) and set(found.pred_instances.labels.tolist()) <= {0, 1}
    assert (found.pred_panoptic_seg.sem_seg == merged.pred_panoptic_seg.sem_seg).float().mean() > 0.999
