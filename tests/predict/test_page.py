"""The page that shows two models side by side: its parts, and the page itself in a browser."""
import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from torch import nn

from mmlk.analysis.erf import ErfNetwork, contribution, open_branches
from mmlk.cli import main
from mmlk.engine.network import build_network
from mmlk.predict import page
from mmlk.preprocessors import Normalization

REPO = Path(__file__).resolve().parents[2]
DEMO = REPO / 'configs' / 'demo' / 'upernet_replknet-tiny_ade20k.py'


def photograph(height=48, width=64):
    pixels = np.random.RandomState(0).randint(0, 256, (height // 8, width // 8, 3), np.uint8)
    return np.array(Image.fromarray(pixels).resize((width, height), Image.BICUBIC))


# What is uploaded

def test_an_upload_is_read_as_rgb_and_rotated(tmp_path):
    image = photograph()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees, clockwise
    Image.fromarray(image).save(tmp_path / 'rotated.png', exif=exif)
    Image.fromarray(image).save(tmp_path / 'plain.png')
    Image.fromarray(image[..., 0]).save(tmp_path / 'grey.png')
    assert np.array_equal(page.read_upload(str(tmp_path / 'plain.png')), image)
    assert np.array_equal(page.read_upload(str(tmp_path / 'grey.png')), np.repeat(image[..., :1], 3, 2))
    image = np.repeat(np.repeat(image, 8, 0), 8, 1)
    Image.fromarray(image).save(tmp_path / 'rotated.jpg', exif=exif, quality=100, subsampling=0)
    read = page.read_upload(str(tmp_path / 'rotated.jpg')).astype(int)
    assert read.shape == (512, 384, 3) and np.abs(read - np.rot90(image, -1)).mean() < 2


def uploads(folder):
    """Files that cannot be shown, and what is said of them."""
    image = Image.fromarray(photograph(400, 400))
    for name in ('program.png', 'cut.png', 'cut.jpg'):
        image.save(folder / name, 'EPS' if name == 'program.png' else None)
    for name in ('cut.png', 'cut.jpg'):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:len(whole) // 2])
    (folder / 'text.png').write_text('no image')
    (folder / 'empty.png').write_bytes(b'')
    Image.new('1', (9000, 9000)).save(folder / 'many.png')
    Image.new('1', (20000, 20000)).save(folder / 'bomb.png')
    with open(folder / 'large.png', 'wb') as file:
        file.truncate(65 << 20)
    formats = 'The file cannot be read as an image. Upload one of these formats: BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP.'
    damaged = 'The image is damaged or incomplete. Save it again and upload the new file.'
    return {'text.png': formats, 'empty.png': formats, 'program.png': formats, 'cut.png': damaged, 'cut.jpg': damaged,
            'many.png': 'The image has 9000 x 9000 pixels, which is too many. At most 64 million can be shown: make it '
            'smaller.', 'bomb.png': 'The image has too many pixels. At most 64 million can be shown.',
            'large.png': 'The file has 65 MB, and at most 64 MB can be shown: make the image smaller.'}


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_an_upload_that_cannot_be_shown_has_one_message(tmp_path):
    for name, message in uploads(tmp_path).items():
        with pytest.raises(page.UploadError) as refused:
            page.read_upload(str(tmp_path / name))
        assert str(refused.value) == message, name


def test_only_large_images_are_scaled():
    image = photograph()
    assert page.at_most(image, 64) is image
    assert page.at_most(image, 32).shape == (24, 32, 3)
    assert page.at_most(np.zeros((1, 4096, 3), np.uint8), 64).shape == (1, 64, 3)


# The receptive field

class Patches(nn.Module):
    """A map whose positions each see one patch of 32 x 32 pixels, and an earlier one that is not to be shown."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 1, 32, 32)
        nn.init.ones_(self.conv.weight)
        nn.init.constant_(self.conv.bias, 1e5)

    def forward(self, x):
        return x, self.conv(x)


@pytest.mark.parametrize('size, given', [((64, 96), (96, 64)), ((512, 1024), (512, 256)), ((70, 90), (96, 64)),
                                         ((5, 3), (32, 32))])
def test_the_field_is_where_the_pixel_is(size, given):
    network, image = ErfNetwork(Patches()), photograph(512, 1024)[:size[0], :size[1]]
    pixel = size[0] // 3, size[1] * 5 // 6
    field = page.receptive_field(network, image, pixel)
    assert field.size == given and field.picture.shape == image.shape
    scale = [length / new for length, new in zip(size, given[::-1])]
    patch = [(int((place + 0.5) / step) // 32 * 32 * step, step) for place, step in zip(pixel, scale)]
    inside = [slice(int(np.ceil(start + step)), int(start + 31 * step)) for start, step in patch]  # less the edge
    grey = np.array(Image.fromarray(image).convert('L'))[..., None] * 0.5
    coloured = np.abs(field.picture - grey).max(2) > 1.5
    if min(size) > 32:
        coloured_by_ring = np.hypot(np.arange(size[0])[:, None] - pixel[0], np.arange(size[1]) - pixel[1]) < max(
            8, max(size) / 40)
        assert coloured[inside[0], inside[1]].all()
        outside = np.ones(size, bool)
        outside[tuple(slice(max(0, int(start - step)), int(start + 33 * step) + 1) for start, step in patch)] = False
        assert not (coloured & outside & ~coloured_by_ring).any()
    assert 0 < field.side <= 64 * max(scale)


def test_the_scores_are_those_of_the_analysis_and_the_square_holds_half(monkeypatch):
    cfg = Config.fromfile(DEMO)
    model = build_network(cfg).eval()
    open_branches(model)
    image, pixel = photograph(96, 128), (20, 100)
    drawn = []
    monkeypatch.setattr(page, 'draw_field', lambda image, scores, pixel: drawn.append(scores))
    field = page.receptive_field(page.network_of(model), image, pixel)
    mean, std = (values[:, None, None] for values in map(torch.tensor, (cfg.model.data_preprocessor.mean,
                                                                        cfg.model.data_preprocessor.std)))
    pixels = (torch.from_numpy(image).permute(2, 0, 1) - mean) / std
    expected = contribution(lambda x: model.backbone(x)[-1], pixels[None], pixel)
    assert np.linalg.norm(drawn[0] - expected) < 1e-4 * np.linalg.norm(expected)
    rows, columns = np.indices(expected.shape)
    shares = [expected[np.maximum(abs(rows - 20), abs(columns - 100)) <= reach].sum() / expected.sum()
              for reach in (field.side // 2 - 1, field.side // 2)]
    assert shares[0] < 0.5 <= shares[1]


def test_a_field_that_cannot_be_shown_says_why():
    class Dead(Patches):
        def forward(self, x):
            return [-self.conv(x).abs()]

    class Fixed(Patches):
        def forward(self, x):
            return [self.conv(x.reshape(1, 3, 224, 224))]

    with pytest.raises(ValueError, match='nothing contributes to the last map here'):
        page.receptive_field(ErfNetwork(Dead()), photograph(), (0, 0))
    with pytest.raises(ValueError, match='the backbone gives no field of an image of 64 x 64 pixels: .*invalid for'):
        page.receptive_field(ErfNetwork(Fixed()), photograph(), (0, 0))


def test_the_input_is_normalised_as_the_model_was_trained():
    model = SimpleNamespace(backbone=Patches(), data_preprocessor=SimpleNamespace(
        mean=torch.tensor([1.0, 2.0, 3.0]), std=torch.tensor([4.0, 5.0, 6.0]), _channel_conversion=False))
    assert page.network_of(model).normalization == Normalization((1, 2, 3), (4, 5, 6), bgr=True)


# What is said

def test_a_legend_names_what_was_found():
    labels = np.zeros((10, 200), np.uint8)
    labels[0, :100], labels[9, 0], labels[9, 1:3] = 2, 1, 255
    prediction = SimpleNamespace(task='segmentation', labels=labels, classes=('sky & <b>', 'disk', 'ring'),
                                 palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    said = page.legend(prediction)
    texts = ['rgb(1, 2, 3)"></span>sky &amp; &lt;b&gt; 94.8 %<', 'rgb(7, 8, 9)"></span>ring 5.0 %<',
             'rgb(128, 128, 128)"></span>label 255 0.1 %<', 'rgb(4, 5, 6)"></span>disk &lt; 0.1 %<']
    places = [said.index(text) for text in texts]
    assert places == sorted(places) and said.count('swatch') == 4

    found = SimpleNamespace(task='detection', class_ids=np.array([2, 0, 2]), scores=np.array([0.91, 0.8, 0.35]),
                            classes=prediction.classes, palette=prediction.palette)
    assert 'ring 2 (best score 0.91)' in page.legend(found) and '1 (best score 0.80)' in page.legend(found)
    found.class_ids, found.scores = found.class_ids[:0], found.scores[:0]
    assert page.legend(found) == 'Nothing was found.'

    many = SimpleNamespace(task='segmentation', labels=np.arange(20)[None], classes=[f'c{i}' for i in range(20)],
                           palette=[(0, 0, 0)] * 20)
    assert page.legend(many).count('swatch') == 12 and page.legend(many).endswith(' and 8 more')


def test_models_take_turns_after_a_warm_up():
    calls = []
    models = [page.Model(name, lambda image, name=name: calls.append((name, image))) for name in 'ab']
    seconds = page.latencies(models, 'image')
    assert [len(values) for values in seconds] == [5, 5]
    names = ''.join(name for name, image in calls)
    assert names.startswith('aabb') and {image for name, image in calls} == {'image'}
    assert names[4:6] == 'ab' and names[6:] == 'aabb' * 5  # each timed call after one that is not


def test_times_are_readable():
    assert [page.milliseconds(seconds) for seconds in (0.00825, 0.0426, 0.5, 1.2404)] == [
        '8.25 ms', '42.6 ms', '500 ms', '1,240 ms']


# Who may ask

def ask(serves, **headers):
    """The status of the server's answer when it serves on that address, and the headers."""
    sent = []

    async def app(scope, receive, send):
        await send({'type': 'http.response.start', 'status': 200, 'headers': []})
        await send({'type': 'http.response.body', 'body': b'page'})

    async def send(message):
        sent.append(message)

    scope = dict(type='http', headers=[(name.encode(), value.encode()) for name, value in headers.items()])
    asyncio.run(page.guard(app, serves)(scope, None, send))
    return sent[0]['status'], dict(sent[0]['headers'])


@pytest.mark.parametrize('serves, asked, origin, status', [
    ('127.0.0.1', '127.0.0.1:7860', None, 200), ('127.0.0.1', 'localhost:7860', 'http://localhost:7860', 200),
    ('::1', '[::1]:7860', 'http://[::1]:7860', 200), ('127.0.0.1', 'localhost', None, 200),
    ('127.0.0.1', 'site.example:7860', None, 403), ('127.0.0.1', 'site.example:7860', 'http://site.example:7860', 403),
    ('127.0.0.1', '', None, 403), ('127.0.0.1', 'localhost.site.example', None, 403),
    ('127.0.0.1', '127.0.0.1:7860', 'http://site.example', 403), ('127.0.0.1', '127.0.0.1:7860', 'null', 403),
    ('127.0.0.1', '127.0.0.1:7860', 'http://127.0.0.1:8000', 403),
    ('0.0.0.0', 'machine.example:7860', 'http://machine.example:7860', 200),
    ('0.0.0.0', 'machine.example:7860', 'http://site.example', 403),
])
def test_only_the_page_itself_may_ask(serves, asked, origin, status):
    answer, headers = ask(serves, host=asked, **({} if origin is None else dict(origin=origin)))
    assert answer == status
    if status == 200:
        assert headers[b'content-security-policy'].startswith(b"default-src 'self' data: blob:")


# The command

@pytest.mark.parametrize('arguments, message', [
    (['{config}'], 'a model is a config (.py) and its checkpoint, or an exported file alone; got {config}'),
    (['model.onnx', 'x.pth'], 'a model is a config (.py) and its checkpoint, or an exported file alone; got model.onnx '
     'x.pth'),
    (['{config}', 'a.pth', 'b.pth'], 'a model is a config (.py) and its checkpoint, or an exported file alone; got '
     '{config} a.pth b.pth'),
    (['none.py', 'a.pth'], 'no file none.py'), (['none.onnx'], 'no file none.onnx'),
    (['{config}', 'a.pth', '--against', 'none.onnx'], 'no file none.onnx'),
    (['{config}', 'a.pth', '--port', '70000'], '--port must be from 0 to 65535, got 70000'),
    (['{config}', 'a.pth'], 'gradio is not installed: pip install "mmlk[demo]"'),
])
def test_wrong_arguments_end_in_one_message(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr('mmlk.cli.demo.find_spec', lambda name: None)
    with pytest.raises(SystemExit) as ended:
        main(['demo', *(text.format(config=DEMO) for text in arguments)])
    assert ended.value.code == 2 and capsys.readouterr().err == f'error: {message.format(config=DEMO)}\n'


def test_models_of_one_name_are_told_apart():
    from mmlk.cli.demo import names_of
    assert names_of([['a/one.py', 'x.pth'], ['b/two.onnx']]) == ['one', 'two']
    assert names_of([['a/one.py', 'a/x.pth'], ['b/one.py', 'y.pth']]) == ['one x', 'one y']


# The page, in a browser

@pytest.fixture(scope='module')
def served(tmp_path_factory):
    """The address of the page of two small models with random weights, served by the tool as a user starts it."""
    if find_spec('gradio') is None:
        pytest.skip('gradio is not installed: pip install "mmlk[demo]"')
    folder = tmp_path_factory.mktemp('demo')
    small = folder / 'small_kernels.py'
    small.write_text(f"_base_ = ['{DEMO}']\nmodel = dict(backbone=dict(arch=dict(large_kernel_sizes=[3, 3, 3, 3], "
                     'small_kernel=None)))\n')
    models = []
    for config in (DEMO, small):
        torch.manual_seed(0)
        model = build_network(Config.fromfile(config))
        open_branches(model)
        models.append([str(config), str(folder / f'{config.stem}.pth')])
        torch.save(dict(state_dict=model.state_dict(), meta=dict()), models[-1][1])
    (folder / 'tmp').mkdir()
    command = [sys.executable, str(REPO / 'tools' / 'demo.py'), *models[0], '--against', *models[1], '--port', '0',
               '--device', 'cpu']
    environment = dict(os.environ, OMP_NUM_THREADS='1', TMPDIR=str(folder / 'tmp'), PYTHONPATH=str(REPO))
    with open(folder / 'errors', 'w+') as errors, subprocess.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=errors, text=True) as server:
        try:
            # a toolbox may print lines of its own before
            line = next((line for line in server.stdout if line.endswith(' shows the page; Ctrl+C ends it\n')), None)
            assert line, (folder / 'errors').read_text()[-2000:]
            yield line.split()[0]
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
    assert server.returncode == 0
    assert not list((folder / 'tmp').glob('*/')), 'uploads are left behind'
    assert 'a model failed' not in (folder / 'errors').read_text()


def answer(url, data=None, **headers):
    """Status and body of a request."""
    request = urllib.request.Request(url, data and json.dumps(data).encode(), headers)
    if data:
        request.add_header('Content-Type', 'application/json')
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_only_uploads_are_served(served):
    secret = 'root:x:0:0'  # of /etc/passwd
    assert served.startswith('http://127.0.0.1:')
    for path in ('/etc/passwd', '../../../../etc/passwd', __file__, '/proc/self/environ', 'small_kernels.py'):
        for route in ('/gradio_api/file=', '/gradio_api/file/', '/file=', '/static/', '/assets/', '/svelte/'):
            status, body = answer(f'{served}{route}{path}')
            assert status in (403, 404) and secret not in body, (route, path, status)
    assert answer(f'{served}/gradio_api/proxy=http://127.0.0.1:1/')[0] in (400, 403)
    # an image of the server in place of an upload, or its address: read by a page that leaves the check to gradio
    image = str(REPO / 'docs' / 'figures' / 'erf.webp')
    for index, path in enumerate((image, f'{served}/favicon.ico', 'https://site.example/a.png', '/etc/passwd', '/')):
        value = dict(path=path, url=f'{served}/favicon.ico', meta=dict(_type='gradio.FileData'))
        asked = dict(data=[value], fn_index=0, session_hash=f's{index}')
        assert answer(f'{served}/gradio_api/queue/join', asked)[0] == 200
        said = answer(f'{served}/gradio_api/queue/data?session_hash=s{index}')[1]
        assert re.search('"success": ?false', said) and 'role=' not in said, (path, said)  # it was not even opened
        # gradio would ask the host of an address for the file, and fail only because this one does not exist
        assert ('This page reads uploaded files only.' in said) is ('://' in path), (path, said)
    assert json.loads(answer(f'{served}/gradio_api/info')[1]) == dict(named_endpoints={}, unnamed_endpoints={})
    assert answer(f'{served}/config', Host='site.example')[0] == 403
    assert answer(f'{served}/config', Origin='http://site.example')[0] == 403
    assert answer(f'{served}/config')[0] == 200


def test_two_models_are_compared_in_a_browser(served, browser, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    def one(selector):
        found = browser.find_elements('css selector', selector)
        return found[0] if found else None

    def text(selector):
        return one(selector).text if one(selector) else ''

    def wait(condition, seconds=60):
        return WebDriverWait(browser, seconds, 0.1).until(lambda _: condition())

    def source(selector):
        image = wait(lambda: one(f'{selector} img'))
        wait(lambda: int(image.get_property('naturalWidth')) > 0)
        return image.get_attribute('src')

    def click(index, right, down):
        """Clicks the middle of a pixel of a prediction, whose image is 512 x 384."""
        image = one(f'#overlay-{index} img')
        browser.execute_script('arguments[0].scrollIntoView({block: "center"})', image)
        width, height = image.size['width'], image.size['height']
        ActionChains(browser).move_to_element_with_offset(
            image, round((right + 0.5) * width / 512 - width / 2), round((down + 0.5) * height / 384 - height / 2)
        ).click().perform()
        near = re.compile(r'pixel at \((\d+), (\d+)\)')

        def places():
            said = [near.search(text(f'#reach-{number}')) for number in (0, 1)]
            return [tuple(map(int, match.groups())) for match in said if match]

        # a pixel of the image is about one of the screen
        wait(lambda: len(places()) == 2 and all(abs(x - right) <= 2 and abs(y - down) <= 2 for x, y in places()), 30)
        return [source(f'#field-{index}') for index in (0, 1)]

    Image.fromarray(photograph(384, 512)).save(tmp_path / 'photo.png')
    (tmp_path / 'notes.txt').write_text('no image')
    browser.get(served)
    upload = wait(lambda: one('#upload input[type=file]'))
    upload.send_keys(str(tmp_path / 'notes.txt'))
    wait(lambda: 'The file cannot be read as an image.' in text('#message [role=alert]'))
    assert one('#overlay-0 img') is None

    browser.get(served)
    wait(lambda: one('#upload input[type=file]')).send_keys(str(tmp_path / 'photo.png'))
    wait(lambda: 'Latency' in text('#latency-0') and 'Latency' in text('#latency-1'))
    assert text('#message') == '512 x 384 pixels. Click a pixel of a prediction to see its receptive field.'
    assert [heading.text for heading in browser.find_elements('css selector', 'h2')] == [DEMO.stem, 'small_kernels']
    for index in (0, 1):
        assert source(f'#overlay-{index}').startswith(served) and '%' in text(f'#legend-{index}')
        assert re.fullmatch(r'Latency: [\d.,]+ ms \(median of [345] calls, CPU, 1 thread\)', text(f'#latency-{index}'))
    left, right = (one(f'#overlay-{index} img').rect for index in (0, 1))
    assert left['width'] == right['width'] and left['y'] == right['y'] and left['x'] + left['width'] < right['x']

    first = click(0, 100, 90)
    squares = [int(re.search(r'square of (\d+) x', text(f'#reach-{index}'))[1]) for index in (0, 1)]
    assert squares[0] > squares[1]  # 31x31 kernels see more than 3x3
    second = click(1, 400, 280)
    assert len({*first, *second}) == 4
    browser.save_screenshot(str(tmp_path / 'page.png'))

    browser.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', dict(width=400, height=800, deviceScaleFactor=1,
                                                                       mobile=False))
    upper, lower = (one(f'#overlay-{index} img').rect for index in (0, 1))
    assert upper['x'] == lower['x'] and upper['y'] + upper['height'] < lower['y'] and upper['width'] > 300
    assert browser.execute_script('return document.documentElement.scrollWidth') <= 400

    messages = [json.loads(entry['message'])['message'] for entry in browser.get_log('performance')]
    asked = [message['params']['request']['url'] for message in messages
             if message['method'] == 'Network.requestWillBeSent'
             and message['params']['documentURL'].startswith(served)]  # not Chromium's own first page
    assert asked and all(url.startswith((served, 'data:', 'blob:')) for url in asked), asked
