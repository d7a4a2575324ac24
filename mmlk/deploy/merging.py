"""Merges the branches of a trained checkpoint, and compares the outputs before the result is written."""
import os.path as osp
from dataclasses import dataclass
from pathlib import Path
from typing import Any, List, Optional, Sequence

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from mmlk import weights
from mmlk._files import whole
from mmlk._types import with_paths
from mmlk.datasets.images import open_bands, to_bands
from mmlk.engine.network import build_network, in_channels
from mmlk.preprocessors import Normalization
from mmlk.reparam import MergeableBranches, merge
from mmlk.weights.read import read_weights

_SIDE = 512  # longest side of the image for the check, px
_HEAD = '# The config of a merged model, written by tools/merge.py'  # by which it may be overwritten


@dataclass(frozen=True)
class MergeResult:
    """The written files, and the differences between the outputs of the merged and of the trained model."""

    checkpoint: str
    config: str
    blocks: int
    parameters: int
    merged_parameters: int
    largest_difference: float
    largest_feature: float
    averaged: bool = False  # whether the checkpoint had weights averaged by a hook, which were merged

    def __str__(self) -> str:
        averaged = 'merged are the averaged weights, which an EMAHook left in the checkpoint\n' * self.averaged
        return (f'{averaged}{self.blocks} blocks merged; parameters {self.parameters:,} -> {self.merged_parameters:,}\n'
                f'largest difference {self.largest_difference:.3g}, where the largest feature is '
                f'{self.largest_feature:.3g}\n'
                f'wrote {self.checkpoint}\nwrote {self.config}')


def merge_checkpoint(cfg: Config, checkpoint: str, out: str, image: Optional[str] = None,
                     tolerance: float = 1e-3) -> MergeResult:
    """Merge a trained model's branches, check it on a real image, write checkpoint and config.

    Args:
        cfg: Config that the checkpoint was trained with. Not changed.
        checkpoint: Trained checkpoint of the whole model.
        out: Path of the merged checkpoint, ending in ``.pth``; the config goes beside it, ending in ``.py``.
        image: Path of an image; a photograph that scikit-image ships when None.
        tolerance: Largest allowed difference of a feature, relative to the largest feature.

    Returns:
        The figures and the paths written.

    Raises:
        ValueError: Nothing to merge, the checkpoint or image cannot be read, ``out`` would overwrite the input or a
            config that this function has not written, or the outputs differ by more than the tolerance. Nothing is
            written then.
    """
    config_out = osp.splitext(out)[0] + '.py'
    for written, given in ((out, checkpoint), (config_out, cfg.filename)):
        if given and osp.realpath(written) == osp.realpath(given):
            raise ValueError(f'{written} is the input itself; write to another name')
    if osp.exists(config_out) and not _is_ours(config_out):
        raise ValueError(f'{config_out}, where the config of the merged model goes, is there already, and was not '
                         'written by this tool; write to another name, or remove it')
    model = build_network(cfg)
    blocks = sum(isinstance(m, MergeableBranches) and not m.merged for m in model.modules())
    if not blocks:
        raise ValueError('this model has no parallel branches to merge; its backbone is '
                         f'{cfg.model.backbone.type}')
    weights.load(model, checkpoint)
    merged = merge(model)
    inputs = _real_input(image, model, in_channels(cfg))
    pairs = list(zip(_outputs(model.eval(), inputs), _outputs(merged, inputs)))
    largest = _largest([a for a, _ in pairs])
    difference = _largest([a - b for a, b in pairs])
    if not difference <= tolerance * largest:
        raise ValueError(f'merged and trained outputs differ by {difference:.3g} where the largest is {largest:.3g}, '
                         f'more than {tolerance:g} of it; nothing was written')

    merged_cfg = Config(with_paths(cfg.to_dict()))
    merged_cfg.model.backbone.merged = True
    merged_cfg.model.backbone.init_cfg = None
    merged_cfg.load_from = None
    content = read_weights(checkpoint)
    # texts that mmengine may run: of a run with mmcv, and of the model that the weights are of
    meta = {key: value for key, value in (_plain(content.get('meta')) or {}).items() if key != 'config'}
    meta['cfg'] = merged_cfg.pretty_text
    text = f'{_HEAD}, from {osp.basename(cfg.filename or "a config")}.\n{merged_cfg.pretty_text}'
    with whole(out) as weights_file, whole(config_out) as config_file:
        torch.save(dict(state_dict=merged.state_dict(), meta=meta), weights_file)
        Path(config_file).write_text(text, encoding='utf-8')
    return MergeResult(out, config_out, blocks, _count(model), _count(merged), difference, largest,
                       'ema_state_dict' in content)


def _is_ours(config: str) -> bool:
    """Returns whether a file was written by an earlier call."""
    with open(config, encoding='utf-8', errors='replace') as file:
        return file.readline().startswith(_HEAD)


def _count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _largest(tensors: Sequence[Tensor]) -> float:
    """Returns the largest absolute value in the tensors, or NaN if one of them contains NaN."""
    return torch.stack([tensor.abs().max() for tensor in tensors]).max().item()


def _real_input(path: Optional[str], model: nn.Module, channels: int) -> Tensor:
    """Returns a photograph as the normalized input of the model, (1, channels, H, W)."""
    import mmcv
    if path is None:
        from skimage import data
        picture = to_bands(data.astronaut(), channels)
    else:
        picture = open_bands(Path(path), channels)
    picture = mmcv.imrescale(picture, (_SIDE, _SIDE))
    picture = picture[..., None] if picture.ndim == 2 else picture  # OpenCV drops a single channel
    tensor = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return Normalization.of_preprocessor(model.data_preprocessor, channels)(tensor.float())[None]


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensor) -> List[Tensor]:
    """Returns the maps of the backbone, followed by the logits of a segmentor or the neck's maps of a detector."""
    maps: List[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda _, __, output: maps.extend(output))
    try:
        if hasattr(model, 'encode_decode'):
            meta = dict(img_shape=inputs.shape[2:], ori_shape=inputs.shape[2:], pad_shape=inputs.shape[2:])
            last = [model.encode_decode(inputs, [meta])]
        else:
            last = list(model.extract_feat(inputs))
    finally:
        hook.remove()
    return maps + last


def _plain(value: Any) -> Any:
    """Returns the part of a checkpoint's ``meta`` that is plain data."""
    if isinstance(value, dict):
        kept = {k: _plain(v) for k, v in value.items() if isinstance(k, str)}
        return {k: v for k, v in kept.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value if isinstance(value, (str, int, float, bool)) else None
