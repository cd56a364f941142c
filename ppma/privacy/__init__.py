"""Remove people from videos, and say what is left of them.

    weights      small detectors and a segmenter out of pinned packages, into a cache folder
    plugins      what can be chosen by name: detectors, segmenters, inpainters, each with its licence
    clip         one clip: find -> mask -> fill -> write, in three passes that hold a few frames at a time
    removal      many clips: parallel, resumable, with a manifest at the end

Nothing here makes a data set anonymous: shadows, reflections, number plates, voices in other files and people whom no
detector finds stay.
"""
