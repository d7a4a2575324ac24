"""Image classifiers of mmpretrain over the backbones of mmlk, which is how a backbone is pretrained.

mmpretrain is an optional package. It is imported only when a config uses its classifier.
"""
from fnmatch import fnmatchcase
from typing import Optional, Sequence, Tuple

from mmcv.cnn import build_norm_layer
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmlk._mmpretrain import require_mmpretrain
from mmlk.registry import MODELS


@MODELS.register_module()
class PoolingNeck(BaseModule):
    """Averages the last map over its pixels, with the norm that the classifiers of a family have there.

    Args:
        channels: Number of channels of the last map.
        norm_cfg: Norm layer config. ``LN`` normalizes the average, as in ConvNeXt, SLaK and UniRepLKNet; any other norm
            normalizes the map before, as in RepLKNet. None for no norm, as in RepVGG.

    Shape:
        Input: a sequence of maps, the last one (N, channels, H, W). Output: a tuple of one tensor, (N, channels).
    """

    def __init__(self, channels: int, norm_cfg: Optional[dict] = None):
        super().__init__()
        self.norm = build_norm_layer(norm_cfg, channels)[1] if norm_cfg else nn.Identity()

    def forward(self, maps: Sequence[Tensor]) -> Tuple[Tensor]:
        last = maps[-1]
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(last.mean((2, 3))),
        return self.norm(last).mean((2, 3)),


@MODELS.register_module(name='ImageClassifier')
def image_classifier(backbone: dict, **kwargs) -> nn.Module:
    """Builds mmpretrain's ``ImageClassifier`` over a backbone of mmlk, without the norms on the backbone's outputs.

    These norms are for dense prediction. In the official classifiers the norm is elsewhere, see :class:`PoolingNeck`.

    Args:
        backbone: Config of the backbone.
        kwargs: Passed to ``ImageClassifier``.

    Returns:
        The classifier. Its state dict has the names of the backbone after ``backbone.``.

    Raises:
        ImportError: mmpretrain cannot be imported.
    """
    require_mmpretrain()
    from mmpretrain.models import ImageClassifier
    from mmpretrain.registry import MODELS as registry
    built = registry.build(backbone)
    patterns = getattr(built, 'optional_weights', ())
    norms = {name.rpartition('.')[0] for name in built.state_dict()
             if any(fnmatchcase(name, pattern) for pattern in patterns)}
    for name in norms:
        parent, _, child = name.rpartition('.')
        setattr(built.get_submodule(parent), child, nn.Identity())
    return ImageClassifier(built, **kwargs)
