# The images of a folder, without label maps, for the model of own_segmentation.py.
#   python tools/test.py examples/predict_segmentation.py CHECKPOINT --out predictions --show-dir shown
_base_ = './own_segmentation.py'
test_dataloader = dict(
    dataset=dict(
        data_prefix=dict(_delete_=True, img_path='images/new'),  # below data_root
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=_base_.scale, keep_ratio=True),
            dict(type='PackSegInputs'),
        ]))
test_evaluator = dict(format_only=True)  # write label maps, compare with nothing
