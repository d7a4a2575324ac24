"""A page for a browser: what one or two models predict of an uploaded image, side by side.

For each model it shows the prediction on the image, its latency, and the effective receptive field at the pixel that
was clicked. The page is made with gradio, an optional dependency. It asks no other host for fonts, scripts or anything
else, reads no file but the uploaded ones, and keeps these in a folder that is deleted when the server ends.
"""
import functools
import html
import logging
import os
import socket
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Awaitable, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import gradio
    from torch import nn

    from mmlk.analysis.erf import ErfNetwork

#: Formats of an upload, as Pillow names them: those that neither run a program nor contain one, as EPS does.
FORMATS = ('BMP', 'GIF', 'JPEG', 'PNG', 'PPM', 'TIFF', 'WEBP')
MAX_MEGABYTES, MAX_PIXELS = 64, 64_000_000  # of an upload
MAX_RECEIVED = 1024  # megabytes that the server receives at most: gradio's own refusal shows no reason
MAX_SIDE = 2048  # of the image that is predicted and shown: the logits of 150 classes need 2.5 GB then
FIELD_SIDE = 512  # of the image whose receptive field is computed: gradients keep every feature map
DECADES = 4  # of the colours of a receptive field
WARMUP = 2  # calls before those that are timed, besides the one that is shown: the third chooses the backends
LISTED = 12  # classes in a legend

LOOPBACK = ('127.0.0.1', '::1', 'localhost')
#: Nothing from other hosts, even if a component of the page asks for it. gradio compiles functions in the browser.
POLICY = ("default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; form-action 'self'; "
          "frame-ancestors 'none'; object-src 'none'")

# Images keep gradio's own size rules, by which it tells the pixel that was clicked: a small image is not enlarged.
CSS = '''
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
.gradio-container h1 { margin: 0.4em 0 0.1em; }
.models { align-items: flex-start; }
.overlay img { cursor: crosshair; }
.said { min-height: 1.6em; }
.said .error { color: #b00020; font-weight: 600; }
.dark .said .error { color: #ff8a80; }
.facts { line-height: 1.5; overflow-wrap: anywhere; }
.facts .swatch { display: inline-block; width: 0.85em; height: 0.85em; margin-right: 0.35em; border-radius: 2px;
  border: 1px solid #8888; vertical-align: -0.08em; }
.facts .item { display: inline-block; margin-right: 1em; }
'''


class UploadError(ValueError):
    """An upload that cannot be shown. The message is for the person who uploaded it."""


class Field(NamedTuple):
    """The receptive field at a pixel.

    Args:
        picture: (H, W, 3), uint8, RGB: the image, with the field and the pixel drawn on it.
        side: Of the smallest square around the pixel that holds half of the scores, in pixels of the image.
        size: Width and height of the image that the network was given.
    """
    picture: np.ndarray
    side: int
    size: Tuple[int, int]


@dataclass
class Model:
    """A model of the page.

    Args:
        name: Its heading.
        predict: Takes an image, (H, W, 3), uint8, RGB, and returns a :class:`mmlk.predict.Prediction`.
        network: Its backbone, for receptive fields; None if there is none that gradients can be taken of.
        where: What it runs on, as text.
    """
    name: str
    predict: Callable[[np.ndarray], Any]
    network: Optional['ErfNetwork'] = None
    where: str = ''


def network_of(model: 'nn.Module') -> 'ErfNetwork':
    """The backbone of a segmentor or detector, and its normalization, for :func:`receptive_field`."""
    from mmlk.analysis.erf import ErfNetwork
    from mmlk.preprocessors import Normalization
    return ErfNetwork(model.backbone, Normalization.of_preprocessor(model.data_preprocessor))


def read_upload(path: str) -> np.ndarray:
    """Reads an uploaded image, rotated by its EXIF data.

    Args:
        path: The file.

    Returns:
        (H, W, 3), uint8, RGB.

    Raises:
        UploadError: It is no image in one of ``FORMATS``, is damaged, or has more than ``MAX_PIXELS`` pixels or
            ``MAX_MEGABYTES``.
    """
    from mmlk.datasets.images import as_loaded, check_end
    if os.path.getsize(path) > MAX_MEGABYTES << 20:
        raise UploadError(f'The file has {os.path.getsize(path) / 2**20:.0f} MB, and at most {MAX_MEGABYTES} MB can be '
                          'shown: make the image smaller.')
    try:
        with Image.open(path, formats=FORMATS) as image:  # reads only the header
            width, height = image.size
    except Image.DecompressionBombError:
        raise UploadError('The image has too many pixels. At most '
                          f'{MAX_PIXELS / 1e6:.0f} million can be shown.') from None
    except Exception:  # Pillow's decoders raise many types of errors
        raise UploadError('The file cannot be read as an image. Upload one of these formats: '
                          f"{', '.join(FORMATS)}.") from None
    if width * height > MAX_PIXELS:
        raise UploadError(f'The image has {width} x {height} pixels, which is too many. At most '
                          f'{MAX_PIXELS / 1e6:.0f} million can be shown: make it smaller.')
    try:
        check_end(path)
        return as_loaded(Path(path))
    except ValueError:
        raise UploadError('The image is damaged or incomplete. Save it again and upload the new file.') from None


def at_most(image: np.ndarray, side: int) -> np.ndarray:
    """The image, scaled down if its longer side has more pixels than ``side``."""
    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image
    size = [max(1, round(length * side / max(height, width))) for length in (width, height)]
    return np.array(Image.fromarray(image).resize(size, Image.BICUBIC))


def receptive_field(network: 'ErfNetwork', image: np.ndarray, pixel: Tuple[int, int]) -> Field:
    """The effective receptive field of the backbone's last map at a pixel.

    The scores are those of :func:`mmlk.analysis.erf.contribution`. The image is scaled down to ``FIELD_SIDE`` first,
    and to sides that are multiples of 32, the stride of most backbones.

    Args:
        network: The backbone.
        image: (H, W, 3), uint8, RGB.
        pixel: Row and column.

    Raises:
        ValueError: The backbone takes no images of this size, or no pixel contributes to the map at this position.
    """
    import torch

    from mmlk.analysis.erf import contribution
    from mmlk.preprocessors import Normalization
    height, width = image.shape[:2]
    scale = min(1, FIELD_SIDE / max(height, width))
    size = rows, columns = [max(32, round(length * scale / 32) * 32) for length in (height, width)]
    row, column = ((2 * place + 1) * new // (2 * old) for place, new, old in zip(pixel, size, (height, width)))
    small = np.array(Image.fromarray(image).resize((columns, rows), Image.BICUBIC))
    weight = next(network.backbone.parameters())
    inputs = torch.from_numpy(small).permute(2, 0, 1).to(weight.device).float()
    inputs = Normalization.imagenet()(inputs)[None].to(weight.dtype)

    def last(x):
        maps = network.maps(x)
        return maps[max(maps)]

    try:
        scores = contribution(last, inputs, (row, column)).astype(np.float64)
    except (AssertionError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f'the backbone gives no field of an image of {columns} x {rows} pixels: {error}') from error
    if not np.isfinite(scores).all() or not scores.any():
        raise ValueError('nothing contributes to the last map here: it is not above zero, or not finite')
    down, right = np.abs(np.arange(rows) - row), np.abs(np.arange(columns) - column)
    inside = np.bincount(np.maximum(down[:, None], right).ravel(), scores.ravel()).cumsum()
    reach = int(np.searchsorted(inside, inside[-1] / 2))
    side = min(round((2 * reach + 1) * max(height, width) / max(rows, columns)), 2 * max(height, width))
    return Field(draw_field(image, scores, pixel), side, (columns, rows))


def draw_field(image: np.ndarray, scores: np.ndarray, pixel: Tuple[int, int]) -> np.ndarray:
    """Draws scores over an image, in colours that span ``DECADES`` powers of ten, and a ring around the pixel.

    Args:
        image: (H, W, 3), uint8, RGB.
        scores: (h, w), not negative, not all zero; resized to the image.
        pixel: Row and column in the image.

    Returns:
        (H, W, 3), uint8.
    """
    from matplotlib import colormaps
    height, width = image.shape[:2]
    heat = np.log10(np.maximum(scores / scores.max(), 10.0**-DECADES)) / DECADES + 1
    heat = np.array(Image.fromarray(heat.astype(np.float32)).resize((width, height), Image.BILINEAR)).clip(0, 1)
    grey = np.array(Image.fromarray(image).convert('L'))[..., None] * 0.5
    picture = (1 - heat[..., None]) * grey + heat[..., None] * colormaps['plasma'](heat)[..., :3] * 255
    picture = picture.round().astype(np.uint8)
    radius = max(4, max(height, width) / 60)
    distance = np.hypot(np.arange(height)[:, None] - pixel[0], np.arange(width) - pixel[1])
    picture[np.abs(distance - radius) < radius / 3] = 0
    picture[np.abs(distance - radius) < radius / 6] = 255
    return picture


def latencies(models: Sequence[Model], image: np.ndarray) -> List[List[float]]:
    """Seconds of each model's calls, from the image to the prediction. The models take turns, after a warm-up."""
    import torch

    from mmlk.ops.benchmark import turns
    calls: Dict[int, Callable[[], object]] = {
        index: functools.partial(model.predict, image) for index, model in enumerate(models)}
    for call in calls.values():
        for _ in range(WARMUP):
            call()
    # predictions are numpy arrays, for which a GPU has been waited for
    return list(turns(calls, torch.device('cpu'), budget=3, most=5).values())


def legend(prediction: Any) -> str:
    """What a prediction found, as HTML: the classes in their colours, with their part of the image or their number."""
    if prediction.task == 'segmentation':
        labels, counts = np.unique(prediction.labels, return_counts=True)
        found = {int(label): count / prediction.labels.size for label, count in zip(labels, counts)}
        said = {label: f'{100 * part:.1f} %' if part >= 0.001 else '< 0.1 %' for label, part in found.items()}
    else:
        labels, counts = np.unique(prediction.class_ids, return_counts=True)
        found = {int(label): int(count) for label, count in zip(labels, counts)}
        said = {label: f'{count} (best score {prediction.scores[prediction.class_ids == label].max():.2f})'
                for label, count in found.items()}
    items = []
    for label in sorted(found, key=lambda label: -found[label])[:LISTED]:
        known = label < len(prediction.classes)  # 255 and the like are no class
        name = prediction.classes[label] if known else f'label {label}'
        colour = ', '.join(str(int(value)) for value in prediction.palette[label]) if known else '128, 128, 128'
        items.append(f'<span class="item"><span class="swatch" style="background: rgb({colour})"></span>'
                     f'{html.escape(str(name))} {html.escape(said[label])}</span>')
    rest = len(found) - len(items)
    return ' '.join(items) + (f' and {rest} more' if rest else '') or 'Nothing was found.'


def said(text: str, error: bool = False) -> str:
    """A message of the page as HTML."""
    return f'<div role="{"alert" if error else "status"}" class="{"error" if error else "status"}">{text}</div>'


def build(models: Sequence[Model]) -> 'gradio.Blocks':
    """The page of one or two models, for :func:`serve`."""
    import gradio as gr
    # One job at a time, or the models would be timed while the other works
    event: Dict[str, Any] = dict(show_progress='hidden', trigger_mode='always_last', concurrency_limit=1,
                                 concurrency_id='models', api_visibility='private')
    hint = 'Click a pixel of a prediction to see its receptive field.'

    with gr.Blocks(title='mmlk demo', analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown('# mmlk demo')
        # of any type, so that what is no image is refused by read_upload, with its message
        upload = gr.File(label=f'Image of at most {MAX_MEGABYTES} MB: drop it here, or click to choose a file',
                         height=140, elem_id='upload')
        keep = upload.async_move_resource_to_block_cache

        async def keep_upload(path: Optional[str]) -> Optional[str]:  # gradio would download what an address names
            if path is None or '://' in path:
                raise gr.Error('This page reads uploaded files only.', print_exception=False)
            return await keep(path)

        upload.async_move_resource_to_block_cache = keep_upload
        message = gr.HTML(said('Choose an image.'), elem_id='message', elem_classes='said')
        image = gr.State(time_to_live=3600)
        overlays, facts, times, fields, reaches = columns = ([], [], [], [], [])
        with gr.Row(elem_classes='models'):
            for index, model in enumerate(models):
                with gr.Column():
                    gr.Markdown(f'## {html.escape(model.name)}')
                    shared = dict(interactive=False, visible=False, buttons=[], type='numpy')
                    overlays.append(gr.Image(label='Prediction', elem_id=f'overlay-{index}', elem_classes='overlay',
                                             **shared))
                    facts.append(gr.HTML(elem_id=f'legend-{index}', elem_classes='facts'))
                    times.append(gr.HTML(elem_id=f'latency-{index}', elem_classes='facts'))
                    fields.append(gr.Image(label='Receptive field', elem_id=f'field-{index}', **shared))
                    reaches.append(gr.HTML(elem_id=f'reach-{index}', elem_classes='facts'))
        outputs = [message, image, *(component for column in columns for component in column)]

        def state(text: str, shown: Optional[np.ndarray], pictures: Sequence = (), found: Sequence = (),
                  seconds: Sequence = (), error: bool = False) -> list:
            """New values of all outputs; what is not given is emptied."""
            def fill(values, make):
                return [make(values[index] if index < len(values) else None) for index in range(len(models))]

            def picture(value):
                return gr.update(value=value, visible=value is not None)

            return [said(text, error), shown, *fill(pictures, picture), *fill(found, lambda value: value or ''),
                    *fill(seconds, lambda value: value or ''), *fill((), picture), *fill((), lambda value: '')]

        def show(path: Optional[str]) -> Iterator[list]:
            if path is None:
                yield state('Choose an image.', None)
                return
            try:
                whole = read_upload(path)
            except UploadError as error:
                yield state(html.escape(str(error)), None, error=True)
                return
            shown = at_most(whole, MAX_SIDE)
            size = f'{whole.shape[1]} x {whole.shape[0]} pixels'
            if shown is not whole:
                size += f', scaled down to {shown.shape[1]} x {shown.shape[0]} for this page'
            pictures, found = [], []
            try:
                for model in models:
                    yield state(f'{size}. {html.escape(model.name)} is running.', None, pictures, found)
                    prediction = model.predict(shown)
                    pictures.append(prediction.overlay(shown, legend=False))
                    found.append(legend(prediction))
                yield state(f'{size}. The latency is being measured. {hint}', shown, pictures, found)
                seconds = [f'Latency: {milliseconds(statistics.median(values))} (median of {len(values)} calls, '
                           f'{html.escape(model.where)})' for model, values in zip(models, latencies(models, shown))]
            except Exception as error:
                yield state(failure(error), None, error=True)
                return
            # not all outputs: a field may have been asked for in the meantime
            yield [said(f'{size}. {hint}'), shown, *[gr.skip()] * (2 * len(models)), *seconds,
                   *[gr.skip()] * (2 * len(models))]

        def click(shown: Optional[np.ndarray], event: gr.SelectData) -> list:
            if shown is None:
                return [said('Choose an image first.', error=True), *[gr.skip()] * (2 * len(models))]
            column, row = (int(min(max(place, 0), size - 1)) for place, size in zip(event.index, shown.shape[1::-1]))
            pictures, reached = [], []
            for model in models:
                try:
                    if model.network is None:
                        raise ValueError('an exported file has no gradients, so there is no receptive field of it')
                    field = receptive_field(model.network, shown, (row, column))
                except ValueError as error:
                    pictures.append(gr.update(value=None, visible=False))
                    reached.append(f'No receptive field: {html.escape(str(error))}.')
                except Exception as error:
                    pictures.append(gr.update(value=None, visible=False))
                    reached.append(f'No receptive field: {failure(error)}')
                else:
                    pictures.append(gr.update(value=field.picture, visible=True))
                    reached.append(f'Half of the contribution to the pixel at ({column}, {row}) comes from a square of '
                                   f'{field.side} x {field.side} pixels around it. Computed on the image at '
                                   f'{field.size[0]} x {field.size[1]}; the colours span {DECADES} powers of ten.')
            return [gr.skip(), *pictures, *reached]

        gr.on([upload.upload, upload.clear], show, upload, outputs, **event)
        gr.on([overlay.select for overlay in overlays], click, image, [message, *fields, *reaches], **event)
    return page


def milliseconds(seconds: float) -> str:
    """A time as text with three digits: ``'8.25 ms'``, ``'1,240 ms'``."""
    value = seconds * 1e3
    return f'{value:,.0f} ms' if value >= 100 else f'{value:.3g} ms'


def failure(error: Exception) -> str:
    """One sentence for the page; the traceback goes to the terminal of the server."""
    logging.getLogger(__name__).error('a model failed', exc_info=error)
    first = (str(error).splitlines() or [''])[0][:200]
    return html.escape(f'The model failed with {type(error).__name__}: {first}. The terminal of the server says more.')


def guard(app: Callable, host: str) -> Callable:
    """An ASGI application that answers requests of this page only.

    A server on the loopback address answers requests by its own names only: by DNS rebinding, a page of another site
    could otherwise ask under the site's name. Requests that a page of another origin has sent are refused, too.

    Args:
        app: The application.
        host: The address that it serves on.
    """
    async def guarded(scope: dict, receive: Callable, send: Callable) -> None:
        if scope['type'] != 'http':
            await app(scope, receive, send)
            return
        headers = {name.decode('latin-1').lower(): value.decode('latin-1') for name, value in scope['headers']}
        asked = headers.get('host', '')
        name = asked.rpartition(':')[0] if asked.rpartition(':')[2].isdigit() else asked
        origin = headers.get('origin')
        if host in LOOPBACK and name.strip('[]') not in LOOPBACK:
            await refuse(send, 'This server answers by the names ' + ', '.join(LOOPBACK) + ' only.')
        elif origin is not None and origin.partition('://')[2] != asked:
            await refuse(send, 'This server answers its own page only.')
        else:
            await app(scope, receive, lambda message: send(with_headers(message)))

    return guarded


async def refuse(send: Callable[[dict], Awaitable[None]], text: str) -> None:
    """Answers with status 403."""
    await send({'type': 'http.response.start', 'status': 403, 'headers': [(b'content-type', b'text/plain')]})
    await send({'type': 'http.response.body', 'body': text.encode()})


def with_headers(message: dict) -> dict:
    """The start of a response with the headers that bind the browser; other messages as they are."""
    if message['type'] != 'http.response.start':
        return message
    added = [(b'content-security-policy', POLICY.encode()), (b'x-content-type-options', b'nosniff'),
             (b'referrer-policy', b'no-referrer')]
    return {**message, 'headers': [*message['headers'], *added]}


def serve(models: Sequence[Model], host: str = '127.0.0.1', port: int = 7860,
          ready: Callable[[str], object] = print) -> None:
    """Serves the page until the process is interrupted. Uploads are deleted at the end.

    Args:
        models: One or two.
        host: The address to serve on. Others than those of ``LOOPBACK`` can be reached from the network.
        port: 0 for any free one.
        ready: Called with the address of the page when it can be opened.

    Raises:
        OSError: The address cannot be served on.
    """
    family = socket.AF_INET6 if ':' in host else socket.AF_INET
    with socket.create_server((host, port), family=family) as listening, tempfile.TemporaryDirectory() as folder:
        os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ANALYTICS_ENABLED='False', HF_HUB_OFFLINE='1')
        import fastapi
        import gradio as gr
        import uvicorn
        port = listening.getsockname()[1]
        fonts = dict(font=['system-ui', 'sans-serif'], font_mono=['ui-monospace', 'monospace'])
        page = build(models)
        # Without this, gradio reads any file that a request names in place of an upload: it checks the paths of pages
        # that were started by launch(), and of none that are mounted.
        if not hasattr(page, 'has_launched'):
            raise RuntimeError(f'gradio {gr.__version__} is not known to refuse files that were not uploaded')
        page.has_launched = True
        app = gr.mount_gradio_app(
            fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None), page, path='/',
            server_name=host, server_port=port, allowed_paths=[], show_error=False, max_file_size=MAX_RECEIVED << 20,
            footer_links=[], run_history=False, ssr_mode=False, enable_monitoring=False, mcp_server=False, pwa=False,
            theme=gr.themes.Default(**fonts), css=CSS)
        server = uvicorn.Server(uvicorn.Config(guard(app, host), log_level='warning', timeout_graceful_shutdown=1))
        shown = f'[{host}]' if ':' in host else host
        ready(f'http://{shown}:{port}')
        server.run(sockets=[listening])
