"""Robustness: mPC and rPC by hand, what is tested, results that are kept, and the command."""
import csv
import json
import math
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmlk.cli import main
from mmlk.datasets.corruptions import CATEGORIES, CORRUPTIONS, corrupt
from mmlk.datasets.layouts import DemoPlan, write_demo
from mmlk.engine import hooks
from mmlk.evaluation.robustness import (CLEAN, Results, Robustness, main_metrics, plan, robustness, table,
                                        write_report)
from tests.utils import fill

FINGERPRINT = dict(checkpoint='a', model='b')


def test_corruptions_by_name_category_and_all():
    assert plan(['all']) == {name: [1, 2, 3, 4, 5] for name in CORRUPTIONS} and len(CORRUPTIONS) == 15
    assert list(plan(['fog', 'blur'], [3])) == [*CATEGORIES['blur'], 'fog']
    segformer = plan(['all'], noise_severities=[1, 2, 3])
    assert {name for name, levels in segformer.items() if levels == [1, 2, 3]} == set(CATEGORIES['noise'])
    assert plan(['fog', 'fog'], [5, 1, 5]) == dict(fog=[1, 5])


@pytest.mark.parametrize('arguments, message', [
    ((['rain', 'fog', 'hail'], ), "there is no corruption 'rain', 'hail'; there are all, noise, blur, weather, "
     'digital, gaussian_noise'),
    ((['fog'], [0, 6]), 'severities are 1 to 5, got 0, 6'),
    ((['noise'], [1], [7]), 'severities are 1 to 5, got 7'),
    ((['fog'], [1], [2]), 'severities of the noise are given, and no noise is among the corruptions')])
def test_what_does_not_exist_is_refused(arguments, message):
    with pytest.raises(ValueError) as error:
        plan(*arguments)
    assert message in str(error.value)


def by_hand(tmp_path):
    """Three corruptions; noise at two severities only. mIoU: means 20, 40 and 30; mPC 30; rPC 0.6 of 50."""
    results = Results(tmp_path / 'results.json', FINGERPRINT)
    results.add(dict(aAcc=80, mIoU=50.0, text='0.1 0.2', small=-1, broken=1.0), CLEAN)
    for name, values in dict(shot_noise=[30, 10], fog=[44, 42, 34], pixelate=[50, 25, 15]).items():
        for severity, value in zip((1, 3, 5), values):
            results.add(dict(aAcc=torch.tensor(value + 1), mIoU=value, small=-1, broken=math.nan), name, severity)
    return results, dict(shot_noise=[1, 3], fog=[1, 3, 5], pixelate=[1, 3, 5])


def test_mpc_and_rpc_by_hand(tmp_path):
    found = {one.metric: one for one in robustness(*by_hand(tmp_path))}
    assert set(found) == {'aAcc', 'mIoU'}  # the others are texts, or not defined everywhere
    miou = found['mIoU']
    assert miou.means == dict(shot_noise=20, fog=40, pixelate=30)
    assert miou.categories == dict(noise=20, weather=40, digital=30)
    assert (miou.clean, miou.mpc, miou.rpc) == (50, 30, 0.6) and found['aAcc'].mpc == pytest.approx(31)
    assert [one.metric for one in main_metrics(list(found.values()))] == ['mIoU']
    assert table(miou).splitlines()[2:] == [
        '| shot_noise | 30.00 | 10.00 |  | 20.00 |', '| fog | 44.00 | 42.00 | 34.00 | 40.00 |',
        '| pixelate | 50.00 | 25.00 | 15.00 | 30.00 |', '', 'clean 50.00, mPC 30.00, rPC 60.0 %']


def test_a_detector_that_finds_nothing_has_a_precision_of_0(tmp_path):
    """mmdet then gives no metrics. One that finds nothing on clean images has no rPC."""
    results = Results(tmp_path / 'results.json', FINGERPRINT)
    results.add(dict(bbox_mAP=0.4, bbox_mAP_s=-1), CLEAN)
    results.add(dict(bbox_mAP=0.2, bbox_mAP_s=-1), 'fog', 1)
    results.add(dict(), 'fog', 2)
    one, = robustness(results, dict(fog=[1, 2]))
    assert (one.mpc, one.rpc) == (0.1, 0.25)
    assert Robustness('bbox_mAP', 0.0, dict(fog={1: 0.0})).rpc is None
    results.add(dict(), CLEAN)
    one, = robustness(results, dict(fog=[1, 2]))
    assert (one.clean, one.mpc, one.rpc) == (0, 0.1, None)
    assert robustness(results, dict(fog=[2])) == []
    assert [path.name for path in write_report(tmp_path, [], {})] == ['robustness.json', 'robustness.csv']
    with pytest.raises(ValueError, match='has no test of fog 5'):
        robustness(results, dict(fog=[5]))


def test_results_are_kept_and_only_those_of_the_same_model(tmp_path):
    results, tested = by_hand(tmp_path)
    results.save()
    again = Results(tmp_path / 'results.json', FINGERPRINT)
    assert again.tests == results.tests and again.find('fog', 3)['mIoU'] == 42 and again.find('fog', 2) is None
    assert again.find('fog', 3)['broken'] is None  # JSON has no NaN
    with pytest.raises(ValueError, match=r'results.json are of another checkpoint, seed. Take another folder with '
                                         r'--corruptions-dir, or remove the file to test all anew'):
        Results(tmp_path / 'results.json', dict(FINGERPRINT, checkpoint='other', seed='1'))
    (tmp_path / 'results.json').write_text('{"tests": ')
    with pytest.raises(ValueError, match='is not a file of results .*; remove it'):
        Results(tmp_path / 'results.json', FINGERPRINT)


def test_the_report_has_every_number(tmp_path):
    results, tested = by_hand(tmp_path)
    paths = write_report(tmp_path / 'report', robustness(results, tested), dict(command='mmlk test'))
    assert [path.name for path in paths] == ['robustness.json', 'robustness.csv', 'robustness.png', 'shot_noise.png',
                                             'fog.png', 'pixelate.png']
    assert all(path.is_file() for path in paths) and len(list((tmp_path / 'report').iterdir())) == len(paths)
    content = json.loads(paths[0].read_text())
    assert content['command'] == 'mmlk test' and content['performance']['mIoU']['fog'] == {'1': 44, '3': 42, '5': 34}
    assert content['summary']['mIoU'] == dict(
        clean=50, mPC=30, rPC=0.6, categories=dict(noise=20, weather=40, digital=30),
        corruptions=dict(shot_noise=20, fog=40, pixelate=30))
    rows = list(csv.reader(paths[1].open()))
    assert rows[0] == ['metric', 'corruption', 'severity', 'performance'] and ['mIoU', 'fog', '5', '34.0'] in rows
    assert ['mIoU', 'mPC', '', '30.0'] in rows and ['mIoU', 'rPC', '', '0.6'] in rows and len(rows) == 1 + 2 * 11


# The command

SEGMENTOR = 'configs/demo/upernet_replknet-tiny_ade20k.py'


@pytest.fixture(scope='module')
def work(tmp_path_factory, pytestconfig):
    """Scenes, and a segmentor with random weights, whose predictions depend on each pixel."""
    folder = tmp_path_factory.mktemp('robustness')
    write_demo(DemoPlan('ade20k', seed=0, train=1, val=2, size=(64, 80)), folder / 'data')
    import mmlk.registry  # noqa: F401
    init_default_scope('mmseg')
    from mmseg.registry import MODELS
    model = fill(MODELS.build(Config.fromfile(pytestconfig.rootpath / SEGMENTOR).model)).eval()
    scene = cv2.imread(str(next((folder / 'data' / 'images' / 'training').iterdir())))
    with torch.no_grad():  # no class is the most likely everywhere
        logits = model((torch.from_numpy(scene).permute(2, 0, 1)[None] - 116.) / 57)
        model.decode_head.conv_seg.bias -= logits.mean((0, 2, 3))
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / 'model.pth')
    return folder


@pytest.fixture
def run(work, tmp_path, monkeypatch, pytestconfig):
    """Run ``mmlk test``; returns all results of the folder, and which tests this call made."""
    monkeypatch.chdir(pytestconfig.rootpath)
    add, made = Results.add, []

    def added(results, metrics, *test):
        made.append(test)
        add(results, metrics, *test)

    monkeypatch.setattr(Results, 'add', added)

    def run(*options, checkpoint='model.pth', settings=(), folder='robustness'):
        made.clear()
        main(['test', SEGMENTOR, str(work / checkpoint), '--work-dir', str(tmp_path), '--corruptions-dir',
              str(tmp_path / folder), *options, '--cfg-options', f'test_dataloader.dataset.data_root={work}/data',
              *settings])
        return json.loads((tmp_path / folder / 'results.json').read_text())['tests'], list(made)

    return run


def test_a_second_call_goes_on(run, work, tmp_path, monkeypatch):
    """The model is merged in the first test alone; workers that run on would not see the next corruption."""
    alone = ['--merge', '--severities', '5', '--corruption-seed', '3']
    options = [*alone, '--noise-severities', '1']
    workers = ['test_dataloader.num_workers=1', 'test_dataloader.persistent_workers=True']
    merge, merged = hooks.merge, []
    monkeypatch.setattr(hooks, 'merge', lambda model, inplace: merged.append(merge(model, inplace=inplace)))
    first, made = run(*options, '--corruptions', 'noise', 'frost', settings=workers)
    assert len(merged) == 1
    assert made == [(CLEAN, 0), *((name, 1) for name in CATEGORIES['noise']), ('frost', 5)]
    assert len({tuple(test.items()) for test in first.values()}) == 5
    second, made = run(*options, '--corruptions', 'noise', 'frost', 'fog')
    assert made == [('fog', 5)] and {name: second[name] for name in first} == first
    content = json.loads((tmp_path / 'robustness' / 'robustness.json').read_text())
    assert list(content['performance']['mIoU']) == [CLEAN, *CATEGORIES['noise'], 'frost', 'fog']
    assert (tmp_path / 'robustness' / 'fog.png').is_file()

    # the same images, corrupted beforehand
    for path in (work / 'data' / 'images' / 'validation').glob('*.jpg'):
        image = corrupt(cv2.imread(str(path))[..., ::-1], 'frost', 5, 3)
        cv2.imwrite(str(path.with_suffix('.png')), image[..., ::-1])
    pictures = 'test_dataloader.dataset.img_suffix=.png'
    other, _ = run(*alone, '--corruptions', 'pixelate', settings=[pictures], folder='other')
    assert other[CLEAN] == first['frost 5']


def test_another_checkpoint_config_or_seed_is_refused(run, work, capsys):
    fog = ['--corruptions', 'fog', '--severities', '1']
    run(*fog)
    weights = torch.load(work / 'model.pth')['state_dict']
    torch.save(dict(state_dict={name: value + 1 for name, value in weights.items()}, meta={}), work / 'other.pth')
    for changed, options in dict(
            checkpoint=dict(checkpoint='other.pth'), seed=dict(more=['--corruption-seed', '1']),
            custom_hooks=dict(more=['--merge']), model=dict(settings=['model.decode_head.align_corners=True']),
            test_dataloader=dict(settings=['test_dataloader.batch_size=2'])).items():
        with pytest.raises(SystemExit) as status:
            run(*fog, *options.pop('more', ()), **options)
        assert status.value.code == 2
        assert f'robustness/results.json are of another {changed}. Take another' in capsys.readouterr().err
    assert run(*fog, settings=['test_dataloader.num_workers=2'])[1] == []


@pytest.mark.parametrize('options, message', [
    (['--severities', '1'], '--severities has no effect without --corruptions'),
    (['--corruptions', 'mist'], "--corruptions: there is no corruption 'mist'; there are all, noise"),
    (['--corruptions', 'fog', '--severities', '6'], '--corruptions: severities are 1 to 5, got 6'),
    (['--corruptions', 'fog', '--corruption-seed', '-1'], '--corruption-seed must be at least 0, got -1'),
    (['--corruptions', 'fog', '--out', 'x'], '--out is of one test, and --corruptions makes many'),
    (['--corruptions', 'fog', '--show-dir', 'x'], '--show-dir is of one test, and --corruptions makes many')])
def test_options_that_are_refused(options, message, capsys, monkeypatch, pytestconfig):
    monkeypatch.chdir(pytestconfig.rootpath)
    with pytest.raises(SystemExit):
        main(['test', SEGMENTOR, 'none.pth', *options])
    assert message in capsys.readouterr().err


def test_images_of_four_channels_are_refused_before_the_first_test(work, tmp_path, monkeypatch, pytestconfig, capsys):
    monkeypatch.chdir(pytestconfig.rootpath)
    shutil.copytree(work / 'data', tmp_path / 'data')
    for path in (tmp_path / 'data' / 'images' / 'validation').glob('*.jpg'):
        cv2.imwrite(str(path.with_suffix('.png')), cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2BGRA))
    with pytest.raises(SystemExit):
        main(['test', SEGMENTOR, str(work / 'model.pth'), '--work-dir', str(tmp_path), '--corruptions', 'fog',
              '--cfg-options', f'test_dataloader.dataset.data_root={tmp_path}/data',
              'test_dataloader.dataset.img_suffix=.png', 'test_dataloader.dataset.pipeline.0.color_type=unchanged'])
    assert 'corruptions are defined for 8-bit images of three channels' in capsys.readouterr().err
    assert not (tmp_path / 'robustness').exists()


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(tmp_path, pytestconfig):
    """Of a detector on the six domains of COCO-O, in its inference form."""
    root, folder = pytestconfig.rootpath, tmp_path / 'ood_coco'
    cfg = Config.fromfile(root / 'configs/demo/mask_rcnn_replknet-tiny_coco.py')
    domains = Config.fromfile(root / 'configs/_base_/datasets/coco_o.py')
    dataset = cfg.test_dataloader.dataset
    for number, part in enumerate(domains.test_dataloader.dataset.datasets):
        part.update(data_root=f'{tmp_path}/{part.data_root[5:]}', metainfo=dataset.metainfo, pipeline=dataset.pipeline)
        write_demo(DemoPlan('coco', seed=number, train=1, val=2, size=(64, 80)), Path(part.data_root))
    for metric in domains.test_evaluator.metrics:
        metric.ann_file = f'{tmp_path}/{metric.ann_file[5:]}'
    cfg.test_dataloader.dataset, cfg.test_evaluator = domains.test_dataloader.dataset, domains.test_evaluator
    cfg.model.test_cfg.rcnn.score_thr = 0  # random weights are sure of nothing
    cfg.dump(tmp_path / 'config.py')
    assert len(list(folder.iterdir())) == 6
    init_default_scope('mmdet')
    from mmdet.registry import MODELS
    torch.save(dict(state_dict=MODELS.build(cfg.model).state_dict(), meta={}), tmp_path / 'model.pth')

    found = []
    for command in (['python', 'tools/test.py'], ['bash', 'tools/dist_test.sh']):
        processes = ['2'] if command[0] == 'bash' else []
        work = tmp_path / command[0]
        done = subprocess.run([*command, tmp_path / 'config.py', tmp_path / 'model.pth', *processes, '--optimize',
                               '--work-dir', work, '--corruptions', 'fog', 'elastic_transform', '--severities', '3'],
                              cwd=root, capture_output=True, text=True, env={**os.environ, 'PYTHONPATH': str(root),
                                                                             'GLOO_SOCKET_IFNAME': 'lo'})
        assert done.returncode == 0, done.stderr[-3000:]
        assert 'test 3 of 3: elastic_transform, severity 3' in done.stdout + done.stderr
        found.append(json.loads((work / 'robustness' / 'results.json').read_text())['tests'])
    assert list(found[0]) == [CLEAN, 'fog 3', 'elastic_transform 3']
    for name, metrics in found[0].items():
        assert metrics == pytest.approx(found[1][name], abs=1e-3)
        assert {f'{domain}/coco/bbox_mAP' for domain in domains.domains} <= set(metrics)
    assert found[0][CLEAN] != found[0]['fog 3']
