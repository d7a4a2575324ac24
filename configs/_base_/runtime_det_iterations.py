# For detectors whose schedule counts iterations.
_base_ = './runtime_det.py'
log_processor = dict(by_epoch=False)
