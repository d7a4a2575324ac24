"""RepVGG's files: mmpretrain's own, and its conversions of official ones.

The official files are in one folder of Google Drive whose files the README does not link one by one:
https://drive.google.com/drive/folders/1Avome4KvNp0Lqh2QwhXO6L5URQjzCjUq. B2g2 and B3g2 are only there. Files are in
training form.
"""
from .entry import CONVERTED, IMAGENET, IN1K, Entry, openmmlab


def _mmpretrain(arch: str, file: str, top1: float, official: str = '') -> Entry:
    url, sha256, page = openmmlab(f'mmclassification/v0/repvgg/repvgg-{file}.pth')
    # mean and std are those of the official training too
    licence = f'MIT; {CONVERTED}' if '3rdparty' in file else 'Apache-2.0'
    return Entry(f'repvgg-{arch.lower()}_in1k{official}', arch, url, 'classifier', IN1K, '224x224', *IMAGENET, licence,
                 'github.com/open-mmlab/mmpretrain configs/repvgg/metafile.yml', sha256=sha256, page=page,
                 note=f'top-1 {top1}')


ENTRIES = (
    _mmpretrain('A0', 'A0_8xb32_in1k_20221213-60ae8e23', 72.37),
    _mmpretrain('A1', 'A1_8xb32_in1k_20221213-f81bf3df', 74.23),
    _mmpretrain('A2', 'A2_8xb32_in1k_20221213-a8767caf', 76.49),
    _mmpretrain('B0', 'B0_8xb32_in1k_20221213-5091ecc7', 75.27),
    _mmpretrain('B1', 'B1_8xb32_in1k_20221213-d17c45e7', 78.19),
    _mmpretrain('B1g2', 'B1g2_8xb32_in1k_20221213-ae6428fd', 77.87),
    _mmpretrain('B1g2', 'B1g2_3rdparty_4xb64-coslr-120e_in1k_20210909-344f6422', 77.79, '-official'),
    _mmpretrain('B1g4', 'B1g4_8xb32_in1k_20221213-a7a4aaea', 77.81),
    _mmpretrain('B2', 'B2_8xb32_in1k_20221213-d8b420ef', 78.58),
    _mmpretrain('B2', 'B2_3rdparty_4xb64-coslr-120e_in1k_20210909-bd6b937c', 78.78, '-official'),
    _mmpretrain('B2g4', 'B2g4_8xb32_in1k_20221213-0c1990eb', 79.44),
    _mmpretrain('B3', 'B3_8xb32_in1k_20221213-927a329a', 80.58),
    _mmpretrain('B3g4', 'B3g4_8xb32_in1k_20221213-e01cb280', 80.26),
    _mmpretrain('D2se', 'D2se_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k_20210909-cf3139b7', 81.81),
)
