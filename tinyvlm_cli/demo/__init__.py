"""The demo's data and benchmarks, and pretrained parts that installed packages carry."""
