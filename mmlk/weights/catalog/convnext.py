"""ConvNeXt's files: the official ones, OpenMMLab's own and converted ones, torchvision's, and SLaK's students.

The official downstream models were trained from the files without averaging, ``convnext-*_in1k-noema``; the averages
are what the published ImageNet accuracy is of.
"""
from .entry import (ADE_UPERNET, COCO_CASCADE, COCO_MASK, CONVERTED, IMAGENET, IN1K, IN22K, IN22K_1K, Entry, openmmlab,
                    torchvision)

_REPO = 'github.com/facebookresearch/ConvNeXt'


def _official(name: str, arch: str, file: str, pretraining: str, size: int = 224, note: str = '',
              source: str = 'README.md') -> Entry:
    return Entry(name, arch, f'https://dl.fbaipublicfiles.com/convnext/{file}.pth', 'classifier', pretraining,
                 f'{size}x{size}', *IMAGENET, 'MIT', f'{_REPO} {source}', note=note)


def _upernet(name: str, arch: str, file: str, pretraining: str, size: int, ss: float, ms: float) -> Entry:
    return Entry(name, arch, f'https://dl.fbaipublicfiles.com/convnext/ade20k/upernet_{file}.pth', ADE_UPERNET,
                 pretraining, f'{size}x{size}', *IMAGENET, 'MIT', f'{_REPO} semantic_segmentation/README.md',
                 note=f'mIoU {ss} ss, {ms} ms')


def _coco(name: str, arch: str, file: str, holds: str, pretraining: str, box: float, mask: float) -> Entry:
    return Entry(name, arch, f'https://dl.fbaipublicfiles.com/convnext/coco/{file}.pth', holds, pretraining,
                 '1333x800', *IMAGENET, 'MIT', f'{_REPO} object_detection/README.md',
                 note=f'box AP {box}, mask AP {mask}')


def _mmpretrain(name: str, arch: str, file: str, pretraining: str, size: int = 224, note: str = '') -> Entry:
    url, sha256, page = openmmlab(f'mmclassification/v0/convnext/convnext-{file}.pth')
    licence = f'MIT; {CONVERTED}' if '3rdparty' in file else 'Apache-2.0'
    return Entry(f'{name}-mmpretrain', arch, url, 'classifier', pretraining, f'{size}x{size}', *IMAGENET, licence,
                 'github.com/open-mmlab/mmpretrain configs/convnext/metafile.yml', sha256=sha256, page=page, note=note)


def _mmseg(name: str, arch: str, size: str, crop: int, file: str, pretraining: str, ss: float, ms: float) -> Entry:
    folder = f'upernet_convnext_{size}_fp16_{crop}x{crop}_160k_ade20k'
    url, sha256, page = openmmlab(f'mmsegmentation/v0.5/convnext/{folder}/{folder}_{file}.pth')
    return Entry(f'upernet_convnext-{name}_ade20k-mmseg', arch, url, ADE_UPERNET, pretraining, f'{crop}x{crop}',
                 *IMAGENET, 'Apache-2.0', 'github.com/open-mmlab/mmsegmentation configs/convnext/metafile.yaml',
                 sha256=sha256, page=page, note=f'mIoU {ss} ss, {ms} ms')


def _mmdet(name: str, arch: str, config: str, file: str, holds: str, box: float, mask: float) -> Entry:
    url, sha256, page = openmmlab(f'mmdetection/v2.0/convnext/{config}/{config}_{file}.pth')
    return Entry(f'{name}-mmdet', arch, url, holds, IN1K, '1333x800', *IMAGENET, 'Apache-2.0',
                 'github.com/open-mmlab/mmdetection configs/convnext/metafile.yml', sha256=sha256, page=page,
                 note=f'box AP {box}, mask AP {mask}')


def _torchvision(name: str, arch: str, file: str, top1: float) -> Entry:
    url, sha256 = torchvision(f'convnext_{file}')
    return Entry(f'{name}-torchvision', arch, url, 'classifier', IN1K, '224x224', *IMAGENET, 'BSD-3-Clause',
                 'github.com/pytorch/vision torchvision/models/convnext.py', sha256=sha256, note=f'top-1 {top1}')


def _student(name: str, arch: str, share: str, top1: float) -> Entry:
    page = f'https://surfdrive.surf.nl/files/index.php/s/{share}'
    return Entry(name, arch, f'{page}/download', 'classifier', IN1K, '224x224', *IMAGENET, 'MIT',
                 'github.com/VITA-Group/SLaK README.md', page=page, note=f'top-1 {top1}, taught by SLaK')


_DOWNSTREAM = 'semantic_segmentation/README.md'

ENTRIES = (
    _official('convnext-t_in1k', 'T', 'convnext_tiny_1k_224_ema', IN1K, note='top-1 82.1'),
    _official('convnext-s_in1k', 'S', 'convnext_small_1k_224_ema', IN1K, note='top-1 83.1'),
    _official('convnext-b_in1k', 'B', 'convnext_base_1k_224_ema', IN1K, note='top-1 83.8'),
    _official('convnext-b_in1k-384', 'B', 'convnext_base_1k_384', IN1K, 384, note='top-1 85.1'),
    _official('convnext-l_in1k', 'L', 'convnext_large_1k_224_ema', IN1K, note='top-1 84.3'),
    _official('convnext-l_in1k-384', 'L', 'convnext_large_1k_384', IN1K, 384, note='top-1 85.5'),
    _official('convnext-t_in1k-noema', 'T', 'convnext_tiny_1k_224', IN1K, source=_DOWNSTREAM),
    _official('convnext-s_in1k-noema', 'S', 'convnext_small_1k_224', IN1K, source=_DOWNSTREAM),
    _official('convnext-b_in1k-noema', 'B', 'convnext_base_1k_224', IN1K, source=_DOWNSTREAM),
    _official('convnext-t_in22k', 'T', 'convnext_tiny_22k_224', IN22K),
    _official('convnext-s_in22k', 'S', 'convnext_small_22k_224', IN22K),
    _official('convnext-b_in22k', 'B', 'convnext_base_22k_224', IN22K),
    _official('convnext-l_in22k', 'L', 'convnext_large_22k_224', IN22K),
    _official('convnext-xl_in22k', 'XL', 'convnext_xlarge_22k_224', IN22K),
    _official('convnext-t_in22k-in1k', 'T', 'convnext_tiny_22k_1k_224', IN22K_1K, note='top-1 82.9'),
    _official('convnext-t_in22k-in1k-384', 'T', 'convnext_tiny_22k_1k_384', IN22K_1K, 384, 'top-1 84.1'),
    _official('convnext-s_in22k-in1k', 'S', 'convnext_small_22k_1k_224', IN22K_1K, note='top-1 84.6'),
    _official('convnext-s_in22k-in1k-384', 'S', 'convnext_small_22k_1k_384', IN22K_1K, 384, 'top-1 85.8'),
    _official('convnext-b_in22k-in1k', 'B', 'convnext_base_22k_1k_224', IN22K_1K, note='top-1 85.8'),
    _official('convnext-b_in22k-in1k-384', 'B', 'convnext_base_22k_1k_384', IN22K_1K, 384, 'top-1 86.8'),
    _official('convnext-l_in22k-in1k', 'L', 'convnext_large_22k_1k_224', IN22K_1K, note='top-1 86.6'),
    _official('convnext-l_in22k-in1k-384', 'L', 'convnext_large_22k_1k_384', IN22K_1K, 384, 'top-1 87.5'),
    _official('convnext-xl_in22k-in1k', 'XL', 'convnext_xlarge_22k_1k_224_ema', IN22K_1K, note='top-1 87.0'),
    _official('convnext-xl_in22k-in1k-384', 'XL', 'convnext_xlarge_22k_1k_384_ema', IN22K_1K, 384, 'top-1 87.8'),

    _upernet('upernet_convnext-t_ade20k', 'T', 'convnext_tiny_1k_512x512', IN1K, 512, 46.0, 46.7),
    _upernet('upernet_convnext-s_ade20k', 'S', 'convnext_small_1k_512x512', IN1K, 512, 48.7, 49.6),
    _upernet('upernet_convnext-b_ade20k', 'B', 'convnext_base_1k_512x512', IN1K, 512, 49.1, 49.9),
    _upernet('upernet_convnext-b-22k_ade20k', 'B', 'convnext_base_22k_640x640', IN22K, 640, 52.6, 53.1),
    _upernet('upernet_convnext-l-22k_ade20k', 'L', 'convnext_large_22k_640x640', IN22K, 640, 53.2, 53.7),
    _upernet('upernet_convnext-xl-22k_ade20k', 'XL', 'convnext_xlarge_22k_640x640', IN22K, 640, 53.6, 54.0),

    _coco('mask_rcnn_convnext-t_coco', 'T', 'mask_rcnn_convnext_tiny_1k_3x', COCO_MASK, IN1K, 46.2, 41.7),
    _coco('cascade_mask_rcnn_convnext-t_coco', 'T', 'cascade_mask_rcnn_convnext_tiny_1k_3x', COCO_CASCADE, IN1K,
          50.4, 43.7),
    _coco('cascade_mask_rcnn_convnext-s_coco', 'S', 'cascade_mask_rcnn_convnext_small_1k_3x', COCO_CASCADE, IN1K,
          51.9, 45.0),
    _coco('cascade_mask_rcnn_convnext-b_coco', 'B', 'cascade_mask_rcnn_convnext_base_1k_3x', COCO_CASCADE, IN1K,
          52.7, 45.6),
    _coco('cascade_mask_rcnn_convnext-b-22k_coco', 'B', 'cascade_mask_rcnn_convnext_base_22k_3x', COCO_CASCADE, IN22K,
          54.0, 46.9),
    _coco('cascade_mask_rcnn_convnext-l-22k_coco', 'L', 'cascade_mask_rcnn_convnext_large_22k_3x', COCO_CASCADE, IN22K,
          54.8, 47.6),
    _coco('cascade_mask_rcnn_convnext-xl-22k_coco', 'XL', 'cascade_mask_rcnn_convnext_xlarge_22k_3x', COCO_CASCADE,
          IN22K, 55.2, 47.7),

    _mmpretrain('convnext-t_in1k', 'T', 'tiny_32xb128_in1k_20221207-998cf3e9', IN1K, note='top-1 82.14'),
    _mmpretrain('convnext-t_in1k-noema', 'T', 'tiny_32xb128-noema_in1k_20221208-5d4509c7', IN1K, note='top-1 81.95'),
    _mmpretrain('convnext-t_in22k-in1k', 'T', 'tiny_in21k-pre_3rdparty_in1k_20221219-7501e534', IN22K_1K),
    _mmpretrain('convnext-t_in22k-in1k-384', 'T', 'tiny_in21k-pre_3rdparty_in1k-384px_20221219-c1182362', IN22K_1K,
                384),
    _mmpretrain('convnext-s_in1k', 'S', 'small_32xb128_in1k_20221207-4ab7052c', IN1K, note='top-1 83.16'),
    _mmpretrain('convnext-s_in1k-noema', 'S', 'small_32xb128-noema_in1k_20221208-4a618995', IN1K, note='top-1 83.21'),
    _mmpretrain('convnext-s_in22k-in1k', 'S', 'small_in21k-pre_3rdparty_in1k_20221219-aeca4c93', IN22K_1K),
    _mmpretrain('convnext-s_in22k-in1k-384', 'S', 'small_in21k-pre_3rdparty_in1k-384px_20221219-96f0bb87', IN22K_1K,
                384),
    _mmpretrain('convnext-b_in1k', 'B', 'base_32xb128_in1k_20221207-fbdb5eb9', IN1K, note='top-1 83.66'),
    _mmpretrain('convnext-b_in1k-noema', 'B', 'base_32xb128-noema_in1k_20221208-f8182678', IN1K, note='top-1 83.64'),
    _mmpretrain('convnext-b_in1k-official', 'B', 'base_3rdparty_32xb128_in1k_20220124-d0915162', IN1K),
    _mmpretrain('convnext-b_in1k-noema-official', 'B', 'base_3rdparty_32xb128-noema_in1k_20220222-dba4f95f', IN1K,
                note='top-1 83.71'),
    _mmpretrain('convnext-b_in1k-384', 'B', 'base_3rdparty_in1k-384px_20221219-c8f1dc2b', IN1K, 384),
    _mmpretrain('convnext-b_in22k', 'B', 'base_3rdparty_in21k_20220124-13b83eec', IN22K),
    _mmpretrain('convnext-b_in22k-in1k', 'B', 'base_in21k-pre-3rdparty_32xb128_in1k_20220124-eb2d6ada', IN22K_1K),
    _mmpretrain('convnext-b_in22k-in1k-384', 'B', 'base_in21k-pre-3rdparty_in1k-384px_20221219-4570f792', IN22K_1K,
                384),
    _mmpretrain('convnext-l_in1k', 'L', 'large_3rdparty_64xb64_in1k_20220124-f8a0ded0', IN1K),
    _mmpretrain('convnext-l_in1k-384', 'L', 'large_3rdparty_in1k-384px_20221219-6dd29d10', IN1K, 384),
    _mmpretrain('convnext-l_in22k', 'L', 'large_3rdparty_in21k_20220124-41b5a79f', IN22K),
    _mmpretrain('convnext-l_in22k-in1k', 'L', 'large_in21k-pre-3rdparty_64xb64_in1k_20220124-2412403d', IN22K_1K),
    _mmpretrain('convnext-l_in22k-in1k-384', 'L', 'large_in21k-pre-3rdparty_in1k-384px_20221219-6d38dd66', IN22K_1K,
                384),
    _mmpretrain('convnext-xl_in22k', 'XL', 'xlarge_3rdparty_in21k_20220124-f909bad7', IN22K),
    _mmpretrain('convnext-xl_in22k-in1k', 'XL', 'xlarge_in21k-pre-3rdparty_64xb64_in1k_20220124-76b6863d', IN22K_1K),
    _mmpretrain('convnext-xl_in22k-in1k-384', 'XL', 'xlarge_in21k-pre-3rdparty_in1k-384px_20221219-b161bc14',
                IN22K_1K, 384),

    _mmseg('t', 'T', 'tiny', 512, '20220227_124553-cad485de', IN1K, 46.11, 46.62),
    _mmseg('s', 'S', 'small', 512, '20220227_131208-1b1e394f', IN1K, 48.56, 49.02),
    _mmseg('b', 'B', 'base', 512, '20220227_181227-02a24fc6', IN1K, 48.71, 49.54),
    _mmseg('b-22k', 'B', 'base', 640, '20220227_182859-9280e39b', IN22K, 52.13, 52.66),
    _mmseg('l-22k', 'L', 'large', 640, '20220226_040532-e57aa54d', IN22K, 53.16, 53.38),
    _mmseg('xl-22k', 'XL', 'xlarge', 640, '20220226_080344-95fc38c2', IN22K, 53.58, 54.11),
    _mmdet('mask_rcnn_convnext-t_coco', 'T', 'mask_rcnn_convnext-t_p4_w7_fpn_fp16_ms-crop_3x_coco',
           '20220426_154953-050731f4', COCO_MASK, 46.2, 41.7),
    _mmdet('cascade_mask_rcnn_convnext-t_coco', 'T',
           'cascade_mask_rcnn_convnext-t_p4_w7_fpn_giou_4conv1f_fp16_ms-crop_3x_coco', '20220509_204200-8f07c40b',
           COCO_CASCADE, 50.3, 43.6),
    _mmdet('cascade_mask_rcnn_convnext-s_coco', 'S',
           'cascade_mask_rcnn_convnext-s_p4_w7_fpn_giou_4conv1f_fp16_ms-crop_3x_coco', '20220510_201004-3d24f5a4',
           COCO_CASCADE, 51.8, 44.8),

    _torchvision('convnext-t_in1k', 'T', 'tiny-983f1562', 82.520),
    _torchvision('convnext-s_in1k', 'S', 'small-0c510722', 83.616),
    _torchvision('convnext-b_in1k', 'B', 'base-6075fbad', 84.062),
    _torchvision('convnext-l_in1k', 'L', 'large-ea097f82', 84.414),

    _student('convnext-t_in1k-l2s', 'T', 'cR6KLvxjlUshUQA', 83.1),
    _student('convnext-s_in1k-l2s', 'S', 'PYqL3rVff3Nu2sP', 84.3),
)
