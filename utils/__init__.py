"""What would fit any project; made a package so that no other `utils` is found instead."""
