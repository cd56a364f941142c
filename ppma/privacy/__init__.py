"""Remove people from videos, detect those who remain, and train on checked data only.

    detectors   models that detect or segment people, and their weights
    removal     `ppma remove-humans`: detect -> mask -> paint -> write, many clips in parallel
    audit       `ppma audit`: residual people in cleaned clips, with confidence bounds
    plant       `ppma plant`: the recall of remover and auditor on clips with known people
    strict      `ppma train --privacy strict`: refuses data that did not pass an audit

Nothing here makes a data set anonymous: license plates, people whom no detector finds and many shadows remain.
"""
