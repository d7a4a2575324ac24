# The classifier of RepVGG: cross-entropy, no mixing of images, PyTorch's own start of the linear layer.
_base_ = './classifier.py'
model = dict(
    head=dict(loss=dict(_delete_=True, type='CrossEntropyLoss'), init_cfg=None),
    train_cfg=None)
