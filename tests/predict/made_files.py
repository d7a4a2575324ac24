"""Exported files made by hand, whose outputs are known, and their metadata."""
import json

import onnx
from onnx import TensorProto, helper

CLASSES = ['dark', 'bright', 'never']
PALETTE = [[200, 0, 0], [0, 200, 0], [0, 0, 200]]


def facts(**changes):
    """Metadata as ``tools/export.py`` writes them; a change to ... removes the key."""
    found = dict(task='segmentation', classes=CLASSES, palette=PALETTE, mean=[100.0, 110.0, 120.0], std=[1.0, 1.0, 1.0],
                 mean_and_std_are_of='RGB', size=[32, 48], size_step=1,
                 size_bounds=dict(height=[1, None], width=[1, None]), resize=None, pad_divisor=1,
                 reduce_zero_label=False, window=None, align_corners=False, binary_threshold=None)
    if changes.get('task') == 'detection':
        found.update(score_threshold=0.05, nms_iou_threshold=0.5, mask_threshold=0.5, max_detections=100)
    found = {key: value for key, value in {**found, **changes}.items() if value is not ...}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}


def save(path, nodes, outputs, constants, metadata):
    """Writes an ONNX file with the input ``images``, (batch, C, height, width)."""
    channels = 4 if 'channels as in the data' in metadata.values() else 3
    graph = helper.make_graph(
        nodes, 'graph', [helper.make_tensor_value_info('images', TensorProto.FLOAT, ['n', channels, 'h', 'w'])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [helper.make_tensor(name, kind, shape, values) for name, (kind, shape, values) in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=9)
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return str(path)


def segmentor(path, **changes):
    """Logits of 'dark' are 100 - red, of 'bright' red - 100, of 'never' -1000: a pixel decides about itself."""
    metadata = facts(**changes)
    channels = 4 if metadata['mean_and_std_are_of'] == 'channels as in the data' else 3
    kernel = [0.0] * 3 * channels
    kernel[0], kernel[channels] = -1.0, 1.0
    return save(path, [
        helper.make_node('Conv', ['images', 'kernel', 'bias'], ['logits']),
        helper.make_node('ArgMax', ['logits'], ['labels'], axis=1, keepdims=0),
    ], dict(labels=TensorProto.INT64, logits=TensorProto.FLOAT), dict(
        kernel=(TensorProto.FLOAT, [3, channels, 1, 1], kernel),
        bias=(TensorProto.FLOAT, [3], [100.0, -100.0, -1000.0])), metadata)


def detector(path, **changes):
    """Three boxes, the same for every image, whose masks are the pixels of the image in which red is above 100."""
    metadata = facts(task='detection', **changes)
    boxes = [2.0, 4.0, 10.0, 12.0, 0.0, 0.0, 16.0, 8.0, 1.0, 1.0, 3.0, 3.0]
    nodes = [helper.make_node('Identity', [f'{name}_'], [name]) for name in ('boxes', 'scores', 'classes')]
    nodes[2].output[0] = 'labels'
    nodes += [
        helper.make_node('Slice', ['images', 'zero', 'one', 'axis'], ['red']),
        helper.make_node('Squeeze', ['red', 'axis'], ['plane']),
        helper.make_node('Greater', ['plane', 'limit'], ['bright']),
        helper.make_node('Expand', ['bright', 'three'], ['masks']),
    ]
    return save(path, nodes, dict(boxes=TensorProto.FLOAT, scores=TensorProto.FLOAT, labels=TensorProto.INT64,
                                  masks=TensorProto.BOOL), dict(
        boxes_=(TensorProto.FLOAT, [3, 4], boxes), scores_=(TensorProto.FLOAT, [3], [0.4, 0.9, 0.2]),
        classes_=(TensorProto.INT64, [3], [1, 0, 2]), zero=(TensorProto.INT64, [1], [0]),
        one=(TensorProto.INT64, [1], [1]), axis=(TensorProto.INT64, [1], [1]),
        limit=(TensorProto.FLOAT, [1], [100.0]), three=(TensorProto.INT64, [3], [3, 1, 1])), metadata)
