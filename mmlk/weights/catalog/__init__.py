"""Published weights that mmlk's configs and backbones can use, and where each fact about them was read."""
from typing import Dict, Tuple

from . import baselines, convnext, gfnet, hornet, mobilenetv2, moganet, parcnet, replknet, repvgg, slak, unireplknet
from .entry import Entry, Triple

#: What is published, by family: a backbone's name, of which ``Entry.arch`` is one of the ``ARCHS``, or a baseline.
FAMILIES: Dict[str, Tuple[Entry, ...]] = {
    'RepLKNet': replknet.ENTRIES,
    'ConvNeXt': convnext.ENTRIES,
    'RepVGG': repvgg.ENTRIES,
    'SLaK': slak.ENTRIES,
    'UniRepLKNet': unireplknet.ENTRIES,
    'GFNet': gfnet.ENTRIES,
    'HorNet': hornet.ENTRIES,
    'MogaNet': moganet.ENTRIES,
    'MobileNetV2': mobilenetv2.ENTRIES,
    'ParCNet': parcnet.ENTRIES,
    'Swin': baselines.SWIN,
    'ResNet, ResNeXt, ResNeSt': baselines.RESNET,
}

CATALOG: Dict[str, Entry] = {entry.name: entry for entries in FAMILIES.values() for entry in entries}

__all__ = ['CATALOG', 'FAMILIES', 'Entry', 'Triple']
