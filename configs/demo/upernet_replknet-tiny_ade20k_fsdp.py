# The demo in shares over the processes (FSDP), each step's gradient from two iterations of half the
# images: bash tools/dist_train.sh configs/demo/upernet_replknet-tiny_ade20k_fsdp.py 2
# The whole model is one unit: heads are called by methods other than forward, which units of their own
# would not see. Checkpoints are whole ones: one process tests or merges them.
_base_ = './upernet_replknet-tiny_ade20k.py'
runner_type = 'FlexibleRunner'
strategy = dict(
    type='mmlk.FSDPStrategy',
    state_dict_cfg='full',
    model_wrapper=dict(type='MMFullyShardedDataParallel', use_orig_params=True))
optim_wrapper = dict(accumulative_counts=2)
train_dataloader = dict(batch_size=2)  # 2 processes x 2 images x 2 iterations: 8 per step, as the demo has
train_cfg = dict(max_iters=1400, val_interval=700)  # iterations, not steps
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=80),
    dict(type='PolyLR', eta_min=0.0, power=1.0, by_epoch=False, begin=80, end=1400),
]
default_hooks = dict(checkpoint=dict(interval=700))
