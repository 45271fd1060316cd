"""The built-in benchmark: objects drawn as photos and as sketches, without a download."""
