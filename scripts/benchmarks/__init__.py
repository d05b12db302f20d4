"""What `bench.py` and `gpu.py` measure, and how: pairs, training steps, resumable parts."""
