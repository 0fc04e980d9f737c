"""What needs numpy or an inference runtime, in a process that ends.

For: the trial of a variant. The daemon imports `agent.worker.job` alone, which holds types and no numpy.
Not for: anything that must outlive a trial; whatever a worker does to itself dies with it.
"""
