"""The side-by-side benchmarks. They stand apart from the platform and know only its public contract."""
