"""Effective receptive fields: how much every pixel of an image contributes to the middle of a feature map.

As the RepLKNet paper (arXiv:2203.06717) and ``erf/`` of its official code measure them:

- images are resized to a square, bicubic, whatever their shape, and normalised as for ImageNet;
- the score of a pixel is ReLU(ds/dx), summed over channels, where s is the sum over channels of ReLU of the map at
  (H // 2, W // 2), in eval mode; scores are averaged over images, one by one, leaving out those that give NaN;
- what is shown and cut into squares is log10(score + 1), over its largest value;
- the area ratio at t is that of the smallest square around (H // 2, W // 2), of side 3, 5, ..., that holds more than
  t of the total.

The logarithm makes ratios depend on the scale of the scores: theirs is that of an image normalised as for ImageNet
here too, whatever mean and deviation a network is fed with.
"""
import copy
import logging
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from torch import Tensor, nn

from mmlk._text import markdown_table
from mmlk.engine.network import build_network, in_channels
from mmlk.preprocessors import Normalization

from .palette import most_lines, wrapped

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
COLUMNS = 3  # heat maps in a row, so that the picture is readable at the width of a page


@dataclass
class ReceptiveField:
    """An effective receptive field.

    Args:
        scores: The mean scores of the pixels, (H, W).
        images: How many images the mean is over.
        skipped: How many images gave NaN and were left out.
    """
    scores: np.ndarray
    images: int
    skipped: int = 0

    @property
    def shown(self) -> np.ndarray:
        """log10(score + 1), divided by its maximum, (H, W)."""
        logarithms = np.log10(self.scores + 1)
        return logarithms / logarithms.max()

    def squares(self, thresholds: Sequence[float] = THRESHOLDS) -> List[Tuple[int, float]]:
        """Side and area ratio of the smallest centred square that holds more than each of the thresholds."""
        shown = self.shown
        return [square(shown, threshold) for threshold in thresholds]


def square(shares: np.ndarray, threshold: float) -> Tuple[int, float]:
    """Find the smallest centred square that holds more than a given part of the sum.

    Args:
        shares: (H, W), not negative.
        threshold: The part of the sum, from 0 to 1.

    Returns:
        The side of the square in pixels, which is odd, and its area divided by that of the map. If there is no such
        square inside the map, the height of the map and 1.
    """
    height, width = shares.shape
    middle, centre, total = height // 2, width // 2, shares.sum()
    for reach in range(1, middle):
        inside = shares[middle - reach:middle + reach + 1, max(0, centre - reach):centre + reach + 1]
        if inside.sum() / total > threshold:
            side = 2 * reach + 1
            return side, side * side / (height * width)
    return height, 1.0


class ErfNetwork:
    """A backbone in eval mode, and the images it takes.

    Args:
        backbone: Takes (N, C, H, W), returns a map (N, C', H', W') or a sequence of them.
        normalization: Of the images that the backbone takes; by default ImageNet's.
        channels: C.

    Raises:
        ValueError: ``mean`` or ``std`` is of another number of channels.
    """

    def __init__(self, backbone: nn.Module, normalization: Optional[Normalization] = None, channels: int = 3):
        self.normalization = normalization or Normalization.imagenet(channels)
        lengths = len(self.normalization.mean), len(self.normalization.std)
        if not set(lengths) <= {1, channels}:
            raise ValueError(f"the backbone takes images of {channels} channel{'s' * (channels > 1)}; the mean is of "
                             f'{lengths[0]}, the deviation of {lengths[1]}')
        self.channels = channels
        self.backbone = revert_sync_batchnorm(backbone).requires_grad_(False)
        self.backbone.eval()  # mmdet's ResNet does not return itself

    def maps(self, x: Tensor) -> Dict[int, Tensor]:
        """The backbone's maps of an image normalised as for ImageNet, by stage; by position where it names none."""
        usual = Normalization.imagenet(self.channels)
        if self.normalization != usual:
            mean, std = usual.tensors(x)
            x = self.normalization(x * std + mean)
        maps = self.backbone(x)
        maps = [maps] if isinstance(maps, Tensor) else list(maps)
        stages = getattr(self.backbone, 'out_indices', None)
        named = isinstance(stages, (list, tuple)) and len(stages) == len(maps)
        return dict(zip(stages if named else range(len(maps)), maps))

    def check(self, size: int, stage: Optional[int] = None) -> Tuple[int, Tuple[int, ...]]:
        """Run once, without gradients, on the meta device where that is possible.

        Args:
            size: Side of the images.
            stage: A stage that the backbone returns; None for the last.

        Returns:
            The stage, and the shape of its map.

        Raises:
            ValueError: The backbone does not take such images, or has no such map.
        """
        with torch.no_grad():
            try:
                meta = copy.copy(self)
                meta.backbone = copy.deepcopy(self.backbone).to('meta')
                maps = meta.maps(torch.empty(1, self.channels, size, size, device='meta'))
            except Exception:  # an operator that needs values; if it was the size, this tells it as well
                try:
                    maps = self.maps(torch.zeros(1, self.channels, size, size))
                except Exception as error:
                    raise ValueError(f'the backbone does not take images of {size} x {size}: {error}') from error
        stage = max(maps) if stage is None else stage
        if stage not in maps:
            raise ValueError(f"the backbone has no stage {stage}; it returns {', '.join(map(str, maps))}")
        if not isinstance(maps[stage], Tensor) or maps[stage].ndim != 4:
            raise ValueError(f'the backbone has no map at stage {stage}: (N, C, H, W) was expected')
        return stage, tuple(maps[stage].shape)


def erf_from_config(cfg: Config, initialise: bool) -> ErfNetwork:
    """The backbone of a segmentor's, detector's or classifier's config, without the weights the config names.

    Args:
        cfg: A whole config; its data preprocessor says how images are normalised, as for ImageNet if there is none.
        initialise: Give it the random weights that training without those would start from, its branches opened.

    Raises:
        ValueError: The config has no backbone, or it cannot be built.
    """
    backbone, channels = build_network(cfg, 'backbone'), in_channels(cfg)
    return _network(backbone, initialise, Normalization.of_config(cfg, channels), channels)


def erf_from_timm(name: str, initialise: bool) -> ErfNetwork:
    """A model of timm, as :func:`erf_from_config` gives a config's.

    Raises:
        ValueError: timm has no such model, or cannot give its feature maps.
    """
    from mmlk.backbones.timm_backbone import TimmBackbone
    try:
        backbone = TimmBackbone(name, model_args=dict(dynamic_img_size=True))  # transformers, for any size
    except ValueError:
        try:
            backbone = TimmBackbone(name)
        except ValueError as error:
            raise ValueError(f'the backbone cannot be built: {error}') from error
    return _network(backbone, initialise, Normalization.of_timm(backbone.model.pretrained_cfg))


def _network(backbone: nn.Module, initialise: bool, normalization: Normalization, channels: int = 3) -> ErfNetwork:
    if initialise:
        if hasattr(backbone, 'init_weights'):
            logger = MMLogger.get_current_instance()
            level = logger.level
            logger.setLevel(logging.WARNING)  # mmengine logs three lines for every parameter
            try:
                backbone.init_weights()
            finally:
                logger.setLevel(level)
        open_branches(backbone)
    return ErfNetwork(backbone, normalization, channels)


def open_branches(module: nn.Module) -> int:
    """Set scales that start at almost zero to one, and return how many there were.

    Such are the last norms of ResNet's blocks and ConvNeXt's layer scales. Training opens these branches; at random
    weights they would leave the receptive field of the shortcuts alone.
    """
    opened = 0
    for name, parameter in module.named_parameters():
        one_per_channel = parameter.ndim and parameter.numel() == max(parameter.shape[:-2] or parameter.shape)
        if one_per_channel and not name.endswith('bias') and parameter.detach().abs().max() < 0.01:
            nn.init.ones_(parameter)
            opened += 1
    return opened


def contribution(features: Callable[[Tensor], Tensor], x: Tensor, pixel: Optional[Tuple[int, int]] = None
                 ) -> np.ndarray:
    """Compute how much each pixel of one image contributes to one position of a feature map.

    Args:
        features: Gives a map (1, C, H', W').
        x: (1, 3, H, W); it stays as it is.
        pixel: Row and column of the image. The position is that of the map which covers this pixel, if the map is laid
            over the image. By default (H // 2, W // 2), which is the position (H' // 2, W' // 2).

    Returns:
        (H, W), in x's dtype.
    """
    x = x.detach().requires_grad_()
    size = x.shape[2:]
    row, column = (size[0] // 2, size[1] // 2) if pixel is None else pixel
    with torch.enable_grad():
        outputs = features(x)
        # by the middle of the pixel, in whole numbers: (pixel + 1/2) / size of the image * size of the map
        row, column = ((2 * place + 1) * cells // (2 * pixels)
                       for place, cells, pixels in zip((row, column), outputs.shape[2:], size))
        gradient, = torch.autograd.grad(outputs[:, :, row, column].relu().sum(), x)
    return gradient.relu().sum((0, 1)).cpu().numpy()


def measure_erf(network: ErfNetwork, images: Iterable[np.ndarray], stage: int, device: str = 'cpu') -> ReceptiveField:
    """The receptive field of one stage. The backbone is moved to the device for the while.

    Args:
        network: Checked with :meth:`ErfNetwork.check`.
        images: (H, W, C) uint8, of three channels RGB, all of one size.
        stage: One that it returns.
        device: Where to run.

    Raises:
        ValueError: Every image gave NaN, or nothing contributes to the map: its middle is negative everywhere.
    """
    backbone = network.backbone.to(device)
    normalize = Normalization.imagenet(network.channels)
    total, used, skipped = 0.0, 0, 0
    # TF32 has ten bits; scores are summed over many paths
    exact = torch.backends.cudnn.flags(allow_tf32=False) if str(device).startswith('cuda') else nullcontext()
    with exact:
        for image in images:
            pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).float()
            scores = contribution(lambda x: network.maps(x)[stage], normalize(pixels)[None])
            if np.isnan(scores).any():
                skipped += 1
            else:
                total, used = total + scores.astype(np.float64), used + 1
    backbone.to('cpu')
    if not used:
        raise ValueError(f'none of {skipped} images gave scores without NaN')
    field = ReceptiveField(total / used, used, skipped)
    if not field.scores.any():
        raise ValueError(f'nothing contributes to the middle of stage {stage}: the map is not above zero there')
    return field


def table(fields: Dict[str, ReceptiveField], thresholds: Sequence[float] = THRESHOLDS) -> str:
    """Area ratios of named receptive fields, and sides of their squares in pixels, in Markdown."""
    head = ['', *(f't = {threshold:.0%}' for threshold in thresholds)]
    rows = [[name, *(f'{ratio:.1%} ({side})' for side, ratio in field.squares(thresholds))]
            for name, field in fields.items()]
    return markdown_table(head, rows)


def summary(field: ReceptiveField, thresholds: Sequence[float] = THRESHOLDS) -> Dict[str, Any]:
    """What a JSON says of a receptive field."""
    squares = {f'{threshold:g}': dict(side=side, area_ratio=ratio)
               for threshold, (side, ratio) in zip(thresholds, field.squares(thresholds))}
    return dict(images=field.images, skipped=field.skipped, largest_score=float(field.scores.max()), squares=squares)


def heat_maps(fields: Dict[str, ReceptiveField], decades: Optional[float] = None,
              thresholds: Sequence[float] = THRESHOLDS) -> 'Figure':
    """Named receptive fields side by side on one scale of colours, with their squares outlined.

    Args:
        fields: At least one.
        decades: Spread the colours over so many powers of ten below 1, in place of evenly from 0 to 1: what lies
            around the middle shows where scores are small (far below 1 log10(score + 1) is a straight line).
        thresholds: Of the squares.

    Raises:
        ValueError: There is no field.
    """
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    if not fields:
        raise ValueError('there is no receptive field to draw')
    norm = LogNorm(10**-decades, 1, clip=True) if decades else Normalize(0, 1)
    columns = min(COLUMNS, len(fields))
    rows = -(-len(fields) // columns)
    names = [wrapped(name, 34) for name in fields]
    figure = Figure(figsize=(3 * columns + 0.8, (3 + 0.2 * most_lines(names)) * rows), layout='compressed')
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, name, field in zip(grid.flat, names, fields.values()):
        height, width = field.scores.shape
        drawn = axes.imshow(field.shown, cmap='YlGn', norm=norm)
        labelled = 0
        for threshold, (side, _) in zip(thresholds, field.squares(thresholds)):
            left, top = width // 2 - side // 2 - 0.5, height // 2 - side // 2 - 0.5
            axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor='black', linewidth=0.6,
                                     linestyle='--'))
            if side - labelled > 0.09 * height:  # or the labels would lie on each other
                axes.text(left, top, f'{threshold:.0%}', fontsize=8, verticalalignment='bottom')
                labelled = side
        axes.set_title(name, fontsize=10)
    figure.colorbar(drawn, ax=grid, shrink=min(1, 2 / rows), label='log10(score + 1) / largest')
    return figure
