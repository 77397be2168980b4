"""What CLIPO costs, measured: `python -m benchmarks.overhead`, `.loss`, `.scaling`. The figures are explained in
docs/cost.md."""
