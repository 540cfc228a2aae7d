"""What helps to find a fault or the time: the profiler and anomaly detection. The engine does not know them."""
