"""How fast everything is, measured the same way for us and for a plain PyTorch implementation of the same networks.

    python -m benchmarks.speed --json benchmarks/results/speed.json        our own cases
    python -m benchmarks.compare --json benchmarks/results/compare.json    side by side with PyTorch (extra `bench`)
    python -m benchmarks.scaling --json benchmarks/results/scaling.json    how the cost grows
    python -m benchmarks.report                                            docs/speed.md from those files

Every case runs in a process of its own, so that its peak memory is its own and no case warms another one's caches.
"""
