"""Fused operations, each with a plain PyTorch reference in `reference`. Import as `ppma.kernels`."""
