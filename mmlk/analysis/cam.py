"""Class activation maps: the regions of an image that increase the score of a class.

The maps are computed by pytorch-grad-cam (https://github.com/jacobgil/pytorch-grad-cam, MIT; ``pip install grad-cam``).
It takes the gradient of the score of one class. The score is

- for a segmentor: the sum of the class's logits over the pixels that are predicted as the class, or over all pixels if
  there are none. If the head has one channel, its logit is that of class 1, and its negative is that of class 0;
- for a detector: the sum of the scores of the detected objects of the class;
- for a classifier: the logit of the class.
"""
import difflib
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import ImageOps
from torch import Tensor, nn

from mmlk._types import type_name, type_of
from mmlk.datasets.check import datasets
from mmlk.datasets.images import as_loaded, open_image, to_tensor, viewable
from mmlk.engine.heads import classes_of, labels_of, names_by_label

from .classifiers import CLASSES, Classifier, class_names
from .palette import most_lines, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: The methods, by their names on the command line. The values are the class names in pytorch-grad-cam.
METHODS = {'gradcam': 'GradCAM', 'gradcam++': 'GradCAMPlusPlus', 'hirescam': 'HiResCAM', 'layercam': 'LayerCAM',
           'xgradcam': 'XGradCAM', 'eigencam': 'EigenCAM', 'eigengradcam': 'EigenGradCAM'}

LAST_MAP = 'the last map of the backbone'


@dataclass
class Sample:
    """An image, for display and as the input of a network.

    Args:
        image: (H, W, 3), uint8, RGB, to draw on.
        inputs: (1, C, h, w), the input of the network.
        inside: Height and width of the image inside of ``inputs``. The rest, at the bottom and on the right, is
        padding. data_samples: The data samples of OpenMMLab's models.
    """
    image: np.ndarray
    inputs: Tensor
    inside: Tuple[int, int]
    data_samples: Optional[list] = None


@dataclass
class Choice:
    """The class that is explained, and where the network finds it.

    Args:
        label: Index of the class.
        found: How the network finds the class in the image, as text for the title.
        region: (h, w), bool, the pixels that a segmentor predicts as the class.
        boxes: (N, 4), x1, y1, x2, y2 in pixels of the image, the objects that a detector finds.
    """
    label: int
    found: str
    region: Optional[np.ndarray] = None
    boxes: Optional[np.ndarray] = None


class Subject(nn.Module):
    """Base class that wraps a network and returns its score for a class.

    ``forward`` returns a sequence with one element, the output for the image.

    Args:
        network: The network. It is changed in-place: parameters are frozen, and it is set to eval mode.
        classes: Names of the classes.
        backbone: The part of the network that returns a sequence of feature maps. The last map is available as the
            layer ``LAST_MAP``. None if there is no backbone.
    """

    def __init__(self, network: nn.Module, classes: Sequence[str], backbone: Optional[nn.Module]):
        super().__init__()
        self.network = network.requires_grad_(False)
        self.network.eval()  # a separate call, because eval() of mmdet's ResNet returns None
        self.classes = list(classes)
        for module in network.modules():
            if getattr(module, 'inplace', False) is True:
                module.inplace = False  # the next layer would overwrite the output that is explained
            if getattr(module, 'with_cp', False) is True:
                module.with_cp = False  # a layer with checkpointing runs twice
        self._probe = nn.Identity()
        if backbone is not None:
            backbone.register_forward_hook(self._pass_last_map)

    def _pass_last_map(self, backbone: nn.Module, args: tuple, maps: Sequence[Tensor]) -> tuple:
        return (*maps[:-1], self._probe(maps[-1]))

    @property
    def default_layer(self) -> str:
        """Name of the layer that is used by default."""
        return LAST_MAP

    def layer(self, name: str) -> nn.Module:
        """Returns the module of the network with this name, or the module that passes on the last map.

        Raises:
            ValueError: There is no such module. The message lists similar names.
        """
        if name == LAST_MAP:
            return self._probe
        modules = {known: module for known, module in self.network.named_modules() if known}
        if name in modules:
            return modules[name]
        near = [known for known in modules if known.endswith(f'.{name}')][:5] if name else []
        near = near or difflib.get_close_matches(name, modules, n=5)
        near = near or [child for child, _ in self.network.named_children()]
        raise ValueError(f"{type(self.network).__name__} has no layer '{name}'; there is {', '.join(near)}")

    def label(self, name: str) -> int:
        """Returns the index of a class, which is given by its name or its index.

        Raises:
            ValueError: There is no such class.
        """
        if name in self.classes:
            return self.classes.index(name)
        if name.isdecimal() and int(name) < len(self.classes):
            return int(name)
        near = difflib.get_close_matches(name, self.classes, n=5) or self.classes[:5]
        raise ValueError(f"no class '{name}' among {len(self.classes)}; there is {', '.join(near)}; an index from 0 "
                         f'will do as well')

    def sample(self, path: Path) -> Sample:
        """Loads an image and preprocesses it for the network. Later calls of ``forward`` and ``choose`` refer to it.

        Raises:
            ValueError: The file cannot be read as an image.
        """
        raise NotImplementedError

    def choose(self, output: Any, label: Optional[int]) -> Optional[Choice]:
        """Returns the class to explain: ``label``, or the most prominent class if it is None; None if not found."""
        raise NotImplementedError

    def score(self, output: Any, choice: Choice) -> Tensor:
        """Returns the score of the class, a scalar with a gradient."""
        raise NotImplementedError


class ClassifierSubject(Subject):
    """A subject for a :class:`mmlk.analysis.classifiers.Classifier`. Images are cropped to the central square."""

    def __init__(self, classifier: Classifier):
        super().__init__(classifier.network, class_names(), getattr(classifier.network, 'backbone', None))
        self._classifier = [classifier]  # in a list, so that it is not registered as a submodule a second time

    @property
    def default_layer(self) -> str:
        return self._classifier[0].last_layer or LAST_MAP

    def sample(self, path: Path) -> Sample:
        size = self._classifier[0].size
        inputs = to_tensor(ImageOps.fit(open_image(path), (size, size)), size)
        return Sample(inputs.permute(1, 2, 0).byte().numpy(), inputs[None], (size, size))

    def forward(self, x: Tensor) -> Tensor:
        return self._classifier[0](x)

    def choose(self, output: Tensor, label: Optional[int]) -> Choice:
        label = int(output.argmax()) if label is None else label
        return Choice(label, f'probability {output.softmax(0)[label]:.3f}')

    def score(self, output: Tensor, choice: Choice) -> Tensor:
        return output[choice.label]


class ConfigSubject(Subject):
    """A subject for a model of mmseg, mmdet or mmpretrain. Images are loaded by the test pipeline of its config."""

    def __init__(self, cfg: Config, network: nn.Module):
        super().__init__(network, class_names_of(cfg, network), network.backbone)
        self._scope = cfg.get('default_scope')
        with DefaultScope.overwrite_default_scope(self._scope):
            self._pipeline = _pipeline(cfg)
        self._data_samples: Optional[list] = None

    def sample(self, path: Path) -> Sample:
        from mmengine.dataset import pseudo_collate
        viewable(path)  # raises ValueError for a truncated file, of which mmcv would return a part
        with DefaultScope.overwrite_default_scope(self._scope):
            data = self._pipeline(dict(img_path=str(path), img_id=0))
        data = self.network.data_preprocessor(pseudo_collate([data]), False)
        self._data_samples = data['data_samples']
        inside = self._data_samples[0].metainfo.get('img_shape', data['inputs'].shape[2:])[:2]
        return Sample(as_loaded(path), data['inputs'], tuple(inside), self._data_samples)


class SegmentorSubject(ConfigSubject):

    def forward(self, x: Tensor) -> Tensor:
        return self.network.encode_decode(x, [sample.metainfo for sample in self._data_samples])

    def choose(self, output: Tensor, label: Optional[int]) -> Choice:
        height, width = self._data_samples[0].metainfo['img_shape'][:2]
        # the logits may include the padding or not
        labels = labels_of(self.network, output)[:height, :width].cpu().numpy()
        label = int(np.bincount(labels.ravel()).argmax()) if label is None else label
        region = np.zeros(output.shape[1:], bool)
        region[:height, :width] = labels == label
        if not region.any():
            return Choice(label, 'of no pixel')
        return Choice(label, f'of {(labels == label).mean():.1%} of the pixels', region)

    def score(self, output: Tensor, choice: Choice) -> Tensor:
        logits = output[choice.label] if len(output) > 1 else output[0] if choice.label else -output[0]
        return logits.sum() if choice.region is None else logits[torch.from_numpy(choice.region)].sum()


class DetectorSubject(ConfigSubject):
    """A subject for a detector. Objects with scores below ``threshold`` are ignored; masks are not computed."""

    def __init__(self, cfg: Config, network: nn.Module, threshold: float):
        super().__init__(cfg, network)
        self.threshold = threshold
        if getattr(getattr(network, 'roi_head', None), 'with_mask', False):
            network.roi_head.mask_head = None

    def forward(self, x: Tensor) -> list:
        # predict() modifies the data samples, so it gets a copy
        return [sample.pred_instances
                for sample in self.network.predict(x, deepcopy(self._data_samples), rescale=True)]

    def choose(self, output, label: Optional[int]) -> Optional[Choice]:
        found = output[output.scores >= self.threshold]
        if label is None and len(found):
            label = int(found.labels[found.scores.argmax()])
        if label is None or not (found.labels == label).any():
            return None
        found = found[found.labels == label]
        return Choice(label, f"{len(found)} object{'s' * (len(found) > 1)}, best score {found.scores.max():.2f}",
                      boxes=found.bboxes.detach().cpu().numpy())

    def score(self, output, choice: Choice) -> Tensor:
        return output.scores[(output.scores >= self.threshold) & (output.labels == choice.label)].sum()


class ConfigClassifierSubject(ConfigSubject):

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x, self._data_samples, mode='tensor')

    choose, score = ClassifierSubject.choose, ClassifierSubject.score


def subject_from_config(cfg: Config, network: nn.Module, threshold: float = 0.3) -> ConfigSubject:
    """Returns the subject for a model.

    Args:
        cfg: The whole config of the model.
        network: The model, as :func:`mmlk.engine.network.build_network` returns it.
        threshold: Minimum score of a detected object, 0 to 1.

    Raises:
        ValueError: The model is not a segmentor, detector or classifier, or the config has no test pipeline.
    """
    kinds = {kind.__name__ for kind in type(network).__mro__}
    if 'BaseSegmentor' in kinds:
        return SegmentorSubject(cfg, network)
    if 'BaseDetector' in kinds:
        return DetectorSubject(cfg, network, threshold)
    if 'BaseClassifier' in kinds:
        return ConfigClassifierSubject(cfg, network)
    raise ValueError(f'{type(network).__name__} is no segmentor, detector or classifier of OpenMMLab')


def _test_dataset(cfg: Config) -> dict:
    return next((dataset for _, dataset in datasets(cfg, 'test')), {})


def _pipeline(cfg: Config):
    """Builds the test pipeline of a config, without the steps that load annotations."""
    from mmcv.transforms import Compose
    steps = _test_dataset(cfg).get('pipeline') or cfg.get('test_pipeline')
    if not steps:
        raise ValueError('the config has no test pipeline: neither test_dataloader.dataset.pipeline nor test_pipeline')
    return Compose([step for step in steps if 'Annotations' not in type_name(step)])


def class_names_of(cfg: Config, network: nn.Module) -> List[str]:
    """Returns the class names of the test dataset, or numbers as text if they are unknown."""
    dataset = _test_dataset(cfg)
    names = (dataset.get('metainfo') or {}).get('classes')
    if not names:
        names = getattr(type_of(dataset, 'DATASETS', cfg.get('default_scope')), 'METAINFO', {}).get('classes')
    if names:
        return names_by_label(names, network)
    heads = [getattr(network, 'decode_head', None), getattr(network, 'bbox_head', None), getattr(network, 'head', None)]
    return [str(index) for index in range(next((classes_of(head) for head in heads if hasattr(head, 'num_classes')),
                                               CLASSES))]


def explain(subject: Subject, sample: Sample, layers: Sequence[str], method: str = 'gradcam',
            label: Optional[int] = None) -> Optional[Tuple[Choice, Dict[str, np.ndarray]]]:
    """Computes the activation map of one class for each of several layers.

    Args:
        subject: The subject, on the device to run on.
        sample: The result of the last call of ``subject.sample``.
        layers: Names of modules, or ``LAST_MAP``. Each module must run exactly once and return feature maps, (1, C, h,
            w) or (1, h, w, C), or tokens, (1, h * w, C), with or without a class token before them.
        method: A key of ``METHODS``.
        label: Index of the class; the most prominent class by default.

    Returns:
        The explained class, and a map for each layer: (H, W), the size of the sample's image, values from 0 to 1. None
        if the class is not found.

    Raises:
        ValueError: A layer does not exist, does not return maps, or has no influence on the score.
    """
    import pytorch_grad_cam
    modules = {name: subject.layer(name) for name in layers}
    seen: Dict[str, list] = {name: [] for name in layers}
    hooks = [module.register_forward_hook(lambda module, args, out, name=name: seen[name].append(out))
             for name, module in modules.items()]
    device = next(subject.parameters()).device
    inputs = sample.inputs.to(device)
    try:
        with torch.no_grad():
            output = subject(inputs)[0]
    finally:
        for hook in hooks:
            hook.remove()
    views = {name: _view(name, outputs, inputs.shape[2:]) for name, outputs in seen.items()}
    choice = subject.choose(output, label)
    if choice is None:
        return None
    maps = {}
    for name, module in modules.items():
        cam = getattr(pytorch_grad_cam, METHODS[method])(subject, [module], reshape_transform=views[name])
        cam.compute_input_gradient = True  # the parameters are frozen, so there would be no gradients otherwise
        try:
            heat = cam(inputs, [partial(subject.score, choice=choice)])[0]
        except Exception as error:
            if cam.uses_gradients and not cam.activations_and_grads.gradients:
                raise ValueError(f"the layer '{name}' has no influence on the score of "
                                 f"'{subject.classes[choice.label]}'") from error
            raise
        finally:
            cam.activations_and_grads.release()
        maps[name] = _on_image(heat, sample)
    return choice, maps


def _view(name: str, outputs: list, size: Sequence[int]) -> Callable[[Tensor], Tensor]:
    """Returns a function that converts the output of a layer to (1, C, h, w), for an input of height and width
    ``size``.

    Raises:
        ValueError: The layer did not run exactly once, or its output is not a feature map.
    """
    if not outputs:
        raise ValueError(f"the layer '{name}' is not run itself, if at all; one inside of it may be")
    if len(outputs) != 1:
        raise ValueError(f"the layer '{name}' runs {len(outputs)} times on an image; one that runs once is needed")
    if not isinstance(outputs[0], Tensor):
        raise ValueError(f"the layer '{name}' gives a {type(outputs[0]).__name__}; one that gives a tensor is needed")
    shape = tuple(outputs[0].shape)
    if shape[0] == 1 and len(shape) == 4:
        if _is_scaled(shape[1:3], size) and not _is_scaled(shape[2:], size):
            return lambda x: x.permute(0, 3, 1, 2)
        return lambda x: x
    if shape[0] == 1 and len(shape) == 3:
        for stride in range(1, min(size) + 1):
            rounded_up = -(-size[0] // stride), -(-size[1] // stride)
            for height, width in {(size[0] // stride, size[1] // stride), rounded_up}:
                before = shape[1] - height * width
                if before in (0, 1):
                    return lambda x: x[:, before:].unflatten(1, (height, width)).permute(0, 3, 1, 2)
    raise ValueError(f"the layer '{name}' gives {'x'.join(map(str, shape))}, which is no map of an image of "
                     f"{size[0]}x{size[1]} (height x width)")


def _is_scaled(shape: Sequence[int], size: Sequence[int]) -> bool:
    return any(all(part in (whole // stride, -(-whole // stride)) for part, whole in zip(shape, size))
               for stride in range(1, max(size) + 1))


def _on_image(heat: np.ndarray, sample: Sample) -> np.ndarray:
    """Removes the padding of a map, resizes it to the image, (H, W), and divides it by its maximum."""
    import cv2
    height, width = sample.inside
    heat = heat[:height, :width]
    heat = cv2.resize(heat, sample.image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return heat / max(heat.max(), 1e-7)


def overlay_heat(sample: Sample, heat: np.ndarray, choice: Choice) -> np.ndarray:
    """Draws a map over the image, with white outlines of the class's region or boxes. Returns (H, W, 3), uint8, RGB."""
    import cv2
    from pytorch_grad_cam.utils.image import show_cam_on_image
    picture = np.ascontiguousarray(show_cam_on_image(sample.image.astype(np.float32) / 255, heat, use_rgb=True))
    white, thickness = (255, 255, 255), max(1, round(max(picture.shape) / 400))
    if choice.region is not None:
        region = choice.region[:sample.inside[0], :sample.inside[1]].astype(np.uint8)
        region = cv2.resize(region, picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(region, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(picture, outlines, -1, white, thickness)
    for left, top, right, bottom in np.rint(choice.boxes).astype(int) if choice.boxes is not None else ():
        cv2.rectangle(picture, (int(left), int(top)), (int(right), int(bottom)), white, thickness)
    return picture


@dataclass
class CamRow:
    """A row of :func:`grid`.

    Args:
        image: (H, W, 3), uint8, RGB.
        title: Title of the image.
        overlays: Images of the same form by the name of the layer.
    """
    image: np.ndarray
    title: str
    overlays: Dict[str, np.ndarray]


def grid(rows: Sequence[CamRow]) -> 'Figure':
    """Draws each image with its overlays, one column for each layer.

    Returns:
        The figure.

    Raises:
        ValueError: ``rows`` is empty.
    """
    from matplotlib.figure import Figure
    if not rows:
        raise ValueError('there is nothing to draw')
    layers = list(rows[0].overlays)
    heights = [3 * row.image.shape[0] / row.image.shape[1] for row in rows]
    titles = [[wrapped(title, 40) for title in (row.title, *row.overlays)] for row in rows]
    size = 3 * (1 + len(layers)), sum(heights) + 0.15 * sum(2 + most_lines(names) for names in titles)
    figure = Figure(figsize=size, layout='constrained')
    axes = figure.subplots(len(rows), 1 + len(layers), squeeze=False, height_ratios=heights)
    for line, row, names in zip(axes, rows, titles):
        for ax, title, picture in zip(line, names, (row.image, *row.overlays.values())):
            ax.set_axis_off()
            ax.imshow(picture)
            ax.set_title(title, fontsize=8)
    return figure
