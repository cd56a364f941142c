"""Remove people from videos: masks, camera motion, inpainting, encoding."""
