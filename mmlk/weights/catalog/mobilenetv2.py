"""MobileNetV2's files, of the network with 3x3 kernels; no weights of the large-kernel study were published."""
from .entry import IMAGENET, IN1K, Entry, openmmlab, torchvision


def _entry(name: str, licence: str, source: str, top1: float, url: str, sha256: str, page: str = '') -> Entry:
    return Entry(name, '3', url, 'classifier', IN1K, '224x224', *IMAGENET, licence, source, sha256, page,
                 f'top-1 {top1}')


_VISION = 'BSD-3-Clause', 'github.com/pytorch/vision torchvision/models/mobilenetv2.py'

ENTRIES = (
    _entry('mobilenetv2_in1k', 'Apache-2.0', 'github.com/open-mmlab/mmpretrain configs/mobilenet_v2/metafile.yml',
           71.86, *openmmlab('mmclassification/v0/mobilenet_v2/mobilenet_v2_batch256_imagenet_20200708-3b2dc3af.pth')),
    _entry('mobilenetv2_in1k-torchvision', *_VISION, 71.878, *torchvision('mobilenet_v2-b0353104')),
    _entry('mobilenetv2_in1k-torchvision-v2', *_VISION, 72.154, *torchvision('mobilenet_v2-7ebf99e0')),
)
