# timm's port of EfficientNet-Lite0. Its pixels are (x - 127) / 128, which a config sets in its data
# preprocessor.
backbone = dict(type='mmlk.TimmBackbone', model_name='tf_efficientnet_lite0')
channels = [24, 40, 112, 320]
mean = [127.0, 127.0, 127.0]
std = [128.0, 128.0, 128.0]
