"""Show one or two models in a browser: predictions, latency, and the receptive field at a clicked pixel.

    mmlk demo CONFIG CHECKPOINT
    mmlk demo CONFIG CHECKPOINT --against OTHER_CONFIG OTHER_CHECKPOINT
    mmlk demo CONFIG CHECKPOINT --against model.onnx

A model is a config of a segmentor or detector and its checkpoint, which is a file, an http(s) URL, or a name that
mmlk weights lists; or an exported file alone, of which there is no receptive field.

The page is served on this machine only, unless --host says otherwise. It reads the uploaded images and no other file,
and uploads are deleted when the server ends (Ctrl+C). Needs gradio: pip install "mmlk[demo]"
"""
import argparse
import os
import signal
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, List, Sequence

from mmlk.cli.options import add_device, check_device, fail

if TYPE_CHECKING:
    from mmlk.predict.page import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('model', nargs='+', metavar='CONFIG CHECKPOINT', help='config and checkpoint, or an exported '
                        'file alone')
    parser.add_argument('--against', nargs='+', metavar='CONFIG CHECKPOINT', help='a second model, to compare with')
    parser.add_argument('--score', type=float, default=0.3, help='least score of a detection (%(default)s)')
    parser.add_argument('--host', default='127.0.0.1', help='address to serve on; 0.0.0.0 lets everybody in the '
                        'network upload images to this machine (%(default)s)')
    parser.add_argument('--port', type=int, default=7860, help='0 for any free one (%(default)s)')
    add_device(parser)


def check(args: argparse.Namespace) -> None:
    """End the program with one message if an argument is wrong or gradio is not installed."""
    for model in (args.model, args.against or args.model):
        if len(model) > 2 or (len(model) == 2) != model[0].lower().endswith('.py'):
            fail(f"a model is a config (.py) and its checkpoint, or an exported file alone; got {' '.join(model)}")
        for path in model if len(model) == 1 else model[:1]:
            if not os.path.isfile(path):
                fail(f'no file {path}')
    if not 0 <= args.port < 1 << 16:
        fail(f'--port must be from 0 to 65535, got {args.port}')
    if find_spec('gradio') is None:
        fail('gradio is not installed: pip install "mmlk[demo]"')
    check_device(args.device)


def names_of(models: Sequence[Sequence[str]]) -> List[str]:
    """The names of the files, without their endings; with the checkpoint's where two configs have the same name."""
    names = [[os.path.splitext(os.path.basename(path))[0] for path in model] for model in models]
    heads = [name[0] for name in names]
    return heads if len(set(heads)) == len(heads) else [' '.join(name) for name in names]


def load(name: str, model: Sequence[str], args: argparse.Namespace) -> 'Model':
    """A model of the page; ends the program with one message if it cannot be loaded."""
    import torch

    from mmlk.predict import Predictor
    from mmlk.predict.page import Model, network_of
    device = check_device(args.device)
    threads = f'{torch.get_num_threads()} thread' + 's' * (torch.get_num_threads() != 1)
    where = f'CPU, {threads}' if torch.device(device).type == 'cpu' else device
    if len(model) == 1:
        predictor = Predictor(model[0], device=args.device, score_threshold=args.score)
        where = 'ONNX Runtime' if model[0].lower().endswith('.onnx') else f'exported file, {where}'
    else:
        from mmlk.cli.prepare import find_checkpoint, read_config
        predictor = Predictor(read_config(model[0]), find_checkpoint(model[1]), device=device,
                              score_threshold=args.score)
    if predictor.channels != 3:
        raise ValueError(f'the page shows models of RGB images, and this one takes {predictor.channels} channels')
    return Model(name, predictor, predictor.model and network_of(predictor.model), where)


def run(args: argparse.Namespace) -> None:
    check(args)
    from mmlk.predict.page import serve
    pairs = [args.model, *([args.against] if args.against else [])]
    models = []
    for name, pair in zip(names_of(pairs), pairs):
        try:
            models.append(load(name, pair, args))
        except (ImportError, ValueError) as error:
            fail(f'{pair[0]}: {error}')
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # not at once, so that uploads are deleted
    try:
        serve(models, args.host, args.port, lambda url: print(f'{url} shows the page; Ctrl+C ends it', flush=True))
    except KeyboardInterrupt:
        pass
    except OSError as error:
        fail(f'{args.host}:{args.port} cannot be served on: {error.strerror or error}')
