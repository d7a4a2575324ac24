"""The classifiers from which the baselines' configs begin. Their backbones are mmseg's and mmdet's own.

Baselines load what their toolbox names; the names here are for fetching the same files beforehand.
"""
from .entry import CONVERTED, IMAGENET, IN1K, IN22K, Entry, Triple, openmmlab, torchvision

_RESNEST_PIXELS = (123.68, 116.779, 103.939), (58.393, 57.12, 57.375)  # mmdet's configs/resnest
_THIRD_PARTY = 'not stated; distributed by OpenMMLab'


def _swin(name: str, arch: str, file: str, pretraining: str) -> Entry:
    url, sha256, page = openmmlab(f'mmsegmentation/v0.5/pretrain/swin/swin_{file}.pth')
    return Entry(name, arch, url, 'classifier', pretraining, '224x224', *IMAGENET, f'MIT; {CONVERTED}',
                 'github.com/open-mmlab/mmsegmentation configs/swin', sha256=sha256, page=page)


def _swin_official(name: str, arch: str, file: str, pretraining: str) -> Entry:
    return Entry(f'{name}-official', arch,
                 f'https://github.com/SwinTransformer/storage/releases/download/v1.0.0/swin_{file}.pth', 'classifier',
                 pretraining, '224x224', *IMAGENET, 'MIT', 'github.com/microsoft/Swin-Transformer README.md',
                 note="read by mmdet's Swin with convert_weights=True")


def _third_party(name: str, arch: str, file: str, licence: str = _THIRD_PARTY, mean: Triple = IMAGENET[0],
                 std: Triple = IMAGENET[1]) -> Entry:
    url, sha256, page = openmmlab(f'pretrain/third_party/{file}.pth')
    return Entry(name, arch, url, 'classifier', IN1K, '224x224', mean, std, licence,
                 'github.com/open-mmlab/mmengine mmengine/hub/openmmlab.json', sha256=sha256, page=page)


def _torchvision(name: str, arch: str, file: str, top1: float) -> Entry:
    url, sha256 = torchvision(file)
    return Entry(name, arch, url, 'classifier', IN1K, '224x224', *IMAGENET, 'BSD-3-Clause',
                 'github.com/pytorch/vision torchvision/models/resnet.py', sha256=sha256, note=f'top-1 {top1}')


SWIN = (
    _swin('swin-t_in1k', 'T', 'tiny_patch4_window7_224_20220317-1cdeb081', IN1K),
    _swin('swin-s_in1k', 'S', 'small_patch4_window7_224_20220317-7ba6d6dd', IN1K),
    _swin('swin-b_in1k', 'B', 'base_patch4_window7_224_20220317-e9b98025', IN1K),
    _swin('swin-b_in22k', 'B', 'base_patch4_window7_224_22k_20220317-4f79f7c0', IN22K),
    _swin('swin-l_in22k', 'L', 'large_patch4_window7_224_22k_20220412-aeecf2aa', IN22K),
    _swin_official('swin-t_in1k', 'T', 'tiny_patch4_window7_224', IN1K),
    _swin_official('swin-s_in1k', 'S', 'small_patch4_window7_224', IN1K),
    _swin_official('swin-b_in1k', 'B', 'base_patch4_window7_224', IN1K),
)

RESNET = (
    _torchvision('resnet50_in1k', '50', 'resnet50-0676ba61', 76.130),
    _torchvision('resnet50_in1k-v2', '50', 'resnet50-11ad3fa6', 80.858),
    _torchvision('resnet101_in1k', '101', 'resnet101-63fe2227', 77.374),
    _torchvision('resnet152_in1k', '152', 'resnet152-394f9c45', 78.312),
    _third_party('resnet50-v1c_in1k', '50-v1c', 'resnet50_v1c-2cccc1ad'),
    _third_party('resnet101-v1c_in1k', '101-v1c', 'resnet101_v1c-e67eebb6'),
    _third_party('resnext101-32x4d_in1k', 'X101-32x4d', 'resnext101_32x4d-a5af3160'),
    _third_party('resnext101-64x4d_in1k', 'X101-64x4d', 'resnext101_64x4d-ee2c6f71'),
    _third_party('resnest50_in1k', 'S50', 'resnest50_d2-7497a55b', 'Apache-2.0', *_RESNEST_PIXELS),
    _third_party('resnest101_in1k', 'S101', 'resnest101_d2-f3b931b2', 'Apache-2.0', *_RESNEST_PIXELS),
)
