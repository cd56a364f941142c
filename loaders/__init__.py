"""Bytes on disk -> ClipBatch on the device. Import it as `ppma.loaders`.

    manifest -> sampler -> stream -> workers: fetch -> DALI graph, or OpenCV on a CPU -> ClipBatch

Loader workers import this package: it imports neither torch nor DALI.
"""
