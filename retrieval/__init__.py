"""From a method and images to rankings."""
