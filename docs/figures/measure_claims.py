"""Measure what docs/claims.md says of speed and of receptive fields, into records/PART.json beside this file.

    python docs/figures/measure_claims.py                    # all parts
    python docs/figures/measure_claims.py depthwise fast_parc     # some
    python docs/figures/measure_claims.py --quick --out DIR  # tiny sizes and few turns, to see that it works

What is compared is measured in turns in one process, so that a slow minute of the machine meets all of it. A record
has the samples of each name, of which those at one place belong together: one turn, or one image. Speed is to be
measured on an idle machine; ``python docs/figures/claims.py`` then writes the page. Receptive fields need about 10 GB
of memory, for RepLKNet-31B at 1024x1024.
"""
import argparse
import datetime
import json
import math
import statistics
import subprocess
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List

import torch

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
Samples = Dict[str, List[float]]

DEPTHWISE = (64, 384), (16, 32, 64)  # batch and channels, sides of the map, as in table 1 of RepLKNet's paper
PARC = 64, (14, 28, 56, 112, 224)  # channels, sides of the map
ASYMPTOTIC = 56  # from this side on the fixed time of a call does not hide how the time grows
NETWORKS = (  # those of a line take turns: side of the image, images of a call, names
    (224, 4, ('RepVGG-A2', 'ResNet-50', 'RepVGG-B1g4', 'ResNet-101')),
    (224, 4, ('ConvNeXt-T', 'Swin-T')),
    (224, 2, ('ConvNeXt-B', 'Swin-B', 'RepLKNet-31B')),
    (384, 1, ('ConvNeXt-B', 'Swin-B', 'RepLKNet-31B')),
)
FIELDS = {  # configs, or models of timm
    'RepLKNet-31': 'upernet_replknet31b_ade20k', 'RepLKNet-13': 'upernet_replknet13-120ep_ade20k',
    'ResNet-101': 'timm:resnet101', 'ResNet-50': 'timm:resnet50', 'ParC-ResNet-50': 'upernet_parc-resnet50_ade20k',
    'ConvNeXt-XT': 'upernet_convnext-xt_ade20k', 'ParC-ConvNeXt-XT': 'upernet_parc-convnext-xt_ade20k',
    'MobileNetV2': 'upernet_mobilenetv2_ade20k', 'ParC-MobileNetV2': 'upernet_parc-mobilenetv2_ade20k',
}


def slope(points: Dict[float, float]) -> float:
    """Slope of the straight line through the logarithms of both, by least squares."""
    return statistics.linear_regression([math.log(x) for x in points], [math.log(y) for y in points.values()]).slope


def settle(calls: Dict[str, Callable[[], object]]) -> None:
    """Call each four times: the operator measures its backends in the third call."""
    for call in calls.values():
        for _ in range(4):
            call()


def depthwise(device: torch.device, quick: bool) -> Samples:
    """Seconds of kernels of 3x3 and 31x31."""
    from mmlk.ops import depthwise_conv2d
    from mmlk.ops.benchmark import turns
    (batch, channels), sides = ((1, 4), (16, )) if quick else DEPTHWISE
    samples: Samples = {}
    with torch.no_grad():
        for side in sides:
            x = torch.randn(batch, channels, side, side, device=device)
            weights = {f'{k}x{k}, R = {side}': torch.randn(channels, 1, k, k, device=device) / k for k in (3, 31)}
            calls = {name: partial(depthwise_conv2d, x, weight) for name, weight in weights.items()}
            settle(calls)
            samples.update(turns(calls, device, most=3 if quick else 15, least=3 if quick else 15))
    return samples


def fast_parc(device: torch.device, quick: bool) -> Samples:
    """Seconds of global circular convolutions of both axes, one half of the channels each; and exponents of n."""
    from mmlk.ops import circular_conv
    from mmlk.ops.benchmark import turns
    channels, sides = (4, (56, 112)) if quick else PARC
    methods = {'ParC': 'direct', 'Fast-ParC': 'fft'}
    samples: Samples = {}

    def both(x, tall, wide, method):
        return circular_conv(x, tall, method=method), circular_conv(x, wide, method=method)

    with torch.no_grad():
        for side in sides:
            x = torch.randn(1, channels // 2, side, side, device=device)
            kernels = [torch.randn(channels // 2, 1, *shape, device=device) / side for shape in ((side, 1), (1, side))]
            calls = {f'{name}, n = {side}': partial(both, x, *kernels, method) for name, method in methods.items()}
            settle(calls)
            samples.update(turns(calls, device, most=3 if quick else 15, least=3 if quick else 15))
    for name in methods:
        times = {side: samples[f'{name}, n = {side}'] for side in sides if side >= ASYMPTOTIC}
        samples[f'exponent of {name}'] = [slope(dict(zip(times, turn))) for turn in zip(*times.values())]
    return samples


def build(name: str, size: int) -> torch.nn.Module:
    """A backbone that returns its feature maps; BatchNorm of ResNet is folded."""
    import timm

    from mmlk import backbones
    from mmlk.reparam.folding import fold_norms
    family, _, arch = name.partition('-')
    if family == 'ResNet':
        model = timm.create_model(f'resnet{arch}', features_only=True)
        fold_norms(model, torch.rand(1, 3, 64, 64))
        return model
    if family == 'Swin':
        window, given = (12, 384) if size == 384 and arch == 'B' else (7, 224)
        full = {'T': 'tiny', 'B': 'base'}[arch]
        return timm.create_model(f'swin_{full}_patch4_window{window}_{given}', img_size=size, features_only=True)
    return getattr(backbones, family)(arch=arch, out_indices=(0, 1, 2, 3))


def networks(device: torch.device, quick: bool) -> Samples:
    """Seconds of whole backbones, merged where they have branches."""
    from mmlk.analysis.latency import LatencyNetwork, Variant, measure_latency
    samples: Samples = {}
    for size, batch, names in NETWORKS[1:2] if quick else NETWORKS:
        listed = [LatencyNetwork(f'{name}, {size}', partial(build, name, size)) for name in names]
        modules = [network.build().to(device) for network in listed]
        rows = measure_latency(listed, modules, [Variant(merged=True)], 'inference', (size, size),
                               1 if quick else batch, device, turns=2 if quick else 9, warmup=1 if quick else 4)
        failed = [f'{row.name}: {row.failed}' for row in rows if row.failed]
        if failed:
            raise RuntimeError('; '.join(failed))
        samples.update((row.name, row.seconds) for row in rows)
    return samples


def receptive_fields(device: torch.device, quick: bool) -> Samples:
    """Shares of the image with more than 99 % of the contribution, for each photograph of scikit-image; random
    weights."""
    from mmengine.config import Config

    from mmlk.analysis import erf
    from mmlk.datasets.images import packaged_photographs, read_image
    names = ['MobileNetV2', 'ParC-MobileNetV2'] if quick else list(FIELDS)
    size, paths = (128, packaged_photographs()[:2]) if quick else (1024, packaged_photographs()[:5])
    samples: Samples = {}
    for name in names:
        source = FIELDS[name]
        torch.manual_seed(0)
        if source.startswith('timm:'):
            network = erf.erf_from_timm(source[len('timm:'):], initialise=True)
        else:
            network = erf.erf_from_config(Config.fromfile(str(ROOT / 'configs' / f'{source}.py')), initialise=True)
        stage, _ = network.check(size)
        images = (read_image(path, size, network.channels) for path in paths)
        fields = (erf.measure_erf(network, [image], stage, str(device)) for image in images)
        samples[name] = [field.squares((0.99, ))[0][1] for field in fields]
    return samples


#: What the samples of a part are one for each of.
PARTS = {depthwise: 'turns', fast_parc: 'turns', networks: 'turns', receptive_fields: 'images'}


def commit() -> str:
    """The commit that is measured, with + behind it if files differ from it."""
    def git(*words: str) -> str:
        return subprocess.run(['git', *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    changed = git('status', '--porcelain', '--untracked-files=no', 'mmlk')
    return git('rev-parse', '--short', 'HEAD') + '+' * bool(changed)


def main() -> None:
    from mmlk.cli.options import add_device, check_device
    from mmlk.ops.benchmark import describe
    from mmlk.studies.compare import versions
    parts = {part.__name__: part for part in PARTS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('parts', nargs='*', metavar='PART', help=f"some of {', '.join(parts)} (default: all)")
    parser.add_argument('--quick', action='store_true', help='tiny sizes and few turns; not for the page')
    parser.add_argument('--out', type=Path, default=FOLDER / 'records', metavar='DIR', help='folder of the records')
    add_device(parser)
    args = parser.parse_args()
    unknown = set(args.parts) - set(parts)
    if unknown:
        parser.error(f"there is no part {', '.join(sorted(unknown))}; there are {', '.join(parts)}")
    if args.quick and args.out == FOLDER / 'records':
        parser.error('--quick needs --out DIR: its figures are not for the page')
    device = torch.device(check_device(args.device))
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.parts or parts:
        samples = parts[name](device, args.quick)
        record = dict(command=f'python docs/figures/measure_claims.py {name}', machine=describe(device),
                      versions=versions(), commit=commit(), date=datetime.date.today().isoformat(),
                      samples_are=PARTS[parts[name]], samples=samples)
        (args.out / f'{name}.json').write_text(json.dumps(record, indent=1) + '\n', encoding='utf-8')
        print(f"{name}: {', '.join(f'{key} {statistics.median(values):.3g}' for key, values in samples.items())}")


if __name__ == '__main__':
    main()
