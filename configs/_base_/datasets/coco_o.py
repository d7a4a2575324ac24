# COCO-O, arXiv:2307.12730: six domains with the boxes of COCO's classes, in the layout that
# github.com/alibaba/easyrobust, benchmarks/coco_o publishes: data/ood_coco/{domain}/val2017 and
# data/ood_coco/{domain}/annotations/instances_val2017.json. Training and validation stay COCO's. A test
# gives a mAP for each domain, as sketch/coco/bbox_mAP.
_base_ = './coco_detection.py'
domains = ['sketch', 'weather', 'cartoon', 'painting', 'tattoo', 'handmake']
__roots = [f'data/ood_coco/{domain}/' for domain in domains]
test_dataloader = dict(
    dataset=dict(
        _delete_=True,
        type='ConcatDataset',
        datasets=[
            dict(
                type='CocoDataset',
                data_root=root,
                ann_file='annotations/instances_val2017.json',
                data_prefix=dict(img='val2017/'),
                test_mode=True,
                pipeline=_base_.test_pipeline) for root in __roots]))
test_evaluator = dict(
    _delete_=True,
    type='MultiDatasetsEvaluator',
    metrics=[
        dict(type='CocoMetric', ann_file=f'{root}annotations/instances_val2017.json', metric='bbox')
        for root in __roots],
    dataset_prefixes=domains)
