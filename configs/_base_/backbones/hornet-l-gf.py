# Checkpointing as in the official run.
backbone = dict(type='mmlk.HorNet', arch='L-GF-384', with_cp=True)
channels = [192, 384, 768, 1536]
