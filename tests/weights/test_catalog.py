import importlib
import re
import subprocess
import sys

import pytest
import timm

import mmlk.backbones  # noqa: F401, registers them
from mmlk.registry import MODELS
from mmlk.weights.catalog import CATALOG, FAMILIES

ENTRIES = [(family, entry) for family, entries in FAMILIES.items() for entry in entries]
# Families of timm, whose archs are its names of models.
TIMM = {'RDNet', 'FocalNet', 'RepViT', 'InceptionNeXt', 'DINOv3 ConvNeXt', 'FastViT', 'StarNet'}
BASELINES = {'Swin Transformer', 'ResNet', 'ResNeXt', 'ResNeSt', 'Vision Transformer'}
TASKS = {'upernet': 'UPerNet', 'fcos': 'FCOS', 'mask_rcnn': 'Mask R-CNN', 'cascade_mask_rcnn': 'Cascade Mask R-CNN',
         'fpn': 'Semantic FPN', 'retinanet': 'RetinaNet', 'ssd': 'SSD', 'deeplabv3': 'DeepLabv3',
         'deeplabv3plus': 'DeepLabV3+', 'segnext': 'SegNeXt', 'mask2former': 'Mask2Former'}
DATA = {'ade20k': 'ADE20K', 'cityscapes': 'Cityscapes', 'coco': 'COCO', 'voc': 'Pascal VOC 2012'}
PRETRAINING = {'in1k': 'ImageNet-1K', 'in22k': 'ImageNet-22K', 'in22k-in1k': 'ImageNet-22K, then 1K',
               'lvd1689m': 'LVD-1689M', 'meg73m': 'MegData73M', 'meg73m-in1k': 'MegData73M, then ImageNet-1K'}


def test_no_two_entries_have_one_name_or_one_file():
    assert len(CATALOG) == len(ENTRIES)
    assert all(CATALOG[entry.name] is entry for _, entry in ENTRIES)
    assert len({entry.url for entry in CATALOG.values()}) == len(CATALOG)


@pytest.mark.parametrize('family', [family for family in FAMILIES if family not in BASELINES])
def test_every_arch_is_one_of_its_family(family):
    if family in TIMM:
        assert all(timm.is_model(entry.arch) for entry in FAMILIES[family])
        return
    archs = importlib.import_module(MODELS.get(family).__module__).ARCHS
    assert {entry.arch for entry in FAMILIES[family]} <= set(archs)


@pytest.mark.parametrize('family, entry', ENTRIES, ids=[entry.name for _, entry in ENTRIES])
def test_entry(family, entry):
    assert re.fullmatch(r'[a-z0-9_-]+', entry.name)
    assert entry.url.startswith('https://') and (not entry.page or entry.page.startswith('https://'))
    assert entry.licence and entry.source.startswith('github.com/')
    assert len(entry.mean) == len(entry.std) == 3 and min(entry.std) > 50
    assert re.fullmatch(r'\d+x\d+|not stated', entry.image_size)
    if entry.sha256:
        assert re.fullmatch('[0-9a-f]{8}', entry.sha256) and re.search(f'-{entry.sha256}.pth', entry.url)
    # OpenMMLab and torchvision publish digests, in the file's name; nobody else does
    assert bool(entry.sha256) == entry.url.startswith(('https://download.openmmlab', 'https://download.pytorch'))


@pytest.mark.parametrize('family, entry', ENTRIES, ids=[entry.name for _, entry in ENTRIES])
def test_a_name_says_what_the_file_is(family, entry):
    """``family-arch_pretraining[-more]`` of a classifier, ``task_family-arch[-22k]_data[-more]`` of a trained model."""
    if entry.holds in ('classifier', 'backbone'):
        backbone, end = entry.name.split('_')
        kind = max((kind for kind in PRETRAINING if re.match(rf'{kind}(-|$)', end)), key=len)
        assert entry.pretraining == PRETRAINING[kind]
        size = re.search(r'-(\d{3})(?=[-_]|$)', entry.name)
        if entry.image_size not in ('224x224', 'not stated', '192x192') and family != 'ParCNet':
            assert size and entry.image_size == f'{size[1]}x{size[1]}'
    else:
        task, backbone, end = re.fullmatch('(.*?)_((?!mask|rcnn).*)_(.*)', entry.name).groups()
        assert entry.holds == f"{TASKS[task]}, {DATA[end.split('-')[0]]}"
        assert ('-22k' in backbone) == entry.pretraining.startswith('ImageNet-22K')
        assert entry.metrics and all(10 < value < 100 for value in entry.metrics.values())
    if family in TIMM:
        arch = entry.arch.partition('.')[0]
        for word in ('tiny', 'small', 'base', 'large', 'atto'):
            arch = arch.replace(f'_{word}', word[0])
        assert backbone.startswith(family.split()[0].lower()) and arch.replace('_', '') in backbone.replace('-', '')
    elif family not in BASELINES and backbone != 'mobilenetv2':
        arch = entry.arch.lower()
        if entry.holds != 'classifier':
            arch = arch.removesuffix('-384')  # a trained HorNet-GF has the filters of 384 pixels, and no name says so
        assert backbone.startswith(family.lower()) and arch in backbone[len(family):]


def test_pixels():
    """RepLKNet-XL was trained on pixels in -1..1 (official README, tip 1), ParC-Net on pixels in 0..1."""
    for family, entry in ENTRIES:
        expected = {('RepLKNet', 'XL'): ((127.5, ) * 3, (127.5, ) * 3), ('ParCNet', 'S'): ((0, ) * 3, (255, ) * 3)}
        if 'resnest' in entry.name and family == 'ResNeSt' and 'deeplab' not in entry.name:
            assert entry.mean == (123.68, 116.779, 103.939)
        else:
            imagenet = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
            assert (entry.mean, entry.std) == expected.get((family, entry.arch), imagenet)
        assert entry.channels == ('BGR' if family == 'ParCNet' else 'RGB')


def test_a_note_is_made_of_the_fields():
    entry = CATALOG['upernet_replknet31b_ade20k']
    single, several = entry.metrics['mIoU'], entry.metrics['mIoU(ms+flip)']
    assert entry.note == entry.figures == f'mIoU {single} ss, {several} ms'
    entry = CATALOG['ssd_parcnet-s_coco']
    assert entry.note == f"box AP {entry.metrics['box AP']}, BGR pixels"


def test_the_catalogue_and_downloads_do_not_import_torch(repo):
    code = ('import sys, mmlk, mmlk.weights.catalog, mmlk.weights.fetch\n'
            'assert len(mmlk.weights.catalog.CATALOG) > 200\n'
            "assert not {'torch', 'mmengine', 'mmcv'} & set(sys.modules)")
    subprocess.run([sys.executable, '-c', code], check=True, cwd=repo)


def test_names_of_the_package_are_functions_whatever_was_imported_before(repo):
    code = ('import mmlk.weights.loading, mmlk.weights as weights\n'
            'from mmengine.registry import WEIGHT_INITIALIZERS\n'
            "assert WEIGHT_INITIALIZERS.get('mmlk.Pretrained') is weights.Pretrained\n"
            'assert all(callable(getattr(weights, name)) for name in weights.__all__)')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=repo)


def test_what_cannot_be_had_directly_can_be_had_by_hand():
    """Drives and clouds answer with pages of their own now and then."""
    for entry in CATALOG.values():
        if re.search('google|tsinghua|surf', entry.url):
            assert entry.page and entry.page != entry.url


def test_every_trained_replknet_is_named_as_its_config(repo):
    configs = {path.stem for path in (repo / 'configs').glob('*.py')}
    trained = {entry.name for entry in FAMILIES['RepLKNet'] if entry.holds != 'classifier'}
    assert len(trained) == 10 and trained <= configs
