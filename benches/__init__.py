"""What bench.py measures, stage by stage."""
