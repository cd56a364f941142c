"""Plant virtual people into empty scenes, remove and audit them, and report what remains."""
