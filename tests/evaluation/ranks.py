"""Several processes that share the images of a test, as mmengine's sampler distributes them."""
import os
import pickle

import torch.distributed as dist
from mmengine.dataset import DefaultSampler

from tests.engine.toy import forked


def evaluate_in_ranks(make, samples, folder, world=2):
    """Evaluates samples in forked processes.

    Args:
        make: Makes a metric from the function to which it hands its results.
        samples: Of all images.
        folder: An empty folder.
        world: Number of processes.

    Returns:
        What the metric of the main process handed over.
    """
    os.makedirs(folder, exist_ok=True)

    def work(rank):
        os.environ['GLOO_SOCKET_IFNAME'] = 'lo'
        os.chdir(folder)  # mmengine makes a folder for results there
        dist.init_process_group('gloo', init_method=f'file://{folder}/store', rank=rank, world_size=world)
        given = []
        metric = make(given.append)
        for index in DefaultSampler(samples, shuffle=False):
            metric.process(None, [samples[index]])
        metric.evaluate(len(samples))
        assert len(given) == (rank == 0)
        if given:
            (folder / 'results.pkl').write_bytes(pickle.dumps(given[0]))
        dist.barrier()

    def both():
        child = os.fork()
        if not child:
            os._exit(-forked(work, 1) % 256)
        work(0)
        assert os.waitpid(child, 0)[1] == 0

    assert forked(both) == 0
    return pickle.loads((folder / 'results.pkl').read_bytes())


def evaluate(make, samples):
    """Evaluates samples in this process, and returns what the metric hands over."""
    given = []
    metric = make(given.append)
    for sample in samples:
        metric.process(None, [sample])
    metric.evaluate(len(samples))
    result, = given
    return result
