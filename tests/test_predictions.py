"""A model predicts the same as users run it and as it is written down: for every method of both toolboxes.

The reference is the training form in float32 with every map contiguous and PyTorch's own convolutions. Against it stand
the memory formats that are chosen for speed, the merged form, mmlk's operator, inference mode and autocast.
"""
import copy
import functools
import types

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch import nn
from torchvision.ops import roi_align

from mmlk.engine.hooks import MemoryFormatHook
from mmlk.ops import DepthwiseConv2d, set_memory_format
from mmlk.registry import MODELS
from mmlk.reparam import merge
from tests.test_training import CONFIGS, shrink_model, shrunk
from tests.utils import fill, relative_error, same_detections

SIZE = (96, 128)
SEGMENTORS = ['upernet_replknet31b_ade20k', 'fpn_gfnet-h-ti_ade20k', 'pspnet_repvgg-b1g2_cityscapes',
              'deeplabv3plus_mobilenetv2-13-reparam_cityscapes', 'deeplabv3_parcnet-s_voc', 'upernet_resnet50_ade20k']
TWO_STAGE = ['mask_rcnn_replknet31b_coco', 'cascade_mask_rcnn_replknet31b_coco', 'mask_rcnn_resnet50_coco']
DETECTORS = [*TWO_STAGE, 'fcos_replknet31b_coco', 'ssd_parcnet-s_coco']


@functools.cache
def build(name):
    """A model of random weights, norms' statistics included, and what it predicts as it is written down."""
    cfg = Config.fromfile(str(CONFIGS / f'{name}.py'))
    init_default_scope(cfg.default_scope)
    model = cfg.model
    if 'parcnet' in name or 'resnet' in name:
        model.backbone.init_cfg = None
        if 'resnet' in name:
            model.backbone.depth, channels = 18, [64, 128, 256, 512]
            model[next(key for key in ('neck', 'decode_head') if key in model)].in_channels = channels
            model.get('auxiliary_head', {})['in_channels'] = channels[2]
        if 'decode_head' in model:
            model.data_preprocessor.size = SIZE
    else:
        shrink_model(model)
    if 'decode_head' not in model:
        model.data_preprocessor.pad_size_divisor = 32
        test = model.test_cfg.get('rcnn', model.test_cfg)
        # Boxes that differ in rounding only must not decide about each other, so none is suppressed.
        test.update(score_thr=0.0, max_per_img=50, nms=dict(type='nms', iou_threshold=1.0))
        if 'rpn' in model.test_cfg:
            model.test_cfg.rpn.update(nms_pre=200, max_per_img=30)
    for part in model.values():  # norms of several processes at once, which one process builds as BatchNorm
        replace_sync_bn(part)
    net = fill(MODELS.build(model)).eval()
    if hasattr(net, 'roi_head'):
        scale_maps(net)
    return net, as_written(net)


def scale_maps(model):
    """Divide a neck's maps by their deviation, because random heads of large maps give scores of 0 and 1 alone."""
    with torch.no_grad():
        for layer, level in zip(model.neck.fpn_convs, model.extract_feat(batch(model)['inputs'])):
            layer.conv.weight /= level.std()
            layer.conv.bias /= level.std()


def replace_sync_bn(part):
    if isinstance(part, dict):
        if part.get('type') == 'SyncBN':
            part['type'] = 'BN'
        for value in part.values():
            replace_sync_bn(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            replace_sync_bn(value)


def batch(model):
    """Two images as a data loader hands them over, through the model's own preprocessor."""
    rng = np.random.RandomState(0)
    inputs = [torch.from_numpy(rng.randint(0, 256, (3, *SIZE)).astype(np.uint8)) for _ in range(2)]
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as DataSample
    else:
        from mmdet.structures import DetDataSample as DataSample
    meta = dict(img_shape=SIZE, ori_shape=SIZE, pad_shape=SIZE, batch_input_shape=SIZE, scale_factor=(1.0, 1.0),
                img_path='', img_id=0)
    samples = [DataSample(metainfo=meta) for _ in inputs]
    for sample in samples:
        if hasattr(model, 'decode_head'):
            sample.gt_sem_seg = PixelData(data=torch.zeros(1, *SIZE, dtype=torch.long))
        else:
            sample.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return model.data_preprocessor(dict(inputs=inputs, data_samples=samples), False)


def predict(model):
    """What the model predicts for each of two images: (label map, logits), or (boxes, scores, labels, masks)."""
    data = batch(model)
    samples = model.predict(data['inputs'], data['data_samples'])
    if hasattr(model, 'decode_head'):
        return [(sample.pred_sem_seg.data, sample.seg_logits.data.detach()) for sample in samples]
    found = [sample.pred_instances for sample in samples]
    return [(f.bboxes.detach(), f.scores.detach(), f.labels,
             torch.as_tensor(np.asarray(f.masks)) if 'masks' in f else None) for f in found]


def as_written(model):
    """The reference: contiguous maps everywhere, PyTorch's convolutions, with an autograd graph, unmerged."""
    model = copy.deepcopy(model)
    set_memory_format(model.backbone, 'contiguous')
    for module in model.modules():
        if isinstance(module, DepthwiseConv2d):
            module.forward = types.MethodType(nn.Conv2d.forward, module)
    return predict(model)


def as_run(model):
    with torch.no_grad():
        return predict(model)


def in_inference_mode(model):
    with torch.inference_mode():
        return predict(model)


def merged(model):
    with torch.no_grad():
        return predict(merge(model))


def channels_last_throughout(model):
    """Maps that stay in channels_last up to the operators of the heads, as a user may ask for."""
    model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    set_memory_format(model.backbone, 'channels_last', output_format='channels_last')
    with torch.no_grad():
        return predict(model)


def by_hook(model):
    model = copy.deepcopy(model)
    MemoryFormatHook('channels_last').before_run(types.SimpleNamespace(model=model))
    with torch.no_grad():
        return predict(model)


def with_gradients(model):
    return predict(model)


WAYS = [as_run, in_inference_mode, merged, channels_last_throughout, by_hook, with_gradients]


@pytest.mark.parametrize('way', WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize('name', SEGMENTORS)
def test_segmentors_predict_the_same(name, way):
    model, expected = build(name)
    for (labels, logits), (their_labels, their_logits) in zip(way(model), expected, strict=True):
        assert relative_error(logits, their_logits) < 2e-5
        top = their_logits.topk(2, dim=0).values if their_logits.shape[0] > 1 else None
        certain = (top[0] - top[1] > 1e-3 * their_logits.abs().max()) if top is not None else labels[0] >= 0
        assert certain.float().mean() > 0.9 and torch.equal(labels[0][certain], their_labels[0][certain])


@pytest.mark.parametrize('way', WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize('name', DETECTORS)
def test_detectors_predict_the_same(name, way):
    model, expected = build(name)
    for found, theirs in zip(way(model), expected, strict=True):
        boxes, scores, labels, masks = found
        their_boxes, their_scores, their_labels, their_masks = theirs
        assert len(their_boxes) > 10
        assert their_boxes.std(dim=0).min() > 1.0, 'boxes at one place would prove nothing'
        place = same_detections((boxes, scores, labels), (their_boxes, their_scores, their_labels), 0.05)
        if masks is not None:
            assert (masks[place] != their_masks).float().mean() < 1e-3 and their_masks.float().mean() > 0.01


@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('way', [*WAYS, as_written], ids=lambda way: way.__name__)
@pytest.mark.parametrize('name', TWO_STAGE)
def test_features_of_regions_are_those_of_torchvision(name, way, autocast):
    """torchvision's RoIAlign respects strides."""
    model = copy.deepcopy(build(name)[0])
    calls = []

    def compare(layer, args, out):
        features, rois = args
        expected = roi_align(features.float().contiguous(), rois.float(), layer.output_size, layer.spatial_scale,
                             layer.sampling_ratio, layer.aligned)
        calls.append((relative_error(out, expected), rois.dtype))

    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        for one in extractor if isinstance(extractor, nn.ModuleList) else [extractor]:
            for layer in one.roi_layers:
                layer.register_forward_hook(compare)
    with torch.autocast('cpu', enabled=autocast):
        way(model)
    assert len(calls) >= 2 and max(error for error, _ in calls) < 1e-6
    assert {dtype for _, dtype in calls} == {torch.float32}


@pytest.mark.parametrize('name', [*SEGMENTORS, *DETECTORS])
def test_dense_outputs_under_autocast_are_near_those_in_float32(name):
    """What comes before anything that one bit could turn over: a segmentor's logits, a detector's dense predictions."""
    model = copy.deepcopy(build(name)[0])

    def dense():
        inputs = batch(model)['inputs']
        with torch.no_grad():
            maps = model.extract_feat(inputs)
            head = next(getattr(model, key) for key in ('decode_head', 'rpn_head', 'bbox_head') if hasattr(model, key))
            out = head(maps) if not hasattr(head, 'align_corners') else [[head(maps)]]
        return [level for kind in out for level in kind]

    expected = dense()
    with torch.autocast('cpu'):
        mixed = dense()
    for ours, theirs in zip(mixed, expected, strict=True):
        assert theirs.shape[-1] < 4 or relative_error(ours, theirs) < 0.1  # a norm over few pixels enlarges any error
    assert any(relative_error(ours, theirs) > 1e-6 for ours, theirs in zip(mixed, expected))


@pytest.mark.parametrize('name', ['mask_rcnn_replknet31b_coco', 'cascade_mask_rcnn_replknet31b_coco',
                                  'fcos_replknet31b_coco'])
def test_detectors_on_real_photographs(name, shared_data, tmp_path):
    """Train, validate and test on photographs of COCO; the tests of two layouts find the same."""
    photographs = shared_data / 'coco_tiny160'
    if not photographs.is_dir():
        pytest.skip('coco_tiny160 is not among the real images')
    cfg = shrunk(name, 'coco', photographs, tmp_path)
    for split, count in dict(train=6, val=4, test=4).items():
        dataset = cfg[f'{split}_dataloader'].dataset
        del dataset.metainfo
        dataset.indices = count
    heads = cfg.model.roi_head.bbox_head if 'roi_head' in cfg.model else cfg.model.bbox_head
    for head in [*(heads if isinstance(heads, list) else [heads]),
                 *([cfg.model.roi_head.mask_head] if 'roi_head' in cfg.model else [])]:
        head.num_classes = 80
    for part in cfg.model.values():
        replace_sync_bn(part)
    for evaluator in ('val_evaluator', 'test_evaluator'):
        cfg[evaluator].metric = ['bbox', 'segm'] if 'roi_head' in cfg.model else ['bbox']
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert 'val/coco/bbox_mAP' in runner.message_hub.log_scalars
    found = {}
    for layout in ('contiguous', 'fastest'):
        cfg.merge_from_dict(dict(load_from=str(tmp_path / 'epoch_1.pth'), experiment_name=f'{name}-{layout}'))
        runner = Runner.from_cfg(cfg)
        set_memory_format(runner.model.backbone, layout)
        samples = []
        runner.model.register_forward_hook(lambda module, args, out: samples.extend(out))
        runner.test()
        found[layout] = [sample.pred_instances for sample in samples]
        assert len(samples) == 4
    for theirs, ours in zip(found['contiguous'], found['fastest'], strict=True):
        assert len(theirs) > 0
        place = same_detections(*([one.bboxes, one.scores, one.labels] for one in (ours, theirs)), pixels=0.05)
        if 'masks' in theirs:
            assert np.mean(np.asarray(theirs.masks) != np.asarray(ours.masks)[place]) < 1e-3
