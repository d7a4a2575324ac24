"""The measurements of ``mmlk benchmark-ops``: the operator's backends on many shapes, and inside RepLKNet-31B.

Importing this module imports pure PyTorch; :func:`run_models` builds a backbone, which takes OpenMMLab.
"""
import statistics
import sys
from pathlib import Path
from typing import Dict, List, Tuple

import torch

from mmlk._text import markdown_table
from mmlk.ops.benchmark import (Case, OperatorRow, contention, describe, machine_bandwidth, machine_peak, measure,
                                table, turns)


def plain(row: OperatorRow) -> dict:
    """Returns a measurement as numbers and text that JSON can store."""
    return {**row.case._asdict(), 'dtype': str(row.case.dtype)[6:], 'seconds': row.times, 'bytes': row.memory,
            'not_run': row.reasons, 'chosen': row.chosen}


def grid(device: torch.device) -> List[Case]:
    """Returns the cases of the table, with shapes of RepLKNet, SLaK and ConvNeXt."""
    if device.type == 'cuda':
        shapes = [(64, 384, 32, 31), (64, 384, 64, 31), (8, 128, 128, 31), (64, 128, 56, 7)]
        return [Case(n, c, size, size, k, backward, dtype) for dtype in (torch.float16, torch.bfloat16, torch.float32)
                for n, c, size, k in shapes for backward in (False, True)]
    forward = [(1, 128, 128, 31), (1, 256, 64, 29), (1, 512, 32, 27), (1, 1024, 16, 13), (1, 128, 128, 51),
               (1, 128, 56, 31)]
    both = [(2, 128, 128, 31), (2, 512, 32, 27), (2, 128, 64, 31), (2, 256, 32, 29), (2, 512, 16, 27),
            (2, 1024, 8, 13)]
    # RepLKNet-7 and ConvNeXt-B stages at 224 and 512 pixels
    small = [(1, 128, 56, 7), (1, 256, 28, 7), (1, 512, 14, 7), (1, 1024, 7, 7),
             (2, 128, 128, 7), (2, 256, 64, 7), (2, 512, 32, 7), (2, 1024, 16, 7)]
    return ([Case(n, c, size, size, k, False) for n, c, size, k in forward] +
            [Case(n, c, size, size, k, True) for n, c, size, k in both + small])


def run_grid(device: torch.device, budget: float) -> Tuple[List[dict], str]:
    """Measure :func:`grid`.

    Args:
        device: Where the tensors are.
        budget: Seconds for one figure, roughly.

    Returns:
        Every measurement, and a Markdown table of them.
    """
    cases = grid(device)
    peaks = {dtype: machine_peak(device, dtype) for dtype in {case.dtype for case in cases}}
    rows = []
    for i, case in enumerate(cases, 1):
        rows.append(measure(case, device, budget))
        print(f'grid {i}/{len(cases)}: {case.label}: {rows[-1].stock / rows[-1].times["chosen"]:.1f}x', file=sys.stderr)
    bandwidth = machine_bandwidth(device)
    text = [table(rows, peaks, bandwidth if device.type == 'cuda' else None), '',
            'Milliseconds (MiB at the peak). Measured peak, a large square matrix product: ' + ', '.join(
                f'{peak / 1e9:.0f} GFLOP/s {str(dtype)[6:]}' for dtype, peak in peaks.items()) +
            f'; copying: {bandwidth / 1e9:.0f} GB/s.']
    left_out = {name: reason for row in rows for name, reason in row.reasons.items()}
    text += [f'Not run: {name}: {reason}.' for name, reason in left_out.items()]
    return [plain(row) for row in rows], '\n'.join(text)


def run_growth(device: torch.device, budget: float, out: Path) -> List[dict]:
    """Measure forward and backward for many kernel sizes on one map, and on many maps for one kernel size.

    Args:
        device: Where the tensors are.
        budget: Seconds for one figure, roughly.
        out: Folder that growth.png is written into.
    """
    dtype = torch.float16 if device.type == 'cuda' else torch.float32
    series = {
        'kernel size (1 x 64 channels, 64 x 64 map)': [
            (k, Case(1, 64, 64, 64, k, True, dtype)) for k in (3, 5, 7, 9, 13, 17, 21, 25, 31, 39, 47, 55, 63)],
        'side of the map (1 x 32 channels, 31 x 31 kernel)': [
            (size, Case(1, 32, size, size, 31, True, dtype)) for size in (14, 20, 28, 40, 56, 80, 112, 160, 224, 256)],
    }
    measured = {}
    for title, cases in series.items():
        for i, (_, case) in enumerate(cases, 1):
            print(f'growth with the {title.split(" (")[0]} {i}/{len(cases)}', file=sys.stderr)
            measured.setdefault(title, []).append(measure(case, device, budget))
    try:
        _plot(series, measured, out / 'growth.png', describe(device))
    except ImportError:
        print('matplotlib is not installed: no picture of the growth; its figures are in figures.json', file=sys.stderr)
    return [plain(row) for rows in measured.values() for row in rows]


def _plot(series: dict, measured: dict, path: Path, machine: str) -> None:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    from mmlk.analysis.palette import looks
    figure, axes = plt.subplots(1, len(series), figsize=(6.4 * len(series), 4.8))
    for axis, (title, cases) in zip(axes, series.items()):
        for name, (colour, marker) in looks(name for row in measured[title] for name in row.times).items():
            points = [(value, row.times[name] * 1e3)
                      for (value, _), row in zip(cases, measured[title]) if name in row.times]
            chosen = name == 'chosen'
            axis.plot(*zip(*points), marker, label=name, color='0.4' if chosen else colour, markersize=5,
                      linestyle='--' if chosen else '-', linewidth=2.5 if chosen or name.startswith('stock') else 1,
                      zorder=3 if chosen else 2)
        axis.set(xscale='log', yscale='log', xlabel=title, ylabel='forward + backward, ms')
        ticks = [value for value, _ in cases][::2]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle(machine, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def run_models(device: torch.device, budget: float) -> Tuple[Dict[str, dict], str]:
    """Measure RepLKNet-31B, merged and in training: as it is, with PyTorch's own convolutions, with none, and Swin-B.

    Args:
        device: Where the models are.
        budget: Seconds for one figure, roughly.

    Returns:
        Seconds by title and model, and a Markdown table of them. If timm or OpenMMLab is not installed, nothing and
        the reason.
    """
    try:
        import copy

        import timm
        from torch import nn

        from mmlk.backbones import RepLKNet
        from mmlk.ops import DepthwiseConv2d, set_memory_format
    except ImportError as error:
        return {}, f'models: not run, {error}'

    def swapped(model, build):
        model = copy.deepcopy(model)
        for parent in list(model.modules()):
            for name, child in parent.named_children():
                if isinstance(child, DepthwiseConv2d):
                    setattr(parent, name, build(child))
        return model

    def stock(conv):
        conv.__class__ = nn.Conv2d
        return conv

    figures, lines = {}, []
    for training, batch, size in ((False, 1, 512), (True, 2, 256)):
        replknet = RepLKNet('31B', merged=not training)
        swin = timm.create_model('swin_base_patch4_window7_224', img_size=size, features_only=True)
        as_ever = swapped(replknet, stock)
        set_memory_format(as_ever, 'contiguous')
        models = {'RepLKNet-31B': replknet, 'on stock nn.Conv2d, contiguous': as_ever,
                  'identity for every depthwise convolution': swapped(replknet, lambda conv: nn.Identity()),
                  'Swin-B (timm)': swin}
        x = torch.randn(batch, 3, size, size, device=device)

        def step(model):
            if not training:
                with torch.no_grad():
                    return model(x)
            model.zero_grad()
            return sum(out.square().mean() for out in model(x)).backward()

        calls = {name: (lambda model=model.to(device).train(training): step(model)) for name, model in models.items()}
        for _ in range(3):
            calls['RepLKNet-31B']()
        samples = turns(calls, device, budget * 5, most=7)
        times = {name: statistics.median(values) for name, values in samples.items()}
        ours = times['RepLKNet-31B']
        title = f'{"training step" if training else "merged, inference"}, {batch}x3x{size}x{size}'
        figures[title] = times
        lines += ['', f'| {title} | seconds | RepLKNet-31B takes |', '| --- | --- | --- |']
        lines += [f'| {name} | {seconds:.2f} | {ours / seconds:.2f} of it |' for name, seconds in times.items()]
    return figures, '\n'.join(lines[1:])


def run_busy(device: torch.device, budget: float) -> Tuple[Dict[str, dict], str]:
    """Measure PyTorch's convolution and the operator beside one other busy process, and alone.

    Args:
        device: Where the tensors are.
        budget: Seconds for one figure, roughly.

    Returns:
        Seconds alone and beside the process by case and name, and a Markdown table of them.
    """
    figures, names = {}, []
    for case in (Case(1, 128, 128, 128, 31, False), Case(2, 512, 32, 32, 27, True)):
        title = f"{case.label}, {'forward + backward' if case.backward else 'forward'}"
        figures[title] = contention(case, device, budget, tick=lambda title=title: print(
            f'busy: {title}: a condition is done', file=sys.stderr))
        names = list(figures[title])
    rows = [[title, *(f'{1e3 * beside:.3g} ({beside / alone:.1f}x)' for alone, beside in found.values())]
            for title, found in figures.items()]
    return figures, markdown_table(['beside one busy process, ms (against alone)', *names], rows)
