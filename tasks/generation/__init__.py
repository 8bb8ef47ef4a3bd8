"""Image generation: GANs with a slot for a block in both networks, and scores of what they make."""
