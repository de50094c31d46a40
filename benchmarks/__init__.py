"""Benchmarks of convt_ext: the case table, the roofline, the runner and the report."""
