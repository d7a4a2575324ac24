"""Weights files of any content: one WeightsError that names the file or the tensor, or the very weights."""
import io
import os
import re
import subprocess
import zipfile

import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from mmlk.weights import WeightsError, load
from mmlk.weights.read import read
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
        read(path)


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
        read(path)
