"""From lists of images to weights."""
