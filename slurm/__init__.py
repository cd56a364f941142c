"""How a run reaches a cluster. Import it as `ppma.slurm`; run it as `python slurm/launch.py`."""
