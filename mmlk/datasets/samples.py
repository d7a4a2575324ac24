"""Runs one sample of a dataset through its pipeline before a run, to find errors that would occur only later."""
import random
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Sequence

import numpy as np
import torch

_TRIED = 8  # maximum number of samples to try: pipelines skip samples without a usable annotation
_CURES = {
    'seg_map_path': 'the dataset has no label maps (data_prefix.seg_map_path). For a test set without them, take '
                    'LoadAnnotations out of its pipeline and set format_only=True in IoUMetric',
    'mask': 'an annotation has no "segmentation", from which masks are made; without masks, take a model without a '
            'mask head and with_mask=False in LoadAnnotations',
    'img': 'no step before it has loaded the image; LoadImageFromFile comes first',
}


def leaves(dataset: Any) -> Iterator[Any]:
    """Yields the datasets that have a pipeline, inside of any wrappers of a built dataset."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from leaves(part)
    elif hasattr(dataset, 'dataset'):
        yield from leaves(dataset.dataset)
    elif hasattr(dataset, 'get_data_info') and hasattr(dataset, 'pipeline'):
        yield dataset


def fault(dataset: Any, use: str = 'predict') -> Optional[str]:
    """Runs a sample through the pipeline, and returns the reason for which it cannot be used.

    The states of the random generators are restored. If the pipeline skips the first samples, they are not checked.

    Args:
        dataset: An ``mmengine.dataset.BaseDataset``, not a wrapper.
        use: ``'train'``, ``'evaluate'`` (predictions are compared with label maps) or ``'predict'``.

    Returns:
        The step that fails and its error, or what is wrong with the output of the last step. None if the sample can be
        used.
    """
    steps = list(getattr(dataset.pipeline, 'transforms', ()))
    with _random_numbers_kept():
        for index in range(min(_TRIED, len(dataset))):
            results = dataset.get_data_info(index)
            results.setdefault('sample_idx', index)
            for number, step in enumerate(steps):
                name = f'pipeline.{number} ({type(step).__name__})'
                try:
                    results = step(results)
                except Exception as error:  # a transform can raise any exception
                    return f'{name}: {_why(error)}'
                if results is None:
                    break
            else:
                return _packed_wrong(steps, results, use) if steps else None
    return None


def _why(error: Exception) -> str:
    cure = _CURES.get(error.args[0]) if isinstance(error, KeyError) and error.args else None
    text = ' '.join(str(error).split())
    return cure or (text if isinstance(error, ValueError) and text else f'{type(error).__name__}: {text}')


def _packed_wrong(steps: List[Any], results: Any, use: str) -> Optional[str]:
    if not isinstance(results, dict) or not {'inputs', 'data_samples'} <= set(results):
        return 'the last step of the pipeline must be PackSegInputs, PackDetInputs or PackInputs'
    names = [type(step).__name__ for step in steps]
    if any(name.startswith('Pack') for name in names[:-1]):
        return f'{names[-1]} comes after the step that packs, and has no effect there; PackSegInputs comes last'
    image, sample = results['inputs'], results['data_samples']
    sample = sample[0] if isinstance(sample, (list, tuple)) else sample  # of test-time augmentation
    labels = getattr(sample, 'gt_sem_seg', None)
    if labels is None:
        return None if use != 'evaluate' else (
            'the pipeline loads no label map, and IoUMetric compares with it. Put LoadAnnotations into it, after '
            'Resize; or set format_only=True in IoUMetric')
    size, original = labels.data.shape[-2:], sample.metainfo.get('ori_shape', ())[:2]
    if use == 'train' and torch.is_tensor(image) and image.shape[-2:] != size:
        return (f'the image is {_by(image.shape[-2:])} at the end of the pipeline, and its label map {_by(size)} '
                '(HxW): LoadImageFromFile and LoadAnnotations come first, then what changes the size')
    if use == 'evaluate' and original and tuple(original) != tuple(size):
        return (f'the label map is {_by(size)} at the end of the pipeline, and predictions are made {_by(original)} '
                '(HxW), as the file is: LoadAnnotations must come after Resize')
    return None


def _by(size: Sequence[int]) -> str:
    return 'x'.join(map(str, size))


@contextmanager
def _random_numbers_kept() -> Iterator[None]:
    kept = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(kept[0])
    np.random.set_state(kept[1])
