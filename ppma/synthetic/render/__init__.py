"""How virtual humans and their scenes are drawn."""
