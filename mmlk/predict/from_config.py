"""The model of a config and its checkpoint, which predicts as ``tools/test.py`` does."""
from pathlib import Path
from typing import Any, Mapping, Optional, Union

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import TRANSFORMS, DefaultScope

from mmlk._types import is_a, type_name, type_of
from mmlk.analysis import cam
from mmlk.datasets.check import datasets
from mmlk.deploy import export
from mmlk.engine import loading
from mmlk.engine.config import read_config_file
from mmlk.engine.heads import names_by_label
from mmlk.engine.network import build_network, check_dense, in_channels
from mmlk.ops import set_memory_format
from mmlk.weights import load
from mmlk.weights.fetch import find
from mmlk.weights.read import read_weights

from .model import ImageError, Model, torch_device
from .prediction import MaskCrop
from .tiles import Found


class ConfigModel(Model):
    """A segmentor of mmseg or a detector of mmdet, built from a config.

    Args:
        config: The path of a config, or a config.
        checkpoint: A path, an http(s) URL or a name of the catalogue. It must fill the model.
        device: As :class:`mmlk.predict.Predictor`.
        options: Overrides of the config by dotted keys.

    Raises:
        ValueError: The config or the checkpoint cannot be used, or the device is not there.
    """

    def __init__(self, config: Union[str, Path, Config], checkpoint: str, device: Optional[str] = None,
                 options: Optional[dict] = None):
        loading.guard()  # as tools/test.py, so that images are read and refused in the same way
        cfg = config if isinstance(config, Config) else read_config_file(str(config))
        if options:
            cfg = cfg.copy()
            try:
                cfg.merge_from_dict(options)
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f'cfg_options do not fit {cfg.filename}: {error}') from error
        check_dense(cfg)
        device = torch_device(device)
        self._scope = cfg.get('default_scope')
        network = build_network(cfg)
        kinds = {kind.__name__ for kind in type(network).__mro__}
        if not kinds & {'BaseSegmentor', 'BaseDetector'}:
            raise ValueError(f'{type(network).__name__} is neither a segmentor of mmseg nor a detector of mmdet')
        self.task = 'segmentation' if 'BaseSegmentor' in kinds else 'detection'
        self.channels = in_channels(cfg)
        dataset = next((dataset for _, dataset in datasets(cfg, 'test')), {})
        self._set_pipeline(dataset.get('pipeline') or cfg.get('test_pipeline') or [])
        path = str(find(checkpoint))
        load(network, path)
        self.network = network.to(device).eval()
        for hook in cfg.get('custom_hooks') or []:  # those that change what a test computes, if only by rounding
            if is_a(hook, 'MemoryFormatHook', 'HOOKS', self._scope):
                set_memory_format(network.backbone, hook.get('memory_format', 'fastest'))
        self._set_names(cfg, dataset, read_weights(path).get('meta'))
        if self.task == 'segmentation':
            head = getattr(network, 'decode_head', None)
            head = head[-1] if isinstance(head, torch.nn.ModuleList) else head
            self.binary_threshold = head.threshold if getattr(head, 'out_channels', None) == 1 else None
        else:
            self.nms_iou_threshold = _nms_iou_threshold(cfg.model.get('test_cfg') or {})

    def _set_pipeline(self, steps: list) -> None:
        steps = [step for step in steps if 'Annotations' not in type_name(step)]
        if not steps or not type_name(steps[0]).startswith('Load'):
            raise ValueError("the test pipeline of the config must begin with a step that loads an image, such as "
                             f"LoadImageFromFile; its steps are {', '.join(map(type_name, steps)) or 'none'}")
        loader = dict(steps[0])
        self._to_float32 = loader.pop('to_float32', False)
        # mmcv's returns BGR, with the decoder tifffile the channels of the file
        self._is_bgr = (self.channels == 3 and type_name(loader) == 'LoadImageFromFile'
                        and loader.get('imdecode_backend') != 'tifffile')
        with DefaultScope.overwrite_default_scope(self._scope):
            self._loader = TRANSFORMS.build(loader)
            self._pipeline = Compose(steps[1:])

    def _set_names(self, cfg: Config, dataset: Mapping, meta: Any) -> None:
        known = (meta.get('dataset_meta') if isinstance(meta, dict) else None) or {}
        kind = type_of(dataset, 'DATASETS', self._scope)
        names = known.get('classes')
        self.classes = tuple(names_by_label(names, self.network) if names
                             else cam.class_names_of(cfg, self.network))
        self.palette = tuple((red, green, blue) for red, green, blue in export.palette_of(
            len(self.classes), known, dataset.get('metainfo') or {}, getattr(kind, 'METAINFO', {})))
        self.reduce_zero_label = self.task == 'segmentation' and bool(export.reduces_zero_label(dataset, kind))

    def read(self, path: Path) -> np.ndarray:
        with DefaultScope.overwrite_default_scope(self._scope):
            try:
                loaded = self._loader(dict(img_path=str(path), img_id=0))
            except Exception as error:  # decoders raise any type of error on a broken file
                text = ' '.join(str(error).split())
                raise ImageError(text if isinstance(error, loading.DataError)
                                 else f'{path} cannot be read as an image ({text})') from error
        if loaded is None:
            raise ImageError(f'{path} cannot be read as an image')
        image = loaded['img']
        return image[..., ::-1] if self._is_bgr and image.ndim == 3 else image

    def _sample(self, image: np.ndarray) -> Any:
        """Returns what the model predicts, a data sample of mmseg or mmdet."""
        if self._is_bgr:
            image = image[..., ::-1]
        image = np.ascontiguousarray(image, np.float32 if self._to_float32 else None)
        if image.shape[2] == 1:  # as mmcv loads grey images
            image = image[..., 0]
        size = image.shape[:2]
        results = dict(img=image, img_path='', img_id=0, img_shape=size, ori_shape=size, height=size[0], width=size[1])
        if self.task == 'segmentation':
            results.update(seg_fields=[], reduce_zero_label=self.reduce_zero_label)
        with DefaultScope.overwrite_default_scope(self._scope), torch.no_grad():
            return self.network.test_step(pseudo_collate([self._pipeline(results)]))[0]

    def labels(self, image: np.ndarray) -> np.ndarray:
        return self._sample(image).pred_sem_seg.data[0].cpu().numpy()

    def scores(self, image: np.ndarray) -> np.ndarray:
        return self._sample(image).seg_logits.data.float().cpu().numpy()

    def detect(self, image: np.ndarray, score_threshold: float) -> Found:
        found = self._sample(image).pred_instances.cpu()
        found = found[found.scores >= score_threshold]
        crops = None
        if 'masks' in found:
            crops = [MaskCrop.of(mask) for mask in np.asarray(found.masks, bool)]
        return Found(found.bboxes.float().numpy().reshape(-1, 4), found.scores.float().numpy(), found.labels.numpy(),
                     crops).best(score_threshold)


def _nms_iou_threshold(test_cfg: Mapping) -> float:
    """Returns the threshold at which a detector suppresses boxes."""
    nms = (test_cfg.get('rcnn') or test_cfg).get('nms') or {}
    return float(nms.get('iou_threshold', Model.nms_iou_threshold))
