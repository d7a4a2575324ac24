backbone = dict(type='mmlk.InternImage', arch='XL')
channels = [192, 384, 768, 1536]
