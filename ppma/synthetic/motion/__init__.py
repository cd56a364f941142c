"""How virtual humans move: motion capture, key poses, interpolation, actions."""
