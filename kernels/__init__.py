"""Fused operations, each with its plain-PyTorch meaning in `reference`. Import it as `ppma.kernels`."""
