"""Predict images, folders of images and videos with a trained model, and write and draw what is predicted.

    mmlk predict CONFIG CHECKPOINT photo.jpg folder 'more/**/*.png' clip.mp4 --out predictions
    mmlk predict model.onnx folder --out predictions
    mmlk predict CONFIG CHECKPOINT huge.tif --out predictions --tile 1024 --overlap 256

The model is a config and its checkpoint, or a file that mmlk export wrote: .onnx, .pt (TorchScript) or .pt2.

Writes labels/NAME.png of a segmentor, as mmlk test --out does; detections.json, in COCO's format, of a detector; and
overlays/NAME.png. If an image cannot be read, the others are predicted, and the exit code is 1.
"""
import argparse
import os
import tempfile
from typing import TYPE_CHECKING, List, Optional

from mmlk._text import one_line
from mmlk.cli.options import add_config_options, add_device, check_minimum, fail

if TYPE_CHECKING:
    from mmlk.predict import Predictor
    from mmlk.predict.files import Results, Source

# of mmlk.predict, which imports numpy
EXPORTED = ('.onnx', '.pt', '.pt2')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', help='config, or exported file')
    parser.add_argument('inputs', nargs='*', metavar='[CHECKPOINT] IMAGE|FOLDER|GLOB|VIDEO',
                        help='the checkpoint of a config (a file, an http(s) URL, or a name that mmlk weights lists), '
                        'and what to predict')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder of the results')
    parser.add_argument('--tile', type=int, metavar='PIXELS', help='predict tiles of this height and width, and merge '
                        'them: for images that are too large for the memory')
    parser.add_argument('--overlap', type=int, default=0, metavar='PIXELS', help='how many pixels neighbouring tiles '
                        'share (%(default)s)')
    parser.add_argument('--score', type=float, default=0.3, help='least score of a detection (%(default)s)')
    parser.add_argument('--no-overlays', action='store_true', help='write no overlays')
    add_device(parser)
    add_config_options(parser)


def split_inputs(args: argparse.Namespace) -> Optional[str]:
    """Take the checkpoint from the inputs, where the model is a config; end the program if it or the inputs lack."""
    from mmlk.predict.files import is_input
    if args.model.lower().endswith(EXPORTED):
        checkpoint = None
    elif args.model.lower().endswith('.py'):
        if not args.inputs or is_input(args.inputs[0]):
            fail(f'the config {args.model} needs a checkpoint after it, before the images')
        checkpoint = args.inputs.pop(0)
    else:
        fail(f"{args.model} is neither a config (.py) nor an exported file ({', '.join(EXPORTED)}); a checkpoint needs "
             'its config before it')
    if not args.inputs:
        fail('no images: give files, folders, patterns or videos after the model')
    return checkpoint


def check_folder(folder: str) -> None:
    """Make the folder; end the program if it cannot be written to."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fail(f'--out {folder} cannot be written to: {error.strerror or error}')


def build(args: argparse.Namespace, checkpoint: Optional[str]) -> 'Predictor':
    """The predictor; ends the program if the model cannot be used."""
    from mmlk.predict import Predictor
    options = dict(device=args.device, tile=args.tile, overlap=args.overlap, score_threshold=args.score)
    try:
        if checkpoint is None:
            return Predictor(args.model, cfg_options=args.cfg_options, **options)
        from mmlk.cli.prepare import find_checkpoint, read_config
        cfg = read_config(args.model, args.cfg_options)
        return Predictor(cfg, find_checkpoint(checkpoint), **options)
    except (ImportError, ValueError) as error:
        fail(str(error))


def predict_all(predictor: 'Predictor', sources: List['Source'], results: 'Results') -> List[str]:
    """Predict all sources; returns why those that could not be read could not."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from mmlk.predict import ImageError
    from mmlk.predict.files import Frames
    unreadable = []
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns) as progress:
        bar = progress.add_task('predicting', total=len(sources))
        for source in sources:
            try:
                if not source.is_video:
                    image = predictor.read(source.path)
                    results.add(source, image, predictor(image))
                    del image  # before the next one is read
                else:
                    frames = Frames(source.path, predictor.channels)
                    frame_bar = progress.add_task(one_line(source.name), total=frames.number or None)
                    with results.video(source, frames.rate) as video:
                        for frame in frames:
                            video.add(frame, predictor(frame))
                            progress.advance(frame_bar)
                    progress.remove_task(frame_bar)
            except ImageError as error:
                unreadable.append(str(error))
            progress.advance(bar)
    return unreadable


def run(args: argparse.Namespace) -> Optional[int]:
    check_minimum(args, tile=1, overlap=0, score=0)
    from mmlk.predict.files import Results, find_sources
    checkpoint = split_inputs(args)
    try:
        sources = find_sources(args.inputs, args.out)
    except ValueError as error:
        fail(str(error))
    check_folder(args.out)
    predictor = build(args, checkpoint)
    try:
        results = Results(args.out, predictor, not args.no_overlays)
        results.check(sources)
    except ValueError as error:
        fail(str(error))
    for source in sources:
        if source.name != source.path.stem:
            print(one_line(f'{source.path} is written as {source.name}: another file has the same name'))
    try:
        try:
            unreadable = predict_all(predictor, sources, results)
        finally:
            results.finish()
    except OSError as error:
        fail(f'results cannot be written: {error}')
    print(f'{len(sources) - len(unreadable)} of {len(sources)} predicted: {args.out}')
    if unreadable:
        print(f'{len(unreadable)} could not be read:')
        for text in unreadable:
            print(one_line(f'  {text}'))
        return 1
    return None
