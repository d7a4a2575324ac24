"""Translates the tensor names of other toolboxes to those of mmlk's backbones, which are the official ones."""
import re
from dataclasses import dataclass
from typing import Collection, Dict, Tuple

from torch import Tensor

from .errors import WeightsError


@dataclass(frozen=True)
class Dialect:
    """The tensor names of one family of backbones in one toolbox.

    Patterns are regular expressions. Names are relative to the backbone, without ``backbone.``.

    Args:
        name: The toolbox and the family, for messages.
        mark: Pattern that identifies the dialect: it matches a complete name in the file, and no name of mmlk.
        beside: A second pattern, which must match another complete name in the file. Empty for none.
        rules: (pattern, replacement) pairs. All of them are applied to each name, in this order.
        dims: (pattern of a translated name, number of dimensions in mmlk) pairs, for tensors that have additional
            trailing dimensions of size 1 in the toolbox.
    """
    name: str
    mark: str
    rules: Tuple[Tuple[str, str], ...]
    beside: str = ''
    dims: Tuple[Tuple[str, int], ...] = ()

    def marks(self, names: Collection[str]) -> bool:
        """Returns whether a file with these tensor names is in this dialect."""
        return all(any(re.fullmatch(pattern, name) for name in names)
                   for pattern in (self.mark, self.beside) if pattern)

    def translate(self, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
        """Returns the tensors with the names and the numbers of dimensions that they have in mmlk.

        Raises:
            WeightsError: Two tensors would have the same name.
        """
        translated: Dict[str, Tensor] = {}
        for name, value in tensors.items():
            for pattern, replacement in self.rules:
                name = re.sub(pattern, replacement, name)
            for pattern, dims in self.dims:
                while re.search(pattern, name) and value.ndim > dims and value.shape[-1] == 1:
                    value = value.squeeze(-1)
            if name in translated:
                raise WeightsError(f'the file, read as {self.name}, holds {name} twice')
            translated[name] = value
        return translated


# The last norm of a classifier. mmpretrain gives it the name that the norm of the last output has in a backbone for
# dense prediction. It must not be loaded as that norm, which classifiers do not have.
_CLASSIFIER = r'head\.fc\.weight'
_LAST_NORM = (r'^norm3\.', 'norm.')

_MMPRETRAIN_CONVNEXT = (
    (r'\.depthwise_conv\.', '.dwconv.'),
    (r'\.pointwise_conv', '.pwconv'),
)
_MMPRETRAIN_HORNET = (
    (r'\.gnconv\.projs\.', '.gnconv.pws.'),
    (r'\.gamma([12])\.weight$', r'.gamma\1'),
)
# 1x1 convolutions that are linear layers in mmlk, and layer scale of the shape (C, 1, 1)
_CONVNEXT_DIMS = ((r'\.pwconv[12]\.weight$', 2), (r'\.gamma$', 1))
_STAGES = range(4)
_MOBILENETV2_BLOCKS = tuple((layer, block) for layer, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), 1)
                            for block in range(blocks))

# The first dialect whose patterns match is used.
DIALECTS = (
    Dialect("mmpretrain's RepLKNet", _CLASSIFIER, ((r'^stages\.3\.norm\.', 'norm.'), ),
            beside=r'stages\.0\.blocks\.0\.prelkb_bn\.weight'),
    Dialect("mmpretrain's ConvNeXt classifier", r'stages\.0\.0\.depthwise_conv\.weight',
            (*_MMPRETRAIN_CONVNEXT, _LAST_NORM), beside=_CLASSIFIER, dims=_CONVNEXT_DIMS),
    Dialect("mmpretrain's ConvNeXt", r'stages\.0\.0\.depthwise_conv\.weight', _MMPRETRAIN_CONVNEXT,
            dims=_CONVNEXT_DIMS),
    Dialect("mmpretrain's HorNet classifier", r'stages\.0\.0\.gnconv\.projs\.0\.weight',
            (*_MMPRETRAIN_HORNET, _LAST_NORM), beside=_CLASSIFIER),
    Dialect("mmpretrain's HorNet", r'stages\.0\.0\.gnconv\.projs\.0\.weight', _MMPRETRAIN_HORNET),
    Dialect("mmpretrain's RepVGG", r'stem\.branch_(3x3|reparam)\..*', (
        (r'^stem\.', 'stage0.'),
        (r'^stage_(\d)\.', r'stage\1.'),
        (r'\.branch_3x3\.', '.rbr_dense.'),
        (r'\.branch_1x1\.', '.rbr_1x1.'),
        (r'\.norm\.', '.bn.'),
        (r'\.branch_norm\.', '.rbr_identity.'),
        (r'\.branch_reparam\.', '.rbr_reparam.'),
        (r'\.se_layer\.conv1\.conv\.', '.se.down.'),
        (r'\.se_layer\.conv2\.conv\.', '.se.up.'),
    )),
    Dialect("mmpretrain's VAN", r'blocks1\.0\.attn\.spatial_gating_unit\.DW_D_conv\.weight', (
        (r'^(patch_embed\d)\.projection\.', r'\1.proj.'),
        (r'^blocks(\d)\.', r'block\1.'),
        (r'\.DW_conv\.', '.conv0.'),
        (r'\.DW_D_conv\.', '.conv_spatial.'),
        (r'\.mlp\.dwconv\.', '.mlp.dwconv.dwconv.'),
    )),
    Dialect("mmseg's VAN or MSCAN", r'block1\.0\.mlp\.dwconv\.weight', (
        (r'\.mlp\.dwconv\.', '.mlp.dwconv.dwconv.'),
    )),
    Dialect("timm's ConvNeXt", r'stages\.0\.blocks\.0\.conv_dw\..*', (
        (r'^stem\.', 'downsample_layers.0.'),
        (r'^stages\.(\d)\.downsample\.', r'downsample_layers.\1.'),
        (r'^stages\.(\d)\.blocks\.', r'stages.\1.'),
        (r'\.conv_dw\.', '.dwconv.'),
        (r'\.mlp\.fc([12])\.', r'.pwconv\1.'),
        (r'\.mlp\.grn\.weight$', '.grn.gamma'),
        (r'\.mlp\.grn\.bias$', '.grn.beta'),
        (r'^head\.norm\.', 'norm.'),
        (r'^head\.fc\.', 'head.'),
    ), dims=_CONVNEXT_DIMS),
    Dialect("timm's RepVGG", r'stem\.(conv_kxk|reparam_conv)\..*', (
        (r'^stem\.', 'stage0.'),
        *((rf'^stages\.{i}\.', f'stage{i + 1}.') for i in _STAGES),
        (r'\.conv_kxk\.', '.rbr_dense.'),
        (r'\.conv_1x1\.', '.rbr_1x1.'),
        (r'\.identity\.', '.rbr_identity.'),
        (r'\.reparam_conv\.', '.rbr_reparam.'),
        (r'\.attn\.fc1\.', '.se.down.'),
        (r'\.attn\.fc2\.', '.se.up.'),
        (r'^head\.fc\.', 'linear.'),
    )),
    Dialect("torchvision's ConvNeXt", r'features\.1\.0\.block\.0\.weight', (
        *((rf'^features\.{2 * i}\.', f'downsample_layers.{i}.') for i in _STAGES),
        *((rf'^features\.{2 * i + 1}\.', f'stages.{i}.') for i in _STAGES),
        (r'\.block\.0\.', '.dwconv.'),
        (r'\.block\.2\.', '.norm.'),
        (r'\.block\.3\.', '.pwconv1.'),
        (r'\.block\.5\.', '.pwconv2.'),
        (r'\.layer_scale$', '.gamma'),
        (r'^classifier\.0\.', 'norm.'),
        (r'^classifier\.2\.', 'head.'),
    ), dims=_CONVNEXT_DIMS),
    Dialect("torchvision's MobileNetV2", r'features\.1\.conv\.0\.0\.weight', (
        (r'^features\.0\.0\.', 'conv1.conv.'),
        (r'^features\.0\.1\.', 'conv1.bn.'),
        (r'^features\.18\.0\.', 'conv2.conv.'),
        (r'^features\.18\.1\.', 'conv2.bn.'),
        *((rf'^features\.{i}\.', f'layer{layer}.{block}.') for i, (layer, block) in enumerate(_MOBILENETV2_BLOCKS, 1)),
        (r'\.conv\.(\d)\.0\.', r'.conv.\1.conv.'),
        (r'\.conv\.(\d)\.1\.', r'.conv.\1.bn.'),
        # the last convolution of a block and its norm, which are direct children of the block's list
        (r'^(layer1\.0\.conv)\.1\.weight$', r'\1.1.conv.weight'),
        (r'^(layer1\.0\.conv)\.2\.', r'\1.1.bn.'),
        (r'^(layer[2-7]\.\d\.conv)\.2\.weight$', r'\1.2.conv.weight'),
        (r'^(layer[2-7]\.\d\.conv)\.3\.', r'\1.2.bn.'),
    )),
    Dialect('a ParC-Net under a head of cvnets', r'encoder\.conv_1\.block\.conv\.weight', ((r'^encoder\.', ''), )),
)
