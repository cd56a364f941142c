"""What a pre-trained encoder is worth: features, probes, k-NN, few-shot, evaluation."""
