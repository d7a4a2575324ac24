"""Finds the images and videos to predict, and writes what is predicted."""
import glob
import json
import os.path as osp
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from mmlk._files import whole
from mmlk.datasets.images import SUFFIXES, find_images

from .model import ImageError
from .prediction import MaskCrop, Prediction
from .predictor import Predictor

#: Endings, in small letters, of files that are taken for videos.
VIDEOS = ('.avi', '.m4v', '.mkv', '.mov', '.mp4', '.mpeg', '.mpg', '.webm')

LEGEND_ROWS = 2  # of a video, whose frames are all of one size


class Source(NamedTuple):
    """An image or a video to predict.

    Args:
        path: The file.
        name: Name of what is written for it, without a suffix. No two sources have the same.
    """
    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        return is_video(self.path)


def is_video(path: Path) -> bool:
    """Returns whether a file is taken for a video."""
    return path.suffix.lower() in VIDEOS


def is_input(text: str) -> bool:
    """Returns whether an argument looks like images or a video, and not like a checkpoint."""
    return osp.isdir(text) or glob.has_magic(text) or text.lower().endswith((*SUFFIXES, *VIDEOS))


def find_sources(inputs: Sequence[str], out: str) -> List[Source]:
    """Finds images and videos.

    Args:
        inputs: Files, folders (of which the images are taken, also those in folders inside), and patterns such as
            ``'photos/**/*.jpg'``. A file that is named itself may have any suffix.
        out: The folder of the results. What is in it is not taken from folders and patterns.

    Returns:
        Each file once, in the order of the arguments.

    Raises:
        ValueError: A file or folder does not exist, or there is no image in a folder, of a pattern or at all.
    """
    results = Path(out).resolve()
    paths: Dict[Path, Path] = {}
    for text in inputs:
        if osp.isfile(text):
            found = [Path(text)]
        elif osp.isdir(text):
            found = [path for path in find_images(text) if results not in path.resolve().parents]
        elif glob.has_magic(text):
            found = [Path(name) for name in sorted(glob.glob(text, recursive=True))
                     if name.lower().endswith((*SUFFIXES, *VIDEOS)) and osp.isfile(name)]
            found = [path for path in found if results not in path.resolve().parents]
        else:
            raise ValueError(f'there is no file, folder or pattern {text}')
        if not found:
            raise ValueError(f"no image in {text}: files that end in {', '.join(SUFFIXES)}")
        for path in found:
            paths.setdefault(path.resolve(), path)
    if not paths:
        raise ValueError('no images: give files, folders, patterns or videos')
    found = list(paths.values())
    return [Source(path, name) for path, name in zip(found, unique_names(found))]


def unique_names(paths: Sequence[Path]) -> List[str]:
    """Returns the stem of each path; for paths of the same stem, as many of their last folders before it as make them
    different, then the suffix after it, and at last a number. Letter case does not make names different."""
    forms = [[path.stem] for path in paths]
    for form, path in zip(forms, paths):
        parts = path.resolve().parts[1:-1]
        form += ['_'.join((*parts[-depth:], path.stem)) for depth in range(1, len(parts) + 1)]
        form += ['_'.join((*parts, path.name))]
    level = [0] * len(paths)
    while True:
        names = [form[min(index, len(form) - 1)] for form, index in zip(forms, level)]
        same: Dict[str, List[int]] = {}
        for place, name in enumerate(names):
            same.setdefault(name.lower(), []).append(place)
        groups = [group for group in same.values() if len(group) > 1]
        if not groups:
            return names
        for group in groups:
            for number, place in enumerate(group):
                if level[place] + 1 < len(forms[place]):
                    level[place] += 1
                else:
                    forms[place].append(f'{forms[place][-1]}_{number}')
                    level[place] += 1


class Results:
    """Writes predictions into a folder.

    Of a segmentor, ``labels/NAME.png`` are the files that ``tools/test.py --out`` writes, and of a video one for each
    frame, ``labels/NAME/000000.png``. Of a detector, ``detections.json`` has all detections in COCO's format. In
    ``overlays`` they are drawn over the images; of a video a video, or a picture for each frame where OpenCV cannot
    write any.

    Args:
        folder: The folder, which is made if it does not exist.
        predictor: The predictor.
        overlays: Whether to write the overlays.

    Raises:
        ValueError: The folder cannot be written to, or a package that is needed is not installed.
    """

    def __init__(self, folder: str, predictor: Predictor, overlays: bool = True):
        if predictor.task == 'detection' and find_spec('pycocotools') is None:
            raise ValueError('masks are written by pycocotools, which is not installed: pip install pycocotools')
        self.folder, self._predictor, self._overlays = Path(folder), predictor, overlays
        self._images: List[dict] = []
        self._annotations: List[dict] = []

    def check(self, sources: Sequence[Source]) -> None:
        """Checks that no input would be overwritten.

        Raises:
            ValueError: A file that would be written is one of the sources.
        """
        inputs = {source.path.resolve() for source in sources}
        for source in sources:
            written = [self.folder / kind / f'{source.name}{suffix}' for kind in ('labels', 'overlays')
                       for suffix in ('.png', '.mp4', '.avi')]
            same = next((path for path in written if path.resolve() in inputs), None)
            if same is not None:
                raise ValueError(f'{same} is to be predicted, and would be overwritten; choose another folder for the '
                                 'results')

    def add(self, source: Source, image: np.ndarray, prediction: Prediction, frame: Optional[int] = None) -> None:
        """Writes what is predicted for an image, or for a frame of a video.

        Raises:
            OSError: A file cannot be written.
        """
        if prediction.labels is not None:
            self._save(label_image(prediction.labels, prediction.classes, self._predictor.reduce_zero_label),
                       self._path('labels', source, frame))
        else:
            self._add_detections(source, prediction, frame)
        if self._overlays and frame is None:
            self._save(prediction.overlay(image), self._path('overlays', source, frame), compress_level=1)

    @contextmanager
    def video(self, source: Source, rate: float) -> Iterator['VideoResult']:
        """A context manager for the overlays of a video, whose ``add`` is called with each frame."""
        result = VideoResult(self, source, rate)
        try:
            yield result
        finally:
            result.close()

    def _path(self, kind: str, source: Source, frame: Optional[int]) -> Path:
        name = source.name if frame is None else osp.join(source.name, f'{frame:06d}')
        return self.folder / kind / f'{name}.png'

    def _save(self, picture: np.ndarray, path: Path, **options: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path, **options)

    def _add_detections(self, source: Source, prediction: Prediction, frame: Optional[int]) -> None:
        height, width = prediction.size
        facts = dict(id=len(self._images) + 1, file_name=str(source.path), height=height, width=width)
        self._images.append(facts if frame is None else dict(facts, frame=frame))
        for index, (left, top, right, bottom) in enumerate(prediction.boxes.tolist()):
            box = [left, top, right - left, bottom - top]
            found = dict(id=len(self._annotations) + 1, image_id=facts['id'], bbox=box, area=box[2] * box[3], iscrowd=0,
                         score=float(prediction.scores[index]), category_id=int(prediction.class_ids[index]) + 1)
            if prediction.crops is not None:
                crop = prediction.crops[index]
                found.update(segmentation=runs_of(crop, prediction.size), area=int(crop.mask.sum()))
            self._annotations.append(found)

    def finish(self) -> None:
        """Writes ``detections.json``, if the predictor is of a detector."""
        if self._predictor.task == 'detection':
            categories = [dict(id=index + 1, name=name) for index, name in enumerate(self._predictor.classes)]
            with whole(str(self.folder / 'detections.json')) as path:
                Path(path).write_text(json.dumps(dict(images=self._images, annotations=self._annotations,
                                                      categories=categories)))


class VideoResult:
    """Writes the predictions of a video, frame by frame."""

    def __init__(self, results: Results, source: Source, rate: float):
        self._results, self._source, self._rate = results, source, rate
        self._writer: Any = None
        self._frame = 0

    def add(self, image: np.ndarray, prediction: Prediction) -> None:
        """Writes the predictions of the next frame.

        Raises:
            OSError: A file cannot be written.
        """
        self._results.add(self._source, image, prediction, self._frame)
        if self._results._overlays:
            drawn = np.concatenate([prediction.overlay(image, legend=False),
                                    prediction.legend(image.shape[1], LEGEND_ROWS)])
            if self._frame == 0:
                self._writer = self._open(drawn.shape[1::-1])
            if self._writer is None:
                self._results._save(drawn, self._results._path('overlays', self._source, self._frame), compress_level=1)
            else:
                self._writer.write(np.ascontiguousarray(drawn[..., ::-1]))
        self._frame += 1

    def _open(self, size: Tuple[int, int]) -> Any:
        """Opens a video writer; returns None if OpenCV has no codec."""
        import cv2
        folder = self._results.folder / 'overlays'
        folder.mkdir(parents=True, exist_ok=True)
        for suffix, codec in (('.mp4', 'mp4v'), ('.avi', 'MJPG')):
            path = folder / f'{self._source.name}{suffix}'
            writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), self._rate, size)
            if writer.isOpened():
                return writer
            path.unlink(missing_ok=True)
        return None

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()


class Frames:
    """The frames of a video.

    Args:
        path: The file.
        channels: Number of channels of the images that the model takes: 3, or 1 for grey.

    Attributes:
        number: How many frames the video says that it has; may be wrong or 0.
        rate: Frames per second; 25 if the video does not say.

    Raises:
        ImageError: The model takes images of other channels.
    """

    def __init__(self, path: Path, channels: int):
        import cv2
        if channels not in (1, 3):
            raise ImageError(f'{path} has three channels, and the model takes images of {channels}')
        self._channels, self._path = channels, path
        self._video = cv2.VideoCapture(str(path))
        self.number = max(0, int(self._video.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.rate = self._video.get(cv2.CAP_PROP_FPS) or 25.0

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yields frames as RGB, (H, W, 3), or as grey, (H, W), uint8.

        Raises:
            ImageError: The video has no frame that can be read.
        """
        import cv2
        count = 0
        try:
            while True:
                there, frame = self._video.read()
                if not there:
                    break
                count += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) if self._channels == 1 else frame[..., ::-1]
        finally:
            self._video.release()
        if not count:
            raise ImageError(f'{self._path} cannot be read as a video')


def label_image(labels: np.ndarray, classes: Sequence[str], reduce_zero_label: bool) -> np.ndarray:
    """Returns a label map as it is written, with the numbers of the dataset's label maps: from 1 with
    ``reduce_zero_label``. It is uint8, or uint16 for numbers above 255."""
    first = int(reduce_zero_label)
    kind = np.uint8 if len(classes) + first <= 256 else np.uint16
    return labels.astype(kind, copy=False) + kind(first)


def runs_of(crop: MaskCrop, size: Tuple[int, int]) -> Dict[str, Any]:
    """Returns a mask as COCO's compressed run lengths, without making it in the size of the image.

    Args:
        crop: The mask.
        size: Height and width of the image.
    """
    from pycocotools import mask as coco
    height, width = size
    steps = np.diff(np.pad(crop.mask.T.astype(np.int8), ((0, 0), (1, 1))), axis=1)  # runs go down columns
    ends = []
    for step in (1, -1):
        columns, rows = np.nonzero(steps == step)
        ends.append((crop.left + columns) * height + crop.top + rows)
    start, stop = ends
    apart = start[1:] != stop[:-1]  # a run that goes on at the top of the next column is one
    start, stop = start[np.r_[True, apart]] if start.size else start, stop[np.r_[apart, True]] if stop.size else stop
    counts = np.diff(np.concatenate([[0], np.stack([start, stop], 1).ravel(), [height * width]])).tolist()
    if counts[-1] == 0:
        counts.pop()
    runs = coco.frPyObjects(dict(counts=counts, size=[height, width]), height, width)
    return dict(size=[height, width], counts=runs['counts'].decode())
