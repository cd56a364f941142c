"""Studies: a matrix of pre-training x protocol x data set x seed as runs, and the table of their results.

spec.toml -> spec -> plan (a graph of runs, named by hashes of their inputs) -> work or slurm -> sealed run folders
run folders -> results (sealed files only) -> findings -> table, figures -> report
"""
