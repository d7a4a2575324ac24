"""Image files of any content: the right pixels, or one error that names the file."""
import io

import mmcv
import numpy as np
import pytest
from hypothesis import strategies as st
from mmcv.transforms import TRANSFORMS
from PIL import Image

from mmlk.datasets.audit import Loaders, _check_sample
from mmlk.datasets.images import open_image, read_image
from mmlk.engine.loading import DataError, LoadImageFromFile, guard
from tests.fuzz.cases import cases

# Formats by the modes that they hold; of the lossy ones pixels are compared loosely.
MODES = {'png': ['1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'I;16'], 'jpg': ['L', 'RGB', 'CMYK'], 'bmp': ['L', 'RGB'],
         'tif': ['L', 'RGB', 'I;16']}


def smooth(height: int, width: int) -> np.ndarray:
    """A picture without edges, which a lossy format keeps, (height, width, 3)."""
    rows, columns = np.linspace(0, 1, height)[:, None], np.linspace(0, 1, width)[None]
    return (255 * np.stack([rows + 0 * columns, columns + 0 * rows, (rows + columns) / 2], 2)).astype(np.uint8)


def encoded(mode: str, kind: str, picture: np.ndarray) -> tuple:
    """A file of that mode, and the 8-bit RGB that it stands for."""
    colour = Image.fromarray(picture)
    if mode == 'I;16':
        grey = np.asarray(colour.convert('L'))
        image, meant = Image.fromarray(grey.astype(np.uint16) * 257), np.repeat(grey[..., None], 3, 2)
    else:
        image = colour.convert('L').convert('LA') if mode == 'LA' else colour.convert(mode)
        if mode == 'RGBA':
            image.putalpha(Image.fromarray(picture[..., 0]))
        meant = np.asarray((image.convert('L') if mode == 'LA' else image).convert('RGB'))
    stream = io.BytesIO()
    image.save(stream, dict(jpg='jpeg', tif='tiff').get(kind, kind), **(dict(quality=95) if kind == 'jpg' else {}))
    return stream.getvalue(), meant


def load(path) -> np.ndarray:
    """As a training pipeline does, in RGB."""
    return LoadImageFromFile().transform(dict(img_path=str(path)))['img'][..., ::-1]


@cases(60, data=st.data(), kind=st.sampled_from(sorted(MODES)), height=st.integers(1, 40), width=st.integers(1, 40))
def test_every_mode_gives_its_colours(tmp_path, data, kind, height, width):
    """Pillow by itself would make 16 bits white; and the two readers agree."""
    mode = data.draw(st.sampled_from(MODES[kind]))
    content, meant = encoded(mode, kind, smooth(height, width))
    path = tmp_path / f'x.{kind}'
    path.write_bytes(content)
    # inks are no colours: two decoders differ by what they take them for
    allowed = dict(CMYK=40).get(mode, 12 if kind == 'jpg' else 1)
    for read in (lambda p: np.asarray(open_image(p)), load):
        assert np.abs(read(path).astype(int) - meant).mean() <= allowed, (mode, kind)


@pytest.mark.parametrize('size', [(3, 20_000), (20_000, 3), (1, 1)])
def test_sizes(tmp_path, size):
    content, meant = encoded('RGB', 'png', smooth(*size))
    (tmp_path / 'x.png').write_bytes(content)
    assert np.array_equal(open_image(tmp_path / 'x.png'), meant) and np.array_equal(load(tmp_path / 'x.png'), meant)
    assert read_image(tmp_path / 'x.png', 16).shape == (16, 16, 3)


@cases(80, kind=st.sampled_from(sorted(MODES)), step=st.sampled_from(['cut', 'flip', 'random', 'empty', 'text']),
       place=st.floats(0, 0.99), junk=st.binary(min_size=1, max_size=40))
def test_broken_files(tmp_path, kind, step, place, junk):
    """Each reader names the file, or gives what it gives of the whole file: no part of a picture passes for all."""
    content, meant = encoded('RGB', kind, smooth(33, 47))
    at = int(place * len(content))
    broken = {'cut': content[:at], 'flip': content[:at] + junk + content[at + len(junk):], 'random': junk, 'empty': b'',
              'text': b'<html>not found</html>'}[step]
    path = tmp_path / f'x.{kind}'
    path.write_bytes(broken)
    for read, error in ((lambda p: np.asarray(open_image(p)), ValueError), (load, DataError)):
        try:
            picture = read(path)
        except error as refusal:
            assert str(path) in str(refusal) and '\n' not in str(refusal)
        else:
            (tmp_path / f'whole.{kind}').write_bytes(content)
            assert step == 'flip' or np.array_equal(picture, read(tmp_path / f'whole.{kind}'))
    found, _, _ = _check_sample(dict(img_path=str(path)), Loaders.of({}, None), {}, np.arange(256), 255)
    assert step == 'flip' or [kind for kind, _ in found] in ([], ['unreadable image'])


@cases(40, kind=st.sampled_from(['jpeg', 'progressive jpeg', 'png']), place=st.floats(0.5, 0.98),
       size=st.integers(32, 96), more=st.binary(max_size=9))
def test_no_part_of_a_picture_passes_for_all(tmp_path, monkeypatch, kind, place, size, more):
    """Whatever the decoder makes of a file that ends within its pixels: OpenCV's gives none or, in some versions, half
    a picture. Within the file is the end of another, as of a preview."""
    picture = np.random.RandomState(size).randint(0, 256, (size, size, 3)).astype(np.uint8)
    stream, path = io.BytesIO(), tmp_path / 'x.jpg'
    options = dict(comment=b'\xff\xd9', progressive=' ' in kind) if 'jpeg' in kind else {}
    Image.fromarray(picture).save(stream, kind.split()[-1], **options)
    content = stream.getvalue()
    monkeypatch.setattr(mmcv, 'imfrombytes', lambda *args, **kwargs: picture)
    for whole in (content, content + more):
        path.write_bytes(whole)
        assert load(path).shape == (size, size, 3)
    path.write_bytes(content[:int(place * len(content))])
    with pytest.raises(DataError, match='x.jpg is truncated or damaged'):
        load(path)
    found, _, _ = _check_sample(dict(img_path=str(path)), Loaders.of({}, None), {}, np.arange(256), 255)
    assert [kind for kind, _ in found] == ['unreadable image']


def test_numbers_of_32_bits_are_no_picture(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / 'x.tif')
    with pytest.raises(ValueError, match='x.tif .*32 bits'):
        open_image(tmp_path / 'x.tif')


@cases(30, mode=st.sampled_from(['L', 'P', 'RGB', 'RGBA', 'I;16']), height=st.integers(1, 9), width=st.integers(1, 9))
def test_label_maps_by_their_header(tmp_path, mode, height, width):
    Image.fromarray(smooth(5, 7)).save(tmp_path / 'x.png')
    content, _ = encoded(mode, 'png', smooth(height, width))
    (tmp_path / 'labels.png').write_bytes(content)
    sample = dict(img_path=str(tmp_path / 'x.png'), seg_map_path=str(tmp_path / 'labels.png'), seg_fields=[])
    if (height, width) == (5, 7) and (mode != 'I;16' or np.asarray(Image.open(tmp_path / 'labels.png')).max() < 256):
        assert LoadImageFromFile().transform(sample)['img_shape'] == (5, 7)
        return
    with pytest.raises(DataError, match='labels.png (is|holds)'):
        LoadImageFromFile().transform(sample)


def test_pipelines_of_the_tools_have_it():
    before = TRANSFORMS.get('LoadImageFromFile')
    try:
        guard()
        assert type(TRANSFORMS.build(dict(type='LoadImageFromFile'))) is LoadImageFromFile
    finally:
        TRANSFORMS.register_module(name='LoadImageFromFile', module=before, force=True)
