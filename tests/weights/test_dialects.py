"""Files of other toolboxes: their models' outputs, from our backbones."""
import dataclasses
import re
from collections import OrderedDict

import pytest
import timm
import torch
import torchvision
from timm.models import byobnet
from torch import nn

from mmlk.backbones import ConvNeXt, HorNet, MobileNetV2, RepVGG
from mmlk.reparam import merge
from mmlk.weights import WeightsError, load
from mmlk.weights.dialects import DIALECTS, Dialect
from mmlk.weights.layouts import WeightsLayout, fit
from tests.utils import fill, image, relative_error
from tests.weights.conftest import assert_same, randomise, snapshot

TINY = dict(depths=(1, 1, 2, 1), dims=(4, 8, 12, 16))
SE = dict(num_blocks=(1, 2, 1, 1), width_multiplier=(0.25, ) * 4, use_se=True)


def without_norms(backbone):
    """ConvNeXt without the norms on its outputs, which classifiers lack."""
    for name in [name for name, _ in backbone.named_children() if re.fullmatch(r'norm\d', name)]:
        setattr(backbone, name, nn.Identity())
    return backbone


def timm_maps(model, x):
    return model.forward_intermediates(x, intermediates_only=True)[-4:]


def torchvision_maps(stages):
    def maps(model, x):
        found = []
        for layer in model.features:
            x = layer(x)
            found.append(x)
        return [found[i] for i in stages]
    return maps


def timm_merged(name):
    return timm.utils.reparameterize_model(fill(timm.create_model(name)).eval())


def timm_se():
    """repvgg_d2se with fewer blocks and channels."""
    full = byobnet.model_cfgs['repvgg_d2se']
    blocks = [dataclasses.replace(block, d=depth, c=16 * 2**i)
              for i, (block, depth) in enumerate(zip(full.blocks, SE['num_blocks']))]
    return byobnet.ByobNet(dataclasses.replace(full, blocks=blocks, stem_chs=16))


# their model, our backbone, their maps, what the report says
MODELS = {
    'timm convnext_tiny': (lambda: timm.create_model('convnext_tiny'), lambda: without_norms(ConvNeXt('T')), timm_maps,
                           "timm's ConvNeXt: 182 names translated, such as stem.0.weight to downsample_layers.0.0."),
    'timm convnext_tiny, 1x1': (lambda: timm.create_model('convnext_tiny', conv_mlp=True),
                                lambda: without_norms(ConvNeXt('T')), timm_maps, 'and 36 tensors freed of dimensions'),
    'timm repvgg_a0': (lambda: timm.create_model('repvgg_a0'), lambda: RepVGG('A0'), timm_maps, "timm's RepVGG: 351"),
    'timm repvgg_d2se, smaller': (timm_se, lambda: RepVGG(SE), timm_maps, "timm's RepVGG: 103 names"),
    'timm repvgg_a0, merged': (lambda: timm_merged('repvgg_a0'), lambda: RepVGG('A0', merged=True), timm_maps,
                               "timm's RepVGG: 46 names"),
    'torchvision convnext_tiny': (torchvision.models.convnext_tiny, lambda: without_norms(ConvNeXt('T')),
                                  torchvision_maps((1, 3, 5, 7)),
                                  "torchvision's ConvNeXt: 182 names .* and 18 tensors freed of dimensions of 1"),
    'torchvision mobilenet_v2': (torchvision.models.mobilenet_v2, lambda: MobileNetV2('3'),
                                 torchvision_maps((3, 6, 13, 17)), "torchvision's MobileNetV2: 312 names"),
}


@pytest.mark.parametrize('name', MODELS)
def test_their_features_come_out(tmp_path, name):
    their_model, our_backbone, maps, said = MODELS[name]
    theirs, ours = fill(their_model(), 1).double().eval(), our_backbone().double().eval()
    torch.save(theirs.state_dict(), tmp_path / 'w.pth')
    report = load(ours, tmp_path / 'w.pth')
    assert re.search(said, report.format) and not report.left
    x = image(1, 3, 64, 64).double()
    with torch.no_grad():
        for got, expected in zip(ours(x), maps(theirs, x)):
            assert relative_error(got, expected) < 1e-10


def test_safetensors_of_timms_hub(tmp_path):
    from safetensors.torch import save_file
    theirs = fill(timm.create_model('repvgg_a0'), 1)
    save_file(theirs.state_dict(), str(tmp_path / 'model.safetensors'))
    ours = RepVGG('A0')
    report = load(ours, tmp_path / 'model.safetensors')
    assert torch.equal(ours.stage0.rbr_dense.conv.weight, theirs.stem.conv_kxk.conv.weight)
    assert sorted(report.unexpected) == ['linear.bias', 'linear.weight']


# mmpretrain's spelling, by its tools/model_converters: ours to its own, in turn
MMPRETRAIN = {
    'ConvNeXt': ((r'^head\.', 'head.fc.'), (r'^norm\.', 'norm3.'), (r'\.dwconv', '.depthwise_conv'),
                 (r'\.pwconv', '.pointwise_conv')),
    'HorNet': ((r'^head\.', 'head.fc.'), (r'^norm\.', 'norm3.'), (r'gnconv\.pws', 'gnconv.projs'),
               (r'gamma([12])$', r'gamma\1.weight')),
    'RepVGG': ((r'^linear\.', 'head.fc.'), (r'\.bn\.', '.norm.'), (r'rbr_identity', 'branch_norm'),
               (r'rbr_1x1', 'branch_1x1'), (r'rbr_dense', 'branch_3x3'), (r'rbr_reparam', 'branch_reparam'),
               (r'^stage0', 'stem'), (r'^stage(\d)', r'stage_\1'), (r'\.se\.', '.se_layer.'),
               (r'\.down\.', '.conv1.conv.'), (r'\.up\.', '.conv2.conv.')),
}


def mmpretrain(family, state):
    spelled = OrderedDict()
    for name, value in state.items():
        for pattern, replacement in MMPRETRAIN[family]:
            name = re.sub(pattern, replacement, name)
        spelled[name if name.startswith('head.') else f'backbone.{name}'] = value
    return spelled


def tiny(family, **kwargs):
    if family == 'ConvNeXt':
        return ConvNeXt(TINY, **kwargs)
    if family == 'RepVGG':
        return RepVGG(SE, **kwargs)
    mixers = [dict(order=2), dict(order=3), dict(order=2, h=6, w=4), dict(order=2)]
    return HorNet(dict(depths=(1, 1, 2, 1), base_dim=8, gnconv=mixers), **kwargs)


FAMILIES = ['ConvNeXt', 'HorNet', 'RepVGG']


@pytest.mark.parametrize('family', FAMILIES)
def test_mmpretrains_classifiers(tmp_path, family):
    """Every tensor arrives, but the classifier's last norm not in the norm on the last output."""
    source, target = randomise(tiny(family), 1), randomise(tiny(family), 2)
    before, official = snapshot(target), OrderedDict(
        (name, value) for name, value in source.state_dict().items() if not re.match(r'norm\d', name))
    width = target.out_channels[-1]
    ends = {'linear.weight': torch.randn(5, width)} if family == 'RepVGG' else {
        'norm.weight': torch.randn(width), 'norm.bias': torch.randn(width), 'head.weight': torch.randn(5, width)}
    torch.save({'meta': {}, 'state_dict': mmpretrain(family, {**official, **ends})}, tmp_path / 'w.pth')
    report = load(target, tmp_path / 'w.pth')
    assert f"mmpretrain's {family}" in report.format and 'names translated, such as' in report.format
    left = {name for name in before if re.match(r'norm\d', name)}
    assert set(report.left) == left and report.complete
    assert_same(target.state_dict(), {name: before[name] if name in left else value
                                      for name, value in source.state_dict().items()})


def test_mmpretrains_merged_repvgg(tmp_path):
    source = merge(randomise(tiny('RepVGG'), 1))
    torch.save(mmpretrain('RepVGG', source.state_dict()), tmp_path / 'w.pth')
    target = tiny('RepVGG', merged=True)
    load(target, tmp_path / 'w.pth')
    assert_same(target.state_dict(), source.state_dict())


class Segmentor(nn.Module):

    def __init__(self, family):
        super().__init__()
        self.backbone = tiny(family)
        self.decode_head = nn.Conv2d(16, 5, 1)


@pytest.mark.parametrize('family', FAMILIES)
def test_models_of_mmseg_and_mmdet_with_mmpretrains_backbone(tmp_path, family):
    """Their norms on the outputs are ours; into a backbone, and into a whole model."""
    source, target = randomise(Segmentor(family), 1), randomise(Segmentor(family), 2)
    state = {**mmpretrain(family, source.backbone.state_dict()),
             **{f'decode_head.{name}': value for name, value in source.decode_head.state_dict().items()}}
    torch.save({'state_dict': state}, tmp_path / 'w.pth')
    report = load(target, tmp_path / 'w.pth')
    assert_same(target.state_dict(), source.state_dict())
    assert f"mmpretrain's {family}: " in report.format and not report.left and not report.unexpected
    backbone = tiny(family)
    report = load(backbone, tmp_path / 'w.pth')
    assert_same(backbone.state_dict(), source.backbone.state_dict())
    assert sorted(report.unexpected) == ['decode_head.bias', 'decode_head.weight'] and not report.left


def test_a_module_that_has_their_names_keeps_them(tmp_path):
    theirs = fill(timm.create_model('convnext_atto'), 1)
    torch.save(theirs.state_dict(), tmp_path / 'w.pth')
    target = timm.create_model('convnext_atto')
    report = load(target, tmp_path / 'w.pth')
    assert_same(target.state_dict(), theirs.state_dict())
    assert report.format == 'bare state dict'


def test_a_large_kernel_in_their_model_changes_nothing():
    """Its names are theirs still."""
    file = WeightsLayout({'stages.0.blocks.0.conv_dw.weight': torch.ones(1)})
    assert fit(file, ['stages.0.blocks.0.conv_dw.lkb_origin.conv.weight']).tensors == file.tensors
    assert fit(file, ['stages.0.0.dwconv.weight']).tensors.keys() == {'stages.0.0.dwconv.weight'}


def test_cvnets_heads_stand_beside_the_encoder():
    layout = fit(WeightsLayout({'encoder.conv_1.block.conv.weight': torch.ones(1), 'seg_head.x': torch.ones(1)}))
    assert list(layout.tensors) == ['conv_1.block.conv.weight', 'seg_head.x'] and 'ParC-Net' in layout.format


def test_our_own_names_are_nobodys_dialect():
    for family in FAMILIES:
        for merged in (False, True):
            names = tiny(family, merged=merged).state_dict()
            assert not [dialect.name for dialect in DIALECTS if dialect.marks(names)]


def test_two_tensors_never_become_one():
    dialect = Dialect('somebody', 'a', ((r'^a$', 'b'), ))
    with pytest.raises(WeightsError, match='read as somebody, holds b twice'):
        dialect.translate({'a': torch.ones(1), 'b': torch.ones(1)})
