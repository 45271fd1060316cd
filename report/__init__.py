"""From results to pictures, pages and files that people read."""
