"""Bytes on disk -> ClipBatch on the device. Import it as `ppma.loaders`.

    manifest -> sampler -> fetch -> DALI graph (or its plain CPU form) -> ClipBatch

Loader workers import this package: it pulls in neither torch nor DALI.
"""
