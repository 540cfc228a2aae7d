"""What helps to find a fault or the time, or to see a step: the profiler, anomaly detection, the step-through page. The
engine does not know them."""
