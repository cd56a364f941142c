"""Studies: a matrix of pre-training x protocol x data set x seed as runs, and the table that comes of them.

spec.toml -> spec -> plan (a graph of runs, addressed by what they are made of) -> work or slurm -> run folders, each sealed
run folders -> results (only what the seals vouch for) -> statistics -> table, figures -> report
"""
