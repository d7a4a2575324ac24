"""Weights files of any content: one WeightsError that names the file or the tensor, or the very weights."""
import io
import math
import os
import re
import subprocess
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from mmengine.logging import HistoryBuffer
from torch import nn

from mmlk.engine import checkpoints
from mmlk.weights import WeightsError, load
from mmlk.weights.read import read_weights
from tests.fuzz.cases import cases
from tests.utils import fill


def module(seed: int) -> nn.Module:
    return fill(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), seed)


DONOR = module(1).state_dict()


def written(kind: str) -> bytes:
    if kind == 'safetensors':
        from safetensors.torch import save
        return save(DONOR)
    stream = io.BytesIO()
    torch.save(dict(state_dict=DONOR, meta=dict(epoch=3)), stream, _use_new_zipfile_serialization=kind == 'zip')
    return stream.getvalue()


FILES = {kind: written(kind) for kind in ('zip', 'legacy', 'safetensors')}


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def refused(path, target) -> bool:
    """Whether it was refused, in which case the error names the file and nothing was touched."""
    before = {key: value.clone() for key, value in target.state_dict().items()}
    try:
        load(target, path)
    except WeightsError as error:
        assert str(path) in str(error)
        assert equal(target.state_dict(), before)
        return True
    return False


@cases(80, content=st.tuples(
    st.sampled_from([b'', b'PK\x03\x04', b'PK\x05\x06', b'\x80\x02', b'\x80\x02}q\x00', b'\x08\0\0\0\0\0\0\0{',
                     b'\x1f\x8b']),
    st.binary(max_size=300)))
def test_any_bytes(tmp_path, content):
    path = tmp_path / 'w.pth'
    path.write_bytes(b''.join(content))
    assert refused(path, module(2))


damage = st.lists(st.tuples(st.sampled_from(['flip', 'cut', 'insert', 'end', 'repeat']), st.floats(0, 0.999),
                            st.integers(1, 64)), min_size=1, max_size=3)


@cases(150, kind=st.sampled_from(sorted(FILES)), steps=damage)
def test_damaged_files(tmp_path, kind, steps):
    """The bytes of a zip have checksums: it is refused, or gives the very weights. The other formats have none, so that
    a changed number cannot be told, but only finite numbers pass, and all of them are there."""
    data = bytearray(FILES[kind])
    for step, place, count in steps:
        at = int(place * len(data))
        if step == 'flip' and data:
            data[at] ^= count
        elif step == 'cut':
            del data[at:at + count]
        elif step == 'insert':
            data[at:at] = bytes(count)
        elif step == 'end':
            del data[at:]
        else:
            data[at:at] = data[at:at + count]
    path = tmp_path / 'w.pth'
    path.write_bytes(data)
    target = module(2)
    if not refused(path, target):
        state = target.state_dict()
        assert equal(state, DONOR) if kind == 'zip' else all(torch.isfinite(value).all() for value in state.values())


class Call:
    """What a pickle calls when it is read."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def calls(mark: str) -> dict:
    return {
        'os.system': (os.system, f'touch {mark}'), 'eval': (eval, f'open({mark!r}, "w")'),
        'exec': (exec, f'open({mark!r}, "w")'), 'open': (open, mark, 'w'), 'Popen': (subprocess.Popen, ['touch', mark]),
        'mkdir': (os.mkdir, mark), 'import': (__import__, 'antigravity'),
        'load': (torch.load, mark), 'hub': (torch.hub.load, mark, mark), 'bytearray': (bytearray, 10**11),
    }


@cases(60, name=st.sampled_from(sorted(calls(''))), legacy=st.booleans(), depth=st.integers(0, 3),
       place=st.sampled_from(['meta', 'state_dict', 'model', 'args']), weights=st.booleans())
def test_pickles_that_call(tmp_path, name, legacy, depth, place, weights):
    mark = tmp_path / 'ran'
    payload = Call(*calls(str(mark))[name])
    for level in range(depth):
        payload = [payload] if level % 2 else dict(inner=payload)
    content = dict(state_dict=dict(DONOR)) if weights else {}
    content[f'{place}.extra'] = payload
    path = tmp_path / 'w.pth'
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    assert refused(path, module(2)) and not mark.exists()


class Made:
    """A pickle's words for an object: what to call with what, and the state to give it."""

    def __init__(self, *made):
        self.made = made

    def __reduce__(self):
        return self.made


ARRAY, SCALAR = np.zeros(1).__reduce__()[0], np.float64(1).__reduce__()[0]
CODES = ['f8', 'f4', 'i8', 'i2', 'u1', 'b1']
FORGED_CODES = ['O', 'O8', 'V8', 'S5', 'U3', 'M8[s]', 'm8', 'c16', 'i8,f4', 'no', '', 8, None, ['f8'],
                [('a', 'O')], dict(a=1)]
LAYOUT = (3, '<', None, None, None, -1, -1, 0)
FORGED_LAYOUTS = [
    (3, '|', None, ('a', ), {'a': (LAYOUT, 0)}, 8, 1, 16), (3, '|', (np.dtype('f8'), (10**9, )), None, None, 8, 1, 0),
    (3, '<', None, ('a', 'b'), {'a': 1}, -1, -1, 63), (3, '<', None, None, None, 10**9, 1, 0), (4, *LAYOUT[1:], {}),
    (3, '<', None, None, None, -1, -1, 63), (3, 'x', *LAYOUT[2:]), (3, 7, *LAYOUT[2:]), LAYOUT[:3], {}, [], 3, 'text']
SHAPES = [(), (0, ), (3, ), (2, 3), (1, 0, 2)]
FORGED_SHAPES = [(-1, ), (2**40, 2**40), (2**62, 4), (3, 2.0), (True, 3), [3], 3, None, 'ab', (1, ) * 70, ((3, ), )]


def logs(history: object, counts: object, **more) -> dict:
    """A message hub with one log of mmengine's."""
    buffer = HistoryBuffer()
    buffer.__dict__.update(_log_history=history, _count_history=counts, **more)
    return dict(log_scalars=dict(loss=buffer), runtime_info={}, resumed_keys={})


@cases(300, data=st.data(), forged=st.sampled_from(['', 'code', 'layout', 'shape', 'size', 'state', 'kind']),
       place=st.sampled_from(['array', 'number', 'log']), order=st.sampled_from('<>'), legacy=st.booleans())
def test_forged_arrays(tmp_path, data, forged, place, order, legacy):
    """numpy's own unpickling takes a dtype's layout and an array's size from the file, and ends the interpreter where
    they cannot be. Here it is the very array, or one error."""
    code = data.draw(st.sampled_from(FORGED_CODES if forged == 'code' else CODES))
    layout = data.draw(st.sampled_from(FORGED_LAYOUTS)) if forged == 'layout' else (3, order, *LAYOUT[2:])
    shape = data.draw(st.sampled_from(FORGED_SHAPES if forged == 'shape' else SHAPES))
    shape = {'number': (), 'log': shape if forged == 'shape' else (5, )}.get(place, shape)
    forged = '' if (forged, place) == ('shape', 'number') else forged
    sound = forged not in ('code', 'shape')
    length = math.prod(shape) * np.dtype(code).itemsize if sound else 24
    extra = data.draw(st.sampled_from([-1, 1, 8, 10**6])) if forged == 'size' else 0
    content = bytes(index % 100 for index in range(max(0, length + extra)))
    forged = '' if len(content) == length and forged == 'size' else forged
    dtype = Made(np.dtype, (code, False, True), layout)
    if forged == 'kind':
        dtype = data.draw(st.sampled_from([7, 'f8', (1, 2), None, slice(1)]))
    state = (1, shape, dtype, False, content)
    if forged == 'state':
        wrong = [state[:3], [*state], dict(a=1), 3, (*state, 1), (1, shape, dtype, False, [1.0, 2.0]),
                 (1, shape, dtype, False, 'text')]
        state = data.draw(st.sampled_from(wrong))
    if place == 'number':
        last = state[4] if isinstance(state, tuple) and len(state) > 4 else 'text'
        forged = '' if forged == 'state' and isinstance(last, bytes) else forged
        value = Made(SCALAR, (dtype, last))
    else:
        value = Made(ARRAY, (np.ndarray, (0, ), b'b'), state)
    path = tmp_path / 'c.pth'
    torch.save(dict(message_hub=logs(value, np.ones(5)) if place == 'log' else dict(x=value)), path,
               _use_new_zipfile_serialization=not legacy)
    read_weights(path)  # with nothing built
    if forged:
        with pytest.raises(WeightsError, match=re.escape(str(path))) as error:
            checkpoints.load_checkpoint(str(path))
        assert len(str(error.value)) < 1000
        return
    got = checkpoints.load_checkpoint(str(path))
    got = got['message_hub']['log_scalars']['loss'].data[0] if place == 'log' else got['message_hub']['x']
    expected = np.frombuffer(content, np.dtype(code).newbyteorder(order)).reshape(shape)
    assert got.dtype.newbyteorder('=') == np.dtype(code) and got.shape == shape
    assert np.array_equal(got, expected, equal_nan=True)


@pytest.mark.parametrize('history, counts, more', [
    (np.ones(3), np.ones(2), {}), (np.ones((2, 2)), np.ones((2, 2)), {}), ([1.0], [1], {}), ('a', 'b', {}),
    ([1.0], np.ones(1), {}), (np.ones(1), [1], {}), (np.ones(1), 1, {}),
    (np.ones(3), np.ones(3), dict(max_length=0)), (np.ones(3), np.ones(3), dict(max_length='9'))])
def test_forged_logs(tmp_path, history, counts, more):
    torch.save(dict(message_hub=logs(history, counts, **more)), tmp_path / 'c.pth')
    with pytest.raises(WeightsError, match="a log of mmengine's with the state"):
        checkpoints.load_checkpoint(str(tmp_path / 'c.pth'))


def test_logs_share_no_methods_of_a_file(tmp_path):
    buffer = HistoryBuffer([1.0], [1])
    buffer._statistics_methods = dict(mean=HistoryBuffer.max, extra='text')
    torch.save(dict(x=buffer), tmp_path / 'c.pth')
    before = dict(HistoryBuffer._statistics_methods)
    got = checkpoints.load_checkpoint(str(tmp_path / 'c.pth'))['x']
    assert HistoryBuffer._statistics_methods == before and got.statistics('mean') == 1.0
    assert not {'extra', 'update'} & set(vars(got))


def strange(kind: str, value: torch.Tensor) -> torch.Tensor:
    """A tensor, of the shape of ``value`` as far as may be, that must not be taken for it."""
    return {
        'nan': lambda: value.clone().index_fill_(0, torch.tensor([0]), float('nan')),
        'inf': lambda: value.clone().index_fill_(0, torch.tensor([1]), float('-inf')),
        'overflow': lambda: value.double() + 1e300,
        'int': lambda: value.to(torch.int64), 'uint8': lambda: value.to(torch.uint8), 'bool': lambda: value > 0,
        'complex': lambda: value.to(torch.complex64), 'sparse': lambda: value.to_sparse(),
        'quantised': lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        'meta': lambda: value.to('meta'), 'nested': lambda: torch.nested.nested_tensor([value, value[:1]]),
        'shape': lambda: value[:1], 'scalar': lambda: value.sum(),
        'repeated': lambda: torch.zeros(1).expand(10**6, 10**6),
        'none': lambda: None, 'list': lambda: value.tolist(), 'numpy': lambda: value.numpy(),
    }[kind]()


KINDS = ['nan', 'inf', 'overflow', 'int', 'uint8', 'bool', 'complex', 'sparse', 'quantised', 'meta', 'nested', 'shape',
         'scalar', 'repeated', 'none', 'list', 'numpy']
FLOATS = [key for key, value in DONOR.items() if value.is_floating_point()]


@cases(100, kind=st.sampled_from(KINDS), key=st.sampled_from(FLOATS),
       wrapper=st.sampled_from(['', 'state_dict', 'model']), prefix=st.sampled_from(['', 'module.', '_orig_mod.']),
       legacy=st.booleans())
def test_tensors_of_the_wrong_kind(tmp_path, kind, key, wrapper, prefix, legacy):
    state = {prefix + name: value for name, value in DONOR.items()}
    state[prefix + key] = strange(kind, DONOR[key])
    path = tmp_path / 'w.pth'
    torch.save({wrapper: state} if wrapper else state, path, _use_new_zipfile_serialization=not legacy)
    target = module(2)
    # of a nested tensor in the older format, all that can be said is which file cannot be read
    with pytest.raises(WeightsError, match=re.escape(str(path) if kind == 'nested' else key)):
        load(target, path)
    assert equal(target.state_dict(), module(2).state_dict())


def test_negative_variances_and_names_that_are_not_plain(tmp_path):
    for state, said in [
        ({**DONOR, '1.running_var': -DONOR['1.running_var']}, '1.running_var holds a negative variance'),
        ({**DONOR, '_orig_mod.1.bias': DONOR['1.bias']}, '1.bias twice'),
        ({**DONOR, '1.bias\x1b[2J': DONOR['1.bias']}, 'names a tensor'),
    ]:
        torch.save(state, tmp_path / 'w.pth')
        with pytest.raises(WeightsError, match=said):
            load(module(2), tmp_path / 'w.pth')


@cases(40, method=st.sampled_from([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]),
       packed=st.sets(st.sampled_from(['data.pkl', 'data/0', 'data/3', 'version', 'byteorder', 'filler']), min_size=1),
       size=st.integers(1, 1 << 23))
def test_compressed_archives(tmp_path, method, packed, size):
    """Refused by what the directory says of them, and not unpacked."""
    path = tmp_path / 'w.pth'
    with zipfile.ZipFile(io.BytesIO(FILES['zip'])) as whole, zipfile.ZipFile(path, 'w') as archive:
        for name in whole.namelist():
            compressed = name.split('/', 1)[1] in packed
            archive.writestr(name, whole.read(name), method if compressed else zipfile.ZIP_STORED)
        if 'filler' in packed:
            archive.writestr('archive/data/9', bytes(size), method)
    with pytest.raises(WeightsError, match='compressed entries'):
        read_weights(path)


def test_entries_that_lie_over_each_other(tmp_path):
    """A zip of some kilobytes whose entries, told by its directory, are gigabytes: they share their bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, 'w') as archive:
        archive.writestr('archive/data.pkl', b'x' * 5000)
        first = archive.infolist()[0]
        for number in range(100):
            again = zipfile.ZipInfo(f'archive/data/{number}')
            again.header_offset, again.file_size, again.compress_size = 0, first.file_size, first.compress_size
            again.CRC = first.CRC
            archive.filelist.append(again)
            archive.NameToInfo[again.filename] = again
            archive._didModify = True
    path = tmp_path / 'w.pth'
    path.write_bytes(stream.getvalue())
    with pytest.raises(WeightsError, match='entries are said to have'):
        read_weights(path)
