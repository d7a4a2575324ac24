"""MogaNet's files: releases of its repository and, where a better recipe was used, of the authors' OpenMixup.

Cascade Mask R-CNN with MogaNet-L was not released.
"""
from .entry import ADE_UPERNET, COCO_CASCADE, COCO_MASK, IMAGENET, IN1K, Entry

_REPO = 'github.com/Westlake-AI/MogaNet'
_LONG = {'XT': 'xtiny', 'T': 'tiny', 'S': 'small', 'B': 'base', 'L': 'large', 'XL': 'xlarge'}
_CLASSIFIERS, _COCO, _ADE = 'moganet-in1k-weights', 'moganet-det-weights', 'moganet-seg-weights'


def _release(name: str, arch: str, path: str, holds: str, size: str, source: str, note: str) -> Entry:
    return Entry(name, arch, f'https://{_REPO}/releases/download/{path}', holds, IN1K, size, *IMAGENET,
                 'Apache-2.0', f'{_REPO} {source}', note=note)


def _classifier(arch: str, size: int, per_gpu: int, top1: float) -> Entry:
    name = f'moganet-{arch.lower()}_in1k' + (f'-{size}' if size != 224 else '')
    return _release(name, arch, f'{_CLASSIFIERS}/moganet_{_LONG[arch]}_sz{size}_8xbs{per_gpu}_ep300.pth.tar',
                    'classifier', f'{size}x{size}', 'README.md', f'top-1 {top1}')


def _openmixup(arch: str, top1: float) -> Entry:
    url = (f'https://github.com/Westlake-AI/openmixup/releases/download/{_CLASSIFIERS}/'
           f'moga_{_LONG[arch]}_deit3_sz256_lr2e_3_8xb128_fp16_ep300.pth')
    return Entry(f'moganet-{arch.lower()}_in1k-256-deit3', arch, url, 'classifier', IN1K, '256x256', *IMAGENET,
                 'Apache-2.0', 'github.com/Westlake-AI/openmixup configs/classification/imagenet/moganet/README.md',
                 note=f'top-1 {top1}')


def _fpn(arch: str, miou: float) -> Entry:
    return _release(f'fpn_moganet-{arch.lower()}_ade20k', arch, f'{_ADE}/fpn_moganet_{_LONG[arch]}_80k_ade20k.pth',
                    'Semantic FPN, ADE20K', '512x512', 'segmentation/README.md', f'mIoU {miou}')


def _upernet(arch: str, miou: float) -> Entry:
    return _release(f'upernet_moganet-{arch.lower()}_ade20k', arch,
                    f'{_ADE}/upernet_moganet_{_LONG[arch]}_512x512_160k_ade20k.pth', ADE_UPERNET, '512x512',
                    'segmentation/README.md', f'mIoU {miou}')


def _detector(name: str, arch: str, file: str, holds: str, note: str) -> Entry:
    return _release(name, arch, f'{_COCO}/{file}.pth', holds, '1333x800', 'detection/README.md', note)


def _retinanet(arch: str, box: float) -> Entry:
    return _detector(f'retinanet_moganet-{arch.lower()}_coco', arch, f'retinanet_moganet_{_LONG[arch]}_fpn_1x_coco',
                     'RetinaNet, COCO', f'box AP {box}, 1x')


def _mask_rcnn(arch: str, box: float, mask: float) -> Entry:
    return _detector(f'mask_rcnn_moganet-{arch.lower()}_coco-1x', arch,
                     f'mask_rcnn_moganet_{_LONG[arch]}_fpn_1x_coco', COCO_MASK, f'box AP {box}, mask AP {mask}, 1x')


def _mask_rcnn_3x(arch: str, box: float, mask: float) -> Entry:
    return _detector(f'mask_rcnn_moganet-{arch.lower()}_coco', arch,
                     f'mask_rcnn_moganet_{arch.lower()}_fpn_mstrain_480-800_3x_coco', COCO_MASK,
                     f'box AP {box}, mask AP {mask}, 3x')


def _cascade(arch: str, box: float, mask: float, plain: bool = False) -> Entry:
    kind = '' if plain else '_giou_4conv1f'
    return _detector(f'cascade_mask_rcnn_moganet-{arch.lower()}_coco' + ('-plain' if plain else ''), arch,
                     f'cascade_mask_rcnn_moganet_{arch.lower()}_fpn{kind}_ms_3x_coco', COCO_CASCADE,
                     f'box AP {box}, mask AP {mask}, 3x' + (', heads without GIoU and 4conv1fc' if plain else ''))


ENTRIES = (
    _classifier('XT', 224, 128, 76.5), _classifier('XT', 256, 128, 77.2),
    _classifier('T', 224, 128, 79.0), _classifier('T', 256, 128, 79.6),
    _classifier('S', 224, 128, 83.4), _classifier('B', 224, 128, 84.3),
    _classifier('L', 224, 64, 84.7), _classifier('XL', 224, 64, 85.1),
    _openmixup('XT', 77.6), _openmixup('T', 80.0),
    _fpn('XT', 40.3), _fpn('T', 43.1), _fpn('S', 47.7), _fpn('B', 49.3), _fpn('L', 50.2),
    _upernet('XT', 42.2), _upernet('T', 43.7), _upernet('S', 49.2), _upernet('B', 50.1), _upernet('L', 50.9),
    _retinanet('XT', 39.7), _retinanet('T', 41.4), _retinanet('S', 45.8), _retinanet('B', 47.7),
    _retinanet('L', 48.7),
    _mask_rcnn('XT', 40.7, 37.6), _mask_rcnn('T', 42.6, 39.1), _mask_rcnn('S', 46.6, 42.2),
    _mask_rcnn('B', 49.0, 43.8), _mask_rcnn('L', 49.4, 44.2),
    _mask_rcnn_3x('T', 45.3, 40.7), _mask_rcnn_3x('S', 48.5, 43.1), _mask_rcnn_3x('B', 50.3, 44.4),
    _mask_rcnn_3x('L', 50.6, 44.6),
    _cascade('S', 51.4, 44.9, plain=True), _cascade('S', 51.7, 45.1), _cascade('B', 52.6, 46.0),
)
