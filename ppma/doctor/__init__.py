"""What this machine has, which fast paths it takes, and whether the training step compiles for its GPU."""
